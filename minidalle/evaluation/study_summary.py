"""Ce que dit la table d'une étude : comptes par catégorie, VISOR, confusion des relations."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minidalle.data.scenes import RELATIONS
from minidalle.evaluation.requests import SPATIAL, STUDY
from minidalle.evaluation.scores import Visor, visor
from minidalle.evaluation.statistics import Estimate, Undefined, bootstrap, wilson
from minidalle.evaluation.study_files import Row
from minidalle.files import atomic_write


class Count(NamedTuple):
    """Comptes d'une catégorie, sur le premier dessin de chaque demande : ils sont indépendants.

    Attributes:
        held_out: combinaisons réservées au test, ou vues à l'entraînement.
        n: demandes.
        present, right, swapped: voir `requests.Verdict`.
        exact: justes, sans rien d'autre.
        contrast: dessins qui accomplissent la demande contraire : le hasard de qui n'entend pas l'attribut.
        other: dessins qui accomplissent une autre demande de la catégorie : le hasard de qui n'entend rien.

    Un compte vaut None si ce qu'il compte n'a pas été jugé.
    """

    category: str
    held_out: bool
    n: int
    present: int | None
    right: int
    exact: int | None
    swapped: int | None
    contrast: int
    other: int

    @property
    def share(self) -> Estimate:
        """Part de demandes accomplies, et son intervalle de Wilson."""
        return wilson(self.right, self.n)

    @property
    def chance(self) -> Estimate:
        return wilson(self.contrast, self.n)

    @property
    def given(self) -> Estimate | None:
        """Part des justes parmi les dessins où sont les objets nommés ; None s'il n'y en a pas."""
        return wilson(self.right, self.present) if self.present else None


def counts(rows: Sequence[Row]) -> list[Count]:
    """Un compte par catégorie et par part, dans l'ordre de `STUDY`, les réservées d'abord ; des seuls dessins jugés."""
    found = []
    for category in STUDY:
        for held_out in (True, False):
            of = (category, held_out, 0)
            group = [r for r in judged(rows) if (r.category, r.held_out, r.attempt) == of]
            if group:
                told = ((r.present, r.right, r.alone and r.right, r.swapped) for r in group)
                sums = [None if None in column else sum(column) for column in zip(*told, strict=True)]
                chance = sum(r.contrast_right for r in group), sum(r.other_right for r in group)
                found.append(Count(category, held_out, len(group), *sums, *chance))
    return found


def judged(rows: Sequence[Row]) -> list[Row]:
    """Les dessins dont quelqu'un, oracle ou humain, a dit s'ils accomplissent la demande."""
    return [r for r in rows if r.right is not None]


def write_counts(path: Path, rows: Sequence[Row]) -> None:
    """Écrit les comptes en CSV : tout ce qu'il faut pour refaire les figures des parts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Count._fields)
    writer.writerows([int(v) if isinstance(v, bool) else v for v in count] for count in counts(rows))
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


class Space(NamedTuple):
    """VISOR d'un groupe de demandes.

    Attributes:
        requests, images: nombre de demandes, et d'images par demande.
        measured: les nombres de VISOR.
        chance: les mêmes, des mêmes images jugées par les demandes contraires.
        intervals: par nom de `Visor` (« objects », « unconditional », « conditional »), intervalle en retirant au
            hasard des demandes entières ; absent si la mesure n'existe pas.
    """

    category: str
    held_out: bool
    requests: int
    images: int
    measured: Visor
    chance: Visor
    intervals: dict[str, Estimate]


def spaces(rows: Sequence[Row], seed: int = 0) -> list[Space]:
    """VISOR de chaque groupe qui situe ; à nombre d'images égal, celui de la demande qui en a le moins."""
    found = []
    for category in SPATIAL:
        for held_out in (True, False):
            tries: dict[int, list[Row]] = {}
            for r in judged(rows):
                if (r.category, r.held_out) == (category, held_out):
                    tries.setdefault(r.index, []).append(r)
            if not tries:
                continue
            k = min(map(len, tries.values()))
            kept = [group[:k] for group in tries.values()]
            present, right, turned = (
                np.array([[getattr(r, name) for r in group] for group in kept])
                for name in ("present", "right", "contrast_right")
            )
            intervals = {}
            for name in Visor._fields[:3]:
                try:
                    score = _score(name, present, right)
                    intervals[name] = bootstrap(score, range(len(kept)), seed=seed)
                except Undefined:
                    continue
            measured, chance = visor(present, right), visor(present, turned)
            found.append(Space(category, held_out, len(kept), k, measured, chance, intervals))
    return found


def _score(name: str, present: np.ndarray, right: np.ndarray):
    def score(lines: np.ndarray) -> float:
        value = getattr(visor(present[lines], right[lines]), name)
        if value is None:
            raise Undefined("Aucune image n'a les deux objets.")
        return value

    return score


READ = (*RELATIONS, "")  # ce qui peut se lire ; vide : aucune relation nette


def confusion(rows: Sequence[Row]) -> np.ndarray:
    """Dessins où sont les deux objets, par relation demandée (4 lignes) et relation lue (5 colonnes, `READ`)."""
    table = np.zeros((len(RELATIONS), len(READ)), int)
    for r in rows:
        if r.category in SPATIAL and r.present:
            table[READ.index(r.place), READ.index(r.place_read)] += 1
    return table
