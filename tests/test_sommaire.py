"""Le tableau des pages du livre, et la ligne « Temps » que l'extension donne à chacune."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from docutils import nodes
from docutils.utils import new_document
from sphinx import addnodes

from _ext.execution import SHORTEST, SPOKEN, TellMeasures, count_words, reading_minutes
from minidalle.errors import MinidalleError
from tools.sommaire import listed, main, read, table

ROOT = Path(__file__).parents[1]
CELL = "```{code-cell} python3\n1\n```\n"
CHAPTER = """<body><p>Hors de l'article.</p><article>
<h1><span>1. </span>Un chapitre<a class="headerlink">#</a></h1>
<div class="admonition tip"><p class="admonition-title">Avant de commencer</p><ul><li><p><strong>Temps</strong>\u00a0:
trois quarts d’heure de lecture\u202f; l’exécution dure une minute.<span> Mesuré : 2 s.</span></p></li></ul></div>
<p>Deux mots.</p><div class="math">a</div><span class="math">b</span><div class="math">c</div>
<figure><img/><figcaption><p>Une légende.</p></figcaption></figure>
<div class="exercise admonition"><p class="admonition-title">Exercice 1</p><p>Compter.</p></div>
<div class="solution admonition"><p>Un.</p></div><dl class="citation"><dd><p>Un livre, cité.</p></dd></dl>
</article></body>"""
APPENDIX = """<article><h1>Exécution</h1><p><strong>Temps</strong>\u00a0: environ 12\u00a0min de lecture.</p>
<table><tr><td><p><a href="../un.html">Un</a></p></td><td><p>61,5</p></td></tr>
<tr><td><p><a href="execution.html">Exécution</a></p></td><td><p>3,0</p></td></tr>
<tr><td><p>Total</p></td><td><p>64,5</p></td></tr></table></article>"""
PAGES = {
    "chapters/index": ("# Accueil\n", "<article><h1>Accueil</h1></article>"),
    "chapters/un": ("# Un chapitre\n\n" + 3 * CELL, CHAPTER),
    "chapters/annexes/execution": ("# Exécution\n\n" + CELL, APPENDIX),
    "genindex": (None, "<article><h1>Index</h1></article>"),
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Un livre construit de quatre pages, dont une sans source."""
    parts = [
        {"chapters": [{"file": "chapters/un"}]},
        {"chapters": [{"file": "chapters/annexes/execution"}, {"file": "genindex"}]},
    ]
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump({"root": "chapters/index", "parts": parts}))
    for name, (source, html) in PAGES.items():
        built = tmp_path / "_build" / "html" / f"{name}.html"
        built.parent.mkdir(parents=True, exist_ok=True)
        built.write_text(html, encoding="utf-8")
        if source:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{name}.md").write_text(source, encoding="utf-8")
    return tmp_path


def test_a_page_is_counted(book: Path) -> None:
    """Ni la légende, ni le titre d'un encadré, ni la bibliographie ne sont des mots de la page."""
    home, chapter, appendix, index = read(book)
    assert chapter.title == "1. Un chapitre"
    line = "Temps : trois quarts d’heure de lecture ; l’exécution dure une minute. Mesuré : 2 s."
    assert chapter.words == len(f"{line} Deux mots. Compter. Un.".split())
    assert (chapter.figures, chapter.equations, chapter.cells) == (1, 2, 3)
    assert (chapter.exercises, chapter.solutions) == (1, 1)
    assert (chapter.minutes, chapter.runtime) == (45, 61.5)
    assert (appendix.minutes, appendix.cells, appendix.runtime) == (12, 1, 3.0)
    assert (home.minutes, home.runtime) == (index.minutes, index.runtime) == (None, None)


def test_table(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(book)
    lines = capsys.readouterr().out.splitlines()
    bars = {tuple(place for place, sign in enumerate(line) if sign == "|") for line in lines}
    assert len(bars) == 1  # les colonnes sont alignées
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][0] == "page"
    assert [row[0] for row in cells[2:]] == ["Accueil", "1. Un chapitre", "Exécution", "Index", "**total**"]
    assert cells[2][-2:] == ["–", "–"]
    assert cells[3][2:] == ["1", "2", "3", "1", "1", "45 min", "61,5 s"]
    assert cells[-1][2:] == ["**1**", "**2**", "**4**", "**1**", "**1**", "**57 min**", "**64,5 s**"]


def test_long_durations_and_large_numbers(book: Path) -> None:
    chapter = read(book)[1]
    assert "| **1 h 30** |" in table([chapter, chapter])
    assert "| 12\u202f345 |" in table([replace(chapter, words=12345)]).replace("*", "")


def test_a_book_not_built_says_so(book: Path) -> None:
    (book / "_build/html/genindex.html").unlink()
    with pytest.raises(MinidalleError, match=r"absente du livre construit, .*make book.*: genindex"):
        read(book)
    (book / "_build/html/chapters/index.html").unlink()
    with pytest.raises(MinidalleError, match="n'est pas construit : lancer « make book »"):
        read(book)
    with pytest.raises(MinidalleError, match="Pas de livre dans"):
        read(book / "chapters")


@pytest.mark.parametrize(
    ("line", "minutes"),
    [
        ("Temps : une demi-heure de lecture ; rien à exécuter", 30),
        ("Temps\u00a0: dix minutes de lecture, et le temps de dessiner", 10),
        ("Temps\u00a0: environ 7\u00a0min de lecture.", 7),
        ("Temps : trois\nquarts d’heure de lecture", None),
        ("Temps : une éternité de lecture", None),
        ("Durée : une heure de lecture", None),
    ],
)
def test_reading_minutes(line: str, minutes: int | None) -> None:
    assert reading_minutes(line) == minutes


def test_every_chapter_says_how_long_it_takes_to_read() -> None:
    """Les chapitres le disent en toutes lettres ; les annexes le reçoivent à la construction."""
    names = [name for name in listed(ROOT)[1:] if name.startswith("chapters/") and "/annexes/" not in name]
    assert len(names) > 20
    for name in names:
        line = re.search(
            r"^- \*\*Temps\*\*.*", (ROOT / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE
        )
        assert line, name
        assert reading_minutes(line[0].replace("*", "")) in SPOKEN.values(), name


def test_every_exercise_is_solved() -> None:
    """Dans l'ordre des énoncés, et une seule fois."""
    count = 0
    for name in listed(ROOT):
        path = ROOT / f"{name}.md"
        source = path.read_text(encoding="utf-8") if path.exists() else ""
        asked = re.findall(r"\{exercise(?:-start)?\}.*\n:label: (\S+)", source)
        assert re.findall(r"\{solution(?:-start)?\} (\S+)", source) == asked, name
        count += len(asked)
    assert count > 100


# --- la ligne « Temps », à la construction


def page(*paragraphs: str, label: bool = False) -> nodes.section:
    """Une page ; avec `label`, elle ouvre par la ligne « Temps » d'un chapitre."""
    section = nodes.section("", nodes.title(text="Titre"), ids=["titre"])
    if label:
        section += nodes.paragraph("", "", nodes.strong(text="Temps"), nodes.Text(" : une heure de lecture."))
    section += [nodes.paragraph(text=text) for text in paragraphs]
    return section


def told(
    monkeypatch: pytest.MonkeyPatch, document: nodes.document, name: str, **runtimes: float
) -> list[str]:
    """Paragraphes du document une fois l'extension passée."""
    data = {docname: {"runtime": value} for docname, value in runtimes.items()}
    monkeypatch.setattr("_ext.execution.executed", lambda env: data)
    document.settings.env = SimpleNamespace(docname=name, config=SimpleNamespace(root_doc="index"))
    TellMeasures(document).run()
    return [node.astext() for node in document.findall(nodes.paragraph)]


def test_an_appendix_is_given_its_reading_time(monkeypatch: pytest.MonkeyPatch) -> None:
    document = new_document("annexe")
    document += page("mot " * 900)
    first, *_ = told(monkeypatch, document, "annexe", annexe=3.0)
    assert first == "Temps\u00a0: environ 6\u00a0min de lecture."
    assert document[0].index(document[0].next_node(nodes.paragraph)) == 1  # juste sous le titre
    assert reading_minutes(first) == 6


@pytest.mark.parametrize("name", ["index", "annexe"])
def test_a_cover_or_a_bare_page_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text = "mot " * (900 if name == "index" else SHORTEST - 1)
    document = new_document(name)
    document += page(text)
    document += nodes.citation("", nodes.paragraph(text="référence " * 900))
    assert told(monkeypatch, document, name)[0] == text


def test_in_the_pdf_each_page_has_its_own_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Le PDF coud toutes les pages en un document, qui porte le nom de l'accueil."""
    document = new_document("index")
    document += page("mot " * 5000)
    for name, count in (("un", 1193), ("deux", 2393)):
        document += addnodes.start_of_file("", page("mot " * count, label=True), docname=name)
    lines = [
        text for text in told(monkeypatch, document, "index", index=1.0, un=20.4, deux=7.0) if "Temps" in text
    ]
    assert [line.partition("construction\u00a0: ")[2] for line in lines] == [
        "1\u202f200 mots, 20\u00a0s d’exécution.",
        "2\u202f400 mots, 7\u00a0s d’exécution.",
    ]


def test_words() -> None:
    assert count_words(["Deux mots.", "", "l’exécution\ndure"]) == 4
