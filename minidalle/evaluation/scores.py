"""Notes données à des images : seules, face à une copie, face à des textes, ou jugées plusieurs par demande.

Les notes d'images et de textes ne connaissent aucun modèle, seulement des vecteurs d'un même espace, ceux de CLIP
par exemple, d'une longueur quelconque : seul leur cosinus compte.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from minidalle.errors import MinidalleError

CLIP_WEIGHT = 2.5
_TIE = 1e-9  # deux cosinus plus proches que cela sont égaux, aux arrondis près


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


# --- images et textes -----------------------------------------------------------------------------


def cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosinus (N, M) de N vecteurs (N, d) et de M vecteurs (M, d), de −1 à 1.

    Raises:
        MinidalleError: vecteurs de dimensions différentes, nul, ou qui ne sont pas des nombres.
    """
    images, texts = unit(images), unit(texts)
    if images.shape[1] != texts.shape[1]:
        raise MinidalleError(
            f"Vecteurs de {images.shape[1]} et de {texts.shape[1]} nombres : images et textes d'un même modèle."
        )
    return images @ texts.T


def pair_cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosinus (N,) de la ligne i de l'un, (N, d), et de la ligne i de l'autre, (N, d)."""
    return (unit(images) * unit(texts)).sum(1)


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """CLIPScore de chaque couple, 2,5 · max(cos, 0) (Hessel et coll., 2021, équation 1), de 0 à 2,5.

    Les auteurs font précéder chaque légende de « A photo depicts » : à l'appelant de le faire s'il compare.

    Args:
        images, texts: (N, d), la ligne i de l'un face à la ligne i de l'autre.

    Returns:
        (N,), float.
    """
    return CLIP_WEIGHT * pair_cosines(images, texts).clip(min=0)


def recall_at_k(
    queries: np.ndarray,
    candidates: np.ndarray,
    relevant: Sequence[Sequence[int]],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[int, np.ndarray]:
    """Pour chaque question, une bonne réponse est-elle parmi les k candidats les plus proches ?

    Un mauvais candidat ex æquo avec la meilleure bonne réponse passe devant elle : des vecteurs tous égaux
    n'obtiennent rien.

    Args:
        queries: (Q, d), les images si l'on cherche des textes.
        candidates: (C, d).
        relevant: numéros des bons candidats de chaque question, au moins un.
        ks: nombres de candidats regardés.

    Returns:
        Par k, (Q,), booléens ; leur moyenne est le rappel.

    Raises:
        MinidalleError: question sans bonne réponse.
    """
    if len(relevant) != len(queries) or not all(len(row) for row in relevant):
        raise MinidalleError("Il faut à chaque question au moins une bonne réponse parmi les candidats.")
    queries, candidates = unit(queries), unit(candidates)
    ranks = np.empty(len(queries), int)
    for start in range(0, len(queries), 256):  # la table entière pourrait ne pas tenir en mémoire
        for i, row in enumerate(queries[start : start + 256] @ candidates.T, start):
            good = row[list(relevant[i])]
            bar = good.max() - _TIE
            ranks[i] = (row >= bar).sum() - (good >= bar).sum()
    return {k: ranks < k for k in ks}


def recall_by_chance(relevant: Sequence[Sequence[int]], candidates: int, k: int) -> float:
    """Rappel attendu de qui classe au hasard ; arguments de `recall_at_k`, et le nombre de candidats."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(0, candidates, [len(row) for row in relevant], min(k, candidates)).mean())


def r_precision(images: np.ndarray, texts: np.ndarray, candidates: int = 100, seed: int = 0) -> np.ndarray:
    """Chaque image préfère-t-elle son texte à `candidates` − 1 autres, tirés au hasard (Xu et coll., 2018) ?

    Le hasard y arrive une fois sur `candidates`. Deux textes égaux comptent pour une faute : en donner de distincts.

    Args:
        images, texts: (N, d), la ligne i de l'un va avec la ligne i de l'autre.
        candidates: textes proposés à chaque image, d'au moins 2 à N.
        seed: graine du tirage.

    Returns:
        (N,), booléens.

    Raises:
        MinidalleError: trop peu de textes.
    """
    n = len(texts)
    if not 2 <= candidates <= n:
        raise MinidalleError(f"Impossible de choisir parmi {candidates} textes : en donner de 2 à {n}.")
    images, texts, rng = unit(images), unit(texts), np.random.default_rng(seed)
    preferred = np.empty(n, bool)
    for i, image in enumerate(images):
        others = rng.choice(n - 1, candidates - 1, replace=False)
        others += others >= i
        preferred[i] = image @ texts[i] > (texts[others] @ image).max() + _TIE
    return preferred


def zero_shot(images: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Cosinus (N, C) d'images et de classes que des phrases nomment : la classe est `argmax(1)`.

    Une classe dite par plusieurs phrases l'est par la moyenne de leurs vecteurs unitaires (Radford et coll., 2021,
    section 3.1.4).

    Args:
        images: (N, d).
        prompts: (C, d), une phrase par classe, ou (T, C, d), T tournures de phrase.
    """
    prompts = unit(prompts)
    return cosines(images, prompts if prompts.ndim == 2 else prompts.mean(0))


# --- relations ------------------------------------------------------------------------------------


class Visor(NamedTuple):
    """Les nombres de VISOR (Gokhale et coll., 2022), de 0 à 1.

    Attributes:
        objects: part des images où sont les deux objets (« OA »).
        unconditional: part des images où, de plus, la relation est juste.
        conditional: la même, parmi les images où sont les deux objets ; None s'il n'y en a aucune.
        at_least: pour k de 1 à K, part des demandes dont au moins k images sur K sont justes.
    """

    objects: float
    unconditional: float
    conditional: float | None
    at_least: tuple[float, ...]


def visor(present: np.ndarray, right: np.ndarray) -> Visor:
    """Ce que valent K images de chacune de N demandes de relation.

    Le hasard n'y est pas de 1/2 : le mesurer en jugeant les mêmes images par la relation inverse.

    Args:
        present: les deux objets sont là, (N, K), booléens.
        right: la relation est juste, (N, K), booléens ; elle ne compte que si les objets sont là.

    Raises:
        MinidalleError: formes différentes, ou aucune image.
    """
    present, right = np.asarray(present, bool), np.asarray(right, bool)
    if present.shape != right.shape or present.ndim != 2 or not present.size:
        raise MinidalleError(
            f"VISOR veut deux tables de mêmes demandes et images, pas {present.shape} et {right.shape}."
        )
    right = right & present
    found, fine = int(present.sum()), int(right.sum())
    counts = right.sum(1)
    return Visor(
        found / present.size,
        fine / present.size,
        fine / found if found else None,
        tuple(float((counts >= k).mean()) for k in range(1, present.shape[1] + 1)),
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vecteurs (…, d) ramenés à la longueur 1.

    Raises:
        MinidalleError: vecteur nul, ou qui n'est pas fait de nombres.
    """
    vectors = np.asarray(vectors, float)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise MinidalleError(
            "Un vecteur est nul ou n'est pas fait de nombres : vérifier le modèle qui le donne."
        )
    return vectors / norms
