"""Le petit monde de `tools.dose` : deux formes, quatre couleurs, neuf places, et ce que les légendes en disent.

Une légende nomme toujours les deux formes. Elle peut dire en plus où est la première, ou sa couleur : quatre
réponses également probables des deux côtés, deux bits.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from minidalle import recipes
from minidalle.data import scenes
from minidalle.evaluation import oracle
from minidalle.generation import pad
from minidalle.sampling import sample
from minidalle.text import Tokenizer

SHAPES = ("cercle", "carré", "triangle", "cœur")
COLOURS = ("rouge", "jaune", "bleu", "noir")
# L'opposée d'une réponse est sa voisine de table : gauche et droite, dessus et dessous, rouge et jaune, bleu et noir.
VALUES = {"relation": tuple(scenes.RELATIONS), "couleur": COLOURS}
GROUND = "blanc"
PLACES = (0.125, 0.5, 0.875)  # centres d'un petit objet posé sur la grille de l'oracle
SILENT = 4  # ce que dit de plus une légende qui ne dit rien
OTHER, ABSENT = (
    4,
    5,
)  # ce que montre un dessin : ni l'une ni l'autre des quatre réponses ; il manque une forme


def reserved(first: np.ndarray, value: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Ces légendes sont-elles réservées aux mesures ? Une sur six, chaque forme et chaque réponse aussi souvent.

    Leur scène, elle, se voit, mais sa légende part alors de l'autre forme : chaque réponse reste vraie d'une image
    sur quatre, et le hasard d'un quart.
    """
    return (second == (first + 1) % 4) & ((value + first) % 2 == 0)


class World:
    """Toutes les scènes, mises en jetons une fois pour toutes ; les `tested` premières sont réservées aux mesures.

    Args:
        eye: ce qui met les images en jetons et les peint.
        only: nombre de scènes, pour un essai.

    Attributes:
        kinds, colours: (N, 2), formes et couleurs des deux objets de chaque scène.
        places: (N, 2), où est le premier par rapport au second, puis l'inverse.
        image: (N, 8, 8), jetons d'image renumérotés ; `codes`, leurs vrais numéros ; `mirrored`, ceux des images
            retournées.
        captions: par sujet, (4, 5, 4, L), jetons de la légende, par première forme, réponse et seconde forme.
    """

    def __init__(self, eye: nn.Module, tested: int = 512, only: int | None = None) -> None:
        every = list(every_scene())
        self.scenes = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:only]]
        self.eye, self.tested = eye, tested
        pairs = [scene.objects for scene in self.scenes]
        self.kinds = np.array([[SHAPES.index(o.kind) for o in pair] for pair in pairs])
        self.colours = np.array([[COLOURS.index(o.colour) for o in pair] for pair in pairs])
        places = np.array([VALUES["relation"].index(scenes.relation(*pair)) for pair in pairs])
        self.places = np.stack([places, places ^ 1], 1)
        pictures = np.stack([scenes.render(scene) for scene in tqdm(self.scenes, desc="le monde")])
        both = torch.cat([bare(eye, seen) for seen in (pictures, pictures[:, :, ::-1])])
        # Renumérotés de 0 à K − 1 : ce monde n'emploie qu'une part du dictionnaire.
        self.codes, both = both.unique(return_inverse=True)
        self.image, self.mirrored = both.chunk(2)
        texts = [caption(*key) for key in itertools.product(VALUES, range(4), range(5), range(4))]
        self.tokenizer = Tokenizer.train(texts, 128)
        ids = [self.tokenizer.encode(text).ids for text in texts]
        self.length = max(map(len, ids))
        tables = pad(ids, self.length).view(len(VALUES), 4, 5, 4, self.length)
        self.captions = dict(zip(VALUES, tables, strict=True))

    def tell(self, subject: str, rows: np.ndarray, first: np.ndarray, told: np.ndarray) -> tuple:
        """Légendes de ces scènes, qui partent de l'objet `first` (0 ou 1) et, si `told`, disent le sujet.

        Celle qui serait réservée part de l'autre objet.

        Returns:
            Jetons (n, L), et le triplet de tableaux (n,) : première forme, réponse (ou `SILENT`), seconde forme.
        """
        answers = self.places if subject == "relation" else self.colours
        kept = reserved(self.kinds[rows, first], answers[rows, first], self.kinds[rows, 1 - first])
        first = np.where(told & kept, 1 - first, first)
        values = np.where(told, answers[rows, first], SILENT)
        key = (self.kinds[rows, first], values, self.kinds[rows, 1 - first])
        return self.captions[subject][key], key

    def measure(self, model: nn.Module, subject: str, n: int) -> dict:
        """Ce que le modèle tire de la légende de n scènes réservées, sans dessiner.

        Returns:
            « nats » par image sous la bonne légende ; « delta », ce que coûte la réponse opposée, en nats par image,
            son « erreur » type, et sa moyenne sur chaque « axe », ou moitié de la table ; « bits » que la légende
            donne sur l'image, des deux qu'elle contient, et « trouvees », fois où la bonne réponse est la plus
            vraisemblable des quatre.
        """
        rows, first = np.arange(n), np.random.default_rng(1).integers(0, 2, n)
        _, (a, right, b) = self.tell(subject, rows, first, np.full(n, True))
        with torch.no_grad():
            costs = [
                model.nats(self.captions[subject][a, np.full(n, v), b], self.image[:n]) for v in range(4)
            ]
        costs, right = torch.stack(costs, 1).double(), torch.from_numpy(right)
        true, false = (costs.gather(1, v[:, None])[:, 0] for v in (right, right ^ 1))
        gap, bits = false - true, 2 + (-costs).log_softmax(1).gather(1, right[:, None])[:, 0] / math.log(2)
        return {
            "nats": float(true.mean()),
            "delta": float(gap.mean()),
            "erreur": float(gap.std()) / n**0.5,
            "axes": [float(gap[right // 2 == axis].mean()) for axis in (0, 1)],
            "bits": float(bits.mean()),
            "trouvees": int((costs.argmin(1) == right).sum()),
        }

    def draw(self, model: nn.Module, subject: str, n: int, kept: bool) -> list[list[int]]:
        """Demande n dessins, et les fait lire à l'oracle.

        Args:
            kept: demander ce qui est réservé, ou ce qui ne l'est pas.

        Returns:
            Une ligne par réponse demandée, une colonne par réponse dessinée, puis `OTHER` et `ABSENT`.
        """
        wishes = np.resize(requests(kept), (n, 3))
        text = self.captions[subject][tuple(wishes.T)]
        dice = [torch.Generator().manual_seed(i) for i in range(n)]
        model.eval()
        parts = [slice(i, i + _DRAWN) for i in range(0, n, _DRAWN)]
        length = self.image[0].numel()
        tokens = torch.cat([sample(model, text[i], dice[i], length=length, top_p=TOP_P) for i in parts])
        pictures = recipes.decode(self.eye, self.codes[tokens].view(n, *self.image.shape[1:]))
        table = np.zeros((4, 6), int)
        for reading, (a, value, b) in zip(oracle.read(list(pictures)), wishes, strict=True):
            table[value, answer(subject, reading, a, b)] += 1
        return table.tolist()


TOP_P = 0.9
_DRAWN = 200  # dessins à la fois


def bare(eye: nn.Module, pictures: np.ndarray) -> torch.Tensor:
    """Jetons (N, 8, 8), où toute case vide a le jeton d'une image vide.

    L'encodeur voit plus loin que sa case : près d'une forme, le fond en dit déjà quelque chose. Ce détail occuperait
    le modèle, et rien n'en dépend ici.
    """
    ground = np.full_like(pictures[:1], scenes.BACKGROUNDS[GROUND])
    empty = (pictures == ground).reshape(
        len(pictures), oracle.GRID, -1, oracle.GRID, pictures.shape[2] // oracle.GRID, 3
    )
    empty = torch.from_numpy(empty.all((2, 4, 5)))
    return torch.where(empty, recipes.encode(eye, ground), recipes.encode(eye, pictures))


def every_scene() -> Iterator[scenes.Scene]:
    """Les scènes de deux formes différentes, nettement situées."""
    spots = list(itertools.product(PLACES, PLACES))
    for kinds in itertools.combinations(SHAPES, 2):
        for colours, at in itertools.product(
            itertools.product(COLOURS, repeat=2), itertools.permutations(spots, 2)
        ):
            looks = zip(kinds, colours, at, strict=True)
            pair = tuple(scenes.Object(k, c, size="petit", x=x, y=y) for k, c, (x, y) in looks)
            if scenes.relation(*pair):
                yield scenes.Scene(GROUND, pair)


def caption(subject: str, first: int, value: int, second: int) -> str:
    """« un cercle et un carré », « un cercle à gauche d'un carré », « un cercle rouge et un carré »."""
    a, b = (f"un {SHAPES[kind]}" for kind in (first, second))
    if value == SILENT:
        return f"{a} et {b}"
    if subject == "relation":
        return f"{a} {scenes.RELATIONS[VALUES[subject][value]]} {b}".replace("de un", "d'un")
    return f"{scenes.describe(scenes.Object(SHAPES[first], COLOURS[value]))} et {b}"


def requests(kept: bool) -> np.ndarray:
    """Les légendes, réservées ou non, qui disent tout : (8 ou 40, 3), première forme, réponse, seconde forme."""
    every = np.array([key for key in itertools.product(range(4), repeat=3) if key[0] != key[2]])
    return every[reserved(*every.T) == kept]


def answer(subject: str, reading: oracle.Reading, first: int, second: int) -> int:
    """Ce que montre un dessin : une réponse, `OTHER` ou `ABSENT`. De deux formes pareilles, la plus nette compte."""
    found = [next((o for o in reading.objects if o.kind == SHAPES[kind]), None) for kind in (first, second)]
    if None in found:
        return ABSENT
    value = scenes.relation(*found) if subject == "relation" else found[0].colour
    return VALUES[subject].index(value) if value in VALUES[subject] else OTHER
