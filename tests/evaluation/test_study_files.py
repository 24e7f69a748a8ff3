"""Le dossier d'une étude."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from minidalle.errors import MinidalleError
from minidalle.evaluation.study_files import (
    Row,
    folder,
    read_strip,
    read_summary,
    read_table,
    write_strip,
    write_summary,
    write_table,
)

ROW = Row(
    *("paire", True, 3, 0, 12, "un carré bleu et une croix, rouge", "…", "", 1, True, True, False),
    *(True, False, "gauche", 2, 0.125, False, True, "paquets/00000.png#3"),
)
ABOUT = {"model": "essai", "n": 3, "settings": {"guidance": 1.5}}


def claim(out, about=ABOUT, resume=False):
    with folder(out, about, resume):
        pass


def test_a_table_is_read_back_with_its_types(tmp_path):
    write_table(tmp_path / "t.csv", [ROW, ROW._replace(held_out=False)])
    rows = read_table(tmp_path / "t.csv")
    assert rows == [ROW, ROW._replace(held_out=False)]
    assert [type(value) for value in rows[0]] == [type(value) for value in ROW]
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()[1].startswith("paire,1,3,0,12,")


def test_what_nobody_judged_is_empty_and_neither_true_nor_false(tmp_path):
    nobody = dict.fromkeys(("present", "right", "alone", "count", "left", "contrast_right", "other_right"))
    write_table(tmp_path / "t.csv", [ROW._replace(**nobody)])
    assert read_table(tmp_path / "t.csv") == [ROW._replace(**nobody)]
    text = (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert text.endswith(",1,,1,,,0,gauche,,,,,paquets/00000.png#3\n")
    # Une graine, elle, ne peut pas manquer.
    (tmp_path / "t.csv").write_text(text.replace(",12,", ",,"), encoding="utf-8")
    with pytest.raises(MinidalleError, match="n'est pas une table"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "text", ["", "a,b\n", ",".join(Row._fields) + "\npaire,1\n", ",".join(Row._fields) + "\nx" * 20]
)
def test_what_is_not_a_table_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(MinidalleError, match=r"n'est pas une table"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(MinidalleError, match="illisible"):
        read_table(tmp_path / "absente.csv")


def test_a_summary_keeps_all_that_was_measured(tmp_path):
    rows = [ROW, ROW._replace(held_out=False, place_read="", left=0.5)]
    write_summary(tmp_path / "essai.csv", rows, ABOUT)
    told, found = read_summary("essai", tmp_path)
    assert told == ABOUT
    assert found == [row._replace(seed=0, prompt="", contrast="", image="") for row in rows]
    assert [type(value) for value in found[0]] == [type(value) for value in ROW]
    with pytest.raises(MinidalleError, match="« autre » : choisir parmi essai"):
        read_summary("autre", tmp_path)
    (tmp_path / "essai.csv").write_text("paire,1\n")
    with pytest.raises(MinidalleError, match="abîmé"):
        read_summary("essai", tmp_path)


def test_a_strip_is_read_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    write_strip(tmp_path / "a/s.png", list(images))
    assert (read_strip(tmp_path / "a/s.png") == images).all()


def test_a_folder_keeps_what_its_study_is(tmp_path):
    claim(tmp_path / "neuf/etude")
    assert json.loads((tmp_path / "neuf/etude/study.json").read_text()) == ABOUT
    claim(tmp_path / "neuf/etude", resume=True)
    with pytest.raises(MinidalleError, match="--resume"):
        claim(tmp_path / "neuf/etude")
    claim(tmp_path / "autre", resume=True)  # reprendre ce qui n'est pas commencé, c'est commencer


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": 4}, "n : 3 alors, 4 maintenant"),
        ({"settings": {"guidance": 2.0}}, "settings : {'guidance': 1.5} alors, {'guidance': 2.0} maintenant"),
        ({"seed": 1}, "seed : None alors, 1 maintenant"),
    ],
)
def test_another_study_is_refused(tmp_path, changes, told):
    claim(tmp_path)
    for resume in (True, False):
        with pytest.raises(MinidalleError, match=re.escape(told)):
            claim(tmp_path, ABOUT | changes, resume)
    assert json.loads((tmp_path / "study.json").read_text()) == ABOUT


def test_a_folder_full_of_something_else_is_refused(tmp_path):
    (tmp_path / "poème.txt").write_text("rien")
    with pytest.raises(MinidalleError, match=r"contient déjà « poème\.txt »"):
        claim(tmp_path, resume=True)
    (tmp_path / "poème.txt").unlink()
    (tmp_path / ".study.json.x1").write_text("{")  # coupure nette de la toute première écriture
    claim(tmp_path)
    assert (tmp_path / "study.json").exists()
    (tmp_path / "study.json").write_text("[1")
    with pytest.raises(MinidalleError, match="abîmé"):
        claim(tmp_path, resume=True)
    (tmp_path / "fichier").write_text("")
    with pytest.raises(MinidalleError, match="changer --out"):
        claim(tmp_path / "fichier")


def test_crumbs_are_swept_when_resuming(tmp_path):
    claim(tmp_path)
    (tmp_path / "paquets").mkdir()
    (tmp_path / "paquets/.00000.csv.z").write_text("ca")
    claim(tmp_path, resume=True)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["paquets", "study.json"]


def test_two_processes_cannot_share_a_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from minidalle.evaluation.study_files import folder\n"
        "with folder(Path(sys.argv[1]), {}, True): pass"
    )
    other = [sys.executable, "-c", code, str(tmp_path)]
    with folder(tmp_path, {}, False):
        told = subprocess.run(other, capture_output=True, text=True)
        assert told.returncode and "sert déjà à une autre étude" in told.stderr
    assert subprocess.run(other, capture_output=True, text=True).returncode == 0
