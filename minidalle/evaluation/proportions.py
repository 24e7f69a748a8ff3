"""Proportions comparées, corrigées du hasard, corrigées de l'erreur de l'oracle.

Une proportion se donne par son compte `(k, n)` : k cas favorables parmi n cas **indépendants**. Plusieurs images d'une
invite se ressemblent : n'en compter qu'une par invite, ou prendre un rééchantillonnage par groupes (`bootstrap`,
`comparisons.difference`). L'intervalle d'une proportion seule est `statistics.wilson`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minidalle.errors import MinidalleError
from minidalle.evaluation.statistics import Estimate, Undefined, wilson

Counts = tuple[int, int]
SMALLEST_P = 1e-3  # les intervalles tirés au sort ne descendent pas plus bas


class McNemar(NamedTuple):
    """Deux mesures des mêmes cas.

    Attributes:
        difference: part des vrais de la première moins celle de la seconde, et son intervalle de Tango.
        first_only: cas vrais pour la première seule.
        second_only: cas vrais pour la seconde seule.
        p: p exacte, bilatérale, de « les deux parts sont égales ».
    """

    difference: Estimate
    first_only: int
    second_only: int
    p: float


class Equivalence(NamedTuple):
    """Une mesure vaut-elle une valeur, à une marge près ?

    Attributes:
        equivalent: l'intervalle tient tout entier entre les bornes.
        p: plus grande des p des deux tests unilatéraux ; 1 si la mesure elle-même est hors des bornes ; pas cherchée
            sous `SMALLEST_P`, qui se lit alors « au plus ».
        interval: mesure et intervalle de niveau 1 − 2·alpha (90 % pour 5 %).
    """

    equivalent: bool
    p: float
    interval: Estimate


def mcnemar(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> McNemar:
    """Deux suites de verdicts sur les mêmes cas : test exact de McNemar (1947), sur les seuls cas où elles diffèrent.

    L'intervalle est celui du score, de Tango (1998) : il est bon même sans désaccord, et ses bornes sont les écarts
    qu'un test à la McNemar ne refuse pas, ce qu'il faut à `equivalence`. Près du seuil, la p exacte, plus prudente,
    peut ne pas dire « différent » d'un intervalle qui évite 0.

    Args:
        first: verdicts, (n,), booléens ou 0 et 1.
        second: verdicts des mêmes cas, (n,).
        level: niveau de confiance.

    Raises:
        Undefined: aucun cas.
        MinidalleError: longueurs différentes, ou verdicts qui ne sont pas des booléens.
    """
    from scipy.stats import binomtest

    first, second = _verdicts(first), _verdicts(second)
    if len(first) != len(second):
        raise MinidalleError(f"Verdicts de {len(first)} cas d'un côté, de {len(second)} de l'autre.")
    if not len(first):
        raise Undefined("Deux proportions ne se comparent pas sans aucun cas.")
    b, c, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    low, high = _tango_low(b, c, n, level), -_tango_low(c, b, n, level)
    p = binomtest(b, b + c).pvalue if b + c else 1.0
    return McNemar(Estimate((b - c) / n, low, high), b, c, float(p))


def equivalence(
    measure: Callable[[float], Estimate], value: float, margin: float, alpha: float = 0.05
) -> Equivalence:
    """La mesure vaut-elle `value` à ± `margin` près ? Deux tests unilatéraux, ou TOST (Schuirmann, 1987).

    « Pas de différence significative » ne dit pas « égal » : peu d'essais suffisent à ne rien voir. Ici, peu d'essais
    donnent un grand intervalle, donc pas de conclusion. La p est le plus petit alpha dont l'intervalle de niveau
    1 − 2·alpha tient entre les bornes : verdict et intervalle ne se contredisent jamais.

    Args:
        measure: mesure et intervalle au niveau qu'on lui donne : `lambda level: wilson(52, 100, level)`,
            `lambda level: mcnemar(a, b, level).difference`, `lambda level: skill((k, n), 0.5, level)`,
            `lambda level: bootstrap(score, groups, level=level)`.
        value: valeur visée.
        margin: écart sans importance, choisi avant la mesure.
        alpha: risque de conclure à tort.

    Raises:
        MinidalleError: marge nulle ou négative, alpha hors de ]0 ; 0,5[.
    """
    if not margin > 0:
        raise MinidalleError("La marge d'une équivalence est positive : choisir l'écart sans importance.")
    if not 0 < alpha < 0.5:
        raise MinidalleError(f"Risque alpha = {alpha} impossible : le choisir entre 0 et 0,5.")

    def inside(found: Estimate) -> bool:
        return value - margin < found.low and found.high < value + margin

    interval = measure(1 - 2 * alpha)
    p, too_wide = 1.0, SMALLEST_P
    if abs(interval.value - value) < margin:
        p = SMALLEST_P if inside(measure(1 - 2 * SMALLEST_P)) else 0.5
        while p > 1.001 * too_wide:  # dichotomie sur le logarithme du risque
            middle = float(np.sqrt(p * too_wide))
            p, too_wide = (middle, too_wide) if inside(measure(1 - 2 * middle)) else (p, middle)
    return Equivalence(inside(interval), p, interval)


def above_chance(accuracy: float, chance: float) -> float:
    """Adresse (A − k)/(1 − k) : 0 au hasard, 1 sans faute, négative sous le hasard (kappa de Cohen, 1960).

    Raises:
        Undefined: le hasard suffit à tout réussir (k = 1).
    """
    if chance >= 1:
        raise Undefined("L'adresse n'a pas de sens quand le hasard réussit toujours.")
    return float((accuracy - chance) / (1 - chance))


def skill(accuracy: Counts, chance: float | Counts, level: float = 0.95) -> Estimate:
    """Adresse corrigée du hasard, S = (A − k)/(1 − k), connu ou lui-même mesuré, et son intervalle.

    Les écarts de Wilson de A et de k, portés dans S, s'ajoutent en carrés (Newcombe, 1998 ; Zou et Donner, 2008) :
    c'est la méthode delta, tenue près de 0 et de 1, et exactement Wilson si k est connu. A et k viennent de cas
    différents ; sur les mêmes images, prendre `bootstrap` et `above_chance`.

    Args:
        accuracy: compte (k, n) des réussites.
        chance: probabilité du hasard, ou compte (k, n) qui la mesure (sur un modèle aveugle au texte).
        level: niveau de confiance.

    Raises:
        Undefined: aucun cas, ou hasard de 1.
        MinidalleError: compte impossible, probabilité hors de [0 ; 1].
    """
    found = wilson(*accuracy, level)
    if isinstance(chance, tuple):
        guess = wilson(*chance, level)
    elif 0 <= chance <= 1:
        guess = Estimate(chance, chance, chance)
    else:
        raise MinidalleError(f"Hasard de {chance} impossible : c'est une probabilité, ou un compte (k, n).")
    value = above_chance(found.value, guess.value)
    # S croît avec A, décroît avec k : sa borne basse vient du bas de A et du haut de k
    below = np.hypot(
        value - above_chance(found.low, guess.value), value - above_chance(found.value, guess.high)
    )
    above = np.hypot(
        above_chance(found.high, guess.value) - value, above_chance(found.value, guess.low) - value
    )
    return Estimate(value, float(value - below), float(min(value + above, 1)))


def rogan_gladen(
    observed: Counts,
    true_positive: Counts,
    false_positive: Counts,
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 4000,
) -> Estimate:
    """Part vraie derrière la part que voit un oracle faillible : (vue − FP)/(VP − FP), de Rogan et Gladen (1978).

    Rééchantillonnage paramétrique des trois comptes, chaque part tirée de sa loi Bêta(k + ½, n − k + ½) : retirer les
    cas avec remise ferait d'un oracle sans faute sur 200 cas un oracle infaillible. Si les cas observés se ressemblent,
    diviser leurs k et n par `power.design_effect`.

    Args:
        observed: compte (k, n) des « oui » de l'oracle sur les images à juger.
        true_positive: compte (k, n) de ses « oui » là où la vérité est oui.
        false_positive: compte (k, n) de ses « oui » là où la vérité est non.
        seed: graine des tirages.
        level: niveau de confiance.
        resamples: nombre de tirages.

    Returns:
        Part vraie et bornes, ramenées à [0 ; 1].

    Raises:
        Undefined: aucun cas ; l'oracle ne dit pas plus souvent oui quand c'est vrai, ou un tirage sur vingt le croit.
        MinidalleError: compte impossible.
    """
    samples = (observed, true_positive, false_positive)
    seen, right, wrong = (_share(counts) for counts in samples)
    rng = np.random.default_rng(seed)
    drawn = [rng.beta(k + 0.5, n - k + 0.5, resamples) for k, n in samples]
    usable = drawn[1] > drawn[2]
    if right <= wrong or usable.mean() < 0.95:
        raise Undefined(
            "L'oracle ne distingue pas assez le vrai du faux pour qu'on le corrige : le valider sur plus de cas."
        )
    a, t, f = (z[usable] for z in drawn)
    value = float(np.clip((seen - wrong) / (right - wrong), 0, 1))
    low, high = np.percentile(np.clip((a - f) / (t - f), 0, 1), [50 * (1 - level), 50 * (1 + level)])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _share(counts: Counts) -> float:
    """Proportion d'un compte vérifié."""
    successes, trials = counts
    if not trials:
        raise Undefined("Une proportion n'a pas de sens sans aucun cas.")
    if not 0 <= successes <= trials:
        raise MinidalleError(f"Compte impossible : {successes} cas favorables sur {trials}.")
    return successes / trials


def _verdicts(values: Sequence[bool]) -> np.ndarray:
    """Booléens (n,), vérifiés."""
    values = np.asarray(values)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise MinidalleError("Des verdicts sont une suite de vrais et de faux (ou de 1 et de 0).")
    return values.astype(bool)


def _tango_low(b: int, c: int, n: int, level: float) -> float:
    """Plus petit écart δ que ne refuse pas le test du score, pour b et c désaccords dans un sens et dans l'autre."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, found = norm.ppf((1 + level) / 2), (b - c) / n

    def excess(gap: float) -> float:
        linear = b + c - (2 * n - b + c) * gap
        # part des désaccords « second seul », la plus vraisemblable si l'écart vrai est `gap`
        q = (linear + np.sqrt(max(linear**2 + 8 * n * c * gap * (1 - gap), 0))) / (4 * n)
        variance = max(2 * q + gap * (1 - gap), 0)
        return b - c - n * gap - z * np.sqrt(n * variance)

    # le pas de côté évite la racine sans intérêt δ = écart observé, quand il n'y a aucun désaccord
    return -1.0 if found == -1 else float(brentq(excess, -1, found - 1e-9, xtol=1e-12))
