"""Dans quel ordre un modèle apprend : forme, couleur, liaison, relation, nombre. Suite de `tools.dose`.

Un modèle neuf lit des légendes qui disent tout : « un carré rouge à gauche d'un cercle bleu », ou « trois carrés
rouges ». De loin en loin, on mesure ce que lui coûte, en nats par image, la plus petite faute de chaque catégorie.
"""

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from minidalle import recipes
from minidalle.data import scenes
from minidalle.evaluation import oracle
from minidalle.generation import pad
from minidalle.sampling import sample
from minidalle.text import Tokenizer
from minidalle.training import Batches
from tools.dose_monde import COLOURS, GROUND, PLACES, SHAPES, TOP_P, World, bare

COUNTS = (1, 2, 3, 4)
PER_LOOK = 24  # dispositions tirées pour chaque forme, couleur et nombre
CATEGORIES = ("forme", "couleur", "liaison", "relation", "nombre")
_PLAIN = dict.fromkeys(
    ("spatial", "texture", "size", "background", "comparison", "omission", "phrasing"), 0.0
)


def tell(objects: tuple[scenes.Object, ...], place: str | None) -> str:
    """« un carré rouge à gauche d'un cercle bleu » ; sans place, « trois carrés rouges »."""
    if place:
        return scenes.situate(objects[0], place, objects[1])
    return scenes.caption(scenes.Scene(GROUND, objects), np.random.default_rng(0), **_PLAIN, colour=1.0)


def faults(objects: tuple[scenes.Object, ...], place: str | None, rng: np.random.Generator) -> dict[str, str]:
    """Par catégorie, la légende de cette scène où une seule chose est fausse ; pas toutes sont possibles."""
    if place is None:
        near = [n for n in (len(objects) - 1, len(objects) + 1) if n in COUNTS]
        return {"nombre": tell((objects[0],) * near[rng.integers(len(near))], None)}
    a, b = objects
    shapes, colours = (
        sorted(set(every) - {a_value, b_value})
        for every, a_value, b_value in ((SHAPES, a.kind, b.kind), (COLOURS, a.colour, b.colour))
    )
    wrong = {
        "forme": (replace(a, kind=shapes[rng.integers(len(shapes))]), place, b),
        "couleur": (replace(a, colour=colours[rng.integers(len(colours))]), place, b),
        "relation": (a, scenes.INVERSE[place], b),
    }
    if a.colour != b.colour:
        wrong["liaison"] = (replace(a, colour=b.colour), place, replace(b, colour=a.colour))
    return {name: scenes.situate(*told) for name, told in wrong.items()}


class FullWorld:
    """Les scènes d'un `World`, d'autres où de un à quatre objets sont pareils, et des légendes qui disent tout.

    Attributes:
        told: (scène, objets dans l'ordre où on les nomme, place ou None) de chaque légende, deux par couple.
        text, image: leurs jetons, (M, L) et (M, 8, 8) ; `codes`, vrais numéros de ceux-ci.
        tested: numéros des légendes réservées aux mesures ; `couples` et `groups`, les autres.
    """

    def __init__(self, world: World, scored: int = 192) -> None:
        self.eye, rng = world.eye, np.random.default_rng(2)
        alike = list(groups(rng))
        pictures = np.stack([scenes.render(scene) for scene in alike])
        tokens = torch.cat([world.codes[world.image], bare(world.eye, pictures)])
        self.codes, image = tokens.unique(return_inverse=True)
        every = [*world.scenes, *alike]
        self.told = [(i, *order) for i, scene in enumerate(every) for order in orders(scene)]
        texts = [tell(objects, place) for _, objects, place in self.told]
        self.tokenizer = Tokenizer.train(texts, 256)
        known = {text: self.tokenizer.encode(text).ids for text in set(texts)}
        self.length = max(map(len, known.values()))
        self.text = pad([known[text] for text in texts], self.length)
        self.image = image[[i for i, *_ in self.told]]
        single = [m for m, (i, _, place) in enumerate(self.told) if place is None]
        alone = rng.permutation(single)[:scored].tolist()
        hidden = {*range(world.tested), *(self.told[m][0] for m in alone)}
        rows = range(len(self.told))
        self.couples, self.groups = (
            np.array([m for m in rows if self.told[m][0] not in hidden and (self.told[m][2] is None) == same])
            for same in (False, True)
        )
        # Une légende par scène réservée, qui part de l'un ou de l'autre objet.
        pairs = [m for m in rows if self.told[m][0] < scored and (m % 2 == self.told[m][0] % 2)]
        self.tested = np.array(pairs + alone)
        self.wrong: dict[str, tuple[np.ndarray, Tensor]] = {}
        edits = [(m, faults(*self.told[m][1:], np.random.default_rng(int(m)))) for m in self.tested]
        for name in CATEGORIES:
            kept = [(m, edit[name]) for m, edit in edits if name in edit]
            ids = [self.tokenizer.encode(text).ids for _, text in kept]
            self.wrong[name] = np.array([m for m, _ in kept]), pad(ids, self.length)

    def batches(self) -> Batches:
        """Lots (texte, jetons d'image), un couple une fois sur deux."""

        def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
            rows = np.where(rng.random(n) < 0.5, rng.choice(self.couples, n), rng.choice(self.groups, n))
            return self.text[rows], self.image[rows]

        return batch

    def measure(self, model: nn.Module, drawn: int) -> dict:
        """Par catégorie, ce que coûte la faute, en nats par image, et l'erreur type ; et ce que lit l'oracle."""
        marks = {}
        with torch.no_grad():
            for name, (rows, wrong) in self.wrong.items():
                gap = model.nats(wrong, self.image[rows]) - model.nats(self.text[rows], self.image[rows])
                marks[name] = [float(gap.mean()), float(gap.std()) / len(gap) ** 0.5]
        return {"delta": marks, "lus": self.read(model, drawn)}

    def read(self, model: nn.Module, drawn: int) -> dict[str, list[int]]:
        """Dessine `drawn` couples et autant de groupes réservés : par catégorie, [justes, jugeables]."""
        model.eval()
        rows = np.concatenate([self.tested[:drawn], self.tested[-drawn:]])
        dice = [torch.Generator().manual_seed(i) for i in range(len(rows))]
        tokens = sample(model, self.text[rows], dice, length=self.image[0].numel(), top_p=TOP_P)
        pictures = recipes.decode(self.eye, self.codes[tokens].view(-1, *self.image.shape[1:]))
        counts = {name: np.zeros(2, int) for name in CATEGORIES}
        for row, reading in zip(rows, oracle.read(list(pictures)), strict=True):
            for name, right in verdicts(reading, *self.told[row][1:]).items():
                counts[name] += (right, 1)
        return {name: count.tolist() for name, count in counts.items()}


def verdicts(
    reading: oracle.Reading, objects: tuple[scenes.Object, ...], place: str | None
) -> dict[str, bool]:
    """Ce qu'un dessin a de juste, catégorie par catégorie ; une forme absente n'a ni couleur ni place."""
    if place is None:
        look = (objects[0].kind, objects[0].colour)
        return {"nombre": [(o.kind, o.colour) for o in reading.objects] == [look] * len(objects)}
    found = [next((o for o in reading.objects if o.kind == wish.kind), None) for wish in objects]
    if None in found:
        return {"forme": False}
    wanted, seen = ([o.colour for o in pair] for pair in (objects, found))
    right = {"forme": True, "couleur": seen[0] == wanted[0], "relation": scenes.relation(*found) == place}
    if wanted[0] != wanted[1] and sorted(wanted) == sorted(map(str, seen)):
        right["liaison"] = seen == wanted
    return right


def groups(rng: np.random.Generator) -> list[scenes.Scene]:
    """Des scènes d'objets tous pareils, chaque nombre aussi souvent que ses dispositions le permettent."""
    spots = list(itertools.product(PLACES, PLACES))
    drawn = []
    for kind, colour, n in itertools.product(SHAPES, COLOURS, COUNTS):
        layouts = list(itertools.combinations(spots, n))
        for i in rng.permutation(len(layouts))[:PER_LOOK]:
            drawn.append(
                scenes.Scene(
                    GROUND, tuple(scenes.Object(kind, colour, size="petit", x=x, y=y) for x, y in layouts[i])
                )
            )
    return drawn


def orders(scene: scenes.Scene) -> list[tuple[tuple[scenes.Object, ...], str | None]]:
    """Les façons de raconter une scène : un couple, par l'un ou par l'autre ; des objets pareils, d'une seule."""
    objects = scene.objects
    if len({o.kind for o in objects}) == 1:
        return [(objects, None)]
    return [(pair, scenes.relation(*pair)) for pair in (objects, objects[::-1])]
