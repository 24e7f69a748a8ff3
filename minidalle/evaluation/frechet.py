"""Distance de Fréchet entre deux lots d'images : leurs caractéristiques ont-elles même moyenne et même covariance ?

Source : Heusel et coll., « GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium » (2017).
La FID publiée emploie Inception-v3 (2048 nombres par image) ; ici, le réseau de `perceptual` (112) : les valeurs ne se
comparent ni à elle, ni d'un réseau à l'autre.
"""

import numpy as np
import torch

from minidalle.errors import MinidalleError
from minidalle.evaluation.perceptual import Features
from minidalle.evaluation.statistics import Undefined
from minidalle.generation import to_tensor


def image_features(images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Ce que le réseau voit de chaque image, places oubliées : moyenne de sa dernière carte.

    Args:
        images: uint8 (n, H, W, 3).
        batch: images lues ensemble ; le résultat n'en dépend pas, aux arrondis près.

    Returns:
        (n, d), float64 ; d vaut 112, ou 64 si les poids d'ImageNet manquent (un avertissement le dit).
    """
    features = Features.load()
    with torch.no_grad():
        parts = [
            features(to_tensor(images[i : i + batch]))[-1].mean((2, 3)) for i in range(0, len(images), batch)
        ]
    return torch.cat(parts).double().numpy()


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """‖μ_x − μ_y‖² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½), covariances sans biais (n − 1 au dénominateur).

    Deux lots d'une même loi n'ont pas une distance nulle : elle décroît comme 1/n. Ne comparer que des lots de même
    taille, et donner n.

    Args:
        x: caractéristiques (n, d), une image par ligne.
        y: caractéristiques (m, d).

    Returns:
        Un nombre positif, le carré d'une distance, en unités de caractéristiques au carré.

    Raises:
        Undefined: lot de moins de deux images.
        MinidalleError: dimensions différentes, ou caractéristique qui n'est pas un nombre.
    """
    x, y = (np.asarray(z, float) for z in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise MinidalleError(f"Caractéristiques de formes {x.shape} et {y.shape} : il faut (n, d) et (m, d).")
    if min(len(x), len(y)) < 2:
        raise Undefined("Une covariance veut au moins deux images de chaque côté.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MinidalleError("Une caractéristique n'est pas un nombre : vérifier les images et le réseau.")
    # Σ = RᵀR ; la trace de (Σ_x Σ_y)^½ est la somme des valeurs singulières de R_x R_yᵀ : pas de racine de matrice,
    # qui se trompe quand il y a moins d'images que de caractéristiques.
    r_x, r_y = (np.linalg.qr((z - z.mean(0)) / np.sqrt(len(z) - 1), mode="r") for z in (x, y))
    shared = np.linalg.svd(r_x @ r_y.T, compute_uv=False).sum()
    means = np.square(x.mean(0) - y.mean(0)).sum()
    return max(float(means + np.square(r_x).sum() + np.square(r_y).sum() - 2 * shared), 0.0)
