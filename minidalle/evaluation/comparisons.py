"""Comparer deux mesures ou deux lots d'images, et compter combien de comparaisons on a faites.

L'unité est ce qui est indépendant : une moyenne par invite, pas une ligne par image, jamais un pixel. SciPy suffit au
reste : `scipy.stats.ttest_ind(x, y, equal_var=False)` est le test de Welch (intervalle compris), `ttest_rel` et
`wilcoxon` sont ses versions appariées.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from minidalle.errors import MinidalleError
from minidalle.evaluation.statistics import Estimate, Undefined, bootstrap

ALTERNATIVES = ("two-sided", "greater", "less")
DISTANCES = ("energy", "ks")


class Difference(NamedTuple):
    """Écart de deux mesures, son intervalle, et la p de l'hypothèse nulle."""

    estimate: Estimate
    p: float


class Distance(NamedTuple):
    """Distance de deux lots, et sa p par permutation."""

    value: float
    p: float


def difference(
    first: Callable[[np.ndarray], float],
    second: Callable[[np.ndarray], float],
    groups: Sequence[Hashable],
    *,
    null: float = 0.0,
    alternative: str = "two-sided",
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Difference:
    """Écart apparié de deux mesures : à chaque tirage, toutes deux voient les mêmes groupes (voir `bootstrap`).

    La p est la part des tirages du mauvais côté de `null`, celle qui va avec l'intervalle par percentiles ; elle ne
    descend pas sous 1/(tirages + 1).

    Args:
        first: première mesure des lignes dont on lui donne les numéros.
        second: seconde mesure des mêmes lignes.
        groups: groupe de chaque ligne (son invite).
        null: écart de l'hypothèse nulle : 0,3 pour montrer que l'écart dépasse 0,3.
        alternative: « two-sided » (l'écart n'est pas `null`), « greater » (il le dépasse), « less ».
        seed: graine des tirages.
        level: niveau de confiance.
        resamples: nombre de tirages.

    Raises:
        Undefined: voir `bootstrap`.
        MinidalleError: alternative inconnue.
    """
    if alternative not in ALTERNATIVES:
        raise MinidalleError(
            f"Alternative « {alternative} » inconnue : choisir parmi {', '.join(ALTERNATIVES)}."
        )
    seen = []

    def gap(rows: np.ndarray) -> float:
        seen.append(float(first(rows) - second(rows)))
        return seen[-1]

    estimate = bootstrap(gap, groups, seed=seed, level=level, resamples=resamples)
    draws = np.array(seen[1:])  # le premier appel est la mesure de toutes les lignes
    below, above = ((1 + side.sum()) / (1 + len(draws)) for side in (draws <= null, draws >= null))
    p = {"greater": below, "less": above, "two-sided": min(1, 2 * min(below, above))}[alternative]
    return Difference(estimate, float(p))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p ajustées d'une famille de m tests, dans l'ordre donné (Holm, 1979).

    Rejeter celles sous 5 % limite à 5 % le risque d'une seule fausse découverte dans la famille, quelle que soit la
    dépendance des tests.

    Args:
        p_values: p de chaque test, (m,).

    Returns:
        p ajustées, (m,).

    Raises:
        Undefined: aucune p.
        MinidalleError: p qui n'est pas entre 0 et 1, nan compris.
    """
    p = np.asarray(p_values, float)
    if not p.size:
        raise Undefined("Aucune p à ajuster.")
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():  # nan n'est ni l'un ni l'autre
        raise MinidalleError("Une p est un nombre entre 0 et 1 : une valeur manque ou sort de là.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def hedges_g(
    x: Sequence[float], y: Sequence[float], *, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> Estimate:
    """Écart de deux moyennes en écarts-types communs, sans biais si les notes sont normales (Hedges, 1981).

    L'intervalle, par percentiles, retire les notes de chaque lot avec remise ; il est un peu étroit sous trente notes.

    Args:
        x: notes du premier lot, (n,), une par invite.
        y: notes du second, (m,), sans rapport avec les premières.
        seed: graine des tirages.
        level: niveau de confiance.
        resamples: nombre de tirages.

    Raises:
        Undefined: moins de deux notes d'un côté, ou notes toutes égales des deux côtés, même d'un tirage sur vingt.
        MinidalleError: note qui n'est pas un nombre.
    """
    from scipy.special import gammaln

    x, y = (_sample(z, 1)[:, 0] for z in (x, y))
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise Undefined("Un écart en écarts-types veut au moins deux notes de chaque côté.")
    df = n + m - 2
    unbiased = np.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / np.sqrt(df / 2) if df > 1 else 0.0

    def effect(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        pooled = ((n - 1) * x.var(-1, ddof=1) + (m - 1) * y.var(-1, ddof=1)) / df
        with np.errstate(divide="ignore", invalid="ignore"):
            return unbiased * (x.mean(-1) - y.mean(-1)) / np.sqrt(np.where(pooled > 1e-18, pooled, np.nan))

    rng = np.random.default_rng(seed)
    draws = effect(x[rng.integers(n, size=(resamples, n))], y[rng.integers(m, size=(resamples, m))])
    draws, value = draws[np.isfinite(draws)], float(effect(x, y))
    if not np.isfinite(value) or len(draws) < 0.95 * resamples:
        raise Undefined("Un écart en écarts-types n'a pas de sens entre des notes toutes égales.")
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(value, float(low), float(high))


def two_samples(
    x: np.ndarray,
    y: np.ndarray,
    kind: str = "energy",
    *,
    paired: bool = False,
    seed: int = 0,
    permutations: int = 2000,
) -> Distance:
    """Deux lots d'images ont-ils la même loi ? Distance de leurs mesures, et p par permutation des lots.

    Les p toutes faites du test de Kolmogorov-Smirnov supposent des mesures sans ex æquo, et des milliers de pixels
    d'une même image n'en font pas une : une ligne par image (ou par invite, si chacune a plusieurs images).

    Args:
        x: mesures du premier lot, (n,) ou, pour « energy », (n, d).
        y: mesures du second, (m,) ou (m, d).
        kind: « energy », 2·E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖ (Székely et Rizzo, 2013), en unités des mesures ; « ks »,
            plus grand écart des fonctions de répartition, entre 0 et 1.
        paired: les lignes vont par paires (même invite, même graine) : on n'échange que dans une paire.
        seed: graine des permutations.
        permutations: nombre de permutations ; toutes, s'il y en a moins.

    Raises:
        Undefined: lot de moins de deux images.
        MinidalleError: distance inconnue, dimensions différentes, mesure qui n'est pas un nombre, paires dépareillées.
    """
    from scipy.spatial.distance import cdist
    from scipy.stats import permutation_test

    if kind not in DISTANCES:
        raise MinidalleError(f"Distance « {kind} » inconnue : choisir parmi {', '.join(DISTANCES)}.")
    x, y = (_sample(z, 1 if kind == "ks" else None) for z in (x, y))
    n, m = len(x), len(y)
    if x.shape[1] != y.shape[1]:
        raise MinidalleError(
            f"Les lots ont {x.shape[1]} et {y.shape[1]} mesures par image : il faut les mêmes."
        )
    if min(n, m) < 2:
        raise Undefined("Deux lots ne se comparent qu'à partir de deux images chacun.")
    if paired and n != m:
        raise MinidalleError(f"Il faut autant d'images dans les deux lots pour les apparier : {n} et {m}.")
    both = np.concatenate([x, y])
    if kind == "energy":
        apart = cdist(both, both)
    else:
        order = np.argsort(both[:, 0], kind="stable")
        # la répartition ne se lit qu'après le dernier des ex æquo
        ends = np.append(np.diff(both[order, 0]) > 0, True)

    def distance(rows: np.ndarray, others: np.ndarray, axis: int = -1) -> np.ndarray:
        """Distance des lots faits de ces lignes, (…, n) et (…, m), numéros entiers."""
        weights = np.zeros((*rows.shape[:-1], n + m))
        np.put_along_axis(weights, rows, 1 / n, -1)
        np.put_along_axis(weights, others, -1 / m, -1)
        if kind == "energy":
            return -((weights @ apart) * weights).sum(-1)
        return np.abs(weights[..., order].cumsum(-1)[..., ends]).max(-1)

    rows, others = np.arange(n), np.arange(n, n + m)
    found = permutation_test(
        (rows, others),
        distance,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=permutations,
        batch=250,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return Distance(max(float(distance(rows, others)), 0.0), float(found.pvalue))


def _sample(values: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Mesures (n, d), vérifiées ; d = `dimensions` s'il est imposé."""
    values = np.asarray(values, float)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or (dimensions is not None and values.shape[1] != dimensions):
        raise MinidalleError(f"Il faut une suite de nombres, pas un tableau de forme {values.shape}.")
    if not len(values):
        raise Undefined("Un lot vide ne se compare à rien.")
    if not np.isfinite(values).all():
        raise MinidalleError(
            "Une mesure manque ou n'est pas un nombre : retirer cette ligne ou la compléter."
        )
    return values
