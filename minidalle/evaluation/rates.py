"""Combien de bits pour une image ? Arrondir un code continu, et les formats d'image usuels pour repère."""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minidalle.errors import MinidalleError

CODECS = ("JPEG", "WEBP")


def rounded(codes: Tensor, bits: int, known: Tensor) -> Tensor:
    """Codes arrondis à 2^bits valeurs par coordonnée.

    Args:
        codes: (B, k).
        bits: bits par coordonnée, au moins 1.
        known: (N, k), des codes d'entraînement ; leurs centiles 0,1 et 99,9 bornent les valeurs permises,
            espacées également.

    Returns:
        (B, k) : la valeur permise la plus proche de chaque coordonnée.

    Raises:
        MinidalleError: moins d'un bit.
    """
    if bits < 1:
        raise MinidalleError(f"{bits} bit par coordonnée n'en laisse qu'une valeur : en prévoir au moins un.")
    low, high = (torch.quantile(known, q, dim=0) for q in (0.001, 0.999))
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    levels = ((codes - low) / step).round().clamp(0, 2**bits - 1)
    return low + levels * step


def through_codec(images: np.ndarray, codec: str, quality: int) -> tuple[np.ndarray, float]:
    """Images passées par un format d'image usuel, et leur poids.

    Elles sont compressées d'un bloc, en mosaïque : sinon l'en-tête de chaque fichier pèserait plus qu'elles.

    Args:
        images: uint8 (B, S, S, 3), S multiple de 16, pour que les blocs du format ne chevauchent pas deux images.
        codec: « JPEG » ou « WEBP ».
        quality: de 0 à 100.

    Returns:
        Les copies uint8 (B, S, S, 3), et le nombre de bits par image.

    Raises:
        MinidalleError: format inconnu, lot vide ou côté qui n'est pas un multiple de 16.
    """
    if codec not in CODECS:
        raise MinidalleError(f"Format « {codec} » inconnu : choisir parmi {', '.join(CODECS)}.")
    n, side = len(images), images.shape[1]
    if not n or side % 16:
        raise MinidalleError("Il faut au moins une image, d'un côté multiple de 16.")
    columns = math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    tiles = np.full((rows * columns, side, side, 3), 255, np.uint8)
    tiles[:n] = images
    mosaic = (
        tiles.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    )
    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, codec, quality=quality, **({"method": 6} if codec == "WEBP" else {}))
    copy = np.asarray(Image.open(file).convert("RGB"))
    copies = copy.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[:n]
    return copies, 8 * file.tell() / n
