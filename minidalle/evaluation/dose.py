"""Dose et réponse : combien de fois faut-il avoir lu un mot pour savoir ce qu'il dit ?

L'exactitude part d'un plancher k, celle du hasard, et monte avec le logarithme de la dose d (nombre de légendes
apprises qui disent la relation) : A(d) = k + (1 − k)·σ(a + b·ln d), où σ est la fonction logistique. C'est la
régression logistique à plancher des études de dose (Finney, 1971).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minidalle.errors import MinidalleError
from minidalle.evaluation.statistics import Estimate, Undefined

HEIGHT, SLOPE = 12.0, 12.0  # bornes : une réponse en marche d'escalier, ou nulle, n'a pas de pente finie


class DoseResponse(NamedTuple):
    """Courbe ajustée.

    Attributes:
        intercept: a, et son intervalle.
        slope: b, par multiplication de la dose par e, et son intervalle ; une borne à ± 12 dit que les doses essayées
            ne la mesurent pas.
        threshold: dose qui donne l'exactitude `target`. L'infini si aucune dose essayée ne la donne (rien n'est
            extrapolé) ; la plus petite dose si elle la donne déjà. Quand b est à sa borne, la réponse saute d'une dose
            essayée à la suivante : le seuil est entre les deux, et son intervalle, trop étroit, ne le dit pas.
        target: exactitude visée.
        chance: plancher k.
        draws: (tirages, 2), a et b de chaque tirage, pour une bande ou pour le rapport de deux courbes.
    """

    intercept: Estimate
    slope: Estimate
    threshold: Estimate
    target: float
    chance: float
    draws: np.ndarray

    @property
    def reached(self) -> bool:
        """La courbe atteint-elle la cible avant la plus grande dose essayée ?"""
        return bool(np.isfinite(self.threshold.value))


def curve(dose: np.ndarray, intercept: np.ndarray, slope: np.ndarray, chance: float) -> np.ndarray:
    """Exactitude A(d) = k + (1 − k)·σ(a + b·ln d) ; une dose nulle donne k. Les formes se diffusent."""
    from scipy.special import expit

    dose = np.asarray(dose, float)
    some = dose > 0
    return chance + (1 - chance) * some * expit(intercept + slope * np.log(np.where(some, dose, 1)))


def dose_response(
    doses: Sequence[float],
    successes: Sequence[int],
    trials: Sequence[int],
    chance: float,
    *,
    target: float = 0.75,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 1000,
) -> DoseResponse:
    """Courbe la plus vraisemblable (loi binomiale), et ses intervalles en retirant les entraînements.

    Les réponses d'un même modèle se ressemblent : l'unité du rééchantillonnage est l'entraînement, retiré à dose égale.
    Parmi m, on en retire m − 1 avec remise, qui pèsent m/(m − 1) : en retirer m rendrait l'intervalle trop étroit d'un
    facteur √((m − 1)/m), soit 18 % pour 3 graines (Rao et Wu, 1988). Les percentiles sont écartés comme une loi de
    Student s'écarte d'une loi normale (Hesterberg, 2015) : quinze entraînements connaissent mal leur propre dispersion.

    Args:
        doses: dose de chaque entraînement, (r,) ; les doses nulles, qui valent le plancher quoi qu'il arrive, sont
            ignorées.
        successes: réussites de chaque entraînement, (r,).
        trials: essais de chaque entraînement, (r,).
        chance: plancher k, connu, dans [0 ; 1[.
        target: exactitude dont on cherche la dose.
        seed: graine des tirages.
        level: niveau de confiance.
        resamples: nombre de tirages.

    Raises:
        Undefined: moins de deux doses non nulles, ou une seule graine à une dose.
        MinidalleError: longueurs différentes, dose négative, compte impossible, plancher ou cible impossible.
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    doses, successes, trials = (np.asarray(z, float) for z in (doses, successes, trials))
    if not doses.ndim == successes.ndim == trials.ndim == 1 or not len(doses) == len(successes) == len(
        trials
    ):
        raise MinidalleError(
            "Il faut une dose, un compte de réussites et un compte d'essais par entraînement."
        )
    if not (np.isfinite(doses) & (doses >= 0)).all():
        raise MinidalleError("Une dose est un nombre positif ou nul.")
    if not ((successes >= 0) & (successes <= trials) & (trials > 0)).all():
        raise MinidalleError(
            "Compte impossible : un entraînement a plus de réussites que d'essais, ou aucun essai."
        )
    if not 0 <= chance < target < 1:
        raise MinidalleError(f"Il faut 0 ≤ plancher < cible < 1 : plancher {chance}, cible {target}.")
    levels, where = np.unique(doses[doses > 0], return_inverse=True)
    if len(levels) < 2:
        raise Undefined("Une courbe veut au moins deux doses non nulles.")
    runs = np.bincount(where)
    if runs.min() < 2:
        raise Undefined("Un intervalle veut au moins deux entraînements (graines) par dose.")
    counts = np.stack([successes, trials], -1)[doses > 0]
    center = np.log(levels).mean()  # a et b se gênent moins autour du milieu
    logs = np.log(levels) - center

    value = _fit(logs, np.array([counts[where == i].sum(0) for i in range(len(levels))]), chance)
    rng = np.random.default_rng(seed)
    fits = np.empty((resamples, 2))
    for draw in fits:
        drawn = [
            counts[where == i][rng.integers(m, size=m - 1)].sum(0) * m / (m - 1) for i, m in enumerate(runs)
        ]
        draw[:] = _fit(logs, np.array(drawn), chance, value)
    values = np.vstack([value, fits])
    values[:, 0] -= values[:, 1] * center
    columns = [*values.T, _threshold(values, levels, (target - chance) / (1 - chance))]
    level = 2 * norm.cdf(student.ppf((1 + level) / 2, runs.sum() - len(runs))) - 1
    return DoseResponse(*(_estimate(z, level) for z in columns), target, chance, values[1:])


def _fit(logs: np.ndarray, counts: np.ndarray, chance: float, start: np.ndarray | None = None) -> np.ndarray:
    """(hauteur, pente) de plus grande vraisemblance ; logs (doses,), counts (doses, 2)."""
    from scipy.optimize import minimize
    from scipy.special import log_expit, logit

    good, n = counts.T
    floor = np.log(chance) if chance else -np.inf

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        eta = parameters[0] + parameters[1] * logs
        up, down = log_expit(eta), log_expit(-eta)
        right = np.logaddexp(floor, np.log1p(-chance) + up)  # ln A, sûr même tout près de 0
        slope = good * np.exp(np.log1p(-chance) + up + down - right) - (n - good) * np.exp(up)
        value = -(good * right + (n - good) * (np.log1p(-chance) + down)).sum()
        return value / n.sum(), -np.array([slope.sum(), (slope * logs).sum()]) / n.sum()

    if start is None:
        share = (((good + 0.5) / (n + 1) - chance) / (1 - chance)).clip(0.01, 0.99)
        start = np.polyfit(logs, logit(share), 1)[::-1]
    bounds = [(-HEIGHT, HEIGHT), (-SLOPE, SLOPE)]
    start = np.clip(start, *np.transpose(bounds))
    return minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13, "gtol": 1e-8}
    ).x


def _threshold(fits: np.ndarray, levels: np.ndarray, share: float) -> np.ndarray:
    """Première des doses, entre la plus petite et la plus grande, où σ(a + b·ln d) atteint `share` ; fits (…, 2)."""
    from scipy.special import logit

    a, b = fits.T
    first, last = np.log(levels[[0, -1]])
    met, rising = a + b * first >= logit(share), a + b * last >= logit(share)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.exp(np.clip((logit(share) - a) / b, first, last))
    return np.where(met, levels[0], np.where(rising, crossing, np.inf))


def _estimate(values: np.ndarray, level: float) -> Estimate:
    """Mesure (première valeur) et percentiles des tirages (les autres), qui peuvent être infinis."""
    low, high = np.percentile(values[1:], [50 * (1 - level), 50 * (1 + level)], method="inverted_cdf")
    return Estimate(float(values[0]), float(low), float(high))
