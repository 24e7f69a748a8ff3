"""Tirer des jetons un à un dans la loi d'un modèle autorégressif.

Chaque image a son propre générateur : la troisième d'une série est la même, qu'on en demande trois
ou trente.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minidalle.errors import MinidalleError


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Vérifie les réglages du tirage.

    Raises:
        MinidalleError: température nulle ou négative, `top_k` inférieur à 1, `top_p` hors de ]0, 1].
    """
    if not 0 < temperature < float("inf"):
        raise MinidalleError(
            f"Température impossible ({temperature}) : un nombre positif, ou top-k = 1 pour ne rien tirer au hasard."
        )
    if top_k is not None and top_k < 1:
        raise MinidalleError(f"Top-k impossible ({top_k}) : garder au moins 1 jeton.")
    if top_p is not None and not 0 < top_p <= 1:
        raise MinidalleError(f"Top-p impossible ({top_p}) : choisir une probabilité dans ]0 ; 1].")


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Loi dans laquelle on tire.

    Args:
        logits: (..., K).
        temperature: divise les logits ; moins de 1 resserre la loi, plus de 1 l'aplatit.
        top_k: ne garde que les k jetons les plus probables (Fan et coll., 2018).
        top_p: ne garde que le plus petit noyau de probabilité au moins p (Holtzman et coll., 2020).

    Returns:
        (..., K), positives, de somme 1.

    Raises:
        MinidalleError: réglage impossible.
    """
    check_sampling(temperature, top_k, top_p)
    # Ainsi écrit, même une température minuscule ne fait pas déborder les flottants.
    logits = (logits - logits.amax(-1, keepdim=True)).double() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        weakest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < weakest, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        # Un jeton reste tant que ceux qui le précèdent ne suffisent pas à atteindre p ; le premier, toujours.
        outside = ordered.cumsum(-1) - ordered >= top_p
        outside[..., 0] = False
        logits = logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return logits.softmax(-1).float()


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Un jeton par ligne de `probabilities` (B, K), par inversion de la fonction de répartition → (B,)."""
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    cumulative = probabilities.double().cumsum(-1)
    # Le total n'est 1 qu'à l'arrondi près : comparer à la même échelle pour ne jamais sortir de la loi.
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    return tokens[:, 0].clamp_max(probabilities.shape[-1] - 1)


@torch.inference_mode()
def sample(
    model: torch.nn.Module,
    text: Tensor,
    generators: Sequence[torch.Generator],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Écrit une image par ligne de `text`, jeton après jeton.

    Args:
        model: transformeur à deux méthodes, `start(text)` et `step(precedent, cache)`.
        text: (B, L), int64, complété par des 0.
        generators: B générateurs, un par image.
        temperature, top_k, top_p: voir `probabilities`.
        progress: appelée après chaque jeton avec leur nombre et les jetons (B, N) écrits jusque-là.

    Returns:
        Jetons (B, lignes, colonnes).
    """
    check_sampling(temperature, top_k, top_p)
    rows, columns = model.config.grid
    tokens = torch.zeros(len(text), rows * columns, dtype=torch.int64)
    cache, previous = model.start(text), None
    for i in range(tokens.shape[1]):
        logits = model.step(previous, cache)
        previous = draw(probabilities(logits, temperature, top_k, top_p), generators)
        tokens[:, i] = previous
        if progress:
            progress(i + 1, tokens)
    return tokens.view(-1, rows, columns)
