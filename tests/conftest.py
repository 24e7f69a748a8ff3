"""Réglages communs à tous les tests."""

import os

# Avant le premier « import torch » : sur deux cœurs, chaque test va plus vite avec un fil qui sait dormir.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TQDM_DISABLE", "1")

import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.chromium import CHROMIUM, OPTIONS

# Pas de délai : une machine occupée ne doit pas faire échouer un test. Mêmes exemples à chaque fois.
settings.register_profile("livre", deadline=None, derandomize=True)
settings.load_profile("livre")


@pytest.fixture(autouse=True)
def ordinary_ctrl_c():
    """Un lanceur en arrière-plan fait ignorer Ctrl-C à ses enfants ; les tests qui l'envoient le remettent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_figure_left_open():
    """Une figure oubliée par un test se verrait dans le suivant, selon le partage des tests entre processus."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium sans écran ; le module saute ses tests si `CHROMIUM` est None."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()
