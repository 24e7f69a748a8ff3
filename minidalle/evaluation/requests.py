"""Ce qu'on demande à un modèle, par catégorie, et si un dessin l'accomplit.

Une demande est une phrase et ce qu'elle dit, mot pour mot ; un dessin est jugé par l'oracle, qui le lit sans
connaître la phrase.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minidalle.data import scenes
from minidalle.data.scenes import HELD_OUT_COLOURS, Object, Scene
from minidalle.errors import MinidalleError
from minidalle.evaluation.oracle import Reading

CATEGORIES = {
    "couleur": "un objet et sa couleur",
    "paire": "deux objets, chacun sa couleur",
    "relation": "deux objets et leur place",
    "nombre": "de un à quatre objets pareils",
}


class Wish(NamedTuple):
    """`count` objets d'un nom et, si elle est dite, d'une couleur."""

    kind: str
    colour: str | None
    count: int = 1

    def met_by(self, o: Object) -> bool:
        return o.kind == self.kind and self.colour in (None, o.colour)


@dataclass(frozen=True, slots=True)
class Request:
    """Une demande.

    Attributes:
        prompt: la phrase.
        wishes: ce qu'elle nomme.
        place: clé de `RELATIONS` : le premier nommé est ainsi placé par rapport au second ; ou None.
        category: clé de `CATEGORIES`.
        held_out: la combinaison est réservée au test.
    """

    prompt: str
    wishes: tuple[Wish, ...]
    place: str | None
    category: str
    held_out: bool


class Verdict(NamedTuple):
    """Ce que vaut un dessin pour une demande.

    Attributes:
        objects: chaque objet nommé est là, de sa couleur ; en nombre exact si la demande compte.
        placed: tous les couples demandés sont bien placés ; vrai d'office si rien n'est situé.
        alone: rien d'autre n'est dessiné.
    """

    objects: bool
    placed: bool
    alone: bool

    @property
    def right(self) -> bool:
        """La demande est accomplie ; le dessin peut montrer autre chose en plus."""
        return self.objects and self.placed


def judge(reading: Reading, request: Request) -> Verdict:
    """Confronte ce que l'oracle a lu à ce qui était demandé."""
    found = [[o for o in reading.objects if wish.met_by(o)] for wish in request.wishes]
    exact = request.category == "nombre"
    objects = all(
        len(seen) == wish.count if exact else len(seen) >= wish.count
        for seen, wish in zip(found, request.wishes, strict=True)
    )
    placed = request.place is None or (
        objects and all(scenes.relation(a, b) == request.place for a in found[0] for b in found[1])
    )
    return Verdict(objects, placed, len(reading.objects) == sum(wish.count for wish in request.wishes))


def requests(
    rng: np.random.Generator, category: str, n: int, *, held_out: bool = True, **telling: float
) -> list[Request]:
    """`n` demandes d'une catégorie.

    Réservé au test (`held_out`) veut dire : une couleur que cette forme n'a jamais eue à l'entraînement
    (couleur, nombre ; pour une paire, l'un des deux objets), ou une disposition jamais vue (relation). Sinon,
    rien n'y est réservé.

    Args:
        telling: options de `scenes.caption`, en plus ou à la place des siennes.

    Raises:
        MinidalleError: catégorie inconnue.
    """
    if category not in CATEGORIES:
        raise MinidalleError(f"Catégorie « {category} » inconnue : choisir parmi {', '.join(CATEGORIES)}.")
    return [_request(rng, category, held_out, telling) for _ in range(n)]


def balanced(rng: np.random.Generator, n: int, **options) -> list[Request]:
    """`n` demandes de chaque catégorie."""
    return [r for category in CATEGORIES for r in requests(rng, category, n, **options)]


def _request(rng: np.random.Generator, category: str, held_out: bool, telling: dict) -> Request:
    split = "test" if held_out else "train"
    while True:
        scene = _scene(rng, category)
        if scene is None or scenes.split_of(scene) != split:
            continue
        first, second = scene.objects[0], scene.objects[-1]
        unseen = any(HELD_OUT_COLOURS.get(o.kind) == o.colour for o in scene.objects if o.colour)
        # La nouveauté est dans ce que la phrase dit : la couleur, ou la place si l'on situe.
        if held_out and unseen == (category == "relation"):
            continue
        options = {"size": 0.2, "background": 0.2, "texture": 0.0, "phrasing": 0.0, "colour": 1.0}
        options |= {"spatial": float(category == "relation"), "comparison": 0.0, "omission": 0.0}
        prompt = scenes.caption(scene, rng, **options | telling)
        place, wishes = None, [Wish(o.kind, o.colour) for o in dict.fromkeys((first, second))]
        if category == "nombre":
            wishes = [Wish(first.kind, first.colour, len(scene.objects))]
        if category == "relation":
            place = scenes.relation(first, second)
            # La légende part de l'un ou de l'autre : le premier nommé est celui qu'elle situe.
            if _where(prompt, second) < _where(prompt, first):
                wishes, place = wishes[::-1], scenes.INVERSE[place]
        return Request(prompt, tuple(wishes), place, category, held_out)


def _scene(rng: np.random.Generator, category: str) -> Scene | None:
    if category == "nombre":
        scene = scenes.sample_scene(rng, None, count=1 + int(rng.integers(4)))
        looks = {(o.kind, o.colour, o.texture, o.size) for o in scene.objects}
        return scene if len(looks) == 1 else None
    if category == "couleur":
        scene = scenes.sample_scene(rng, None, count=1)
        return scene if scene.objects[0].colour else None
    scene = scenes.sample_scene(rng, None, count=2)
    a, b = scene.objects
    if a.kind == b.kind or (category == "relation" and not scenes.relation(a, b)):
        return None
    if category == "paire" and not (a.colour and b.colour and a.colour != b.colour):
        return None
    return scene


def _where(prompt: str, o: Object) -> int:
    noun = scenes.KINDS[o.kind].singular
    return f" {prompt} ".find(f" {noun} ")
