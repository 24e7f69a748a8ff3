"""Δ : ce que coûte un mot changé."""

import numpy as np
import pytest
import torch

from minidalle.data import scenes
from minidalle.evaluation import listening
from minidalle.evaluation.listening import CHANGES, Couple, costs, couples, other


@pytest.fixture(scope="module")
def known():
    return couples(np.random.default_rng(0), 12)


def test_couples_are_reserved_and_told_true(known):
    for scene, a, place, b in known:
        assert scenes.relation(a, b) == place and scenes.held_out_layout(a.kind, place, b.kind)
        assert a.kind != b.kind and a.colour != b.colour and {a, b} == set(scene.objects)


def test_each_change_makes_the_caption_false_but_the_one_that_does_not(known):
    for _, *phrase in known:
        for name, change in CHANGES.items():
            a, place, b = change(*phrase)
            seen = {o.kind: o for o in phrase if not isinstance(o, str)}
            true = scenes.relation(seen[a.kind], seen[b.kind]) == place
            true = true and all(seen[o.kind].colour == o.colour for o in (a, b))
            assert true == (name == "même sens, dit à l'envers")
    assert other(*list(scenes.COLOURS)[:2]) == list(scenes.COLOURS)[2]


class Reader:
    """Un faux modèle, qui compte les mots qui ne sont pas ceux de la légende vraie ; `deaf`, aux mots de relation."""

    def __init__(self, known, deaf):
        self.truth, self.deaf, self.at = [scenes.situate(*c[1:]) for c in known], deaf, 0
        self.vqvae, self.transformer = None, self

    def read(self, texts):
        places = (
            {word for words in scenes.RELATIONS.values() for word in words.split()} if self.deaf else set()
        )
        found = []
        for text in texts:
            said, true = (
                [w for w in t.split() if w not in places]
                for t in (text, self.truth[self.at % len(self.truth)])
            )
            found.append(float(len(set(said) ^ set(true))))
            self.at += 1
        return (torch.tensor(found),)

    def nats(self, text, image):
        assert len(text) == len(image)
        return 10 + text


def test_a_deaf_reader_pays_nothing_for_the_relation(known, monkeypatch):
    monkeypatch.setattr(listening.recipes, "encode", lambda vqvae, images: images)
    monkeypatch.setattr(listening, "BATCH", 5)
    hears, deaf = (costs(Reader(known, deaf), known) for deaf in (False, True))
    assert all(len(z) == len(known) for z in hears.values())
    assert (hears["relation inverse"] > 0).all() and (deaf["relation inverse"] == 0).all()
    assert (deaf["une autre couleur"] > 0).all()
    assert isinstance(known[0], Couple)
