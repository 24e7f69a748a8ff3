"""Juges : le CLIP du livre, et un CLIP au format de `transformers`, minuscules et tirés au hasard."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from minidalle.checkpoints import save_model
from minidalle.data.captioned import CaptionedImages
from minidalle.errors import MinidalleError
from minidalle.evaluation.judges import BookCLIP, PublishedCLIP, judge_captions, load_judge
from minidalle.generation import pad, to_tensor
from minidalle.models.clip import CLIP
from minidalle.models.clip import CLIPConfig as BookConfig
from minidalle.text import Encoding, Tokenizer

SIDE = 16
CAPTIONS = ["un mouton à gauche d'un carré bleu", "trois pommes rouges", "un mouton"]


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Fichier d'un CLIP du livre, de 8 jetons de contexte."""
    path = tmp_path_factory.mktemp("livre") / "petit.safetensors"
    tokenizer = Tokenizer.train(CAPTIONS, 100)
    torch.manual_seed(0)
    sizes = {"image_width": 16, "image_layers": 1, "image_heads": 2, "text_width": 16, "text_layers": 1}
    clip = CLIP(BookConfig(len(tokenizer), length=8, size=SIDE, text_heads=2, dim=8, **sizes))
    save_model(path, clip, tokenizer=tokenizer.to_json())
    return path


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Dossier d'un CLIP au format de transformers, de 10 jetons de contexte, début et fin compris."""
    folder = tmp_path_factory.mktemp("publie") / "clip-minuscule"
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "un</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(words)}, [("u", "n</w>")])
    tokenizer.save_pretrained(folder)
    both = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    torch.manual_seed(0)
    text = both | ends | {"vocab_size": len(words), "max_position_embeddings": 10}
    vision = both | {"image_size": SIDE, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def test_the_clip_of_the_book(book, images):
    judge = load_judge(book)
    assert isinstance(judge, BookCLIP) and (judge.name, judge.size) == ("petit", SIDE)
    assert judge.embed_images(images) == pytest.approx(
        judge._clip.encode_image(to_tensor(images)).detach().numpy()
    )
    tokens = pad([judge.read(caption).ids for caption in CAPTIONS], 8)
    expected = judge._clip.encode_text(tokens).detach().numpy()
    assert judge.embed_texts(CAPTIONS) == pytest.approx(expected)


def test_the_clip_of_the_book_says_what_it_does_not_read(book):
    reading = load_judge(book).read("un mouton 🐑 vert et bleu")
    assert reading.ids and {"🐑", "vert"} <= {*reading.unknown, *reading.dropped}
    assert load_judge(book).read(" \n").ids == []


def test_a_published_clip_gives_the_vectors_of_transformers(published, images):
    judge = load_judge(published)
    assert isinstance(judge, PublishedCLIP) and (judge.name, judge.size) == ("clip-minuscule", SIDE)
    model = CLIPModel.from_pretrained(published)
    processor = CLIPImageProcessor.from_pretrained(published)
    tokenizer = CLIPTokenizer.from_pretrained(published)
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    texts = ["un mouton", "un", "un carre rouge et un carre bleu"]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=10, return_tensors="pt")
    with torch.no_grad():
        expected = (
            model.get_image_features(pixels).pooler_output,
            model.get_text_features(**tokens).pooler_output,
        )
    assert judge.embed_images(images) == pytest.approx(expected[0].numpy(), abs=1e-5)
    assert judge.embed_texts(texts) == pytest.approx(expected[1].numpy(), abs=1e-5)


def test_a_published_clip_says_what_it_drops(published):
    judge = load_judge(published)
    whole = judge.read("un mouton")
    assert len(whole.ids) == 9 and whole.dropped == whole.unknown == []
    cut = judge.read("un mouton un un")
    assert len(cut.ids) == 10 and cut.dropped == ["un"]
    # Ce que `read` garde est ce que le modèle lit.
    kept, longer = judge.embed_texts(["un mouton un", "un mouton un un un"])
    assert kept == pytest.approx(longer, abs=1e-6)
    assert judge.read("").ids == []


def test_texts_of_many_batches_keep_their_order(published):
    judge = load_judge(published)
    texts = [("un " * (i % 5 + 1)).strip() for i in range(300)]
    vectors = judge.embed_texts(texts)
    assert vectors.shape == (300, 8)
    assert vectors[-5:] == pytest.approx(vectors[:5], abs=1e-5)


def test_unpickling_is_refused(published, tmp_path):
    for path in published.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(CLIPModel.from_pretrained(published).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MinidalleError, match="n'est pas un CLIP lisible.*hf download"):
        load_judge(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(MinidalleError, match="n'est pas un CLIP lisible"):
        load_judge(tmp_path)


def test_an_absent_clip_says_how_to_obtain_one(tmp_path):
    with pytest.raises(MinidalleError, match="introuvable.*hf download"):
        load_judge(tmp_path / "rien")
    with pytest.raises(MinidalleError, match="« vqvae », il faut un « clip »"):
        load_judge("vqvae")


def test_a_clip_without_its_vocabulary(book, tmp_path):
    save_model(tmp_path / "muet.safetensors", load_judge(book)._clip)
    with pytest.raises(MinidalleError, match="perdu son vocabulaire"):
        load_judge(tmp_path / "muet.safetensors")


# --- judge_captions

NAMES = ("rouge", "vert", "bleu")


class Colours:
    """Juge parfait : le vecteur d'une image est sa couleur moyenne, celui d'un texte, la couleur qu'il nomme."""

    name, size = "couleurs", 4

    def __init__(self):
        self.batches = []

    def read(self, text):
        known = [word for word in text.split() if word in NAMES]
        return Encoding([1] * len(text), [w for w in text.split() if w not in NAMES], known[1:])

    def embed_images(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (4, 4, 3)
        self.batches.append(len(images))
        return images.mean((1, 2)) + 1.0

    def embed_texts(self, texts):
        return np.array([np.eye(3)[[name in text.split() for name in NAMES].index(True)] for text in texts])


def colours(folder, *entries):
    """Images unies, chacune d'une couleur de `NAMES`, et leurs légendes."""
    names = []
    for i, (colour, _) in enumerate(entries):
        Image.new("RGB", (4, 4), tuple(200 * (n == colour) for n in NAMES)).save(folder / f"{i}.png")
        names.append(f"{i}.png")
    return CaptionedImages(folder, folder, names, [captions for _, captions in entries], 4)


def test_a_perfect_judge(tmp_path):
    data = colours(
        tmp_path, ("rouge", ["rouge vif", "un rouge"]), ("vert", ["vert"]), ("bleu", ["bleu", "bleu"])
    )
    result = judge_captions(Colours(), data)
    assert result.images.tolist() == [0, 0, 1, 2]  # une légende répétée pour une image ne compte qu'une fois
    high, low = (x / np.linalg.norm([201, 1, 1]) for x in (201, 1))
    assert result.cosines["right"] == pytest.approx([high] * 4)
    assert result.cosines["wrong"] == pytest.approx([low] * 4)
    assert result.cosines["blank"] == pytest.approx([3**-0.5] * 4)
    assert result.scores["right"] == pytest.approx([2.5 * high] * 4)
    assert result.texts_found[1].tolist() == [True] * 3 and result.images_found[1].tolist() == [True] * 4
    assert result.texts_chance[1] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert result.images_chance[1] == pytest.approx(1 / 3)
    assert (result.unknown, result.cut) == (["vif", "un"], {})


def test_a_caption_of_two_images_is_right_for_both(tmp_path):
    # Quatre images, deux légendes : chercher « rouge » doit trouver l'une ou l'autre des images rouges.
    data = colours(
        tmp_path, ("rouge", ["rouge"]), ("rouge", ["rouge"]), ("vert", ["vert"]), ("vert", ["vert"])
    )
    result = judge_captions(Colours(), data)
    assert result.texts_found[1].all() and result.images_found[1].all()
    assert result.images_chance[1] == pytest.approx(1 / 2)
    assert (result.cosines["wrong"] < 0.1).all()  # jamais la légende de l'autre image rouge


def test_each_image_is_read_once_and_by_batches(tmp_path):
    entries = [(NAMES[i % 3], [f"{NAMES[i % 3]} numéro {i}"]) for i in range(70)]
    judge, steps = Colours(), []
    judge_captions(judge, colours(tmp_path, *entries), progress=steps.append)
    assert judge.batches[:2] == steps == [64, 6]


def test_wrong_captions_depend_on_the_seed_alone(tmp_path):
    class Places(Colours):
        def embed_texts(self, texts):
            return np.random.default_rng(len(texts)).normal(size=(len(texts), 3))

    entries = [(NAMES[i % 3], [f"{NAMES[i % 3]} {i}", f"{NAMES[i % 3]} encore {i}"]) for i in range(12)]
    data = colours(tmp_path, *entries)
    a, b, c = (judge_captions(Places(), data, seed).cosines for seed in (1, 1, 2))
    assert (a["wrong"] == b["wrong"]).all() and (a["right"] == c["right"]).all()
    assert (a["wrong"] != c["wrong"]).any()


def test_long_captions_are_told(tmp_path):
    result = judge_captions(Colours(), colours(tmp_path, ("rouge", ["rouge puis vert"]), ("vert", ["vert"])))
    assert result.cut == {"rouge puis vert": ["vert"]}


def test_a_caption_where_nothing_is_read_is_refused(tmp_path):
    data = colours(tmp_path, ("rouge", ["rouge"]), ("vert", ["vert", ""]))
    with pytest.raises(MinidalleError, match="entrée 1 : « couleurs » ne lit rien"):
        judge_captions(Colours(), data)


@pytest.mark.parametrize("entries", [[("rouge", ["rouge"])], [("rouge", ["rouge"]), ("vert", ["rouge"])]])
def test_nothing_to_compare(entries, tmp_path):
    with pytest.raises(MinidalleError, match="deux images, aux légendes différentes"):
        judge_captions(Colours(), colours(tmp_path, *entries))


def test_intervals_take_whole_images(tmp_path):
    # Vingt légendes égales en tout pour chaque image : il n'y a que deux images, donc une grande incertitude.
    entries = [("rouge", [f"rouge {i}" for i in range(20)]), ("vert", [f"vert {i}" for i in range(20)])]
    result = judge_captions(Colours(), colours(tmp_path, *entries))
    values = np.repeat([0.0, 1.0], 20)
    assert result.estimate(values) == pytest.approx((0.5, 0, 1))
    assert result.estimate(np.array([True, False])) == pytest.approx((0.5, 0, 1))
