"""Range dans le paquet les études que citent les chapitres : `python -m tools.etude` (voir `STUDIES`).

Chaque étude est une commande que le lecteur peut relancer, `minidalle evaluate study …` ; ses dessins restent dans
`runs/etude/NOM`, ce qu'on y a lu va dans `minidalle/evaluation/results/NOM.csv`, avec la commande et l'empreinte des
poids. Interrompue, elle reprend où elle en était. Un argument choisit les études : `python -m tools.etude scenes`.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from minidalle.errors import MinidalleError
from minidalle.evaluation.study_files import MANIFEST, TABLE, read_table, write_summary
from tools.command import launch

ROOT = Path(__file__).parents[1]
RUNS, RESULTS = ROOT / "runs" / "etude", ROOT / "minidalle" / "evaluation" / "results"
ADVISED = "--guidance 1.5 --top-p 0.95"  # choisis sur les combinaisons vues (`tools/dessiner.py`)
STUDIES = {
    "scenes": f"--model scenes --n 1000 {ADVISED}",
    # Guidage nul : la légende ne compte pour rien. C'est le modèle aveugle au texte qui mesure le hasard.
    "scenes-aveugle": "--model scenes --n 400 --tries 1 --guidance 0 --top-p 0.95",
    "scenes-mini": "--model scenes-mini --n 400 --tries 1 --guidance 1.5",
}


def main(names: list[str]) -> int:
    """Mène les études nommées, et les range."""
    if strangers := [name for name in names if name not in STUDIES]:
        raise MinidalleError(f"Étude « {strangers[0]} » inconnue : choisir parmi {', '.join(STUDIES)}.")
    for name in names or STUDIES:
        out = RUNS / name
        command = f"evaluate study {STUDIES[name]}"
        run = [sys.executable, "-m", "minidalle", *shlex.split(command), "--out", str(out), "--resume"]
        if code := subprocess.run(run, cwd=ROOT).returncode:
            return code
        store(name, out, command)
    return 0


def store(name: str, out: Path, command: str) -> Path:
    """Range l'étude finie du dossier `out`."""
    about = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    path = RESULTS / f"{name}.csv"
    write_summary(path, read_table(out / TABLE), {"commande": f"minidalle {command}"} | about)
    return path


if __name__ == "__main__":
    launch(main, sys.argv[1:])
