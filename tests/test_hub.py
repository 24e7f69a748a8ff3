"""Les modèles publiés : petits poids écrits à leur format, relus, et comparés aux paquets dont ils viennent."""

import contextlib
import io
import json
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from minidalle import cli
from minidalle.checkpoints import load_model
from minidalle.errors import MinidalleError
from minidalle.generation import TextToImage
from minidalle.hub import convert, read_weights
from minidalle.models.dvae import map_pixels, unmap_pixels


def refuse(kind, path, out="sortie"):
    """Le message d'un import qui doit échouer, sans rien écrire."""
    with pytest.raises(MinidalleError) as caught:
        convert(kind, path, out)
    assert not list(Path(out).glob("*"))
    return str(caught.value)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def noisy(module, scale=0.3):
    """Aucun biais nul, aucune normalisation neutre."""
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.add_(scale * torch.randn_like(p))
    return module.eval()


# --- dVAE d'OpenAI ---


def dall_e(folder, blocks=1):
    """Les modules du paquet dall-e, rangés entiers comme OpenAI les a publiés."""
    encoder = pytest.importorskip("dall_e.encoder")
    decoder = pytest.importorskip("dall_e.decoder")
    torch.manual_seed(0)
    sizes = {"n_hid": 64, "n_blk_per_group": blocks, "vocab_size": 512}
    peers = noisy(encoder.Encoder(**sizes), 0.02), noisy(decoder.Decoder(n_init=16, **sizes), 0.02)
    folder.mkdir(exist_ok=True)
    for peer, name in zip(peers, ("encoder", "decoder"), strict=True):
        torch.save(peer, folder / f"{name}.pkl")
    return peers


@pytest.mark.parametrize("blocks", [1, 2])
def test_dvae_is_the_one_of_dall_e(tmp_path, blocks):
    encoder, decoder = dall_e(tmp_path / "openai", blocks)
    (path,) = convert("dvae", tmp_path / "openai", tmp_path / "out")
    ours, notes = load_model(path.parent, "dvae")
    assert notes["model"] == "dvae" and ours.config.factor == 8
    images = F.interpolate(torch.rand(2, 3, 2, 3).round(), scale_factor=8)
    with torch.no_grad():
        logits = encoder(map_pixels(images))
        tokens = logits.argmax(1)
        stats = decoder(F.one_hot(tokens, 512).permute(0, 3, 1, 2).float())
        assert (ours._logits(images).permute(0, 3, 1, 2) - logits).abs().max() < 1e-4
    assert torch.equal(ours.encode(images), tokens) and len(tokens.unique()) > 3
    assert (ours.decode(tokens) - unmap_pixels(stats[:, :3].sigmoid())).abs().max() < 1e-4


def test_reading_a_module_runs_none_of_its_code(tmp_path, monkeypatch):
    encoder, _ = dall_e(tmp_path / "openai")
    monkeypatch.setattr(
        type(encoder), "__setstate__", lambda *_: pytest.fail("du code étranger"), raising=False
    )
    for name in [name for name in sys.modules if name.startswith("dall_e")]:
        monkeypatch.setitem(sys.modules, name, None)  # introuvable, et inutile
    convert("dvae", tmp_path / "openai", "out")
    assert Path("out/model.safetensors").is_file()


class Explosive:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('explosé').touch()",))


def test_a_pickle_that_runs_code_is_refused():
    torch.save({"state_dict": {"w": torch.ones(2)}, "bombe": Explosive()}, "last.ckpt")
    assert "veut exécuter « exec »" in refuse("vqgan", "last.ckpt")
    assert not Path("explosé").exists()


# --- VQGAN ---


@pytest.fixture
def taming(monkeypatch):
    """Un petit VQGAN de taming et son point de reprise Lightning, critique et œil compris."""
    model = pytest.importorskip("taming.modules.diffusionmodules.model")
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    torch.manual_seed(0)
    sizes = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 16}
    sizes |= {"z_channels": 8, "in_channels": 3, "out_ch": 3, "double_z": False}
    peer = torch.nn.Module()
    with contextlib.redirect_stdout(io.StringIO()):
        peer.encoder, peer.decoder = model.Encoder(**sizes), model.Decoder(**sizes)
    peer.quant_conv, peer.post_quant_conv = torch.nn.Conv2d(8, 6, 1), torch.nn.Conv2d(6, 8, 1)
    peer.quantize = quantize.VectorQuantizer2(40, 6, 0.25, legacy=False, sane_index_shape=True)
    noisy(peer)
    with torch.no_grad():  # un dictionnaire là où tombent les vecteurs, pour que plusieurs codes servent
        vectors = peer.quant_conv(peer.encoder(2 * torch.rand(5, 3, 16, 16) - 1))
        peer.quantize.embedding.weight.copy_(vectors.permute(0, 2, 3, 1).reshape(-1, 6)[::2])
    state = peer.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    name = "pytorch_lightning.callbacks.model_checkpoint"
    lightning = types.ModuleType(name)
    lightning.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for depth in range(1, 4):
            parent = ".".join(name.split(".")[:depth])
            patch.setitem(sys.modules, parent, lightning if parent == name else types.ModuleType(parent))
        callbacks = {lightning.ModelCheckpoint: {"best": lightning.ModelCheckpoint()}}
        torch.save({"state_dict": state, "callbacks": callbacks, "global_step": 3}, "last.ckpt")
    return peer, state


def test_vqgan_is_the_one_of_taming(taming):
    peer, _ = taming
    Path("dossier").mkdir()
    Path("last.ckpt").rename("dossier/last.ckpt")
    convert("vqgan", "dossier", "out")
    ours, _ = load_model("out", "vqgan")
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        vectors, _, (_, _, tokens) = peer.quantize(peer.quant_conv(peer.encoder(2 * images - 1)))
        painted = (peer.decoder(peer.post_quant_conv(vectors)) + 1) / 2
    assert torch.equal(ours.encode(images), tokens) and len(tokens.unique()) > 3
    assert (ours.decode(tokens) - painted.clamp(0, 1)).abs().max() < 1e-4
    assert (painted.clamp(0, 1) == painted).float().mean() > 0


def test_conversion_is_reproducible(taming):
    for name in "ab":
        convert("vqgan", "last.ckpt", name)
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_the_precision_of_the_file_is_kept(taming):
    _, state = taming
    convert("vqgan", "last.ckpt", "entier")
    torch.save({key: tensor.half() for key, tensor in state.items()}, "demi.ckpt")
    convert("vqgan", "demi.ckpt", "demi")
    sizes = [Path(name, "model.safetensors").stat().st_size for name in ("entier", "demi")]
    assert sizes[1] < 0.7 * sizes[0]
    assert load_model("demi")[0].decoder.conv_in.weight.dtype == torch.float32


def test_keys_are_checked_one_by_one(taming):
    _, state = taming
    torch.save(state | {"decoder.autre.weight": torch.zeros(1)}, "plus.ckpt")
    assert "poids sont en trop (decoder.autre.weight)" in refuse("vqgan", "plus.ckpt")
    torch.save({k: v for k, v in state.items() if k != "encoder.conv_out.bias"}, "moins.ckpt")
    assert "poids manquent (encoder.conv_out.bias)" in refuse("vqgan", "moins.ckpt")
    torch.save(state | {"encoder.conv_out.bias": torch.zeros(3)}, "forme.ckpt")
    assert "« encoder.conv_out.bias » est de forme [3], il faut [8]" in refuse("vqgan", "forme.ckpt")
    torch.save(state | {"encoder.conv_out.bias": torch.full((8,), torch.nan)}, "nan.ckpt")
    assert "autre chose que des nombres" in refuse("vqgan", "nan.ckpt")


# --- min-dalle ---

CAPTION = "a red apple on the table"


def vocabulary(folder):
    """Un vrai petit vocabulaire d'octets, dans les deux fichiers publiés."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([CAPTION, "a table, an apple", "the red one"], trainer)
    model = json.loads(bpe.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return len(model["vocab"])


@pytest.fixture(scope="module")
def min_dalle(tmp_path_factory):
    """Dossier au format de min-dalle (16 bits, sans les échelles), et les modules dont il vient."""
    threads = torch.get_num_threads()
    peer = pytest.importorskip("min_dalle.models")
    # L'importer coupe le gradient et change le nombre de fils de tout le programme.
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("dalle_bart_mini")
    words = vocabulary(folder)
    sizes = {"embed_count": 128, "attention_head_count": 2, "glu_embed_count": 80, "device": "cpu"}
    torch.manual_seed(0)
    # Mega a ainsi plus de lignes que de codes, et plus de lignes que de mots.
    encoder = peer.DalleBartEncoder(2, text_vocab_count=words + 3, text_token_count=64, **sizes)
    decoder = peer.DalleBartDecoder(layer_count=1, image_vocab_count=16_390, **sizes)
    detokenizer = peer.VQGanDetokenizer()
    for module in detokenizer.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6  # comme taming, qui a entraîné ce réseau
    for part, name in ((encoder, "encoder"), (decoder, "decoder"), (detokenizer, "vqgan/detoker")):
        with torch.no_grad():
            for key, p in part.named_parameters():
                scale = key.endswith("weight") and ("pre_" in key or "ln" in key)
                p.add_(0.3 * torch.randn_like(p)) if p.ndim == 1 and not scale else None
                p.copy_(p.half())
        state = {k: v for k, v in part.state_dict().items() if not absent_scale(k)}
        path = folder / f"{name}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save({k: v.half() if name != "vqgan/detoker" else v for k, v in state.items()}, path)
    return folder, encoder.eval(), decoder.eval(), detokenizer.eval()


def absent_scale(key):
    names = ("pre_self_attn_layer_norm", "pre_encoder_attn_layer_norm", "ln0", "ln1", "final_ln")
    return key.endswith(tuple(f"{name}.weight" for name in names))


@torch.no_grad()
def test_min_dalle_draws_the_same_image(min_dalle):
    """De la légende aux pixels : jetons de texte, états, logits, image."""
    folder, encoder, decoder, detokenizer = min_dalle
    written = convert("min-dalle", folder, "mini")
    assert [path.name for path in written] == ["model.safetensors", "vqgan.safetensors"]
    assert written[0].stat().st_size < 2.1 * sum(
        p.numel() for p in [*encoder.parameters(), *decoder.parameters()]
    )
    whole = TextToImage.load("mini")
    ours, tokenizer, vqgan = whole.transformer, whole.tokenizer, whole.vqvae
    assert ours.config.text_vocabulary == len(tokenizer) and ours.config.image_vocabulary == 16_384
    assert (ours.config.start, ours.config.pad, ours.config.grid) == (16_384, 1, (16, 16))
    text = torch.ones(2, 64, dtype=torch.int64)
    for row, caption in zip(text, ("", CAPTION), strict=True):
        ids = tokenizer.encode(caption, 64).ids
        row[: len(ids)] = torch.tensor(ids)
    memory, mask = encoder(text), (text != 1)[:, None, None, :]
    assert (ours.encode(text) - memory).abs().max() < 1e-4
    image = torch.randint(16_384, (1, 256))
    previous = torch.cat([torch.tensor([[16_384]]), image[:, :-1]], 1)
    expected, _ = decoder(mask, memory, torch.zeros(1, 4, 256, 128), previous, torch.arange(256))
    assert (ours(text, image.expand(2, -1)) - expected[..., :16_384]).abs().max() < 1e-4
    assert vqgan.config.codes == 16_384 and whole.size == (256, 256)
    with pytest.raises(MinidalleError, match="n'a pas d'encodeur"):
        vqgan.encode(torch.zeros(1, 3, 256, 256))
    # Ce que fait son `forward`, sur 4 × 4 jetons : 256 coûteraient seize fois plus.
    grid = torch.randint(16_384, (1, 4, 4))
    shown = detokenizer.decoder(detokenizer.post_quant_conv(detokenizer.embedding(grid).permute(0, 3, 1, 2)))
    shown, painted = shown.clip(0, 1), vqgan.decode(grid)
    assert (painted - shown).abs().max() < 1e-4
    assert shown.std() > 0.05


def copied(folder, **changes):
    """Le même dossier, à quelques fichiers près."""
    new = Path("copie")
    new.mkdir()
    for name in ("encoder.pt", "decoder.pt", "vocab.json", "merges.txt"):
        (new / name).symlink_to(folder / name)
    (new / "detoker.pt").symlink_to(folder / "vqgan/detoker.pt")
    for name, content in changes.items():
        path = new / name.replace("__", ".")
        path.unlink(missing_ok=True)
        torch.save(content, path) if isinstance(content, dict) else path.write_bytes(content)
    return new


def test_neutral_scales_may_be_written_but_not_others(min_dalle, monkeypatch):
    folder, encoder, *_ = min_dalle
    monkeypatch.setattr("minidalle.hub._import_vqgan", lambda *_: Path("peint"))
    whole = encoder.state_dict()
    convert("min-dalle", copied(folder, encoder__pt=whole), "out")
    assert load_model("out")[1]["model"] == "dalle_mini"
    torch.save(whole | {"final_ln.weight": torch.full((128,), 2.0)}, "copie/encoder.pt")
    assert "« final_ln.weight » devrait valoir 1" in refuse("min-dalle", "copie")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda f: {"encoder__pt": (f / "encoder.pt").read_bytes()[:5000]}, "tronqué"),
        (lambda f: {"encoder__pt": b""}, "tronqué"),
        (lambda f: {"encoder__pt": {"poids": torch.zeros(2)}}, "n'a pas les poids attendus"),
        (
            lambda f: {"encoder__pt": torch.load(f / "decoder.pt", weights_only=True)},
            "poids sont en trop (layers.0.encoder_attn",
        ),
        (lambda f: {"encoder_mini__pt": b""}, "les modèles mini et mega"),
        (lambda f: {"vocab__json": b"{}"}, "ne font pas un vocabulaire"),
        (lambda f: {"vocab__json": b'{"<pad>": 0}', "merges__txt": b""}, "pas celui d'un DALL"),
        (lambda f: {"detoker__pt": {"w": torch.zeros(1)}}, "0 codes"),
    ],
)
def test_files_that_do_not_belong_are_refused(min_dalle, changes, message):
    folder = min_dalle[0]
    assert message in refuse("min-dalle", copied(folder, **changes(folder)))


def test_missing_files_are_named(tmp_path):
    assert "ne contient pas encoder.pt ni encoder_mini.pt" in refuse("min-dalle", tmp_path)
    assert "n'est pas un dossier" in refuse("min-dalle", tmp_path / "absent")
    assert "ne contient pas encoder.pkl" in refuse("dvae", tmp_path)
    assert "Genre de modèle « clip » inconnu" in refuse("clip", tmp_path)
    Path("vieux.ckpt").write_bytes(b"pas un pickle")
    assert "tronqué" in refuse("vqgan", "vieux.ckpt")


def test_old_containers_are_read_too():
    torch.save({"w": torch.arange(3.0)}, "vieux.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile("vieux.pt")
    assert read_weights(Path("vieux.pt"))["w"].tolist() == [0, 1, 2]


# --- ligne de commande ---


def test_command(taming):
    done = CliRunner().invoke(cli.app, ["import", "vqgan", "last.ckpt", "--out", "out"])
    assert done.exit_code == 0 and "out/model.safetensors : " in done.stdout
    failed = CliRunner().invoke(cli.app, ["import", "gan", "last.ckpt", "--out", "out"])
    assert failed.exit_code == 2 and "Genre de modèle « gan » inconnu" in failed.stderr
