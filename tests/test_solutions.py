"""Les solutions dans le PDF : un petit livre de deux chapitres, écrit en LaTeX puis en pages."""

import io
import re
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

CONFIGURATION = """
import sys
sys.path.insert(0, {ext!r})
extensions = ["myst_parser", "sphinx_exercise", "solutions"]
myst_enable_extensions = ["amsmath", "dollarmath"]
exercise_style = "solution_follow_exercise"
language = "fr"
root_doc = "livre"
numfig = True
solutions_before = "fin"
"""
BOOK = """# Livre
```{toctree}
:numbered:
un
deux
fin
```
"""
CHAPTER = """# Chapitre *{name}*

(fig-{name})=
## Une section

```{{exercise-start}}
:label: ex-{name}-facile
```
Combien ?
```{{exercise-end}}
```

```{{solution-start}} ex-{name}-facile
:class: dropdown
```
Réponse {name}, par {{eq}}`eq-{name}` et [la section](#fig-{name}).

$$ x = 1 $$ (eq-{name})
```{{solution-end}}
```

```{{exercise}}
:label: ex-{name}-dur
```

```{{solution}} ex-{name}-dur
:class: dropdown
Rien ne dit {name}.
```

## Après {name}

Voir {{eq}}`eq-{name}` et {{ref}}`ex-{name}-facile`, puis {{ref}}`ex-un-dur`.
"""


def build(folder: Path, builder: str) -> Path:
    warnings, output = io.StringIO(), folder / builder
    with docutils_namespace():  # deux constructions dans un même processus
        app = Sphinx(folder, folder, output, folder / "arbres", builder, status=None, warning=warnings)
        app.build()
    assert not warnings.getvalue()
    return output


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("livre")
    ext = Path(__file__).parents[1] / "_ext"
    (folder / "conf.py").write_text(CONFIGURATION.format(ext=str(ext)), encoding="utf-8")
    (folder / "livre.md").write_text(BOOK, encoding="utf-8")
    (folder / "fin.md").write_text("# Le mot de la fin\n", encoding="utf-8")
    for name in ("un", "deux"):
        (folder / f"{name}.md").write_text(CHAPTER.format(name=name), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def latex(book: Path) -> str:
    (file,) = build(book, "latex").glob("*.tex")
    return file.read_text(encoding="utf-8")


def test_solutions_are_gathered_in_order_before_the_named_page(latex: str) -> None:
    chapters, _, after = latex.partition(r"\chapter{Solutions des exercices}")
    appendix, _, end = after.partition(r"\chapter{Le mot de la fin}")
    assert end and "Réponse" not in chapters and "Rien" not in chapters and "Après" in chapters
    answers = re.findall(r"Réponse \w+|Rien ne dit \w+|\\section\{[^}]*\{\w+\}|Exercice \d\.\d", appendix)
    assert answers == [
        r"\section{Chapitre \sphinxstyleemphasis{un}",
        *("Exercice 1.1", "Réponse un", "Exercice 1.2", "Rien ne dit un"),
        r"\section{Chapitre \sphinxstyleemphasis{deux}",
        *("Exercice 2.1", "Réponse deux", "Exercice 2.2", "Rien ne dit deux"),
    ]


def test_section_has_the_number_of_its_chapter(latex: str) -> None:
    assert re.findall(r"\\setcounter\{section\}\{(\d)\}\s+\\section\{Chapitre .*?\{(\w+)", latex) == [
        ("0", "un"),
        ("1", "deux"),
    ]


def test_every_link_has_its_target(latex: str) -> None:
    """Un renvoi mort imprime « ?? » ; une étiquette double mène au mauvais endroit."""
    labels = re.findall(r"\\label\{(?:\\detokenize\{)?([^}]*)", latex)
    links = re.findall(r"\\(?:hyperref\[|(?:page|eq)?ref\*?\{)(?:\\detokenize\{)?([^]}]*)", latex)
    assert len(set(labels)) == len(labels) and set(links) <= set(labels)
    assert {"un:fig-un", "equation:deux:eq-deux", "exercise:ex-un-dur"} <= set(links)


def test_exercise_tells_the_page_of_its_solution(latex: str) -> None:
    exercises = re.findall(r"\\begin\{sphinxadmonition\}.*?\\end\{sphinxadmonition\}", latex, re.DOTALL)
    assert len(exercises) == 4
    told = [re.search(r"Solution page~\\pageref\*\{(.*?)\}", exercise)[1] for exercise in exercises]
    headings = re.findall(r"\\label\{([^}]*)\}\\hyperref\[[^]]*\]\{Exercice", latex)
    assert told == headings


def test_exercise_of_another_chapter_is_named(latex: str) -> None:
    second = latex.partition(r"Après deux")[2].partition(r"\chapter")[0]
    assert r"puis \hyperref[exercise:ex-un-dur]{Exercice 1.2}" in second


def test_site_keeps_solutions_in_place(book: Path) -> None:
    page = (build(book, "html") / "un.html").read_text(encoding="utf-8")
    assert (
        page.index("Combien") < page.index("Réponse un") < page.index("Rien ne dit un") < page.index("Après")
    )
    assert "Solutions des exercices" not in page
