"""Combien d'essais ? Le nombre de cas indépendants à mesurer pour voir ce que l'on cherche, choisi avant la mesure.

Formules usuelles, à la loi normale, sans correction de continuité (Fleiss, Levin et Paik, 2003), pour des tests
bilatéraux. La sûreté visée est celle d'un seul test : pour une famille de m tests, prendre alpha / m.
"""

import math

from minidalle.errors import MinidalleError


def sample_size(p: float, half_width: float, level: float = 0.95) -> int:
    """Cas pour qu'une proportion proche de p soit connue à ± `half_width`, par son intervalle de Wilson (1927).

    Raises:
        MinidalleError: p hors de [0 ; 1], demi-largeur hors de ]0 ; 0,5[.
    """
    _probability(p, "La proportion")
    if not 0 < half_width < 0.5:
        raise MinidalleError(f"Demi-largeur de {half_width} impossible : la choisir entre 0 et 0,5.")
    # (n + z²)²·h² = z²·(n·p(1 − p) + z²/4) : équation du second degré en n
    z2, h2 = _z((1 + level) / 2) ** 2, half_width**2
    b = z2 * (p * (1 - p) / h2 - 2)
    c = z2**2 * (1 / (4 * h2) - 1)
    return _ceil((b + math.sqrt(b * b + 4 * c)) / 2)


def sample_size_against(p: float, null: float = 0.5, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Cas pour distinguer une proportion qui vaut p d'une valeur connue, le hasard par exemple.

    Args:
        p: proportion vraie supposée.
        null: valeur à laquelle on la compare.
        power: probabilité de voir l'écart.
        alpha: risque de voir un écart qui n'existe pas.

    Raises:
        MinidalleError: probabilité impossible, proportions égales.
    """
    _probability(p, "La proportion")
    _probability(null, "La valeur de comparaison")
    return _size(p - null, null * (1 - null), p * (1 - p), power, alpha)


def sample_size_between(p: float, q: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Cas, dans chaque groupe, pour distinguer deux proportions qui valent p et q.

    Arguments et erreurs : voir `sample_size_against`.
    """
    _probability(p, "La première proportion")
    _probability(q, "La seconde proportion")
    middle = (p + q) / 2
    return _size(p - q, 2 * middle * (1 - middle), p * (1 - p) + q * (1 - q), power, alpha)


def sample_size_paired(gap: float, discordant: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Cas, mesurés deux fois, pour voir un écart par le test de McNemar (Miettinen, 1968).

    Args:
        gap: écart vrai des deux proportions.
        discordant: part des cas où les deux mesures diffèrent, au moins |gap|.
        power: probabilité de voir l'écart.
        alpha: risque de voir un écart qui n'existe pas.

    Raises:
        MinidalleError: probabilité impossible, écart nul ou plus grand que la part des désaccords.
    """
    _probability(discordant, "La part des désaccords")
    if abs(gap) > discordant:
        raise MinidalleError(f"Un écart de {gap} veut au moins {abs(gap)} de désaccords : {discordant}.")
    return _size(gap, discordant, discordant - gap**2, power, alpha)


def design_effect(m: float, rho: float) -> float:
    """Facteur 1 + (m − 1)ρ par lequel multiplier le nombre d'essais, quand chaque groupe en a m (Kish, 1965).

    Args:
        m: essais par groupe : images par invite.
        rho: corrélation de deux essais d'un groupe : 0 sans rapport, 1 identiques.

    Raises:
        MinidalleError: m < 1, ou corrélation impossible.
    """
    if not m >= 1:
        raise MinidalleError(f"Un groupe a au moins un essai : {m}.")
    effect = 1 + (m - 1) * rho
    if not (rho <= 1 and effect >= 0):
        raise MinidalleError(f"Corrélation {rho} impossible entre les {m} essais d'un groupe.")
    return effect


def _size(gap: float, null_variance: float, variance: float, power: float, alpha: float) -> int:
    """n tel que le seuil sous l'hypothèse nulle et le quantile de la puissance se touchent."""
    _probability(power, "La puissance")
    _probability(alpha, "Le risque")
    if not gap:
        raise MinidalleError(
            "Aucun nombre d'essais ne montre un écart nul : donner deux proportions différentes."
        )
    if not 0 < alpha < power < 1:
        raise MinidalleError(f"Il faut 0 < risque < puissance < 1 : risque {alpha}, puissance {power}.")
    spread = _z(1 - alpha / 2) * math.sqrt(null_variance) + _z(power) * math.sqrt(variance)
    return _ceil((spread / gap) ** 2)


def _ceil(n: float) -> int:
    return max(1, math.ceil(n - 1e-9))  # aux arrondis près


def _z(quantile: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(quantile))


def _probability(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise MinidalleError(f"{name} est une probabilité, entre 0 et 1 : {value}.")
