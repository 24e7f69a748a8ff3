"""Un carnet se lit sans Sphinx : ses renvois, ses encadrés, ses équations sont en Markdown ordinaire."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat import NotebookNode

from _ext.notebooks import Catalogue, glued, plain

TOC = """\
root: index
parts:
- chapters: [{file: annexe}, {file: genindex}]
- numbered: true
  chapters: [{file: a/un}, {file: a/deux}]
"""
BIB = """\
@book{a, author={Ada Lovelace and Alan Turing}, title={Une Note}, year=1843, publisher={Londres}}
@book{b, author={Blaise Pascal}, title={Le Triangle}, year=1654, publisher={Paris}}
@book{c, author={Un, A and Deux, B and Trois, C}, title={Trois}, year=2000, publisher={Paris}}
"""
PAGES = {
    "index": "# Accueil",
    "a/un": "# Premier\n\n(ici)=\n## Une section\n\n$$\nx\n$$ (eq-x)\n\n"
    "```{code-cell} python3\n---\nmystnb:\n  figure:\n    caption: Un {term}`jeton`.\n    name: fig-un\n---\n1\n```\n",
    "a/deux": "# Deuxième : suite\n\n```{exercise-start}\n:label: ex-a\n```\nQuoi ?\n```{exercise-end}\n```\n"
    "::::{table} Un titre\n:name: tab-a\n\n| a |\n|---|\n| b |\n::::\n",
    "annexe": "(haut)=\n# Annexe : une",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "_toc.yml").write_text(TOC, encoding="utf-8")
    (tmp_path / "references.bib").write_text(BIB, encoding="utf-8")
    (tmp_path / "code.py").write_text("class A:\n    def f(self):\n        return 1\n\n\nB = 2\n")
    for name, text in PAGES.items():
        path = tmp_path / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def read(text: str) -> NotebookNode:
    return jupytext.reads(f"---\nfile_format: mystnb\n---\n{text}", fmt="md:myst")


def prose(root: Path, text: str, page: str = "a/un", spaced: bool = False, **values: str) -> str:
    notebook = plain(read(text), page, Catalogue(root), values)
    nbformat.validate(notebook)
    text = "\n---\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return text if spaced else text.replace("\u202f", " ").replace("\u00a0", " ").replace("’", "'")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Vaut {glue:text}`x` dB.", "Vaut 27,7 dB."),
        ("Vaut {glue:text}`inconnu`.", "Vaut `inconnu`."),
        ("Un {term}`jeton`, des {term}`images <image>`.", "Un jeton, des images."),
        ("Un {term}`codeur <auto-encodeur\nvariationnel>`.", "Un codeur."),
        ("Vu {cite}`a,c`.", "Vu [Lovelace et Turing, 1843 ; Un et al., 2000]."),
        ("Chez {cite:t}`b`.", "Chez Pascal [1654]."),
        ("Voir {ref}`ici`.", "Voir Une section."),
        ("Voir {numref}`fig-un` et {eq}`eq-x`.", "Voir Figure 1.1 et (1.1)."),
        ("Voir {numref}`tab-a`.", "Voir [Tableau 2.1](deux.ipynb)."),
        ("Voir {ref}`l'exercice <ex-a>`.", "Voir [l'exercice](deux.ipynb)."),
        ("Voir {ref}`ex-a`.", "Voir [Exercice 2.1](deux.ipynb)."),
        ("Voir {doc}`deux`, {doc}`la suite <../annexe>`.", "Voir [Deuxième](deux.ipynb), [la suite](../annexe.ipynb)."),
        ("Voir {ref}`haut`.", "Voir [Annexe](../annexe.ipynb)."),
        ("(ici)=\n## Une section", "## Une section"),
        ("% note\nTexte.", "Texte."),
        ("Mot\n: sa définition.", "**Mot** : sa définition."),
        ("```{index} mot\n```\nTexte.", "Texte."),
        ("::::{only} html\n:::{grid-item-card} {octicon}`rocket` Carte\nRien.\n:::\n::::\nTexte.", "Texte."),
        ("$$\na\n$$ (eq-x)", "$$\na\n\\tag{1.1}\n$$"),
        ("$$\na\n$$", "$$\na\n$$"),
        ("$$\na &= b \\\\\n&= c\n$$", "$$\n\\begin{aligned}\na &= b \\\\\n&= c\n\\end{aligned}\n$$"),
        ("$$\n\\begin{cases}\na \\\\\n\\end{cases}\n$$", "$$\n\\begin{cases}\na \\\\\n\\end{cases}\n$$"),
        ("```bash\nmake {x}\n```", "```bash\nmake {x}\n```"),
        (":::{admonition} À retenir\n:class: tip\n\n- un\n\n- deux\n:::", "> **À retenir**\n>\n> - un\n>\n> - deux"),
        ("```{glossary}\nmot\n  Sa définition.\n```", "**mot**  \nSa définition."),
        ("```{exercise-start} Non\n:label: ex-a\n```\nA ?\n```{exercise-end}\n```", "**Exercice 2.1** (Non)\n\nA ?"),
    ],
)  # fmt: skip
def test_prose(root: Path, source: str, expected: str) -> None:
    assert prose(root, source, x="27,7") == expected


def test_spaces_are_french_outside_code_and_formulas(root: Path) -> None:
    text = "C'est vrai ; non ? `a ; b`, $x' ; y$ : « oui » !\n\n```bash\na ; b\n```"
    spaced = "C’est vrai\u202f; non\u202f? `a ; b`, $x' ; y$\u00a0: «\u00a0oui\u00a0»\u202f!\n\n```bash\na ; b\n```"
    assert prose(root, text, spaced=True) == spaced


def test_included_code_is_the_code(root: Path) -> None:
    options = ":language: python\n:pyobject: A.f\n:dedent: 4\n"
    text = prose(root, f"```{{literalinclude}} ../code.py\n{options}```")
    assert text == "```python\ndef f(self):\n    return 1\n```"
    quoted = prose(root, '```{literalinclude} ../code.py\n:language: python\n:start-at: "B = 2"\n```')
    assert quoted == "```python\nB = 2\n```"


def test_a_table_keeps_its_title(root: Path) -> None:
    table = "::::{table} Un {term}`titre`\n:name: tab-a\n:widths: 1 2\n\n| a |\n|---|\n| b |\n::::"
    assert prose(root, table, "a/deux") == "*Tableau 2.1.* Un titre\n\n| a |\n|---|\n| b |"


def test_a_figure_gets_its_caption(root: Path) -> None:
    assert prose(root, PAGES["a/un"]).endswith("---\n*Figure 1.1.* Un jeton.")


def test_an_optional_figure_is_not_counted(root: Path) -> None:
    optional = (
        PAGES["a/un"].replace("---\nmystnb", "---\ntags: [facultatif]\nmystnb").replace("fig-un", "fig-zero")
    )
    cell = "```{code-cell}" + optional.split("```{code-cell}")[1]
    source = PAGES["a/un"].replace("```{code-cell}", f"{cell}\n```{{code-cell}}")
    (root / "a/un.md").write_text(source, encoding="utf-8")
    assert prose(root, source).count("Figure") == 1
    assert Catalogue(root).targets["fig-un"][1] == "Figure 1.1"


def test_a_solution_is_folded_and_its_code_hidden(root: Path) -> None:
    """Aussi quand elle court sur plusieurs cellules : une balise ne peut rester ouverte d'une cellule à l'autre."""
    cell = "\n```{code-cell} python3\nx\n```\n"
    text = "Avant.\n```{solution-start} ex-a\n:class: dropdown\n```\nD'abord." + cell
    text += "Puis." + cell + "```{solution-end}\n```\nAprès." + cell
    notebook = plain(read(text), "a/un", Catalogue(root), {})
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert prose == [
        "Avant.\n\n<details><summary>Solution</summary>\n\nD’abord.\n\n</details>",
        "<details><summary>Solution, suite</summary>\n\nPuis.\n\n</details>",
        "Après.",
    ]
    hidden = [cell.metadata.get("jupyter") for cell in notebook.cells if cell.cell_type == "code"]
    assert hidden == [{"source_hidden": True}, {"source_hidden": True}, None]


def test_a_solution_that_starts_with_code_is_named_once(root: Path) -> None:
    start, cell = "```{solution-start} ex-a\n```", "\n```{code-cell} python3\nx\n```\n"
    text = start + cell + "Voilà." + cell + "Et voici." + cell + "```{solution-end}\n```\nAprès."
    summaries = ("Solution", "Solution, suite")
    told = "\n---\n".join(
        f"<details><summary>{s}</summary>\n\n{t}\n\n</details>"
        for s, t in zip(summaries, ("Voilà.", "Et voici."), strict=True)
    )
    assert prose(root, text) == f"{told}\n---\nAprès."


def test_cells_keep_their_code(root: Path) -> None:
    text = "```{code-cell} python3\n:tags: [hide-input]\n{x}`y`\n```\n"
    cell = plain(read(text), "a/un", Catalogue(root), {}).cells[0]
    assert (cell.source, cell.metadata.jupyter.source_hidden) == ("{x}`y`", True)


def test_an_unnumbered_page_counts_with_the_others(root: Path) -> None:
    figure = PAGES["a/un"].replace("fig-un", "fig-deux").replace("eq-x", "eq-y").replace("ici", "ailleurs")
    (root / "index.md").write_text(figure, encoding="utf-8")
    (root / "annexe.md").write_text(figure.replace("deux", "trois").replace("eq-y", "eq-z"), encoding="utf-8")
    targets = Catalogue(root).targets
    assert (targets["fig-deux"][1], targets["fig-un"][1], targets["fig-trois"][1]) == (
        "Figure 1",
        "Figure 1.1",
        "Figure 2",
    )
    assert (targets["eq-y"][1], targets["eq-z"][1]) == ("(1)", "(2)")


def test_bibliography_is_written_out(root: Path) -> None:
    text = prose(root, "```{bibliography}\n```", "annexe")
    assert text.startswith("- Ada Lovelace et Alan Turing")
    assert "*Le Triangle*" in text


def test_glued_reads_what_cells_give_to_the_prose() -> None:
    prefix = "application/papermill.record/"  # celui de `glue(…, display=False)`
    output = nbformat.v4.new_output("display_data", {f"{prefix}text/plain": "'27,7'"})
    output.metadata = {"scrapbook": {"name": "psnr", "mime_prefix": prefix}}
    other = nbformat.v4.new_output("stream", text="rien")
    cell = nbformat.v4.new_code_cell("x", outputs=[output, other])
    assert glued(nbformat.v4.new_notebook(cells=[cell])) == {"psnr": "27,7"}
