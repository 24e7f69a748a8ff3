"""Le livre en un tableau, une fois construit : `python -m tools.sommaire [RACINE]`, dans le dossier du projet.

Une ligne par page, dans l'ordre du livre. Les mots, figures, équations, exercices et solutions sont comptés dans la
page construite ; les cellules, dans sa source ; le temps de lecture est celui que la page annonce, et la durée
d'exécution celle du tableau de l'annexe « Exécution du livre ». Un tiret : la page n'en dit rien.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

import jupytext
import yaml
from bs4 import BeautifulSoup, Tag

from _ext.execution import count_words, grouped, reading_minutes, seconds
from minidalle.errors import MinidalleError
from tools.command import launch
from tools.pages import parse

ROOT = Path(__file__).parents[1]
EXECUTION = "chapters/annexes/execution"  # la page dont le tableau dit les durées
# Ce que docutils ne tient pas pour un paragraphe, et que le HTML met pourtant dans un <p>.
UNREAD = "figcaption, .citation, .admonition-title, .rubric, .caption"
HEADINGS = (
    "page",
    "mots",
    "figures",
    "équations",
    "cellules",
    "exercices",
    "solutions",
    "lecture",
    "exécution",
)


@dataclass(frozen=True)
class Page:
    """Ce qu'une page demande ; la somme de deux pages est ce que demandent les deux."""

    title: str
    words: int
    figures: int
    equations: int  # hors du texte, numérotées ou non
    cells: int
    exercises: int
    solutions: int
    minutes: int | None  # de lecture, annoncées
    runtime: float | None  # en secondes, mesurées

    def __add__(self, other: "Page") -> "Page":
        names = [field.name for field in fields(self) if field.name != "title"]
        return Page(self.title, *((getattr(self, n) or 0) + (getattr(other, n) or 0) for n in names))

    def row(self) -> tuple[str, ...]:
        counts = (self.words, self.figures, self.equations, self.cells, self.exercises, self.solutions)
        return (
            self.title,
            *map(grouped, counts),
            "–" if self.minutes is None else _hours(self.minutes),
            "–" if self.runtime is None else f"{seconds(self.runtime)} s",
        )


def _hours(minutes: int) -> str:
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02}"


def listed(root: Path) -> list[str]:
    """Noms des pages du livre, dans l'ordre de `_toc.yml`, accueil compris."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = toc.get("parts", [toc])
    return [toc["root"], *(chapter["file"] for part in parts for chapter in part["chapters"])]


def runtimes(page: BeautifulSoup) -> dict[str, float]:
    """Secondes de chaque page exécutée, par adresse relative à l'annexe, lues dans son tableau."""
    rows = (row.find_all("td") for row in page.select("article table tr"))
    cells = (row for row in rows if len(row) == 2 and row[0].find("a"))
    return {name.a["href"]: float(told.get_text().replace(",", ".")) for name, told in cells}


def measure(article: Tag, code_cells: int, runtime: float | None) -> Page:
    """Compte ce qu'il y a dans une page construite."""
    paragraphs = (p for p in article.find_all("p") if p.css.closest(UNREAD) is None)
    labels = (strong for strong in article.find_all("strong") if strong.get_text() == "Temps")
    label = next(labels, None)
    return Page(
        title=article.h1.get_text().rstrip("#"),
        words=count_words(p.get_text() for p in paragraphs),
        figures=len(article.find_all("figure")),
        equations=len(article.select("div.math")),
        cells=code_cells,
        exercises=len(article.select("div.exercise")),
        solutions=len(article.select("div.solution")),
        minutes=reading_minutes(label.parent.get_text()) if label else None,
        runtime=runtime,
    )


def read(root: Path) -> list[Page]:
    """Toutes les pages du livre construit dans `root`.

    Raises:
        MinidalleError: `root` n'a pas de livre, ou pas de livre construit, ou construit sans l'une de ses pages.
    """
    if not (root / "_toc.yml").exists():
        raise MinidalleError(f"Pas de livre dans « {root} » : donner le dossier où est « _toc.yml ».")
    html, names = root / "_build" / "html", listed(root)
    if not (html / f"{names[0]}.html").exists():
        raise MinidalleError("Le livre n'est pas construit : lancer « make book », puis recommencer.")
    if missing := [name for name in names if not (html / f"{name}.html").exists()]:
        raise MinidalleError(f"Page absente du livre construit, à refaire par « make book » : {missing[0]}")
    folder = html / EXECUTION
    times = runtimes(parse(html / f"{EXECUTION}.html")) if EXECUTION in names else {}
    durations = {(folder.parent / address).resolve(): value for address, value in times.items()}
    pages = []
    for name in names:
        path, source = html / f"{name}.html", root / f"{name}.md"
        cells = jupytext.read(source, fmt="md:myst").cells if source.exists() else []
        count = sum(cell.cell_type == "code" for cell in cells)
        pages.append(measure(parse(path).find("article"), count, durations.get(path.resolve())))
    return pages


def table(pages: list[Page]) -> str:
    """Tableau Markdown aux colonnes alignées, le total en dernière ligne."""
    total = sum(pages, start=Page("total", 0, 0, 0, 0, 0, 0, 0, 0.0))
    rows = [HEADINGS, *(page.row() for page in pages), tuple(f"**{cell}**" for cell in total.row())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruler = ("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:]))
    return "\n".join(_line(row, widths) for row in (rows[0], ruler, *rows[1:]))


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return f"| {' | '.join((row[0].ljust(widths[0]), *numbers))} |"


def main(root: Path) -> None:
    """Imprime le tableau du livre construit dans `root`."""
    print(table(read(root)))


if __name__ == "__main__":
    launch(main, Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
