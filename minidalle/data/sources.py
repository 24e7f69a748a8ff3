"""D'où viennent les images et leurs légendes : scènes tirées à volonté, émojis, ou dossier du lecteur.

Une source rend des lots par `batch(rng, n)` : n images uint8 (n, S, S, 3) et n légendes. Tout le hasard
vient de `rng` : même générateur, même lot.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from minidalle.data import openmoji, scenes
from minidalle.data.captioned import CaptionedImages

Batch = tuple[np.ndarray, list[str]]


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
    """

    split: str | None = "train"
    size: int = 64
    caption: dict = field(default_factory=dict)
    sampling: dict = field(default_factory=dict)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        drawn, captions = self._draw(rng, n)
        return np.stack([scenes.render(scene, self.size) for scene in drawn]), captions

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        return self._draw(rng, n)[1]

    def _draw(self, rng: np.random.Generator, n: int) -> tuple[list[scenes.Scene], list[str]]:
        drawn = scenes.sample_scenes(rng, n, self.split, **self.sampling)
        return drawn, [scenes.caption(scene, rng, **self.caption) for scene in drawn]


class Emojis:
    """Émojis sur fond blanc, légendés par leur nom."""

    def __init__(self, split: str = "train", size: int = 64) -> None:
        self.size = size
        self.images, self.names = openmoji.images(split, size)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        picks = rng.integers(len(self.names), size=n)
        return self.images[picks], [self.names[i] for i in picks]

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        return self.batch(rng, n)[1]


class Folder:
    """Images légendées du lecteur (voir `minidalle.data.captioned`), recadrées au carré."""

    def __init__(self, path: Path | str, size: int = 64) -> None:
        self.size = size
        self.pairs = CaptionedImages.open(path, size=size)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        picks, captions = self._draw(rng, n)
        return np.stack([self.pairs[i][0] for i in picks]), captions

    def captions(self, rng: np.random.Generator, n: int) -> list[str]:
        return self._draw(rng, n)[1]

    def _draw(self, rng: np.random.Generator, n: int) -> tuple[list[int], list[str]]:
        picks = rng.integers(len(self.pairs), size=n).tolist()
        told = [self.pairs.captions[i] for i in picks]
        return picks, [texts[rng.integers(len(texts))] for texts in told]


def open_source(name: str, split: str = "train", size: int = 64) -> Source:
    """Source désignée par « scenes », « openmoji » ou le chemin d'un dossier d'images légendées.

    Un dossier n'a pas de découpage : `split` y est sans effet.

    Raises:
        MinidalleError: dossier absent ou mal formé.
    """
    if name == "scenes":
        return Scenes(split, size)
    if name == "openmoji":
        return Emojis(split, size)
    return Folder(name, size)
