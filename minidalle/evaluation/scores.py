"""Notes données à des images."""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio


def psnr(originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Rapport signal sur bruit de chaque image, en décibels ; infini si la copie est parfaite.

    Args:
        originals, copies: uint8 (B, H, W, 3).

    Returns:
        (B,), float.
    """
    pairs = zip(originals, copies, strict=True)
    with np.errstate(divide="ignore"):
        return np.array([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs])
