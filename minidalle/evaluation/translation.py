"""Notes données à des traductions, avec leur intervalle de confiance.

- « exact » : part des traductions égales à la référence, en %.
- « chrf » : accord des suites de 1 à 6 caractères (Popović, 2015), de 0 à 100.
- « bleu » : accord des suites de 1 à 4 mots (Papineni et coll., 2002), de 0 à 100.

chrF et BLEU sont ceux de `sacrebleu` (Post, 2018), calculés sur tout le corpus. L'intervalle vient d'un
rééchantillonnage (*bootstrap*) : on retire les phrases au hasard, avec remise, et l'on recalcule la note. Des
phrases d'une même famille se ressemblent : on retire alors des familles entières, sans quoi l'intervalle
serait trop étroit.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from minidalle.errors import MinidalleError
from minidalle.evaluation.statistics import Estimate, bootstrap

METRICS = ("exact", "chrf", "bleu")


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Notes d'un système sur n phrases.

    Args:
        hypotheses: ses traductions.
        references: les bonnes, dans le même ordre.
        groups: famille de chaque phrase ; None si elles sont sans rapport.
        seed: graine du rééchantillonnage.
        level: niveau de confiance.

    Raises:
        MinidalleError: longueurs différentes, ou moins de deux familles.
    """
    families = _families(groups, references, hypotheses)
    tables = _tables(hypotheses, references, families)
    return {m: _estimate(tables[m], _SCORES[m], seed, level) for m in METRICS}


def compare(
    hypotheses: Sequence[str],
    others: Sequence[str],
    references: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Ce que `hypotheses` gagne sur `others`, note par note, les deux jugés sur les mêmes tirages.

    Un intervalle qui ne contient pas 0 dit que l'écart ne tient pas au choix des phrases. Arguments et
    erreurs : voir `evaluate`.
    """
    families = _families(groups, references, hypotheses, others)
    ours, theirs = (_tables(texts, references, families) for texts in (hypotheses, others))
    gains = {}
    for m in METRICS:
        width = ours[m].shape[1]

        def gain(sums: np.ndarray, score=_SCORES[m], width=width) -> float:
            return score(sums[:width]) - score(sums[width:])

        gains[m] = _estimate(np.hstack([ours[m], theirs[m]]), gain, seed, level)
    return gains


_CHRF, _BLEU = CHRF(), BLEU()
# Note d'un corpus d'après la somme des décomptes de ses phrases, comme le fait sacrebleu pour ses intervalles.
_SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "exact": lambda sums: 100 * float(sums[0] / sums[1]),
    "chrf": lambda sums: _CHRF._compute_score_from_stats(sums.tolist()).score,
    "bleu": lambda sums: _BLEU._compute_score_from_stats(sums.tolist()).score,
}


def _families(groups: Sequence[Hashable] | None, references: Sequence[str], *systems) -> np.ndarray:
    """Numéro de la famille de chaque phrase, (n,), de 0 au nombre de familles − 1."""
    n = len(references)
    groups = range(n) if groups is None else groups
    if any(len(texts) != n for texts in (groups, *systems)):
        raise MinidalleError("Traductions, références et familles : il en faut autant de chaque sorte.")
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        raise MinidalleError("Un intervalle de confiance veut au moins deux familles de phrases.")
    return np.array([numbers[group] for group in groups])


def _tables(
    hypotheses: Sequence[str], references: Sequence[str], families: np.ndarray
) -> dict[str, np.ndarray]:
    """Par note, les décomptes additionnés par famille, (familles, décomptes)."""
    found = {
        "exact": [(h == r, 1) for h, r in zip(hypotheses, references, strict=True)],
        "chrf": _CHRF._extract_corpus_statistics(hypotheses, [references]),
        "bleu": _BLEU._extract_corpus_statistics(hypotheses, [references]),
    }
    tables = {}
    for metric, rows in found.items():
        rows = np.array(rows, dtype=np.int64)
        tables[metric] = np.zeros((families.max() + 1, rows.shape[1]), dtype=np.int64)
        np.add.at(tables[metric], families, rows)
    return tables


def _estimate(table: np.ndarray, score: Callable[[np.ndarray], float], seed: int, level: float) -> Estimate:
    """Note de toutes les familles, et son intervalle par percentiles de mille rééchantillons."""
    return bootstrap(
        lambda rows: score(table[rows].sum(0)), range(len(table)), seed=seed, level=level, resamples=1000
    )
