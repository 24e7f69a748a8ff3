"""Dire, relire, contredire."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidalle.data import scenes
from minidalle.data.scenes import KINDS, RELATIONS, Object, caption, sample_scene
from minidalle.evaluation.phrases import Phrase, Wish, contrast, parse
from minidalle.evaluation.requests import SEEN_ONLY, STUDY, requests

SHEEP, SQUARE = Wish("mouton", None), Wish("carré", "bleu")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("un mouton", Phrase((SHEEP,))),
        ("Une image d'un mouton.", Phrase((SHEEP,))),
        (
            "voici un carré bleu rayé sur un fond azur",
            Phrase((SQUARE._replace(texture="rayé"),), background="azur"),
        ),
        (
            "un dessin de trois grandes étoiles rouges à pois",
            Phrase((Wish("étoile", "rouge", 3, "à pois", "grand"),)),
        ),
        ("un mouton à gauche d'un carré bleu", Phrase((SHEEP, SQUARE), "gauche")),
        ("le mouton est à gauche du carré bleu", Phrase((SHEEP, SQUARE), "gauche")),
        ("à gauche d'un carré bleu, un mouton", Phrase((SHEEP, SQUARE), "gauche", fronted=True)),
        ("un mouton sous l'étoile", None),
        ("un mouton sous une étoile", Phrase((SHEEP, Wish("étoile", None)), "dessous")),
        ("un carré bleu plus grand qu’un mouton", Phrase((SQUARE, SHEEP), comparison="grand")),
        ("une étoile plus petite qu'un mouton", Phrase((Wish("étoile", None), SHEEP), comparison="petit")),
        ("un mouton, un carré bleu et deux croix", Phrase((SHEEP, SQUARE, Wish("croix", None, 2)))),
        ("un mouton bleu", None),
        ("un mouton à gauche d'un carré bleu, avec un chat", None),
        ("une girafe", None),
        ("", None),
    ],
)
def test_what_a_sentence_says(text, phrase):
    assert parse(text) == phrase


def test_a_wish_is_met_by_what_it_says_and_nothing_less():
    o = Object("carré", "bleu", "rayé", "grand")
    for wish in (Wish("carré", None), Wish("carré", "bleu"), Wish("carré", None, 2, "rayé")):
        assert wish.met_by(o)
    for wish in (Wish("cercle", "bleu"), Wish("carré", "rouge"), Wish("carré", "bleu", 1, "à pois")):
        assert not wish.met_by(o)
    assert Wish("carré", "bleu", size="petit").met_by(o)  # la taille est dite, pas jugée


@pytest.mark.parametrize("category", STUDY)
def test_what_is_said_is_read_back(category):
    for held_out in (True, False):
        if held_out and category in SEEN_ONLY:
            continue
        for asked in requests(np.random.default_rng(1), category, 40, held_out=held_out):
            phrase = parse(asked.prompt)
            assert phrase.text == asked.prompt
            said = [wish._replace(size=None) for wish in phrase.wishes]
            # Une paire n'a pas de premier.
            assert sorted(map(repr, said)) == sorted(map(repr, asked.wishes))
            assert category == "paire" or said == list(asked.wishes)
            assert phrase.place == asked.place and phrase.comparison == asked.comparison


@given(st.integers(0, 10**6))
def test_a_plain_caption_is_read_and_true(seed):
    """Une légende simple, relue, est vraie de la scène qu'elle raconte."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, None, count=2)
    phrase = parse(caption(scene, rng, phrasing=0.0, omission=0.0))
    assert phrase.background in (None, scene.background)
    met = [[o for o in scene.objects if wish.met_by(o)] for wish in phrase.wishes]
    assert all(len(found) >= wish.count for found, wish in zip(met, phrase.wishes, strict=True))
    couples = [(a, b) for a in met[0] for b in met[-1] if a is not b]
    if phrase.place:
        assert any(scenes.relation(a, b) == phrase.place for a, b in couples)
    if phrase.comparison:
        assert any((a.side > b.side) == (phrase.comparison == "grand") for a, b in couples)


TOLD = {
    "objet": ("un mouton", lambda p: p.wishes[0].kind != "mouton"),
    "couleur": (
        "un carré bleu",
        lambda p: p.wishes[0].kind == "carré" and p.wishes[0].colour not in (None, "bleu"),
    ),
    "paire": ("un carré bleu et une croix verte", "un carré vert et une croix bleue"),
    "nombre": ("un grand carré bleu", "deux grands carrés bleus"),
    "relation": ("un mouton à gauche d'un carré bleu", "un mouton à droite d'un carré bleu"),
    "ordre": ("à gauche d'un carré bleu, un mouton", "à gauche d'un mouton, un carré bleu"),
    "taille": ("un carré plus grand qu'une croix", "un carré plus petit qu'une croix"),
    "texture": ("une croix verte rayée", "une croix verte à pois"),
    "fond": (
        "un mouton sur fond gris",
        lambda p: p.wishes == (SHEEP,) and p.background not in (None, "gris"),
    ),
}


@pytest.mark.parametrize("category", STUDY)
def test_the_opposite_changes_one_thing(category):
    text, expected = TOLD[category]
    for seed in range(10):
        turned = contrast(parse(text), category, np.random.default_rng(seed))
        assert expected(turned) if callable(expected) else turned.text == expected
        assert turned.text != text and parse(turned.text) == turned


def test_the_opposite_of_a_count_is_its_neighbour():
    told = {
        contrast(Phrase((Wish("chat", None, 3),)), "nombre", np.random.default_rng(s)).text for s in range(20)
    }
    assert told == {"deux chats", "quatre chats"}
    last = {
        contrast(Phrase((Wish("chat", None, 4),)), "nombre", np.random.default_rng(s)).text for s in range(9)
    }
    assert last == {"trois chats"}


def test_every_kind_and_place_is_read():
    for kind in KINDS:
        for place in RELATIONS:
            for fronted in (True, False):
                phrase = Phrase((Wish(kind, None), SQUARE), place, fronted=fronted)
                assert parse(phrase.text) == phrase
