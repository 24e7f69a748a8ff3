"""`minidalle train` : chaque modèle, sur chaque sorte de données ; reprendre, partir de poids, se tromper."""

import json
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import SIDE, english, fail, run, succeed, tiny_model
from safetensors.torch import load_file

from minidalle import cli_train, processes, recipes, rewards
from minidalle.checkpoints import load_model, save_model
from minidalle.data import openmoji
from minidalle.data.captioned import CaptionedImages
from minidalle.data.sources import Emojis, Mixture, Scenes
from minidalle.text import Tokenizer
from minidalle.training import TrainingConfig

SIZES = {
    "autoencoder": {"channels": (8, 8), "blocks": 1, "code_dim": 12},
    "vae": {"channels": (8, 8), "blocks": 1, "code_dim": 12},
    "vqvae": {"channels": (8, 8), "blocks": 1, "codes": 16, "code_dim": 4},
    "dvae": {"hidden": 8, "groups": 3, "codes": 16, "code_dim": 8},
    "vqgan": {
        "channels": 4,
        "multipliers": (1, 1, 2),
        "blocks": (0, 1, 1),
        "attention": (2,),
        "grid_channels": 8,
        "codes": 16,
        "code_dim": 4,
        "perceptual": 0.0,
        "discriminator_width": 8,
        "discriminator_layers": 1,
    },
    "dalle": {"width": 16, "layers": 1, "heads": 2, "text_length": 12, "text_weight": 0.125},
    "dalle_mini": {"width": 16, "layers": 1, "heads": 2, "text_length": 12},
    "clip": {"image_width": 16, "image_layers": 1, "text_width": 16, "text_layers": 1, "patch": 8},
}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Dossier d'un modèle minuscule, non entraîné, qui dessine des images toutes différentes."""
    return tiny_model(tmp_path_factory.mktemp("modele"), text_weight=0.125)


@pytest.fixture
def small_recipes(monkeypatch):
    """Préréglages de quelques pas, vocabulaire de quelques légendes, mesures de quelques images."""
    for name, sizes in SIZES.items():
        config = TrainingConfig(steps=4, batch_size=4, warmup=1, log_every=1, save_every=1, evaluate_every=2)
        monkeypatch.setitem(recipes.PRESETS[name], "mini", recipes.Preset(sizes, config, "minuscule"))
    for name in recipes.GENERATORS:
        rewarded = TrainingConfig(
            steps=2, batch_size=32, warmup=1, log_every=1, save_every=1, evaluate_every=2
        )
        chosen = recipes.Preset(SIZES[name], rewarded, "minuscule")
        monkeypatch.setitem(recipes.PRESETS[name], cli_train.REWARDED, chosen)
    monkeypatch.setattr(rewards, "measure_drawings", partial(rewards.measure_drawings, n=2))
    for name, options in {
        "build_tokenizer": {"captions": 500},
        "measure_images": {"n": 8},
        "measure_dalle": {"n": 8},
        "measure_clip": {"n": 8},
        "measure_recall": {"n": 8},
    }.items():
        monkeypatch.setattr(recipes, name, partial(getattr(recipes, name), **options))


VQVAE_ON_SCENES = ("train", "vqvae", "--data", "scenes", "--size", SIDE)


def test_train_vqvae_then_look_at_tokens(small_recipes):
    result = succeed(*VQVAE_ON_SCENES, "--out", "essai", "--steps", 3)
    assert openmoji.CREDIT in result.stdout
    for expected in (
        "scenes, 16 × 16 pixels",
        "vqvae, ",
        "Budget : 3 pas, par lots de 4",
        "Après 3 pas",
        "PSNR (dB) : ",
    ):
        assert expected in result.stdout
    assert result.stdout.endswith("essai/model.safetensors\n") and english(result.stdout) == set()
    rows = Path("essai/metrics.csv").read_text().splitlines()
    assert len(rows) == 4 and "psnr" in rows[0]
    succeed("data", "show", "scenes", "-n", 1, "-o", "scene.png")
    assert len(succeed("tokens", "scene.png", "--model", "essai").stdout.splitlines()) == 4 + 2


@pytest.mark.parametrize("name", ["autoencoder", "vae", "vqvae", "dvae", "vqgan"])
def test_every_autoencoder_trains_resumes_and_shows_its_codes(small_recipes, name):
    mixed = ("train", name, "--data", "scenes+openmoji", "--size", SIDE, "--out")
    result = succeed(*mixed, "entier", "--steps", 4)
    assert openmoji.CREDIT in result.stdout and f"Modèle : {name}, " in result.stdout
    assert "PSNR (dB) : " in result.stdout and english(result.stdout) == set()
    succeed(*mixed, "coupe", "--steps", 2)
    succeed("train", "--out", "coupe", "--resume", "--steps", 4)
    models = [load_model(f"{folder}/model.safetensors", name)[0] for folder in ("entier", "coupe")]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    succeed("data", "show", "scenes", "-n", 1, "-o", "scene.png")
    lines = succeed("tokens", "scene.png", "--model", "entier", "-o", "ab.png").stdout.splitlines()
    if name in ("autoencoder", "vae"):
        assert [len(line.split()) for line in lines[:2]] == [10, 2]
        assert lines[2] == "Un code de 12 nombres, sans jetons."
    else:
        assert all(0 <= int(token) < 16 for line in lines[:4] for token in line.split())
        assert "dans un dictionnaire de 16 codes" in lines[4]
    assert lines[-1] == "ab.png" and lines[-2].startswith("PSNR")


@pytest.mark.parametrize("name, side, expected", [("vae", 10, "multiple"), ("dvae", 10, "multiple de 4")])
def test_sides_that_do_not_fit_are_refused(small_recipes, name, side, expected):
    assert expected in fail("train", name, "--data", "scenes", "--size", side, "--out", "essai")


def test_a_vector_model_keeps_its_side(small_recipes):
    succeed("train", "vae", "--data", "scenes", "--size", SIDE, "--out", "essai", "--steps", 1)
    again = ("train", "vae", "--data", "scenes", "--init", "essai", "--out", "autre")
    assert "ajouter --size 16" in fail(*again, "--size", 32)


@pytest.mark.parametrize("name", ["dalle", "dalle-mini", "dalle_mini"])
def test_train_transformer_on_a_folder_then_generate(small_recipes, model, name):
    succeed("data", "export", "scenes", "paires", "-n", 6, "--size", SIDE)
    weights = model / "vqvae.safetensors"
    result = succeed("train", name, "--data", "paires", "--out", "essai", "--size", SIDE, "--vqvae", weights)
    assert openmoji.CREDIT not in result.stdout and "écart Δ" in result.stdout
    assert f"Modèle : {name.replace('_', '-')}, " in result.stdout and english(result.stdout) == set()
    assert ("perte du texte" in result.stdout) == (name == "dalle")
    moved = Path("essai").rename("ailleurs")
    result = succeed(
        "generate", CaptionedImages.from_folder("paires")[0][1][0], "--model", moved, "-o", "a.png"
    )
    assert result.stderr == ""  # le vocabulaire est celui du dossier
    # Partir de ces poids, c'est aussi garder leur vocabulaire et leur VQ-VAE.
    again = ("train", name, "--data", "scenes", "--init", moved, "--out")
    succeed(*again, "suite", "--size", SIDE, "--steps", 1)
    for file in ("tokenizer.json", "vqvae.safetensors"):
        assert Path("suite", file).read_bytes() == Path("ailleurs", file).read_bytes()
    assert "--size 16" in fail(*again, "x")
    other = "dalle" if name != "dalle" else "dalle-mini"
    assert "il faut un" in fail("train", other, "--data", "scenes", "--init", moved, "--out", "x")


@pytest.mark.parametrize("data", ["scenes", "paires"])
def test_train_clip_then_start_from_it(small_recipes, data):
    succeed("data", "export", "scenes", "paires", "-n", 6, "--size", SIDE)
    training = ("train", "clip", "--data", data, "--out")
    result = succeed(*training, "essai", "--size", SIDE)
    assert "légendes retrouvées : " in result.stdout and english(result.stdout) == set()
    # L'examen porte sur le monde du livre : un dossier n'en est pas.
    assert ("couleurs justes : " in result.stdout) == (data == "scenes")
    bare, notes = load_model("essai", "clip")
    assert notes["tokenizer"] == Tokenizer.load("essai/tokenizer.json").to_json()
    # Sur d'autres légendes, les mots gardent leurs numéros.
    other = "paires" if data == "scenes" else "scenes"
    options = ("--size", SIDE, "--init", "essai", "--steps", 1)
    succeed("train", "clip", "--data", other, "--out", "suite", *options)
    assert Path("suite/tokenizer.json").read_bytes() == Path("essai/tokenizer.json").read_bytes()
    assert "ajouter --size 16" in fail(*training, "x", "--init", "essai")
    save_model("nu.safetensors", bare)
    assert "perdu son vocabulaire" in fail(*training, "x", "--size", SIDE, "--init", "nu.safetensors")


def test_each_model_gets_the_captions_that_suit_it():
    def source(model, data):
        return cli_train._source({"model": model, "data": data, "size": SIDE}, "test")

    assert source("vqvae", "scenes") == Scenes("test", SIDE)
    assert source("clip", "scenes") == Scenes("test", SIDE, recipes.CLIP_CAPTION)
    texts = recipes.drawing_source(SIDE, "test").captions(np.random.default_rng(0), 20)
    for model in recipes.GENERATORS:
        drawn, (first, second) = source(model, "scenes"), source(model, "scenes+openmoji").sources
        for scenes in (drawn, first):
            assert scenes.captions(np.random.default_rng(0), 20) == texts
        assert isinstance(second, Emojis)
    assert isinstance(source("clip", "scenes+openmoji"), Mixture)
    assert isinstance(source("clip", "openmoji"), Emojis)


def test_any_tokens_will_do(small_recipes):
    succeed("train", "dvae", "--data", "scenes", "--size", SIDE, "--out", "yeux", "--steps", 1)
    training = ("train", "dalle-mini", "--data", "scenes", "--size", SIDE, "--steps", 1, "--out")
    succeed(*training, "essai", "--vqvae", "yeux")
    succeed("train", "--out", "essai", "--resume", "--steps", 2)
    assert load_model("essai/vqvae.safetensors")[1]["model"] == "dvae"
    succeed("train", "vae", "--data", "scenes", "--size", SIDE, "--out", "flou", "--steps", 1)
    assert "choisir un « vqvae »" in fail(*training, "x", "--vqvae", "flou")


def test_optimiser_and_compilation_are_chosen(small_recipes, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda loss: asked.append(loss) or loss)
    monkeypatch.setattr("minidalle.training.shutil.which", str)
    muon = (*VQVAE_ON_SCENES, "--out", "essai", "--optimizer", "muon", "--steps")
    succeed(*muon, 1)
    assert json.loads(Path("essai/train.json").read_text(encoding="utf-8"))["training"]["optimizer"] == "muon"
    succeed(*muon, 2, "--resume", "--compiled")
    assert len(asked) == 1
    succeed(*muon, 3, "--resume", "--no-compiled")
    assert len(asked) == 1
    assert "« optimizer » valait muon" in fail("train", "--out", "essai", "--resume", "--optimizer", "adamw")


def test_only_the_first_process_speaks_and_writes(small_recipes, monkeypatch):
    class Second(processes.Alone):
        count, first = 2, False

    for module in ("processes", "training"):
        monkeypatch.setattr(f"minidalle.{module}.join", Second)
    result = succeed("train", "clip", "--data", "scenes", "--size", SIDE, "--out", "essai", "--steps", 1)
    assert result.stdout == "" and not Path("essai").exists()
    assert "un seul processus" in fail(*VQVAE_ON_SCENES, "--out", "essai")


def test_train_goes_on_without_bad_images_when_asked(small_recipes):
    succeed("data", "export", "scenes", "paires", "-n", 6, "--size", SIDE)
    Path("paires/00002.png").write_bytes(b"abc")
    training = ("train", "vqvae", "--data", "paires", "--size", SIDE, "--steps", 1, "--out")
    refused = run(*training, "essai", "--bad-images", "list")
    assert refused.exit_code == 2 and "1 sur 6" in refused.stderr and "00002.png" in refused.stderr
    result = succeed(*training, "essai", "--bad-images", "skip")
    assert result.stderr.count("Image écartée : ") == 1 and "00002.png" in result.stderr
    assert "00002.png" in succeed("train", "--out", "essai", "--resume", "--steps", 2).stderr


def test_init_starts_from_given_weights(small_recipes, model, monkeypatch):
    started = []

    def spy(network, *args, **options):
        started.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr("minidalle.training.train", spy)
    run(*VQVAE_ON_SCENES, "--out", "a", "--init", model / "vqvae.safetensors")
    run("train", "dalle", "--data", "scenes", "--size", SIDE, "--out", "b", "--init", model)
    for weights, name in zip(started, ("vqvae", "model"), strict=True):
        expected = load_file(model / f"{name}.safetensors")
        assert weights.keys() == expected.keys()
        assert all((weights[key] == expected[key]).all() for key in expected)


@pytest.mark.parametrize("kind", ["vqvae", "dalle", "dalle-mini", "clip"])
def test_interrupted_training_resumes_bit_for_bit_with_nothing_said_again(
    small_recipes, model, monkeypatch, kind
):
    start = ["train", kind, "--data", "scenes", "--size", SIDE, "--seed", 5]
    start += ["--vqvae", model / "vqvae.safetensors"] if "dalle" in kind else []
    succeed(*start, "--out", "entier")

    name = {"vqvae": "image_batches", "clip": "clip_batches"}.get(kind, "token_batches")
    make = getattr(recipes, name)

    def interrupted(*args, **options):
        batches, calls = make(*args, **options), iter(range(10))

        def batch(rng, n):
            if next(calls) == 1:
                signal.raise_signal(signal.SIGINT)
            return batches(rng, n)

        return batch

    with monkeypatch.context() as patch:
        patch.setattr(recipes, name, interrupted)
        result = run(*start, "--out", "coupe")
    assert result.exit_code == 130
    assert "Interrompu au pas 2" in result.output and "--resume" in result.output
    assert not Path("coupe/model.safetensors").exists()

    succeed("train", "--out", "coupe", "--resume")
    assert Path("coupe/model.safetensors").read_bytes() == Path("entier/model.safetensors").read_bytes()


def test_resume_accepts_another_budget_and_the_same_options(small_recipes):
    succeed(*VQVAE_ON_SCENES, "--out", "essai", "--steps", 2)
    assert "Après 3 pas" in succeed(*VQVAE_ON_SCENES, "--out", "essai", "--resume", "--steps", 3).stdout
    assert json.loads(Path("essai/train.json").read_text(encoding="utf-8"))["training"]["steps"] == 3
    assert "Après 3 pas" in succeed("train", "--out", "essai", "--resume").stdout
    assert "Budget : 0,001 min" in succeed("train", "--out", "essai", "--resume", "--minutes", 0.001).stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["vqvae", "--data", "openmoji", "--out", "essai", "--resume"],
            "« data » valait scenes, pas openmoji",
        ),
        (["dalle", "--out", "essai", "--resume"], "« model » valait vqvae"),
        (["--out", "essai", "--resume", "--seed", 1], "« seed » valait 0, pas 1"),
        (["--out", "essai", "--resume", "--precision", "bfloat16"], "« precision » valait rien"),
        (["--out", "absent", "--resume"], "Rien à reprendre"),
        (["--out", "abime", "--resume"], "abîmé"),
        (["vqvae", "--data", "scenes", "--out", "essai"], "--resume"),
    ],
)
def test_resume_refuses_to_mix_trainings(small_recipes, args, expected):
    succeed(*VQVAE_ON_SCENES, "--out", "essai", "--steps", 1)
    Path("abime").mkdir()
    Path("abime/train.json").write_text("{")
    assert expected in fail("train", *args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data", "scenes"], "Il faut un modèle"),
        (["vqvae"], "Il faut un modèle"),
        (["gan", "--data", "scenes"], "« gan » : modèle inconnu"),
        (["vqvae", "--data", "absent"], "/absent » inconnue"),
        (["vqvae", "--data", "scenes", "--preset", "maxi"], "préréglage inconnu"),
        (["vqvae", "--data", "scenes", "--minutes", 1, "--steps", 1], "Deux budgets"),
        (["vqvae", "--data", "scenes", "--minutes", 0], "nombre positif"),
        (["vqvae", "--data", "scenes", "--minutes", "nan"], "nombre positif"),
        (["vqvae", "--data", "scenes", "--steps", 0], "nombre positif"),
        (["vqvae", "--data", "scenes", "--seed", -2], "pas -2"),
        (["vqvae", "--data", "scenes", "--size", 30], "multiple de 4"),
        (["vqvae", "--data", "scenes", "--precision", "float8"], "Précision « float8 » inconnue"),
        (["vqvae", "--data", "scenes", "--init", "absent"], "« absent » introuvable"),
        (["vqvae", "--data", "vide"], "aucune image légendée"),
        (["dalle", "--data", "vide", "--init", "MODELE", "--size", SIDE], "aucune image légendée"),
        (["vqvae", "--data", "scenes", "--vqvae", "MODELE/vqvae.safetensors"], "transformeur neuf"),
        (["dalle", "--data", "scenes", "--vqvae", "fichier"], "safetensors"),
        (["dalle-mini", "--data", "scenes", "--vqvae", "absent"], "« absent » introuvable"),
        (["clip", "--data", "scenes", "--vqvae", "MODELE/vqvae.safetensors"], "transformeur neuf"),
        (["clip", "--data", "scenes", "--size", 20], "multiple de 8"),
        (["clip", "--data", "scenes", "--init", "MODELE"], "il faut un « clip »"),
        (["vqvae", "--data", "scenes", "--optimizer", "sgd"], "Optimiseur « sgd » inconnu"),
    ],
)
def test_train_refuses_what_is_impossible(small_recipes, model, args, expected):
    Path("fichier").write_bytes(b"")
    Path("vide").mkdir()
    args = [str(arg).replace("MODELE", str(model)) for arg in args]
    assert expected in fail("train", *args, "--out", "essai")


def test_train_refuses_an_impossible_folder(small_recipes):
    Path("fichier").write_bytes(b"")
    assert "un fichier occupe la place d'un dossier" in fail(*VQVAE_ON_SCENES, "--out", "fichier/essai")


def test_a_generator_learns_from_its_own_drawings(small_recipes, model):
    asked = ("train", "dalle", "--size", SIDE, "--preset", "recompense")
    learned = succeed(*asked, "--data", "scenes", "--init", model, "--out", "essai")
    assert "Budget : 2 pas, par lots de 32" in learned.stdout
    assert "dessins justes, paire jamais vue : " in learned.stdout and english(learned.stdout) == set()
    before, after = (load_model(path)[0].state_dict() for path in (model, "essai"))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    succeed("train", "--out", "essai", "--resume", "--steps", 3)
    succeed("generate", "un carré bleu", "--model", "essai", "-o", "carre.png")
    for options in (("--data", "openmoji", "--init", model), ("--data", "scenes")):
        assert "ajouter --data scenes --init scenes" in fail(*asked, *options, "--out", "refus")
