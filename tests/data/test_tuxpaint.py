"""Tampons de Tux Paint : sur un faux dossier, puis sur le vrai s'il est installé."""

import numpy as np
import pytest
from PIL import Image

from minidalle.data.tuxpaint import STAMPS, read_stamps
from minidalle.errors import MinidalleError

RED = (200, 0, 0)
TEXT = "A red apple.\nde.utf8=Ein roter Apfel.\nfr.utf8=Une pomme rouge.\nfr_CA.utf8=Une belle pomme.\n"
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}">'
    '<rect x="50%" width="50%" height="100%" fill="rgb(0,0,200)"/></svg>'
)


@pytest.fixture
def folder(tmp_path):
    """Une demi-pomme deux fois plus large que haute, un demi-carré en SVG, et ce qu'il faut laisser."""
    fruit, shapes = tmp_path / "food/fruit", tmp_path / "symbols"
    fruit.mkdir(parents=True)
    shapes.mkdir()
    apple = Image.new("RGBA", (20, 10), (*RED, 255))
    apple.paste((0, 0, 0, 0), (0, 0, 10, 10))
    for name in ("apple", "apple_mirror", "sans-legende", "sans-francais", "legende-vide"):
        apple.save(fruit / f"{name}.png")
    (fruit / "apple.svg").write_text("jamais lu : le PNG passe avant")
    (fruit / "apple.txt").write_text(TEXT, encoding="utf-8")
    (fruit / "sans-francais.txt").write_text("A pear.\nde.utf8=Eine Birne.\n")
    (fruit / "legende-vide.txt").write_text("A pear.\nfr.utf8= \n")
    (fruit / "sans-image.txt").write_text("fr.utf8=Une poire.\n")
    (shapes / "square.svg").write_text(SVG.format("30pt", "15pt"))
    (shapes / "square.txt").write_text("fr.utf8=Un carré, 1 €.\n", encoding="utf-8")
    return tmp_path


def test_stamps_with_an_image_and_a_french_caption(folder):
    stamps = read_stamps(folder=folder)
    assert stamps.names == ["food/fruit/apple.png", "symbols/square.svg"]
    assert stamps.captions == [["Une pomme rouge."], ["Un carré, 1 €."]]
    assert stamps.categories == ["food/fruit", "symbols"]
    assert stamps.keep([1]).categories == ["symbols"]


def test_whole_objects_lie_on_white(folder):
    (apple, _), (square, _) = read_stamps(folder=folder)
    assert (apple.shape, square.shape) == ((10, 20, 3), (20, 40, 3))  # 30 × 15 points, à 96 points par pouce
    assert (apple[:, :10] == 255).all() and (apple[:, 10:] == RED).all()
    assert (square[:, :20] == 255).all() and (square[:, 20:] == (0, 0, 200)).all()


@pytest.mark.parametrize("index", [0, 1])
def test_a_size_pads_and_never_crops(folder, index):
    image, _ = read_stamps(8, folder)[index]
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert (image[:2] == 255).all() and (image[-2:] == 255).all()
    assert (image[2:6, 6:] != 255).any(-1).all()


def test_a_spoiled_drawing_is_named(folder):
    (folder / "symbols/square.svg").write_text("<svg")
    stamps = read_stamps(8, folder)
    with pytest.raises(MinidalleError, match=r"entrée 1 : .*square\.svg » est illisible"):
        stamps[1]
    assert stamps.sift("skip").names == ["food/fruit/apple.png"]


def test_absent_stamps_say_how_to_install_them(tmp_path):
    with pytest.raises(MinidalleError, match="apt-get install tuxpaint-stamps-default"):
        read_stamps(folder=tmp_path / "rien")


@pytest.mark.skipif(not STAMPS.is_dir(), reason="tuxpaint-stamps-default n'est pas installé")
def test_real_stamps():
    stamps = read_stamps(32)
    told = dict(zip(stamps.names, stamps.captions, strict=True))
    assert len(stamps) > 700
    assert told["food/fruit/apple_red.png"] == ["Une pomme rouge."]
    assert {category.split("/")[0] for category in stamps.categories} >= {"animals", "food", "vehicles"}
    for index in range(0, len(stamps), 19):
        image, captions = stamps[index]
        assert image.shape == (32, 32, 3) and image.std() > 1 and len(captions) == 1
