"""Nombres d'essais : la table du protocole, la définition, la puissance simulée."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from minidalle.errors import MinidalleError
from minidalle.evaluation.power import (
    design_effect,
    sample_size,
    sample_size_against,
    sample_size_between,
    sample_size_paired,
)
from minidalle.evaluation.proportions import mcnemar


@pytest.mark.parametrize(
    ("p", "five", "three"), [(0.5, 381, 1064), (0.6, 366, 1021), (0.8, 245, 682), (0.9, 141, 388)]
)
def test_table_of_the_protocol(p, five, three):
    assert (sample_size(p, 0.05), sample_size(p, 0.03)) == (five, three)


def test_comparisons_of_the_protocol():
    assert [sample_size_against(p) for p in (0.6, 0.55)] == [194, 783]
    assert [sample_size_between(0.5, 0.6), sample_size_between(0.8, 0.9)] == [388, 199]
    assert [sample_size_paired(gap, 0.2) for gap in (0.1, 0.05)] == [155, 626]


@given(st.floats(0, 1), st.floats(0.01, 0.45), st.floats(0.5, 0.99))
@settings(max_examples=80)
def test_it_is_the_smallest_size(p, half_width, level):
    z = norm.ppf((1 + level) / 2)

    def half(n):
        return z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)

    n = sample_size(p, half_width, level)
    assert half(n) <= half_width * (1 + 1e-6)
    assert n == 1 or half(n - 1) > half_width * (1 - 1e-6)


@given(st.floats(0, 0.49), st.floats(0.51, 1), st.floats(0.5, 0.95))
@settings(max_examples=40)
def test_symmetries_and_monotony(p, q, power):
    assert sample_size_between(p, q, power=power) == sample_size_between(q, p, power=power)
    mirrored = sample_size_between(1 - p, 1 - q, power=power)
    assert mirrored == pytest.approx(sample_size_between(p, q, power=power), abs=1)
    assert sample_size_between(p, q, power=0.96) >= sample_size_between(p, q, power=power)
    assert sample_size_between(p, q, alpha=0.01) >= sample_size_between(p, q)
    assert sample_size_paired(0.1, 0.3) == sample_size_paired(-0.1, 0.3) > sample_size_paired(0.1, 0.2)
    assert sample_size(p, 0.05) == pytest.approx(sample_size(1 - p, 0.05), abs=1)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.6), (0.8, 0.9), (0.1, 0.3)])
def test_between_is_statsmodels(p, q):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.samplesize_proportions_2indep_onetail(p - q, q, 0.8, alternative="two-sided")
    assert sample_size_between(p, q) == pytest.approx(expected, abs=1)


def test_promised_power_is_the_simulated_one():
    rng = np.random.default_rng(0)
    n = sample_size_against(0.6)
    seen = rng.binomial(n, 0.6, 4000) / n
    assert 0.76 <= np.mean(np.abs(seen - 0.5) > 1.96 * np.sqrt(0.25 / n)) <= 0.84

    n = sample_size_between(0.5, 0.6, power=0.9)
    p, q = rng.binomial(n, 0.5, 4000) / n, rng.binomial(n, 0.6, 4000) / n
    middle = (p + q) / 2
    assert 0.88 <= np.mean(np.abs(p - q) > 1.96 * np.sqrt(2 * middle * (1 - middle) / n)) <= 0.92

    n = sample_size_paired(0.1, 0.2)
    b, c, _ = rng.multinomial(n, [0.15, 0.05, 0.8], 4000).T
    assert 0.77 <= np.mean(np.abs(b - c) > 1.96 * np.sqrt(b + c)) <= 0.84
    cases = np.arange(n)
    exact = [
        mcnemar(cases < x, (x <= cases) & (cases < x + y)).p < 0.05
        for x, y in zip(b[:200], c[:200], strict=True)
    ]
    assert 0.65 <= np.mean(exact) <= 0.85, "le test exact, plus prudent, voit un peu moins"


def test_design_effect_is_the_loss_of_groups():
    assert design_effect(4, 0.2) == pytest.approx(1.6)
    assert design_effect(1, 0.7) == 1 and design_effect(5, 1) == 5
    rng = np.random.default_rng(0)
    data = np.sqrt(0.3) * rng.normal(size=(4000, 20, 1)) + np.sqrt(0.7) * rng.normal(size=(4000, 20, 5))
    assert data.mean((1, 2)).var() * 100 == pytest.approx(design_effect(5, 0.3), rel=0.08)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: sample_size(1.2, 0.05), "La proportion est une probabilité"),
        (lambda: sample_size(np.nan, 0.05), "La proportion est une probabilité"),
        (lambda: sample_size(0.5, 0), "Demi-largeur de 0 impossible"),
        (lambda: sample_size_against(0.5), "écart nul"),
        (lambda: sample_size_against(0.6, power=1), "0 < risque < puissance < 1"),
        (lambda: sample_size_against(0.6, alpha=0), "0 < risque < puissance < 1"),
        (lambda: sample_size_against(0.6, -1), "La valeur de comparaison"),
        (lambda: sample_size_between(0.3, 0.3), "écart nul"),
        (lambda: sample_size_between(0.3, 3), "La seconde proportion"),
        (lambda: sample_size_paired(0.3, 0.2), r"au moins 0\.3 de désaccords"),
        (lambda: design_effect(0, 0.2), "au moins un essai"),
        (lambda: design_effect(4, 1.1), "Corrélation 1.1 impossible"),
        (lambda: design_effect(4, -0.5), "Corrélation -0.5 impossible"),
    ],
)
def test_impossible_plans(call, expected):
    with pytest.raises(MinidalleError, match=expected):
        call()
