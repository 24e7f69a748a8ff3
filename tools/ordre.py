"""Apprendre l'ordre des mots à un CLIP aveugle : `python -m tools.ordre` (cinq minutes d'un cœur libre).

Un petit CLIP apprend d'abord, par la seule perte contrastive, un petit monde : deux formes côte à côte, et leur
légende, qui dit toujours laquelle est à gauche. De ce même départ, plusieurs remèdes : des légendes opposées dans le
lot, plus ou moins ; une question posée à chaque tour, en même temps que le contraste ou avant lui.
`minidalle/results/ordre.json`, que relit le chapitre « CLIP comme juge », garde leurs réponses au même examen. Tout y
est le même d'une fois à l'autre.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle import recipes
from minidalle.data import scenes
from minidalle.evaluation import scores
from minidalle.files import atomic_write
from minidalle.generation import pad, to_tensor
from minidalle.models.clip import CLIP, contrastive_loss
from minidalle.text import Tokenizer
from minidalle.training import TrainingConfig, train
from tools.command import launch

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "ordre.json"
SIZE, LENGTH, QUESTIONS, EVERY = 32, 16, 400, 40
CONFIG = {"tower": "resnet", "channels": (32, 64), "image_layers": 1, "text_layers": 2, "length": LENGTH}
TRAINING = {"batch_size": 64, "learning_rate": 2e-3, "warmup": 20, "precision": "bfloat16"}
START, STEPS, SEEDS = 200, 240, (1, 7, 11)
# Par remède, ses étapes : pas, part des légendes opposées, poids du contraste et de la question.
REMEDIES = {
    "rien": [(STEPS, 0, 1, 0)],
    "la moitié des opposées": [(STEPS, 0.5, 1, 0)],
    "toutes les opposées": [(STEPS, 1, 1, 0)],
    "contraste et question": [(STEPS, 0, 1, 1)],
    "question, puis contraste": [(STEPS // 2, 0, 0, 1), (STEPS // 2, 0, 1, 0)],
}
KINDS, COLOURS = list(scenes.SHAPES), list(scenes.COLOURS)


def world(
    rng: np.random.Generator, n: int, split: str = "train"
) -> tuple[np.ndarray, list[str], list[str], Tensor]:
    """n images (n, 32, 32, 3), leurs légendes, les opposées, et (n, 4) : forme et couleur à gauche, puis à droite."""
    images, captions, opposites, places = [], [], [], []
    while len(images) < n:
        (kind, other), (colour, tint) = (rng.permutation(8)[:2].tolist() for _ in range(2))
        x, y = (rng.integers(0, 3), rng.integers(3, 6)), float(rng.integers(2, 7)) / 8
        left, right = (
            scenes.Object(KINDS[k], COLOURS[c], x=float(at + 1.5) / 8, y=y)
            for k, c, at in ((kind, colour, x[0]), (other, tint, x[1]))
        )
        scene = scenes.Scene("blanc", (left, right))
        if scenes.relation(left, right) != "gauche" or scenes.split_of(scene) != split:
            continue
        first, place, second = (left, "gauche", right) if rng.random() < 0.5 else (right, "droite", left)
        images.append(scenes.render(scene, SIZE))
        captions.append(scenes.situate(first, place, second))
        opposites.append(scenes.situate(first, scenes.INVERSE[place], second))
        places.append((kind, colour, other, tint))
    return np.stack(images), captions, opposites, torch.tensor(places)


class Pupil(nn.Module):
    """Un CLIP, et une tête qui lit dans un vecteur, d'image ou de texte, qui est à gauche et qui est à droite."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip, self.head = clip, nn.Linear(clip.config.dim, 4 * 8)

    def loss(self, images: Tensor, texts: Tensor, negatives: Tensor, places: Tensor, weights: Tensor) -> dict:
        image = self.clip.encode_image(images)
        text, wrong = self.clip.encode_text(torch.cat([texts, negatives])).split([len(texts), len(negatives)])
        losses = contrastive_loss(image, text, self.clip.scale, wrong)
        asked = self.question(image, places) + self.question(text, places)
        return losses | {"loss": weights[0] * losses["loss"] + weights[1] * asked}

    def question(self, vectors: Tensor, places: Tensor) -> Tensor:
        """Entropie croisée de quatre réponses, parmi huit formes ou huit couleurs chacune."""
        answers = self.head(vectors * vectors.shape[1] ** 0.5).view(-1, 4, 8)
        return F.cross_entropy(answers.mT, places)


def batches(tokenizer: Tokenizer, opposites: float, contrast: float, question: float) -> Callable:
    """Lots de `Pupil.loss` : part des légendes dont l'opposée entre dans le lot, poids des deux pertes."""

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, ...]:
        images, captions, wrong, places = world(rng, n)
        # Comme `recipes.clip_batches`, se taire sur ce qui est réservé au test.
        drawn = (rng.random(n) < opposites) & [scenes.opposite(caption) is not None for caption in captions]
        added = [text for text, keep in zip(wrong, drawn, strict=True) if keep]
        texts = pad([tokenizer.encode(text, LENGTH).ids for text in [*captions, *added]], LENGTH)
        return to_tensor(images), texts[:n], texts[n:], places, torch.tensor([contrast, question])

    return batch


def examine(clip: CLIP, tokenizer: Tokenizer) -> dict[str, int]:
    """Réponses justes sur des combinaisons réservées : opposée refusée, légende retrouvée."""
    images, captions, opposites, _ = world(np.random.default_rng(1), QUESTIONS, "test")
    view = recipes.embed_images(clip, images)
    true, false = (recipes.embed_texts(clip, tokenizer, texts) for texts in (captions, opposites))
    same = [[j for j, other in enumerate(captions) if other == text] for text in captions]
    found = scores.recall_at_k(view.numpy(), true.numpy(), same, (1,))[1]
    right = (view * (true - false)).sum(1) > 0
    return {"ordre": int(right.sum()), "rappel": int(found.sum())}


def main() -> int:
    """Entraîne, examine, et écrit les réponses."""
    _, captions, opposites, _ = world(np.random.default_rng(0), 500)
    tokenizer = Tokenizer.train([*captions, *opposites], 256)
    torch.manual_seed(0)
    start = Pupil(recipes.build_clip(CONFIG, tokenizer, SIZE))
    train(start, batches(tokenizer, 0, 1, 0), TrainingConfig(**TRAINING, steps=START), label="départ")

    def measure(pupil: Pupil) -> dict[str, int]:
        return examine(pupil.clip, tokenizer)

    before = {"pas": 0} | measure(start)
    print("avant", before)
    report = {
        "entrainement": TRAINING,
        "pas_avant": START,
        "questions": QUESTIONS,
        "graines": SEEDS,
        "remedes": {},
    }
    for remedy, stages in REMEDIES.items():
        curves = report["remedes"][remedy] = []
        for seed in SEEDS:
            pupil, curve = copy.deepcopy(start), [before]
            for steps, *recipe in stages:
                done = curve[-1]["pas"]
                config = TrainingConfig(**TRAINING, steps=steps, evaluate_every=EVERY, seed=seed)
                made = train(pupil, batches(tokenizer, *recipe), config, evaluate=measure, label=remedy)
                marks = [mark for mark in made.history if "ordre" in mark]
                curve += [
                    {"pas": done + m["step"], "ordre": m["ordre"], "rappel": m["rappel"]} for m in marks
                ]
            curves.append(curve)
            print(remedy, seed, curve[-1], flush=True)
    with atomic_write(RESULT, "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return 0


if __name__ == "__main__":
    launch(main)
