"""Apprendre de ses dessins : les notes, les avantages, les lots."""

import numpy as np
import pytest
import torch
from command_line import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from minidalle import recipes, rewards
from minidalle.data import scenes
from minidalle.data.scenes import HELD_OUT_COLOURS, Object, Scene
from minidalle.data.sources import Scenes
from minidalle.errors import MinidalleError
from minidalle.evaluation.oracle import Reading, read
from minidalle.evaluation.requests import CATEGORIES, requests
from minidalle.generation import TextToImage


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    return TextToImage.load(tiny_model(tmp_path_factory.mktemp("modele"), text_weight=0.125))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 3))
def test_advantages_compare_within_a_group(values, groups):
    notes = np.array(values * groups)
    gained = rewards.advantages(notes, 4).reshape(groups, 4)
    assert np.allclose(gained.sum(1), 0, atol=1e-9)
    for i in range(4):
        for j in range(4):
            assert (values[i] > values[j]) <= (gained[0, i] >= gained[0, j])
    # Ajouter la même note à tous ne change rien : on se compare aux siens.
    assert np.allclose(rewards.advantages(notes + 3, 4), gained.ravel(), atol=1e-6)


def test_advantages_are_in_standard_deviations_and_unanimity_is_silent():
    gained = rewards.advantages(np.array([1.0, 1, 0, 0, 1, 1, 1, 1]), 4)
    assert np.allclose(gained, [0.5 / 0.6] * 2 + [-0.5 / 0.6] * 2 + [0] * 4)
    for notes, group in ((np.ones(5), 4), (np.ones(4), 1)):
        with pytest.raises(MinidalleError, match="groupes de"):
            rewards.advantages(notes, group)


def test_a_drawing_is_worth_what_it_shows_and_nothing_else():
    (asked,) = requests(np.random.default_rng(0), "paire", 1, held_out=False)
    (a, b) = asked.wishes
    first = Object(a.kind, a.colour, size="grand", x=0.25, y=0.25)
    second = Object(b.kind, b.colour, size="grand", x=0.75, y=0.75)
    extra = Object("cœur", "noir", size="grand", x=0.75, y=0.25)
    drawn = [(first, second), (first,), (first, second, extra)]
    readings = read([scenes.render(Scene("blanc", objects), 64) for objects in drawn])
    notes = [rewards.reward(reading, asked) for reading in readings]
    assert notes[0] > 0.9 and notes[1:] == [0, 0]
    # Ce que l'oracle n'explique pas se paie.
    assert rewards.reward(Reading("blanc", (first, second), 0.25), asked) == 0.75


def test_batches_hold_own_drawings_then_real_images(painter, monkeypatch):
    model, tokenizer, vqvae = painter.transformer, painter.tokenizer, painter.vqvae
    length, side = model.config.text_length, painter.size[0]
    practice = recipes.token_batches(Scenes("train", side), tokenizer, vqvae, length)
    seen = []
    monkeypatch.setattr(rewards, "read", lambda images: [Reading("blanc", (), 0.0)] * len(images))
    monkeypatch.setattr(rewards, "reward", lambda reading, request: seen.append(request) or len(seen) % 4)
    batches = rewards.rewarded_batches(model, tokenizer, vqvae, practice, group=4)
    model.train()
    text, image, weight = batches(np.random.default_rng(0), 32)
    assert text.shape == (32, length) and image.shape == (32, model.config.image_length)
    assert len(seen) == 16 and model.training
    own = text[:16].view(4, 4, length)
    assert (own == own[:, :1]).all(), "les dessins d'un groupe répondent à la même demande"
    assert torch.allclose(weight[:16].view(4, 4).sum(1), torch.zeros(4), atol=1e-5)
    assert (weight[16:] == rewards.WORTH).all()
    # Rien de réservé n'est demandé.
    for request in seen:
        assert not request.held_out and request.category in CATEGORIES
        assert all(HELD_OUT_COLOURS.get(w.kind) != w.colour for w in request.wishes if w.colour)
    again = batches(np.random.default_rng(0), 32)
    assert all(torch.equal(a, b) for a, b in zip(again, (text, image, weight), strict=True))
    # Les dessins sont ceux du modèle tel qu'il est : changé, il en fait d'autres.
    with torch.no_grad():
        model.head.weight.mul_(-1)
    assert not torch.equal(batches(np.random.default_rng(0), 32)[1][:16], image[:16])
    model.head.weight.data.mul_(-1)
    model.eval()
    model.loss(text, image, weight)["loss"].backward()


def test_measures_count_right_drawings_on_both_sides(painter, monkeypatch):
    monkeypatch.setattr(rewards, "CATEGORIES", {"couleur": "", "paire": ""})
    measure = rewards.measure_drawings(painter.tokenizer, painter.vqvae, n=4)
    found = measure(painter.transformer)
    assert list(found) == ["couleur", "paire", "couleur_vu", "paire_vu"]
    assert all(0 <= share <= 1 for share in found.values()) and found == measure(painter.transformer)
    asked = []

    def right(reading, request):
        asked.append(request)
        return type("Verdict", (), {"right": request.held_out})()

    monkeypatch.setattr(rewards, "judge", right)
    assert measure(painter.transformer) == {"couleur": 1, "paire": 1, "couleur_vu": 0, "paire_vu": 0}
    assert len(asked) == 16
