"""Diagnostic d'un générateur qui n'écoute pas : `python -m tools.diagnostic` (huit minutes d'un cœur libre).

Un petit DALL·E mini apprend un petit monde : une forme, sa couleur, neuf places, deux fonds. On le refait avec,
chaque fois, une seule des fautes relevées dans le code d'un modèle qui ignorait ses légendes, et l'on suit deux
nombres : la perte, et Δ, ce que coûte la légende du voisin. `minidalle/results/diagnostic.json`, que relit le chapitre
« Génération », garde les courbes et ce que l'oracle lit des dessins.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidalle import recipes
from minidalle.checkpoints import WEIGHTS, load_model
from minidalle.data import scenes
from minidalle.evaluation import oracle
from minidalle.files import atomic_write
from minidalle.generation import pad
from minidalle.models.dalle_mini import DALLEMini
from minidalle.sampling import sample
from minidalle.text import Tokenizer
from minidalle.training import TrainingConfig, train
from tools.command import launch

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "diagnostic.json"
EYE = "vqvae"
CONFIG = {"width": 64, "layers": 1, "decoder_layers": 2, "text_length": 24}
TRAINING = {"batch_size": 32, "learning_rate": 5e-3, "warmup": 20}
THEIRS = {"batch_size": 10, "learning_rate": 4e-5, "warmup": 0, "floor": 1.0}  # lot et pas des auteurs
GROUNDS = tuple(scenes.BACKGROUNDS)[:2]
STEPS, EVERY, SEEDS, TESTED, DRAWN = 200, 20, (0, 1), 96, 48


class World:
    """Toutes les scènes d'un objet, mises en jetons une fois pour toutes ; `TESTED` sont réservées aux mesures.

    Args:
        eye: ce qui met les images en jetons et les peint.
        kinds: nombre de formes, et de couleurs.
        places: où est le centre de la forme, sur chaque axe.
    """

    def __init__(self, eye: nn.Module, kinds: int = 6, places: tuple[float, ...] = (0.25, 0.5, 0.75)) -> None:
        shapes, colours = list(scenes.SHAPES)[:kinds], list(scenes.COLOURS)[:kinds]
        drawn = [
            scenes.Scene(ground, (scenes.Object(kind, colour, size="grand", x=x, y=y),))
            for kind, colour, ground, x, y in itertools.product(shapes, colours, GROUNDS, places, places)
        ]
        order = np.random.default_rng(0).permutation(len(drawn))
        self.scenes = [drawn[i] for i in order]
        captions = [scenes.describe(scene.objects[0]) for scene in self.scenes]
        self.tokenizer = Tokenizer.train(captions, 128)
        self.length = CONFIG["text_length"]
        self.text = pad([self.tokenizer.encode(c, self.length).ids for c in captions], self.length)
        pictures = np.stack([scenes.render(scene) for scene in tqdm(self.scenes, desc="le monde")])
        with torch.no_grad():
            # Renumérotés de 0 à K − 1 : ce monde n'emploie qu'une part du dictionnaire.
            self.codes, self.image = recipes.encode(eye, pictures).unique(return_inverse=True)
        self.eye = eye

    def batch(self, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """n couples (texte, jetons d'image) permis à l'entraînement."""
        rows = torch.from_numpy(rng.integers(TESTED, len(self.text), n))
        return self.text[rows], self.image[rows]

    def measure(self, model: DALLEMini) -> dict[str, float]:
        """Perte de test (nats par jeton), Δ (nats par image) et son erreur type, sur les couples réservés."""
        text, image = self.text[:TESTED], self.image[:TESTED]
        # Le voisin ne dit pas la même chose : sa légende est la première, plus loin, qui diffère.
        other = [
            next(j % TESTED for j in range(i + 1, i + TESTED) if (text[j % TESTED] != text[i]).any())
            for i in range(TESTED)
        ]
        with torch.no_grad():
            right, wrong = model.nats(text, image), model.nats(text[other], image)
        gap = wrong - right
        return {
            "test": float(right.mean()) / image[0].numel(),
            "delta": float(gap.mean()),
            "erreur": float(gap.std()) / TESTED**0.5,
        }

    def listened(self, model: DALLEMini) -> dict[str, int]:
        """Ce que l'oracle lit de `DRAWN` dessins (top-p 0,8) : combien ont la couleur demandée, la forme, les deux."""
        model.eval()
        dice = [torch.Generator().manual_seed(i) for i in range(DRAWN)]
        tokens = sample(model, self.text[:DRAWN], dice, length=model.config.image_length, top_p=0.8)
        pictures = recipes.decode(self.eye, self.codes[tokens].view(DRAWN, *model.config.grid))
        told = {"couleur": 0, "forme": 0, "justes": 0}
        for reading, scene in zip(oracle.read(list(pictures)), self.scenes, strict=False):
            wish = scene.objects[0]
            told["couleur"] += any(o.colour == wish.colour for o in reading.objects)
            told["forme"] += any(o.kind == wish.kind for o in reading.objects)
            told["justes"] += any((o.kind, o.colour) == (wish.kind, wish.colour) for o in reading.objects)
        return told


# --- les fautes -----------------------------------------------------------------------------------


class Unmasked(DALLEMini):
    """Le remplissage se lit comme un mot."""

    def _mask(self, text: Tensor) -> Tensor:
        return torch.ones_like(super()._mask(text))


class Unshifted(DALLEMini):
    """À l'entraînement, la case i lit le jeton i, celui qu'elle doit prédire ; la première, le départ."""

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return super().forward(text, image.flatten(1).roll(-1, 1))


class Biased(DALLEMini):
    """Un terme tiré au hasard, uniforme dans [0 ; 1[, s'ajoute aux logits et n'apprend pas."""

    def __init__(self, config: object) -> None:
        super().__init__(config)
        bias = torch.rand(config.image_vocabulary)
        self.head.register_forward_hook(lambda _, inputs, logits: logits + bias)


def fresh(world: World, seed: int, cls: type[DALLEMini] = DALLEMini) -> DALLEMini:
    """Un modèle neuf."""
    sizes = {"text_vocabulary": len(world.tokenizer), "image_vocabulary": len(world.codes)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(cls.Config(**CONFIG, **sizes, grid=tuple(world.image.shape[1:])))


def loud(model: DALLEMini) -> DALLEMini:
    """Jetons d'écart-type 32, positions d'écart-type 1 : après la norme, une position pèse un trente-deuxième."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.image_embedding.weight.normal_(std=32)
        model.image_position.weight.normal_()
    return model


READING = ("text_embedding", "text_position", "text_norm", "encoder", "encoder_norm")


def instructed(world: World, seed: int, teacher: DALLEMini, *, drawn: bool, frozen: bool) -> DALLEMini:
    """Un décodeur neuf derrière l'encodeur d'un modèle instruit.

    Args:
        drawn: les plongements de mots et de positions de l'encodeur sont remplacés par des tables au hasard.
        frozen: l'encodeur n'apprend plus.
    """
    model = fresh(world, seed + 100)
    for name in READING:
        getattr(model, name).load_state_dict(getattr(teacher, name).state_dict())
    if drawn:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.text_embedding.weight.normal_()
            model.text_position.weight.normal_()
    if frozen:
        for name in READING:
            getattr(model, name).requires_grad_(False)
    return model


# --- les mesures ----------------------------------------------------------------------------------


def follow(world: World, model: DALLEMini, seed: int, label: str, **settings: float) -> list[dict]:
    """Entraîne un modèle ; une mesure tous les `EVERY` pas, et une avant le premier."""
    config = TrainingConfig(
        **TRAINING | settings, steps=STEPS, log_every=EVERY, evaluate_every=EVERY, seed=seed
    )
    text, image = world.batch(np.random.default_rng(seed), 128)
    with torch.no_grad():
        before = float(model.loss(text, image)["loss"])
    curve = [{"pas": 0, "perte": before} | world.measure(model)]
    made = train(model, world.batch, config, evaluate=world.measure, label=label)
    for row in made.history:
        curve.append(
            {"pas": row["step"], "perte": row["loss"]} | {k: row[k] for k in ("test", "delta", "erreur")}
        )
    return [{k: round(v, 4) for k, v in mark.items()} for mark in curve]


# Un modèle de chaque sorte ; le premier instruit l'encodeur de ceux dont les plongements sont gardés ou tirés.
CASES: dict[str, Callable[[World, int, DALLEMini | None], DALLEMini]] = {
    "sain": lambda world, seed, _: fresh(world, seed),
    "sans masque": lambda world, seed, _: fresh(world, seed, Unmasked),
    "cibles non décalées": lambda world, seed, _: fresh(world, seed, Unshifted),
    "lot de 10, petits pas": lambda world, seed, _: fresh(world, seed),
    "positions noyées": lambda world, seed, _: loud(fresh(world, seed)),
    "plongements tirés, gelés": lambda *args: instructed(*args, drawn=True, frozen=True),
    "plongements gardés, gelés": lambda *args: instructed(*args, drawn=False, frozen=True),
    "plongements tirés, appris": lambda *args: instructed(*args, drawn=True, frozen=False),
    "biais au hasard": lambda world, seed, _: fresh(world, seed, Biased),
}
SETTINGS = {"lot de 10, petits pas": THEIRS}


def examine(world: World, seed: int, name: str, teacher: DALLEMini | None) -> tuple[dict, DALLEMini]:
    """Un cas : sa courbe et ses dessins ; pour les deux premiers, aussi quand le tirage s'y prend autrement."""
    began = time.monotonic()
    model = CASES[name](world, seed, teacher)
    curve = follow(world, model, seed, name, **SETTINGS.get(name, {}))
    report = {"courbe": curve, "dessins": world.listened(model)}
    if name in ("sain", "sans masque"):
        learned, model.__class__ = type(model), DALLEMini if isinstance(model, Unmasked) else Unmasked
        report["desaccord"] = world.measure(model) | {"dessins": world.listened(model)}
        model.__class__ = learned
    return report | {"secondes": round(time.monotonic() - began, 1)}, model


def main() -> int:
    """Entraîne chaque cas, graine après graine, et range ce qui est fait."""
    eye, _ = load_model(EYE)
    world = World(eye)
    report = {
        "oeil": hashlib.sha256((WEIGHTS / f"{EYE}.safetensors").read_bytes()).hexdigest(),
        "modele": CONFIG,
        "entrainement": TRAINING | {"steps": STEPS},
        "petits_pas": THEIRS,
        "scenes": len(world.scenes),
        "codes": len(world.codes),
        "testees": TESTED,
        "dessines": DRAWN,
        "graines": {},
    }
    for seed in SEEDS:
        known, teacher = report["graines"].setdefault(str(seed), {}), None
        for name in tqdm(CASES, desc=f"graine {seed}"):
            known[name], model = examine(world, seed, name, teacher)
            teacher = teacher or model
            tqdm.write(f"{name} : {known[name]['dessins']}, {known[name]['courbe'][-1]}")
            with atomic_write(RESULT, "w") as file:
                json.dump(report, file, ensure_ascii=False, indent=1)
                file.write("\n")
    return 0


if __name__ == "__main__":
    launch(main)
