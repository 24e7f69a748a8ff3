"""Vérifie tout (« make test ») : une étape qui échoue n'arrête pas les autres, et le bilan est à la fin."""

import os
import subprocess
import sys
import time

from tools.book import kernel_environment, missing_packages

RUFF = [sys.executable, "-m", "ruff"]
PYTEST = [sys.executable, "-m", "pytest", "-rsfE", "-n", "2", "--dist", "loadfile"]
# Le réglage de pytest du projet est pour ses tests ; nbval réagirait aux alertes des noyaux.
NBVAL = ["--nbval", "-p", "tools.nbval_figures", "-p", "no:cacheprovider", "--nbval-cell-timeout=300"]
NBVAL += ["-c", os.devnull, "--rootdir", "_build/nbval", "-q", "_build/nbval"]

PDF = "PDF et son journal"

# Nom de l'étape, commandes, étape dont elle a besoin.
STEPS = [
    (
        "style du code",
        [[*RUFF, "check", "."], [*RUFF, "format", "--check", "."], [sys.executable, "-m", "tools.spelling"]],
        None,
    ),
    ("bibliothèque", [[*PYTEST, "-m", "not book and not whole"]], None),
    ("outils", [[*PYTEST, "-m", "whole"]], None),
    ("construction du livre", [[sys.executable, "-m", "tools.book", "html"]], None),
    ("pages du livre", [[*PYTEST, "tests/book"]], "construction du livre"),
    (
        "sorties reproductibles",
        [[sys.executable, "-m", "tools.book", "nbval"], [*PYTEST, *NBVAL]],
        "construction du livre",
    ),
    (PDF, [[sys.executable, "-m", "tools.book", "pdf"]], "construction du livre"),
]


def run(command: list[str], environment: dict[str, str], faults: list[str]) -> bool:
    """La commande échoue-t-elle ? Montre ce qu'elle écrit, et note dans `faults` les tests en échec."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith(("FAILED ", "ERROR ")):
                faults.append(line.rstrip())
    return bool(process.returncode)


def main() -> int:
    results: dict[str, str] = {}
    faults: list[str] = []  # le bilan les redit : souvent, on ne garde d'un journal que sa fin
    environment = kernel_environment()
    for name, commands, needed in STEPS:
        print(f"\n=== {name}\n", flush=True)
        start = time.monotonic()
        if needed and results[needed][0] != "✓":
            results[name] = f"– sautée, faute de : {needed}"
            continue
        if name == PDF and missing_packages():
            results[name] = "· sautée : xelatex ou ses paquets ne sont pas installés"
            continue
        # any s'arrête à la première commande qui échoue.
        failed = any(run(command, environment, faults) for command in commands)
        results[name] = f"{'✗ ÉCHEC ' if failed else '✓ réussie'}  {time.monotonic() - start:6.0f} s"
    print("\n=== bilan\n")
    for name, result in results.items():
        print(f"  {name:<24} {result}")
    for fault in faults:
        print(f"\n  {fault}", end="")
    failures = sum(not result.startswith(("✓", "·")) for result in results.values())
    print(f"\n\n{failures} étape(s) à reprendre : voir plus haut." if failures else "\nTout est vérifié.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
