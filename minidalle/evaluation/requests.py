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
from minidalle.evaluation import phrases
from minidalle.evaluation.oracle import Reading
from minidalle.evaluation.phrases import Phrase, Wish

CATEGORIES = {
    "couleur": "un objet et sa couleur",
    "paire": "deux objets, chacun sa couleur",
    "relation": "deux objets et leur place",
    "nombre": "de un à quatre objets pareils",
}
# Celles de la partie « Mesurer » : les mêmes, et d'autres.
STUDY = {
    "objet": "un objet, sans rien en dire",
    **CATEGORIES,
    "taille": "un objet plus grand ou plus petit qu'un autre",
    "texture": "un objet coloré, rayé ou à pois",
    "ordre": "deux objets et leur place, dite après ou d'abord",
    "fond": "un objet et le fond",
}
SEEN_ONLY = ("objet",)  # rien n'y est réservé au test : tous les mots sont appris
SPATIAL = ("relation", "ordre")


@dataclass(frozen=True, slots=True)
class Request:
    """Une demande.

    Attributes:
        prompt: la phrase.
        wishes: ce qu'elle nomme.
        place: clé de `RELATIONS` : le premier nommé est ainsi placé par rapport au second ; ou None.
        category: clé de `STUDY`.
        held_out: la combinaison est réservée au test.
        comparison: « grand » ou « petit » : le premier doit l'être plus que le second ; ou None.
        background: fond exigé, clé de `BACKGROUNDS` ; ou None.
    """

    prompt: str
    wishes: tuple[Wish, ...]
    place: str | None
    category: str
    held_out: bool
    comparison: str | None = None
    background: str | None = None


class Verdict(NamedTuple):
    """Ce que vaut un dessin pour une demande.

    Attributes:
        objects: chaque objet nommé est là, de sa couleur et de sa texture ; en nombre exact si la demande compte.
        placed: tous les couples demandés sont bien placés, de tailles bien rangées, sur le bon fond ; vrai d'office
            si la demande n'en dit rien.
        alone: rien d'autre n'est dessiné.
        present: les objets nommés sont là, sans compter ce que la catégorie mesure (couleur, nombre, texture…).
        swapped: chacun des deux objets est là, de la couleur de l'autre.
        place: relation lue entre les deux objets nommés, les plus nets ; None s'ils n'y sont pas, ou sans relation.
        count: combien d'objets répondent au premier nom.
        left: part du dessin qu'aucun objet reconnu n'explique, de 0 à 1.
    """

    objects: bool
    placed: bool
    alone: bool
    present: bool
    swapped: bool
    place: str | None
    count: int
    left: float

    @property
    def right(self) -> bool:
        """La demande est accomplie ; le dessin peut montrer autre chose en plus."""
        return self.objects and self.placed


def judge(reading: Reading, request: Request) -> Verdict:
    """Confronte ce que l'oracle a lu à ce qui était demandé."""

    def seen(wish: Wish) -> list[Object]:
        return [o for o in reading.objects if wish.met_by(o)]

    found = [seen(wish) for wish in request.wishes]
    exact = request.category == "nombre"
    objects = all(
        len(group) == wish.count if exact else len(group) >= wish.count
        for group, wish in zip(found, request.wishes, strict=True)
    )
    couples = [(a, b) for a in found[0] for b in found[-1]] if len(found) == 2 else []
    placed = request.background in (None, reading.background)
    if request.place:
        placed = objects and all(scenes.relation(*couple) == request.place for couple in couples)
    if request.comparison:
        bigger = request.comparison == "grand"
        placed = objects and all((a.side > b.side) if bigger else (a.side < b.side) for a, b in couples)
    swapped = not objects and len(found) == 2 and all(seen(wish) for wish in _swapped(request.wishes))
    return Verdict(
        objects,
        placed,
        alone=len(reading.objects) == sum(wish.count for wish in request.wishes),
        present=all(seen(_without(wish, request.category)) for wish in request.wishes),
        swapped=swapped,
        place=scenes.relation(*couples[0]) if couples else None,
        count=len(found[0]),
        left=reading.left,
    )


def _without(wish: Wish, category: str) -> Wish:
    """Ce qui est nommé, moins ce que la catégorie mesure."""
    if category in ("couleur", "paire"):
        return wish._replace(colour=None)
    return wish._replace(texture=None) if category == "texture" else wish


def _swapped(wishes: tuple[Wish, ...]) -> tuple[Wish, ...]:
    """Deux souhaits, chacun de la couleur de l'autre ; d'un émoji coloré, il n'y en a jamais."""
    a, b = wishes
    return a._replace(colour=b.colour or "aucune"), b._replace(colour=a.colour or "aucune")


def requests(
    rng: np.random.Generator, category: str, n: int, *, held_out: bool = True, **telling: float
) -> list[Request]:
    """`n` demandes d'une catégorie.

    Réservé au test (`held_out`) veut dire : une couleur que cette forme n'a jamais eue à l'entraînement (s'il y a
    deux objets, l'un des deux), ou une disposition jamais vue (relation, ordre). Sinon, rien n'y est réservé.

    Args:
        telling: options de `scenes.caption`, en plus ou à la place des siennes ; pour celles de `CATEGORIES`.

    Raises:
        MinidalleError: catégorie inconnue, ou dont rien n'est réservé.
    """
    if category not in STUDY:
        raise MinidalleError(f"Catégorie « {category} » inconnue : choisir parmi {', '.join(STUDY)}.")
    if held_out and category in SEEN_ONLY:
        raise MinidalleError(f"Rien n'est réservé au test dans « {category} » : demander held_out=False.")
    return [_request(rng, category, held_out, telling) for _ in range(n)]


def balanced(rng: np.random.Generator, n: int, **options) -> list[Request]:
    """`n` demandes de chaque catégorie de `CATEGORIES`."""
    return [r for category in CATEGORIES for r in requests(rng, category, n, **options)]


def contrast(request: Request, rng: np.random.Generator) -> Request:
    """La demande contraire : la même phrase, où le seul attribut que mesure sa catégorie est échangé.

    Juger par elle le dessin d'une demande, c'est mesurer le hasard. Elle n'est dite ni vue ni réservée : elle garde
    la marque de la demande. Voir `phrases.contrast`.
    """
    turned = phrases.contrast(phrases.parse(request.prompt), request.category, rng)
    return request_of(turned, request.category, request.held_out)


def request_of(phrase: Phrase, category: str, held_out: bool) -> Request:
    """La demande que fait une phrase, jugée comme celles de sa catégorie : sans la taille, ni le fond sauf « fond »."""
    wishes = tuple(wish._replace(size=None) for wish in phrase.wishes)
    background = phrase.background if category == "fond" else None
    return Request(phrase.text, wishes, phrase.place, category, held_out, phrase.comparison, background)


def _request(rng: np.random.Generator, category: str, held_out: bool, telling: dict) -> Request:
    split = "test" if held_out else "train"
    while True:
        scene = _scene(rng, category)
        if scene is None or scenes.split_of(scene) != split:
            continue
        first, second = scene.objects[0], scene.objects[-1]
        unseen = any(HELD_OUT_COLOURS.get(o.kind) == o.colour for o in scene.objects if o.colour)
        # La nouveauté est dans ce que la phrase dit : la couleur, ou la place si l'on situe.
        if held_out and unseen == (category in SPATIAL):
            continue
        if category not in CATEGORIES:
            return request_of(_phrase(rng, category, scene), category, held_out)
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


def _phrase(rng: np.random.Generator, category: str, scene: Scene) -> Phrase:
    """Ce que dit d'une scène une catégorie de `STUDY` qui n'est pas de `CATEGORIES`."""
    first, second = scene.objects[0], scene.objects[-1]
    a, b = Wish(first.kind, first.colour), Wish(second.kind, second.colour)
    match category:
        case "objet":
            return Phrase((a._replace(colour=None),))
        case "texture":
            return Phrase((a._replace(texture=first.texture),))
        case "fond":
            return Phrase((a,), background=scene.background)
        case "taille":
            return Phrase((a, b), comparison="grand" if first.side > second.side else "petit")
    return Phrase((a, b), scenes.relation(first, second), fronted=bool(rng.random() < 0.5))


def _scene(rng: np.random.Generator, category: str) -> Scene | None:
    if category == "nombre":
        scene = scenes.sample_scene(rng, None, count=1 + int(rng.integers(4)))
        looks = {(o.kind, o.colour, o.texture, o.size) for o in scene.objects}
        return scene if len(looks) == 1 else None
    if category in ("couleur", "objet", "texture", "fond"):
        scene = scenes.sample_scene(rng, None, count=1)
        (o,) = scene.objects
        fits = {"couleur": bool(o.colour), "texture": o.texture != "uni"}
        return scene if fits.get(category, True) else None
    scene = scenes.sample_scene(rng, None, count=2)
    a, b = scene.objects
    if a.kind == b.kind or (category in SPATIAL and not scenes.relation(a, b)):
        return None
    if category == "paire" and not (a.colour and b.colour and a.colour != b.colour):
        return None
    return None if category == "taille" and a.side == b.side else scene


def _where(prompt: str, o: Object) -> int:
    noun = scenes.KINDS[o.kind].singular
    return f" {prompt} ".find(f" {noun} ")
