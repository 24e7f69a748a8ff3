"""Demandes et verdicts."""

import hashlib

import numpy as np
import pytest

from minidalle.data import scenes
from minidalle.data.scenes import HELD_OUT_COLOURS, Object, Scene, held_out_layout, render
from minidalle.errors import MinidalleError
from minidalle.evaluation.oracle import Reading, read
from minidalle.evaluation.requests import (
    CATEGORIES,
    SEEN_ONLY,
    SPATIAL,
    STUDY,
    Request,
    Wish,
    balanced,
    contrast,
    judge,
    requests,
)
from tests.painters import scene_of

DIGEST = "d44cb1dc48c8974985a1f27aa716d1cc9c88e124f3ff4b1b1da05aad2e579a6c"


def reading(*objects):
    return Reading("blanc", objects, 0.0)


RED, BLUE = Object("carré", "rouge", x=0.25), Object("cercle", "bleu", x=0.75)
PAIR = Request("…", (Wish("carré", "rouge"), Wish("cercle", "bleu")), None, "paire", False)


def test_a_verdict_says_what_is_there_and_what_is_too_much():
    assert judge(reading(RED, BLUE), PAIR)[:3] == (True, True, True)
    assert judge(reading(RED, BLUE, Object("chat")), PAIR)[:3] == (True, True, False)
    assert not judge(reading(RED), PAIR).right
    swapped = (Object("carré", "bleu", x=0.25), Object("cercle", "rouge", x=0.75))
    assert not judge(reading(*swapped), PAIR).objects


def test_a_relation_holds_for_every_couple():
    asked = Request("…", PAIR.wishes, "gauche", "relation", False)
    assert judge(reading(RED, BLUE), asked).right
    other = Object("cercle", "bleu", x=0.125, y=0.875)
    assert judge(reading(RED, other), asked)[:3] == (True, False, True)
    assert not judge(reading(RED, BLUE, other), asked).placed
    assert judge(reading(RED), asked)[:3] == (False, False, False)


def test_a_verdict_tells_what_went_wrong():
    swapped = (Object("carré", "bleu", x=0.25), Object("cercle", "rouge", x=0.75))
    said = judge(Reading("blanc", swapped, 0.25), PAIR)
    assert (said.present, said.swapped, said.right, said.left) == (True, True, False, 0.25)
    assert not judge(reading(RED, BLUE), PAIR).swapped and not judge(reading(RED, RED), PAIR).swapped
    # Un seul des deux est de la couleur de l'autre : ce n'est pas un échange.
    assert not judge(reading(swapped[0], Object("cercle", "vert", x=0.75)), PAIR).swapped
    assert not judge(reading(RED), PAIR).present
    asked = Request("…", PAIR.wishes, "gauche", "relation", False)
    assert [judge(reading(RED, b), asked).place for b in (BLUE, Object("chat"))] == ["gauche", None]
    assert judge(reading(Object("carré", "rouge", x=0.875), BLUE), asked).place == "droite"
    # Les couleurs sont demandées : sans elles, ce ne sont pas les objets nommés.
    assert not judge(reading(*swapped), asked).present
    assert judge(reading(RED, RED, BLUE), Request("…", PAIR.wishes[:1], None, "couleur", False)).count == 2


@pytest.mark.parametrize(
    ("a", "b", "comparison", "right"),
    [
        ("grand", "moyen", "grand", True),
        ("moyen", "grand", "grand", False),
        ("moyen", "moyen", "grand", False),
        ("petit", "grand", "petit", True),
        ("petit", "petit", "petit", False),
    ],
)
def test_a_comparison_is_that_of_the_sizes(a, b, comparison, right):
    asked = Request("…", PAIR.wishes, None, "taille", False, comparison)
    drawn = Object("carré", "rouge", size=a, x=0.25), Object("cercle", "bleu", size=b, x=0.75)
    said = judge(reading(*drawn), asked)
    assert (said.right, said.present, said.objects) == (right, True, True)
    assert not judge(reading(drawn[0]), asked).right


def test_texture_and_background_are_judged_where_they_are_asked():
    striped = Object("carré", "rouge", "rayé")
    asked = Request("…", (Wish("carré", "rouge", texture="rayé"),), None, "texture", False)
    assert judge(reading(striped), asked).right
    said = judge(reading(RED), asked)
    assert said.present and not said.right
    asked = Request("…", PAIR.wishes[:1], None, "fond", False, background="gris")
    assert judge(Reading("gris", (RED,), 0.0), asked).right
    said = judge(reading(RED), asked)
    assert said.present and said.objects and not said.right
    assert not judge(Reading("gris", (BLUE,), 0.0), asked).right


@pytest.mark.parametrize("drawn, right", [(1, False), (2, True), (3, False)])
def test_a_count_is_exact(drawn, right):
    asked = Request("deux chats", (Wish("chat", None, 2),), None, "nombre", False)
    cats = [Object("chat", x=0.2 + 0.25 * i) for i in range(drawn)]
    assert judge(reading(*cats), asked).right == right


@pytest.mark.parametrize("category", STUDY)
@pytest.mark.parametrize("held_out", [True, False])
def test_requests_are_new_or_known_as_asked(category, held_out):
    if held_out and category in SEEN_ONLY:
        with pytest.raises(MinidalleError, match="Rien n'est réservé"):
            requests(np.random.default_rng(0), category, 1)
        return
    for asked in requests(np.random.default_rng(0), category, 30, held_out=held_out):
        assert (asked.category, asked.held_out) == (category, held_out)
        reserved = [HELD_OUT_COLOURS.get(w.kind) == w.colour for w in asked.wishes if w.colour]
        if category in SPATIAL:
            a, b = asked.wishes
            assert held_out_layout(a.kind, asked.place, b.kind) == held_out
            assert not any(reserved)
            assert scenes.RELATIONS[asked.place].removesuffix(" de") in asked.prompt
            first, second = (scenes.KINDS[w.kind].singular for w in asked.wishes)
            fronted = asked.prompt.startswith(("à", "au"))
            assert (asked.prompt.index(f" {first}") < asked.prompt.index(f" {second}")) == (not fronted)
            assert category == "ordre" or not fronted
        else:
            assert any(reserved) == held_out and asked.place is None
        for wish in asked.wishes:
            noun = scenes.KINDS[wish.kind]
            assert (noun.plural if wish.count > 1 else noun.singular) in asked.prompt


def test_the_order_of_words_is_told_both_ways():
    asked = requests(np.random.default_rng(0), "ordre", 60, held_out=False)
    assert 15 < sum(r.prompt.startswith(("à", "au")) for r in asked) < 45


@pytest.mark.parametrize("category", STUDY)
def test_a_picture_never_fits_a_request_and_its_opposite(category):
    rng = np.random.default_rng(3)
    asked = requests(rng, category, 25, held_out=category not in SEEN_ONLY)
    against = [contrast(r, rng) for r in asked]
    assert all(
        (a.category, a.held_out) == (r.category, r.held_out) for a, r in zip(against, asked, strict=True)
    )
    for one, other in ((asked, against), (against, asked)):
        seen = read([render(scene_of(r.prompt, i)) for i, r in enumerate(one)])
        assert all(judge(s, r).right and judge(s, r).alone for s, r in zip(seen, one, strict=True))
        assert not any(judge(s, r).right for s, r in zip(seen, other, strict=True))


def test_the_requests_of_the_part_before_have_not_changed():
    """Les résultats rangés de « Dessiner » sont ceux de ces demandes-là."""
    told = [
        (r.prompt, [tuple(w[:3]) for w in r.wishes], r.place, r.held_out)
        for category in CATEGORIES
        for held_out in (True, False)
        for r in requests(np.random.default_rng(0), category, 10, held_out=held_out)
    ]
    assert hashlib.sha256(repr(told).encode()).hexdigest() == DIGEST


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
