"""La page et ses figures."""

import base64
import re
from xml.etree import ElementTree

import pytest

from minidalle.evaluation.statistics import Estimate
from minidalle.evaluation.study import plan, run
from minidalle.evaluation.study_files import read_table
from minidalle.evaluation.study_page import minimal_pairs, percent, told, told_space, write_page
from minidalle.evaluation.study_summary import counts, spaces
from tests.painters import Painter

ABOUT = {
    "model": "<b>essai</b>",
    "n": 3,
    "settings": {"guidance": 1.5, "top_p": None},
    "categories": ["a", "b"],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("etude")
    run(Painter(), out, plan(3, 0, ["couleur", "relation", "objet"], tries=2), ABOUT)
    return out


def page(out, **options):
    rows = read_table(out / "table.csv")
    return write_page(out, rows, spaces(rows), ABOUT, **options), (out / "index.html").read_text(
        encoding="utf-8"
    )


def test_the_page_holds_everything_and_asks_for_nothing(out):
    files, html = page(out, opposites=read_table(out / "contraires.csv"), notes=["Prudence."])
    assert [path.name for path in files] == ["parts.svg", "relations.svg", "paires.svg", "index.html"]
    assert all(path.is_file() for path in files)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 4 and all(source.startswith("data:") for source in sources)
    assert "Content-Security-Policy" in html and "color-scheme: light dark" in html and "<script" not in html
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)">', html)
    for code, alt in images:
        ElementTree.fromstring(base64.b64decode(code))
        assert len(alt) > 20
    assert "couleur (réservées) 100 %" in images[0][1] and "100 % sur la diagonale" in images[1][1]
    assert "les deux dessins sont justes dans 6." in images[2][1]
    assert '<p class="note">Prudence.</p>' in html
    assert "&lt;b&gt;essai&lt;/b&gt;" in html and "<b>" not in html
    assert "guidance 1.5</dd>" in html and "a, b</dd>" in html
    assert (
        html.count("<tr>") == 1 + 5 + 1 + 4
    )  # deux tables : cinq groupes ; deux qui situent, et leurs contraires
    assert "3 × 2" in html and "{{" not in html and "None" not in html


def test_the_same_table_gives_the_same_page(out):
    assert page(out)[1] == page(out)[1]


def test_the_figures_say_the_numbers(out):
    page(out, opposites=read_table(out / "contraires.csv"))
    shares = (out / "parts.svg").read_text(encoding="utf-8")
    for word in (
        "couleur",
        "relation",
        "objet",
        "combinaisons réservées",
        "combinaisons vues",
        "demande contraire",
    ):
        assert word in shares
    assert shares.count("demande contraire") == 1
    confusion = (out / "relations.svg").read_text(encoding="utf-8")
    assert "aucune" in confusion and "relation lue" in confusion
    pairs = (out / "paires.svg").read_text(encoding="utf-8")
    assert pairs.count("<image") == 12 and "juste" in pairs and "faux" not in pairs


def test_a_pair_is_a_request_and_its_own_opposite(out):
    pairs = minimal_pairs(out, read_table(out / "table.csv"), read_table(out / "contraires.csv"))
    assert [row.category for row, *_ in pairs] == ["couleur"] * 2 + ["relation"] * 2 + ["objet"] * 2
    for row, turned, image, other in pairs:
        assert (row.contrast, row.seed, row.attempt) == (turned.prompt, turned.seed, 0)
        assert row.held_out == (row.category != "objet")
        for r, drawn in ((row, image), (turned, other)):
            assert (Painter().draw_many([r.prompt], [r.seed])[0].images[0] == drawn).all()


def test_a_study_without_space_nor_pairs_has_fewer_figures(tmp_path):
    run(Painter(), tmp_path, plan(2, 0, ["objet"]), ABOUT)
    files, html = page(tmp_path)
    assert [path.name for path in files] == ["parts.svg", "index.html"]
    assert (
        "VISOR, <" not in html
        and "<h2>L'espace" not in html
        and "demande contraire" in files[0].read_text("utf-8")
    )


def test_numbers_are_said_in_french(out):
    assert percent(0.974) == "97 %" and percent(Estimate(0.5, 0.401, 0.599)) == "50 % [40 ; 60]"
    rows = read_table(out / "table.csv")
    assert told(counts(rows)[1]).startswith(
        "couleur, réservées : 100 % [44 ; 100] de 3 ; demande contraire 0 %"
    )
    (first, *_) = spaces(rows)
    assert told_space(first).endswith(
        "conditionnel 100 % (demande contraire 0 %) ; sur 2, au moins 1 : 100 %, au moins 2 : 100 %"
    )
