"""Le français du livre : espaces insécables, citations, et noms des preuves dans le PDF."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from docutils import nodes
from pybtex.database import Entry, Person
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as Unsrt
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.sorting.author_year_title import SortingStyle
from pybtex.style.template import Node, names, sentence
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import clean_astext
from sphinx_proof import NODE_TYPES
from sphinxcontrib.bibtex.plugin import register_plugin as register_reference_plugin
from sphinxcontrib.bibtex.style.referencing import PersonStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

# --- Espaces insécables : la source garde des espaces ordinaires, lisibles dans un diff et dans Jupyter.

NBSP, NNBSP = "\u00a0", "\u202f"
VERBATIM = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw, nodes.comment)
UNITS = "dB|Mo|Go|ko|Mio|Gio|ms|s|min|h|px|bits?|octets?|pixels?|points?|€"
EVERYWHERE = [
    (re.compile(r"«\s*"), "«" + NBSP),
    (re.compile(r"\s*»"), NBSP + "»"),
    (re.compile(r"[ \n](?=%)"), NBSP),
    (re.compile(r"(?<=\d) ; (?=[-+−]?[\d,]+\])"), f" ;{NBSP}"),  # « [12 ; 34] » ne se coupe pas
    (re.compile(r"± (?=\d)"), f"±{NBSP}"),
    (re.compile(rf"(?<=\d)[ \n](?=(?:{UNITS})\b)"), NBSP),
    (re.compile(r"(?<![\d,.])(\d{1,3})((?: \d{3})+)(?![\d])"), lambda m: m[0].replace(" ", NNBSP)),
]
# En LaTeX, babel pose lui-même l'espace devant les signes doubles.
HTML_ONLY = [
    (re.compile("[ \n\u00a0](?=[;!?])"), NNBSP),
    (re.compile(r"[ \n](?=:(?:\s|$))"), NBSP),
]


def typeset(text: str, *, html: bool = True) -> str:
    """Rend `text` avec les espaces insécables de la typographie française."""
    for pattern, replacement in EVERYWHERE + (HTML_ONLY if html else []):
        text = pattern.sub(replacement, text)
    return text


def _apply_spaces(document: nodes.document, *, html: bool) -> None:
    for text in list(document.findall(nodes.Text)):
        parent = text.parent
        while parent is not None and not isinstance(parent, VERBATIM):
            parent = parent.parent
        if parent is None and (new := typeset(text.astext(), html=html)) != text.astext():
            text.parent.replace(text, nodes.Text(new))


class ReadSpaces(SphinxTransform):
    """À la lecture, après les guillemets de Sphinx : titres et table des matières en profitent."""

    default_priority = 900

    def apply(self) -> None:
        _apply_spaces(self.document, html=self.app.builder.format == "html")


class WriteSpaces(SphinxPostTransform):
    """À l'écriture : ce que les rôles et les citations ont ajouté depuis."""

    default_priority = 900

    def run(self) -> None:
        _apply_spaces(self.document, html=self.app.builder.format == "html")


# --- Renvois : « le chapitre Espace dira », et non « le chapitre Espace : incapable, ou jamais averti ? dira ».


def short_title(title: str) -> str:
    """Ce qu'un titre dit avant son deux-points."""
    return re.split(r"\s:\s", title, maxsplit=1)[0]


class ShortTitles(SphinxPostTransform):
    """Un renvoi qui ne dit pas son texte prend le titre de la page ; le sous-titre y est de trop."""

    default_priority = 15  # après la résolution des renvois (10), avant les espaces

    def run(self) -> None:
        titles = {clean_astext(title) for title in self.env.titles.values()}
        for reference in self.document.findall(nodes.reference):
            text = reference.astext()
            if text in titles and (short := short_title(text)) != text:
                inside = next(iter(reference.findall(nodes.Text)))
                inside.parent.replace(inside, nodes.Text(short))


# --- Citations : « Hérault et Françoise [1985] », et la liste dans les mêmes mots.

BIBLIOGRAPHY_WORDS = {
    "In": "Dans",
    "in": "dans",
    "of": "de",
    "edition": "édition",
    "URL:": "URL\u00a0:",
    "PhD thesis": "thèse",
}


@dataclass
class AuthorYear(AuthorYearReferenceStyle):
    person: PersonStyle = field(default_factory=lambda: PersonStyle(sep2=" et ", last_sep=" et "))


def surname(person: Person) -> str:
    """Le nom tel qu'il se lit : « Łańcucki », « OpenAI », et non leur code BibTeX."""
    return " ".join(str(part) for part in person.rich_prelast_names + person.rich_last_names)


class Sorting(SortingStyle):
    """L'ordre du dictionnaire, sans accents : Łańcucki à L, non après Z."""

    def person_key(self, person: Person) -> str:
        name = f"{surname(person)}  {' '.join(person.first_names + person.middle_names)}".lower()
        name = unicodedata.normalize("NFD", name.replace("ł", "l").replace("ø", "o"))
        return "".join(sign for sign in name if not unicodedata.combining(sign))


class Labels(BaseLabelStyle):
    def format_labels(self, entries: list) -> Iterator[str]:
        labels = [self._label(entry) for entry in entries]
        for i, label in enumerate(labels):
            # Deux références du même auteur, la même année : a, b…
            twins = labels.count(label) > 1
            yield label + (chr(ord("a") + labels[:i].count(label)) if twins else "")

    def _label(self, entry: Entry) -> str:
        people = [surname(person) for person in entry.persons.get("author", [])] or [entry.key]
        who = " et ".join(people) if len(people) < 3 else f"{people[0]} et al."
        return f"{who}, {entry.fields.get('year', 's. d.')}"


def letter_twins(entries: Iterable[Entry]) -> None:
    """Donne aux années des références jumelles leur lettre : le texte dit « 2021a », comme la bibliographie."""
    ordered = Sorting().sort(list(entries))
    for entry, label in zip(ordered, Labels().format_labels(ordered), strict=True):
        if "year" in entry.fields:
            entry.fields["year"] = label.rpartition(", ")[2]


def letter_citations(app: Sphinx) -> None:
    letter_twins(app.env.get_domain("cite").bibdata.data.entries.values())


class FrenchStyle(Unsrt):
    default_label_style, default_sorting_style = "etiquettes", "dictionnaire"

    def format_names(self, role: str, as_sentence: bool = True) -> Node:
        people = names(role, sep=", ", sep2=" et ", last_sep=" et ")
        return sentence[people] if as_sentence else people


def _translate(node: Node) -> Node:
    if isinstance(node, Node):
        node.children = [
            BIBLIOGRAPHY_WORDS.get(c, c) if isinstance(c, str) else _translate(c) for c in node.children
        ]
    return node


def _french_template(make: Callable) -> Callable:
    return lambda self, entry: _translate(make(self, entry))


for _name in dir(Unsrt):
    if _name.startswith("get_") and _name.endswith("_template"):
        setattr(FrenchStyle, _name, _french_template(getattr(Unsrt, _name)))

# --- Preuves : en LaTeX, sphinx-proof écrit « Definition » et perd l'étiquette.

PROOF_NAMES = {
    "definition": "définition",
    "theorem": "théorème",
    "lemma": "lemme",
    "corollary": "corollaire",
    "example": "exemple",
    "remark": "remarque",
}


def translate_proofs(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    if app.builder.format != "latex":
        return
    for node in doctree.findall(lambda n: isinstance(n, tuple(NODE_TYPES.values()))):
        node["realtype"] = PROOF_NAMES.get(node.get("realtype"), node.get("realtype"))
    # L'étiquette vient de la page, retrouvée par son titre, que les apostrophes et les insécables ont changé.
    for section in doctree.findall(nodes.section):
        if title := app.env.titles.get(section.get("docname")):
            section["names"].append(title.astext().lower())


def setup(app: Sphinx) -> dict:
    register_reference_plugin("sphinxcontrib.bibtex.style.referencing", "auteur_annee", AuthorYear)
    register_plugin("pybtex.style.labels", "etiquettes", Labels)
    register_plugin("pybtex.style.sorting", "dictionnaire", Sorting)
    register_plugin("pybtex.style.formatting", "francais", FrenchStyle)
    app.connect("builder-inited", letter_citations)
    app.add_transform(ReadSpaces)
    app.add_post_transform(ShortTitles)
    app.add_post_transform(WriteSpaces)
    app.connect("doctree-resolved", translate_proofs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
