"""Ces tests relisent le livre construit ; sans lui, ils ne disent rien."""

from pathlib import Path

import pytest

from tools import pages

HTML = Path(__file__).parents[2] / "_build" / "html"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Un test par page : un échec nomme la sienne."""
    if "page" in metafunc.fixturenames:
        built = pages.pages(HTML)
        metafunc.parametrize("page", built, ids=[p.relative_to(HTML).as_posix() for p in built])


@pytest.fixture
def html() -> Path:
    if not (HTML / "index.html").exists():
        pytest.skip("le livre n'est pas construit : lancer « make book »")
    return HTML
