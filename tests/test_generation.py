"""De la phrase à l'image."""

import hashlib
import json

import numpy as np
import pytest
import torch

from minidalle import checkpoints
from minidalle.checkpoints import save_model
from minidalle.errors import MinidalleError
from minidalle.generation import TextToImage, pad, rerank, to_pixels, to_tensor
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.dalle_mini import DALLEMini, DALLEMiniConfig
from minidalle.models.dvae import DVAE, DVAEConfig
from minidalle.models.vqgan import VQGAN, VQGANConfig
from minidalle.models.vqvae import VQVAE, VQVAEConfig
from minidalle.text import ByteTokenizer, Tokenizer

PHOTO = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
TEXTS = ["un mouton rouge", "un carré bleu à gauche d'un mouton"]


PAINTERS = {
    "vqvae": lambda: VQVAE(VQVAEConfig(channels=(8, 8), codes=12, code_dim=4)),
    "dvae": lambda: DVAE(DVAEConfig(hidden=8, groups=3, codes=12, code_dim=8)),
    "vqgan": lambda: VQGAN(
        VQGANConfig(
            channels=4,
            multipliers=(1, 1, 2),
            blocks=(0, 1, 1),
            attention=(2,),
            grid_channels=8,
            codes=12,
            code_dim=4,
            perceptual=0.0,
            discriminator_width=8,
            discriminator_layers=1,
        )
    ),
}
WRITERS = {"dalle": (DALLE, DALLEConfig), "dalle_mini": (DALLEMini, DALLEMiniConfig)}


def pieces(codes=12, writer="dalle", painter="vqvae"):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS, 80)
    vqvae = PAINTERS[painter]()
    if painter == "vqvae":
        vqvae.quantizer.codebook.mul_(5)
    model, config = WRITERS[writer]
    sizes = {
        "image_vocabulary": codes,
        "text_length": 8,
        "grid": (3, 3),
        "width": 16,
        "layers": 1,
        "heads": 2,
    }
    transformer = model(config(len(tokenizer), **sizes))
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(3)  # des lois contrastées, qui lisent la description
    return tokenizer, transformer, vqvae


@pytest.fixture(params=WRITERS)
def model(request):
    return TextToImage(*pieces(writer=request.param))


def test_images_have_the_promised_form(model):
    drawing = model.draw("un mouton rouge", n=3, seed=7)
    assert drawing.images.shape == (3, 12, 12, 3) and drawing.images.dtype == np.uint8
    assert drawing.tokens.shape == (3, 3, 3)
    assert np.array_equal(
        drawing.images, np.concatenate([to_pixels(model.vqvae.decode(grid[None])) for grid in drawing.tokens])
    )


def test_image_i_is_that_of_seed_plus_i(model):
    together = model.draw("un mouton rouge", n=4, seed=10)
    for i in range(4):
        alone = model.draw("un mouton rouge", n=1, seed=10 + i)
        assert np.array_equal(alone.images[0], together.images[i])
    assert len({t.numpy().tobytes() for t in together.tokens}) > 1


def test_what_is_not_understood_is_told(model):
    drawing = model.draw("un dragon rouge à gauche d'un carré bleu et d'un mouton")
    assert drawing.unknown == ["dragon"]
    assert drawing.dropped[-1] == "mouton"
    fine = model.draw("un mouton rouge")
    assert (fine.unknown, fine.dropped) == ([], [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.draw("  "), "Description vide"),
        (lambda m: m.draw("un mouton", n=0), "Nombre d'images impossible"),
        (lambda m: m.draw("un mouton", seed=-1), "Graine impossible"),
        (lambda m: m.draw("un mouton", temperature=0), "Température impossible"),
        (lambda m: m.draw("un mouton", guidance=-1), "Guidage impossible"),
        (lambda m: m.draw("un mouton", batch=0), "Paquet impossible"),
        (lambda m: m.draw("un mouton", complete=PHOTO, keep=0), "Part gardée impossible"),
        (lambda m: m.draw("un mouton", complete=PHOTO, keep=1), "Part gardée impossible"),
        (lambda m: m.draw("un mouton", complete=PHOTO[:8]), r"forme \(8, 12, 3\).*12 × 12 pixels"),
        (lambda m: m.draw("un mouton", complete=PHOTO / 255), "uint8"),
        (lambda m: m.draw_many(["un mouton"], [1, 2]), r"1 description\(s\) et 2 graine"),
        (lambda m: m.draw_many([], []), "au moins une"),
        (lambda m: rerank(m.draw("un mouton", 2), Judge(), 3), "Garder 3 image"),
        (lambda m: rerank(m.draw("un mouton", 2), Judge(), 0), "Garder 0 image"),
    ],
)
def test_impossible_requests_are_refused(model, call, message):
    with pytest.raises(MinidalleError, match=message):
        call(model)


def test_load_takes_the_vqvae_beside_the_weights(tmp_path, monkeypatch):
    tokenizer, transformer, vqvae = pieces()
    notes = {"tokenizer": tokenizer.to_json(), "vqvae": "yeux"}
    save_model(tmp_path / "a" / "main.safetensors", transformer, **notes)
    save_model(tmp_path / "a" / "yeux.safetensors", vqvae)
    expected = TextToImage(tokenizer, transformer, vqvae).draw("un mouton rouge").images
    loaded = TextToImage.load(tmp_path / "a" / "main.safetensors")
    assert np.array_equal(loaded.draw("un mouton rouge").images, expected)
    # Sans fichier voisin, rien : un autre VQ-VAE du même nom, fût-il du paquet, aurait d'autres codes.
    save_model(tmp_path / "b" / "main.safetensors", transformer, **notes)
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path / "a")
    with pytest.raises(MinidalleError, match="yeux.*introuvable"):
        TextToImage.load(tmp_path / "b" / "main.safetensors")
    assert np.array_equal(TextToImage.load("main").draw("un mouton rouge").images, expected)


def test_pieces_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(MinidalleError, match="ne vont pas ensemble"):
        TextToImage(*pieces(codes=13))
    save_model(tmp_path / "seul.safetensors", pieces()[1])
    with pytest.raises(MinidalleError, match="a perdu son vocabulaire"):
        TextToImage.load(tmp_path / "seul.safetensors")
    save_model(tmp_path / "vq.safetensors", pieces()[2])
    with pytest.raises(MinidalleError, match="il faut un « dalle » ou un « dalle_mini »"):
        TextToImage.load(tmp_path / "vq.safetensors")
    notes = {"tokenizer": pieces()[0].to_json(), "vqvae": "seul"}
    save_model(tmp_path / "main.safetensors", pieces()[1], **notes)
    with pytest.raises(MinidalleError, match="« dalle », qui ne peint pas de jetons"):
        TextToImage.load(tmp_path / "main.safetensors")


@pytest.mark.parametrize("damage", ["bit", "tronqué"])
@pytest.mark.parametrize("victim", ["main", "yeux"])
def test_a_card_vouches_for_its_file(tmp_path, victim, damage):
    tokenizer, transformer, vqvae = pieces()
    save_model(tmp_path / "main.safetensors", transformer, tokenizer=tokenizer.to_json(), vqvae="yeux")
    save_model(tmp_path / "yeux.safetensors", vqvae)
    path = tmp_path / f"{victim}.safetensors"
    whole = path.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    path.with_suffix(".md").write_text(f"# x\n- **Empreinte** (sha256) : `{digest}`.\n- `{'0' * 64}`\n")
    TextToImage.load(tmp_path / "main.safetensors")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage == "bit" else whole[:-40])
    with pytest.raises(MinidalleError, match=rf"{victim}.safetensors » n'a pas l'empreinte.*{victim}.md"):
        TextToImage.load(tmp_path / "main.safetensors")
    path.with_suffix(".md").write_text("Une notice sans empreinte.")
    path.write_bytes(whole)
    TextToImage.load(tmp_path / "main.safetensors")


def test_the_packaged_cards_are_true():
    for path in checkpoints.WEIGHTS.glob("*.safetensors"):
        if path.with_suffix(".md").exists():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert f"`{digest}`" in path.with_suffix(".md").read_text(encoding="utf-8"), path.name


# --- les deux architectures, les trois décodeurs --------------------------------------------------


@pytest.mark.parametrize("painter", PAINTERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_any_writer_with_any_painter(tmp_path, writer, painter):
    tokenizer, transformer, vqvae = pieces(writer=writer, painter=painter)
    save_model(tmp_path / "a.safetensors", transformer, tokenizer=tokenizer.to_json(), vqvae="b")
    save_model(tmp_path / "b.safetensors", vqvae)
    loaded = TextToImage.load(tmp_path / "a.safetensors")
    side = 3 * vqvae.config.factor
    assert loaded.size == (side, side)
    photo = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    drawing = loaded.draw("un mouton rouge", 2, complete=photo, guidance=2.0)
    assert drawing.images.shape == (2, side, side, 3)
    assert torch.equal(
        drawing.tokens[:, :2], loaded.vqvae.encode(to_tensor(photo[None]))[:, :2].expand(2, -1, -1)
    )


def test_the_empty_description_is_the_one_it_learned(model):
    text, _, _ = model.read(["un mouton rouge"])
    nothing = torch.full_like(text, model.tokenizer.pad_id)
    assert torch.equal(model._nothing(), nothing)
    plain = model.draw("un mouton rouge", 2, guidance=0.0)
    other = model.draw("un carré bleu", 2, guidance=0.0)
    assert torch.equal(plain.tokens, other.tokens)  # à 0, la description ne compte plus
    told, untold = (model.transformer.step(None, model.transformer.start(t))[0] for t in (text, nothing))
    laws = []
    model.draw("un mouton rouge", 1, guidance=2.5, observe=lambda i, entropy: laws.append(entropy))
    law = (untold + 2.5 * (told - untold)).double().softmax(-1)
    assert laws[0].item() == pytest.approx(-(law * law.log()).sum().item(), abs=1e-5)
    assert laws[0].item() != pytest.approx(-(told.softmax(-1) * told.log_softmax(-1)).sum().item(), abs=1e-4)


# --- par paquets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_many_descriptions_at_once_give_what_each_gives_alone(model, batch):
    prompts, seeds = ["un mouton rouge", "un carré bleu", "un dragon"], [3, 50, 7]
    lengths = []
    drawings = model.draw_many(
        prompts, seeds, 2, batch=batch, guidance=1.5, progress=lambda i, tokens: lengths.append(len(tokens))
    )
    assert sum(lengths) == 9 * 6 and max(lengths) == min(batch, 6)
    for drawing, prompt, seed in zip(drawings, prompts, seeds, strict=True):
        for i in range(2):
            alone = model.draw(prompt, 1, seed + i, guidance=1.5)
            assert torch.equal(alone.tokens[0], drawing.tokens[i])
            assert np.array_equal(alone.images[0], drawing.images[i])
        assert (drawing.prompt, list(drawing.seeds)) == (prompt, [seed, seed + 1])
    assert [d.unknown for d in drawings] == [[], [], ["dragon"]]


def test_row_bytes_counts_the_caches(model):
    state = model.transformer.start(model.read(["un mouton"])[0])
    with torch.inference_mode():
        model.transformer.step(None, state)
    held = sum(t.nbytes for pair in state.caches for c in pair for t in (c.keys, c.values))
    assert held < model.row_bytes() < 10 * held
    assert model.row_bytes(guidance=3) == 2 * model.row_bytes()


# --- complétion, film, choix ----------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "rows"), [(0.01, 1), (0.34, 1), (0.5, 2), (0.67, 2), (0.99, 2)])
def test_completion_keeps_the_top_exactly(model, keep, rows):
    tokens = model.vqvae.encode(to_tensor(PHOTO[None]))[0]
    drawing = model.draw("un mouton rouge", 8, complete=PHOTO, keep=keep)
    assert (drawing.tokens[:, :rows] == tokens[:rows]).all()
    assert len({grid.numpy().tobytes() for grid in drawing.tokens[:, rows:]}) > 1


def test_completing_an_image_by_its_own_top_redraws_it(model):
    drawing = model.draw("un mouton rouge", 1, 4)
    model.vqvae.encode = lambda images: drawing.tokens  # un VQ-VAE sans entraînement ne se relit pas
    again = model.draw("un mouton rouge", 1, 4, complete=PHOTO, keep=0.4)
    assert torch.equal(again.tokens, drawing.tokens)


def test_a_film_shows_only_what_is_written(model):
    drawing = model.draw("un mouton rouge", 1, 4)
    tokens = drawing.tokens[0]
    film = model.film(tokens)
    assert film.shape == (10, 12, 12, 3) and film.dtype == np.uint8
    assert np.array_equal(film[-1], drawing.images[0])
    checks = film[0]
    for i in range(10):
        written = np.arange(9).reshape(3, 3).repeat(4, 0).repeat(4, 1) < i
        assert np.array_equal(film[i][~written], checks[~written])
    # Rien de ce qui suit n'y paraît.
    other = tokens.clone()
    other.view(-1)[5:] = (other.view(-1)[5:] + 1) % 12
    assert np.array_equal(model.film(other)[:6], film[:6])
    assert not np.array_equal(model.film(other)[6], film[6])
    short = model.film(tokens, frames=4)
    assert np.array_equal(short, film[[0, 3, 6, 9]])


class Judge:
    """Préfère les images claires ; il voit 4 pixels de côté."""

    size = 4

    def embed_images(self, images):
        assert images.shape[1:] == (4, 4, 3)
        return images.mean((1, 2, 3))[:, None]

    def embed_texts(self, texts):
        assert texts == ["un mouton rouge"]
        return np.ones((1, 1))


def test_rerank_sorts_images_tokens_and_seeds_together(model):
    drawing = model.draw("un mouton rouge", 6, 20)
    ranked = rerank(drawing, Judge(), 3)
    assert len(ranked.images) == len(ranked.tokens) == len(ranked.seeds) == 3
    assert list(ranked.scores) == sorted(ranked.scores, reverse=True)
    for image, tokens, seed in zip(ranked.images, ranked.tokens, ranked.seeds, strict=True):
        assert np.array_equal(image, drawing.images[seed - 20])
        assert torch.equal(tokens, drawing.tokens[seed - 20])
    assert sorted(rerank(drawing, Judge()).seeds) == list(drawing.seeds)
    assert drawing.scores is None


def test_pixels_round_trip():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    tensor = to_tensor(images)
    assert tensor.shape == (2, 3, 5, 4) and 0 <= tensor.min() <= tensor.max() <= 1
    assert np.array_equal(to_pixels(tensor), images)


def test_pad():
    assert pad([[3, 4], [], [1, 2, 3]], 3).tolist() == [[3, 4, 0], [0, 0, 0], [1, 2, 3]]
    assert pad([[3], [2, 4]], 3, 1).tolist() == [[3, 1, 1], [2, 4, 1]]


def test_a_published_tokenizer_closes_and_fills_its_own_way(tmp_path):
    """Celui des DALL·E mini publiés : une suite, même vide, est entre <s> et </s>, puis vient le jeton 1."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = ByteTokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    vqvae = PAINTERS["vqvae"]()
    sizes = {"image_vocabulary": 12, "text_length": 8, "grid": (3, 3), "width": 16, "layers": 1, "heads": 2}
    # Une table de textes plus longue que le vocabulaire, comme celle de mega.
    transformer = DALLEMini(DALLEMiniConfig(len(tokenizer) + 3, pad=1, **sizes))
    save_model(tmp_path / "a.safetensors", transformer, tokenizer=tokenizer.to_json(), vqvae="b")
    save_model(tmp_path / "b.safetensors", vqvae)
    model = TextToImage.load(tmp_path / "a.safetensors")
    text, _, _ = model.read(["a b"])
    assert text.tolist() == [[0, 4, 5, 4, 6, 2, 1, 1]]
    assert model._nothing().tolist() == [[0, 2, 1, 1, 1, 1, 1, 1]]
    assert model.draw("a b", 2, guidance=4.0).images.shape == (2, 12, 12, 3)
    with pytest.raises(MinidalleError, match="Description vide"):
        model.read(["  "])
    with pytest.raises(MinidalleError, match="premier mot"):
        model.read(["abcdefghijkl"])
