"""Mesures avec leur intervalle de confiance : ce que SciPy ne donne pas d'un seul appel.

Les lignes d'un même groupe se ressemblent : les légendes d'une image, les images d'une invite, les phrases d'une
famille. Les intervalles viennent donc d'un rééchantillonnage (*bootstrap*) qui retire au hasard, avec remise, des
groupes entiers : retirer des lignes donnerait des intervalles trop étroits.

Une mesure qui n'existe pas (la corrélation de notes toutes égales) lève `Undefined`, dont la phrase dit pourquoi :
aucune fonction ne rend nan.
"""

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from minidalle.errors import MinidalleError

CORRELATIONS = ("spearman", "kendall", "pearson")
TIES = ("first", "any", "unique")


class Undefined(MinidalleError):
    """Cette mesure n'existe pas pour ces données."""


class Estimate(NamedTuple):
    """Une mesure et les bornes de son intervalle de confiance."""

    value: float
    low: float
    high: float


class Ratio(NamedTuple):
    """Un compte, et la part qu'il donne.

    Attributes:
        successes: cas favorables.
        trials: cas comptés.
        dropped: cas écartés : ex æquo, ou sans rien à quoi se comparer.
        estimate: part des favorables parmi les comptés.
    """

    successes: int
    trials: int
    dropped: int
    estimate: Estimate


def wilson(successes: int, trials: int, level: float = 0.95) -> Estimate:
    """Proportion, et son intervalle de Wilson, bon même près de 0 ou de 1 ; les essais sont indépendants.

    Raises:
        Undefined: aucun essai.
        MinidalleError: compte impossible.
    """
    from scipy.stats import binomtest

    if not trials:
        raise Undefined("Une proportion n'a pas de sens sans aucun cas.")
    if not 0 <= successes <= trials:
        raise MinidalleError(f"Compte impossible : {successes} cas favorables sur {trials}.")
    low, high = binomtest(successes, trials).proportion_ci(level, "wilson")
    return Estimate(successes / trials, float(low), float(high))


def bootstrap(
    score: Callable[[np.ndarray], float],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """Mesure de toutes les lignes, et son intervalle par percentiles en retirant des groupes entiers.

    Il lui faut quelques dizaines de groupes : avec moins, il est trop étroit, et peut même manquer la mesure.

    Args:
        score: mesure des lignes dont on lui donne les numéros, (n,), certains plusieurs fois ; lève `Undefined` là où
            elle n'existe pas.
        groups: groupe de chaque ligne ; `range(n)` si elles sont sans rapport.
        seed: graine des tirages.
        level: niveau de confiance.
        resamples: nombre de tirages.

    Raises:
        Undefined: moins de deux groupes ; mesure qui n'existe pas, ou manque à plus d'un tirage sur vingt (en
            dessous, ces tirages sont ôtés).
    """
    members, rng = _members(groups), np.random.default_rng(seed)
    value = score(np.arange(len(groups)))
    if len(members) < 2:
        raise Undefined("Un intervalle de confiance veut au moins deux groupes (images, familles…).")
    draws = []
    for _ in range(resamples):
        picks = rng.integers(0, len(members), len(members))
        with contextlib.suppress(Undefined):
            draws.append(score(np.concatenate([members[i] for i in picks])))
    if len(draws) < 0.95 * resamples:
        raise Undefined(
            "Trop peu de groupes différents pour un intervalle de confiance : en noter davantage."
        )
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(float(value), float(low), float(high))


def correlation(
    kind: str,
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Corrélation de deux suites de n notes.

    Args:
        kind: « spearman » (rangs), « kendall » (τ-b, paires) ou « pearson » (valeurs).
        x: notes, (n,).
        y: notes, (n,).
        groups: groupe de chaque ligne, (n,) ; None si elles sont sans rapport.
        seed: graine des tirages.
        level: niveau de confiance.

    Raises:
        Undefined: moins de deux lignes, ou notes toutes égales.
        MinidalleError: corrélation inconnue, longueurs différentes, note qui n'est pas un nombre.
    """
    x, y, groups = _columns(x, y, groups)
    return bootstrap(lambda rows: _correlation(kind, x[rows], y[rows]), groups, seed=seed, level=level)


def within_correlation(
    kind: str,
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Moyenne des corrélations prises dans chaque groupe ; un groupe où elle n'existe pas ne compte pas.

    Arguments et erreurs : voir `correlation`.
    """
    x, y, groups = _columns(x, y, groups)
    values = []
    for rows in _members(groups):
        with contextlib.suppress(Undefined):
            values.append(_correlation(kind, x[rows], y[rows]))
    if not values:
        raise Undefined("Aucun groupe n'a de corrélation : chacun est seul ou noté d'une seule façon.")
    means = np.array(values)
    return bootstrap(lambda rows: means[rows].mean(), range(len(means)), seed=seed, level=level)


def concordance(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Ratio:
    """Paires d'un même groupe que x et y rangent pareil ; une paire ex æquo pour l'un ou l'autre est écartée.

    Arguments et erreurs : voir `correlation`.
    """
    x, y, groups = _columns(x, y, groups)
    table, pairs = [], 0
    for rows in _members(groups):
        i, j = np.triu_indices(len(rows), 1)
        same_way = np.sign(x[rows[i]] - x[rows[j]]) * np.sign(y[rows[i]] - y[rows[j]])
        table.append(((same_way > 0).sum(), (same_way != 0).sum()))
        pairs += len(i)
    counts = np.array(table)
    agreeing, compared = map(int, counts.sum(0))

    def share(rows: np.ndarray) -> float:
        agreeing, compared = counts[rows].sum(0)
        if not compared:
            raise Undefined("Aucune paire à comparer : dans chaque groupe, tout est ex æquo ou seul.")
        return agreeing / compared

    estimate = bootstrap(share, range(len(counts)), seed=seed, level=level)
    return Ratio(agreeing, compared, pairs - compared, estimate)


def best_agreement(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable],
    ties: str = "unique",
    *,
    level: float = 0.95,
) -> Ratio:
    """Groupes où x et y préfèrent la même ligne ; un groupe d'une seule ligne est écarté.

    Args:
        x: notes, (n,).
        y: notes, (n,).
        groups: groupe de chaque ligne, (n,) ; l'intervalle, de Wilson, les tient pour indépendants.
        ties: que faire de plusieurs meilleures lignes : « first », la première dans leur ordre est la préférée ;
            « any », une préférée commune suffit ; « unique », le groupe est écarté.
        level: niveau de confiance.

    Raises:
        Undefined: aucun groupe ne reste.
        MinidalleError: règle inconnue ; voir aussi `correlation`.
    """
    if ties not in TIES:
        raise MinidalleError(f"Règle « {ties} » inconnue : choisir parmi {', '.join(TIES)}.")
    x, y, groups = _columns(x, y, groups)
    members = _members(groups)
    bests = [[np.flatnonzero(z[rows] == z[rows].max()) for z in (x, y)] for rows in members if len(rows) > 1]
    if ties == "unique":
        bests = [(a, b) for a, b in bests if len(a) == len(b) == 1]
    if ties == "any":
        agreeing = sum(bool(np.intersect1d(a, b).size) for a, b in bests)
    else:
        agreeing = sum(bool(a[0] == b[0]) for a, b in bests)
    dropped = len(members) - len(bests)
    return Ratio(agreeing, len(bests), dropped, wilson(agreeing, len(bests), level))


def krippendorff_alpha(
    grades: np.ndarray,
    scale: str = "ordinal",
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """α de Krippendorff (2004), accord de plusieurs juges : 1 s'ils notent pareil, 0 s'ils notent au hasard.

    Args:
        grades: (juges, objets) ; nan où le juge n'a pas noté.
        scale: « nominal », « ordinal » (seul l'ordre des notes compte), « interval » (leurs écarts aussi).
        groups: groupe de chaque objet ; None s'ils sont sans rapport.
        seed: graine des tirages.
        level: niveau de confiance.

    Raises:
        Undefined: moins de deux juges, aucun objet noté deux fois, ou notes toutes égales.
    """
    from krippendorff import alpha

    grades = np.asarray(grades, float)
    if len(grades) < 2:
        raise Undefined(
            "L'accord des juges veut au moins deux juges : faire noter les mêmes objets par un autre."
        )
    twice = (~np.isnan(grades)).sum(0) >= 2
    if not twice.any():
        raise Undefined("Aucun objet n'a deux notes : faire noter les mêmes objets par plusieurs juges.")

    def agreement(columns: np.ndarray) -> float:
        chosen = grades[:, columns]
        known = chosen[~np.isnan(chosen)]
        if not known.size or (known == known[0]).all():
            raise Undefined("L'accord des juges n'a pas de sens quand toutes les notes sont égales.")
        return float(alpha(reliability_data=chosen, level_of_measurement=scale))

    grades = grades[:, twice]
    groups = range(len(twice)) if groups is None else groups
    kept = [group for group, both in zip(groups, twice, strict=True) if both]
    return bootstrap(agreement, kept, seed=seed, level=level)


def _columns(x: Sequence[float], y: Sequence[float], groups: Sequence[Hashable] | None) -> tuple:
    """Tableaux (n,) et groupes, vérifiés."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    groups = range(len(x)) if groups is None else groups
    if not len(x) == len(y) == len(groups):
        raise MinidalleError("Il faut autant de notes dans les deux suites, et un groupe par ligne.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MinidalleError("Une note manque ou n'est pas un nombre : retirer cette ligne ou la compléter.")
    return x, y, groups


def _members(groups: Sequence[Hashable]) -> list[np.ndarray]:
    """Numéros des lignes de chaque groupe, dans l'ordre où les groupes apparaissent."""
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return [np.array(rows) for rows in members.values()]


def _correlation(kind: str, x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import kendalltau, rankdata

    if kind not in CORRELATIONS:
        raise MinidalleError(f"Corrélation « {kind} » inconnue : choisir parmi {', '.join(CORRELATIONS)}.")
    if len(x) < 2:
        raise Undefined("Une corrélation veut au moins deux lignes.")
    if any(np.ptp(z) <= 1e-9 * np.abs(z).max() for z in (x, y)):  # aux arrondis près
        raise Undefined("Il n'y a pas de corrélation quand, d'un côté, toutes les notes sont égales.")
    if kind == "kendall":
        return float(kendalltau(x, y).statistic)
    if kind == "spearman":
        x, y = rankdata(x), rankdata(y)
    return float(np.corrcoef(x, y)[0, 1])
