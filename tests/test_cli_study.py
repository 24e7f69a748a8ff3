"""`minidalle evaluate study` : ce qu'elle écrit, ce qu'elle dit, et ce qu'une coupure lui fait."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from minidalle import cli_study
from minidalle.cli_common import save_png
from minidalle.data.scenes import render
from minidalle.errors import MinidalleError
from minidalle.evaluation import study, study_summary
from minidalle.evaluation.phrases import parse
from minidalle.evaluation.study import plan
from minidalle.evaluation.study_files import read_table
from minidalle.generation import TextToImage
from minidalle.text import ByteTokenizer
from tests.command_line import fail, run, snapshot, succeed, tiny_model
from tests.painters import scene_of

FEW = ("evaluate", "study", "--model", "petit", "--out", "e", "--n", "2", "--categories", "couleur, ordre")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Dix fois moins de tirages : l'intervalle est plus grossier, le test plus court.
    monkeypatch.setattr(study_summary, "bootstrap", partial(study_summary.bootstrap, resamples=200))


@pytest.fixture
def small(tmp_path):
    return tiny_model(tmp_path / "petit")


def test_one_command_writes_the_whole_study(small):
    result = succeed(*FEW, "--tries", 2, "--guidance", 1.5)
    rows = read_table(Path("e/table.csv"))
    assert len(rows) == 2 * 2 + 2 * 2 * 2 and {r.category for r in rows} == {"couleur", "ordre"}
    lines = result.stdout.splitlines()
    written = ["table.csv", "comptes.csv", "parts.svg"]
    assert lines[-5:-2] == [f"e/{name}" for name in written] and lines[-1] == "e/index.html"
    assert lines[0].startswith("couleur, réservées : 0 % [0 ; 66] de 2 ; demande contraire 0 %")
    assert sum(line.startswith("VISOR, ordre, ") for line in lines) == 2
    about = json.loads(Path("e/study.json").read_text(encoding="utf-8"))
    assert about["model"] == "petit" and len(about["sha256"]) == 64
    assert about["settings"] == {"guidance": 1.5, "temperature": 1.0, "top_p": None}
    # Ce modèle n'a rien appris : on le dit, plutôt que de rendre des nombres sans un mot.
    assert (
        "ces nombres ne veulent rien dire" in result.stderr and "n'a jamais lu certains mots" in result.stderr
    )
    assert "ne veulent rien dire" in Path("e/index.html").read_text(encoding="utf-8")


def test_a_study_resumes_only_itself(small):
    succeed(*FEW)
    before = snapshot()
    assert "--resume" in fail(*FEW)
    assert "n : 2 alors, 3 maintenant" in fail(*FEW, "--n", 3, "--resume")
    assert "seed : 0 alors, 5 maintenant" in fail(*FEW, "--seed", 5, "--resume")
    succeed(*FEW, "--resume")
    assert snapshot() == before
    tiny_model(small, width=32)
    assert "sha256" in fail(*FEW, "--resume")


def test_ctrl_c_says_how_to_go_on(small, monkeypatch):
    monkeypatch.setattr(study, "PACKET", 4)
    draw, calls = TextToImage.draw_many, []

    def tired(self, *args, **settings):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(self, *args, **settings)

    monkeypatch.setattr(TextToImage, "draw_many", tired)
    result = run(*FEW)
    assert result.exit_code == 130 and "continuer avec --resume" in result.stderr
    assert not Path("e/table.csv").exists() and len(list(Path("e/paquets").iterdir())) == 2


def test_a_killed_study_is_resumed_as_if_nothing_had_happened(small):
    """Tué net dès son premier paquet, repris, le dossier est celui d'une étude d'une traite."""
    many = [*FEW, "--n", "40", "--tries", "1"]
    command = [sys.executable, "-m", "minidalle", *many]
    root = str(Path(cli_study.__file__).parents[1])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root})
    while not list(Path("e").glob("paquets/*.csv")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("e/table.csv").exists()
    succeed(*many, "--resume")
    succeed(*[arg if arg != "e" else "f" for arg in many])
    assert tree("e") == tree("f")


def tree(folder):
    return {
        path.relative_to(folder): path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")
    }


def test_the_list_of_requests_can_be_drawn_elsewhere_and_judged():
    options = ("--n", 2, "--categories", "fond,relation,nombre")
    told = succeed("evaluate", "study", "--list", *options).stdout.splitlines()
    assert told == list(dict.fromkeys(i.request.prompt for i in plan(2, 0, ["fond", "relation", "nombre"])))
    assert all(map(parse, told)) and not list(Path().iterdir())
    for prompt in told:
        save_png(Path("images") / f"{prompt}_1.png", [render(scene_of(prompt, 0))], 2)
    save_png(Path("images") / "une girafe.png", [render(scene_of("un chat", 0))])
    result = succeed("evaluate", "study", "--images", "images", "--out", "e")
    rows = read_table(Path("e/table.csv"))
    assert {r.prompt for r in rows} == set(told) and all(r.right for r in rows)
    assert "Image écartée : une girafe.png" in result.stderr and "Images écartées" in result.stderr
    assert "e/index.html" in result.stdout and "paires.svg" not in result.stdout
    assert "--resume" in fail("evaluate", "study", "--images", "images", "--out", "e")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--n", "0"], "« n » ne peut pas valoir 0 : choisir de 2"),
        (["--n", "-3"], "-3"),
        (["--categories", "goût"], "« goût » inconnue"),
        (["--tries", "99"], "« tries » ne peut pas valoir 99"),
        (["--temperature", "0"], "empérature"),
        (["--model", "absent"], "« absent » introuvable"),
        (["--images", "."], "retirer --model"),
        (["--top-p", "7"], "7"),
    ],
)
def test_impossible_options(small, args, told):
    assert told in fail(*FEW, *args)


def test_folders_that_cannot_be_used(small):
    assert "Il manque --out" in fail("evaluate", "study")
    Path("e").mkdir()
    Path("e/poeme.txt").write_text("rien")
    assert "contient déjà « poeme.txt »" in fail(*FEW, "--resume")
    assert "jugeable" in fail("evaluate", "study", "--images", "e", "--out", "f")
    assert "illisible" in fail("evaluate", "study", "--images", "absent", "--out", "f")


def test_a_published_model_is_refused():
    """L'oracle ne lit pas les photographies : mieux vaut le dire que rendre des nombres faux."""
    painter = SimpleNamespace(tokenizer=ByteTokenizer.__new__(ByteTokenizer))
    with pytest.raises(MinidalleError, match="modèle publié.*minidalle rate"):
        cli_study._check_world(painter, "mini")
    assert "ni photographies" in " ".join(succeed("evaluate", "study", "--help").stdout.split())
