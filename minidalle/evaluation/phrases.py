"""Les phrases de l'étude : ce qu'elles disent, les dire, les relire, et dire le contraire.

`Phrase` est ce que dit une phrase du livre, dans ses tournures simples. `Phrase.text` l'écrit, `parse` la relit :
l'une est l'inverse de l'autre. `contrast` échange le seul attribut que mesure une catégorie.
"""

import functools
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from minidalle.data import scenes
from minidalle.data.scenes import BACKGROUNDS, COLOURS, INVERSE, KINDS, MAX_OBJECTS, RELATIONS, SHAPES, Object

TEXTURES = ("rayé", "à pois")  # l'uni ne se dit pas
SIZES = ("petit", "grand")
BIGGER = {"grand": "petit", "petit": "grand"}  # comparaisons, et leur inverse
_OPENINGS = re.compile(
    r"^(?:une image |un dessin )(?:de |d')(?=une? |deux |trois |quatre |cinq )|^(?:il y a|on voit|voici) "
)
_BACKGROUND = re.compile(rf" sur (?:un )?fond ({'|'.join(BACKGROUNDS)})$")


class Wish(NamedTuple):
    """`count` objets d'un nom et, si elles sont dites, d'une couleur, d'une texture ; la taille est dite, pas jugée."""

    kind: str
    colour: str | None
    count: int = 1
    texture: str | None = None
    size: str | None = None

    def met_by(self, o: Object) -> bool:
        return o.kind == self.kind and self.colour in (None, o.colour) and self.texture in (None, o.texture)

    @property
    def text(self) -> str:
        """« deux grands carrés bleus rayés »."""
        return scenes.indefinite((self.kind, self.colour, self.texture, self.size), self.count)


@dataclass(frozen=True, slots=True)
class Phrase:
    """Ce que dit une phrase.

    Attributes:
        wishes: les objets nommés ; deux si l'on situe ou compare.
        place: clé de `RELATIONS` : le premier est ainsi placé par rapport au second.
        comparison: « grand » ou « petit » : le premier l'est plus que le second.
        background: clé de `BACKGROUNDS`.
        fronted: la place est dite d'abord, « à gauche d'un carré, un mouton » : le premier objet est nommé en second.
    """

    wishes: tuple[Wish, ...]
    place: str | None = None
    comparison: str | None = None
    background: str | None = None
    fronted: bool = False

    @property
    def text(self) -> str:
        texts = [wish.text for wish in self.wishes]
        if self.place:
            where = scenes.join_to(RELATIONS[self.place], texts[1])
            text = f"{where}, {texts[0]}" if self.fronted else f"{texts[0]} {where}"
        elif self.comparison:
            adjective = scenes.SIZE_WORDS[self.comparison].agree(KINDS[self.wishes[0].kind].gender, 1)
            text = f"{texts[0]} plus {adjective} {scenes.join_to('que', texts[1])}"
        else:
            text = scenes.listed(texts)
        return f"{text} sur fond {self.background}" if self.background else text


def parse(text: str) -> Phrase | None:
    """Ce que dit une phrase, ou None si elle n'est pas d'une tournure connue."""
    text = " ".join(text.lower().replace("’", "'").split()).rstrip(". ")
    text = _OPENINGS.sub("", text)
    found = _BACKGROUND.search(text)
    background = found and found[1]
    text = _BACKGROUND.sub("", text)
    text = re.sub(
        r"\bd'(?=une? )", "de ", re.sub(r"\bqu'(?=une? )", "que ", re.sub(r"\bdu ", "de le ", text))
    )
    text = re.sub(r" sous (?=une? )", " au-dessous de ", text)
    for place, words in RELATIONS.items():
        if text.startswith(f"{words} ") and (
            wishes := _wishes(*text.removeprefix(f"{words} ").split(", ")[::-1])
        ):
            return Phrase(wishes, place, background=background, fronted=True) if len(wishes) == 2 else None
        pair = re.split(rf" (?:est )?{words} ", text)
        if len(pair) == 2:
            wishes = _wishes(*pair)
            return wishes and Phrase(wishes, place, background=background)
    if found := re.fullmatch(r"(.+) plus (petit|grand)e? que (.+)", text):
        wishes = _wishes(found[1], found[3])
        return wishes and Phrase(wishes, comparison=found[2], background=background)
    wishes = _wishes(*re.split(r", | et | avec ", text))
    return wishes and Phrase(wishes, background=background)


def _wishes(*texts: str) -> tuple[Wish, ...] | None:
    wishes = tuple(map(_lexicon().get, texts))
    return wishes if all(wishes) else None


@functools.cache
def _lexicon() -> dict[str, Wish]:
    """Tout ce qui se dit d'un groupe d'objets pareils, et ce que cela veut dire."""
    words = {}
    for kind in KINDS:
        shape = kind in SHAPES
        for colour in (None, *COLOURS) if shape else (None,):
            for texture in (None, *TEXTURES) if shape else (None,):
                for size in (None, *SIZES):
                    for count in range(1, MAX_OBJECTS + 1):
                        wish = Wish(kind, colour, count, texture, size)
                        words[wish.text] = wish
                    words[scenes.definite((kind, colour, texture, size))] = wish._replace(count=1)
    return words


def contrast(phrase: Phrase, category: str, rng: np.random.Generator) -> Phrase:
    """La même phrase, où le seul attribut que mesure `category` est échangé : si l'une est vraie, l'autre est fausse.

    Args:
        phrase: une phrase de cette catégorie.
        category: clé de `requests.STUDY`.
        rng: tire l'autre objet, l'autre couleur, l'autre fond, ou lequel de n − 1 et de n + 1.
    """
    first, last = phrase.wishes[0], phrase.wishes[-1]

    def other(values, but):
        values = [value for value in values if value != but]
        return values[rng.integers(len(values))]

    match category:
        case "objet":
            return replace(phrase, wishes=(first._replace(kind=other(KINDS, first.kind)),))
        case "couleur":
            return replace(phrase, wishes=(first._replace(colour=other(COLOURS, first.colour)),))
        case "paire":
            swapped = first._replace(colour=last.colour), last._replace(colour=first.colour)
            return replace(phrase, wishes=swapped)
        case "nombre":
            near = [n for n in (first.count - 1, first.count + 1) if 1 <= n <= 4]
            return replace(phrase, wishes=(first._replace(count=near[rng.integers(len(near))]),))
        case "relation":
            return replace(phrase, place=INVERSE[phrase.place])
        case "ordre":
            return replace(phrase, wishes=(last, first))
        case "taille":
            return replace(phrase, comparison=BIGGER[phrase.comparison])
        case "texture":
            return replace(phrase, wishes=(first._replace(texture=other(TEXTURES, first.texture)),))
        case "fond":
            return replace(phrase, background=other(BACKGROUNDS, phrase.background))
    raise KeyError(category)
