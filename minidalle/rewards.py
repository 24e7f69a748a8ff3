"""Apprendre de ses propres dessins : le modèle en tire, un juge les note, il imite les meilleurs.

Qui n'apprend qu'à continuer de bonnes images n'a jamais vu ses propres erreurs : au premier jeton de travers, il est
en terrain inconnu. Ici, les débuts sont les siens, et la note porte sur le dessin fini.

Sources : Williams (1992) pour le gradient ; Shao et coll. (2024) pour la comparaison au sein d'un groupe.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError
from minidalle.evaluation.oracle import Reading, read
from minidalle.evaluation.requests import CATEGORIES, Request, judge, requests
from minidalle.generation import pad, to_pixels
from minidalle.sampling import sample
from minidalle.text import Tokenizer
from minidalle.training import Batches, Metrics

# Ce qu'on demande le plus est ce qui réussit le moins.
CHANCES = {"couleur": 1, "paire": 4, "relation": 1, "nombre": 2}
GROUP = 8  # dessins d'une même demande
IMITATION = 0.5  # part du lot faite de vraies images
WORTH = 1.0  # ce qu'y vaut une vraie image
_CALM = 0.1  # un groupe presque unanime ne crie pas


def reward(reading: Reading, request: Request) -> float:
    """Note d'un dessin : 1 s'il montre la demande et rien d'autre, moins ce que l'oracle n'explique pas ; ou 0."""
    verdict = judge(reading, request)
    return float(verdict.right and verdict.alone) * (1 - reading.left)


def advantages(rewards: np.ndarray, group: int = GROUP) -> np.ndarray:
    """Ce que chaque dessin vaut de plus que les autres de sa demande, en écarts types de leur groupe.

    Args:
        rewards: (n,), les `group` dessins d'une demande à la suite.

    Returns:
        (n,), de somme nulle dans chaque groupe ; nul partout dans un groupe unanime, qui n'apprend rien.

    Raises:
        MinidalleError: des groupes incomplets.
    """
    if group < 2 or len(rewards) % group:
        raise MinidalleError(f"{len(rewards)} notes ne se rangent pas par groupes de {group} (au moins 2).")
    grouped = rewards.reshape(-1, group)
    apart = grouped - grouped.mean(1, keepdims=True)
    return (apart / (grouped.std(1, keepdims=True) + _CALM)).ravel()


def rewarded_batches(
    model: nn.Module,
    tokenizer: Tokenizer,
    vqvae: nn.Module,
    practice: Batches,
    *,
    chances: Mapping[str, float] = CHANCES,
    group: int = GROUP,
) -> Batches:
    """Lots (texte, jetons d'image, poids) : les dessins du modèle, pesés par leur avantage, et de vraies images.

    Les demandes sont des combinaisons permises à l'entraînement. Les dessins sont tirés du modèle tel qu'il est au
    moment du lot, sans guidage ni ciseaux : c'est de cette loi-là que la récompense attendue a ce gradient.

    Args:
        model: celui qui apprend, d'un vocabulaire et de jetons accordés à `tokenizer` et `vqvae`.
        practice: lots (texte, jetons d'image) de vraies images, qui l'empêchent d'oublier.
        chances: ce que pèse chaque catégorie de demandes.
    """
    length, shares = model.config.text_length, np.array([*chances.values()], float)

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor, Tensor]:
        asked_for = round(n * (1 - IMITATION)) // group
        kinds = rng.choice([*chances], size=asked_for, p=shares / shares.sum())
        asked = [r for kind in kinds for r in requests(rng, kind, 1, held_out=False) for _ in range(group)]
        text = _text(asked, tokenizer, length)
        drawn = _drawings(model, text, rng)
        readings = read(list(_painted(vqvae, drawn, model.config.grid)))
        notes = np.array([reward(*pair) for pair in zip(readings, asked, strict=True)])
        real_text, real = practice(rng, n - len(asked))
        weight = np.concatenate([advantages(notes, group), np.full(len(real), WORTH)])
        return (
            torch.cat([text, real_text]),
            torch.cat([drawn, real.flatten(1)]),
            torch.from_numpy(weight).float(),
        )

    return batch


def measure_drawings(
    tokenizer: Tokenizer, vqvae: nn.Module, n: int = 40, seed: int = 9
) -> Callable[[nn.Module], Metrics]:
    """Mesure un générateur : parts de dessins justes, sans guidage, sur n demandes fixes de chaque catégorie.

    « paire » porte sur des combinaisons réservées au test, « paire_vu » sur des combinaisons permises ; de même pour
    les autres.
    """
    rng = np.random.default_rng(seed)
    asked = {
        f"{category}{'' if held_out else '_vu'}": requests(rng, category, n, held_out=held_out)
        for held_out in (True, False)
        for category in CATEGORIES
    }

    def measure(model: nn.Module) -> Metrics:
        shares = {}
        for name, told in asked.items():
            text = _text(told, tokenizer, model.config.text_length)
            drawn = _drawings(model, text, np.random.default_rng(seed))
            readings = read(list(_painted(vqvae, drawn, model.config.grid)))
            shares[name] = float(np.mean([judge(*pair).right for pair in zip(readings, told, strict=True)]))
        return shares

    return measure


def _text(asked: Sequence[Request], tokenizer: Tokenizer, length: int) -> Tensor:
    return pad([tokenizer.encode(r.prompt, length).ids for r in asked], length)


def _drawings(model: nn.Module, text: Tensor, rng: np.random.Generator) -> Tensor:
    """Un dessin par ligne de `text`, en jetons (B, N)."""
    dice = [torch.Generator().manual_seed(int(seed)) for seed in rng.integers(2**62, size=len(text))]
    learning = model.training
    place = next(model.parameters()).device
    tokens = sample(model.eval(), text.to(place), dice, length=model.config.image_length)
    model.train(learning)
    return tokens.to("cpu", copy=True)  # tirés sans gradient : une copie peut entrer dans une perte


@torch.no_grad()
def _painted(vqvae: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> np.ndarray:
    parts = tokens.view(-1, *grid).split(64)
    return np.concatenate([to_pixels(vqvae.decode(part)) for part in parts])
