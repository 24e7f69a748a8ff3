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
        drawn = scenes.sample_scenes(rng, n, self.split, **self.sampling)
        images = np.stack([scenes.render(scene, self.size) for scene in drawn])
        return images, [scenes.caption(scene, rng, **self.caption) for scene in drawn]


class Emojis:
    """Émojis sur fond blanc, légendés par leur nom."""

    def __init__(self, split: str = "train", size: int = 64) -> None:
        self.size = size
        self.images, self.names = openmoji.images(split, size)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        picks = rng.integers(len(self.names), size=n)
        return self.images[picks], [self.names[i] for i in picks]


class Folder:
    """Images légendées du lecteur (voir `minidalle.data.captioned`), recadrées au carré."""

    def __init__(self, path: Path | str, size: int = 64) -> None:
        self.size = size
        self.pairs = CaptionedImages.open(path, size=size)

    def batch(self, rng: np.random.Generator, n: int) -> Batch:
        chosen = [self.pairs[i] for i in rng.integers(len(self.pairs), size=n).tolist()]
        captions = [texts[rng.integers(len(texts))] for _, texts in chosen]
        return np.stack([image for image, _ in chosen]), captions


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
