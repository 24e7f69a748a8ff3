"""Écarts, familles de tests, lois de deux lots : parité avec SciPy et statsmodels, définitions, couverture simulée."""

import itertools
from math import comb

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.evaluation.comparisons import DISTANCES, difference, hedges_g, holm, two_samples
from minidalle.evaluation.statistics import Undefined, bootstrap

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)
values = st.lists(st.integers(0, 6), min_size=2, max_size=8)

# --- écart apparié ---


def test_difference_is_the_bootstrap_of_the_gap():
    rng = np.random.default_rng(0)
    a, b, groups = rng.normal(size=60) + 0.3, rng.normal(size=60), np.repeat(range(20), 3).tolist()
    found = difference(lambda r: a[r].mean(), lambda r: b[r].mean(), groups, seed=2, resamples=300)
    assert found.estimate == bootstrap(lambda r: a[r].mean() - b[r].mean(), groups, seed=2, resamples=300)
    swapped = difference(lambda r: b[r].mean(), lambda r: a[r].mean(), groups, seed=2, resamples=300)
    assert swapped.p == found.p
    assert swapped.estimate == pytest.approx([-found.estimate[i] for i in (0, 2, 1)])


def test_pairing_removes_what_both_measures_share():
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=40)
    a, b = prompts + 0.1, prompts + 0.05 * rng.normal(size=40)
    found = difference(lambda r: a[r].mean(), lambda r: b[r].mean(), range(40), resamples=500)
    assert found.p == pytest.approx(2 / 501) and found.estimate.low > 0
    assert scipy.stats.ttest_ind(a, b, equal_var=False).pvalue > 0.5


@pytest.mark.parametrize("null", [0.0, 0.2, 0.45, 0.9])
def test_p_and_interval_agree(null):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=30) + 0.4, rng.normal(size=30)
    found = {
        alternative: difference(
            lambda r: a[r].mean(),
            lambda r: b[r].mean(),
            range(30),
            null=null,
            alternative=alternative,
            level=0.9,
        )
        for alternative in ("two-sided", "greater", "less")
    }
    low, high = found["greater"].estimate[1:]
    assert (found["greater"].p < 0.05) == (null < low)
    assert (found["less"].p < 0.05) == (null > high)
    sides = found["greater"].p, found["less"].p
    assert found["two-sided"].p == min(1, 2 * min(sides)) and sum(sides) == pytest.approx(1, abs=1e-3)


def test_difference_errors():
    with pytest.raises(MinidalleError, match="« plus » inconnue : choisir parmi two-sided"):
        difference(len, len, range(5), alternative="plus")
    with pytest.raises(Undefined, match="au moins deux groupes"):
        difference(len, len, ["a", "a"])


# --- famille de tests ---


@given(p_values, st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_holm_is_that_of_statsmodels(p, random):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    found = holm(p)
    assert found == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert (found >= p).all() and (found <= 1).all()
    order = list(range(len(p)))
    random.shuffle(order)
    assert holm([p[i] for i in order]) == pytest.approx(found[order])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2]) == [0.2] and holm([0.6, 0.7]).tolist() == [1, 1]


def test_holm_rarely_finds_anything_in_nothing():
    rng = np.random.default_rng(0)
    none = [(holm(rng.uniform(size=9)) < 0.05).any() for _ in range(2000)]
    assert 0.035 <= np.mean(none) <= 0.06


def test_impossible_p_values():
    with pytest.raises(Undefined, match="Aucune p"):
        holm([])
    for wrong in ([0.1, np.nan], [-0.1], [1.1], [[0.1]]):
        with pytest.raises(MinidalleError, match="entre 0 et 1"):
            holm(wrong)


# --- taille de l'écart ---


def test_hedges_g_is_that_of_statsmodels():
    meta = pytest.importorskip("statsmodels.stats.meta_analysis")
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, 15), rng.normal(0, 1, 25)
    expected, _ = meta.effectsize_smd(x.mean(), x.std(ddof=1), 15, y.mean(), y.std(ddof=1), 25)
    assert hedges_g(x, y).value == pytest.approx(
        expected, rel=1e-3
    )  # correction approchée par 1 − 3/(4ν − 1)


@given(st.floats(-5, 5), st.floats(0.1, 10))
@settings(max_examples=25)
def test_hedges_g_ignores_the_unit_and_the_order(shift, scale):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=8) + 1, rng.normal(size=12)
    found = hedges_g(x, y, resamples=50)
    assert hedges_g(scale * x + shift, scale * y + shift, resamples=50) == pytest.approx(found)
    assert hedges_g(y, x[::-1], resamples=50).value == pytest.approx(-found.value)


def test_hedges_g_is_unbiased_and_covers():
    rng = np.random.default_rng(0)
    small = [hedges_g(rng.normal(size=4) + 1, rng.normal(size=4), resamples=1).value for _ in range(3000)]
    assert np.mean(small) == pytest.approx(1, abs=0.05)
    found = [hedges_g(rng.normal(size=40) + 0.5, rng.normal(size=40), resamples=200) for _ in range(300)]
    assert 0.9 <= np.mean([low <= 0.5 <= high for _, low, high in found]) <= 0.975


def test_impossible_effects():
    with pytest.raises(Undefined, match="au moins deux notes"):
        hedges_g([1], [1, 2])
    with pytest.raises(Undefined, match="toutes égales"):
        hedges_g([0.1 + 0.2] * 5, [0.3] * 5)
    with pytest.raises(Undefined, match="Un lot vide"):
        hedges_g([], [1, 2])
    with pytest.raises(MinidalleError, match="n'est pas un nombre"):
        hedges_g([1, np.nan], [1, 2])


# --- lois de deux lots ---


@given(values, values)
@settings(max_examples=25)
def test_distances_are_those_of_scipy(x, y):
    """Ex æquo compris."""
    assert two_samples(x, y, "ks", permutations=1).value == pytest.approx(
        scipy.stats.ks_2samp(x, y, method="asymp").statistic
    )
    found = two_samples(x, y, permutations=1)
    assert found.value == pytest.approx(scipy.stats.energy_distance(x, y) ** 2, abs=1e-12)
    assert two_samples(y, x[::-1], permutations=1).value == pytest.approx(found.value, abs=1e-12)


def test_energy_of_points_by_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(9, 3)) + 1

    def mean(a, b):
        return np.mean([np.linalg.norm(p - q) for p, q in itertools.product(a, b)])

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert two_samples(x, y, permutations=10).value == pytest.approx(expected)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert two_samples(x @ turn, y @ turn, permutations=10).value == pytest.approx(expected)


@pytest.mark.parametrize("kind", DISTANCES)
def test_all_permutations_of_two_small_lots(kind):
    """Lots séparés : seuls le partage observé et son échange sont aussi loin."""
    assert two_samples([1, 2, 3, 4], [7, 8, 9, 10], kind).p == pytest.approx(2 / comb(8, 4))
    assert two_samples([1, 2, 3, 4], [7, 8, 9, 10], kind, paired=True).p == pytest.approx(2 / 2**4)
    assert two_samples([1, 2], [1, 2], kind) == (0, 1)


@pytest.mark.parametrize("kind", DISTANCES)
def test_p_is_uniform_when_the_lots_have_the_same_law(kind):
    rng = np.random.default_rng(0)
    p = [
        two_samples(rng.normal(size=15), rng.normal(size=20), kind, permutations=99, seed=i).p
        for i in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.09 and 0.43 <= np.mean(p) <= 0.6


@pytest.mark.parametrize("kind", DISTANCES)
def test_p_sees_a_shift_and_a_pair_sees_a_smaller_one(kind):
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=60)
    x, y = prompts + 0.35 + 0.1 * rng.normal(size=60), prompts
    assert two_samples(x + 1, y, kind, permutations=400).p == pytest.approx(1 / 401)
    assert two_samples(x, y, kind, permutations=400, paired=True).p < 0.02
    assert two_samples(x, y, kind, permutations=400).p > 0.05


def test_pooled_pixels_would_lie():
    """Dix images par lot, cent pixels presque égaux par image : les pixels crient, les images se taisent."""
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=(10, 1)) + 0.01 * rng.normal(size=(10, 100)) for _ in range(2))
    assert scipy.stats.ks_2samp(x.ravel(), y.ravel()).pvalue < 1e-6
    assert two_samples(x.mean(1), y.mean(1), "ks").p > 0.05


def test_the_seed_is_the_only_chance():
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    assert two_samples(x, y, seed=3, permutations=200) == two_samples(x, y, seed=3, permutations=200)
    assert len({two_samples(x, y, seed=seed, permutations=200).p for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("x", "y", "options", "expected"),
    [
        ([1], [2], {"kind": "mmd"}, "« mmd » inconnue : choisir parmi energy"),
        ([], [2], {}, "Un lot vide"),
        ([1], [2, 3], {}, "à partir de deux images"),
        ([[1, 2]] * 2, [[1, 2, 3]] * 2, {}, "2 et 3 mesures par image"),
        ([[1, 2]], [[1, 2]], {"kind": "ks"}, "pas un tableau de forme"),
        ([1, 2, 3], [1, 2], {"paired": True}, "autant d'images"),
        ([1, np.inf], [1], {}, "n'est pas un nombre"),
    ],
)
def test_impossible_lots(x, y, options, expected):
    with pytest.raises(MinidalleError, match=expected):
        two_samples(x, y, **options)
