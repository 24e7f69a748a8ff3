"""La même demande, autrement dite : les variantes d'une phrase, et si l'écart qu'elles font compte.

Chaque variante garde ce que la demande exige et change sa phrase : seul le modèle la lit, l'oracle n'en sait rien. On
compare donc, demande par demande et graine par graine, des dessins qui devraient être également justes.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from minidalle.data import scenes
from minidalle.data.scenes import COLOURS, KINDS, RELATIONS
from minidalle.errors import MinidalleError
from minidalle.evaluation import proportions
from minidalle.evaluation.comparisons import holm
from minidalle.evaluation.phrases import Phrase, Wish, parse
from minidalle.evaluation.requests import CATEGORIES, Request, requests

MARGIN = 0.10  # écart sans importance, celui de `hypotheses.toml`
FROZEN = ("image", "paraphrase")  # ce que compare l'hypothèse « formulation » : choisi avant de mesurer


@dataclass(frozen=True)
class Variant:
    """Une façon de redire.

    Attributes:
        label: ce qu'on en montre.
        write: phrase de l'étude → phrase nouvelle, ou None si cette façon ne s'y applique pas.
        known: catégories dont les légendes d'entraînement ont cette tournure.
    """

    label: str
    write: Callable[[Phrase], str | None]
    known: tuple[str, ...] = ()


def mixed(rng: np.random.Generator, n: int) -> list[Request]:
    """`n` demandes par catégorie, sans fond ni taille : une moitié permise à l'entraînement, puis l'autre, réservée."""
    plain = {"size": 0.0, "background": 0.0}
    return [
        request
        for category in CATEGORIES
        for held_out in (False, True)
        for request in requests(rng, category, n // 2, held_out=held_out, **plain)
    ]


def rewrite(request: Request, name: str) -> Request | None:
    """La même demande, dite d'une autre façon ; None si cette façon ne s'y applique pas, ou n'y change rien.

    Args:
        request: une demande de `CATEGORIES`, de la tournure la plus simple, sans fond.
        name: clé de `VARIANTS`.

    Raises:
        MinidalleError: demande que `phrases.parse` ne relit pas, ou qui dit un fond.
    """
    phrase = parse(request.prompt)
    if not phrase or phrase.background:
        raise MinidalleError(f"« {request.prompt} » ne se redit pas : demander une phrase simple, sans fond.")
    text = VARIANTS[name].write(phrase)
    return None if text in (None, request.prompt) else replace(request, prompt=text)


def template(text: str) -> str:
    """La tournure d'une phrase : « une image d'un carré bleu » donne « une image de □ »."""
    for short, full in ((r"\bdu ", "de le "), (r"\bd'", "de "), (r"\bqu'", "que ")):
        text = re.sub(short, full, text)
    text = re.sub(rf" sur (?:un )?fond (?:{'|'.join(scenes.BACKGROUNDS)})$", "", text)
    return re.sub(r"□(?:(?:, | et )□)+", "□ et □", _groups().sub("□", text))


class Gap(NamedTuple):
    """Ce que change une variante : l'écart apparié (variante moins phrase simple), et s'il est nul à `MARGIN` près."""

    test: proportions.McNemar
    equivalence: proportions.Equivalence

    @property
    def flips(self) -> int:
        """Demandes dont le verdict change, dans un sens ou dans l'autre."""
        return self.test.first_only + self.test.second_only


def gap(variant: Sequence[bool], plain: Sequence[bool]) -> Gap:
    """Compare les verdicts d'une variante à ceux de la phrase simple, mêmes demandes et mêmes graines, (n,) chacun."""

    def measure(level: float) -> proportions.Estimate:
        return proportions.mcnemar(variant, plain, level).difference

    return Gap(proportions.mcnemar(variant, plain), proportions.equivalence(measure, 0.0, MARGIN))


def decide(gaps: Sequence[Gap], alpha: float = 0.05) -> str:
    """La règle gelée : « tient », « rejetée » ou « non tranché ».

    Elle tient si un écart dépasse `MARGIN`, p ajustée (Holm) sous alpha ; elle est rejetée si tous valent 0 à `MARGIN`
    près.
    """
    adjusted = holm([g.test.p for g in gaps])
    if any(abs(g.test.difference.value) > MARGIN and p < alpha for g, p in zip(gaps, adjusted, strict=True)):
        return "tient"
    return "rejetée" if all(g.equivalence.equivalent for g in gaps) else "non tranché"


# --- les façons de redire -------------------------------------------------------------------------


def _named(head: str, phrase: Phrase) -> str:
    """« une image d'un carré et d'un cercle » : chaque objet est amorcé, sauf s'il est situé par rapport à l'autre."""
    parts = [phrase.text] if phrase.place else [wish.text for wish in phrase.wishes]
    return f"{head} {scenes.listed([scenes.join_to('de', part) for part in parts])}"


def _paraphrase(phrase: Phrase) -> str:
    """Une autre construction, que l'entraînement a lue."""
    if phrase.place:
        a, b = (wish.text for wish in phrase.wishes)
        return f"{b} avec {a} {_ASIDE.get(phrase.place) or RELATIONS[phrase.place].removesuffix(' de')}"
    if len(phrase.wishes) == 2:
        return " avec ".join(wish.text for wish in phrase.wishes)
    return f"on voit {phrase.text}"


_ASIDE = {"gauche": "à sa gauche", "droite": "à sa droite"}
_ENDS = {"gauche": "à gauche", "droite": "à droite", "dessus": "en haut", "dessous": "en bas"}
_MORE = {"gauche": "plus à gauche", "droite": "plus à droite", "dessus": "plus haut", "dessous": "plus bas"}


def _turned(phrase: Phrase) -> str | None:
    """La place d'abord, ou le second objet d'abord."""
    if phrase.place:
        return replace(phrase, fronted=True).text
    return replace(phrase, wishes=phrase.wishes[::-1]).text if len(phrase.wishes) == 2 else None


def _is(phrase: Phrase) -> str | None:
    """« le mouton est à gauche du carré »."""
    a, b = (scenes.definite((w.kind, w.colour, None, None)) for w in (phrase.wishes * 2)[:2])
    return f"{a} est {scenes.join_to(RELATIONS[phrase.place], b)}" if phrase.place else None


def _each_side(phrase: Phrase) -> str | None:
    """« un mouton à gauche et un carré à droite »."""
    a, b = (wish.text for wish in (phrase.wishes * 2)[:2])
    return f"{a} {_ENDS[phrase.place]} et {b} {_ENDS[scenes.INVERSE[phrase.place]]}" if phrase.place else None


def _roundabout(phrase: Phrase) -> str:
    """Des mots connus, pour la plupart, en une construction qui ne l'est pas."""
    if phrase.place:
        a, b = (wish.text for wish in phrase.wishes)
        return f"{a} {_MORE[phrase.place]} {scenes.join_to('que', b)}"
    if phrase.wishes[0].count > 1:
        number, _, rest = phrase.text.partition(" ")
        return f"des {rest} au nombre de {number}"
    return scenes.listed([_of_colour(wish) for wish in phrase.wishes])


def _of_colour(wish: Wish) -> str:
    """« un carré de couleur bleue » ; « un seul mouton », qui n'en a pas."""
    bare = wish._replace(colour=None).text
    if not wish.colour:
        return bare.replace(" ", " seule " if bare.startswith("une ") else " seul ", 1)
    *_, feminine = scenes.indefinite(("croix", wish.colour, None, None)).split()
    return f"{bare} de couleur {feminine}"


def _digits(phrase: Phrase) -> str | None:
    """« 3 carrés bleus »."""
    return re.sub(r"^\w+", str(count), phrase.text) if (count := phrase.wishes[0].count) > 1 else None


def _slip(phrase: Phrase) -> str:
    """Deux lettres échangées au milieu du premier nom : « un craré bleu »."""
    noun = KINDS[phrase.wishes[0].kind]
    word = noun.plural if phrase.wishes[0].count > 1 else noun.singular
    i = next(i for i in range(len(word) // 2 - 1, len(word) - 1) if word[i] != word[i + 1])
    slipped = f"{word[:i]}{word[i + 1]}{word[i]}{word[i + 2 :]}"
    return re.sub(rf"\b{word}\b", slipped, phrase.text, count=1)


def _magnificent(phrase: Phrase) -> str:
    """Un mot jamais lu, et qui ne demande rien : « un magnifique carré bleu »."""
    return phrase.text.replace(" ", " magnifiques " if phrase.wishes[0].count > 1 else " magnifique ", 1)


def _unaccented(phrase: Phrase) -> str:
    bare = unicodedata.normalize("NFD", phrase.text.replace("œ", "oe"))
    return "".join(c for c in bare if not unicodedata.combining(c))


ALL = tuple(CATEGORIES)
_LISTED = ("couleur", "paire", "nombre")  # « une image de » n'y amorce jamais une phrase qui situe
VARIANTS = {
    "image": Variant("« une image de … »", lambda p: _named("une image", p), _LISTED),
    "dessin": Variant("« un dessin de … »", lambda p: _named("un dessin", p), _LISTED),
    "il y a": Variant("« il y a … »", lambda p: f"il y a {p.text}", _LISTED),
    "paraphrase": Variant("paraphrase connue", _paraphrase, ALL),
    "ordre": Variant("second objet ou place d'abord", _turned, ("paire", "relation")),
    "est": Variant("« le … est à gauche du … »", _is, ("relation",)),
    "côtés": Variant("« … à gauche et … à droite »", _each_side, ("relation",)),
    "capitales": Variant("EN CAPITALES", lambda p: p.text.upper(), ALL),
    "périphrase": Variant("périphrase inconnue", _roundabout),
    "prière": Variant("« dessine-moi … s'il te plaît »", lambda p: f"dessine-moi {p.text} s'il te plaît"),
    "épithète": Variant("« un magnifique … »", _magnificent),
    "point": Variant("point final", lambda p: f"{p.text}."),
    "accents": Variant("sans accents", _unaccented),
    "frappe": Variant("deux lettres échangées", _slip),
    "chiffres": Variant("« 3 » pour « trois »", _digits),
    "rebours": Variant("mots à rebours", lambda p: " ".join(p.text.split()[::-1])),
}


@functools.cache
def _groups() -> re.Pattern:
    """Tout groupe nominal du livre : « deux grands carrés bleus rayés », « l'étoile »."""
    looks = itertools.product(KINDS, COLOURS, ("rayé", "à pois"), scenes.SIZE_WORDS)
    words = {w for look in looks for n in (1, 2) for w in scenes.indefinite(look, n).split()[1:]}
    words = "|".join(sorted(words - {"à", "pois"}, key=len, reverse=True))
    return re.compile(
        rf"\b(?:une?|deux|trois|quatre|cinq|la|le|l')\s?(?:{words})(?: (?:{words}|à pois))*(?!\w)"
    )
