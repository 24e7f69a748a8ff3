"""Ce que savent dessiner les modèles de la partie « Dessiner » : `python -m tools.dessiner` (une demi-heure d'un cœur).

Quatre mesures, par l'oracle, rangées dans `minidalle/results/dessiner.json` que relisent les chapitres :

- les réglages du tirage, choisis sur des combinaisons vues à l'entraînement ;
- les parts de dessins justes, par catégorie, sur des combinaisons vues et sur d'autres, réservées ;
- la meilleure de huit images selon le CLIP du livre ;
- ce qu'en dit ce CLIP, qui n'a servi à entraîner personne, et si deux dessins d'une même demande diffèrent.

« scenes-imitation » est `scenes` avant qu'il apprenne de ses dessins : donner le chemin de ses poids, que
`make weights` laisse dans `runs/`.

Les courbes d'apprentissage sont celles qu'a laissées `make weights` dans `runs/`.
"""

import argparse
import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minidalle.checkpoints import find_weights
from minidalle.evaluation.judges import load_judge
from minidalle.evaluation.oracle import read
from minidalle.evaluation.requests import CATEGORIES, Request, judge, requests
from minidalle.evaluation.scores import cosines
from minidalle.files import atomic_write
from minidalle.generation import TextToImage, rerank

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "dessiner.json"
RUNS = Path("runs")
SEED = 0
SWEEP = [{"guidance": s} for s in (1.0, 1.5, 2.0, 3.0, 5.0)] + [
    {"guidance": s, "top_p": p} for s in (1.5, 2.0, 3.0) for p in (0.95, 0.9)
]
CURVE = ("step", "seconds", "loss", "test_loss", "delta", *CATEGORIES, *(f"{c}_vu" for c in CATEGORIES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["scenes", "scenes-mini"], metavar="MODÈLE|CHEMIN")
    parser.add_argument("-n", type=int, default=500, help="demandes par catégorie")
    parser.add_argument("--sweep", type=int, default=100, help="demandes par catégorie et par réglage")
    options = parser.parse_args()
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for part in ("settings", "sweep", "models", "best_of", "others", "curves"):
        known.setdefault(part, {})
    for path in map(find_weights, options.models):
        name, painter = path.stem, TextToImage.load(path)
        sweep = [
            {**setting, "n": options.sweep, **_shares(painter, options.sweep, setting)}
            for setting in tqdm(SWEEP, desc=f"{name}, réglages")
        ]
        best = max(SWEEP, key=lambda setting: _mean(sweep[SWEEP.index(setting)]))
        known["sweep"][name] = sweep
        weights = hashlib.sha256(path.read_bytes()).hexdigest()
        known["settings"][name] = best | {"seed": SEED, "sha256": weights}
        known["models"][name] = {
            category: {
                "held_out" if held_out else "seen": _counts(painter, category, options.n, held_out, best)
                for held_out in (True, False)
            }
            for category in tqdm(CATEGORIES, desc=f"{name}, catégories")
        }
        known["best_of"][name] = _best_of(painter, max(options.n // 5, 20), best)
        known["others"][name] = _others(painter, max(options.n // 5, 20), best)
        if (metrics := RUNS / name / "metrics.csv").exists():
            known["curves"][name] = _curve(metrics)
        with atomic_write(RESULT, "w") as file:
            json.dump(known, file, ensure_ascii=False, indent=1)
            file.write("\n")
    return 0


def draw(painter: TextToImage, asked: list[Request], setting: dict, first: int = 0) -> np.ndarray:
    """Une image par demande, de graines `first`, `first` + 1… : uint8 (n, S, S, 3)."""
    seeds = range(first, first + len(asked))
    drawings = painter.draw_many([r.prompt for r in asked], list(seeds), **setting)
    return np.concatenate([drawing.images for drawing in drawings])


def _shares(painter: TextToImage, n: int, setting: dict) -> dict[str, int]:
    """Dessins justes sur des combinaisons vues : d'autres demandes que celles de la mesure finale."""
    rng = np.random.default_rng(SEED + 1)
    right = {}
    for category in CATEGORIES:
        asked = requests(rng, category, n, held_out=False)
        readings = read(list(draw(painter, asked, setting, 10**6)))
        right[category] = sum(judge(*pair).right for pair in zip(readings, asked, strict=True))
    return right


def _mean(row: dict) -> float:
    return sum(row[category] for category in CATEGORIES)


def _counts(painter: TextToImage, category: str, n: int, held_out: bool, setting: dict) -> dict[str, int]:
    asked = requests(np.random.default_rng(SEED), category, n, held_out=held_out)
    readings = read(list(draw(painter, asked, setting)))
    verdicts = [judge(*pair) for pair in zip(readings, asked, strict=True)]
    return {
        "right": sum(v.right for v in verdicts),
        "objects": sum(v.objects for v in verdicts),
        "exact": sum(v.right and v.alone for v in verdicts),
        "n": n,
    }


def _best_of(painter: TextToImage, n: int, setting: dict, tries: int = 8) -> dict[str, dict[str, int]]:
    """La première image, et la meilleure selon CLIP : combien sont justes, sur des combinaisons réservées."""
    clip, kept = load_judge("clip"), {}
    for category in tqdm(CATEGORIES, desc="meilleure de huit"):
        asked = requests(np.random.default_rng(SEED + 2), category, n)
        seeds = [2 * 10**6 + tries * i for i in range(n)]
        drawings = painter.draw_many([r.prompt for r in asked], seeds, tries, **setting)
        single = read([drawing.images[0] for drawing in drawings])
        chosen = read([rerank(drawing, clip, 1).images[0] for drawing in drawings])
        counts = (sum(judge(*pair).right for pair in zip(x, asked, strict=True)) for x in (single, chosen))
        kept[category] = dict(zip(("first", "best", "n", "tries"), (*counts, n, tries), strict=True))
    return kept


def _others(painter: TextToImage, n: int, setting: dict, tries: int = 2) -> dict[str, dict[str, float]]:
    """Sur des combinaisons réservées : combien d'images CLIP rend à leur demande, et part de cases qui diffèrent.

    CLIP choisit entre les `n` demandes de la catégorie ; une demande faite deux fois vaut elle-même.
    """
    clip, kept = load_judge("clip"), {}
    for category in CATEGORIES:
        asked = requests(np.random.default_rng(SEED + 3), category, n, background=0.0, size=0.0)
        prompts = [r.prompt for r in asked]
        drawings = painter.draw_many(prompts, [3 * 10**6 + tries * i for i in range(n)], tries, **setting)
        told = dict.fromkeys(prompts)
        scores = cosines(
            clip.embed_images(np.stack([d.images[0] for d in drawings])), clip.embed_texts([*told])
        )
        chosen = [[*told][i] for i in scores.argmax(1)]
        apart = [float((a != b).float().mean()) for a, b in (d.tokens for d in drawings)]
        kept[category] = {
            "clip": sum(map(str.__eq__, chosen, prompts)),
            "among": len(told),
            "apart": round(float(np.mean(apart)), 4),
            "n": n,
        }
    return kept


def _curve(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8") as file:
        rows = [
            {k: round(float(v), 4) for k, v in row.items() if v and k in CURVE}
            for row in csv.DictReader(file)
        ]
    # Une ligne par mesure, et de quoi suivre la perte entre deux.
    return [row for i, row in enumerate(rows) if {"delta", "couleur"} & row.keys() or i % 4 == 0]


if __name__ == "__main__":
    sys.exit(main())
