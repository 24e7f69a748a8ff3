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
from bottle import SimpleTemplate
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
from minidalle.evaluation.study_page import PAGE, percent, shares_figure, told_space
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
    text = SimpleTemplate(_PAGE).render(
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


_PAGE = """\
<!doctype html>
<html lang="fr">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Étude de {{about["model"]}}</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 1.05rem/1.5 system-ui, sans-serif; }
  body { max-width: 70rem; margin: 1rem auto; padding: 0 1rem; }
  p, figcaption { max-width: 44rem; }
  img { max-width: 100%; background: #fff; border-radius: .4rem; }
  .table { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .2rem .7rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
  th[scope=row], thead th:first-child { text-align: left; }
  caption { text-align: left; padding: .4rem 0; }
  .note { border-left: .3rem solid #D55E00; padding-left: .8rem; }
  .lines { display: flex; flex-wrap: wrap; gap: 1.2rem 2.5rem; }
  .line { display: flex; flex-wrap: wrap; gap: .8rem; }
  .line figure { margin: 0; width: 144px; font-size: .8rem; line-height: 1.3; }
  .line img { width: 144px; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
  dd { margin: 0; overflow-wrap: anywhere; }
</style>
<main>
<h1>Ce que comprend « {{about["model"]}} »</h1>
% for note in notes:
<p class="note">{{note}}</p>
% end
<p>{{drawings}} dessins, demandés en anglais. L'oracle du livre ne sait pas les lire : des yeux humains les jugent.
Entièrement jugés : {{done}}{{" (juges : " + raters + ")" if raters else ""}}. Une phrase est accomplie quand plus de la
moitié de ses juges la disent tout à fait juste. Les crochets sont des intervalles à 95 %, de Wilson.</p>
% if not counts:
<h2>Ce qu'il reste à faire</h2>
<p>Rien n'est encore jugé, et cette page ne dit donc rien de ce que le modèle comprend. Noter, avant de regarder les
dessins ci-dessous, pour que ce soit à l'aveugle ; mesurer l'accord des juges ; puis reprendre l'étude, avec les mêmes
options. L'option <code>-n</code> de <code>minidalle rate</code> tire moins d'images, les mêmes pour tous les juges.</p>
<ol>
% for step in steps:
  <li><code>{{step}}</code></li>
% end
</ol>
% else:
<figure>
  <img src="{{figure}}" alt="Parts des demandes accomplies, par catégorie ; la table qui suit dit les mêmes nombres.">
  <figcaption>Demandes accomplies, par catégorie. Le losange est le hasard mesuré : le même dessin, jugé par la demande
  contraire, où le seul attribut de la catégorie est échangé. Seul l'écart entre les deux dit que le modèle
  comprend.</figcaption>
</figure>
<div class="table"><table>
  <caption>Premier dessin de chaque demande, s'il est jugé. « Contraire » et « autre demande » : le hasard.</caption>
  <thead><tr><th scope="col">Catégorie</th><th scope="col">Combinaisons</th><th scope="col">n</th><th scope="col">Objets
  là</th><th scope="col">Juste</th><th scope="col">Contraire</th><th scope="col">Autre demande</th></tr></thead>
  <tbody>
%   for c in counts:
  <tr><th scope="row" title="{{categories[c.category]}}">{{c.category}}</th>
  <td>{{"réservées" if c.held_out else "vues"}}</td><td>{{c.n}}</td>
  <td>{{"–" if c.present is None else percent(c.present / c.n)}}</td><td>{{percent(c.share)}}</td>
  <td>{{percent(c.chance)}}</td><td>{{percent(c.other / c.n)}}</td></tr>
%   end
  </tbody>
</table></div>
%   for space in spaces:
<p>VISOR, {{space}}.</p>
%   end
% end
<h2>Les dessins</h2>
<p>Ceux des premières demandes de chaque catégorie. Le dernier de chaque groupe est celui de la demande contraire, de la
même graine.</p>
% for category, lines in gallery.items():
<h3>{{category.capitalize()}} : {{categories[category]}}</h3>
<div class="lines">
%   for line in lines:
<div class="line">
%     for row, image in line:
  <figure><img src="{{image}}" alt="Dessin de la demande « {{row.prompt}} »"><figcaption>{{row.prompt}}<br><i
  lang="en">{{translate(row.prompt)}}</i>
%       if row.right is not None:
  <br>{{"juste" if row.right else "faux"}}
%       end
  </figcaption></figure>
%     end
</div>
%   end
</div>
% end
<h2>Pour refaire</h2>
<dl>
% for name, value in about.items():
  <dt>{{name}}</dt><dd>{{value}}</dd>
% end
</dl>
</main>
"""
