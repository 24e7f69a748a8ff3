"""D'où viennent les images et leurs légendes : scènes tirées à volonté, émojis, dossier du lecteur, mélange.

Une source rend des lots par `batch(rng, n)` : n images uint8 (n, S, S, 3) et n légendes. Tout le hasard
vient de `rng` : même générateur, même lot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from minidalle.data import openmoji, scenes
from minidalle.data.captioned import CaptionedImages
from minidalle.data.tuxpaint import read_stamps
from minidalle.errors import MinidalleError

Batch = tuple[np.ndarray, list[str]]
Tint = tuple[int, int, int]


class Source(Protocol):
    """Ce que les recettes d'entraînement demandent à des données."""

    size: int

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        """n images uint8 (n, S, S, 3) et leurs légendes."""

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        """Les légendes que rendrait `batch`, sans dessiner ni lire d'image."""


@dataclass(frozen=True)
class Scenes:
    """Scènes fraîches à chaque lot.

    Attributes:
        split: « train », « test » (combinaisons réservées) ou None.
        size: côté des images.
        caption: options de `scenes.caption`.
        sampling: options de `scenes.sample_scene`.
        tinted: part des scènes dont les formes prennent des teintes au hasard, qui n'ont pas de nom : leur
            légende ne dit aucune couleur. Aucune teinte n'approche la couleur réservée de sa forme.
    """

    split: str | None = "train"
    size: int = 64
    caption: dict = field(default_factory=dict)
    sampling: dict = field(default_factory=dict)
    tinted: float = 0.0

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        drawn, captions, tints = self._draw(rng, n)
        pictures = [
            scenes.render(scene, self.size, tint) if tint else scenes.render(scene, self.size)
            for scene, tint in zip(drawn, tints, strict=True)
        ]
        return np.stack(pictures), captions

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        return self._draw(rng, n)[1]

    def _draw(
        self, rng: np.random.Generator, n: int
    ) -> tuple[list[scenes.Scene], list[str], list[list[Tint] | None]]:
        drawn = scenes.sample_scenes(rng, n, self.split, **self.sampling)
        tints = [
            _tints(rng, scene) if self.tinted and rng.random() < self.tinted else None for scene in drawn
        ]
        told = [self.caption | {"colour": 0.0} if tint else self.caption for tint in tints]
        captions = [scenes.caption(s, rng, **options) for s, options in zip(drawn, told, strict=True)]
        return drawn, captions, tints


# Écarts minimaux (distance entre triplets RVB) au fond, sans quoi l'on ne verrait rien, et à la couleur réservée.
_CONTRAST, _RESERVED = 90, 75


def _tints(rng: np.random.Generator, scene: scenes.Scene) -> list[Tint]:
    """Une teinte au hasard par objet ; celle d'un émoji ne sert pas."""
    return [_tint(rng, scene.background, o.kind) for o in scene.objects]


def _tint(rng: np.random.Generator, background: str, kind: str) -> Tint:
    reserved = scenes.COLOURS.get(scenes.HELD_OUT_COLOURS.get(kind, ""))
    while True:
        tint = tuple(rng.integers(256, size=3).tolist())
        if math.dist(tint, scenes.BACKGROUNDS[background]) < _CONTRAST:
            continue
        if reserved is None or math.dist(tint, reserved) >= _RESERVED:
            return tint


class Emojis:
    """Émojis sur fond blanc, légendés par leur nom.

    Args:
        split: « train », « test » (autres concepts) ou None.
        size: côté des images.
        shift: décalage maximal, en pixels, tiré pour chaque image ; le bord qui sort revient par l'autre.
    """

    def __init__(self, split: str | None = "train", size: int = 64, shift: int = 0) -> None:
        self.size, self.shift = size, shift
        self.images, self.names = openmoji.images(split, size)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        picks = rng.integers(len(self.names), size=n)
        images = self.images[picks]
        if self.shift:
            moves = rng.integers(-self.shift, self.shift + 1, size=(n, 2))
            images = np.stack([np.roll(i, move, (0, 1)) for i, move in zip(images, moves, strict=True)])
        return images, [self.names[i] for i in picks]

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        return self.batch(rng, n)[1]


class Folder:
    """Images légendées du lecteur, au carré ; arguments de `open_captioned`."""

    def __init__(self, path: Path | str, size: int = 64, bad_images: str = "fail") -> None:
        self.size = size
        self.pairs = open_captioned(path, size, bad_images)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        picks, captions = self._draw(rng, n)
        return np.stack([self.pairs[i][0] for i in picks]), captions

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        return self._draw(rng, n)[1]

    def _draw(self, rng: np.random.Generator, n: int) -> tuple[list[int], list[str]]:
        picks = rng.integers(len(self.pairs), size=n).tolist()
        told = [self.pairs.captions[i] for i in picks]
        return picks, [texts[rng.integers(len(texts))] for texts in told]


class Mixture:
    """Chaque exemple vient d'une source tirée au hasard, toutes aussi probables.

    Args:
        sources: au moins une source ; toutes rendent des images de même côté.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.size = self.sources[0].size
        if any(source.size != self.size for source in self.sources):
            raise MinidalleError("Un mélange veut des sources de même taille.")

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        counts = self._counts(rng, n)
        parts = [s.batch(rng, count) for s, count in zip(self.sources, counts, strict=True) if count]
        order = rng.permutation(n)
        captions = [text for _, texts in parts for text in texts]
        return np.concatenate([images for images, _ in parts])[order], [captions[i] for i in order]

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        counts = self._counts(rng, n)
        texts = [t for s, c in zip(self.sources, counts, strict=True) if c for t in s.captions(rng, c)]
        return [texts[i] for i in rng.permutation(n)]

    def _counts(self, rng: np.random.Generator, n: int) -> list[int]:
        shares = np.full(len(self.sources), 1 / len(self.sources))
        return rng.multinomial(n, shares).tolist()


def open_captioned(name: Path | str, size: int | None = None, bad_images: str = "fail") -> CaptionedImages:
    """Images légendées d'un dossier ou d'un fichier JSON, ou tampons de « tuxpaint » s'ils sont installés.

    Args:
        name: « tuxpaint », ou un chemin que lit `CaptionedImages.open`.
        size: côté des images ; None garde leurs dimensions.
        bad_images: voir `CaptionedImages.sift`.

    Raises:
        MinidalleError: dossier absent ou mal formé, tampons absents, images illisibles selon `bad_images`.
    """
    if name == "tuxpaint":
        return read_stamps(size).sift(bad_images)
    return CaptionedImages.open(name, size, bad_images)


def open_source(name: str, split: str = "train", size: int = 64, bad_images: str = "fail") -> Source:
    """Source désignée par « scenes », « openmoji » ou ce que lit `open_captioned`.

    « scenes+openmoji » désigne le mélange des deux. Des images légendées n'ont pas de découpage : `split` y est
    sans effet.

    Raises:
        MinidalleError: voir `open_captioned`.
    """
    if name == "scenes+openmoji":
        return Mixture([Scenes(split, size), Emojis(split, size)])
    if name == "scenes":
        return Scenes(split, size)
    if name == "openmoji":
        return Emojis(split, size)
    return Folder(name, size, bad_images)
