"""Proportions appariées, équivalentes, corrigées : parité avec statsmodels, définitions, couverture simulée."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from minidalle.errors import MinidalleError
from minidalle.evaluation.proportions import (
    SMALLEST_P,
    above_chance,
    equivalence,
    mcnemar,
    rogan_gladen,
    skill,
)
from minidalle.evaluation.statistics import Undefined, bootstrap, wilson

verdicts = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@cache
def pairs(b, c, n, level=0.95):
    """McNemar sur n cas dont b et c désaccords."""
    first = np.arange(n) < b
    second = (b <= np.arange(n)) & (np.arange(n) < b + c)
    return mcnemar(first, second, level)


def score(b, c, n, gap):
    """Statistique du score, la vraisemblance des trois parts étant maximisée à la main sous l'écart `gap`."""

    def loss(q):
        agree = 1 - 2 * q - gap
        terms = [k * np.log(x) for k, x in ((b, q + gap), (c, q), (n - b - c, agree)) if k]
        return -sum(terms)

    low, high = max(0, -gap), (1 - gap) / 2
    q = minimize_scalar(
        loss, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-13}
    ).x
    return (b - c - n * gap) / np.sqrt(n * (2 * q + gap - gap**2))


# --- McNemar ---


@given(verdicts)
@settings(max_examples=60)
def test_mcnemar_is_that_of_statsmodels(rows):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    a, b = map(np.array, zip(*rows, strict=True))
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    found = mcnemar(a, b)
    assert found.p == pytest.approx(tables.mcnemar(table, exact=True).pvalue)
    assert found.difference.value == pytest.approx(a.mean() - b.mean())
    assert (found.first_only, found.second_only) == (table[0][1], table[1][0])


@pytest.mark.parametrize(("b", "c", "n"), [(40, 20, 160), (3, 9, 30), (5, 0, 20), (0, 0, 25), (0, 2, 9)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_bounds_are_the_gaps_that_the_score_just_accepts(b, c, n, level):
    _, low, high = pairs(b, c, n, level).difference
    z = norm.ppf((1 + level) / 2)
    assert [score(b, c, n, low), score(b, c, n, high)] == pytest.approx([z, -z], abs=1e-3)


def test_without_any_disagreement_the_bounds_have_a_formula():
    z2 = norm.ppf(0.975) ** 2
    assert pairs(0, 0, 30).difference == pytest.approx((0, -z2 / (30 + z2), z2 / (30 + z2)), abs=1e-6)
    assert pairs(0, 0, 30).p == 1
    assert pairs(10, 0, 10).difference[::2] == (1, 1) and pairs(0, 10, 10).difference[:2] == (-1, -1)


@given(verdicts, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_mcnemar_swaps_and_shuffles(rows, random):
    a, b = zip(*rows, strict=True)
    found, swapped = mcnemar(a, b), mcnemar(b, a)
    value, low, high = found.difference
    assert -1 <= low <= value <= high <= 1
    assert swapped.difference == pytest.approx((-value, -high, -low)) and swapped.p == found.p
    # l'intervalle évite 0 quand le test asymptotique refuse l'égalité
    discordant = found.first_only + found.second_only
    z = abs(found.first_only - found.second_only) / np.sqrt(discordant) if discordant else 0
    assert (low > 1e-9 or high < -1e-9) == (z > norm.ppf(0.975))
    random.shuffle(rows)
    assert mcnemar(*zip(*rows, strict=True)) == found


def test_tango_covers():
    draws = np.random.default_rng(0).multinomial(50, [0.2, 0.08, 0.72], 600)
    found = [pairs(int(b), int(c), 50).difference for b, c, _ in draws]
    assert 0.93 <= np.mean([low <= 0.12 <= high for _, low, high in found]) <= 0.975


def test_impossible_pairs():
    with pytest.raises(Undefined, match="sans aucun cas"):
        mcnemar([], [])
    with pytest.raises(MinidalleError, match="3 cas d'un côté, de 2"):
        mcnemar([1, 0, 1], [1, 0])
    for wrong in ([0.5, 1], [[True, False]], [2, 1], [np.nan, 1]):
        with pytest.raises(MinidalleError, match="vrais et de faux"):
            mcnemar(wrong, [True, False])


# --- équivalence ---


@pytest.mark.parametrize(("k", "n"), [(52, 100), (210, 400), (160, 400), (57, 100), (30, 40)])
def test_equivalence_is_the_tost_of_statsmodels(k, n):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportions_ztost(k, n, 0.4, 0.6, prop_var="limits")[0]
    found = equivalence(lambda level: wilson(k, n, level), 0.5, 0.1)
    assert found.p == pytest.approx(max(expected, SMALLEST_P) if abs(k / n - 0.5) < 0.1 else 1, rel=2e-3)
    assert found.equivalent == (expected < 0.05)
    assert found.interval == wilson(k, n, 0.9)


@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.02, 0.5))
@settings(max_examples=50)
def test_verdict_p_and_interval_agree(counts, margin):
    found = equivalence(lambda level: wilson(*counts, level), 0.5, margin)
    _, low, high = found.interval
    assert found.equivalent == (0.5 - margin < low and high < 0.5 + margin)
    assert SMALLEST_P <= found.p <= 1
    if not 0.0499 < found.p < 0.0501:
        assert found.equivalent == (found.p < 0.05)
    assert equivalence(lambda level: wilson(*counts, level), 0.5, margin + 0.1).p <= found.p * 1.002


def test_not_different_is_not_equal():
    assert not equivalence(lambda level: wilson(10, 20, level), 0.5, 0.1).equivalent
    assert equivalence(lambda level: wilson(500, 1000, level), 0.5, 0.1).equivalent
    assert equivalence(lambda level: pairs(4, 5, 300, level).difference, 0, 0.05).equivalent
    assert not equivalence(lambda level: pairs(4, 5, 60, level).difference, 0, 0.05).equivalent
    assert equivalence(lambda level: skill((201, 400), 0.5, level), 0, 0.1).equivalent
    data = np.random.default_rng(0).normal(size=100)
    found = equivalence(
        lambda level: bootstrap(lambda rows: data[rows].mean(), range(100), level=level, resamples=400),
        0,
        0.5,
    )
    assert found.equivalent and found.p <= 0.05


def test_equivalence_is_rarely_declared_at_the_margin():
    draws = np.random.default_rng(0).binomial(200, 0.6, 2000)
    declared = {
        k: equivalence(lambda level, k=k: wilson(k, 200, level), 0.5, 0.1) for k in set(draws.tolist())
    }
    assert 0.03 <= np.mean([declared[k].equivalent for k in draws.tolist()]) <= 0.065


def test_impossible_equivalences():
    for margin in (0, -0.1, np.nan):
        with pytest.raises(MinidalleError, match="marge"):
            equivalence(lambda level: wilson(1, 2, level), 0.5, margin)
    with pytest.raises(MinidalleError, match=r"alpha = 0\.5 impossible"):
        equivalence(lambda level: wilson(1, 2, level), 0.5, 0.1, alpha=0.5)


# --- adresse ---


def test_skill_with_a_known_chance_is_wilson_rescaled():
    found = skill((70, 100), 0.25)
    assert found == pytest.approx([(x - 0.25) / 0.75 for x in wilson(70, 100)])
    assert skill((70, 100), 0) == pytest.approx(wilson(70, 100))
    assert (skill((25, 100), 0.25).value, skill((9, 9), 0.25).value) == (0, 1)
    assert skill((0, 100), 0.5).value == -1


def test_skill_with_a_measured_chance_is_the_delta_method():
    a, k, n, m = 0.7, 0.4, 40_000, 30_000
    spread = np.sqrt(a * (1 - a) / n / (1 - k) ** 2 + (1 - a) ** 2 * k / m / (1 - k) ** 3)
    value, low, high = skill((28_000, n), (12_000, m))
    assert (value, high - low) == pytest.approx((0.5, 2 * 1.96 * spread), rel=1e-3)
    assert high - low > 1.1 * np.diff(skill((28_000, n), k)[1:])[0], "le hasard mesuré ajoute son incertitude"


@pytest.mark.parametrize(
    ("a", "k", "n", "m"), [(0.5, 0.5, 100, 100), (0.9, 0.25, 100, 60), (0.3, 0.25, 40, 40)]
)
def test_skill_covers(a, k, n, m):
    rng = np.random.default_rng(0)
    found = [
        skill((x, n), (y, m))
        for x, y in zip(rng.binomial(n, a, 500).tolist(), rng.binomial(m, k, 500).tolist(), strict=True)
    ]
    truth = (a - k) / (1 - k)
    assert 0.93 <= np.mean([low <= truth <= high for _, low, high in found]) <= 0.98


@given(st.integers(0, 29), st.integers(0, 19))
@settings(max_examples=40)
def test_skill_grows_with_accuracy_and_falls_with_chance(right, lucky):
    found = skill((right, 30), (lucky, 20))
    assert found.low <= found.value <= found.high <= 1
    assert found.value <= skill((right + 1, 30), (lucky, 20)).value
    if lucky < 19 and right < 30:
        assert found.value > skill((right, 30), (lucky + 1, 20)).value


def test_impossible_skills():
    for chance in (1, (20, 20)):
        with pytest.raises(Undefined, match="le hasard réussit toujours"):
            skill((5, 10), chance)
    for chance in (-0.1, 1.5, np.nan):
        with pytest.raises(MinidalleError, match="c'est une probabilité"):
            skill((5, 10), chance)
    with pytest.raises(Undefined, match="sans aucun cas"):
        skill((0, 0), 0.5)
    with pytest.raises(MinidalleError, match="7 cas favorables sur 5"):
        skill((7, 5), 0.5)
    assert above_chance(0.75, 0.5) == 0.5


# --- erreur de l'oracle ---


def test_rogan_gladen_finds_the_true_share():
    seen = 0.3 * 0.9 + 0.7 * 0.2  # 30 % de vrais, un oracle à 90 % et 20 %
    found = rogan_gladen((seen * 100_000, 100_000), (90_000, 100_000), (20_000, 100_000))
    assert found.value == pytest.approx(0.3)
    spread = np.sqrt((seen * (1 - seen) + 0.3**2 * 0.09 + 0.7**2 * 0.16) / 100_000) / 0.7
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.05)


def test_a_faultless_oracle_is_not_an_infallible_one():
    few, many = (
        rogan_gladen((200, 400), (20, 20), (0, 20)),
        rogan_gladen((200, 400), (10**6, 10**6), (0, 10**6)),
    )
    assert few.value == many.value == 0.5
    assert many == pytest.approx(wilson(200, 400), abs=0.005)
    assert few.high - few.low > 1.15 * (many.high - many.low)


def test_rogan_gladen_stays_a_proportion():
    assert rogan_gladen((1, 100), (95, 100), (10, 100))[:2] == (0, 0)
    assert rogan_gladen((99, 100), (90, 100), (1, 100))[::2] == (1, 1)
    assert rogan_gladen((100, 100), (50, 50), (0, 50)).high == 1
    draws = [rogan_gladen((40, 90), (45, 50), (4, 50), seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    narrow = rogan_gladen((40, 90), (45, 50), (4, 50), level=0.5)
    assert draws[0].low < narrow.low < narrow.high < draws[0].high


@pytest.mark.parametrize(("share", "hit", "alarm"), [(0.5, 0.95, 0.05), (0.3, 0.995, 0.005), (0.9, 0.9, 0.1)])
def test_rogan_gladen_covers(share, hit, alarm):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        k, t, f = (int(rng.binomial(100, p)) for p in (share * hit + (1 - share) * alarm, hit, alarm))
        found = rogan_gladen((k, 100), (t, 100), (f, 100), resamples=1000)
        covered += found.low <= share <= found.high
    assert 0.91 <= covered / 400 <= 0.985


def test_an_oracle_that_knows_nothing():
    for right, wrong in (((5, 10), (5, 10)), ((4, 10), (6, 10)), ((6, 10), (4, 10))):
        with pytest.raises(Undefined, match="ne distingue pas"):
            rogan_gladen((5, 10), right, wrong)
    with pytest.raises(Undefined, match="sans aucun cas"):
        rogan_gladen((5, 10), (0, 0), (1, 10))
    with pytest.raises(MinidalleError, match="11 cas favorables sur 10"):
        rogan_gladen((11, 10), (9, 10), (1, 10))
