"""Les masques creux de DALL·E : chaque couche ne voit l'image que par lignes, par colonnes ou par voisinages.

Tous portent sur la suite texte + image : la position i de l'image lit le jeton i − 1 et prédit le jeton i, qui
est à la ligne i // colonnes et à la colonne i % colonnes. Le texte est vu en entier, sauf ce qui suit.

Source : Ramesh et coll. (2021), annexe B.1 et figure 11 ; Child et coll. (2019) pour l'idée.
"""

import torch
from torch import Tensor

from minidalle.errors import MinidalleError

KINDS = ("full", "row", "column", "convolution")
KERNEL = 11  # côté du voisinage, dans l'article


def pattern(layers: int) -> list[str]:
    """Sorte de chaque couche : ligne, colonne, ligne, ligne, et ainsi de suite ; un voisinage à la dernière."""
    return ["column" if i % 4 == 1 else "row" for i in range(layers - 1)] + ["convolution"]


def image_mask(kind: str, grid: tuple[int, int], kernel: int = KERNEL) -> Tensor:
    """Positions d'image visibles de chacune, causalité comprise → booléen (N, N).

    Args:
        kind: « row », les W + 1 dernières positions, elle comprise (W colonnes : de quoi voir juste au-dessus) ;
            « column », celles de sa colonne ; « convolution », celles d'un carré de côté `kernel` autour
            d'elle ; « full », toutes.
        grid: lignes et colonnes.
        kernel: impair.

    Raises:
        MinidalleError: sorte inconnue ou noyau pair.
    """
    if kind not in KINDS or kernel < 1 or kernel % 2 == 0:
        raise MinidalleError(
            f"Masque « {kind} » de noyau {kernel} : choisir parmi {', '.join(KINDS)}, noyau impair."
        )
    columns = grid[1]
    place = torch.arange(grid[0] * columns)
    ago = place[:, None] - place  # de combien de positions la clé précède la requête
    row, column = place // columns, place % columns
    beside = (column[:, None] - column).abs()
    visible = {
        "full": torch.ones_like(ago, dtype=torch.bool),
        "row": ago <= columns,
        "column": beside == 0,
        "convolution": ((row[:, None] - row).abs() <= kernel // 2) & (beside <= kernel // 2),
    }[kind]
    return visible & (ago >= 0)


def stream_mask(kind: str, text_length: int, grid: tuple[int, int], kernel: int = KERNEL) -> Tensor:
    """Positions visibles de toute la suite, texte puis image → booléen (T, T) ; voir `image_mask`."""
    drawn = image_mask(kind, grid, kernel)
    length = text_length + len(drawn)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[text_length:, text_length:] = drawn
    return mask
