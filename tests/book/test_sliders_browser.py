"""Les figures à curseur, au clavier, dans Chromium ; une page d'essai, puis celles du livre construit."""

from pathlib import Path

import numpy as np
import pytest

from minidalle.sliders import slider
from tests.chromium import CHROMIUM, PATIENCE

pytestmark = [pytest.mark.book, pytest.mark.skipif(CHROMIUM is None, reason="Chromium n'est pas installé")]
IN_THE_BOOK = ["comprimer/dvae", "comprimer/vae", "dessiner/generation"]
SHOWN = "all => all.filter(image => image.checkVisibility()).map(image => image.dataset.label)"


def state(block) -> tuple[list[str], str, str]:
    """Images visibles, ce que lit une synthèse vocale, ce qui est écrit."""
    images = block.locator("img").evaluate_all(SHOWN)
    return (
        images,
        block.locator("input").get_attribute("aria-valuetext"),
        block.locator("output").inner_text(),
    )


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    greys = [np.full((8, 10, 3), shade, np.uint8) for shade in (0, 120, 250)]
    made = slider(greys, ["noir", "gris", "blanc"], "Un carré de plus en plus clair.", "essai", 1, "Clarté")
    page = tmp_path / "essai.html"
    page.write_text(f'<!DOCTYPE html><html lang="fr"><meta charset="utf-8">{made.html}', encoding="utf-8")
    return page


def test_arrows_change_the_picture_and_its_name(browser, trial: Path) -> None:
    view = browser.new_page(viewport={"width": 360, "height": 800})
    view.set_default_timeout(PATIENCE)
    view.goto(trial.as_uri())
    block = view.locator("#curseur-essai")
    assert state(block) == (["gris"], "gris", "gris")
    view.keyboard.press("Tab")  # on y arrive sans souris
    for key, label in (
        ("ArrowRight", "blanc"),
        ("ArrowRight", "blanc"),
        ("Home", "noir"),
        ("ArrowRight", "gris"),
    ):
        view.keyboard.press(key)
        assert state(block) == ([label], label, label)
    assert view.evaluate("document.scrollingElement.scrollWidth") <= 360
    view.emulate_media(media="print")
    assert not block.locator("input").is_visible()  # sur le papier, l'image et sa valeur
    assert state(block) == (["gris"], "gris", "gris")
    view.close()


def test_without_a_script_the_still_picture_shows(browser, trial: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.set_default_timeout(PATIENCE)
    view.goto(trial.as_uri())
    images = view.locator("img")
    assert [images.nth(i).is_visible() for i in range(3)] == [False, True, False]
    assert not view.locator("input").is_visible()
    assert view.locator("output").inner_text() == "gris"
    context.close()


@pytest.mark.parametrize("name", IN_THE_BOOK)
def test_the_book_has_its_sliders(browser, html: Path, name: str) -> None:
    page = html / "chapters" / f"{name}.html"
    view = browser.new_page(color_scheme="dark")
    view.set_default_timeout(PATIENCE)
    view.goto(page.as_uri())
    block = view.locator("figure div[id^=curseur-]")
    assert len(block.inner_html()) < 400_000
    before = state(block)
    block.locator("input").press("ArrowRight")
    after = state(block)
    for images, told, written in (before, after):
        assert images == [told] == [written]
    assert before != after
    view.close()
