"""L'étude : ce qu'un modèle comprend, catégorie par catégorie, en une table d'une ligne par dessin.

Un « peintre » dessine (`draw_many`, celui de `TextToImage`), l'oracle lit, `judge` compare : à la demande, à la demande
contraire, et à une autre demande de la catégorie ; les deux dernières mesurent le hasard. Le travail avance par
paquets, chacun écrit en entier ou pas du tout : arrêter net n'en perd qu'un, et reprendre n'en refait aucun.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from minidalle.errors import MinidalleError
from minidalle.evaluation.oracle import GRID, Reading, read
from minidalle.evaluation.requests import (
    CATEGORIES,
    SEEN_ONLY,
    SPATIAL,
    STUDY,
    Request,
    contrast,
    judge,
    requests,
)
from minidalle.evaluation.study_files import (
    OPPOSITES,
    PACKETS,
    TABLE,
    Row,
    folder,
    read_table,
    write_strip,
    write_table,
)

PACKET = 64  # dessins par paquet
SLOW_PACKET = 8  # d'un modèle publié : cent fois plus lent et plus lourd, une coupure en perd moins
SHOWN = 4  # demandes par groupe dont on dessine aussi le contraire, de la même graine : des paires minimales
LIMITS = {"n": (2, 10**5), "tries": (1, 16), "seed": (0, 10**9)}
_STRANGE = 0.2  # photographies : 0,5 à 0,6 (mesuré) ; dessins de nos modèles : moins de 0,05


class Painter(Protocol):
    """Ce qui dessine : une image par description, de graine donnée."""

    def draw_many(self, prompts: Sequence[str], seeds: Sequence[int], **settings: object) -> list: ...


class Item(NamedTuple):
    """Un dessin à faire et à juger.

    Attributes:
        index: rang de la demande dans son groupe, catégorie et part (réservée ou vue).
        attempt: rang du dessin parmi ceux de cette demande.
        other: une autre demande du même groupe, la suivante.
    """

    request: Request
    opposite: Request
    other: Request
    index: int
    attempt: int
    seed: int


# --- ce qu'il faut dessiner -----------------------------------------------------------------------


def plan(n: int, seed: int = 0, categories: Sequence[str] = tuple(STUDY), tries: int = 4) -> list[Item]:
    """Les dessins de l'étude, toujours les mêmes pour les mêmes arguments.

    Les premières demandes d'un groupe ne dépendent pas de `n` ; celles de `CATEGORIES` sont celles de `requests`, de
    générateur `seed`.

    Args:
        n: demandes par catégorie, réservées, et autant de vues.
        seed: graine.
        categories: clés de `STUDY`.
        tries: dessins par demande qui situe ; un seul pour les autres.

    Raises:
        MinidalleError: catégorie inconnue ou en double, nombre hors limites.
    """
    for name, value in {"n": n, "tries": tries, "seed": seed}.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise MinidalleError(f"« {name} » ne peut pas valoir {value} : choisir de {low} à {high}.")
    if unknown := [category for category in categories if category not in STUDY]:
        raise MinidalleError(f"Catégorie « {unknown[0]} » inconnue : choisir parmi {', '.join(STUDY)}.")
    if not categories or len(set(categories)) < len(categories):
        raise MinidalleError("Donner au moins une catégorie, et chacune une seule fois.")
    items = []
    for category in categories:
        for held_out in (False,) if category in SEEN_ONLY else (True, False):
            # Les quatre de « Dessiner » y sont demandées ainsi ; les autres ne redemandent pas les mêmes scènes.
            own = seed if category in CATEGORIES else [seed, 2, list(STUDY).index(category)]
            asked = requests(np.random.default_rng(own), category, n, held_out=held_out)
            rng = np.random.default_rng([seed, 1])
            for i, request in enumerate(asked):
                pair = request, contrast(request, rng), asked[(i + 1) % n]
                for k in range(tries if category in SPATIAL else 1):
                    items.append(Item(*pair, i, k, seed * 10**8 + k * 10**6 + i))
    return items


# --- l'étude d'un peintre -------------------------------------------------------------------------


def run(
    painter: Painter,
    out: Path,
    items: Sequence[Item],
    about: Mapping[str, object],
    *,
    settings: Mapping[str, object] | None = None,
    resume: bool = False,
    progress: Callable[[int], object] | None = None,
    blind: bool = False,
) -> list[Row]:
    """Dessine et juge ; écrit `table.csv`, les dessins et les paires minimales dans `out`.

    Args:
        painter: ce qui dessine.
        out: dossier neuf ou, avec `resume`, celui d'une étude commencée.
        items: voir `plan`.
        about: ce dont les dessins dépendent, prêt pour le JSON : modèle, empreinte, réglages, arguments de `plan`.
        settings: réglages de `draw_many`.
        resume: continuer ce qui est commencé, s'il y a lieu.
        progress: appelé avec le nombre de dessins qui viennent d'être jugés ou retrouvés.
        blind: ne pas consulter l'oracle, qui ne sait pas lire ces dessins : les verdicts restent vides.

    Raises:
        MinidalleError: dossier plein d'autre chose, étude commencée avec autre chose, ou tenue par un autre processus.
    """

    def packet(path: Path, part: Sequence[Item]) -> list[Row]:
        rows = _finished(path, part)
        if rows is None:
            images = _draw(painter, part, settings)
            strip = path.relative_to(out).with_suffix(".png").as_posix()
            names = [f"{strip}#{k}" for k in range(len(part))]
            rows = unread(part, names) if blind else verdicts(part, read(images), names)
            write_strip(path.with_suffix(".png"), images)
            write_table(path.with_suffix(".csv"), rows)  # en dernier : il dit que le paquet est fini
        if progress:
            progress(len(part))
        return rows

    def packets(where: Path, items: Sequence[Item]) -> list[Row]:
        size = SLOW_PACKET if blind else PACKET
        parts = [items[i : i + size] for i in range(0, len(items), size)]
        return [row for i, part in enumerate(parts) for row in packet(where / f"{i:05}", part)]

    with folder(out, about, resume):
        rows = packets(out / PACKETS, items)
        write_table(out / f"{OPPOSITES}.csv", packets(out / OPPOSITES, opposites(items)))
        write_table(out / TABLE, rows)
    return rows


def opposites(items: Sequence[Item]) -> list[Item]:
    """Les contraires des premières demandes de chaque groupe, à dessiner des mêmes graines."""
    shown = (item for item in items if item.index < SHOWN and item.attempt == 0)
    return [item._replace(request=item.opposite, opposite=item.request) for item in shown]


def _finished(path: Path, part: Sequence[Item]) -> list[Row] | None:
    """Les lignes d'un paquet déjà fait ; None s'il manque ou n'est pas celui-là."""
    try:
        rows = read_table(path.with_suffix(".csv"))
        with Image.open(path.with_suffix(".png"), formats=["PNG"]) as strip:
            whole = strip.height == len(part) * strip.width
            strip.verify()
    except (MinidalleError, OSError, SyntaxError, ValueError):
        return None
    same = [(r.prompt, r.seed) for r in rows] == [(i.request.prompt, i.seed) for i in part]
    return rows if same and whole else None


def _draw(painter: Painter, items: Sequence[Item], settings: Mapping | None) -> list[np.ndarray]:
    prompts, seeds = [item.request.prompt for item in items], [item.seed for item in items]
    images = [drawing.images[0] for drawing in painter.draw_many(prompts, seeds, **settings or {})]
    height, width = images[0].shape[:2]
    if height != width or height % GRID or height < 2 * GRID:
        raise MinidalleError(
            f"Images de {height} × {width} pixels : l'oracle veut des carrés, d'un côté multiple de {GRID}."
        )
    return images


def verdicts(items: Sequence[Item], readings: Sequence[Reading], images: Sequence[str]) -> list[Row]:
    """Une ligne par dessin lu."""
    rows = []
    for item, reading, image in zip(items, readings, images, strict=True):
        seen = judge(reading, item.request)
        rows.append(
            Row(
                *_asked(item),
                *(seen.present, seen.objects, seen.right, seen.alone, seen.swapped),
                *(seen.place or "", seen.count, round(seen.left, 4)),
                judge(reading, item.opposite).right,
                judge(reading, item.other).right,
                image,
            )
        )
    return rows


def unread(items: Sequence[Item], images: Sequence[str]) -> list[Row]:
    """Une ligne par dessin que personne n'a encore jugé : ses verdicts sont vides."""
    nothing = *[None] * 5, "", *[None] * 4
    return [Row(*_asked(item), *nothing, image) for item, image in zip(items, images, strict=True)]


def _asked(item: Item) -> tuple:
    """Ce qu'une ligne dit de la demande."""
    asked = item.request
    return (
        *(asked.category, asked.held_out, item.index, item.attempt, item.seed, asked.prompt),
        *(item.opposite.prompt, asked.place or "", asked.wishes[0].count),
    )


def strange(rows: Sequence[Row]) -> float | None:
    """Part inexpliquée du dessin médian, si elle est trop grande pour croire ce que lit l'oracle ; sinon None."""
    middle = float(np.median([row.left for row in rows]))
    return middle if middle > _STRANGE else None
