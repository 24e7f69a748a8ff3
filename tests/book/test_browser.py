"""Le livre construit, ouvert page par page dans Chromium sans écran.

Sans Chromium, ces tests sont sautés : `test_html.py` fait alors le contrôle statique.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from tools import pages

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
pytestmark = [pytest.mark.book, pytest.mark.skipif(CHROMIUM is None, reason="Chromium n'est pas installé")]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


def test_page(browser, page: Path) -> None:
    """Sur un téléphone, en thème sombre : rien d'externe, aucune erreur, tout est rendu, rien ne déborde."""
    faults: list[str] = []
    view = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
    view.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or faults.append(r.url))
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
    assert pages.english_words(BeautifulSoup(view.content(), "html.parser")) == []
    assert faults == []
    view.close()


def test_search_finds_french_words(browser, html: Path) -> None:
    """La recherche marche sans serveur, page ouverte depuis un dossier."""
    view = browser.new_page()
    view.goto(f"{(html / 'search.html').as_uri()}?q=exécutions")
    view.wait_for_selector("#search-results li a")
    links = view.eval_on_selector_all("#search-results li a", "all => all.map(link => link.href)")
    assert any("execution" in link for link in links)
    view.close()
