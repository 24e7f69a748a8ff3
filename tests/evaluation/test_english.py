"""La demande en anglais : toute demande se traduit, rien ne se confond, rien ne reste en français."""

import re
from types import SimpleNamespace

import pytest

from minidalle.data.scenes import BACKGROUNDS, COLOURS, KINDS, MAX_OBJECTS, RELATIONS
from minidalle.errors import MinidalleError
from minidalle.evaluation import english
from minidalle.evaluation.english import EnglishPainter, translate
from minidalle.evaluation.phrases import BIGGER, SIZES, TEXTURES
from minidalle.evaluation.requests import STUDY
from minidalle.evaluation.study import plan

SHARED = {"triangle", "triangles", "orange", "cactus"}  # mots des deux langues


@pytest.fixture(scope="module")
def asked():
    """Toutes les demandes d'une grande étude, et leurs contraires."""
    return {r.prompt: r for item in plan(80, 3, tries=1) for r in (item.request, item.opposite)}


def test_every_request_and_its_opposite_is_translated_and_none_is_confused(asked):
    assert {r.category for r in asked.values()} == set(STUDY)
    told = {translate(prompt) for prompt in asked}
    assert len(told) == len(asked) > 1000
    assert all(re.fullmatch(r"[a-z,\- ]+", text) for text in told)


def test_no_french_word_remains(asked):
    french = {word for prompt in asked for word in re.findall(r"[\w-]+", prompt)}
    said = {word for prompt in asked for word in re.findall(r"[\w-]+", translate(prompt))}
    assert said & french == SHARED
    assert {"un", "une", "d", "sur", "fond", "plus", "qu"} <= french


def test_the_lexicon_is_the_one_of_the_book():
    for ours, theirs in (
        (english.NOUNS, KINDS),
        (english.COLOURS, COLOURS),
        (english.TEXTURES, TEXTURES),
        (english.SIZES, SIZES),
        (english.BIGGER, BIGGER),
        (english.BACKGROUNDS, BACKGROUNDS),
        (english.RELATIONS, RELATIONS),
        (english.NUMERALS, range(2, MAX_OBJECTS + 1)),
    ):
        assert list(ours) == list(theirs) or set(ours) == set(theirs)


@pytest.mark.parametrize(
    ("french", "told"),
    [
        ("un avocat", "an avocado"),
        ("un carré orange", "an orange square"),
        ("une grande étoile verte sur fond azur", "a big green star on a light blue background"),
        ("un cercle rouge et un éléphant", "a red circle and an elephant"),
        ("un mouton à gauche d'un carré bleu", "a sheep to the left of a blue square"),
        ("à droite d'une maison, un cœur rose", "to the right of a house, a pink heart"),
        ("une croix noire au-dessus d'un chat", "a black cross above a cat"),
        ("un sapin au-dessous d'un bateau", "a fir tree below a boat"),
        ("trois moutons", "three sheep"),
        ("quatre petites croix violettes", "four small purple crosses"),
        ("une fusée plus grande qu'un anneau jaune", "a rocket bigger than a yellow ring"),
        ("un chien plus petit qu'une voiture", "a dog smaller than a car"),
        ("un losange jaune à pois", "a yellow polka-dot rhombus"),
        ("un cœur rouge rayé sur fond sable", "a red striped heart on a beige background"),
    ],
)
def test_translations(french, told):
    assert translate(french) == told


def test_what_is_not_of_the_study_is_refused():
    with pytest.raises(MinidalleError, match="« une girafe » n'est pas une demande"):
        translate("une girafe")


def test_the_painter_hears_english_only():
    heard = []
    painter = SimpleNamespace(
        draw_many=lambda prompts, seeds, **settings: heard.append((prompts, seeds, settings)) or ["dessin"],
        read=lambda prompts: (None, prompts, []),
    )
    painter = EnglishPainter(painter)
    assert painter.draw_many(["un chat"], [7], guidance=4.0) == ["dessin"]
    assert heard == [(["a cat"], [7], {"guidance": 4.0})]
    assert painter.read(["deux chats"])[1] == ["two cats"]
