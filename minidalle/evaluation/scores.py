"""Notes données à des images."""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


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


def ssim(originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Similarité de structure de chaque image, au plus 1 (Wang et coll., 2004) : fenêtre gaussienne d'écart-type 1,5.

    Args:
        originals, copies: uint8 (B, H, W, 3), d'au moins 11 pixels de côté.

    Returns:
        (B,), float.
    """
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(originals, copies, strict=True)
    return np.array(
        [structural_similarity(a, b, data_range=255, channel_axis=-1, **options) for a, b in pairs]
    )


def perceptual_distance(originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Distance perceptuelle de chaque couple : voir `minidalle.evaluation.perceptual`, chargé au premier appel."""
    from minidalle.evaluation import perceptual

    return perceptual.perceptual_distance(originals, copies)
