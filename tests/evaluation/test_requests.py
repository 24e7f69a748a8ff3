"""Demandes et verdicts."""

import numpy as np
import pytest

from minidalle.data import scenes
from minidalle.data.scenes import HELD_OUT_COLOURS, Object, Scene, held_out_layout, render
from minidalle.errors import MinidalleError
from minidalle.evaluation.oracle import Reading, read
from minidalle.evaluation.requests import CATEGORIES, Request, Wish, balanced, judge, requests


def reading(*objects):
    return Reading("blanc", objects, 0.0)


RED, BLUE = Object("carré", "rouge", x=0.25), Object("cercle", "bleu", x=0.75)
PAIR = Request("…", (Wish("carré", "rouge"), Wish("cercle", "bleu")), None, "paire", False)


def test_a_verdict_says_what_is_there_and_what_is_too_much():
    assert judge(reading(RED, BLUE), PAIR) == (True, True, True)
    assert judge(reading(RED, BLUE, Object("chat")), PAIR) == (True, True, False)
    assert not judge(reading(RED), PAIR).right
    swapped = (Object("carré", "bleu", x=0.25), Object("cercle", "rouge", x=0.75))
    assert not judge(reading(*swapped), PAIR).objects


def test_a_relation_holds_for_every_couple():
    asked = Request("…", PAIR.wishes, "gauche", "relation", False)
    assert judge(reading(RED, BLUE), asked).right
    other = Object("cercle", "bleu", x=0.125, y=0.875)
    assert judge(reading(RED, other), asked) == (True, False, True)
    assert not judge(reading(RED, BLUE, other), asked).placed
    assert judge(reading(RED), asked) == (False, False, False)


@pytest.mark.parametrize("drawn, right", [(1, False), (2, True), (3, False)])
def test_a_count_is_exact(drawn, right):
    asked = Request("deux chats", (Wish("chat", None, 2),), None, "nombre", False)
    cats = [Object("chat", x=0.2 + 0.25 * i) for i in range(drawn)]
    assert judge(reading(*cats), asked).right == right


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("held_out", [True, False])
def test_requests_are_new_or_known_as_asked(category, held_out):
    for asked in requests(np.random.default_rng(0), category, 30, held_out=held_out):
        assert (asked.category, asked.held_out) == (category, held_out)
        reserved = [HELD_OUT_COLOURS.get(w.kind) == w.colour for w in asked.wishes if w.colour]
        if category == "relation":
            a, b = asked.wishes
            assert held_out_layout(a.kind, asked.place, b.kind) == held_out
            assert not any(reserved)
            assert scenes.RELATIONS[asked.place].removesuffix(" de") in asked.prompt
            first, second = (scenes.KINDS[w.kind].singular for w in asked.wishes)
            assert asked.prompt.index(f" {first}") < asked.prompt.index(f" {second}")
        else:
            assert any(reserved) == held_out and asked.place is None
        for wish in asked.wishes:
            noun = scenes.KINDS[wish.kind]
            assert (noun.plural if wish.count > 1 else noun.singular) in asked.prompt


def test_a_perfect_painter_always_succeeds_and_a_deaf_one_hardly_ever():
    """On dessine ce que dit la demande, puis ce que dit la suivante."""
    rng = np.random.default_rng(1)
    asked = balanced(rng, 25)
    pictures = [render(_scene(r)) for r in asked]
    verdicts = [judge(seen, r) for seen, r in zip(read(pictures), asked, strict=True)]
    assert all(v.right and v.alone for v in verdicts)
    deaf = [judge(seen, r).right for seen, r in zip(read(pictures[1:] + pictures[:1]), asked, strict=True)]
    assert np.mean(deaf) < 0.2


def _scene(asked):
    """Une scène qui accomplit la demande."""
    spots = [(0.1875, 0.1875), (0.6875, 0.1875), (0.1875, 0.6875), (0.6875, 0.6875)]
    if asked.place:
        near, far = (0.1875, 0.4375), (0.6875, 0.4375)
        couple = [near, far] if asked.place in ("gauche", "dessus") else [far, near]
        spots = couple if asked.place in ("gauche", "droite") else [(y, x) for x, y in couple]
    looks = [(w.kind, w.colour) for w in asked.wishes for _ in range(w.count)]
    objects = [Object(*look, x=x, y=y) for look, (x, y) in zip(looks, spots, strict=False)]
    return Scene("blanc", tuple(objects))


def test_the_same_seed_asks_the_same_things():
    first, again = (requests(np.random.default_rng(5), "paire", 5) for _ in range(2))
    assert first == again


def test_an_unknown_category_is_refused():
    with pytest.raises(MinidalleError, match="choisir parmi"):
        requests(np.random.default_rng(0), "goût", 1)
