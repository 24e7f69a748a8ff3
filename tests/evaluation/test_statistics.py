"""Mesures et intervalles : parité avec SciPy, couverture simulée, groupes, et ce qui n'existe pas."""

import contextlib
import itertools
from functools import partial

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.evaluation import statistics
from minidalle.evaluation.statistics import (
    CORRELATIONS,
    TIES,
    Estimate,
    Undefined,
    best_agreement,
    bootstrap,
    concordance,
    correlation,
    krippendorff_alpha,
    wilson,
    within_correlation,
)

grade = st.integers(0, 4)
rows = st.lists(st.tuples(grade, grade, st.integers(0, 3)), min_size=1, max_size=12)

# Quatre juges, douze objets : exemple de Krippendorff (2011), « Computing Krippendorff's alpha-reliability ».
_ = np.nan
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


@contextlib.contextmanager
def without_draws():
    """Des mesures sans tirages : seule leur valeur compte."""

    def value_alone(score, groups, **options):
        return Estimate(*[score(np.arange(len(groups)))] * 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "bootstrap", value_alone)
        yield


# --- proportions ---


def test_wilson_is_the_formula():
    k, n, z = 81, 91, scipy.stats.norm.ppf(0.975)
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(k, n) == pytest.approx((p, middle - half, middle + half))
    assert wilson(0, 10).low == 0 and wilson(10, 10).high == 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
def test_wilson_covers(p):
    draws = np.random.default_rng(0).binomial(40, p, 500)
    intervals = {k: wilson(k, 40) for k in set(draws.tolist())}
    covered = np.mean([intervals[k].low <= p <= intervals[k].high for k in draws.tolist()])
    assert 0.92 <= covered <= 0.985
    assert np.mean([wilson(k, 40, 0.5).low <= p <= wilson(k, 40, 0.5).high for k in draws.tolist()]) < 0.7


def test_impossible_counts():
    with pytest.raises(Undefined, match="sans aucun cas"):
        wilson(0, 0)
    with pytest.raises(MinidalleError, match="5 cas favorables sur 3"):
        wilson(5, 3)


# --- rééchantillonnage ---


def test_without_groups_it_is_the_bootstrap_of_scipy():
    data = np.random.default_rng(1).exponential(size=25)
    expected = scipy.stats.bootstrap(
        (data,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    found = bootstrap(lambda rows: data[rows].mean(), range(25), seed=3, resamples=500)
    assert found == pytest.approx((data.mean(), expected.low, expected.high))
    assert bootstrap(lambda rows: data[rows].mean(), range(25), seed=4, resamples=500) != found
    wide, narrow = (
        bootstrap(lambda rows: data[rows].mean(), range(25), level=level) for level in (0.99, 0.5)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_rows_of_a_group_are_drawn_together():
    """Chaque ligne répétée dix fois dans son groupe n'apprend rien de plus."""
    data = np.random.default_rng(0).normal(size=20)
    repeated = np.repeat(data, 10)
    alone = bootstrap(lambda rows: data[rows].mean(), range(20))
    together = bootstrap(lambda rows: repeated[rows].mean(), np.repeat(np.arange(20), 10).tolist())
    naive = bootstrap(lambda rows: repeated[rows].mean(), range(200))
    assert together == pytest.approx(alone)
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


def test_cluster_bootstrap_covers_and_a_naive_one_does_not():
    """Moyenne de 30 groupes de 4 lignes qui se ressemblent : l'intervalle à 90 % contient la vérité 9 fois sur 10."""
    rng = np.random.default_rng(5)
    covered = {"groupes": 0, "lignes": 0}
    groups = np.repeat(np.arange(30), 4).tolist()
    for seed in range(150):
        data = (rng.normal(size=(30, 1)) + 0.4 * rng.normal(size=(30, 4))).ravel()
        for name, by in (("groupes", groups), ("lignes", range(120))):
            found = bootstrap(lambda rows, d=data: d[rows].mean(), by, seed=seed, level=0.9, resamples=150)
            covered[name] += found.low <= 0 <= found.high
    assert 0.82 <= covered["groupes"] / 150 <= 0.96
    assert covered["lignes"] / 150 < 0.7


def test_draws_without_a_measure_are_dropped_unless_there_are_many():
    x = np.array([1.0] * 5 + [2.0, 3.0, 4.0])
    low, high = correlation("pearson", x, x)[1:]
    assert low == pytest.approx(1) and high == pytest.approx(1)  # quelques tirages n'ont que des 1
    with pytest.raises(Undefined, match="Trop peu de groupes"):
        correlation("pearson", [0, 0, 0, 1], [0, 0, 0, 1])
    with pytest.raises(Undefined, match="au moins deux groupes"):
        correlation("pearson", [0, 1, 2], [0, 1, 3], ["a"] * 3)


# --- corrélations ---


@given(rows)
@settings(max_examples=60)
def test_correlations_are_those_of_scipy(rows):
    x, y, _ = map(np.array, zip(*rows, strict=True))
    assume(len(set(x.tolist())) > 1 and len(set(y.tolist())) > 1)
    expected = (scipy.stats.spearmanr, scipy.stats.kendalltau, scipy.stats.pearsonr)
    for kind, function in zip(CORRELATIONS, expected, strict=True):
        assert statistics._correlation(kind, x, y) == pytest.approx(function(x, y).statistic, abs=1e-12)


def test_correlation_and_its_interval(monkeypatch):
    monkeypatch.setattr(statistics, "bootstrap", partial(bootstrap, resamples=200))
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    for kind in CORRELATIONS:
        value, low, high = correlation(kind, x, y)
        assert low < value < high and low > 0.2 and high < 0.95
        if kind != "pearson":
            assert correlation(kind, np.exp(x), y) == pytest.approx((value, low, high)), "seul l'ordre compte"
    assert correlation("spearman", x, y, np.repeat(range(30), 2).tolist()) != correlation("spearman", x, y)


@given(rows)
@settings(max_examples=30)
def test_never_nan(rows):
    x, y, groups = zip(*rows, strict=True)
    measures = [
        lambda: correlation("spearman", x, y, groups),
        lambda: within_correlation("kendall", x, y, groups),
        lambda: concordance(x, y, groups).estimate,
        lambda: best_agreement(x, y, groups).estimate,
        lambda: krippendorff_alpha(np.array([x, y]), groups=groups),
    ]
    with without_draws():
        for measure in measures:
            try:
                assert np.isfinite(measure()).all()
            except Undefined as error:
                assert str(error).endswith(".")


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([], [], "au moins deux lignes"),
        ([1], [2], "au moins deux lignes"),
        ([1, 1, 1], [1, 2, 3], "toutes les notes sont égales"),
        ([1, 2, 3], [0.1 + 0.2, 0.3, 0.3], "toutes les notes sont égales"),
        ([0, 0], [0, 1], "toutes les notes sont égales"),
    ],
)
def test_undefined_correlations(x, y, expected):
    for kind in CORRELATIONS:
        with pytest.raises(Undefined, match=expected):
            correlation(kind, x, y)


@pytest.mark.parametrize(
    ("kind", "x", "y", "groups", "expected"),
    [
        ("cosinus", [1, 2], [1, 2], None, "« cosinus » inconnue : choisir parmi spearman"),
        ("pearson", [1, 2], [1, 2, 3], None, "autant de notes"),
        ("pearson", [1, 2], [1, 2], ["a"], "un groupe par ligne"),
        ("pearson", [1, np.nan], [1, 2], None, "n'est pas un nombre"),
        ("pearson", [1, 2], [1, np.inf], None, "n'est pas un nombre"),
    ],
)
def test_faulty_rows(kind, x, y, groups, expected):
    with pytest.raises(MinidalleError, match=expected):
        correlation(kind, x, y, groups)


def test_within_correlation_ignores_what_separates_the_groups():
    """Dans chaque groupe, l'ordre s'inverse ; entre groupes, tout monte : les deux niveaux se contredisent."""
    x = np.array([10 * g + k for g in range(8) for k in range(3)])
    y = np.array([10 * g - k for g in range(8) for k in range(3)])
    groups = [g for g in range(8) for _ in range(3)]
    assert within_correlation("spearman", x, y, groups) == pytest.approx((-1, -1, -1))
    assert correlation("spearman", x, y, groups).value > 0.9
    constant = within_correlation("spearman", [*x, 5, 5], [*y, 0, 9], [*groups, "k", "k"])
    assert constant.value == pytest.approx(-1), "un groupe sans corrélation ne compte pas"
    with pytest.raises(Undefined, match="Aucun groupe"):
        within_correlation("spearman", [1, 2], [1, 2], ["a", "b"])


# --- ordre dans un groupe ---


@given(rows)
@settings(max_examples=60)
def test_concordance_counts_pairs(rows):
    agreeing = compared = pairs = 0
    for (x1, y1, g1), (x2, y2, g2) in itertools.combinations(rows, 2):
        pairs += g1 == g2
        if g1 == g2 and x1 != x2 and y1 != y2:
            compared += 1
            agreeing += (x1 < x2) == (y1 < y2)
    x, y, groups = zip(*rows, strict=True)
    with without_draws():
        if compared:
            found = concordance(x, y, groups)
            assert found[:3] == (agreeing, compared, pairs - compared)
            assert found.estimate.value == agreeing / compared
        else:
            with pytest.raises(Undefined, match="Aucune paire"):
                concordance(x, y, groups)


def test_concordance_interval_is_that_of_whole_groups():
    """Cent groupes de trois, tous justes ou tous faux : une pièce jetée cent fois, pas trois cents."""
    right = np.random.default_rng(0).integers(0, 2, 100)
    x = np.tile([0, 1, 2], 100)
    y = np.where(np.repeat(right, 3), x, -x)
    found = concordance(x, y, np.repeat(range(100), 3).tolist())
    assert (found.successes, found.trials) == (3 * right.sum(), 300)
    assert found.estimate.high - found.estimate.low == pytest.approx(2 * 1.96 * 0.05, abs=0.03)


def test_best_agreement_and_its_ties():
    groups = ["a", "a", "b", "b", "c", "c", "d", "d", "e"]
    x = [1, 0, 1, 1, 1, 1, 2, 1, 9]  # « b » et « c » ont deux meilleures, « e » est seule
    y = [5, 4, 3, 4, 4, 3, 1, 2, 0]
    found = {ties: best_agreement(x, y, groups, ties)[:3] for ties in TIES}
    assert found == {"first": (2, 4, 1), "any": (3, 4, 1), "unique": (1, 2, 3)}
    assert best_agreement(y, x, groups, "unique")[:3] == (1, 2, 3)
    assert best_agreement(x, y, groups, "any").estimate == wilson(3, 4)
    with pytest.raises(Undefined):
        best_agreement([1, 2], [1, 2], ["a", "b"], "first")
    with pytest.raises(MinidalleError, match="« tirage » inconnue"):
        best_agreement(x, y, groups, "tirage")


# --- accord des juges ---


@pytest.mark.parametrize(("scale", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorff_s_own_example(scale, expected):
    value, low, high = krippendorff_alpha(EXAMPLE, scale)
    assert value == pytest.approx(expected, abs=5e-4)
    assert low < value < high <= 1


def test_alpha_by_hand():
    """α = 1 − D_o/D_e, écarts au carré entre juges d'un objet, et entre toutes les notes."""
    grades = np.random.default_rng(0).integers(0, 5, (2, 30)).astype(float)
    grades[1, ::2] = grades[0, ::2]
    observed = np.mean((grades[0] - grades[1]) ** 2)
    every = grades.ravel()
    expected = np.mean([(a - b) ** 2 for a, b in itertools.permutations(every, 2)])
    assert krippendorff_alpha(grades, "interval").value == pytest.approx(1 - observed / expected)


def test_only_the_order_counts_for_the_ordinal_alpha():
    stretched = np.exp(EXAMPLE)
    assert krippendorff_alpha(stretched, "ordinal") == pytest.approx(krippendorff_alpha(EXAMPLE, "ordinal"))
    assert krippendorff_alpha(stretched, "interval").value != pytest.approx(
        krippendorff_alpha(EXAMPLE, "interval").value, abs=0.01
    )


def test_alpha_draws_whole_groups():
    grades = np.repeat(EXAMPLE[:, :11], 5, axis=1)
    together = krippendorff_alpha(grades, "interval", np.repeat(range(11), 5).tolist())
    naive = krippendorff_alpha(grades, "interval")
    assert together.value == naive.value
    assert naive.high - naive.low < 0.6 * (together.high - together.low)


@pytest.mark.parametrize(
    ("grades", "expected"),
    [
        ([[1, 2, 3]], "au moins deux juges"),
        ([[1, 2, _, _], [_, _, 3, 4]], "Aucun objet n'a deux notes"),
        ([[2, 2, 2], [2, 2, _]], "toutes les notes sont égales"),
        ([[2, 2, 5], [2, 2, _]], "toutes les notes sont égales"),
    ],
)
def test_undefined_alpha(grades, expected):
    with pytest.raises(Undefined, match=expected):
        krippendorff_alpha(np.array(grades, float))
