"""Des peintres dont on sait ce qu'ils valent : parfait, sourd à la phrase, sourd au seul attribut mesuré."""

from types import SimpleNamespace

import numpy as np

from minidalle.data import scenes
from minidalle.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Object, Scene, render
from minidalle.evaluation.phrases import parse

GRID = 8


class Painter:
    """Peint exactement ce que dit la phrase et, de la graine, tout ce qu'elle tait.

    Attributes:
        drawn: ce qui a été demandé, dans l'ordre.
    """

    def __init__(self, heard=None):
        """`heard` : ce que le peintre entend à la place d'une phrase, par (phrase, graine) ; elle-même à défaut."""
        self.heard, self.drawn = heard or {}, []

    def draw_many(self, prompts, seeds, **settings):
        pairs = list(zip(prompts, seeds, strict=True))
        self.drawn += pairs
        scenes = [scene_of(self.heard.get(pair, pair[0]), pair[1]) for pair in pairs]
        return [SimpleNamespace(images=render(scene)[None]) for scene in scenes]


class Tired(Painter):
    """S'arrête après `calls` appels, comme sous Ctrl-C."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def draw_many(self, prompts, seeds, **settings):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().draw_many(prompts, seeds, **settings)


def deaf(items, seed=0):
    """Peint, pour chaque demande, celle d'une autre du même groupe : les légendes sont permutées."""
    rng, heard = np.random.default_rng(seed), {}
    for group in sorted({(i.request.category, i.request.held_out) for i in items}):
        told = [i for i in items if (i.request.category, i.request.held_out) == group]
        mixed = rng.permutation([i.request.prompt for i in told]).tolist()
        heard |= {(i.request.prompt, i.seed): prompt for i, prompt in zip(told, mixed, strict=True)}
    return Painter(heard)


def coin(items, seed=0):
    """Peint la demande ou son contraire, à pile ou face : tout est là, sauf l'attribut, au hasard."""
    rng = np.random.default_rng(seed)
    return Painter({(i.request.prompt, i.seed): i.opposite.prompt for i in items if rng.random() < 0.5})


def scene_of(prompt, seed):
    """Une scène dont la phrase est vraie, et qui ne contient rien d'autre."""
    phrase, rng = parse(prompt), np.random.default_rng(seed)
    while True:
        objects = _try(phrase, rng)
        if objects:
            names = [phrase.background] if phrase.background else list(BACKGROUNDS)
            return Scene(names[rng.integers(len(names))], objects)


def _try(phrase, rng):
    taken, groups = np.zeros((GRID, GRID), bool), []
    for wish in phrase.wishes:
        shape, several = wish.kind in SHAPES, wish.count > 1
        colours = [wish.colour] if wish.colour else list(COLOURS)
        colour = colours[rng.integers(len(colours))] if shape else None
        sizes = [wish.size] if wish.size in SIZES else ["petit", "moyen", "grand"]
        sizes = [s for s in sizes if not (s == "petit" and (not shape or wish.texture))] or ["moyen"]
        size = sizes[0] if several else sizes[rng.integers(len(sizes))]
        group = []
        for _ in range(wish.count):
            cells = round(SIZES[size] * GRID)
            x, y = rng.integers(0, GRID - cells + 1, 2).tolist()
            if taken[y : y + cells, x : x + cells].any():
                return None
            taken[y : y + cells, x : x + cells] = True
            centre = (x + cells / 2) / GRID, (y + cells / 2) / GRID
            group.append(Object(wish.kind, colour, wish.texture or "uni", size, *centre))
        groups.append(group)
    couples = [(a, b) for a in groups[0] for b in groups[-1]]
    if phrase.place and any(scenes.relation(*couple) != phrase.place for couple in couples):
        return None
    if phrase.comparison and any(
        (a.side - b.side) * (phrase.comparison == "grand" or -1) <= 0 for a, b in couples
    ):
        return None
    return tuple(o for group in groups for o in group)
