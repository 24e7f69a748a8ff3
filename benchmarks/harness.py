"""Le banc d'essai commun : notre code et celui d'un pair, mesurés dans le même processus.

Un banc est un fichier `benchmarks/NOM.py` qui déclare des lignes :

    bench = Bench(__doc__)

    @bench.row("quantiser")
    def quantiser(run: Run) -> None:
        peer = run.peer("vector_quantize_pytorch")
        run.compare("quantiser", ours=…, peer=…, peer_name="VectorQuantize", unit="vecteurs/s", work=4096)

    if __name__ == "__main__":
        raise SystemExit(bench.main())

Chaque comparaison alterne les deux (nous, pair, pair, nous, …) après une mise en route et garde les
médianes : une machine qui ralentit ralentit les deux. Un rapport au-dessus de 1 dit que notre code est
devant, que l'unité soit un débit ou un temps.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import minidalle  # noqa: F401  (règle l'attente d'OpenMP avant que torch ne se charge)

SCALES = {"s": 1.0, "ms": 1e3, "µs": 1e6}  # unités de temps, en part de seconde


class MissingPeer(Exception):
    """Le pair n'est pas installé : la ligne est sautée, avec cette phrase."""


@dataclass(frozen=True)
class Sample:
    """Les mesures d'un des deux : médiane et écart interquartile, dans l'unité de la ligne."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        if len(self.values) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return third - first


@dataclass(frozen=True)
class Comparison:
    name: str
    ours: Sample
    peer: Sample
    peer_name: str
    unit: str
    threads: int

    @property
    def ratio(self) -> float:
        """Au-dessus de 1, notre code est devant."""
        ours, peer = self.ours.median, self.peer.median
        return ours / peer if higher_is_better(self.unit) else peer / ours

    def json(self) -> str:
        """La ligne de `--json` ; quatre chiffres significatifs disent déjà plus que le bruit."""
        row = {
            "name": self.name,
            "ours": _significant(self.ours.median),
            "peer": _significant(self.peer.median),
            "peer_name": self.peer_name,
            "unit": self.unit,
            "ratio": _significant(self.ratio),
            "threads": self.threads,
        }
        return json.dumps(row, ensure_ascii=False)


def _significant(value: float) -> float:
    return float(f"{value:.4g}")


def higher_is_better(unit: str) -> bool:
    """Un débit (« …/s ») ou un score (« % ») monte ; un temps ou une mémoire (« Mio ») descend."""
    if unit.endswith("/s") or unit == "%":
        return True
    if unit in SCALES or unit == "Mio":
        return False
    raise ValueError(f"Unité inconnue « {unit} » : un débit « …/s », « % », « Mio » ou {', '.join(SCALES)}.")


@dataclass
class Run:
    """Les réglages d'une exécution, donnés à chaque ligne, et les comparaisons qu'elle produit."""

    quick: bool = False
    memory: bool = False
    threads: int = 1
    clock: Callable[[], float] = time.perf_counter
    results: list[Comparison] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        return 3 if self.quick else 7

    @property
    def shortest(self) -> float:
        """Durée minimale d'une mesure en secondes : l'appel est répété jusque-là."""
        return 0.05 if self.quick else 0.2

    def peer(self, module: str, package: str | None = None) -> ModuleType:
        """Importe un pair.

        Raises:
            MissingPeer: le pair, ou l'un des paquets qu'il demande, n'est pas installé.
        """
        try:
            return importlib.import_module(module)
        except ImportError as error:
            package = package or module.replace("_", "-")
            raise MissingPeer(
                f"{package} manque ({error}) : l'installer avec « pip install -e .[bench] »."
            ) from error

    def compare(
        self,
        name: str,
        *,
        ours: Callable[[], object],
        peer: Callable[[], object],
        peer_name: str,
        unit: str,
        work: float = 1.0,
    ) -> Comparison:
        """Mesure `ours` et `peer`, appelés sans argument, en les alternant.

        Args:
            unit: « …/s » pour un débit, « s », « ms » ou « µs » pour le temps d'un appel.
            work: ce que fait un appel, dans l'unité du débit (par exemple 256 scènes).
        """
        if not (unit.endswith("/s") or unit in SCALES):
            raise ValueError(f"« {unit} » ne se mesure pas au chronomètre : voir Run.record.")
        calls = {"ours": ours, "peer": peer}
        counts = {key: self._warm_up(call) for key, call in calls.items()}
        seconds: dict[str, list[float]] = {key: [] for key in calls}
        for key in self._alternate():
            seconds[key].append(self._time(calls[key], counts[key]))

        def convert(values: list[float]) -> list[float]:
            return [v * SCALES[unit] if unit in SCALES else work / v for v in values]

        result = self.record(name, convert(seconds["ours"]), convert(seconds["peer"]), peer_name, unit)
        if self.memory:
            self._compare_memory(name, calls, peer_name)
        return result

    def record(
        self, name: str, ours: Sequence[float], peer: Sequence[float], peer_name: str, unit: str
    ) -> Comparison:
        """Ajoute des mesures faites ailleurs qu'au chronomètre : un score (« % »), une mémoire (« Mio »)."""
        result = Comparison(name, Sample(tuple(ours)), Sample(tuple(peer)), peer_name, unit, self.threads)
        note(f"  {name}, {self.threads} fil(s) : {text(result.ratio)} fois {peer_name}")
        self.results.append(result)
        return result

    def _alternate(self) -> list[str]:
        """Nous, pair, pair, nous, … : ni l'un ni l'autre ne passe toujours en premier."""
        orders = (["ours", "peer"], ["peer", "ours"])
        return [key for i in range(self.repeats) for key in orders[i % 2]]

    def _warm_up(self, call: Callable[[], object]) -> int:
        """Deux appels perdus ; rend le nombre d'appels qu'une mesure enchaîne."""
        call()
        return max(1, math.ceil(self.shortest / max(self._time(call, 1), 1e-9)))

    def _time(self, call: Callable[[], object], count: int) -> float:
        """Secondes par appel."""
        gc.collect()
        gc.disable()  # un ramasse-miettes au milieu d'une mesure la fausserait
        try:
            start = self.clock()
            for _ in range(count):
                call()
            return (self.clock() - start) / count
        finally:
            gc.enable()

    def _compare_memory(self, name: str, calls: dict[str, Callable[[], object]], peer_name: str) -> None:
        peaks: dict[str, list[float]] = {key: [] for key in calls}
        for key in self._alternate():
            peak = peak_memory(calls[key])
            if peak is None:
                note("  mémoire non mesurée : il y faut Linux et la glibc")
                return
            peaks[key].append(max(peak, 0.1))  # sous le bruit : un rapport resterait fini
        self.record(f"{name}-memory", peaks["ours"], peaks["peer"], peer_name, "Mio")


def peak_memory(call: Callable[[], object]) -> float | None:
    """Mio que `call` ajoute au plus à la mémoire résidente ; None là où le noyau ne le dit pas."""
    try:
        gc.collect()
        # Sans cela, un appel réutiliserait en silence la mémoire que l'autre a rendue à malloc.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        # Remet à zéro le sommet de mémoire du processus : proc_pid_clear_refs(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        call()
        return _resident("VmHWM") - before
    except (OSError, AttributeError, KeyError):
        return None


def _resident(key: str) -> float:
    """Une ligne de /proc/self/status, en Mio."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(dict(line.split(":", 1) for line in lines)[key].split()[0]) / 1024


@dataclass(frozen=True)
class _Row:
    name: str
    function: Callable[[Run], None]
    threads: tuple[int, ...] | None


class Bench:
    """Les lignes d'un banc et sa ligne de commande."""

    def __init__(self, description: str | None) -> None:
        self.description = description
        self.rows: list[_Row] = []

    def row(self, name: str, threads: tuple[int, ...] | None = None) -> Callable:
        """Déclare une ligne ; `threads` fixe les nombres de fils qui ont un sens pour elle."""

        def register(function: Callable[[Run], None]) -> Callable[[Run], None]:
            self.rows.append(_Row(name, function, threads))
            return function

        return register

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Joue les lignes demandées ; 0 même si un pair manque, 2 si la demande est impossible."""
        options = self._parse(argv)
        note(machine())
        results: list[Comparison] = []
        for row in self.rows:
            if options.rows and row.name not in options.rows:
                continue
            for threads in [n for n in options.threads if row.threads is None or n in row.threads]:
                run = Run(options.quick, options.memory, threads)
                try:
                    # La sortie n'est qu'aux résultats, quoi qu'un pair y écrive.
                    with contextlib.redirect_stdout(sys.stderr):
                        set_threads(threads)
                        row.function(run)
                except MissingPeer as missing:
                    note(f"Ligne « {row.name} » sautée : {missing}")
                    break
                results += run.results
                if options.json:
                    for result in run.results:
                        print(result.json(), flush=True)
        if not options.json:
            print(table(results) if results else "Rien n'a été mesuré.")
        return 0

    def _parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        names = [row.name for row in self.rows]
        parser.add_argument(
            "rows", nargs="*", metavar="LIGNE", help=f"parmi {', '.join(names)} ; toutes sans cela"
        )
        parser.add_argument("--quick", action="store_true", help="3 mesures courtes au lieu de 7")
        parser.add_argument(
            "--json", action="store_true", help="une ligne JSON par comparaison, rien d'autre"
        )
        parser.add_argument(
            "--memory", action="store_true", help="comparer aussi la mémoire ajoutée au plus fort"
        )
        parser.add_argument(
            "--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="nombres de fils (1 2)"
        )
        options = parser.parse_args(argv)
        if unknown := sorted(set(options.rows) - set(names)):
            parser.error(f"ligne inconnue : {', '.join(unknown)} ; choisir parmi {', '.join(names)}")
        if min(options.threads) < 1:
            parser.error("--threads demande des nombres d'au moins 1")
        return options


def set_threads(threads: int) -> None:
    """Le même nombre de fils pour les deux : torch n'a qu'un réglage par processus."""
    import torch

    torch.set_num_threads(threads)


def machine() -> str:
    """Où la mesure a lieu, et si quelque chose la trouble."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    line = f"{cores} cœur(s), charge {text(load)}"
    if load > 0.5 * cores:
        line += " : la machine travaille ailleurs, temps bruités, rapports à lire de loin"
    return line


def table(results: Sequence[Comparison]) -> str:
    """Les comparaisons en colonnes ; « ± » est l'écart interquartile."""
    rows = [("comparaison", "fils", "unité", "nous", "pair", "rapport", "qui")]
    for r in results:
        values = [f"{text(s.median)} ± {text(s.spread)}" for s in (r.ours, r.peer)]
        rows.append((r.name, str(r.threads), r.unit, *values, text(r.ratio), r.peer_name))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def text(value: float) -> str:
    """Trois chiffres significatifs, virgule décimale, jamais de puissance de dix."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}".replace(".", ",")


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
