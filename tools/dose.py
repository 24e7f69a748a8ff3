"""Dose et réponse : `python -m tools.dose` (une bonne heure d'un cœur libre ; s'interrompt et se reprend).

Un modèle comprend-il mal l'espace parce qu'il ne le peut pas, ou parce que ses légendes ne le disent presque jamais ?
Dans le petit monde de `tools.dose_monde`, un même modèle, qui sait déjà dessiner les formes qu'on lui nomme, continue
d'apprendre avec 0 à 100 % de légendes qui disent la relation ou, pour témoin, la couleur de la première forme. À
graine égale, tous partent du même socle et voient les mêmes scènes ; ce qui est dit à 1 % l'est aussi à 5 %. D'autres
bras changent une chose : images retournées, mots mélangés, légendes permutées, positions, architecture ; ou
apprennent aussi, face à chaque image, à préférer sa légende à la légende contraire.

`minidalle/results/dose.json` garde les comptes, bras par bras, dès qu'un bras est fini.
"""

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minidalle.checkpoints import WEIGHTS, load_model
from minidalle.errors import MinidalleError
from minidalle.evaluation.arms import BLIND, FLIPPED, OPPOSED, SHUFFLED
from minidalle.files import atomic_write
from minidalle.models.dalle import DALLE
from minidalle.models.dalle_mini import DALLEMini
from minidalle.training import Batches, TrainingConfig, train
from tools.command import launch
from tools.dose_monde import VALUES, World
from tools.dose_ordre import FullWorld

ROOT = Path(__file__).parents[1]
RESULT, RUNS = ROOT / "minidalle" / "results" / "dose.json", ROOT / "runs" / "dose"
EYE = "vqvae"
TRAINING = {"batch_size": 32, "learning_rate": 5e-3, "warmup": 30, "precision": "bfloat16"}
WIDTH = 64
BASES = {  # le modèle, et ce qu'on en change
    "référence": (DALLE, {"width": WIDTH, "layers": 3, "positions": "2d"}),
    "positions 1d": (DALLE, {"width": WIDTH, "layers": 3, "positions": "1d"}),
    "encodeur et décodeur": (
        DALLEMini,
        {"width": WIDTH, "layers": 1, "decoder_layers": 2, "positions": "2d"},
    ),
}
OTHERS = tuple(BASES)[1:]
DOSES = (0.0005, 0.01, 0.05, 0.25, 1.0)
MIDDLE = 0.25  # dose où la relation s'apprend sans être sue
DILUTED = 5
# Choisi sur une graine à part, la 9, contre 0,01 et 0,25 : le plus de bits à la fin.
CONTRAST = 0.05


@dataclass(frozen=True)
class Budget:
    """Ce que dure une campagne.

    Attributes:
        socle, steps: pas d'un socle, puis de chaque bras.
        marks: mesures en chemin.
        sketched, drawn: dessins à chaque mesure, puis à la fin, par sorte de demande.
        scored: scènes réservées sur quoi l'on mesure Δ.
        seeds: graines.
        order: pas des mesures de l'ordre d'apprentissage.
        only: nombre de scènes du monde ; None pour toutes.
    """

    socle: int = 1500
    steps: int = 780
    marks: int = 6
    sketched: int = 80
    drawn: int = 240
    scored: int = 192
    seeds: tuple[int, ...] = (0, 1, 2)
    order: tuple[int, ...] = (50, 100, 150, 200, 300, 400, 550, 750, 1000, 1300, 1700, 2200, 2800)
    only: int | None = None


QUICK = Budget(
    socle=20, steps=12, marks=2, sketched=8, drawn=16, scored=16, seeds=(0,), order=(4, 8), only=600
)


@dataclass(frozen=True)
class Arm:
    """Un bras : ce que disent ses légendes, à quelle dose, et ce qu'il a de particulier.

    Attributes:
        subject: « relation » ou « couleur ».
        dose: part des légendes qui le disent.
        base: clé de `BASES`.
        cause: `FLIPPED`, `SHUFFLED`, `BLIND`, `OPPOSED` ou rien.
        times: combien de fois le budget de pas.
    """

    subject: str
    dose: float
    seed: int
    base: str = "référence"
    cause: str = ""
    times: int = 1

    @property
    def name(self) -> str:
        longer = f"{self.times} fois plus de pas" if self.times > 1 else ""
        parts = (self.subject, f"{self.dose:g}", self.base, self.cause, longer, f"graine {self.seed}")
        return ", ".join(filter(None, parts))


def plan(seeds: tuple[int, ...]) -> Iterator[Arm | int]:
    """Les bras, du plus au moins important ; un nombre est la graine d'un suivi de l'ordre d'apprentissage."""
    for seed in seeds:
        yield Arm("relation", 0.0, seed)
        yield from (Arm(subject, dose, seed) for dose in DOSES[::-1] for subject in VALUES)
    full, middle, colour = (
        [Arm(subject, share, seed) for seed in seeds]
        for subject, share in (("relation", 1.0), ("relation", MIDDLE), ("couleur", 1.0))
    )
    for cause in (FLIPPED, SHUFFLED):
        yield from (replace(arm, cause=cause) for arm in full)
    for seed, arm in zip(seeds, middle, strict=True):
        yield from (replace(arm, base=base) for base in OTHERS)
        yield seed
    for cause in (SHUFFLED, FLIPPED):
        yield from (replace(arm, cause=cause) for arm in colour)
    yield from (replace(arm, cause=BLIND) for arm in full)
    yield from (replace(arm, cause=FLIPPED) for arm in middle)
    yield from (replace(arm, base=base) for base in OTHERS for arm in full)
    yield from (Arm("couleur", MIDDLE, seed, base) for base in OTHERS for seed in seeds)
    # Le remède, et ce que donnerait son prix dépensé en pas ordinaires.
    for change in ({"cause": OPPOSED}, {"times": 2}):
        yield from (replace(a, **change) for a in middle)
        yield from (replace(a, base="encodeur et décodeur", **change) for a in middle)
    # Autant de légendes qui parlent, mais plus diluées : est-ce la part qui compte, ou le nombre ?
    yield from (Arm(s, MIDDLE / DILUTED, seed, times=DILUTED) for s in VALUES for seed in seeds)


# --- un bras --------------------------------------------------------------------------------------


def batches(world: World, arm: Arm, said: list[int]) -> Batches:
    """Lots (texte, jetons d'image) d'un bras ; `said` reçoit le nombre de légendes de chacun qui disent le sujet.

    Un bras `OPPOSED` reçoit aussi la légende contraire, ou la même si elle ne dit rien : (texte, image, contraire).
    """

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, ...]:
        # Tout se tire, même ce qui ne sert pas : à graine égale, les bras voient les mêmes scènes.
        rows, first = rng.integers(world.tested, len(world.scenes), n), rng.integers(0, 2, n)
        told, turned = rng.random(n) < arm.dose, rng.random(n) < 0.5
        keys = rng.random((n, world.length))
        text, (a, value, b) = world.tell(arm.subject, rows, first, told)
        image = world.image[rows]
        said.append(int(told.sum()))
        if arm.cause == FLIPPED:
            image = torch.where(torch.from_numpy(turned)[:, None, None], world.mirrored[rows], image)
        if arm.cause == SHUFFLED:
            order = np.where(text.numpy() == 0, 1.0, keys).argsort(1)  # le remplissage reste à la fin
            text = text.gather(1, torch.from_numpy(order))
        if arm.cause == BLIND:
            text = text.roll(1, 0)
        if arm.cause == OPPOSED:
            return text, image, world.captions[arm.subject][a, np.where(told, value ^ 1, value), b]
        return text, image

    return batch


class Contrasted(nn.Module):
    """Un modèle qui apprend aussi à préférer, pour chaque image, sa légende à la légende contraire.

    À la perte s'ajoute `CONTRAST` fois −ln p(image | légende) / (p(image | légende) + p(image | contraire)) : au plus
    ln 2 pour qui ne fait pas la différence, presque rien pour qui la fait. C'est l'apprentissage contrastif de CLIP,
    où la seule autre légende du lot serait la plus difficile.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, text: Tensor, image: Tensor, opposite: Tensor) -> dict[str, Tensor]:
        losses, told = self.model.loss(text, image), (text != opposite).any(1)
        contrast = torch.zeros(())
        if told.any():
            both = torch.cat([text[told], opposite[told]])
            right, wrong = self.model.nats(both, image[told].repeat(2, 1, 1)).chunk(2)
            contrast = F.softplus(right - wrong).sum() / len(text)
        return losses | {"loss": losses["loss"] + CONTRAST * contrast, "contraste": contrast}


def fresh(world: World | FullWorld, base: str, seed: int) -> nn.Module:
    """Un modèle neuf."""
    cls, sizes = BASES[base]
    sizes = sizes | {"text_vocabulary": len(world.tokenizer), "text_length": world.length}
    sizes |= {"image_vocabulary": len(world.codes), "grid": tuple(world.image.shape[1:])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(cls.Config(**sizes))


def follow(
    model: nn.Module, data: Batches, seed: int, steps: list[int], measure: Callable[[], dict], label: str
) -> list[dict]:
    """Entraîne un modèle ; une mesure avant le premier pas, puis à chacun de `steps`, dont le dernier est la fin."""
    marks, every = [{"pas": 0} | measure()], int(np.gcd.reduce(steps))
    config = TrainingConfig(**TRAINING, steps=steps[-1], seed=seed, evaluate_every=every)
    done = iter(range(every, steps[-1] + 1, every))

    def evaluate(_: nn.Module) -> dict:
        if (step := next(done)) in steps:
            marks.append({"pas": step} | measure())
        return {}

    if not train(model, data, config, evaluate=evaluate, label=label).finished:
        raise KeyboardInterrupt
    return marks


def socle(world: World, base: str, seed: int, budget: Budget, folder: Path) -> nn.Module:
    """Le modèle dont partent les bras : il dessine ce qu'on lui nomme, et n'a lu ni relation ni couleur."""
    model, path = fresh(world, base, seed), folder / f"{base.replace(' ', '-')}-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    data = batches(world, Arm("relation", 0.0, seed), [])
    follow(model, data, 1000 + seed, [budget.socle], dict, f"socle {base}, graine {seed}")
    with atomic_write(path) as file:
        torch.save(model.state_dict(), file)
    return model


def run(world: World, arm: Arm, model: nn.Module, budget: Budget) -> dict:
    """Continue l'apprentissage d'un socle, et le mesure en chemin et à la fin."""
    began, said = time.process_time(), []

    def look(subject: str, scored: int) -> dict:
        return world.measure(model, subject, scored)

    def glance() -> dict:
        drawn = world.draw(model, arm.subject, budget.sketched, kept=False)
        return look(arm.subject, budget.scored) | {"dessins": drawn}

    every = budget.steps * arm.times // budget.marks
    steps = list(range(every, budget.marks * every + 1, every))
    taught = Contrasted(model) if arm.cause == OPPOSED else model
    marks = follow(taught, batches(world, arm, said), arm.seed, steps, glance, arm.name)
    # Sans légende qui en parle, ou sans légende à elle, un modèle donne le hasard des deux sujets.
    subjects = VALUES if not arm.dose or arm.cause == BLIND else (arm.subject,)
    end = {
        subject: look(subject, world.tested)
        | {"lues": world.draw(model, subject, budget.drawn, kept=False)}
        | {"reservees": world.draw(model, subject, budget.drawn, kept=True)}
        for subject in subjects
    }
    report = {"dites": sum(said), "vues": steps[-1] * TRAINING["batch_size"], "marques": marks, "fin": end}
    return asdict(arm) | report | {"secondes": round(time.process_time() - began, 1)}


def order(world: FullWorld, seed: int, budget: Budget) -> dict:
    """Un modèle neuf à qui l'on dit tout, mesuré de loin en loin."""
    began, model = time.process_time(), fresh(world, "référence", seed)
    steps = list(budget.order)
    marks = follow(
        model, world.batches(), seed, steps, lambda: world.measure(model, budget.sketched), f"ordre, {seed}"
    )
    return {"marques": marks, "secondes": round(time.process_time() - began, 1)}


# --- la campagne ----------------------------------------------------------------------------------


def rounded(value: object) -> object:
    """Quatre décimales suffisent."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def store(report: dict, path: Path) -> None:
    """Range tout, un bras par ligne."""

    def lines(table: dict, end: str) -> str:
        rows = (f"{dump(key)}: {value}" for key, value in table.items())
        return "{\n" + ",\n".join(rows) + f"\n}}{end}"

    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)

    nested = {key: lines({k: dump(v) for k, v in report[key].items()}, "") for key in ("bras", "ordre")}
    with atomic_write(path, "w") as file:
        file.write(lines({key: dump(value) for key, value in report.items()} | nested, "\n"))


def settings(world: World, budget: Budget) -> dict:
    """Ce qui doit être le même pour continuer une campagne."""
    told = {
        "oeil": hashlib.sha256((WEIGHTS / f"{EYE}.safetensors").read_bytes()).hexdigest(),
        "entrainement": TRAINING,
        "modeles": {name: {"classe": cls.__name__} | sizes for name, (cls, sizes) in BASES.items()},
        "budget": {key: value for key, value in asdict(budget).items() if key != "seeds"},
        "monde": {"scenes": len(world.scenes), "reservees": world.tested, "codes": len(world.codes)},
    }
    return json.loads(json.dumps(told))


def campaign(
    world: World, tasks: list[Arm | int], budget: Budget, out: Path, folder: Path, minutes: float
) -> dict:
    """Mène ce qui n'est pas déjà rangé dans `out`, tant qu'il reste du temps.

    Args:
        tasks: voir `plan`.
        folder: dossier des socles.
        minutes: durée passée laquelle plus rien ne commence.

    Raises:
        MinidalleError: `out` est d'une autre campagne.
    """
    told = settings(world, budget)
    report = json.loads(out.read_text("utf-8")) if out.exists() else told | {"bras": {}, "ordre": {}}
    if {key: report.get(key) for key in told} != told:
        raise MinidalleError(f"« {out} » vient d'une autre campagne : l'ôter, ou écrire ailleurs par --out.")
    began, known, full = time.monotonic(), {}, None
    done = {*report["bras"], *report["ordre"]}
    for task in tqdm([t for t in tasks if getattr(t, "name", str(t)) not in done], desc="campagne"):
        if time.monotonic() - began > 60 * minutes:
            tqdm.write(f"Plus de temps : relancer la même commande pour la suite, à partir de « {task} ».")
            break
        if isinstance(task, Arm):
            key = (task.base, task.seed)
            if key not in known:
                known[key] = socle(world, *key, budget, folder)
            report["bras"][task.name] = rounded(run(world, task, copy.deepcopy(known[key]), budget))
            tqdm.write(f"{task.name} : {summary(report['bras'][task.name])}")
        else:
            full = full or FullWorld(world, budget.scored)
            report["ordre"][str(task)] = rounded(order(full, task, budget))
        store(report, out)
    return report


def summary(row: dict) -> str:
    """Ce qu'un bras a appris, en une ligne."""
    end = row["fin"][row["subject"]]
    both, right = (
        sum(sum(line[:5]) for line in end["lues"]),
        sum(line[i] for i, line in enumerate(end["lues"])),
    )
    drawn = sum(map(sum, end["lues"]))
    return f"{right} justes sur {both} dessins des deux formes ({drawn} demandes) ; {end['bits']} bit(s)"


def main() -> int:
    """Lit la commande, et mène la campagne."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="un essai d'une minute, qui ne mesure rien de bon"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="graines (0 1 2)")
    parser.add_argument("--minutes", type=float, default=1e9, help="ne plus commencer de bras passé ce temps")
    parser.add_argument("--out", type=Path, help="fichier des résultats (minidalle/results/dose.json)")
    options = parser.parse_args()
    budget = QUICK if options.quick else Budget()
    out = options.out or (RUNS / "essai.json" if options.quick else RESULT)
    folder = RUNS / ("essai" if options.quick else "socles")
    eye, _ = load_model(EYE)
    if options.seeds:
        budget = replace(budget, seeds=tuple(options.seeds))
    world = World(eye, tested=64 if options.quick else 512, only=budget.only)
    campaign(world, list(plan(budget.seeds)), budget, out, folder, options.minutes)
    return 0


if __name__ == "__main__":
    launch(main)
