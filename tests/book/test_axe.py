"""L'accessibilité : axe-core relit chaque page dans Chromium, en clair et en sombre, tout déplié.

Aucune exception : les défauts du thème sont réparés par _static/minidalle.css et _ext/finishing.py.
Sautés sans Chromium ou sans axe-playwright-python.
"""

from importlib import resources
from pathlib import Path

import pytest

from tests.chromium import CHROMIUM, PATIENCE

pytest.importorskip("axe_playwright_python")
pytestmark = [pytest.mark.book, pytest.mark.skipif(CHROMIUM is None, reason="Chromium n'est pas installé")]
AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
# Ce que le thème peut changer ; le reste ne se vérifie qu'une fois.
COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}
# Comme le ferait un lecteur : les cellules cachées, puis les solutions.
UNFOLD = """
document.querySelectorAll("details").forEach((block) => { block.open = true; });
document.querySelectorAll(".toggle-button").forEach((button) => button.click());
"""


def serious(view, options: dict) -> list[str]:
    """Violations graves ou critiques : la règle, l'élément, ce qu'axe en dit."""
    found = view.evaluate("options => axe.run(options)", {"resultTypes": ["violations"], **options})
    return [
        f"{rule['id']} : {node['html'][:200]} ({node['failureSummary']})"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def test_page_is_accessible(browser, html: Path, page: Path) -> None:
    if page == html / "index.html":
        return  # renvoie aussitôt à l'accueil
    view = browser.new_page(color_scheme="light")
    view.set_default_timeout(PATIENCE)
    view.goto(page.as_uri(), wait_until="networkidle")
    view.evaluate(AXE)
    view.evaluate(UNFOLD)
    view.wait_for_timeout(1000)  # la fin des transitions, et le thème qui attend 0,3 s
    assert serious(view, {}) == []
    view.emulate_media(color_scheme="dark")
    view.wait_for_timeout(500)
    assert serious(view, COLOURS) == []
    view.close()


def test_axe_sees_faults(browser) -> None:
    """Le contrôle n'est pas aveugle : une image muette, un gris trop pâle."""
    view = browser.new_page()
    view.set_content(
        '<html lang="fr"><title>x</title><main><img src="a.png"><p style="color:#bbb">Pâle</p></main>'
    )
    view.evaluate(AXE)
    assert {fault.split(" :")[0] for fault in serious(view, {})} == {"image-alt", "color-contrast"}
    view.close()
