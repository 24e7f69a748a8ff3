"""Ce que demandent les règles gelées et qu'aucune étude ne range : `python -m tools.verdicts` (quelques minutes).

- Δ sur mille scènes de dispositions réservées, pour `scenes` et `scenes-mini` ;
- ce que CLIP préfère, de la demande et de la relation inverse, sur 400 dessins que l'oracle dit justes ; ils viennent
  de `runs/etude/scenes`, que laisse `python -m tools.etude scenes`.

`minidalle/results/verdicts.json` garde les deux, avec l'empreinte des poids.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from minidalle.checkpoints import find_weights
from minidalle.errors import MinidalleError
from minidalle.evaluation import listening
from minidalle.evaluation.judges import load_judge
from minidalle.evaluation.scores import pair_cosines
from minidalle.evaluation.statistics import bootstrap
from minidalle.evaluation.study_files import TABLE, Row, read_strip, read_table
from minidalle.files import atomic_write
from minidalle.generation import TextToImage
from tools.command import launch
from tools.etude import RUNS

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "verdicts.json"
MODELS, JUDGE = ("scenes", "scenes-mini"), "clip"
SCENES, DRAWINGS, SEED = 1000, 400, 7


def main() -> int:
    """Mesure et range."""
    study = RUNS / "scenes"
    if not (study / TABLE).exists():
        raise MinidalleError(
            f"Pas d'étude dans « {study} » : lancer d'abord « python -m tools.etude scenes »."
        )
    known = listening.couples(np.random.default_rng(SEED), SCENES)
    report = {
        "graine": SEED,
        "sha256": {name: digest(name) for name in (*MODELS, JUDGE)},
        "nats": {name: nats(TextToImage.load(name), known) for name in MODELS},
        "clip": preferred(study, right_relations(read_table(study / TABLE))),
    }
    with atomic_write(RESULT, "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return 0


def digest(name: str) -> str:
    return hashlib.sha256(find_weights(name).read_bytes()).hexdigest()


def nats(painter: TextToImage, known: list[listening.Couple]) -> dict[str, list[float]]:
    """Par changement, Δ moyen et les bornes de son intervalle à 95 %, en nats par image."""
    found = listening.costs(painter, known)
    return {
        name: [round(x, 3) for x in bootstrap(lambda rows, z=z: z[rows].mean(), range(len(z)), seed=SEED)]
        for name, z in found.items()
    }


def right_relations(rows: list[Row]) -> list[Row]:
    """Les premiers dessins justes de demandes de relation réservées, un par demande."""
    kept = [r for r in rows if (r.category, r.held_out, r.attempt, r.right) == ("relation", True, 0, True)]
    return kept[:DRAWINGS]


def preferred(study: Path, rows: list[Row]) -> dict[str, int]:
    """Nombre de dessins, et de ceux dont CLIP préfère la demande à la relation inverse."""
    clip, strips = load_judge(JUDGE), {}
    images = []
    for row in rows:
        strip, k = row.image.split("#")
        if strip not in strips:
            strips[strip] = read_strip(study / strip)
        images.append(strips[strip][int(k)])
    seen = clip.embed_images(np.stack(images))
    asked, turned = (
        pair_cosines(seen, clip.embed_texts([getattr(r, name) for r in rows]))
        for name in ("prompt", "contrast")
    )
    return {"dessins": len(rows), "demande": int((asked > turned).sum())}


if __name__ == "__main__":
    launch(main)
