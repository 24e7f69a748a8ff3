"""Relire une image : quel objet du monde du livre ressemble le plus, pixel à pixel, à ce qu'on voit ?

`identify` et `agreement` jugent une copie : places et tailles sont celles de la scène d'origine. `read` lit une
image quelconque, sans rien en savoir que la grille où les objets se posent.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minidalle.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
    THINGS,
    Object,
    Scene,
    render,
)


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


# --- lecture libre --------------------------------------------------------------------------------


class Reading(NamedTuple):
    """Ce que l'oracle lit dans une image, sans rien en savoir.

    Attributes:
        background: clé de `BACKGROUNDS`.
        objects: objets reconnus, du plus net au moins net.
        left: part du dessin (écart quadratique au fond) qu'aucun objet reconnu n'explique, de 0 à 1.
    """

    background: str
    objects: tuple[Object, ...]
    left: float


# De 0,5 à 3, mille scènes et leurs copies par le VQ-VAE se lisent pareil ; rien n'a été réglé sur des dessins.
PENALTY = 1.5  # ce que coûte un écart inexpliqué, en unités d'écart expliqué
FAINT = 4.0  # un objet explique au moins cela (écarts quadratiques sommés, pixels de 0 à 1)


def read(images: Sequence[np.ndarray], batch: int = 32) -> list[Reading]:
    """Lit des images du monde du livre, objets posés sur la grille de `GRID` cases par côté.

    Chaque vignette possible est essayée à chaque place : elle gagne l'écart au fond qu'elle explique, et perd
    `PENALTY` fois celui qu'elle laisse. La meilleure est retenue, ses cases sont prises, et l'on recommence
    tant qu'une vignette gagne quelque chose.

    Args:
        images: uint8 (S, S, 3), toutes de même côté, multiple de `GRID`.
        batch: images lues ensemble.
    """
    parts = [np.stack(images[i : i + batch]) for i in range(0, len(images), batch)]
    return [reading for part in parts for reading in _read(part)]


GRID = 8
_CELLS = {name: round(side * GRID) for name, side in SIZES.items()}


def _read(images: np.ndarray) -> list[Reading]:
    size = images.shape[1]
    pixels = images.astype(np.float32) / 255
    backgrounds = np.array(list(BACKGROUNDS.values()), np.float32) / 255
    # Le fond est celui dont le plus de pixels sont tout proches.
    gaps = np.square(pixels[:, :, :, None] - backgrounds).sum(-1)
    found = (gaps < 0.01).sum((1, 2)).argmax(1)
    readings: list[Reading | None] = [None] * len(images)
    for number, background in enumerate(BACKGROUNDS):
        rows = np.flatnonzero(found == number)
        if len(rows):
            drawn = pixels[rows] - backgrounds[number]
            for row, reading in zip(rows, _explain(drawn, background, size), strict=True):
                readings[row] = reading
    return readings


def _explain(drawn: np.ndarray, background: str, size: int) -> list[Reading]:
    """`drawn` : écarts au fond (B, S, S, 3)."""
    cell = size // GRID
    energy = np.square(drawn).reshape(len(drawn), GRID, cell, GRID, cell, 3).sum((2, 4, 5))
    scores, looks_found, spots = [], [], []
    for name, cells in _CELLS.items():
        looks, flat, norms = _library(background, name, size)
        windows = np.lib.stride_tricks.sliding_window_view(drawn, (cells * cell, cells * cell), (1, 2))
        windows = windows[:, ::cell, ::cell].transpose(0, 1, 2, 4, 5, 3)
        steps = windows.shape[1]
        gain = 2 * windows.reshape(len(drawn), steps * steps, -1) @ flat.T - norms
        total = np.lib.stride_tricks.sliding_window_view(energy, (cells, cells), (1, 2)).sum((3, 4))
        total = total.reshape(len(drawn), steps * steps, 1)
        # gain − PENALTY · (total − gain) ; trop pâle, un objet n'en est pas un.
        score = np.where(gain > FAINT, (1 + PENALTY) * gain - PENALTY * total, -np.inf)
        best = score.argmax(2)
        scores.append(score.max(2))
        looks_found.append(best)
        spots += [(name, cells, y, x, looks) for y in range(steps) for x in range(steps)]
    pairs = zip(np.concatenate(scores, 1), np.concatenate(looks_found, 1), energy, strict=True)
    return [_choose(score, look, spots, left, background) for score, look, left in pairs]


def _choose(
    scores: np.ndarray, found: np.ndarray, spots: list[tuple], energy: np.ndarray, background: str
) -> Reading:
    """Retient les meilleures places tant qu'elles ne se recouvrent pas.

    Args:
        scores: (P,), le gain de la meilleure vignette de chaque place de `spots`.
        found: (P,), le numéro de cette vignette.
        energy: (GRID, GRID), écart de chaque case au fond.
    """
    objects, free = [], np.ones((GRID, GRID), bool)
    for i in scores.argsort()[::-1]:
        if scores[i] <= 0 or len(objects) == MAX_OBJECTS:
            break
        name, cells, y, x, looks = spots[i]
        window = np.s_[y : y + cells, x : x + cells]
        if free[window].all():
            free[window] = False
            half = cells / 2
            objects.append(Object(*looks[found[i]], name, (x + half) / GRID, (y + half) / GRID))
    left = float(energy[free].sum() / max(float(energy.sum()), 1e-9))
    return Reading(background, tuple(objects), left)


@functools.lru_cache(maxsize=64)
def _library(background: str, object_size: str, size: int) -> tuple[list[Look], np.ndarray, np.ndarray]:
    """Vignettes tirées par `sample_scene` à cette taille, en écarts au fond (T, D), et leurs énergies (T,)."""
    small = object_size == "petit"
    kept = [i for i, look in enumerate(LOOKS) if not small or (look.colour and look.texture == "uni")]
    drawn = _templates(background, object_size, size)[kept] - np.float32(BACKGROUNDS[background])
    flat = (drawn / 255).reshape(len(kept), -1).astype(np.float32)
    return [LOOKS[i] for i in kept], flat, np.square(flat).sum(1)
