"""Figures à curseur : un bloc autonome dans la page, une image fixe sur le papier."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from bs4 import BeautifulSoup
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from minidalle import plots
from minidalle.errors import MinidalleError
from minidalle.sliders import DPI, SIDE, Slider, slider

ALT = """Un carré "gris" & de plus en plus clair, sur <toute> l'image."""
LABELS = ["τ = 8", "τ = 4", "τ = 2"]
GREYS = [np.full((8, 10, 3), shade, np.uint8) for shade in (10, 120, 250)]


def greys(**options) -> Slider:
    return slider(GREYS, LABELS, ALT, "gris", **{"still": 1, "control": "Température"} | options)


def soup(made: Slider) -> BeautifulSoup:
    return BeautifulSoup(made.html, "html.parser")


def decode(data: str) -> Image.Image:
    return Image.open(
        io.BytesIO(base64.b64decode(data.removeprefix("data:image/png;base64,"), validate=True))
    )


def test_the_block_is_self_contained():
    """Rien d'externe : chaque adresse est une image incluse, le script est en ligne."""
    made = greys()
    assert "http" not in re.sub(r'base64,[^"]*', "", made.html)
    tags = soup(made).find_all(True)
    assert all(tag["src"].startswith("data:image/png") for tag in tags if tag.get("src"))
    assert not [tag for tag in tags if tag.name == "link" or (tag.name == "script" and tag.get("src"))]
    ids = [tag["id"] for tag in tags if tag.get("id")]
    assert ids == ["curseur-gris", "curseur-gris-place"]


def test_one_picture_per_label_and_only_the_still_one_shows():
    images = soup(greys()).find_all("img")
    assert [int(np.asarray(decode(image["src"]))[0, 0, 0]) for image in images] == [10, 120, 250]
    assert [image["data-label"] for image in images] == LABELS
    assert [image.has_attr("hidden") for image in images] == [True, False, True]


def test_pictures_are_described():
    made = soup(greys())
    assert [image["alt"] for image in made.find_all("img")] == [f"{ALT} {label}" for label in LABELS]


def test_the_input_is_labelled():
    made = soup(greys())
    (field,) = made.find_all("input")
    assert field["type"] == "range"
    assert (field["min"], field["max"], field["value"]) == ("0", "2", "1")
    assert (field["aria-label"], field["aria-valuetext"]) == ("Température", "τ = 4")
    assert [made.label["for"]] == made.output["for"] == [field["id"]]
    assert (made.label.text, made.output.text) == ("Température", "τ = 4")


def test_without_a_script_there_is_no_dead_control():
    made = soup(greys())
    assert made.input.has_attr("hidden")
    assert "input.hidden = false" in made.script.text


def test_small_pictures_are_enlarged_without_blur():
    made = greys()
    image = soup(made).img
    assert (int(image["width"]), int(image["height"])) == (SIDE, SIDE * 8 // 10)
    assert "pixelated" in image["style"]
    assert decode(image["src"]).size == (10, 8)  # c'est la page qui agrandit
    paper = np.asarray(decode(made.still))
    assert paper.shape == (SIDE * 8 // 10, SIDE, 3)  # le papier, lui, ne sait pas
    assert (paper == 120).all()


def test_figures_become_light_pictures_and_are_closed():
    plots.use_style()

    def curves():
        for height in (1, 2):
            figure, ax = plt.subplots(figsize=(3, 2))
            ax.plot([0, height])
            assert len(plt.get_fignums()) == 1  # celle d'avant est refermée
            yield figure

    made = slider(curves(), ["un", "deux"], ALT, "courbes")
    assert plt.get_fignums() == []
    image = soup(made).img
    assert (int(image["width"]), int(image["height"])) == (288, 192)  # 96 points par pouce
    picture = decode(made.still)
    assert picture.size == (3 * DPI, 2 * DPI)
    assert picture.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    assert len(picture.getcolors()) <= 64
    assert picture.convert("RGBA").getpixel((0, 0))[3] == 0  # le fond reste celui de la page
    assert len(made.html) < 40_000


def test_a_notebook_gets_a_page_a_picture_and_a_steady_text():
    data, _ = DisplayFormatter().format(greys())
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert data["text/plain"] == "<curseur gris>"
    assert decode(data["image/png"]).format == "PNG"


def test_the_same_frames_make_the_same_block():
    def once():
        figures = [plt.figure(figsize=(1, 1)), plt.figure(figsize=(1, 1))]
        return slider(figures, ["un", "deux"], ALT, "deux")

    assert once() == once()
    assert greys() == greys()
    assert greys().html != greys(still=2).html


@pytest.mark.parametrize(
    ("frames", "labels", "name", "still", "message"),
    [
        (GREYS, LABELS, "Mon curseur", 0, "minuscules"),
        (GREYS, LABELS, 'x"><b', 0, "minuscules"),
        (GREYS, LABELS[:2], "a", 0, "3 images, 2 étiquettes"),
        (GREYS[:1], LABELS[:1], "a", 0, "deux images ou plus"),
        (GREYS, LABELS, "a", 3, "image fixe n° 3"),
        (GREYS, LABELS, "a", -1, "image fixe n° -1"),
        ([GREYS[0], GREYS[0][1:]], LABELS[:2], "a", 0, "même taille"),
    ],
)
def test_mistakes_are_explained(frames, labels, name, still, message):
    with pytest.raises(MinidalleError, match=message):
        slider(frames, labels, ALT, name, still)
