"""Ce qu'un modèle lit, mesuré sans juge d'images : Δ, ce que coûte à de vraies images un mot changé de leur légende.

Δ = −ln p(z | légende changée) + ln p(z | légende vraie), en nats par image. Nul si le mot n'est pas lu ; positif s'il
l'est et que le changement rend la légende fausse.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from minidalle import recipes
from minidalle.data import scenes
from minidalle.data.scenes import INVERSE, Object, Scene
from minidalle.generation import TextToImage

BATCH = 50  # images lues à la fois


class Couple(NamedTuple):
    """Une scène de deux formes, et sa légende : `first` est ainsi placé (`place`) par rapport à `second`."""

    scene: Scene
    first: Object
    place: str
    second: Object


def couples(rng: np.random.Generator, n: int) -> list[Couple]:
    """`n` scènes de deux formes de couleurs différentes, de dispositions réservées au test."""
    found: list[Couple] = []
    while len(found) < n:
        scene = scenes.sample_scene(rng, None, count=2)
        a, b = scene.objects
        place = scenes.relation(a, b)
        shapes = a.colour and b.colour and a.colour != b.colour and a.kind != b.kind
        if shapes and place and scenes.held_out_layout(a.kind, place, b.kind):
            found.append(Couple(scene, a, place, b))
    return found


def other(*colours: str) -> str:
    """Une couleur qui n'est aucune de celles-là."""
    return next(colour for colour in scenes.COLOURS if colour not in colours)


# Ce qu'on change de la légende ; « même sens, dit à l'envers » est un témoin, qui la laisse vraie.
CHANGES: dict[str, Callable[[Object, str, Object], tuple[Object, str, Object]]] = {
    "relation inverse": lambda a, at, b: (a, INVERSE[at], b),
    "objets échangés": lambda a, at, b: (b, at, a),
    "même sens, dit à l'envers": lambda a, at, b: (b, INVERSE[at], a),
    "couleurs échangées": lambda a, at, b: (replace(a, colour=b.colour), at, replace(b, colour=a.colour)),
    "une autre couleur": lambda a, at, b: (replace(a, colour=other(a.colour, b.colour)), at, b),
}


@torch.no_grad()
def costs(painter: TextToImage, known: Sequence[Couple]) -> dict[str, np.ndarray]:
    """Par changement, Δ de chaque scène, (n,), en nats par image."""
    parts = [known[i : i + BATCH] for i in range(0, len(known), BATCH)]
    images = [
        recipes.encode(painter.vqvae, np.stack([scenes.render(c.scene) for c in part])) for part in parts
    ]

    def nats(change: Callable) -> np.ndarray:
        found = [
            painter.transformer.nats(painter.read([scenes.situate(*change(*c[1:])) for c in part])[0], tokens)
            for part, tokens in zip(parts, images, strict=True)
        ]
        return torch.cat(found).numpy()

    true = nats(lambda *phrase: phrase)
    return {name: nats(change) - true for name, change in CHANGES.items()}
