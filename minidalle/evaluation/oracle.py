"""Relire une scène : à chaque place, quel objet du monde du livre ressemble le plus à ce qu'on voit ?

Les places et les tailles sont données (ce sont celles de la scène d'origine) : on juge une copie, pas un
dessin libre. La réponse est la vignette la plus proche, pixel à pixel, parmi tous les objets possibles.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minidalle.data.scenes import COLOURS, SHAPES, TEXTURES, THINGS, Object, Scene, render


class Look(NamedTuple):
    """Ce qu'on lit d'un objet ; `colour` vaut None pour un émoji."""

    kind: str
    colour: str | None
    texture: str


def identify(image: np.ndarray, scene: Scene) -> list[Look]:
    """Objets lus dans `image` aux places de `scene`, dans le même ordre.

    Args:
        image: uint8 (S, S, 3).
        scene: scène dont `image` est une copie ; ses objets ne se recouvrent pas.
    """
    size = len(image)
    read = []
    for o in scene.objects:
        y, x = _corner(o, size)
        templates = _templates(scene.background, o.size, size)
        side = templates.shape[1]
        seen = image[y : y + side, x : x + side].astype(np.float32)
        gaps = np.square(templates - seen).mean((1, 2, 3))
        read.append(LOOKS[int(gaps.argmin())])
    return read


def agreement(images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Ce qui est lu juste, objet par objet.

    Args:
        images: copies uint8 (S, S, 3) des scènes.
        scenes: les scènes.

    Returns:
        « kind », « colour » (formes seules), « texture » (formes seules) : tableaux de booléens.
    """
    right: dict[str, list[bool]] = {"kind": [], "colour": [], "texture": []}
    for image, scene in zip(images, scenes, strict=True):
        for o, look in zip(scene.objects, identify(image, scene), strict=True):
            right["kind"].append(look.kind == o.kind)
            if o.colour:
                right["colour"].append(look.colour == o.colour)
                right["texture"].append(look.texture == o.texture)
    return {name: np.array(values, bool) for name, values in right.items()}


LOOKS = tuple(Look(k, c, t) for k in SHAPES for c in COLOURS for t in TEXTURES) + tuple(
    Look(k, None, "uni") for k in THINGS
)


def _corner(o: Object, size: int) -> tuple[int, int]:
    side = max(1, round(o.side * size))
    return round(o.y * size - side / 2), round(o.x * size - side / 2)


@functools.lru_cache(maxsize=64)
def _templates(background: str, object_size: str, size: int) -> np.ndarray:
    """Tous les objets possibles à cette taille, sur ce fond : float32 (216, côté, côté, 3)."""
    pictures = []
    for look in LOOKS:
        o = Object(*look, object_size)
        y, x = _corner(o, size)
        side = max(1, round(o.side * size))
        pictures.append(render(Scene(background, (o,)), size)[y : y + side, x : x + side])
    return np.stack(pictures).astype(np.float32)
