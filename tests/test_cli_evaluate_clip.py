"""`minidalle evaluate clip` : ce qu'elle écrit, et ce qu'elle dit quand elle ne peut pas."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from minidalle.checkpoints import save_model
from minidalle.cli import app
from minidalle.data import tuxpaint
from minidalle.models.clip import CLIP, CLIPConfig
from minidalle.text import Tokenizer

CAPTIONS = ["un mouton", "un carré bleu", "trois pommes rouges", "une maison verte"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIDALLE_CLIP", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Fichier d'un CLIP minuscule, tiré au hasard, de 6 jetons de contexte."""
    path = tmp_path_factory.mktemp("poids") / "petit.safetensors"
    tokenizer = Tokenizer.train(CAPTIONS, 100)
    torch.manual_seed(0)
    sizes = {"image_width": 16, "image_layers": 1, "image_heads": 2, "text_width": 16, "text_layers": 1}
    clip = CLIP(CLIPConfig(len(tokenizer), length=6, size=16, text_heads=2, dim=8, **sizes))
    save_model(path, clip, tokenizer=tokenizer.to_json())
    return path


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "images", CAPTIONS)


def write(folder: Path, captions) -> Path:
    """Dossier d'images de bruit, deux légendes par image."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, caption in enumerate(captions):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{caption}\n{caption} et un\n", encoding="utf-8")
    return folder


def run(*args, **environment):
    arguments = ["evaluate", "clip", *map(str, args)]
    return CliRunner().invoke(app, arguments, prog_name="minidalle", env=environment)


def succeed(*args, **environment):
    result = run(*args, **environment)
    assert result.exit_code == 0, result.output
    return result


def test_measures_files_and_report(folder, model):
    result = succeed("--data", folder, "--model", model, "--out", "etude", "--json")
    report = json.loads(result.stdout)
    assert report == json.loads(Path("etude/clip.json").read_text(encoding="utf-8"))
    assert (report["model"], report["images"], report["captions"], report["seed"]) == ("petit", 4, 8, 0)
    assert set(report["clip_score"]) == set(report["cosine"]) == {"right", "wrong", "blank"}
    measures = [*report["clip_score"].values(), report["preference"], *report["recall"]["texts"].values()]
    assert all(0 <= m["low"] <= m["value"] <= m["high"] <= 2.5 for m in measures)
    assert (
        report["recall"]["texts"]["10"]["value"] == report["recall"]["images"]["10"]["value"] == 1
    )  # il n'y en a pas dix
    assert report["recall"]["images"]["1"]["chance"] == pytest.approx(1 / 4)
    assert report["preference"]["chance"] == 0.5
    svg = Path("etude/clip.svg").read_text(encoding="utf-8")
    assert "légende d'une autre image" in svg.replace("&#x27;", "'").replace("&apos;", "'")


def test_the_report_in_french(folder, model):
    result = succeed("--data", folder, "--model", model, "--out", "etude")
    assert "petit : 4 images, 8 légendes." in result.stdout
    for words in (
        "bonne légende :",
        "légende d'une autre image :",
        "image blanche",
        "k = 10 : 1,000",
        "au hasard",
    ):
        assert words in result.stdout
    assert "etude/clip.svg" in result.stdout and "{" not in result.stdout


def test_the_seed_alone_changes_the_wrong_captions(folder, model):
    first, same, other = (
        json.loads(succeed("--data", folder, "--model", model, "--seed", s, "--json").stdout)
        for s in (0, 0, 3)
    )
    assert first == same
    assert first["cosine"]["right"]["value"] == other["cosine"]["right"]["value"]
    assert first["cosine"]["wrong"] != other["cosine"]["wrong"]


def test_what_the_model_does_not_read_is_told(tmp_path, model):
    captions = ["un mouton 🐑", "trois pommes rouges et une maison verte un carré bleu"]
    result = succeed("--data", write(tmp_path / "autres", captions), "--model", model, "--json")
    report = json.loads(result.stdout)
    assert "🐑" in report["unknown"]
    (short, long), cut = captions, report["cut"]
    assert short not in cut and cut[long][-2:] == ["carré", "bleu"]
    assert "« petit » n'a jamais lu" in result.stderr and "« 🐑 »" in result.stderr
    assert f"légendes trop longues, {len(cut)}, non lu : " in result.stderr and "carré bleu" in result.stderr


def test_an_empty_caption_is_named(folder, model):
    (folder / "2.txt").write_text("\n", encoding="utf-8")
    result = run("--data", folder, "--model", model)
    assert result.exit_code == 2 and "2.txt » est vide" in result.stderr


@pytest.mark.parametrize(("choice", "code"), [("fail", 2), ("list", 2), ("skip", 0)])
def test_bad_images(choice, code, folder, model):
    for name in ("1.png", "3.png"):
        (folder / name).write_bytes(b"abc")
    result = run("--data", folder, "--model", model, "--bad-images", choice)
    assert result.exit_code == code
    assert "1.png" in result.stderr and ("3.png" in result.stderr) == (choice != "fail")
    assert ("2 images, 4 légendes" in result.stdout) == (choice == "skip")


def test_an_unknown_choice(folder, model):
    result = run("--data", folder, "--model", model, "--bad-images", "oups")
    assert result.exit_code == 2 and "fail, list, skip" in result.stderr


def test_the_model_may_come_from_the_environment(folder, model):
    assert "petit :" in succeed("--data", folder, MINIDALLE_CLIP=str(model)).stdout
    result = run("--data", folder, MINIDALLE_CLIP="rien/du/tout")
    assert result.exit_code == 2 and "hf download" in result.stderr


def test_tux_paint(model, tmp_path, monkeypatch):
    result = run("--data", "tuxpaint", "--model", model)
    assert tuxpaint.STAMPS.is_dir() or (result.exit_code == 2 and "apt-get install" in result.stderr)
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (30, 20), (60 * i, 0, 90)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"A stamp.\nfr.utf8={caption}\n", encoding="utf-8")
    monkeypatch.setattr(tuxpaint.read_stamps, "__defaults__", (None, tmp_path))
    result = succeed("--data", "tuxpaint", "--model", model)
    assert "petit : 4 images, 4 légendes." in result.stdout and "GPL-2" in result.stderr


@pytest.mark.parametrize("wrong", [["--seed", "-1"], ["--model", "vqvae"], ["--data", "rien"]])
def test_what_cannot_be_done(wrong, folder, model):
    given = {"--data": folder, "--model": model} | {wrong[0]: wrong[1]}
    result = run(*(part for pair in given.items() for part in pair))
    assert result.exit_code == 2 and result.stderr.startswith("Erreur : ") and result.stdout == ""
