"""Refait les images du README : `python -m tools.vitrine` (le livre doit être construit, et Chromium installé).

`docs/moutons.png` est la phrase du titre dessinée par le modèle de référence, quatre graines sans tri ;
`docs/atelier.png` et `docs/mesurer.png` sont des pages du livre construit.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from minidalle.errors import MinidalleError
from minidalle.export import TOP_P
from minidalle.generation import TextToImage
from tools.command import launch

ROOT = Path(__file__).parents[1]
OUT, HTML = ROOT / "docs", ROOT / "_build" / "html" / "chapters"
PROMPT, SCALE, GAP = "un mouton à gauche d'un carré bleu", 3, 12


def main() -> int:
    """Écrit les images."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or not HTML.exists():
        raise MinidalleError("Il faut Chromium, et le livre construit : « make book » d'abord.")
    OUT.mkdir(exist_ok=True)
    sheep().save(OUT / "moutons.png", optimize=True)
    photograph(chromium)
    return 0


def sheep() -> Image.Image:
    """Quatre graines de la même phrase, en rang."""
    model = TextToImage.load()
    drawn = model.draw(PROMPT, n=4, seed=0, guidance=model.guidance, top_p=TOP_P).images
    margin = np.full((drawn.shape[1] * SCALE, GAP, 3), 255, np.uint8)
    large = [np.kron(image, np.ones((SCALE, SCALE, 1), np.uint8)) for image in drawn]
    return Image.fromarray(np.hstack([part for image in large for part in (image, margin)][:-1]))


def photograph(chromium: str) -> None:
    """L'atelier, qui vient de dessiner, et la figure de l'étude."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1100, "height": 760}, color_scheme="light")
        view.goto((HTML / "mesurer" / "conclusion.html").as_uri())
        view.locator("#fig-conclusion-parts img").scroll_into_view_if_needed()
        view.locator("#fig-conclusion-parts img").screenshot(path=OUT / "mesurer.png")
        view.goto((HTML / "atelier.html").as_uri())
        view.get_by_role("button", name="Dessiner").click()
        view.wait_for_timeout(15_000)
        view.locator(".atelier").screenshot(path=OUT / "atelier.png")
        browser.close()


if __name__ == "__main__":
    launch(main)
