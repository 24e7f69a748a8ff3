"""Les carnets du livre en Markdown ordinaire : hors du livre, ni Jupyter ni Colab n'entendent les directives de MyST.

`Catalogue` sait où mène chaque renvoi : il lit les sources dans l'ordre de `_toc.yml`, et compte comme Sphinx.
`plain` traduit un carnet. Ce que seule une page sait montrer (une grille de vignettes, l'atelier) en est retiré.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import yaml
from docutils import nodes
from nbformat import NotebookNode
from pybtex.database import parse_file
from sphinx.application import Sphinx
from sphinx.directives.code import LiteralIncludeReader

if __package__:
    from _ext.francais import FrenchStyle, Labels, Sorting, short_title, typeset
else:  # chargé par Sphinx, qui met _ext/ sur le chemin
    from francais import FrenchStyle, Labels, Sorting, short_title, typeset

ROLE = re.compile(r"\{([a-z:]+)\}`([^`]+)`")
TITLED = re.compile(r"(.+?)\s*<([^<>]+)>", re.DOTALL)
LABEL = re.compile(r"^\(([\w-]+)\)=\n#+ (.+)$", re.MULTILINE)
NAME = re.compile(r"^:(?:name|label): (\S+)$", re.MULTILINE)
# Ce qu'une page numérote, dans son ordre : une équation étiquetée, un tableau, un exercice.
NUMBERED = {
    "équation": re.compile(r"^\$\$ \(([\w-]+)\)$", re.MULTILINE),
    "Tableau": re.compile(r"^[`:]{3,}\{table\} ((?:.+\n)(?::.*\n)*)", re.MULTILINE),
    "Exercice": re.compile(r"^[`:]{3,}\{exercise-start\}((?:.*\n)(?::.*\n)*)", re.MULTILINE),
}
FENCE = re.compile(r"(`{3,}|:{3,})(?:\{([\w-]+)\})?\s*(.*)")
EQUATION_END = re.compile(r"^\$\$ \(([\w-]+)\)$")
VERBATIM = re.compile(r"(^```.*?^```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$)", re.MULTILINE | re.DOTALL)
EMPTY = re.compile(r"<details><summary>[^<]*</summary>\s*</details>")
DROPPED = ("index", "only", "grid", "container", "temps-execution", "exercise-end")
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


class Catalogue:
    """Le texte de chaque renvoi, et la page où il mène.

    Args:
        root: racine du livre, où sont `_toc.yml`, `references.bib` et les sources.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.titles: dict[str, str] = {}
        self.targets: dict[str, tuple[str, str]] = {}  # étiquette : (page, texte)
        self._figures: dict[tuple[str, int], str] = {}  # (page, cellule) : « Figure 5.3 »
        toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
        parts, chapter = toc.get("parts", [toc]), 0
        loose: Counter[str] = Counter()  # accueil et annexes, sans numéro, comptent ensemble
        self._read(toc["root"], "", loose)
        for part in parts:
            for entry in part["chapters"]:
                chapter += bool(part.get("numbered"))
                prefix, counts = (f"{chapter}.", Counter()) if part.get("numbered") else ("", loose)
                self._read(entry["file"], prefix, counts)
        entries = Sorting().sort(parse_file(str(root / "references.bib"), "bibtex").entries.values())
        self.entries = list(entries)
        self.citations = dict(
            zip((e.key for e in self.entries), Labels().format_labels(self.entries), strict=True)
        )

    def _read(self, page: str, prefix: str, counts: Counter[str]) -> None:
        path = self.root / f"{page}.md"
        if not path.exists():  # l'index, que Sphinx écrit
            return
        source = path.read_text(encoding="utf-8")
        self.titles[page] = re.search(r"^# (.+)$", source, re.MULTILINE)[1]
        for label, title in LABEL.findall(source):
            self.targets[label] = (page, title)

        def number(kind: str) -> str:
            counts[kind] += 1
            return f"({prefix}{counts[kind]})" if kind == "équation" else f"{kind} {prefix}{counts[kind]}"

        for kind, pattern in NUMBERED.items():
            for found in pattern.findall(source):
                name = found if kind == "équation" else (NAME.search(found) or ["", ""])[1]
                self.targets[name] = (page, number(kind))
        cells = jupytext.reads(source, fmt="md:myst").cells
        for index, figure in enumerate(map(_figure, cells)):
            if figure:
                self._figures[page, index] = number("Figure")
                self.targets[figure.get("name", "")] = (page, self._figures[page, index])

    def figure(self, page: str, cell: int) -> str:
        return self._figures[page, cell]

    def link(self, label: str, page: str, text: str = "") -> str:
        """Renvoi à une étiquette, lu depuis `page` : un lien si la cible est dans un autre carnet."""
        there, name = self.targets[label]
        return _link(text or (short_title(name) if name in self.titles.values() else name), there, page)

    def document(self, target: str, page: str, text: str = "") -> str:
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        return _link(text or short_title(self.titles[there]), there, page)

    def bibliography(self) -> list[str]:
        style = FrenchStyle(label_style=Labels, sorting_style=Sorting)
        return [f"- {entry.text.render_as('markdown')}" for entry in style.format_entries(self.entries)]


@cache
def catalogue(root: Path) -> Catalogue:
    """Celui d'un livre qui ne change plus : toutes les pages d'une construction s'en servent."""
    return Catalogue(root)


def _link(text: str, there: str, page: str) -> str:
    if there == page:
        return text
    return f"[{text}]({posixpath.relpath(there, posixpath.dirname(page))}.ipynb)"


def _figure(cell: NotebookNode) -> dict:
    """Nom et légende d'une figure que la cellule fait toujours : une facultative, sans données, n'a pas de numéro."""
    optional = "facultatif" in cell.metadata.get("tags", [])
    return {} if optional else cell.metadata.get("mystnb", {}).get("figure", {})


def glued(notebook: NotebookNode) -> dict[str, str]:
    """Valeurs que les cellules d'un carnet exécuté donnent à sa prose."""
    values = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if record := output.get("metadata", {}).get("scrapbook"):
            told = output["data"].get(f"{record.get('mime_prefix', '')}text/plain", "")
            values[record["name"]] = told.strip("'\"")
    return values


def plain(notebook: NotebookNode, page: str, catalogue: Catalogue, values: dict[str, str]) -> NotebookNode:
    """Traduit sur place la prose de `notebook`, et le rend ; ses cellules de code ne changent pas.

    Args:
        notebook: carnet lu d'une page, exécuté ou non.
        page: son nom dans le livre, « chapters/comprimer/vae ».
        values: nombres de la prose ; un nombre inconnu y laisse le nom que sa cellule lui donne.
    """
    writer, cells = _Writer(page, catalogue, values), []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = writer.cell(cell.source)
            cells += [cell] if cell.source else []
            continue
        cells.append(cell)
        if writer.in_solution or HIDDEN & set(cell.metadata.get("tags", [])):
            cell.metadata["jupyter"] = {"source_hidden": True}
        if caption := _figure(cell).get("caption"):
            text = f"*{catalogue.figure(page, index)}.* {writer.inline(' '.join(caption.split()))}"
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"legende-{index}"))
    notebook.cells = cells
    return notebook


class _Writer:
    """Écrit la prose d'une page, cellule après cellule : une solution peut en couvrir plusieurs."""

    def __init__(self, page: str, catalogue: Catalogue, values: dict[str, str]) -> None:
        self.page, self.catalogue, self.values = page, catalogue, values
        self.in_solution, self.told = False, True  # la solution en cours a-t-elle déjà un texte ?

    def cell(self, source: str) -> str:
        before = self.in_solution
        text = self.inline("\n".join(self.lines(source.split("\n"))))
        if before:
            text = f"<details><summary>Solution{', suite' if self.told else ''}</summary>\n\n{text}"
        if self.in_solution:
            text = f"{text}\n\n</details>"
        self.told = not re.search(rf"{EMPTY.pattern}\s*\Z", text)
        return re.sub(r"\n{3,}", "\n\n", EMPTY.sub("", text)).strip()

    def lines(self, lines: list[str]) -> Iterator[str]:
        at = 0
        while at < len(lines):
            line, at = lines[at], at + 1
            if fence := FENCE.fullmatch(line):
                marks, name, argument = fence.groups()
                close = next((n for n in range(at, len(lines)) if _closes(lines[n], marks)), len(lines))
                body, at = lines[at:close], close + 1
                yield from self._directive(name, argument, body) if name else [line, *body, marks]
            elif line == "$$":
                close = next((n for n in range(at, len(lines)) if lines[n].startswith("$$")), len(lines) - 1)
                yield from self._equation("\n".join(lines[at:close]), EQUATION_END.fullmatch(lines[close]))
                at = close + 1
            elif line.startswith("% ") or re.fullmatch(r"\([\w-]+\)=", line):
                continue  # un commentaire, une étiquette
            elif at < len(lines) and lines[at].startswith(": "):  # une liste de définitions
                yield f"**{line}** : {lines[at][2:]}"
                at += 1
            else:
                yield line

    def _equation(self, formula: str, label: re.Match | None) -> Iterator[str]:
        if r"\\" in formula and r"\begin" not in formula:  # Sphinx aligne ainsi plusieurs lignes
            formula = f"\\begin{{aligned}}\n{formula}\n\\end{{aligned}}"
        yield from ("$$", formula)
        if label:
            yield rf"\tag{{{self.catalogue.targets[label[1]][1].strip('()')}}}"
        yield "$$"

    def inline(self, text: str) -> str:
        """Remplace les rôles, dont l'un peut courir sur deux lignes, et pose les espaces insécables."""
        pieces = VERBATIM.split(ROLE.sub(self._role, text))
        return "".join(piece if n % 2 else typeset(piece).replace("'", "’") for n, piece in enumerate(pieces))

    def _role(self, match: re.Match) -> str:
        name, content = match.groups()
        titled = TITLED.fullmatch(content)
        text, target = titled.groups() if titled else ("", content)
        if name == "glue:text":
            return self.values.get(content, f"`{content}`")
        if name.startswith("cite"):
            labels = [self.catalogue.citations[key.strip()] for key in content.split(",")]
            if name == "cite:t":
                return ", ".join(re.sub(r", (\S+)$", r" [\1]", label) for label in labels)
            return f"[{' ; '.join(labels)}]"
        if name in ("ref", "numref", "eq"):
            return self.catalogue.link(target, self.page, text)
        if name == "doc":
            return self.catalogue.document(target, self.page, text)
        return text or ("" if name == "octicon" else content)

    def _directive(self, name: str, argument: str, body: list[str]) -> Iterator[str]:
        options, body = _options(body)
        write: dict[str, Callable[[], Iterator[str]]] = {
            "literalinclude": partial(self._included, argument, options),
            "table": partial(self._table, argument, options, body),
            "exercise-start": partial(self._exercise, argument, options),
            "solution-start": self._solution_start,
            "solution-end": self._solution_end,
            "glossary": partial(self._glossary, body),
            "bibliography": lambda: iter(self.catalogue.bibliography()),
        }
        if name in write:
            yield from write[name]()
        elif name not in DROPPED:  # un encadré
            yield from (
                "",
                *(f"> {line}".rstrip() for line in (f"**{argument}**", "", *self.lines(body))),
                "",
            )

    def _included(self, name: str, options: dict[str, str]) -> Iterator[str]:
        path = Path(self.catalogue.root, self.page).parent / name
        read = {key: int(value) if key == "dedent" else value for key, value in options.items()}
        settings = SimpleNamespace(source_encoding="utf-8-sig")
        code, _ = LiteralIncludeReader(str(path), read, settings).read()
        yield from (f"```{options.get('language', '')}", *code.rstrip("\n").split("\n"), "```")

    def _table(self, title: str, options: dict[str, str], body: list[str]) -> Iterator[str]:
        number = self.catalogue.targets[options["name"]][1] if "name" in options else "Tableau"
        yield from (f"*{number}.* {title}", "", *self.lines(body), "")

    def _exercise(self, title: str, options: dict[str, str]) -> Iterator[str]:
        number = self.catalogue.targets[options["label"]][1]
        yield from (f"**{number}**{f' ({title})' if title else ''}", "")

    def _solution_start(self) -> Iterator[str]:
        self.in_solution = True
        yield from ("", "<details><summary>Solution</summary>", "")

    def _solution_end(self) -> Iterator[str]:
        self.in_solution = False
        yield from ("", "</details>", "")

    def _glossary(self, body: list[str]) -> Iterator[str]:
        for line in body:
            yield line[2:] if line.startswith("  ") else f"**{line}**  " if line else ""


def _closes(line: str, marks: str) -> bool:
    return len(line) >= len(marks) and line.strip(marks[0]) == ""


def _options(body: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options `:clé: valeur` du début d'une directive, et le reste."""
    options = {}
    while body and (option := re.fullmatch(r":([\w-]+):\s*(.*)", body[0])):
        value = yaml.safe_load(option[2])  # MyST lit ainsi une valeur entre guillemets
        options[option[1]], body = "" if value is None else str(value), body[1:]
    start = next((n for n, line in enumerate(body) if line.strip()), len(body))
    return options, body[start:]


def rewrite_download(
    app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document
) -> None:
    """Met en Markdown ordinaire le carnet que `execution` vient de joindre à la page."""
    if "ipynb_source" in context:
        path = Path(app.outdir, "_sources", context["ipynb_source"])
        notebook = nbformat.read(path, as_version=4)
        # Ce carnet-là n'a pas de sorties ; myst-nb range à côté ce que les cellules ont donné à la prose.
        glue = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.glue.json"
        outputs = json.loads(glue.read_text(encoding="utf-8")) if glue.exists() else {}
        values = {name: output["data"].get("text/plain", "").strip("'\"") for name, output in outputs.items()}
        nbformat.write(plain(notebook, pagename, catalogue(Path(app.srcdir)), values), path)


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", rewrite_download, priority=401)  # juste après `execution.offer_notebook`
    return {"parallel_read_safe": True, "parallel_write_safe": True}
