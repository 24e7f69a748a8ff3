"""Chaque bogue plausible de `tests/mutants/` doit faire échouer les tests du module qu'il touche.

Un mutant est un diff unifié, précédé de lignes « # … » en français qui disent le bogue ; il touche un seul
module de `minidalle/`. Il est appliqué à une copie du projet, jamais à l'arbre de travail, puis les tests de
ce module (`minidalle/a/b.py` → `tests/a/test_b.py`) sont joués sur la copie :

- « tué » : un test échoue, comme il se doit ;
- « survivant » : tout passe, les tests ne protègent pas de ce bogue ;
- « délai » : les tests ne finissent pas ; compte comme tué si une ligne « # Délai : … » l'annonce ;
- « invalide » : le diff ne s'applique plus, ou le module ne s'importe plus : ce n'est pas un bogue plausible.

Code de sortie : 0 si tous sont tués et si chaque module de `minidalle/models/` a assez de mutants, 1 sinon,
2 si la demande est impossible.
"""

import argparse
import concurrent.futures
import contextlib
import fnmatch
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MINIMUM = 3  # mutants par module de minidalle/models/
REPORT = "rapport.json"


class UsageError(Exception):
    """Demande impossible : une phrase en français, code de sortie 2."""


@dataclass(frozen=True)
class Mutant:
    """Un diff de `tests/mutants/` ; `problem` dit pourquoi il est inutilisable, s'il l'est."""

    name: str
    path: Path
    module: str  # chemin du module touché, « minidalle/models/vqvae.py »
    description: str
    announced_timeout: bool
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    state: str  # « tué », « survivant », « délai », « invalide »
    seconds: float
    detail: str = ""  # le test qui a tué, ou ce qui ne va pas
    output: str = ""  # fin de la sortie de pytest, montrée quand le verdict surprend


def read_mutant(path: Path) -> Mutant:
    """Lit l'en-tête d'un diff : sa description, le module touché."""
    text = path.read_text(encoding="utf-8")
    header = [line.lstrip("# ").rstrip() for line in re.match(r"(?:#.*\n)*", text)[0].splitlines()]
    announced = [line for line in header if re.match(r"délai\b", line, re.IGNORECASE)]
    description = " ".join(line for line in header if line not in announced)
    touched = sorted(set(re.findall(r"^\+\+\+ (?:b/)?(\S+)", text, re.MULTILINE)))
    problem = ""
    if not description:
        problem = "aucune ligne « # … » ne dit le bogue en tête du fichier"
    elif len(touched) != 1 or not re.fullmatch(r"minidalle/.+\.py", touched[0]):
        problem = f"doit toucher un seul module de minidalle/ (touche : {', '.join(touched) or 'rien'})"
    return Mutant(path.stem, path, touched[0] if touched else "", description, bool(announced), problem)


def tests_of(module: str) -> str:
    """« minidalle/a/b.py » → « tests/a/test_b.py »."""
    path = Path(module)
    return Path("tests", *path.parts[1:-1], f"test_{path.name}").as_posix()


# --- dans le processus fils


class _Recorder:
    """Extension de pytest : avec -x, le code de sortie ne distingue pas test raté et collecte ratée."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.errors: list[str] = []
        self.passed = 0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(f"collecte de {report.nodeid} : {str(report.longrepr).splitlines()[-1]}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed += 1


def run_tests(module: str, timeout: float) -> None:
    """Joue les tests de `module` dans le dossier courant et écrit ce qui s'est passé dans `REPORT`."""
    # Si le père est tué net, un mutant qui boucle ne lui survit pas longtemps.
    signal.alarm(int(timeout) + 10)
    recorder, package = _Recorder(), ""
    try:
        package = importlib.import_module("minidalle").__file__ or ""
        importlib.import_module(module.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    except BaseException as error:
        traceback.print_exc()
        recorder.errors.append(f"{module} ne s'importe plus : {type(error).__name__}: {error}")
    if package and not Path(package).resolve().is_relative_to(Path.cwd().resolve()):
        recorder.errors.append(f"le paquet importé est {package}, pas la copie")
    if not recorder.errors:
        # La seule extension utile aux tests d'un module (les autres doublent le temps de démarrage), avec une
        # graine fixe : le verdict est le même à chaque passage.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        hypothesis = ["-p", "_hypothesis_pytestplugin", "--hypothesis-seed=0"]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *hypothesis]
        code = pytest.main([*options, tests_of(module)], plugins=[recorder])
        judged = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        if code not in judged and not recorder.errors:
            recorder.errors.append(f"pytest est sorti avec le code {int(code)}")
    report = {"failed": recorder.failed, "errors": recorder.errors, "passed": recorder.passed}
    Path(REPORT).write_text(json.dumps(report), encoding="utf-8")


# --- dans le processus père


def copy_project(root: Path, destination: Path) -> None:
    """Copie ce que les tests demandent ; les poids, lourds et lus seulement, sont des liens."""

    def copy(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            Path(target).symlink_to(Path(source).resolve())
        else:
            shutil.copy2(source, target)

    ignored = shutil.ignore_patterns("__pycache__", ".*", "mutants")
    for folder in ("minidalle", "tests"):
        shutil.copytree(
            root / folder, destination / folder, symlinks=True, copy_function=copy, ignore=ignored
        )
    shutil.copy2(root / "pyproject.toml", destination)


class Campaign:
    """Joue des tests sur des copies d'un instantané du projet, et sait tout arrêter d'un coup."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.scratch = scratch
        self.snapshot = scratch / "original"
        self.environment = self._environment()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        # Un instantané : modifier un fichier pendant la campagne ne mélange pas deux versions.
        copy_project(root, self.snapshot)

    @staticmethod
    def _environment() -> dict[str, str]:
        # Sans les GIT_*, que git pose dans ses crochets et qui renverraient « git apply » au dépôt.
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "PYTEST_"))
        }
        environment.setdefault("OMP_NUM_THREADS", "1")
        if data := environment.get("MINIDALLE_DATA"):
            environment["MINIDALLE_DATA"] = str(Path(data).resolve())
        return environment

    def judge(self, module: str, mutant: Mutant | None, timeout: float) -> Verdict:
        """Verdict des tests de `module`, avec `mutant` appliqué ou, sans lui, sur l'original."""
        if mutant and mutant.problem:
            return Verdict("invalide", 0.0, mutant.problem)
        if not (self.snapshot / tests_of(module)).is_file():
            return Verdict("invalide", 0.0, f"le module n'a pas de tests : écrire {tests_of(module)}")
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            copy = Path(folder)
            shutil.copytree(self.snapshot, copy, symlinks=True, dirs_exist_ok=True)
            if mutant and (complaint := self._apply(mutant, copy)):
                return Verdict("invalide", 0.0, f"ne s'applique plus à {module} : {complaint}")
            return self._run(module, copy, timeout)

    def _apply(self, mutant: Mutant, copy: Path) -> str:
        """Applique le diff ; rend la plainte de git, vide si tout va bien."""
        before = (copy / mutant.module).read_bytes() if (copy / mutant.module).is_file() else b""
        # Dans un dépôt, git apply ignorerait sans rien dire les fichiers hors du dossier courant.
        environment = self.environment | {"GIT_CEILING_DIRECTORIES": str(copy.parent), "LC_ALL": "C"}
        command = ["git", "apply", "--whitespace=nowarn", str(mutant.path)]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"code {done.returncode}"
        return "le diff ne change rien" if (copy / mutant.module).read_bytes() == before else ""

    def _run(self, module: str, copy: Path, timeout: float) -> Verdict:
        temporary = copy / ".temporaire"
        temporary.mkdir()
        environment = self.environment | {
            "PYTHONPATH": str(copy),
            "TMPDIR": str(temporary),
            # Un mutant ne doit pas gâter le cache de dessins de l'utilisateur.
            "MINIDALLE_CACHE": str(temporary / "cache"),
        }
        # -P : le dossier de cet outil ne passe pas devant la copie.
        command = [sys.executable, "-P", __file__, "--interne", module, str(timeout)]
        start = time.monotonic()
        with (copy / "sortie.txt").open("w+", encoding="utf-8", errors="replace") as output:
            with self._process(command, copy, environment, output) as process:
                try:
                    code = process.wait(timeout)
                except subprocess.TimeoutExpired:
                    detail = f"les tests n'ont pas fini en {timeout:.0f} s"
                    return Verdict("délai", time.monotonic() - start, detail)
            seconds = time.monotonic() - start
            output.seek(0)
            tail = "".join(output.readlines()[-25:])
        if not (copy / REPORT).is_file():
            return Verdict("invalide", seconds, f"pytest s'est arrêté net (code {code})", tail)
        report = json.loads((copy / REPORT).read_text(encoding="utf-8"))
        if report["errors"]:
            return Verdict("invalide", seconds, report["errors"][0], tail)
        if report["failed"]:
            return Verdict("tué", seconds, report["failed"][0].removeprefix("tests/"), tail)
        if not report["passed"]:
            return Verdict("invalide", seconds, "aucun test n'a été joué (tous sautés ?)", tail)
        return Verdict("survivant", seconds, f"{report['passed']} tests passent quand même")

    @contextlib.contextmanager
    def _process(self, command, folder, environment, output) -> Iterator[subprocess.Popen]:
        """Un fils dans son propre groupe, tué avec sa descendance à la sortie du bloc."""
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            self._running.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._running.discard(process)
            self._kill(process)
            process.wait()

    def stop(self) -> None:
        """Tue tout ce qui tourne et n'en laisse plus partir."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def is_killed(mutant: Mutant, verdict: Verdict) -> bool:
    return verdict.state == "tué" or (verdict.state == "délai" and mutant.announced_timeout)


def missing_mutants(root: Path, mutants: list[Mutant], module: str | None) -> list[str]:
    """Une phrase par module de `minidalle/models/` qui a moins de `MINIMUM` mutants."""
    count = Counter(mutant.module for mutant in mutants)
    models = (path.relative_to(root).as_posix() for path in sorted((root / "minidalle/models").rglob("*.py")))
    return [
        f"{model} : {count[model]} mutant(s), il en faut au moins {MINIMUM}"
        for model in models
        if not model.endswith("__init__.py") and count[model] < MINIMUM and module in (None, model)
    ]


def select(mutants: list[Mutant], names: list[str], module: str | None) -> list[Mutant]:
    """Garde les mutants nommés (jokers admis) et ceux du module demandé."""
    chosen = [mutant for mutant in mutants if module in (None, mutant.module)]
    if names:
        patterns = [name.removesuffix(".patch") for name in names]
        for pattern in patterns:
            if not any(fnmatch.fnmatch(mutant.name, pattern) for mutant in chosen):
                raise UsageError(f"Aucun mutant ne s'appelle « {pattern} » : voir la liste avec --list.")
        chosen = [mutant for mutant in chosen if any(fnmatch.fnmatch(mutant.name, p) for p in patterns)]
    return chosen


def module_path(root: Path, name: str) -> str:
    """« models/vqvae », « minidalle.models.vqvae » ou le chemin entier → « minidalle/models/vqvae.py »."""
    parts = name.removesuffix(".py").replace(".", "/").removeprefix("minidalle/")
    path = f"minidalle/{parts}.py"
    if not (root / path).is_file():
        raise UsageError(f"Le module « {name} » n'existe pas : donner par exemple « models/vqvae ».")
    return path


def seconds_text(seconds: float) -> str:
    return f"{seconds:.1f} s".replace(".", ",")


def table(rows: list[tuple[str, ...]]) -> str:
    """Colonnes alignées, la première ligne en tête."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def judge_all(root: Path, mutants: list[Mutant], jobs: int, timeout: float | None) -> dict[str, Verdict]:
    """Verdict de chaque mutant, par nom ; d'abord les tests sans mutant, qui doivent passer."""
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as scratch,
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
    ):
        campaign = Campaign(root, Path(scratch))
        try:
            modules = sorted({mutant.module for mutant in mutants if not mutant.problem})
            print(f"Sans mutant : les tests de {len(modules)} module(s).", flush=True)
            originals = {pool.submit(campaign.judge, module, None, 600.0): module for module in modules}
            unsound, limits = {}, {}
            for future in concurrent.futures.as_completed(originals):
                module, verdict = originals[future], future.result()
                sound = verdict.state == "survivant"
                mark = "passent" if sound else "ÉCHOUENT"
                print(f"  {tests_of(module)} : {mark}  {seconds_text(verdict.seconds)}", flush=True)
                limits[module] = timeout or max(60.0, 10 * verdict.seconds)
                if not sound:
                    print(f"  {verdict.detail}\n{verdict.output}", flush=True)
                    unsound[module] = Verdict(
                        "invalide", 0.0, f"sans mutant, {tests_of(module)} ne passe déjà pas"
                    )

            print(f"Avec mutant : {len(mutants)} mutant(s), {jobs} à la fois.", flush=True)
            verdicts = {mutant.name: unsound[mutant.module] for mutant in mutants if mutant.module in unsound}
            futures = {
                pool.submit(campaign.judge, mutant.module, mutant, limits.get(mutant.module, 60.0)): mutant
                for mutant in mutants
                if mutant.name not in verdicts
            }
            for future in concurrent.futures.as_completed(futures):
                mutant, verdict = futures[future], future.result()
                verdicts[mutant.name] = verdict
                mark = " " if is_killed(mutant, verdict) else "!"
                progress = f"[{len(verdicts):>{len(str(len(mutants)))}}/{len(mutants)}]"
                print(
                    f"{mark} {progress} {verdict.state:<9} {mutant.name}  {seconds_text(verdict.seconds)}",
                    flush=True,
                )
            return verdicts
        except BaseException:
            campaign.stop()
            pool.shutdown(cancel_futures=True)
            raise


def summary(mutants: list[Mutant], verdicts: dict[str, Verdict], shortage: list[str]) -> int:
    """Affiche le bilan ; rend le code de sortie."""
    rows = [("mutant", "module", "verdict", "durée", "test qui l'a tué, ou motif")]
    for mutant in mutants:
        verdict = verdicts[mutant.name]
        state = verdict.state if is_killed(mutant, verdict) else verdict.state.upper()
        rows.append((mutant.name, mutant.module, state, seconds_text(verdict.seconds), verdict.detail))
    print("\n" + table(rows))
    alive = [mutant for mutant in mutants if not is_killed(mutant, verdicts[mutant.name])]
    for mutant in alive:
        print(f"\n{mutant.name} : {mutant.description or '(sans description)'}")
        print(verdicts[mutant.name].output, end="")
    for line in shortage:
        print(f"Trop peu de mutants — {line}")
    print(f"\n{len(mutants) - len(alive)} mutant(s) tué(s) sur {len(mutants)}.")
    return 1 if alive or shortage else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Vérifie que les tests tuent chaque bogue de tests/mutants/.",
        epilog="exemple : python tools/mutants.py --module models/vqvae",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NOM", help="mutants à juger (jokers admis) ; tous sans cela"
    )
    parser.add_argument("--module", help="ne juger que les mutants de ce module, par exemple models/vqvae")
    parser.add_argument("--list", action="store_true", help="afficher les mutants sans rien jouer")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processus à la fois (2)")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="délai par mutant en secondes (10 fois la durée des tests, au moins 60)",
    )
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parent.parent, help="racine du projet à juger"
    )
    parser.add_argument("--interne", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("--jobs demande un nombre d'au moins 1")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.interne:
        run_tests(options.interne[0], float(options.interne[1]))
        return 0
    root = options.root.resolve()
    mutants = [read_mutant(path) for path in sorted((root / "tests/mutants").glob("*.patch"))]
    try:
        module = module_path(root, options.module) if options.module else None
        chosen = select(mutants, options.names, module)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        described = [(m.name, m.module, m.problem or m.description) for m in chosen]
        print(table([("mutant", "module", "bogue"), *described]))
        return 0
    # Qui nomme des mutants ne demande pas le compte.
    shortage = [] if options.names else missing_mutants(root, mutants, module)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # « kill » range comme Ctrl-C
    try:
        return summary(chosen, judge_all(root, chosen, options.jobs, options.timeout), shortage)
    except KeyboardInterrupt:
        print("\nInterrompu : l'arbre de travail est intact, les copies sont effacées.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
