"""L'atelier, ouvert dans Chromium : le modèle de la page écrit les mêmes jetons, et peint les mêmes pixels, que Python.

Sautés sans Chromium, ou si la construction n'a pas pu se procurer le moteur.
"""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from minidalle.export import TOP_P
from minidalle.generation import TextToImage
from tests.chromium import CHROMIUM, PATIENCE
from tools import pages

pytestmark = pytest.mark.book
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium n'est pas installé")
PHRASES = [
    "un mouton",
    "un mouton à gauche d’un carré bleu",
    "trois étoiles rouges",
    "un chat sous un cercle vert sur fond sable",
    "deux pommes et un losange jaune",
    "une tortue à droite d'un éléphant",
    "un grand triangle rayé orange",
    "quatre petits cœurs roses",
    "un papillon au-dessus d’une maison",
    "cinq ballons",
    "un carré noir à pois plus petit qu'une fleur",
    "VOICI UN POISSON",
    "un zèbre mauve",
    "Dessine-moi un mouton à gauche d’un carré bleu",
    "une fusée, un sapin",
    "un avocat sur\u00a0fond azur",
    "l’image d’une croix violette en dessous d’un bateau",
    "on y voit une carotte",
    "un pingouin en haut à gauche 🐧 ½ e\u0301léphant",
    "deux escargots à gauche de trois champignons rouges et d’une voiture grise avec un chien et un cochon",
]


@pytest.fixture
def workshop(html: Path) -> Path:
    """La page, si elle est prête."""
    told = (html / "_static/atelier/reglages.js").read_text(encoding="utf-8")
    settings = json.loads(told[told.index("{") : told.rindex("}") + 1])
    if "missing" in settings:
        pytest.skip(f"l'atelier n'a pas été préparé : {settings['missing']}")
    return html / "chapters/atelier.html"


@pytest.fixture
def view(browser, workshop: Path) -> Iterator:
    """La page ouverte depuis un dossier ; à la fin, elle n'a rien demandé ailleurs, et rien n'a échoué."""
    faults: list[str] = []
    opened = browser.new_page(viewport={"width": 360, "height": 800})
    opened.set_default_timeout(PATIENCE)
    opened.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or faults.append(r.url))
    opened.on("console", lambda m: m.type == "error" and faults.append(m.text))
    opened.on("pageerror", lambda e: faults.append(str(e)))
    opened.goto(workshop.as_uri())
    yield opened
    opened.close()
    assert faults == []


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.load("scenes")


def wait_for(view, words: str) -> None:
    view.wait_for_function(
        "words => document.querySelector('.atelier-status').textContent.includes(words)", arg=words
    )


def pixels(view) -> np.ndarray:
    """Ce que montre la toile, uint8 (H, W, 3)."""
    flat = view.evaluate(
        "() => { const c = document.querySelector('.atelier-canvas');"
        " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }"
    )
    return np.array(flat, np.uint8).reshape(64, 64, 4)[..., :3]


def test_download_is_bounded(html: Path) -> None:
    assert sum(f.stat().st_size for f in (html / "_static/atelier").iterdir()) < 30e6


def test_only_its_page_loads_it(html: Path) -> None:
    loading = {
        page.name: [
            s["src"].split("/")[-1].split("?")[0] for s in pages.parse(page).select('script[src*="atelier/"]')
        ]
        for page in pages.pages(html)
    }
    assert {name: found for name, found in loading.items() if found} == {
        "atelier.html": ["atelier.js", "reglages.js"]  # le reste vient au premier dessin
    }


def test_without_javascript_a_sentence_and_a_picture_remain(html: Path) -> None:
    soup = pages.parse(html / "chapters/atelier.html")
    assert "JavaScript" in soup.select_one("div.atelier").get_text()
    assert soup.select_one("figure img")["alt"]


@needs_chromium
def test_sentences_are_read_as_python_reads_them(view, model) -> None:
    odd = [
        "",
        "  ",
        "?!",
        "aujourd'hui jusqu’à l'été…",
        "A\u0301 ʼ ▁ __ ½ Ⅷ 漢字",
        "anticonstitutionnellement " * 9,
    ]
    found = view.evaluate("all => all.map(atelier.encode)", PHRASES + odd)
    for phrase, seen in zip(PHRASES + odd, found, strict=True):
        expected = model.tokenizer.encode(phrase, model.transformer.config.text_length)
        assert (seen["ids"], seen["unknown"], seen["dropped"]) == (
            expected.ids,
            expected.unknown,
            expected.dropped,
        ), phrase


@needs_chromium
def test_dice_are_pytorch_s(view) -> None:
    for seed in (0, 7, 2**32 - 1):
        rolled = view.evaluate(
            "s => { const d = atelier.dice(s); return Array.from({length: 700}, () => d.next().value) }", seed
        )
        assert (
            rolled
            == torch.rand(700, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        )


@needs_chromium
def test_greedy_tokens_are_python_s(view, model) -> None:
    drawings = model.draw_many(PHRASES, [0] * len(PHRASES), top_k=1, guidance=model.guidance)
    for phrase, drawing in zip(PHRASES, drawings, strict=True):
        assert view.evaluate("text => atelier.tokens(text)", phrase) == drawing.tokens.flatten().tolist(), (
            phrase
        )


@needs_chromium
@pytest.mark.parametrize(("temperature", "guidance"), [(1.0, 1.5), (0.7, 1.0), (1.3, 0.0)])
def test_a_seed_gives_the_drawing_of_python(view, model, temperature, guidance) -> None:
    settings = {"temperature": temperature, "guidance": guidance}
    drawing = model.draw("deux pommes", seed=11, top_p=TOP_P, **settings)
    found = view.evaluate("([text, o]) => atelier.tokens(text, o)", ["deux pommes", settings | {"seed": 11}])
    assert found == drawing.tokens.flatten().tolist()


@needs_chromium
def test_the_form_draws(view, model) -> None:
    """Au clavier seul ; les mots inconnus sont nommés, et la toile montre l'image de Python, au pixel près."""
    view.fill("[name=text]", "un zèbre à gauche d’un carré bleu")
    view.fill("[name=seed]", "3")
    view.press("[name=seed]", "Enter")
    wait_for(view, "Fini")
    assert "« zèbre »" in view.inner_text(".atelier-words").replace("\u00a0", " ")
    assert view.evaluate("document.querySelector('.atelier-progress').value") == 1
    assert "graine 3" in view.get_attribute(".atelier-canvas", "aria-label")
    expected = model.draw("un zèbre à gauche d’un carré bleu", seed=3, guidance=model.guidance, top_p=TOP_P)
    gap = np.abs(pixels(view).astype(int) - expected.images[0])
    assert gap.max() <= 1 and (gap > 0).mean() < 0.01
    assert view.evaluate("document.scrollingElement.scrollWidth") <= 360
    assert pages.english_words(BeautifulSoup(view.content(), "html.parser")) == []


@needs_chromium
def test_a_drawing_can_be_cancelled(view) -> None:
    assert view.is_disabled("[name=cancel]")
    view.click("button[type=submit]")
    wait_for(view, "dessine")
    view.click("[name=cancel]")
    wait_for(view, "Annulé")
    assert view.is_disabled("[name=cancel]")
    left = pixels(view)
    view.wait_for_timeout(2000)
    assert (pixels(view) == left).all() and "Annulé" in view.inner_text(".atelier-status")
    view.click("[name=again]")  # et l'atelier sert encore
    wait_for(view, "graine 2")


@needs_chromium
def test_nothing_to_draw_is_said(view) -> None:
    view.fill("[name=text]", " \u00a0 ")
    view.click("button[type=submit]")
    wait_for(view, "Écrivez quelque chose")
    assert view.evaluate("typeof ort") == "undefined", "rien à dessiner ne charge ni moteur ni modèle"


@needs_chromium
@pytest.mark.parametrize(
    ("missing", "named"), [("WebAssembly", "WebAssembly"), ("DecompressionStream", "décompresser")]
)
def test_an_old_browser_is_told_why(browser, workshop: Path, missing: str, named: str) -> None:
    view = browser.new_page()
    view.add_init_script(f"delete globalThis.{missing}")
    view.goto(workshop.as_uri())
    assert named in view.inner_text(".atelier-obstacle")
    assert view.locator(".atelier-form").count() == 0
    view.close()


@needs_chromium
def test_a_static_server_will_do(browser, workshop: Path, html: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *told: object) -> None: ...

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=html)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        view = browser.new_page()
        view.goto(f"http://127.0.0.1:{server.server_port}/chapters/atelier.html")
        assert len(view.evaluate("atelier.tokens('un mouton')")) == 64
        view.close()
        server.shutdown()
