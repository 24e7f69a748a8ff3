"""Les figures d'une étude, et la page qui la résume : un seul fichier, qui ne demande rien au réseau."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from bottle import SimpleTemplate
from matplotlib.figure import Figure

from minidalle import plots
from minidalle.data.scenes import RELATIONS
from minidalle.evaluation.requests import STUDY
from minidalle.evaluation.statistics import Estimate
from minidalle.evaluation.study_files import Row, read_strip
from minidalle.evaluation.study_summary import Count, Space, confusion, counts
from minidalle.files import atomic_write

PAGE = "index.html"
_PARTS = {True: ("réservées", plots.TEXT, "o"), False: ("vues", plots.OTHER[1], "s")}


def percent(share: float | Estimate) -> str:
    """« 97 % », « 97 % [91 ; 99] »."""
    if isinstance(share, Estimate):
        return f"{100 * share.value:.0f} % [{100 * share.low:.0f} ; {100 * share.high:.0f}]"
    return f"{100 * share:.0f} %"


# --- figures --------------------------------------------------------------------------------------


def shares_figure(found: Sequence[Count]) -> Figure:
    """Par catégorie, part des demandes accomplies et son intervalle, à côté du hasard mesuré."""
    names = list(dict.fromkeys(count.category for count in found))
    figure, ax = plots.axes(6.2, 0.9 + 0.42 * len(names))
    for held_out, (label, colour, marker) in _PARTS.items():
        part = [count for count in found if count.held_out == held_out]
        if not part:
            continue
        shift = -0.14 if held_out else 0.14
        y = np.array([names.index(count.category) + shift for count in part])
        chances, shares = [c.chance for c in part], [c.share for c in part]
        told = "demande contraire" if held_out or len(_split(found)) == 1 else None
        for estimates, style in (
            (chances, {"color": plots.MODEL, "marker": "D", "mfc": "white", "ms": 4, "label": told}),
            (shares, {"color": colour, "marker": marker, "ms": 6, "label": f"combinaisons {label}"}),
        ):
            value, low, high = 100 * np.array(estimates).T
            errors = np.clip([value - low, high - value], 0, None)
            ax.errorbar(value, y, xerr=errors, linestyle="none", capsize=2, linewidth=1.4, **style)
    ax.set(xlim=(-3, 103), xlabel="part des demandes accomplies (%)", ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8)
    return figure


def confusion_figure(table: np.ndarray) -> Figure:
    """Relation demandée et relation lue, en part de chaque ligne."""
    figure, ax = plots.axes(4.8, 3.1)
    totals = table.sum(1, keepdims=True)
    shares = 100 * table / np.maximum(totals, 1)
    ax.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        ax.text(j, i, f"{share:.0f} %", ha="center", va="center", color="white" if share < 50 else "black")
    ax.grid(False)
    ax.set_xticks(range(table.shape[1]), [*RELATIONS, "aucune"])
    ax.set_yticks(
        range(len(RELATIONS)), [f"{name} ({n})" for name, n in zip(RELATIONS, totals[:, 0], strict=True)]
    )
    ax.set(xlabel="relation lue", ylabel="relation demandée (dessins)")
    return figure


def pairs_figure(pairs: Sequence[tuple[Row, Row, np.ndarray, np.ndarray]]) -> Figure:
    """Deux paires par ligne : le dessin d'une demande, et celui de la demande contraire, de la même graine."""
    images, titles = [], []
    for row, turned, image, other in pairs:
        images += [image, other]
        titles += [f"{r.prompt}\u00a0: {'juste' if r.right else 'faux'}" for r in (row, turned)]
    return plots.show_images(images, titles, columns=4, side=1.35)


def _split(found: Sequence[Count]) -> set[bool]:
    return {count.held_out for count in found}


# --- page -----------------------------------------------------------------------------------------


def rendered(name: str, **values: object) -> str:
    """La page du gabarit `name`, dans son cadre, `study_frame.html`."""
    folder = str(resources.files("minidalle.evaluation"))
    return SimpleTemplate(name=name, lookup=[folder]).render(values)


def write_page(
    out: Path,
    rows: Sequence[Row],
    measured: Sequence[Space],
    about: Mapping[str, object],
    opposites: Sequence[Row] = (),
    notes: Sequence[str] = (),
) -> list[Path]:
    """Écrit la page et ses figures dans `out`, chacune atomiquement ; rend les fichiers écrits.

    Args:
        out: dossier de l'étude, où sont les bandes de dessins que nomment `rows` et `opposites`.
        rows: la table.
        measured: ce qu'en dit `study_summary.spaces`.
        about: ce que dit `study.json`.
        opposites: les dessins des demandes contraires ; vide, la planche des paires manque.
        notes: avertissements, à dire en tête.
    """
    found = counts(rows)
    figures = {"parts": (shares_figure(found), _told_shares(found))}
    if (table := confusion(rows)).any():
        figures["relations"] = (confusion_figure(table), _told_confusion(table))
    if pairs := minimal_pairs(out, rows, opposites):
        both = sum(row.right and turned.right for row, turned, *_ in pairs)
        told = f"{len(pairs)} paires de dessins et leurs phrases ; les deux dessins sont justes dans {both}."
        figures["paires"] = (pairs_figure(pairs), told)
    drawn = {name: (_svg(figure), alt) for name, (figure, alt) in figures.items()}
    text = rendered(
        "study_page.html",
        about={name: _said(value) for name, value in about.items()},
        figures={name: (_data_uri(svg), alt) for name, (svg, alt) in drawn.items()},
        counts=found,
        spaces=measured,
        notes=notes,
        left=percent(float(np.median([row.left for row in rows]))),
        drawings=plots.french(len(rows)),
        categories=STUDY,
        percent=percent,
        part=lambda held_out: _PARTS[held_out][0],
    )
    for name, (svg, _) in drawn.items():
        with atomic_write(out / f"{name}.svg") as file:
            file.write(svg)
    with atomic_write(out / PAGE, "w") as file:
        file.write(text)
    return [*(out / f"{name}.svg" for name in drawn), out / PAGE]


def minimal_pairs(
    out: Path, rows: Sequence[Row], opposites: Sequence[Row]
) -> list[tuple[Row, Row, np.ndarray, np.ndarray]]:
    """Deux paires par catégorie, réservées s'il y en a : une demande, la demande contraire, et leurs dessins."""
    strips: dict[str, np.ndarray] = {}

    def image(row: Row) -> np.ndarray:
        path, _, place = row.image.partition("#")
        if path not in strips:
            strips[path] = read_strip(out / path)
        return strips[path][int(place)]

    drawn = {(r.category, r.held_out, r.index): r for r in rows if r.attempt == 0}
    chosen: dict[str, list[Row]] = {}
    for turned in opposites:
        chosen.setdefault(turned.category, []).append(turned)
    return [
        (row, turned, image(row), image(turned))
        for group in chosen.values()
        for turned in group[:2]
        for row in [drawn[turned.category, turned.held_out, turned.index]]
    ]


def _told_shares(found: Sequence[Count]) -> str:
    told = (
        f"{c.category} ({_PARTS[c.held_out][0]}) {percent(c.share.value)}, contraire {percent(c.chance.value)}"
        for c in found
    )
    return f"Parts des demandes accomplies, par catégorie : {' ; '.join(told)}."


def _told_confusion(table: np.ndarray) -> str:
    right = np.trace(table[:, : len(RELATIONS)]) / table.sum()
    return (
        f"Table de quatre relations demandées et de celles qui sont lues : {percent(right)} sur la diagonale."
    )


def _said(value: object) -> str:
    """« couleur, paire », « guidance 2.0, temperature 1.0 »."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {x}" for name, x in value.items() if x is not None)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def told(count: Count) -> str:
    """« couleur, réservées : 97 % [91 ; 99] de 100 ; demande contraire 1 % »."""
    return (
        f"{count.category}, {_PARTS[count.held_out][0]} : {percent(count.share)} de {count.n} ; "
        f"demande contraire {percent(count.chance.value)}"
    )


def told_space(space: Space) -> str:
    """« relation, vues : objets 90 %, inconditionnel 60 %, conditionnel 67 % (relation contraire 20 %) ; … »."""
    v = space.measured
    given, chance = (
        percent(x) if x is not None else "indéfini" for x in (v.conditional, space.chance.conditional)
    )
    several = ", ".join(f"au moins {k} : {percent(x)}" for k, x in enumerate(v.at_least, 1))
    return (
        f"{space.category}, {_PARTS[space.held_out][0]} : objets {percent(v.objects)}, inconditionnel "
        f"{percent(v.unconditional)}, conditionnel {given} (demande contraire {chance}) ; sur {space.images}, {several}"
    )
