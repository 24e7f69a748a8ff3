"""L'exécution des chapitres : le tableau des durées, et le nom de la cellule qui échoue.

La directive `{temps-execution}` est remplacée par un tableau « page, durée » quand tous les chapitres
sont exécutés ; une durée est celle de la dernière exécution réelle, même si la page vient du cache. Elle est dite
aussi, avec le nombre de mots, au bout de la ligne « **Temps** » qui ouvre chaque chapitre ; une annexe, qui n'a
pas cette ligne, en reçoit une. `tools/sommaire.py` relit ce que ces lignes disent.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import jupytext
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)

WORDS_PER_MINUTE = 150  # une annexe se lit d'un trait ; un chapitre, plus lentement, dit lui-même son temps
SHORTEST = 100  # mots : en deçà, une page n'a pas de temps de lecture à dire
SPOKEN = {
    "dix minutes": 10,
    "une demi-heure": 30,
    "trois quarts d'heure": 45,
    "une petite heure": 50,
    "une heure": 60,
}


class ExecutionTimes(nodes.General, nodes.Element):
    """Place du tableau, en attendant que tous les chapitres soient lus."""


class ExecutionTimesDirective(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [ExecutionTimes()]


class FillExecutionTimes(SphinxPostTransform):
    default_priority = 8  # avant la résolution des renvois (10)

    def run(self) -> None:
        for node in list(self.document.findall(ExecutionTimes)):
            node.replace_self(make_table(self.env))


class TellMeasures(SphinxPostTransform):
    """Ajoute à la ligne « Temps » d'un chapitre sa longueur et sa durée, mesurées ; à une annexe, la ligne."""

    default_priority = 29  # après les renvois (10), avant que le PDF n'emporte les solutions ailleurs (30)

    def run(self) -> None:
        durations = executed(self.env)
        for name, page in _pages(self.document, self.env.docname):
            words = count_words(node.astext() for node in page.findall(_is_read))
            labels = (node for node in page.findall(nodes.strong) if node.astext() == "Temps")
            if label := next(labels, None):
                if data := durations.get(name):
                    told = f"{grouped(round(words, -2))} mots, {data['runtime']:.0f}\u00a0s d’exécution."
                    told = f" Mesuré à la construction\u00a0: {told}"
                    label.parent += nodes.inline("", told, classes=["mesure"])
            elif words >= SHORTEST and name != self.config.root_doc:
                title = next(iter(page.findall(nodes.title)))
                told = f"\u00a0: environ {max(1, round(words / WORDS_PER_MINUTE))}\u00a0min de lecture."
                line = nodes.paragraph("", "", nodes.strong(text="Temps"), nodes.Text(told))
                title.parent.insert(title.parent.index(title) + 1, line)


def _pages(document: nodes.document, name: str) -> Iterator[tuple[str, nodes.Element]]:
    """Nom et contenu de chaque page : une seule en HTML ; dans le PDF, toutes sont cousues en un document."""
    sewn = [(file["docname"], file) for file in document.findall(addnodes.start_of_file)]
    yield from sewn or [(name, document)]


def _is_read(node: nodes.Node) -> bool:
    return isinstance(node, nodes.paragraph) and not isinstance(node.parent, nodes.citation)


def count_words(paragraphs: Iterable[str]) -> int:
    """Mots des paragraphes d'une page : ni le code, ni les légendes, ni les titres."""
    return sum(len(paragraph.split()) for paragraph in paragraphs)


def reading_minutes(line: str) -> int | None:
    """Minutes de lecture que dit une ligne « Temps », en lettres ou en chiffres ; None si elle n'en dit pas."""
    found = re.search(r"Temps\s:\s+(?:environ\s+(\d+)\smin|([^;,.]+?))\s+de lecture", line)
    if found is None:
        return None
    return int(found[1]) if found[1] else SPOKEN.get(found[2].replace("’", "'"))


def grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def executed(env: BuildEnvironment) -> dict[str, dict]:
    """Données d'exécution de chaque page exécutée, dans l'ordre du livre."""
    data = NbMetadataCollector.get_doc_data(env)
    order = list(env.toctree_includes.get(env.config.root_doc, []))
    names = sorted(data, key=lambda name: (order.index(name) if name in order else len(order), name))
    return {name: data[name]["exec_data"] for name in names if data[name].get("exec_data")}


def make_table(env: BuildEnvironment) -> nodes.table:
    rows = executed(env)
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (75, 25)), cols=2)
    group += nodes.thead("", _row("Page", "Durée (s)"))
    body = nodes.tbody()
    for name, data in rows.items():
        link = addnodes.pending_xref(
            "",
            nodes.inline(text=env.titles[name].astext()),
            refdoc=env.docname,
            reftarget=f"/{name}",
            reftype="doc",
            refdomain="std",
            refexplicit=True,
            refwarn=True,
        )
        body += _row(link, seconds(data["runtime"]))
    body += _row("Total", seconds(sum(data["runtime"] for data in rows.values())))
    group += body
    return nodes.table("", group, classes=["colwidths-given"])


def _row(*cells: str | nodes.Node) -> nodes.row:
    content = [nodes.Text(cell) if isinstance(cell, str) else cell for cell in cells]
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", node)) for node in content))


def seconds(value: float) -> str:
    return f"{value:.1f}".replace(".", ",")


def name_failures(app: Sphinx, env: BuildEnvironment) -> None:
    """Nomme le chapitre et la cellule en faute : myst-nb ne donne que le fichier."""
    for name, data in executed(env).items():
        if data["succeeded"]:
            continue
        path = Path(env.doc2path(name))
        cells = jupytext.read(path, fmt="md:myst").cells
        sources = [cell.source.strip() for cell in cells if cell.cell_type == "code"]
        number = next((n for n, source in enumerate(sources, 1) if source in data["traceback"]), "?")
        LOGGER.error("%s : la cellule de code n° %s échoue (%s)", path.name, number, data["error"])


def offer_notebook(app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document) -> None:
    """Joint à la page son carnet, que le menu de téléchargement propose à côté de la source."""
    notebook = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"
    if pagename in executed(app.env) and notebook.exists():
        target = Path(app.outdir, "_sources", f"{pagename}.ipynb")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, target)
        context["ipynb_source"] = f"{pagename}.ipynb"


def setup(app: Sphinx) -> dict:
    app.add_node(ExecutionTimes)
    app.add_directive("temps-execution", ExecutionTimesDirective)
    app.add_post_transform(FillExecutionTimes)
    app.add_post_transform(TellMeasures)
    app.connect("env-updated", name_failures)
    app.connect("html-page-context", offer_notebook, priority=400)  # avant les boutons du thème
    return {"parallel_read_safe": True, "parallel_write_safe": True}
