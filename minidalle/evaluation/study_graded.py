"""L'étude jugée à l'œil : ce que l'oracle ne sait pas lire, des humains le notent, et une page dit ce qu'ils ont vu.

Chaque dessin y est confronté, dans la page de « minidalle rate », à ce que l'oracle aurait jugé : la demande, la
demande contraire, une autre et, si elle situe, ses deux objets sans leur place. Une phrase est accomplie quand plus de
la moitié des juges lui donnent la note la plus haute. Un dessin ne compte que si toutes ses phrases sont notées.
"""

import base64
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from minidalle import plots
from minidalle.errors import MinidalleError
from minidalle.evaluation.english import translate
from minidalle.evaluation.phrases import Phrase
from minidalle.evaluation.rating_page import SCALE
from minidalle.evaluation.ratings import Rating, tabulate
from minidalle.evaluation.requests import SPATIAL, STUDY, Request
from minidalle.evaluation.study import SHOWN, Item
from minidalle.evaluation.study_files import Row, read_strip
from minidalle.evaluation.study_page import PAGE, percent, rendered, shares_figure, told_space
from minidalle.evaluation.study_summary import Space, counts, judged
from minidalle.files import atomic_write

TO_RATE, NOTES = "a-noter", "notes.csv"
_THUMBNAIL = 144  # côté d'un dessin sur la page, en pixels


# --- donner à noter -------------------------------------------------------------------------------


def captions(item: Item) -> dict[str, str]:
    """Par colonne de `Row` à remplir, la phrase qui en décide ; elle dit ce que jugerait l'oracle, et rien de plus."""
    told = {
        "right": _judged(item.request),
        "contrast_right": _judged(item.opposite),
        "other_right": _judged(item.other),
    }
    if item.request.category in SPATIAL:
        told["present"] = Phrase(item.request.wishes).text
    return told


def _judged(r: Request) -> str:
    return Phrase(r.wishes, r.place, r.comparison, r.background).text


def write_to_rate(out: Path, rows: Sequence[Row], items: Sequence[Item]) -> Path:
    """Écrit dans `out` le dossier que lit « minidalle rate », au format COCO ; une image déjà là est gardée."""
    folder = out / TO_RATE
    missing = [row for row in rows if not (folder / "images" / _name(row)).exists()]
    for row, image in _drawings(out, missing):
        with atomic_write(folder / "images" / _name(row)) as file:
            Image.fromarray(image).save(file, "PNG")
    told = {
        "images": [{"id": i, "file_name": _name(row)} for i, row in enumerate(rows)],
        "annotations": [
            {"image_id": i, "caption": caption}
            for i, item in enumerate(items)
            for caption in dict.fromkeys(captions(item).values())
        ],
    }
    with atomic_write(folder / "captions.json", "w") as file:
        json.dump(told, file, ensure_ascii=False, indent=1)
    return folder


def _name(row: Row) -> str:
    """« paquets/00003.png#5 » → « 00003-5.png »."""
    path, _, place = row.image.partition("#")
    return f"{Path(path).stem}-{place}.png"


def _drawings(out: Path, rows: Sequence[Row]) -> Iterator[tuple[Row, np.ndarray]]:
    """Chaque ligne et son dessin ; une bande n'est lue qu'une fois si ses lignes se suivent."""
    held, strip = None, np.empty(0)
    for row in rows:
        path, _, place = row.image.partition("#")
        if path != held:
            held, strip = path, read_strip(out / path)
        yield row, strip[int(place)]


# --- lire les notes -------------------------------------------------------------------------------


def graded(rows: Sequence[Row], items: Sequence[Item], ratings: Sequence[Rating]) -> list[Row]:
    """Les lignes, jugées par les notes ; celles dont une phrase n'est pas notée restent sans verdict.

    Args:
        rows: la table, sans verdict.
        items: ce que `plan` rend, dans le même ordre.
        ratings: notes de « minidalle rate », de 0 à 4.

    Raises:
        MinidalleError: note hors de l'échelle.
    """
    if not ratings:
        return list(rows)
    top = len(SCALE) - 1
    for r in ratings:
        if not 0 <= r.grade <= top:
            raise MinidalleError(f"Note de {r.grade:g} pour « {r.caption} » : l'échelle va de 0 à {top}.")
    table = tabulate(ratings)
    top_share = (table.grades == top).sum(0) / (~np.isnan(table.grades)).sum(0)
    accomplished = dict(zip(table.pairs, (top_share > 0.5).tolist(), strict=True))
    return [_graded(row, item, accomplished) for row, item in zip(rows, items, strict=True)]


def _graded(row: Row, item: Item, accomplished: Mapping[tuple[str, str], bool]) -> Row:
    seen = {column: accomplished.get((_name(row), text)) for column, text in captions(item).items()}
    if None in seen.values():
        return row
    if "present" in seen:
        seen["present"] |= seen["right"]  # bien placés, ils sont là
    return row._replace(**seen)


# --- la page --------------------------------------------------------------------------------------


def steps(out: Path) -> list[str]:
    """Les commandes qui restent à faire, dans l'ordre."""
    folder, notes = (shlex.quote(str(out / name)) for name in (TO_RATE, NOTES))
    return [
        f"minidalle rate {folder} --rater NOM --out {notes}",
        f"minidalle evaluate ratings {notes}",
        f"minidalle evaluate study … --out {shlex.quote(str(out))} --resume",
    ]


def write_page(
    out: Path,
    rows: Sequence[Row],
    measured: Sequence[Space],
    about: Mapping[str, object],
    opposites: Sequence[Row],
    notes: Sequence[str] = (),
    raters: Sequence[str] = (),
) -> list[Path]:
    """Écrit la page, et la figure s'il y a des verdicts ; rend les fichiers écrits.

    Args:
        out: dossier de l'étude, où sont les bandes de dessins que nomment `rows` et `opposites`.
        rows: la table, voir `graded`.
        measured: ce qu'en dit `study_summary.spaces`.
        about: ce que dit `study.json`.
        opposites: les dessins des demandes contraires.
        notes: avertissements, à dire en tête.
        raters: qui a noté.
    """
    found, written, figure = counts(rows), [], None
    if found:
        drawn, written = shares_figure(found), [out / "parts.svg"]
        file = io.BytesIO()
        drawn.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
        plt.close(drawn)
        figure = _uri("svg+xml", file.getvalue())
        with atomic_write(written[0]) as svg:
            svg.write(file.getvalue())
    text = rendered(
        "study_graded.html",
        about={name: _plain(value) for name, value in about.items()},
        notes=notes,
        raters=", ".join(raters),
        drawings=plots.french(len(rows)),
        done=plots.french(len(judged(rows))),
        counts=found,
        spaces=[told_space(space) for space in measured],
        figure=figure,
        gallery=_gallery(out, rows, opposites),
        steps=steps(out),
        categories=STUDY,
        percent=percent,
        translate=translate,
    )
    with atomic_write(out / PAGE, "w") as page:
        page.write(text)
    return [*written, out / PAGE]


def _gallery(
    out: Path, rows: Sequence[Row], opposites: Sequence[Row]
) -> dict[str, list[list[tuple[Row, str]]]]:
    """Par catégorie, une ligne par demande montrée : ses dessins, puis celui du contraire ; chacun en vignette."""
    shown = [row for row in rows if row.index < SHOWN]
    lines: dict[tuple[str, bool, int], list[tuple[Row, str]]] = {}
    for row, image in _drawings(out, [*shown, *opposites]):
        lines.setdefault((row.category, row.held_out, row.index), []).append((row, _thumbnail(image)))
    gallery: dict[str, list] = {}
    for (category, *_), line in lines.items():
        gallery.setdefault(category, []).append(line)
    return gallery


def _plain(value: object) -> str:
    """« couleur, paire », « guidance 2.0, temperature 1.0 »."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {x}" for name, x in value.items() if x is not None)
    return ", ".join(value) if isinstance(value, list) else str(value)


def _thumbnail(image: np.ndarray) -> str:
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(file, "JPEG", quality=85)
    return _uri("jpeg", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
