"""Le livre construit, lu sans navigateur."""

import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from PIL import Image

from _ext.francais import short_title, typeset
from _ext.notebooks import catalogue
from tools import pages

NUMBERED = re.compile(r"(?:Figure|Tableau|Exercice) [\d.]+|\([\d.]+\)")
pytestmark = pytest.mark.book


def test_no_english_in_the_interface(page: Path) -> None:
    assert pages.english_words(pages.parse(page)) == []


def test_images_are_described(page: Path) -> None:
    assert pages.poor_alternatives(pages.parse(page)) == []


def test_internal_links_are_alive(html: Path, page: Path) -> None:
    assert pages.dead_links(html, page) == []


def test_no_external_request(html: Path, page: Path) -> None:
    assert pages.external_requests(html, page) == []


def test_every_chapter_is_built(html: Path) -> None:
    root = html.parents[1]
    listed = re.findall(r"(?:file|root): (\S+)", (root / "_toc.yml").read_text(encoding="utf-8"))
    assert listed
    assert [name for name in listed if not (html / f"{name}.html").exists()] == []


def test_no_cell_failed(html: Path) -> None:
    assert list((html / "reports").rglob("*.log")) == []


def test_mathjax_is_local_and_complete(html: Path) -> None:
    with_formulas = [p for p in pages.pages(html) if pages.parse(p).select(".math")]
    for page in with_formulas:
        assert pages.parse(page).select_one('script[src*="_static/mathjax/tex-chtml.js"]'), page
    assert (html / "_static/mathjax/tex-chtml.js").stat().st_size > 100_000
    assert len(list((html / "_static/mathjax/output/chtml/fonts/woff-v2").glob("*.woff"))) > 10


def test_search_is_french(html: Path) -> None:
    assert "FrenchStemmer" in (html / "_static/language_data.js").read_text(encoding="utf-8")
    index = (html / "searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(index[index.index("{") : index.rindex("}") + 1])["terms"]
    assert "execut" in terms  # la racine française d'« exécution », sans accent
    assert "autoencodeur" in terms  # le livre écrit « auto-encodeur »


def test_spaces_do_not_break(page: Path) -> None:
    """_ext/francais.py a posé les insécables : « Vraiment ? » ne se coupe pas avant le signe."""
    texts = [
        text for article in pages.parse(page).select("article") for text in article.find_all(string=True)
    ]
    prose = [text for text in texts if not text.find_parent(["code", "pre", "script"])]
    assert [text for text in prose if re.search(r"« | »|\S [;!?](?:\s|$)", text)] == []
    # Une formule coupée en fin de ligne redevient du texte ; une apostrophe devant une mise en forme, un « ” ».
    assert [text for text in prose if re.search(r"[$”]", text) and not text.find_parent(class_="math")] == []


def test_pages_are_light(html: Path) -> None:
    """Le site entier tient dans une pièce jointe ; MathJax complet en ferait 24 Mo de plus."""
    assert sum(f.stat().st_size for f in html.rglob("*") if f.is_file()) < 60e6


def test_chapters_can_be_downloaded(page: Path) -> None:
    """La source, et le carnet si la page a des cellules, sont à un clic ; un dossier local suffit."""
    links = [link["href"] for link in pages.parse(page).select(".dropdown-download-buttons a[href]")]
    files = {target.suffix: target for target in ((page.parent / link).resolve() for link in links)}
    if "chapters" not in page.parts:
        return  # index et recherche n'ont pas de source
    source = jupytext.reads(files[".md"].read_text(encoding="utf-8"), fmt="md:myst")
    cells = [cell.source for cell in source.cells if cell.cell_type == "code"]
    if cells:
        notebook = nbformat.read(files[".ipynb"], as_version=4)
        nbformat.validate(notebook)
        assert [cell.source for cell in notebook.cells if cell.cell_type == "code"] == cells
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert not re.search(r"\{[\w:]+\}`|^[`:]{3,}\{|^\(.+\)=$", prose, re.MULTILINE), (
            "MyST reste dans le carnet"
        )
        glued = re.findall(r"\{glue:text\}`([^`]+)`", files[".md"].read_text(encoding="utf-8"))
        assert [name for name in glued if f"`{name}`" in prose] == [], "un nombre manque au carnet"


def test_notebooks_number_things_as_the_pages_do(html: Path, page: Path) -> None:
    """_ext/notebooks.py compte sans Sphinx : figures, tableaux, exercices et équations ont le même numéro.

    À un près par figure facultative, que la page a si les données y sont.
    """
    name = page.relative_to(html).with_suffix("").as_posix()
    shown = [number.get_text().strip(" #") for number in pages.parse(page).select(".caption-number, .eqno")]
    targets = catalogue(html.parents[1]).targets.values()
    numbers = [text for there, text in targets if there == name and NUMBERED.fullmatch(text)]
    source = (html.parents[1] / name).with_suffix(".md")
    optional = source.read_text(encoding="utf-8").count("tags: [facultatif]") if source.exists() else 0
    assert set(numbers) <= set(shown)
    assert len(shown) - optional <= len(numbers) == len(set(numbers))


def test_references_leave_subtitles_out(html: Path, page: Path) -> None:
    """« le chapitre Espace dira », et non « le chapitre Espace : incapable, ou jamais averti ? dira »."""
    titles = catalogue(html.parents[1]).titles.values()
    long = {typeset(title).replace("'", "’") for title in titles if short_title(title) != title}
    links = pages.parse(page).select("article a.reference.internal")
    assert [link.get_text() for link in links if link.get_text() in long] == []


def test_chapters_describe_themselves(html: Path, page: Path) -> None:
    """_ext/partage.py : ce que montre un lien envoyé à quelqu'un."""
    soup = pages.parse(page)
    if "chapters" not in page.parts:
        return
    tags = {tag.get("name") or tag.get("property"): tag["content"] for tag in soup.select("meta[content]")}
    assert soup.html["lang"] == "fr"
    assert tags["og:locale"] == "fr_FR"
    assert tags["og:title"] in soup.h1.get_text()
    assert tags["description"] == tags["og:description"]
    assert 40 <= len(tags["description"]) <= 201
    assert not re.search(r"\\|\[.*\d{4}|\n", tags["description"])  # ni formule, ni renvoi, ni retour
    assert len(tags["og:image:alt"]) > 15
    with Image.open((page.parent / tags["og:image"]).resolve()) as card:
        assert card.size == (1200, 630)
        assert len(card.convert("RGB").getcolors(1 << 20)) > 2, "la carte est vide"


def test_descriptions_differ(html: Path) -> None:
    tags = [pages.parse(page).select_one('meta[name="description"]') for page in pages.pages(html)]
    texts = [tag["content"] for tag in tags if tag]
    assert texts
    assert len(set(texts)) == len(texts)


def test_each_chapter_says_what_it_costs(page: Path) -> None:
    """La longueur et la durée mesurées sont dites, et la durée tient son budget.

    Deux minutes de deux cœurs au repos ; la construction mène deux chapitres à la fois, d'où le double.
    """
    soup = pages.parse(page)
    opening = soup.select_one(".admonition.tip")
    if opening is None or "Temps" not in opening.text:
        return
    measured = opening.select_one(".mesure")
    assert measured, "la ligne « Temps » ne dit pas ce qui a été mesuré"
    words, seconds = re.search(r"([\d\u202f]+)\smots, (\d+)\ss", measured.text).groups()
    assert int(words.replace("\u202f", "")) > 300 and int(seconds) <= 240
