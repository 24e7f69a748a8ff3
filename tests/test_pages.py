"""Le contrôle des pages construites voit les fautes qu'il doit voir."""

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from tools import pages


def soup(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


@pytest.mark.parametrize(
    "html",
    [
        "<p>Click to show</p>",
        '<button aria-label="Toggle hidden content"></button>',
        '<nav aria-label="Main"></nav>',
        '<input placeholder="Search this book...">',
        '<a title="Download notebook file">.ipynb</a>',
        "<p class='admonition-title'>Warning</p>",
        "<p>Solution to Exercise 1</p>",
        "<p>Hérault and Françoise</p>",
    ],
)
def test_english_is_seen(html: str) -> None:
    assert pages.english_words(soup(html))


@pytest.mark.parametrize(
    "html",
    [
        "<p>Texte : CC BY 4.0 ; jouer au mouton, à la main.</p>",
        "<code>from the_end import this</code>",
        "<p>Le plongement (<em>word embedding of the text</em>).</p>",
        '<p lang="en">Attention is all you need</p>',
        "<script>let toggle = 'show';</script>",
        '<a href="annexes/bibliographie.html#id1" title="Attention is all you need">V. [2017]</a>',
        "<!-- toggle the sidebar -->",
    ],
)
def test_french_and_exempt_text_pass(html: str) -> None:
    assert pages.english_words(soup(html)) == []


@pytest.mark.parametrize(
    "html",
    [
        '<img src="a.png">',
        '<img src="a.png" alt="">',
        '<img src="a.png" alt="_images/1f0ab3.png">',
        '<img src="a.png" alt="figure-1.svg">',
        '<img src="a.png" alt="Un mouton">',
        '<figure><img src="a.png" alt="La perte, en fonction du pas."><figcaption>'
        '<span class="caption-text">La perte en fonction du pas</span></figcaption></figure>',
    ],
)
def test_a_poor_alternative_is_seen(html: str) -> None:
    assert len(pages.poor_alternatives(soup(html))) == 1


def test_a_described_image_passes() -> None:
    html = (
        '<figure><img src="a.png" alt="Une courbe qui descend, puis se couche."><figcaption>'
        '<span class="caption-text">La perte en fonction du pas</span></figcaption></figure>'
    )
    assert pages.poor_alternatives(soup(html)) == []


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "static").mkdir()
    (tmp_path / "static/a.css").write_text("p { color: red }")
    (tmp_path / "autre.html").write_text('<h1 id="titre">Titre</h1>')
    return tmp_path


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<a href="autre.html">x</a> <a href="autre.html#titre">x</a> <a href="#ici" id="ici">x</a>', 0),
        ('<a href="https://exemple.fr/absent">x</a> <a href="mailto:a@b.fr">x</a> <a href="#">x</a>', 0),
        ('<a href="absent.html">x</a>', 1),
        ('<a href="autre.html#absente">x</a>', 1),
        ('<a href="#absente">x</a>', 1),
        ('<img src="absente.png">', 1),
        ('<a href="../../etc/hosts">x</a>', 1),
    ],
)
def test_dead_links(site: Path, html: str, count: int) -> None:
    page = site / "page.html"
    page.write_text(html)
    assert len(pages.dead_links(site, page)) == count


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<link rel="stylesheet" href="static/a.css?v=1"><script src="static/a.js"></script>', 0),
        ('<a href="https://exemple.fr">x</a> <link rel="canonical" href="https://exemple.fr">', 0),
        ('<script src="https://cdn.jsdelivr.net/npm/mathjax@3"></script>', 1),
        ('<img src="//exemple.fr/a.png">', 1),
        ('<link rel="stylesheet" href="https://fonts.googleapis.com/css">', 1),
        ('<style>@import "https://exemple.fr/a.css";</style>', 1),
        ("<script>const THEBE_JS_URL = 'https://unpkg.com/thebe'</script>", 1),
        ('<link rel="stylesheet" href="static/police.css">', 1),
    ],
)
def test_external_requests(site: Path, html: str, count: int) -> None:
    (site / "static/police.css").write_text("@font-face { src: url('https://exemple.fr/police.woff2') }")
    page = site / "page.html"
    page.write_text(html)
    assert len(pages.external_requests(site, page)) == count


def test_weight_counts_each_file_once_compressed(site: Path) -> None:
    (site / "long.txt").write_text("a" * 10_000)
    address = (site / "long.txt").as_uri()
    once = pages.weight([address])
    assert 10 < once < 100
    assert pages.weight([address, f"{address}?v=2", f"{address}#titre", "data:text/plain,abc"]) == once
