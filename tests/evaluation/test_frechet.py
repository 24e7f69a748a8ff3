"""Distance de Fréchet : la formule, ses symétries, ses refus, et ce que le réseau donne à mesurer."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.evaluation import frechet
from minidalle.evaluation.frechet import frechet_distance, image_features
from minidalle.evaluation.perceptual import Features, untrained
from minidalle.evaluation.statistics import Undefined

SEEDS = st.integers(0, 10**6)


def lots(seed, n=40, m=60, d=5):
    """Deux lots corrélés, de lois différentes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    return x, rng.normal(size=(m, d)) @ rng.normal(size=(d, d))


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_it_is_the_published_formula(seed):
    """Moyennes, covariances et racine de matrice, chacune par NumPy ou SciPy."""
    x, y = lots(seed)
    first, second = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_one_dimension_by_hand():
    """(μ − ν)² + (σ − τ)² : ici (1 − 4)² + (√2 − 2√2)²."""
    assert frechet_distance([[0.0], [2.0]], [[2.0], [6.0]]) == pytest.approx(9 + 2)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_geometry(seed):
    """Nulle d'un lot à lui-même, même mélangé ; symétrique ; insensible à un déplacement et à une rotation communs."""
    x, y = lots(seed)
    rng = np.random.default_rng(seed)
    turn, shift = np.linalg.qr(rng.normal(size=(5, 5)))[0], rng.normal(size=5)
    distance = frechet_distance(x, y)
    assert frechet_distance(x, rng.permutation(x)) == pytest.approx(0, abs=1e-9 * np.square(x).sum())
    assert frechet_distance(y, x) == pytest.approx(distance)
    assert frechet_distance(x @ turn + shift, y @ turn + shift) == pytest.approx(distance)


def test_fewer_images_than_features():
    """Covariances singulières : ajouter des caractéristiques nulles partout n'y change rien."""
    x, y = lots(0, n=4, m=6)
    wide = [np.pad(z, ((0, 0), (0, 20))) for z in (x, y)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(x, y))


def test_the_same_law_is_not_at_zero_and_the_bias_is_in_one_over_n():
    rng = np.random.default_rng(0)

    def mean(n):
        return np.mean([frechet_distance(*rng.normal(size=(2, n, 20))) for _ in range(40)])

    few, many = mean(100), mean(400)
    assert few > 1 and few / many == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(
    ("x", "y", "error"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), Undefined),
        (np.zeros((5, 3)), np.zeros((5, 4)), MinidalleError),
        (np.zeros(5), np.zeros((5, 1)), MinidalleError),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), MinidalleError),
        (np.zeros((5, 3)), np.full((5, 3), np.inf), MinidalleError),
    ],
)
def test_refusals(x, y, error):
    with pytest.raises(error):
        frechet_distance(x, y)


def test_features_are_the_mean_of_the_last_map(monkeypatch):
    """Une ligne par image, d'où l'on a ôté la place ; le paquet n'y change rien, ni l'ordre."""
    network = Features(untrained(), False, "essai")
    monkeypatch.setattr(frechet.Features, "load", lambda: network)
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    found = image_features(images, batch=2)
    with torch.no_grad():
        last = network(torch.tensor(images).permute(0, 3, 1, 2) / 255)[-1]
    assert found.shape == (5, 64) and found.dtype == np.float64
    np.testing.assert_allclose(found, last.mean((2, 3)).numpy(), atol=1e-5)
    np.testing.assert_allclose(image_features(images[::-1], batch=5), found[::-1], atol=1e-5)
