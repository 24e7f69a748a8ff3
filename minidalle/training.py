"""La boucle d'entraînement, la même pour tous les modèles du livre.

Elle demande au modèle `loss(*lot)` et à une fonction de tirer les lots ; elle ne sait rien d'autre.
Un entraînement interrompu, même brutalement, reprend bit pour bit : poids, optimiseur, générateurs
aléatoires et ordre des données sont dans le point de reprise. Sous un lanceur (`accelerate launch`, `torchrun`),
les processus se partagent chaque lot : voir `minidalle.processes`.
"""

import contextlib
import csv
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidalle.errors import MinidalleError
from minidalle.files import atomic_write
from minidalle.processes import join

Batches = Callable[[np.random.Generator, int], tuple[Tensor, ...]]
Metrics = dict[str, float]
_CHECKPOINT, _METRICS = "resume.pt", "metrics.csv"


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Réglages d'un entraînement.

    Attributes:
        steps: nombre de pas d'optimisation. Seul un budget en pas est reproductible.
        minutes: s'il est donné, budget en temps, qui remplace `steps`.
        batch_size: exemples par pas, tous processus réunis.
        learning_rate: taux au sommet, après la montée en régime.
        warmup: pas de montée linéaire, avant une descente en cosinus.
        floor: taux final, en fraction du sommet.
        weight_decay: décroissance des poids, pour les matrices seules.
        clip: norme maximale du gradient ; chaque joueur d'un modèle qui en a plusieurs a la sienne.
        betas: inerties d'AdamW.
        ema: inertie de la moyenne mobile des poids, rendue à la fin ; 0 pour s'en passer.
        precision: « float32 » ou « bfloat16 » (calculs mixtes, plus rapides si le processeur les connaît).
        optimizer: « adamw », ou « muon » : les matrices des blocs avancent d'un pas orthogonal (Jordan, 2024),
            le reste suit AdamW.
        compiled: la perte est compilée par `torch.compile`, ce qui demande un compilateur C++ et une minute.
        seed: graine de tout ce qui est tiré.
        log_every, save_every, evaluate_every: périodes, en pas.
    """

    steps: int = 1000
    minutes: float | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: int = 100
    floor: float = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    ema: float = 0.0
    precision: str = "float32"
    optimizer: str = "adamw"
    compiled: bool = False
    seed: int = 0
    log_every: int = 25
    save_every: int = 500
    evaluate_every: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        periods = (self.log_every, self.save_every, self.evaluate_every)
        if min(self.steps, self.batch_size, *periods) < 1 or (self.minutes or 1) <= 0:
            raise MinidalleError("Pas, durée, taille de lot et périodes doivent être positifs.")
        inertias = (self.ema, *self.betas)
        if not (self.learning_rate > 0 and self.clip > 0 and self.warmup >= 0):
            raise MinidalleError("Taux et écrêtage doivent être positifs.")
        if len(inertias) != 3 or not all(0 <= inertia < 1 for inertia in inertias):
            raise MinidalleError("Les inerties doivent être entre 0 et 1, et `betas` en compter deux.")
        if self.precision not in ("float32", "bfloat16"):
            raise MinidalleError(f"Précision « {self.precision} » inconnue : float32 ou bfloat16.")
        if self.optimizer not in ("adamw", "muon"):
            raise MinidalleError(f"Optimiseur « {self.optimizer} » inconnu : adamw ou muon.")

    def rate(self, step: int, progress: float) -> float:
        """Taux d'apprentissage au pas `step` (à partir de 0), quand la part `progress` du budget est faite."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        fall = self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.learning_rate * rise * fall


@dataclass
class Result:
    """Ce que rend `train`.

    Attributes:
        history: une ligne par mesure : « step », « seconds », « loss »… et, aux évaluations, les leurs.
        steps: pas accomplis en tout.
        finished: faux si l'entraînement a été interrompu.
    """

    history: list[Metrics] = field(default_factory=list)
    steps: int = 0
    finished: bool = False

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Pas et valeurs d'une mesure, aux seules lignes où elle existe."""
        rows = [row for row in self.history if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    evaluate: Callable[[nn.Module], Metrics] | None = None,
    label: str = "entraînement",
) -> Result:
    """Entraîne `model` sur place.

    Args:
        model: module dont `loss(*lot)` rend un dictionnaire de scalaires contenant « loss ». S'il fait jouer
            des adversaires, sa méthode `players()` rend les paramètres de chacun : ni l'écrêtage ni la norme
            de l'un ne doivent dépendre de l'autre.
        batches: `batches(rng, n)` tire un lot de n exemples ; tout hasard doit venir de `rng`.
        config: réglages.
        out: dossier du point de reprise et des mesures (`metrics.csv`) ; None pour ne rien écrire.
        resume: continuer depuis le point de reprise de `out`.
        evaluate: mesures sur des données de côté, de temps en temps et à la fin.
        label: nom affiché devant la barre de progression.

    Returns:
        L'historique. À la fin, le modèle est en mode évaluation, avec les poids moyens si `ema` > 0.
        Ctrl-C laisse finir le pas commencé, range l'état dans `out`, et le résultat n'est pas `finished`.
        De plusieurs processus, le premier seul a les évaluations.

    Raises:
        MinidalleError: perte infinie, point de reprise absent ou d'un autre entraînement, dossier occupé, pas de
            compilateur, lot qui ne se partage pas entre les processus.
    """
    run = _Run(model, config, Path(out) if out is not None else None)
    if resume:
        run.load()
    elif run.out and (run.out / _CHECKPOINT).exists():
        raise MinidalleError(
            f"« {run.out} » contient déjà un entraînement : le continuer avec --resume, ou changer de dossier."
        )
    # Le hasard de la boucle est le sien : celui de l'appelant ressort intact.
    with torch.random.fork_rng(devices=[]), contextlib.closing(_Writer(run)) as writer:
        torch.set_rng_state(run.torch_rng)
        with _progress(run, label) as bar, _postponed_interrupt() as interrupted:
            last, halted = run.done(), False
            while not last and not halted:
                run.step(batches)
                bar.advance()
                # Une seule lecture : avec un budget en minutes, la réponse change d'un instant à l'autre.
                last = run.done()
                evaluated = evaluate and (run.result.steps % config.evaluate_every == 0 or last)
                if evaluated or run.result.steps % config.log_every == 0 or last:
                    row = run.measure()
                    if evaluated and run.team.first:
                        row |= run.evaluate(evaluate)
                    writer.add(row)
                    bar.show(row)
                halted = run.team.latest(bool(interrupted))
                if run.result.steps % config.save_every == 0 or last or halted:
                    run.save()
            run.result.finished = last
            if not last and run.team.first:
                where = f" ; reprendre avec --resume depuis « {run.out} »" if run.out else ""
                bar.write(f"Interrompu au pas {run.result.steps}{where}.")
    run.use_average()
    run.team.leave(model.eval())
    return run.result


@contextlib.contextmanager
def _postponed_interrupt() -> Iterator[list[int]]:
    """Liste qui se remplit au premier Ctrl-C, pour qu'un pas commencé se termine ; le second arrête net."""
    received: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    # Seul le fil principal reçoit les signaux ; et qui a demandé d'ignorer Ctrl-C (nohup) doit être obéi.
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield received
        return

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    """L'état d'un entraînement : tout ce qu'il faut pour le continuer à l'identique."""

    def __init__(self, model: nn.Module, config: TrainingConfig, out: Path | None) -> None:
        self.model, self.config, self.out, self.team = model.train(), config, out, join()
        self.team.enter(model)
        self.optimizers = _optimizers(model, config)
        self.loss = _compile(model) if config.compiled else lambda *batch: model.loss(*batch)
        self.players = model.players() if hasattr(model, "players") else [list(model.parameters())]
        self.average = {k: t.clone() for k, t in model.state_dict().items()} if config.ema else {}
        self.rng = np.random.default_rng(config.seed)
        self.torch_rng = torch.Generator().manual_seed(config.seed).get_state()
        self.result = Result()
        self.before = 0.0  # secondes des lancements précédents
        self.began = time.monotonic()
        self.pending: list[dict[str, Tensor]] = []  # mesures des pas pas encore notés

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def progress(self) -> float:
        """Part du budget déjà dépensée, de 0 à 1."""
        if self.config.minutes:
            return self.team.latest(self.seconds / (60 * self.config.minutes))
        return self.result.steps / self.config.steps

    def done(self) -> bool:
        return self.progress() >= 1

    def step(self, batches: Batches) -> None:
        """Un pas d'optimisation."""
        config, model = self.config, self.model
        rate = config.rate(self.result.steps, self.progress())
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        batch = self.team.share(batches(self.rng, config.batch_size))
        self.team.reseed(config.seed, self.result.steps)
        with torch.autocast(self.team.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            losses = self.loss(*batch)
        noted = self.team.mean(losses)
        if not torch.isfinite(noted["loss"]):
            raise MinidalleError(
                f"La perte n'est plus un nombre au pas {self.result.steps + 1} : baisser le taux d'apprentissage."
            )
        model.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self.team.average_gradients(model)
        for parameters in self.players:
            nn.utils.clip_grad_norm_(parameters, config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.result.steps += 1
        if self.average:
            # Au début, une inertie plus faible oublie vite l'initialisation.
            weight = 1 - min(config.ema, (1 + self.result.steps) / (10 + self.result.steps))
            for key, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    self.average[key].lerp_(tensor, weight)
                else:
                    self.average[key].copy_(tensor)
        self.pending.append({name: value.detach().clone() for name, value in noted.items()})

    def measure(self) -> Metrics:
        """Moyennes depuis la mesure précédente."""
        row = {"step": self.result.steps, "seconds": round(self.seconds, 1)}
        for name in self.pending[0]:
            row[name] = float(torch.stack([losses[name].float().cpu() for losses in self.pending]).mean())
        self.pending.clear()
        return row

    def evaluate(self, evaluate: Callable[[nn.Module], Metrics]) -> Metrics:
        """Mesures sur les poids moyens, sans déranger le hasard ni les poids de l'entraînement."""
        weights = {k: t.clone() for k, t in self.model.state_dict().items()} if self.average else {}
        self.use_average()
        self.model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return evaluate(self.model.cpu())  # où sont les données des mesures
        finally:
            self.model.to(self.team.device)
            if weights:
                self.model.load_state_dict(weights)
            self.model.train()

    def use_average(self) -> None:
        if self.average:
            self.model.load_state_dict(self.average)

    def save(self) -> None:
        if self.out is None or not self.team.first:
            return
        state = {
            "config": json.dumps(asdict(self.config)),
            "result": json.dumps(asdict(self.result)),
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "pending": self.pending,
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
        }
        with atomic_write(self.out / _CHECKPOINT) as file:
            torch.save(state, file)

    def load(self) -> None:
        path = (self.out or Path()) / _CHECKPOINT
        if self.out is None or not path.exists():
            raise MinidalleError(f"Rien à reprendre dans « {self.out} » : lancer d'abord sans --resume.")
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            self._check_same(json.loads(state["config"]))
            self.model.load_state_dict(state["model"])
            for optimizer, known in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(known)
            self.rng.bit_generator.state = json.loads(state["numpy_rng"])
            self.result = Result(**json.loads(state["result"]) | {"finished": False})
            self.average = {k: t.to(self.team.device) for k, t in state["average"].items()}
            self.pending = state["pending"]
            self.torch_rng, self.before = state["torch_rng"], state["seconds"]
        except MinidalleError:
            raise
        except Exception as error:
            raise MinidalleError(
                f"Le point de reprise « {path} » est illisible ou d'un autre modèle : recommencer ailleurs."
            ) from error
        self.began = time.monotonic()

    def _check_same(self, saved: dict) -> None:
        # Changer le budget ou les périodes est permis ; changer le reste serait un autre entraînement.
        free = {"steps", "minutes", "compiled", "log_every", "save_every", "evaluate_every"}
        for name, value in asdict(self.config).items():
            known = saved.get(name)
            known = tuple(known) if isinstance(known, list) else known  # JSON n'a pas de n-uplets
            if name not in free and known != value:
                raise MinidalleError(
                    f"Reprise impossible : « {name} » valait {known}, pas {value} ; "
                    f"redonner la même valeur ou changer de dossier."
                )


def _compile(model: nn.Module) -> Callable[..., dict[str, Tensor]]:
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        raise MinidalleError(
            "Aucun compilateur C++ : en installer un (sudo apt-get install g++), ou ne pas compiler (--no-compiled)."
        )
    return torch.compile(model.loss)


def _optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Un AdamW, et avec « muon » un second optimiseur pour les matrices des blocs."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    hidden: set[int] = set()
    if config.optimizer == "muon":
        blocks = (layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack)
        hidden = {id(p) for layer in blocks for p in layer.parameters() if p.ndim == 2}
    matrices = [p for p in parameters if p.ndim > 1 and id(p) not in hidden]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)]
    if hidden:
        orthogonal = [p for p in parameters if id(p) in hidden]
        options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        # Des pas de même taille que ceux d'AdamW : un seul taux sert aux deux.
        optimizers.append(torch.optim.Muon(orthogonal, adjust_lr_fn="match_rms_adamw", **options))
    return optimizers


class _Writer:
    """Note les mesures dans l'historique, dans `metrics.csv` et, s'il est installé, dans TensorBoard."""

    def __init__(self, run: _Run) -> None:
        self.run, self.board = run, None
        self.out = run.out if run.team.first else None
        if self.out is None:
            return
        self._rewrite()
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.out, purge_step=run.result.steps)

    def add(self, row: Metrics) -> None:
        self.run.result.history.append(row)
        if self.out is not None:
            self._rewrite()
        if self.board:
            for name in row.keys() - {"step"}:
                self.board.add_scalar(name, row[name], row["step"])

    def _rewrite(self) -> None:
        # Réécrit en entier (quelques milliers de lignes au plus) : après une coupure, le fichier ne garde
        # que les mesures du point de reprise.
        rows = self.run.result.history
        names = list(dict.fromkeys(name for row in rows for name in row)) or ["step"]
        with atomic_write(self.out / _METRICS, "w") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def close(self) -> None:
        if self.board:
            self.board.close()


class _progress(contextlib.AbstractContextManager):
    """Barre de progression : perte, exemples par seconde, temps restant."""

    def __init__(self, run: _Run, label: str) -> None:
        self.run = run
        # À dire seulement s'il le faut : l'option l'emporterait sur TQDM_DISABLE.
        hidden = {} if run.team.first else {"disable": True}
        if run.config.minutes:
            unit = {"total": round(60 * run.config.minutes), "unit": "s", "initial": int(run.before)} | hidden
            form = "{desc} {percentage:3.0f} %|{bar}| {elapsed}, encore {remaining}{postfix}"
            self.bar = tqdm(desc=label, bar_format=form, **unit)
        else:
            size = run.config.batch_size
            unit = {"total": run.config.steps * size, "initial": run.result.steps * size} | hidden
            form = "{desc} {percentage:3.0f} %|{bar}| {elapsed}, encore {remaining}, {rate_fmt}{postfix}"
            self.bar = tqdm(desc=label, unit="ex", unit_scale=True, bar_format=form, **unit)

    def advance(self) -> None:
        if self.run.config.minutes:
            self.bar.update(min(self.run.seconds, self.bar.total) - self.bar.n)
        else:
            self.bar.update(self.run.config.batch_size)

    def show(self, row: Metrics) -> None:
        shown = {"perte": f"{row['loss']:.4f}"}
        if self.run.config.minutes:
            rate = self.run.result.steps * self.run.config.batch_size / max(self.run.seconds, 1e-9)
            shown["ex/s"] = f"{rate:.0f}"
        self.bar.set_postfix(shown, refresh=False)

    def write(self, text: str) -> None:
        self.bar.write(text)

    def __exit__(self, *error: object) -> None:
        self.bar.close()
