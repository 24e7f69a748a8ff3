"""Juger des images faites ailleurs."""

import numpy as np
import pytest
from PIL import Image

from minidalle.cli_common import save_png
from minidalle.data.scenes import render
from minidalle.errors import MinidalleError
from minidalle.evaluation.phrases import parse
from minidalle.evaluation.requests import SEEN_ONLY, STUDY, requests
from minidalle.evaluation.study_images import categories_of, find_prompts, fingerprint, judge_images
from tests.painters import scene_of


def paint(path, prompt, seed=0, zoom=1, **texts):
    save_png(path, [render(scene_of(prompt, seed))], zoom, **texts)


@pytest.fixture
def folder(tmp_path):
    """Quatre images justes, une fausse, une phrase étrangère, une image abîmée."""
    paint(tmp_path / "un carré bleu.png", "un carré bleu")
    paint(tmp_path / "un_carré_bleu_2.png", "un carré rouge", zoom=4)
    paint(
        tmp_path / "mouton-12-34.png",
        "un mouton à gauche d'un carré bleu",
        Description="un mouton à gauche d'un carré bleu",
    )
    paint(tmp_path / "deux chats sur fond azur_1.png", "deux chats sur fond azur", zoom=3)
    paint(tmp_path / "une girafe.png", "un mouton")
    (tmp_path / "un chat.png").write_bytes(b"\x89PNG")
    (tmp_path / "notes.txt").write_text("rien")
    return tmp_path


def test_each_picture_is_judged_by_its_sentence(folder):
    rows, skipped = judge_images(folder)
    told = {(r.image, r.category): r for r in rows}
    assert set(told) == {
        ("un carré bleu.png", "couleur"),
        ("un_carré_bleu_2.png", "couleur"),
        ("mouton-12-34.png", "relation"),
        ("deux chats sur fond azur_1.png", "nombre"),
    }
    assert [r.right for r in rows if r.image != "un_carré_bleu_2.png"] == [True] * 3
    wrong = told["un_carré_bleu_2.png", "couleur"]
    assert (wrong.prompt, wrong.right, wrong.present) == ("un carré bleu", False, True)
    assert (wrong.index, wrong.attempt) == (0, 1)  # second dessin de la même demande
    sheep = told["mouton-12-34.png", "relation"]
    assert sheep.held_out and sheep.place_read == "gauche" and not sheep.contrast_right
    assert len(skipped) == 2
    assert any("« une girafe »" in line for line in skipped) and any(
        "un chat.png" in line for line in skipped
    )


def test_a_table_of_prompts_wins(tmp_path):
    paint(tmp_path / "a.png", "un chat")
    paint(tmp_path / "un chat.png", "un chat")
    (tmp_path / "prompts.csv").write_text(
        "fichier,prompt\na.png, un chat\nabsente.png,un chien\n", "utf-8-sig"
    )
    rows, skipped = judge_images(tmp_path)
    assert [(r.image, r.right) for r in rows] == [("a.png", True)]
    assert len(skipped) == 1 and "absente.png" in skipped[0]
    for text in ("file,prompt\na.png,un chat\n", "fichier,prompt\na.png\n"):
        (tmp_path / "prompts.csv").write_text(text)
        with pytest.raises(MinidalleError, match="deux colonnes"):
            judge_images(tmp_path)


def test_categories_can_be_chosen(folder):
    rows, skipped = judge_images(folder, categories=["nombre"])
    assert [r.category for r in rows] == ["nombre"] and len(skipped) == 5


def test_an_enlarged_picture_is_read_as_the_original(tmp_path):
    for zoom, name in ((1, "un cœur noir"), (4, "un cœur noir_4")):
        paint(tmp_path / f"{name}.png", "un cœur noir", zoom=zoom)
    one, other = judge_images(tmp_path)[0]
    assert one.left == other.left and one.right and other.right


def test_photographs_are_refused_rather_than_misread(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        coarse.resize((200, 150)).save(tmp_path / f"un chat_{i}.jpg")
    with pytest.raises(MinidalleError, match=r"n'explique pas.*ni photographies"):
        judge_images(tmp_path)


def test_nothing_to_judge_is_said(tmp_path):
    with pytest.raises(MinidalleError, match="jugeable"):
        judge_images(tmp_path)
    with pytest.raises(MinidalleError, match="dossier d'images"):
        judge_images(tmp_path / "absent")


def test_the_fingerprint_follows_pictures_and_prompts(folder):
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    paint(folder / "un carré bleu.png", "un carré bleu", 3)
    assert len({before, fingerprint(folder)}) == 2
    (folder / "un carré bleu.png").rename(folder / "un carré vert.png")
    assert "un carré vert" in find_prompts(folder).values() and fingerprint(folder) != before


@pytest.mark.parametrize("category", STUDY)
def test_a_request_of_the_study_is_judged_in_its_category(category):
    for asked in requests(np.random.default_rng(0), category, 30, held_out=category not in SEEN_ONLY):
        found = categories_of(parse(asked.prompt))
        if category == "ordre" and not asked.prompt.startswith(("à", "au")):
            assert found == ["relation"]
        elif category == "nombre" and asked.wishes[0].count == 1:
            assert "nombre" not in found
        else:
            assert category in found


@pytest.mark.parametrize(
    "text",
    [
        "un mouton et un carré bleu",
        "un chat, un chien et un mouton",
        "un carré à gauche d'un carré",
        "deux carrés bleus et une croix verte",
    ],
)
def test_what_no_category_measures_is_left(text):
    assert categories_of(parse(text)) == []
