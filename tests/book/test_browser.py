"""Le livre construit, ouvert page par page dans Chromium sans écran.

Sans Chromium, ces tests sont sautés : `test_html.py` fait alors le contrôle statique.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from tests.chromium import CHROMIUM, PATIENCE
from tools import pages

LIMIT = 3_000_000  # octets qu'une page fait venir ; l'atelier apporte un modèle
pytestmark = [pytest.mark.book, pytest.mark.skipif(CHROMIUM is None, reason="Chromium n'est pas installé")]


def test_page(browser, page: Path) -> None:
    """Sur un téléphone, en thème sombre : rien d'externe, aucune erreur, tout est rendu, rien ne déborde."""
    faults: list[str] = []
    requested: set[str] = set()
    view = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
    view.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or faults.append(r.url))
    view.on("request", lambda r: requested.add(r.url))
    view.on("requestfailed", lambda r: faults.append(f"échec : {r.url}"))
    view.on("console", lambda m: m.type == "error" and faults.append(m.text))
    view.on("pageerror", lambda e: faults.append(str(e)))
    view.goto(page.as_uri(), wait_until="networkidle")
    if formulas := view.locator("span.math, div.math").count():
        view.wait_for_selector("mjx-container")
        assert view.locator("mjx-container").count() >= formulas
        assert view.locator("mjx-merror").count() == 0
    assert all(view.eval_on_selector_all("article img", "all => all.map(image => image.naturalWidth > 0)"))
    assert view.evaluate("document.scrollingElement.scrollWidth") <= 360, "la page déborde sur un téléphone"
    assert page.stem == "atelier" or pages.weight(requested) <= LIMIT, "la page est trop lourde"
    assert pages.english_words(BeautifulSoup(view.content(), "html.parser")) == []
    assert faults == []
    view.close()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("exécutions", "annexes/execution"),
        ("autoencodeurs", "comprimer/acp-et-autoencodeur"),
        ("l’Auto-encodeur", "comprimer/acp-et-autoencodeur"),
        ("reseaux recurrents", "predire/rnn"),  # sans accents, au pluriel
        ("VQ-VAE", "comprimer/vq-vae"),
        ("vqvae", "comprimer/vq-vae"),
    ],
)
def test_search_is_forgiving(browser, html: Path, query: str, found: str) -> None:
    """La recherche marche sans serveur, page ouverte depuis un dossier, et pardonne l'orthographe."""
    faults: list[str] = []
    view = browser.new_page()
    view.set_default_timeout(PATIENCE)
    view.on("console", lambda m: m.type == "error" and faults.append(m.text))
    view.on("pageerror", lambda e: faults.append(str(e)))
    view.goto(f"{(html / 'search.html').as_uri()}?q={query}")
    view.wait_for_selector(".search-summary:not(:empty)")  # tous les résultats sont là
    links = view.eval_on_selector_all("#search-results li a", "all => all.map(link => link.href)")
    assert any(found in link for link in links)
    assert faults == []
    view.close()


def test_a_page_prints(browser, html: Path, tmp_path: Path) -> None:
    """Imprimée depuis le thème sombre : encre noire, solutions ouvertes, ni boutons ni ligne coupée."""
    view = browser.new_page(viewport={"width": 680, "height": 960}, color_scheme="dark")
    view.set_default_timeout(PATIENCE)
    view.goto((html / "chapters/demarrage.html").as_uri(), wait_until="networkidle")
    view.emulate_media(media="print")
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    view.wait_for_timeout(600)  # le temps que les solutions se déplient
    assert view.evaluate("document.scrollingElement.scrollWidth") <= 680
    assert view.eval_on_selector_all("pre", "all => all.every(pre => pre.scrollWidth <= pre.clientWidth + 1)")
    assert not view.locator(".bd-sidebar-primary").is_visible()
    ink = view.evaluate("getComputedStyle(document.querySelector('article p')).color")
    assert max(map(int, re.findall(r"\d+", ink)[:3])) < 100
    text = view.locator("article").inner_text()
    assert "Montrer le code" not in text
    solutions = view.locator(".solution.admonition")
    assert solutions.count() >= 3
    assert all(len(solutions.nth(i).inner_text()) > 40 for i in range(solutions.count()))
    view.evaluate("dispatchEvent(new Event('afterprint'))")
    view.pdf(path=tmp_path / "page.pdf", format="A4")
    if shutil.which("pdftotext"):
        printed = subprocess.run(
            ["pdftotext", tmp_path / "page.pdf", "-"], capture_output=True, text=True
        ).stdout
        assert "À retenir" in printed
        assert "Montrer le code" not in printed
    view.close()


def test_figures_keep_their_colours_at_night(browser, html: Path) -> None:
    """En thème sombre, une figure garde ses couleurs, sur une carte claire."""
    view = browser.new_page(color_scheme="dark")
    view.set_default_timeout(PATIENCE)
    view.goto((html / "chapters/demarrage.html").as_uri())
    styles = view.eval_on_selector_all(
        "article .cell_output img",
        "all => all.map(getComputedStyle).map(style => [style.filter, style.backgroundColor])",
    )
    assert styles
    for effect, card in styles:
        assert effect == "none"
        assert min(map(int, re.findall(r"\d+", card)[:3])) > 200
    view.close()
