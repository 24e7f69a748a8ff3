"""Recettes : les données rencontrent les modèles."""

import numpy as np
import pytest
import torch

from minidalle import recipes
from minidalle.data.sources import Scenes
from minidalle.errors import MinidalleError
from minidalle.training import TrainingConfig, train

SMALL = {"channels": (8, 8, 8), "codes": 16, "code_dim": 4, "blocks": 0}


@pytest.fixture(scope="module")
def parts():
    source = Scenes("train", 32)
    vqvae = recipes.build("vqvae", SMALL)
    # Un premier lot remplit le dictionnaire ; sans lui, toutes les images auraient les mêmes jetons.
    vqvae.loss(*recipes.image_batches(source)(np.random.default_rng(0), 16))
    return source, vqvae.eval(), recipes.build_tokenizer(source, captions=3000)


def test_presets_build_and_unknown_ones_are_refused(parts):
    _, vqvae, tokenizer = parts
    assert recipes.build("vqvae", recipes.preset("vqvae", "mini").model).config.codes == 256
    options = recipes.preset("dalle", "mini").model
    built = recipes.build_dalle(options, tokenizer, vqvae, 32)
    assert built.config.grid == (4, 4) and built.config.image_vocabulary == 16
    for arguments in (("gan", "mini"), ("vqvae", "giga")):
        with pytest.raises(MinidalleError, match="inconnu ; choisir parmi"):
            recipes.preset(*arguments)


def test_seeds_choose_the_first_weights():
    def first(seed):
        return next(recipes.build("vqvae", SMALL, seed).parameters())

    state = torch.get_rng_state()
    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_tokenizer_gives_one_token_to_every_word_of_the_world(parts):
    source, _, tokenizer = parts
    _, captions = source.batch(np.random.default_rng(9), 300)
    encodings = [tokenizer.encode(c) for c in captions]
    assert not any(e.unknown for e in encodings)
    assert len(tokenizer.encode("un mouton à gauche d'un carré bleu").ids) == 8


def test_pairs_match_their_source(parts):
    source, vqvae, tokenizer = parts
    batches = recipes.token_batches(source, tokenizer, vqvae, 24, caption_dropout=0)
    text, tokens = batches(np.random.default_rng(4), 5)
    images, captions = source.batch(np.random.default_rng(4), 5)
    assert torch.equal(tokens, recipes.encode(vqvae, images))
    assert [tokenizer.decode(row) for row in text] == [
        tokenizer.decode(tokenizer.encode(c, 24).ids) for c in captions
    ]


def test_some_captions_are_dropped(parts):
    source, vqvae, tokenizer = parts
    batches = recipes.token_batches(source, tokenizer, vqvae, 24, caption_dropout=0.3)
    text, _ = batches(np.random.default_rng(0), 400)
    assert abs(float((text == 0).all(1).float().mean()) - 0.3) < 0.1


def test_vqvae_measures(parts):
    source, vqvae, _ = parts
    measure = recipes.measure_images(source, n=8)
    metrics = measure(vqvae)
    assert metrics == measure(vqvae)
    images, _ = source.batch(np.random.default_rng(1), 8)
    shares = np.unique(recipes.encode(vqvae, images), return_counts=True)[1] / (8 * 16)
    assert metrics["codes"] == len(shares) > 1
    assert metrics["test_perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert 0 < metrics["psnr"] < 30


def test_delta_tells_a_model_that_reads(parts):
    source, vqvae, tokenizer = parts
    torch.manual_seed(0)
    measure = recipes.measure_dalle(source, tokenizer, vqvae, 24, n=64)
    model = recipes.build_dalle({"width": 32, "layers": 1, "text_length": 24}, tokenizer, vqvae, 32)
    blind = measure(model.eval())
    assert abs(blind["delta"]) < 0.5
    # On fait apprendre par cœur les images mesurées, avec leurs légendes : l'écart doit devenir net.
    batches = recipes.token_batches(source, tokenizer, vqvae, 24, caption_dropout=0)
    pairs = batches(np.random.default_rng(1), 64)
    config = TrainingConfig(steps=120, batch_size=64, learning_rate=1e-2, warmup=5)
    train(model, lambda rng, n: pairs, config)
    after = measure(model)
    assert after["test_loss"] < blind["test_loss"] and after["delta"] > 2
