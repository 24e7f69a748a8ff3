"""De la phrase à l'image."""

import numpy as np
import pytest
import torch

from minidalle import checkpoints
from minidalle.checkpoints import save_model
from minidalle.errors import MinidalleError
from minidalle.generation import TextToImage, pad, to_pixels, to_tensor
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.vqvae import VQVAE, VQVAEConfig
from minidalle.text import Tokenizer

TEXTS = ["un mouton rouge", "un carré bleu à gauche d'un mouton"]


def pieces(codes=12):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS, 80)
    vqvae = VQVAE(VQVAEConfig(channels=(8, 8), codes=12, code_dim=4))
    vqvae.quantizer.codebook.mul_(5)
    config = DALLEConfig(
        len(tokenizer), image_vocabulary=codes, text_length=8, grid=(3, 3), width=16, layers=1, heads=2
    )
    return tokenizer, DALLE(config), vqvae


@pytest.fixture
def model():
    return TextToImage(*pieces())


def test_images_have_the_promised_form(model):
    drawing = model.draw("un mouton rouge", n=3, seed=7)
    assert drawing.images.shape == (3, 12, 12, 3) and drawing.images.dtype == np.uint8
    assert drawing.tokens.shape == (3, 3, 3)
    assert np.array_equal(drawing.images, to_pixels(model.vqvae.decode(drawing.tokens)))


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
    with pytest.raises(MinidalleError, match="il faut un « dalle »"):
        TextToImage.load(tmp_path / "vq.safetensors")


def test_pixels_round_trip():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    tensor = to_tensor(images)
    assert tensor.shape == (2, 3, 5, 4) and 0 <= tensor.min() <= tensor.max() <= 1
    assert np.array_equal(to_pixels(tensor), images)


def test_pad():
    assert pad([[3, 4], [], [1, 2, 3]], 3).tolist() == [[3, 4, 0], [0, 0, 0], [1, 2, 3]]
