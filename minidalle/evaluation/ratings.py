"""Notes humaines : les lire, mesurer l'accord des juges, les comparer à CLIP, refaire l'étude des auteurs.

Un fichier de notes est un CSV en UTF-8, une note par ligne : « image », « legende », « evaluateur », « note », et
s'il y a lieu « clip », le score que CLIP donne à la paire. Une correction ajoute une ligne : de deux notes d'un
même juge sur une même paire, la dernière l'emporte.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minidalle.errors import MinidalleError, reason
from minidalle.evaluation import statistics
from minidalle.evaluation.statistics import Estimate, Ratio, Undefined
from minidalle.files import atomic_write

COLUMNS = ("image", "legende", "evaluateur", "note")
# Nos colonnes, sous le nom qu'elles portent dans le fichier des auteurs.
STUDY = {"image": "image_id", "note": "note_humaine", "clip": "proba_clip"}

Measure = Estimate | Ratio | Undefined


class Rating(NamedTuple):
    """Une ligne d'un fichier de notes."""

    image: str
    caption: str
    rater: str
    grade: float
    clip: float | None
    author: str  # de la légende ; vide hors de l'étude des auteurs


class Grades(NamedTuple):
    """Les notes en tableau.

    Attributes:
        pairs: N paires (image, légende), dans l'ordre où elles apparaissent.
        raters: R juges.
        grades: (R, N), nan où le juge n'a pas noté la paire.
        clip: (N,), ou None sans scores de CLIP.
    """

    pairs: list[tuple[str, str]]
    raters: list[str]
    grades: np.ndarray
    clip: np.ndarray | None

    @property
    def images(self) -> list[str]:
        """Image de chaque paire."""
        return [image for image, _ in self.pairs]

    @property
    def means(self) -> np.ndarray:
        """Note moyenne de chaque paire, (N,)."""
        return np.nanmean(self.grades, 0)


def read_ratings(path: Path | str, names: Mapping[str, str] | None = None) -> list[Rating]:
    """Lignes d'un fichier de notes.

    Args:
        path: fichier CSV, UTF-8, dont la première ligne nomme les colonnes.
        names: nom d'une colonne dans ce fichier, s'il n'est pas le nôtre.

    Raises:
        MinidalleError: fichier illisible, colonne absente, note ou score qui manque ou n'est pas un nombre.
    """
    names, path = names or {}, Path(path)
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for wanted in [names.get(column, column) for column in COLUMNS]:
                if wanted not in (reader.fieldnames or ()):
                    raise MinidalleError(
                        f"« {path} » n'a pas de colonne « {wanted} » (des virgules les séparent) : l'ajouter."
                    )
            for row in reader:
                cells = {column: row.get(names.get(column, column)) for column in (*COLUMNS, "clip")}
                where = f"« {path} », ligne {reader.line_num}"
                for column in COLUMNS:
                    if not (cells[column] or "").strip():
                        raise MinidalleError(
                            f"{where} : « {names.get(column, column)} » manque, compléter ou retirer la ligne."
                        )
                score = _number(cells["clip"], where) if cells["clip"] else None
                grade = _number(cells["note"], where)
                author = row.get("auteur") or ""
                found.append(
                    Rating(cells["image"], cells["legende"], cells["evaluateur"], grade, score, author)
                )
    except OSError as error:
        raise MinidalleError(f"« {path} » est illisible ({reason(error)}) : vérifier le chemin.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise MinidalleError(f"« {path} » n'est pas du CSV en UTF-8 : l'enregistrer ainsi.") from error
    return found


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MinidalleError(
            f"{where} : « {text} » n'est pas un nombre (la virgule s'écrit « . »), le corriger."
        )
    return value


def tabulate(ratings: Iterable[Rating]) -> Grades:
    """Tableau des dernières notes.

    Raises:
        MinidalleError: aucune note ; scores de CLIP différents pour une paire, ou donnés à une partie des paires.
    """
    last, clip = {}, {}
    for r in ratings:
        pair = (r.image, r.caption)
        last[pair, r.rater] = r.grade
        if r.clip is not None and clip.setdefault(pair, r.clip) != r.clip:
            raise MinidalleError(f"Deux scores de CLIP pour « {r.caption} » ({r.image}) : n'en garder qu'un.")
    if not last:
        raise MinidalleError("Ce fichier ne contient aucune note : noter d'abord, par « minidalle rate ».")
    pairs, raters = (list(dict.fromkeys(key[side] for key in last)) for side in (0, 1))
    if clip and len(clip) < len(pairs):
        missing = next(pair for pair in pairs if pair not in clip)
        raise MinidalleError(
            f"CLIP n'a pas noté « {missing[1]} » ({missing[0]}) : noter toutes les paires ou aucune."
        )
    grades = np.full((len(raters), len(pairs)), np.nan)
    column = {pair: i for i, pair in enumerate(pairs)}
    row = {rater: i for i, rater in enumerate(raters)}
    for (pair, rater), grade in last.items():
        grades[row[rater], column[pair]] = grade
    return Grades(pairs, raters, grades, np.array([clip[pair] for pair in pairs]) if clip else None)


def write_ratings(path: Path | str, grades: Grades) -> None:
    """Écrit les notes, une par ligne, juge après juge."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for rater, row in zip(grades.raters, grades.grades, strict=True):
            for (image, caption), grade in zip(grades.pairs, row, strict=True):
                if not np.isnan(grade):
                    writer.writerow((image, caption, rater, f"{grade:g}"))


def agreement(grades: Grades, *, seed: int = 0) -> dict[str, Measure]:
    """Accord des juges, α de Krippendorff, selon que les notes sont des rangs ou des quantités.

    Les degrés de l'échelle sont dits par des mots : rien n'assure que de 0 à 1 il y ait aussi loin que de 3 à 4.
    L'échelle ordinale, qui ne lit que leur ordre, est donc la bonne ; l'autre dit ce que ce choix change.
    """
    return {
        scale: _attempt(statistics.krippendorff_alpha, grades.grades, scale, groups=grades.images, seed=seed)
        for scale in ("ordinal", "interval")
    }


def compare(
    human: Sequence[float], clip: Sequence[float], images: Sequence[str], *, seed: int = 0
) -> dict[str, Measure]:
    """Tout ce qui rapproche les notes humaines de celles de CLIP ; les intervalles retirent des images entières.

    Args:
        human: note humaine de chaque paire, (n,).
        clip: score de CLIP, (n,).
        images: image de chaque paire, (n,).
        seed: graine des tirages.

    Returns:
        « spearman », « kendall », « pearson » : toutes paires mêlées. « within » : Spearman moyen dans une image.
        « concordance » : paires de légendes d'une image rangées pareil. « first », « any », « unique » : même
        légende préférée, voir `statistics.best_agreement`. Une mesure qui n'existe pas est l'erreur qui dit pourquoi.
    """
    found = {
        kind: _attempt(statistics.correlation, kind, human, clip, images, seed=seed)
        for kind in statistics.CORRELATIONS
    }
    found["within"] = _attempt(statistics.within_correlation, "spearman", human, clip, images, seed=seed)
    found["concordance"] = _attempt(statistics.concordance, human, clip, images, seed=seed)
    for ties in statistics.TIES:
        found[ties] = _attempt(statistics.best_agreement, human, clip, images, ties)
    return found


def _attempt(measure: Callable[..., Measure], *args, **options) -> Measure:
    try:
        return measure(*args, **options)
    except Undefined as why:
        return why


class HumanStudy(NamedTuple):
    """L'étude des auteurs : des images de COCO, une légende de COCO et deux inventées, une note et CLIP.

    Attributes:
        images: nombre d'images.
        pairs: nombre de paires.
        raters_per_image: le plus grand nombre de juges d'une même image.
        clip_sums: plus petite et plus grande somme des scores de CLIP d'une image : 1 pour un softmax.
        measures: voir `compare`.
        invented: concordance entre légendes inventées ; le reste oppose une légende de COCO à une inventée.
        prefers_coco: images où la légende de COCO est la préférée, ou l'une d'elles, selon « grade » (l'humain) et
            « clip ».
        saturated: images où CLIP met plus de 0,99 sur une légende.
        raters: par juge, nombre de notes, de notes distinctes, et moyenne.
        bins: par tranche de note humaine, bornes comprises : nombre de paires, combien dont CLIP donne moins de
            0,05, et quartiles de CLIP.
    """

    images: int
    pairs: int
    raters_per_image: int
    clip_sums: tuple[float, float]
    measures: dict[str, Measure]
    invented: Ratio
    prefers_coco: dict[str, int]
    saturated: int
    raters: dict[str, tuple[int, int, float]]
    bins: list[tuple[float, float, int, int, list[float]]]


BINS = ((0, 0), (0.01, 0.29), (0.3, 0.7), (0.71, 0.99), (1, 1))  # les notes ont deux décimales


def human_study(path: Path | str, *, seed: int = 0) -> HumanStudy:
    """Refait l'étude des auteurs d'après leur fichier, `MINIDALLE_DATA/etude/humains_et_clip.csv`.

    Raises:
        MinidalleError: fichier illisible, colonne ou note absente.
    """
    ratings = read_ratings(path, STUDY)
    if any(r.clip is None or not r.author for r in ratings):
        raise MinidalleError(
            f"« {path} » : chaque ligne veut aussi « auteur » et « proba_clip », les compléter."
        )
    grades = tabulate(ratings)
    human, clip, images = grades.means, grades.clip, grades.images
    groups: dict[str, list[Rating]] = defaultdict(list)
    raters: dict[str, list[float]] = defaultdict(list)
    for r in ratings:
        groups[r.image].append(r)
        raters[r.rater].append(r.grade)
    sums = [sum(r.clip for r in rows) for rows in groups.values()]

    def prefers_coco(name: str) -> int:
        tops = [(max(getattr(r, name) for r in rows), rows) for rows in groups.values()]
        return sum(any(r.author == "COCO" and getattr(r, name) == top for r in rows) for top, rows in tops)

    invented = [r for r in ratings if r.author != "COCO"]
    return HumanStudy(
        images=len(groups),
        pairs=len(grades.pairs),
        raters_per_image=max(len({r.rater for r in rows}) for rows in groups.values()),
        clip_sums=(min(sums), max(sums)),
        measures=compare(human, clip, images, seed=seed),
        invented=statistics.concordance(
            [r.grade for r in invented], [r.clip for r in invented], [r.image for r in invented], seed=seed
        ),
        prefers_coco={name: prefers_coco(name) for name in ("grade", "clip")},
        saturated=sum(max(r.clip for r in rows) > 0.99 for rows in groups.values()),
        raters={name: (len(v), len(set(v)), float(np.mean(v))) for name, v in sorted(raters.items())},
        bins=[
            (low, high, len(part), int((part < 0.05).sum()), np.percentile(part, (25, 50, 75)).tolist())
            for low, high in BINS
            if len(part := clip[(human >= low) & (human <= high)])
        ],
    )
