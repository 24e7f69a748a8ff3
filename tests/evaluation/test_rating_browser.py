"""La page de notes dans Chromium sans écran, au clavier, serveur tué net en chemin ; sautés sans Chromium."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import minidalle
from minidalle.evaluation.ratings import read_ratings, tabulate
from tests.chromium import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium n'est pas installé")

HOSTILE = "<script>document.title = 'piraté'</script><img src=x onerror=\"document.title = 'piraté'\">"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Dix images, deux légendes chacune ; un nom et une légende hostiles."""
    images, annotations = [], []
    for i in range(10):
        name = "<b onclick='x'>&.png" if i == 3 else f"{i}.png"
        Image.new("RGB", (8, 8), (25 * i, 100, 0)).save(tmp_path / name)
        images.append({"id": i, "file_name": name})
        for caption in (HOSTILE if i == 3 else f"légende vraie {i}", f"légende fausse {i}"):
            annotations.append({"image_id": i, "caption": caption})
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


@pytest.fixture
def start(folder) -> Iterator:
    """Lance « minidalle rate » et rend le processus et son adresse ; les processus restants sont tués à la fin."""
    running = []

    def run(rater: str, *options: str) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-m", "minidalle", "rate", str(folder), "--rater", rater, "--port", "0"]
        process = subprocess.Popen(
            [*command, "--no-browser", "--out", str(folder / "notes.csv"), *options],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": str(Path(minidalle.__file__).parents[1]), "PYTHONUNBUFFERED": "1"},
        )
        running.append(process)
        return process, re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def view(browser) -> Iterator:
    """Une page de téléphone en thème sombre, où rien d'externe ni aucune erreur n'est admis."""
    context = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme="dark")
    context.set_default_timeout(300_000)  # une machine occupée ne fait pas échouer un test
    page, faults = context.new_page(), []
    page.on("request", lambda r: r.url.startswith(("http://127.0.0.1:", "data:")) or faults.append(r.url))
    page.on("requestfailed", lambda r: faults.append(f"échec : {r.url}"))
    page.on("console", lambda m: m.type == "error" and faults.append(m.text))
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("dialog", lambda d: faults.append(d.message))
    yield page
    assert faults == []
    context.close()


def rate(view, place: int, key: str) -> tuple[str, str]:
    """Note la paire affichée, d'une touche, et attend la suivante ; rend sa couleur et sa légende."""
    view.wait_for_url(f"**/{place}")
    shown = view.locator("figcaption").inner_text()
    assert view.evaluate("document.querySelector('img').naturalWidth") == 256
    assert view.evaluate("document.scrollingElement.scrollWidth") <= 360
    view.keyboard.press(key)
    view.wait_for_url(lambda url: not url.endswith(f"/{place}"))
    return shown


def test_rate_by_keyboard_kill_resume_and_export(start, view, folder):
    process, address = start("Ana")
    view.goto(address)
    shown = [rate(view, place, str(place % 5)) for place in range(10)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read_ratings(folder / "notes.csv")) == 10, "rien n'est perdu"

    _, address = start("Ana")
    view.goto(address)
    view.wait_for_url("**/10")
    assert "10 sur 20" in view.title()
    view.keyboard.press("u")  # revenir, corriger : la dixième note passe de 4 à 1
    view.wait_for_url("**/9")
    assert view.locator("[aria-pressed=true]").get_attribute("value") == "4"
    assert rate(view, 9, "1") == shown[9]
    shown += [rate(view, place, "ArrowRight" if place == 12 else str(place % 5)) for place in range(10, 20)]
    assert rate(view, 12, "Numpad2") == shown[12], "la paire passée revient à la fin"
    view.wait_for_url("**/20")
    assert view.locator("h1").inner_text() == "Tout est noté, merci."
    assert len(set(shown)) == 20 and HOSTILE in shown, "une légende hostile est un texte"

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "minidalle",
            "rate",
            str(folder),
            "--out",
            "notes.csv",
            "--export",
            "propre.csv",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(minidalle.__file__).parents[1])},
    )
    assert done.returncode == 0
    exported = read_ratings(folder / "propre.csv")
    expected = {caption: place % 5 for place, caption in enumerate(shown)} | {shown[9]: 1}
    assert {r.caption: r.grade for r in exported} == expected and len(exported) == 20
    assert ("<b onclick='x'>&.png", HOSTILE) in tabulate(exported).pairs


def test_other_ways_to_answer(start, view, folder):
    """Chiffre d'un clavier AZERTY sans majuscule, souris, Tab puis espace ; une touche tenue ne note qu'une fois."""
    _, address = start("Zoé <i>")
    view.goto(address)
    assert view.locator("bdi").inner_text() == "Zoé <i>"
    azerty = {"key": "'", "code": "Digit4", "bubbles": True}
    view.evaluate(
        "keys => document.dispatchEvent(new KeyboardEvent('keydown', {...keys, repeat: true}))", azerty
    )
    view.evaluate(
        "keys => document.dispatchEvent(new KeyboardEvent('keydown', {...keys, ctrlKey: true}))", azerty
    )
    assert len(read_ratings(folder / "notes.csv")) == 0
    view.evaluate("keys => document.dispatchEvent(new KeyboardEvent('keydown', keys))", azerty)
    view.wait_for_url("**/1")
    view.get_by_role("button", name="à moitié juste").click()
    view.wait_for_url("**/2")
    view.keyboard.press("Tab")
    assert view.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    view.keyboard.press("Space")
    view.wait_for_url("**/3")
    assert [r.grade for r in read_ratings(folder / "notes.csv")] == [4, 2, 0]


def test_another_site_cannot_read_nor_grade(start, browser, folder):
    """Une page d'une autre origine : ni lecture, ni envoi ; et rien d'autre que les paires n'est servi."""
    _, address = start("Ana")
    context = browser.new_context()
    for path in (
        "captions.json",
        "notes.csv",
        "image/0.png",
        "image/..%2fnotes.csv",
        "%2e%2e/etc/passwd",
        "image/99",
    ):
        assert context.request.get(address + path).status == 404, path
    assert context.request.get(address, headers={"Host": "pirate.fr"}).status == 403
    _, other = start("Bob", "--out", str(folder / "ailleurs.csv"))
    page = context.new_page()
    page.goto(f"{other}fin")  # une page sans politique de contenu
    assert page.evaluate("url => fetch(url).then(() => 'lu', () => 'refusé')", address) == "refusé"
    post = "url => fetch(url, {method: 'POST', mode: 'no-cors', body: new URLSearchParams({note: 4})}).catch(() => 0)"
    page.evaluate(post, f"{address}0")
    assert len(read_ratings(folder / "notes.csv")) == 0
    context.close()
