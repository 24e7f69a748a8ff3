"""Les traducteurs d'émojis sur trois graines : `python -m tools.traducteurs` (dix minutes d'un cœur libre).

Même tâche que les chapitres « seq2seq et attention » (à cent pas près) et « transformeur », qui n'ont le temps
que d'une graine ; plus un élève sans attention à qui l'on donne trois fois plus de pas. Écrit
`minidalle/results/traducteurs.json`, que ces chapitres relisent. Tout est le même d'une fois à l'autre.
"""

import json
from pathlib import Path

import torch
from torch import nn

from minidalle import recipes
from minidalle.data import pairs
from minidalle.evaluation import translation
from minidalle.files import atomic_write
from minidalle.models.seq2seq import Seq2Seq
from minidalle.models.transformer import Transformer
from minidalle.training import TrainingConfig, train

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "traducteurs.json"
SEEDS = (0, 1, 2)
LSTM = {"width": 64, "dropout": 0.1}
TRANSFORMER = {"width": 80, "layers": 2, "heads": 4, "length": 80, "positions": "sinusoidal", "norm": "post"}
# Modèle, configuration, pas, taux d'apprentissage, graines ; « avec » et « transformer » durent autant.
STUDENTS = {
    "sans": (Seq2Seq, LSTM | {"hidden": 152, "attention": None}, 1400, 5e-3, SEEDS),
    "avec": (Seq2Seq, LSTM | {"hidden": 128}, 1400, 5e-3, SEEDS),
    "transformer": (Transformer, TRANSFORMER, 900, 3e-3, SEEDS),
    "sans, trois fois plus": (Seq2Seq, LSTM | {"hidden": 152, "attention": None}, 4200, 5e-3, SEEDS[:1]),
}


def main() -> None:
    """Entraîne tous les élèves et écrit leurs notes."""
    parts = pairs.split(pairs.emoji_names(), seed=0)
    many = [pairs.messages(parts.train, k, len(parts.train), seed=k - 1) for k in (2, 3)]
    lessons = [*parts.train, *many[0], *many[1]]
    languages = [pairs.Vocabulary(p[side] for p in lessons) for side in (0, 1)]
    batches = recipes.pair_batches(lessons, *languages)
    exams = {"recomposé": parts.composed, "neuf": parts.fresh}
    for k, exam in enumerate(("un nom", "deux noms", "trois noms"), 1):
        exams[exam] = pairs.messages(parts.train, k, 200, seed=10 + k)
    report: dict[str, list[dict]] = {}
    for name, (cls, options, steps, rate, seeds) in STUDENTS.items():
        report[name] = []
        for seed in seeds:
            torch.manual_seed(seed)
            model = cls(cls.Config(*map(len, languages), **options))
            lesson = TrainingConfig(steps=steps, learning_rate=rate, warmup=100, seed=seed)
            train(model, batches, lesson, label=f"{name}, graine {seed}")
            report[name].append({"graine": seed, "pas": steps} | _judge(model, exams, languages))
            print(name, report[name][-1], flush=True)
    with atomic_write(RESULT, "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")


def _judge(model: nn.Module, exams: dict, languages: list) -> dict:
    """Par jeu, part de traductions exactes et chrF, de 0 à 100."""
    notes = {}
    for exam, asked in exams.items():
        written = recipes.translate(model, [p.source for p in asked], *languages, length=60)
        scores = translation.evaluate(written, [p.target for p in asked], [p.family for p in asked])
        notes[exam] = {metric: round(scores[metric].value, 2) for metric in ("exact", "chrf")}
    return notes


if __name__ == "__main__":
    main()
