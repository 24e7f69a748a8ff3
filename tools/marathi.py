"""Traduit de l'anglais au marathi avec et sans attention : `python -m tools.marathi` (six minutes d'un cœur libre).

Lit `MINIDALLE_DATA/texte/mar.txt`, 33 725 lignes au format d'Anki tirées de Tatoeba (CC BY 2.0 FR), et écrit
`minidalle/results/marathi.json`, que relit le chapitre « seq2seq et attention ». Tout ce qui n'est pas une
durée est le même d'une fois à l'autre.
"""

import hashlib
import json
import os
import time
from pathlib import Path

import torch

from minidalle import recipes
from minidalle.data import pairs
from minidalle.errors import MinidalleError
from minidalle.evaluation import translation
from minidalle.files import atomic_write
from minidalle.models.seq2seq import Seq2Seq
from minidalle.training import TrainingConfig, train
from tools.command import launch

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "marathi.json"
SEED, LONGEST, JUDGED = 0, 12, 1000
MODELS = {"avec": {"attention": "general", "hidden": 128}, "sans": {"attention": None, "hidden": 144}}
TRAINING = TrainingConfig(steps=4000, batch_size=64, learning_rate=4e-3, warmup=200, seed=SEED)
LENGTHS = ((1, 3), (4, 5), (6, 7), (8, LONGEST))  # mots de la phrase anglaise


def main() -> int:
    """Entraîne les deux modèles et écrit leurs notes."""
    if "MINIDALLE_DATA" not in os.environ:
        raise MinidalleError(
            "MINIDALLE_DATA n'est pas défini : y mettre le dossier qui contient texte/mar.txt."
        )
    path = Path(os.environ["MINIDALLE_DATA"]) / "texte" / "mar.txt"
    found = pairs.read_pairs(path)
    short = [p for p in found if max(len(pairs.words(text)) for text in p[:2]) <= LONGEST]
    parts = pairs.split(short, SEED)
    vocabularies = [pairs.Vocabulary((p[side] for p in parts.train), least=2) for side in (0, 1)]
    judged = [parts.fresh[i] for i in torch.randperm(len(parts.fresh), generator=_generator())[:JUDGED]]
    report = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "paires": len(found),
        "longueur_maximale": LONGEST,
        "entrainement": len(parts.train),
        "test": len(judged),
        "familles": len({p.family for p in judged}),
        "vocabulaires": [len(v) for v in vocabularies],
        "graine": SEED,
        "pas": TRAINING.steps,
        "lot": TRAINING.batch_size,
        "modeles": {},
    }
    texts, written = [p.source for p in judged], {}
    for name, options in MODELS.items():
        model = _build(options, vocabularies)
        start = time.perf_counter()
        train(model, recipes.pair_batches(parts.train, *vocabularies), TRAINING, label=name)
        minutes = (time.perf_counter() - start) / 60
        written[name] = recipes.translate(model, texts, *vocabularies, length=2 * LONGEST)
        scores = _scores(written[name], judged)
        size = sum(p.numel() for p in model.parameters())
        report["modeles"][name] = {"parametres": size, "minutes": round(minutes, 1), **scores}
        print(name, report["modeles"][name])
    gain = translation.compare(
        written["avec"], written["sans"], [p.target for p in judged], [p.family for p in judged]
    )
    report["ecart"] = {metric: _rounded(estimate) for metric, estimate in gain.items()}
    report["exemples"] = [
        {"anglais": p.source, "reference": p.target} | {name: written[name][i] for name in MODELS}
        for i, p in enumerate(judged[:8])
    ]
    with atomic_write(RESULT, "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return 0


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _build(options: dict, vocabularies: list[pairs.Vocabulary]) -> Seq2Seq:
    torch.manual_seed(SEED)
    return Seq2Seq(Seq2Seq.Config(*map(len, vocabularies), width=96, dropout=0.2, **options))


def _scores(written: list[str], judged: list[pairs.Pair]) -> dict:
    """Notes d'ensemble, et chrF selon la longueur de la phrase anglaise."""
    scores = translation.evaluate(written, [p.target for p in judged], [p.family for p in judged])
    found: dict = {metric: _rounded(estimate) for metric, estimate in scores.items()}
    found["longueurs"] = []
    for low, high in LENGTHS:
        rows = [i for i, p in enumerate(judged) if low <= len(pairs.words(p.source)) <= high]
        part = [judged[i] for i in rows]
        scores = translation.evaluate(
            [written[i] for i in rows], [p.target for p in part], [p.family for p in part]
        )
        found["longueurs"].append({"mots": [low, high], "n": len(rows), "chrf": _rounded(scores["chrf"])})
    return found


def _rounded(estimate: translation.Estimate) -> list[float]:
    return [round(x, 2) for x in estimate]


if __name__ == "__main__":
    launch(main)
