"""La description d'une page : les objectifs du chapitre, ou son premier paragraphe."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from docutils import nodes
from docutils.utils import new_document
from PIL import Image

from _ext.partage import LENGTH, describe, draw_card


def document(*texts: str) -> nodes.document:
    page = new_document("page")
    page += [nodes.paragraph("", text) for text in texts]
    return page


LONG = "un objectif assez long pour que trois comme lui ne tiennent pas ensemble dans la description"


@pytest.mark.parametrize(
    ("texts", "description"),
    [
        (["Objectifs : lire ; écrire une phrase.", "Le reste."], "Lire\u202f; écrire une phrase."),
        (["Objectifs : lire ; diviser par \\sqrt d ; compter.", "x"], "Lire\u202f; compter."),
        ([f"Objectifs : {LONG} ; {LONG} ; {LONG}."], f"U{LONG[1:]}\u202f; {LONG}."),
        (
            ["Court.", f"Ceci, vu ailleurs [Ramesh et al., 2021], est {LONG}."],
            f"Ceci, vu ailleurs, est {LONG}.",
        ),
        ([f"La première phrase, {LONG}. La seconde, {LONG}, de trop."], f"La première phrase, {LONG}."),
        ([], ""),
    ],
)
def test_describe(texts: list[str], description: str) -> None:
    assert describe(document(*texts)) == description


def test_a_description_is_cut_at_a_word() -> None:
    text = describe(document("mots " * 100))
    assert len(text) <= LENGTH
    assert text.endswith("mots…")


def test_captions_and_references_are_not_prose() -> None:
    page = document()
    page += nodes.figure("", nodes.paragraph("", f"Légende : {LONG}"))
    page += nodes.citation("", nodes.paragraph("", f"Référence : {LONG}"))
    assert describe(page) == ""


def test_card(tmp_path: Path) -> None:
    """Une figure transparente de Matplotlib, en points, devient une carte blanche de 1200 × 630."""
    figure = plt.figure(figsize=(7, 1), facecolor="none", layout="none")
    figure.add_axes((0, 0, 1, 1)).set(facecolor="red", xticks=[], yticks=[])
    figure.savefig(tmp_path / "figure.svg", transparent=False)
    plt.close(figure)
    draw_card(tmp_path / "figure.svg", tmp_path / "images" / "carte.png")
    with Image.open(tmp_path / "images" / "carte.png") as card:
        assert card.size == (1200, 630)
        colours = card.convert("RGB")
        assert colours.getpixel((5, 5)) == (255, 255, 255)
        assert colours.getpixel((600, 315)) == (255, 0, 0)
        assert colours.getpixel((600, 80)) == (255, 255, 255)
