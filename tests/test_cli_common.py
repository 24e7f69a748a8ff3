"""Noms de fichiers et images que plusieurs commandes partagent."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minidalle.cli_common import enlarge, file_path, grid, model_name, save_png, slug
from minidalle.errors import MinidalleError


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 3))
def test_a_grid_goes_from_left_to_right_then_down(n, side, gap):
    images = (
        np.arange(1, n + 1, dtype=np.uint8)[:, None, None, None].repeat(side, 1).repeat(side, 2).repeat(3, 3)
    )
    sheet = grid(images, gap)
    rows, columns = ((size + gap) // (side + gap) for size in sheet.shape[:2])
    assert sheet.shape == (rows * (side + gap) - gap, columns * (side + gap) - gap, 3)
    assert 0 <= columns - rows <= 1 and rows * columns >= n > (rows - 1) * columns
    cells = [
        sheet[y : y + side, x : x + side]
        for y in range(0, sheet.shape[0], side + gap)
        for x in range(0, sheet.shape[1], side + gap)
    ]
    for i, cell in enumerate(cells):
        assert (cell == (images[i] if i < n else 255)).all()
    assert (sheet == 255).sum() == sheet.size - n * side * side * 3


def test_enlarge_makes_squares():
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    big = enlarge(image, 4)
    assert big.shape == (8, 12, 3)
    assert all((big[y, x] == image[y // 4, x // 4]).all() for y in range(8) for x in range(12))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Un cœur, à pois !", "un-coeur-a-pois"),
        ("🐑", "image"),
        ("../../x", "x"),
        ("ab " * 50, "ab-" * 19 + "ab"),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


@given(st.text())
def test_a_slug_is_a_safe_file_name(text):
    assert 1 <= len(slug(text)) <= 60 and set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_file_path_wants_its_suffix(tmp_path):
    assert file_path("a.PNG", ".png") == Path("a.PNG")
    (tmp_path / "x.png").mkdir()
    for name in ("a.jpg", "a", str(tmp_path / "x.png")):
        with pytest.raises(MinidalleError, match=r"finit par \.png"):
            file_path(name, ".png")


def test_a_model_is_named_by_its_file_or_its_folder(tmp_path):
    assert model_name(Path("w/scenes.safetensors")) == "scenes"
    assert model_name(tmp_path / "essai" / "model.safetensors") == "essai"


def test_save_png_keeps_texts_and_refuses_monsters(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", images, 3, Description="été 🐑")
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Description"] == "été 🐑"
        assert (np.asarray(image)[::3, ::3] == images[0]).all()
    with pytest.raises(MinidalleError, match="démesurée"):
        save_png(tmp_path / "b.png", images, 10_000)
    assert not (tmp_path / "b.png").exists()
