"""Le livre construit, lu sans navigateur."""

import json
import re
from pathlib import Path

import pytest

from tools import pages

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
    assert "exécut" in terms  # la racine française d'« exécution »


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
