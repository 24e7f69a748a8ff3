"""`minidalle evaluate study` : ce qu'elle écrit, ce qu'elle dit, et ce qu'une coupure lui fait."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from minidalle import cli_study
from minidalle.checkpoints import save_model
from minidalle.cli_common import save_png
from minidalle.data.captioned import CaptionedImages
from minidalle.data.scenes import render
from minidalle.evaluation import study, study_summary
from minidalle.evaluation.english import translate
from minidalle.evaluation.phrases import parse
from minidalle.evaluation.rating_page import Answers, choose
from minidalle.evaluation.study import plan
from minidalle.evaluation.study_files import Row, read_table
from minidalle.evaluation.study_graded import captions
from minidalle.generation import TextToImage
from minidalle.models.dalle_mini import DALLEMini, DALLEMiniConfig
from minidalle.models.vqvae import VQVAE, VQVAEConfig
from minidalle.text import ByteTokenizer
from tests.command_line import SIZES, english, fail, run, snapshot, succeed, tiny_model
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


# --- un modèle publié


PUBLISHED = (
    "evaluate",
    "study",
    "--model",
    "mini",
    "--out",
    "e",
    "--n",
    2,
    "--categories",
    "couleur,relation",
)


@pytest.fixture
def published(tmp_path):
    """Un modèle non entraîné, de la forme de ceux que « minidalle import » écrit : il lit des octets d'anglais."""
    torch.manual_seed(0)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", *"abcdefghijklmnopqrstuvwxyz,-"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = ByteTokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    vqvae = VQVAE(VQVAEConfig(**SIZES["vqvae"]))
    with torch.no_grad():
        vqvae.quantizer.codebook.mul_(30)
    sizes = {"image_vocabulary": 16, "text_length": 96, "grid": (4, 4), "width": 16, "layers": 1, "heads": 2}
    transformer = DALLEMini(DALLEMiniConfig(len(tokenizer), pad=1, **sizes))
    notes = {"tokenizer": tokenizer.to_json(), "vqvae": "vqgan", "guidance": "2"}
    save_model(tmp_path / "mini/model.safetensors", transformer, **notes)
    save_model(tmp_path / "mini/vqgan.safetensors", vqvae)
    return tmp_path / "mini"


def grade(folder, captions, out="e/notes.csv", rater="Ana"):
    """Ce que « minidalle rate » écrit : 4 à ce que dit `captions`, 1 au reste."""
    images = CaptionedImages.open(folder)
    answers = Answers(Path(out))
    for item in choose(images):
        answers.record(item, rater, 4 if item.caption in captions else 1)


def test_a_published_model_is_asked_in_english_and_judged_by_nobody(published, monkeypatch):
    """L'oracle ne lit pas les photographies : mieux vaut des verdicts vides que des nombres faux."""
    draw, asked = TextToImage.draw_many, []

    def spy(self, prompts, *args, **settings):
        asked.extend((prompt, settings["guidance"]) for prompt in prompts)
        return draw(self, prompts, *args, **settings)

    monkeypatch.setattr(TextToImage, "draw_many", spy)
    monkeypatch.setattr(study, "read", lambda images: pytest.fail("l'oracle est consulté"))
    result = succeed(*PUBLISHED, "--tries", 1)
    items = plan(2, 0, ["couleur", "relation"], 1)
    wanted = [i.request for i in items] + [i.request for i in study.opposites(items)]
    assert asked == [(translate(request.prompt), 2.0) for request in wanted]
    lines = Path("e/table.csv").read_text(encoding="utf-8").splitlines()[1:]
    empty = [
        i for i, name in enumerate(Row._fields) if name in ("present", "right", "left", "contrast_right")
    ]
    assert len(lines) == 8 and all(line[i] == "" for line in csv.reader(lines) for i in empty)
    assert [row.prompt for row in read_table(Path("e/table.csv"))] == [i.request.prompt for i in items]
    assert "minidalle rate e/a-noter --rater NOM --out e/notes.csv" in result.stdout
    assert "Aucun verdict encore" in result.stdout and "%" not in result.stdout
    assert "n'a jamais lu" not in result.stderr and "ne veulent rien dire" not in result.stderr
    assert english(result.stdout) == set()
    about = json.loads(Path("e/study.json").read_text(encoding="utf-8"))
    assert about["language"] == "anglais" and about["settings"]["guidance"] == 2.0
    assert "minidalle rate" in Path("e/index.html").read_text(encoding="utf-8")
    assert "ni photographies" in " ".join(succeed("evaluate", "study", "--help").stdout.split())


def test_the_same_command_reads_the_notes_and_concludes(published, monkeypatch):
    succeed(*PUBLISHED)
    items = plan(2, 0, ["couleur", "relation"])
    grade("e/a-noter", {text for i in items for column, text in captions(i).items() if column == "right"})
    monkeypatch.setattr(TextToImage, "draw_many", lambda *args, **settings: pytest.fail("redessiné"))
    result = succeed(*PUBLISHED, "--resume")
    rows = read_table(Path("e/table.csv"))
    assert all(row.right and row.left is None for row in rows)
    assert result.stdout.startswith("couleur, réservées : 100 % [34 ; 100] de 2 ; demande contraire ")
    assert result.stdout.count("VISOR, relation, ") == 2 and "Aucun verdict encore" not in result.stdout
    assert "e/parts.svg" in result.stdout and "(juges : Ana)" in Path("e/index.html").read_text(
        encoding="utf-8"
    )
    before = snapshot()
    succeed(*PUBLISHED, "--resume")
    assert snapshot() == before
    # À moitié notée, on le dit, et le reste ne compte ni pour juste ni pour faux.
    text = Path("e/notes.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("e/notes.csv").write_text("".join(text[: len(text) // 2]), encoding="utf-8")
    assert "toutes les phrases sont notées : " in succeed(*PUBLISHED, "--resume").stderr
    rows = read_table(Path("e/table.csv"))
    assert {row.right for row in rows} == {True, None}
    Path("e/notes.csv").write_text(text[0], encoding="utf-8")  # ouverte, et rien de noté
    assert "Aucun verdict encore" in succeed(*PUBLISHED, "--resume").stdout
    Path("e/notes.csv").write_text("image,note\n", encoding="utf-8")
    assert "« legende »" in run(*PUBLISHED, "--resume").stderr


def test_a_published_study_cut_short_is_resumed_as_if_nothing_had_happened(published, monkeypatch):
    draw, calls = TextToImage.draw_many, []

    def tired(self, prompts, *args, **settings):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, prompts, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(TextToImage, "draw_many", tired)
        result = run(*PUBLISHED)
    assert result.exit_code == 130 and "continuer avec --resume" in result.stderr
    assert calls == [8, 8, 4] and len(list(Path("e/paquets").iterdir())) == 4
    assert not Path("e/table.csv").exists() and not Path("e/a-noter").exists()
    assert "--resume" in fail(*PUBLISHED)
    succeed(*PUBLISHED, "--resume")
    succeed(*[arg if arg != "e" else "f" for arg in PUBLISHED])
    (page, *others), whole = Path("e").glob("index.html"), tree("f")
    assert not others and {path: x for path, x in tree("e").items() if path.name != page.name} == {
        path: x for path, x in whole.items() if path.name != page.name
    }
