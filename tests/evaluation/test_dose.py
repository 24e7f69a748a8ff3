"""Courbe dose-réponse : vérité retrouvée, parité avec statsmodels, optimum, couverture, doses jamais atteintes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binom, norm
from scipy.stats import t as student

from minidalle.errors import MinidalleError
from minidalle.evaluation.dose import SLOPE, curve, dose_response
from minidalle.evaluation.statistics import Undefined

LEVELS = np.array([10, 50, 100, 500, 1000])
DOSES = np.repeat(LEVELS, 3)
TRIALS = np.full(15, 400)


def responses(a=-5.0, b=1.0, chance=0.5, *, seed=0, spread=0.0):
    """Réussites de 15 entraînements tirés de la courbe ; `spread` : écart-type des graines, en logits."""
    rng = np.random.default_rng(seed)
    share = expit(a + b * np.log(DOSES) + spread * rng.normal(size=15))
    return rng.binomial(TRIALS, chance + (1 - chance) * share)


def test_curve():
    assert curve(0, -5, 1, 0.5) == 0.5 and curve(np.exp(5), -5, 1, 0.5) == pytest.approx(0.75)
    assert curve(1e300, -5, 1, 0.25) == pytest.approx(1)
    shares = curve(DOSES, np.zeros((4, 1)), np.ones((4, 1)), 0.2)
    assert shares.shape == (4, 15)
    assert shares[0] == pytest.approx(0.2 + 0.8 * DOSES / (1 + DOSES))


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.5])
def test_exact_shares_give_the_exact_curve(chance):
    trials = np.full(15, 10**6)
    successes = curve(DOSES, -4, 0.8, chance) * trials
    found = dose_response(DOSES, successes, trials, chance, resamples=20)
    assert (found.intercept.value, found.slope.value) == pytest.approx((-4, 0.8), rel=1e-3)
    share = (0.75 - chance) / (1 - chance)
    expected = np.exp((np.log(share / (1 - share)) + 4) / 0.8)
    assert found.threshold.value == pytest.approx(expected, rel=1e-3) and found.reached
    assert found.threshold == pytest.approx([expected] * 3, rel=1e-3), (
        "sans écart entre graines, pas d'intervalle"
    )
    assert found.draws.shape == (20, 2) and (found.chance, found.target) == (chance, 0.75)


def test_without_a_floor_it_is_the_logistic_regression_of_statsmodels():
    api = pytest.importorskip("statsmodels.api")
    successes = responses(chance=0)
    design = api.add_constant(np.log(DOSES))
    fitted = api.GLM(
        np.stack([successes, TRIALS - successes], 1), design, family=api.families.Binomial()
    ).fit()
    found = dose_response(DOSES, successes, TRIALS, 0, resamples=2)
    assert (found.intercept.value, found.slope.value) == pytest.approx(fitted.params, abs=2e-3)


@given(st.floats(-8, -2), st.floats(0.3, 2), st.integers(0, 99))
@settings(max_examples=20)
def test_no_neighbour_is_likelier(a, b, seed):
    successes = responses(a, b, seed=seed)
    found = dose_response(DOSES, successes, TRIALS, 0.5, resamples=2)
    if abs(found.slope.value) > SLOPE - 0.1 or abs(found.intercept.value) > 8:
        return  # au bord : la vraisemblance monte encore dehors

    def likelihood(a, b):
        return binom.logpmf(successes, TRIALS, curve(DOSES, a, b, 0.5)).sum()

    a, b = found.intercept.value, found.slope.value
    best = likelihood(a, b)
    for i, j in ((0.05, 0), (-0.05, 0), (0, 0.01), (0, -0.01), (0.3, -0.06), (-0.3, 0.06)):
        assert likelihood(a + i, b + j) <= best + 1e-3


def test_rows_in_any_order_and_null_doses_for_nothing():
    successes = responses(seed=3)
    found = dose_response(DOSES, successes, TRIALS, 0.5, resamples=10)
    order = np.random.default_rng(0).permutation(15)
    shuffled = dose_response(DOSES[order], successes[order], TRIALS[order], 0.5, resamples=10)
    assert [x.value for x in shuffled[:3]] == pytest.approx([x.value for x in found[:3]])
    zeros = dose_response([0, *DOSES, 0], [400, *successes, 0], [400, *TRIALS, 400], 0.5, resamples=10)
    assert zeros[:3] == found[:3]
    ten = dose_response(10 * DOSES, successes, TRIALS, 0.5, resamples=10)
    assert ten.slope == pytest.approx(found.slope, rel=1e-3)
    assert ten.threshold == pytest.approx([10 * x for x in found.threshold], rel=1e-3)
    again = dose_response(DOSES, successes, TRIALS, 0.5, resamples=10, seed=1)
    assert again.slope.value == found.slope.value and again.slope != found.slope


def test_seeds_that_disagree_widen_the_interval():
    same = dose_response(DOSES, np.repeat([205, 220, 250, 340, 370], 3), TRIALS, 0.5, resamples=50)
    apart = np.add.outer([205, 220, 250, 340, 370], [-15, 0, 15]).ravel()
    found = dose_response(DOSES, apart, TRIALS, 0.5, resamples=200)
    assert found.slope.value == pytest.approx(same.slope.value)
    assert same.slope.high - same.slope.low == pytest.approx(0, abs=1e-3)
    assert found.slope.low + 0.1 < found.slope.value < found.slope.high - 0.1
    narrow = dose_response(DOSES, apart, TRIALS, 0.5, resamples=200, level=0.5)
    assert found.threshold.low < narrow.threshold.low < narrow.threshold.high < found.threshold.high


def test_the_spread_of_the_draws_is_that_of_independent_studies():
    """Trois graines : en retirer trois donnerait un écart-type trop petit de 18 %."""
    slopes, spreads = [], []
    for seed in range(80):
        found = dose_response(DOSES, responses(seed=seed, spread=0.3), TRIALS, 0.5, resamples=20, seed=seed)
        slopes.append(found.slope.value)
        spreads.append(found.draws[:, 1].var(ddof=1))
    assert np.sqrt(np.mean(spreads)) / np.std(slopes) == pytest.approx(1, abs=0.12)


def test_few_runs_widen_the_percentiles_like_student():
    found = dose_response(DOSES, responses(spread=0.3), TRIALS, 0.5, resamples=400)
    outside = norm.cdf(student.ppf(0.025, 15 - 5))
    assert 0.01 < outside < 0.02
    low, high = np.quantile(found.draws[:, 1], [outside, 1 - outside], method="inverted_cdf")
    assert found.slope[1:] == pytest.approx((low, high))


def test_intervals_cover():
    covered = []
    for seed in range(40):
        found = dose_response(DOSES, responses(seed=seed, spread=0.2), TRIALS, 0.5, resamples=50, seed=seed)
        truths = zip(found[:3], (-5, 1, np.exp(5)), strict=True)
        covered.append([x.low <= truth <= x.high for x, truth in truths])
    assert (np.mean(covered, 0) >= 0.83).all() and np.mean(covered) < 0.995


# --- doses jamais atteintes, réponses sans pente ---


def test_a_dose_never_reached_is_infinite():
    flat = dose_response(DOSES, np.random.default_rng(0).binomial(400, 0.5, 15), TRIALS, 0.5, resamples=30)
    assert not flat.reached and flat.threshold == (np.inf,) * 3
    falling = dose_response(DOSES, responses(a=1.5, b=-1), TRIALS, 0.5, resamples=30)
    assert falling.slope.high < 0 and not falling.reached
    late = dose_response(
        DOSES, responses(a=-9), TRIALS, 0.5, resamples=30
    )  # atteinte à 8 100, jamais essayée
    assert late.slope.value > 0.5 and not late.reached, "rien n'est extrapolé"
    below = dose_response(DOSES, np.full(15, 150), TRIALS, 0.5, resamples=5)  # sous le hasard partout
    assert not below.reached and np.isfinite(below.intercept).all()


def test_a_threshold_in_doubt_has_an_infinite_bound():
    apart = np.add.outer(400 * curve(LEVELS, -np.log(800), 1, 0.5), [-25, 0, 25]).ravel()
    found = dose_response(DOSES, apart, TRIALS, 0.5, resamples=100)
    assert found.reached and found.threshold.low < 1000 and found.threshold.high == np.inf


def test_reached_at_once_is_the_smallest_dose():
    found = dose_response(DOSES, responses(a=2, b=0.5), TRIALS, 0.5, resamples=10)
    assert found.threshold == (10, 10, 10)


def test_a_step_has_a_bounded_slope():
    found = dose_response(DOSES, np.where(DOSES > 60, 400, 200), TRIALS, 0.5, resamples=5)
    assert found.slope.value == pytest.approx(SLOPE)
    assert 50 < found.threshold.value < 100


@pytest.mark.parametrize(
    ("doses", "successes", "trials", "chance", "expected"),
    [
        ([1, 1, 2, 2], [1, 2, 3], [5] * 4, 0.5, "une dose, un compte"),
        ([1, 1, -2, 2], [1] * 4, [5] * 4, 0.5, "positif ou nul"),
        ([1, 1, np.nan, 2], [1] * 4, [5] * 4, 0.5, "positif ou nul"),
        ([1, 1, 2, 2], [6] * 4, [5] * 4, 0.5, "Compte impossible"),
        ([1, 1, 2, 2], [0] * 4, [0] * 4, 0.5, "Compte impossible"),
        ([1, 1, 2, 2], [1, 1, 1, np.nan], [5] * 4, 0.5, "Compte impossible"),
        ([1, 1, 2, 2], [1] * 4, [5] * 4, 0.8, "plancher < cible"),
        ([1, 1, 2, 2], [1] * 4, [5] * 4, -0.1, "0 ≤ plancher"),
    ],
)
def test_impossible_doses(doses, successes, trials, chance, expected):
    with pytest.raises(MinidalleError, match=expected):
        dose_response(doses, successes, trials, chance)


def test_too_few_doses_or_seeds():
    with pytest.raises(Undefined, match="au moins deux doses"):
        dose_response([], [], [], 0.5)
    with pytest.raises(Undefined, match="au moins deux doses"):
        dose_response([0, 0, 5, 5], [1] * 4, [5] * 4, 0.5)
    with pytest.raises(Undefined, match="au moins deux entraînements"):
        dose_response([5, 5, 9], [1] * 3, [5] * 3, 0.5)
