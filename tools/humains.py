"""Refait l'étude des auteurs, notes humaines contre CLIP : `python -m tools.humains` (quelques secondes).

Lit `MINIDALLE_DATA/etude/humains_et_clip.csv`, 100 images de COCO et trois légendes par image, et écrit
`minidalle/results/humains.json`, que relit le chapitre « CLIP comme juge ».
"""

import hashlib
import json
import os
from pathlib import Path

from minidalle.errors import MinidalleError
from minidalle.evaluation.ratings import Measure, human_study
from minidalle.evaluation.statistics import Estimate, Ratio, wilson
from minidalle.files import atomic_write
from tools.command import launch

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "humains.json"
SEED = 0


def main() -> int:
    """Écrit le résumé de l'étude."""
    if "MINIDALLE_DATA" not in os.environ:
        raise MinidalleError(
            "MINIDALLE_DATA n'est pas défini : y mettre le dossier qui contient etude/humains_et_clip.csv."
        )
    path = Path(os.environ["MINIDALLE_DATA"]) / "etude" / "humains_et_clip.csv"
    with atomic_write(RESULT, "w") as file:
        json.dump(summary(path), file, ensure_ascii=False, indent=1)
        file.write("\n")
    return 0


def summary(path: Path) -> dict:
    """L'étude en nombres : un intervalle est [valeur, bas, haut], à 95 %."""
    study = human_study(path, seed=SEED)
    found = study.measures
    concordance, invented = found["concordance"], study.invented
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "graine": SEED,
        "images": study.images,
        "paires": study.pairs,
        "juges_par_image": study.raters_per_image,
        "sommes_de_clip": _rounded(study.clip_sums, 6),
        "spearman": _plain(found["spearman"]),
        "kendall": _plain(found["kendall"]),
        "pearson": _plain(found["pearson"]),
        "spearman_dans_une_image": _plain(found["within"]),
        "concordance": _plain(concordance)
        | {
            "wilson": _plain(wilson(concordance.successes, concordance.trials)),
            "deux_inventees": [invented.successes, invented.trials],
            "coco_et_inventee": [
                concordance.successes - invented.successes,
                concordance.trials - invented.trials,
            ],
        },
        "legende_preferee": {
            "premiere_ligne": _plain(found["first"]),
            "ex_aequo_admis": _plain(found["any"]),
            "sans_ex_aequo": _plain(found["unique"]),
        },
        "prefere_coco": {"humain": study.prefers_coco["grade"], "clip": study.prefers_coco["clip"]},
        "images_ou_clip_passe_0,99": study.saturated,
        "juges": {
            name: {"notes": count, "notes_distinctes": distinct, "moyenne": round(mean, 3)}
            for name, (count, distinct, mean) in study.raters.items()
        },
        "tranches": [
            {
                "note": [low, high],
                "n": n,
                "clip_sous_0,05": under,
                "quartiles_de_clip": _rounded(quartiles, 6),
            }
            for low, high, n, under, quartiles in study.bins
        ],
    }


def _plain(measure: Measure) -> dict | list[float]:
    match measure:
        case Ratio(successes, trials, dropped, estimate):
            return {"accords": successes, "cas": trials, "ecartes": dropped, "part": _plain(estimate)}
        case Estimate():
            return _rounded(measure)
    raise measure


def _rounded(numbers: tuple | list, digits: int = 3) -> list[float]:
    return [round(x, digits) for x in numbers]


if __name__ == "__main__":
    launch(main)
