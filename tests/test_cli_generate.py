"""`minidalle generate` : ce qu'elle écrit, et ce qu'elle dit quand elle ne peut pas."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import SIDE, fail, run, snapshot, succeed, tiny_model
from PIL import Image
from typer.testing import CliRunner

from minidalle import __version__, cli, cli_generate
from minidalle.checkpoints import WEIGHTS, find_weights, load_model, save_model
from minidalle.cli import app
from minidalle.generation import TextToImage

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


class Judge:
    """Préfère les images claires."""

    size = SIDE

    def embed_images(self, images):
        return images.mean((1, 2, 3))[:, None] / 255

    def embed_texts(self, texts):
        return np.ones((len(texts), 1))


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setattr(cli_generate, "_judge", Judge)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Dossier d'un modèle minuscule, non entraîné, qui dessine des images toutes différentes."""
    return tiny_model(tmp_path_factory.mktemp("modele"))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def texts(path):
    with Image.open(path) as image:
        return dict(image.text)


def test_generate_writes_an_enlarged_image_that_says_how_it_was_made(model):
    result = succeed(
        "generate", "Un mouton à gauche d’un carré bleu", "--model", model, "--seed", 3, "--top-k", 5
    )
    path = Path("un-mouton-a-gauche-dun-carre-bleu-3.png")
    assert result.stdout == f"{path}\n"
    assert pixels(path).shape == (4 * SIDE, 4 * SIDE, 3)
    expected = TextToImage.load(model).draw("un mouton à gauche d'un carré bleu", seed=3, top_k=5).images[0]
    assert (pixels(path)[::4, ::4] == expected).all()
    notes = texts(path)
    assert re.fullmatch(r"modele\d* [0-9a-f]{12}", notes.pop("Modele"))
    assert notes == {
        "Description": "Un mouton à gauche d’un carré bleu",
        "Graine": "3",
        "Reglages": "--temperature 1.0 --top-k 5 --zoom 4",
        "Software": f"minidalle {__version__}",
    }


def test_same_seed_same_bytes_other_seed_other_image(model):
    for name, seed in {"a.png": 0, "b.png": 0, "c.png": 1}.items():
        succeed("generate", "un mouton", "--model", model, "--seed", seed, "-o", name)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert (pixels("a.png") != pixels("c.png")).any()


def test_generate_draws_a_nearly_square_grid(model):
    succeed("generate", "un mouton", "--model", model, "-n", 3, "--zoom", 1, "-o", "grille.png")
    grid, step = pixels("grille.png"), SIDE + 2
    assert grid.shape == (2 * SIDE + 2, 2 * SIDE + 2, 3)
    assert texts("grille.png")["Graine"] == "0 à 2"
    images = TextToImage.load(model).draw("un mouton", n=3).images
    for (y, x), image in zip([(0, 0), (0, step), (step, 0)], images, strict=True):
        assert (grid[y : y + SIDE, x : x + SIDE] == image).all()
    assert (grid[SIDE:step] == 255).all() and (grid[:, SIDE:step] == 255).all()
    assert (grid[step:, step:] == 255).all()


@pytest.mark.parametrize("output", ["neuf", "neuf/", "a.b/", "existe.png"])
def test_generate_into_a_folder_writes_one_image_per_seed(model, output):
    Path("existe.png").mkdir()
    result = succeed("generate", "un mouton", "--model", model, "-n", 2, "--seed", 7, "-o", output)
    paths = [Path(output) / f"un-mouton-{seed}.png" for seed in (7, 8)]
    assert result.stdout.split() == [str(path) for path in paths]
    succeed("generate", "un mouton", "--model", model, "--seed", 8, "-o", "seule.png")
    assert texts(paths[1]) == texts("seule.png") and texts(paths[0])["Graine"] == "7"
    assert paths[1].read_bytes() == Path("seule.png").read_bytes()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Un cœur, à pois !", "un-coeur-a-pois-0.png"),
        ("🐑", "image-0.png"),
        ("un " * 3000, "-".join(["un"] * 20) + "-0.png"),
        ("../../un mouton", "un-mouton-0.png"),
        ("octet \udce9", "octet-0.png"),
    ],
)
def test_default_name_is_a_slug_of_the_prompt(model, prompt, name):
    assert succeed("generate", prompt, "--model", model).stdout == f"{name}\n"
    assert texts(name)["Description"] == prompt.replace("\udce9", "\ufffd")


def test_generate_reports_words_it_does_not_know_or_drops(model):
    result = succeed("generate", "un dragon bleu", "--model", model, "-o", "a.png")
    assert result.stderr == "Attention : ce modèle n'a jamais lu « dragon ».\n"
    result = succeed("generate", "bleu " * 23 + "carré", "--model", model, "-o", "a.png")
    cut = re.fullmatch(r"Attention : description trop longue, non lu : (.*)\.\n", result.stderr)[1]
    listed, more = cut.split(" et encore ")
    assert listed == ", ".join(["« bleu »"] * 10) and int(more) > 0
    assert succeed("generate", "un mouton", "--model", model, "-o", "a.png").stderr == ""


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-n", 0], "de 1 à 256, pas 0"),
        (["-n", 257], "de 1 à 256, pas 257"),
        (["--seed", -1], "pas -1"),
        (["--seed", 10**30], "pas 1000"),
        (["--temperature", 0], "Température impossible"),
        (["--temperature", "nan"], "Température impossible"),
        (["--top-k", 0], "Top-k impossible"),
        (["--top-p", 2], "Top-p impossible"),
        (["--zoom", 0], "« --zoom ENTIER » veut"),
        (["--model", "inconnu"], "Modèle « inconnu » introuvable"),
        (["-o", "x.jpg"], "finit par .png"),
        (["-o", "fichier/x.png"], r"un fichier occupe la place d'un dossier"),
        (["-o", "fichier/x/"], r"un fichier occupe la place d'un dossier"),
        (["-n", 256, "--zoom", 256], "démesurée"),
        (["--film", "a.gif", "-n", 256, "--zoom", 256], "démesuré"),
        (["--film", "a.png"], "finit par .gif"),
        (["--guidance", -1], "Guidage impossible"),
        (["--guidance", "nan"], "Guidage impossible"),
        (["--rerank", 0], "de 1 à 256, pas 0"),
        (["--rerank", 2, "-n", 3], "--rerank 2 ne suffit pas pour garder 3 images"),
        (["--complete", "absente.png"], "introuvable"),
        (["--complete", "fichier"], "aucun format connu"),
        (["--complete", "bonne.png", "--keep", 1], "Part gardée impossible"),
        (["--keep", 0.5], "ne va qu'avec --complete"),
        (["--memory", 1], "--memory 1 ne suffit pas : ce modèle veut"),
        (["--memory", 0], "« --memory MO » veut un nombre positif"),
        (["--prompts", "fichier"], "à la fois"),
    ],
)
def test_generate_refuses_what_is_impossible(model, args, expected):
    Path("fichier").write_bytes(b"")
    Image.new("RGB", (9, 9)).save("bonne.png")
    args = args if "--model" in args else [*args, "--model", model]
    assert expected in fail("generate", "un mouton", *args)


@pytest.mark.parametrize("prompt", ["", "   ", "\u202f"])
def test_empty_prompt(model, prompt):
    assert "Description vide" in fail("generate", prompt, "--model", model)


def test_unreadable_checkpoints(model):
    whole = (model / "model.safetensors").read_bytes()
    Path("tronque.safetensors").write_bytes(whole[:2000])
    Path("vide.safetensors").write_bytes(b"")
    Path("texte.safetensors").write_text("ceci n'est pas un modèle")
    Path("seul.safetensors").write_bytes(whole)
    for name in ("tronque", "vide", "texte"):
        assert "lisible" in fail("generate", "un mouton", "--model", f"{name}.safetensors")
    assert "vqvae" in fail("generate", "un mouton", "--model", "seul.safetensors")
    assert "il faut un « dalle »" in fail("generate", "un mouton", "--model", model / "vqvae.safetensors")


def test_a_system_refusal_is_one_sentence(model, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", "/un/fichier")

    monkeypatch.setattr(TextToImage, "draw_many", refuse)
    message = fail("generate", "un mouton", "--model", model)
    assert "« /un/fichier » (accès refusé)" in message


def test_ctrl_c_is_one_sentence(model, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(TextToImage, "draw_many", interrupt)
    result = run("generate", "un mouton", "--model", model)
    assert (result.exit_code, result.stdout) == (130, "")
    assert re.fullmatch(r"Interrompu : .*\.\n", result.stderr)
    assert snapshot() == {}


def test_a_bug_keeps_its_traceback(model, monkeypatch):
    monkeypatch.setattr(TextToImage, "draw_many", lambda *args, **options: 1 / 0)
    assert isinstance(run("generate", "un mouton", "--model", model).exception, ZeroDivisionError)


def test_cold_generate_loads_only_what_it_needs_and_repeats_itself(model):
    code = """if True:
        import sys
        from minidalle.cli import app
        assert "torch" not in sys.modules and "numpy" not in sys.modules
        try:
            app(prog_name="minidalle")
        finally:
            heavy = {"skimage", "pandas", "matplotlib", "torchvision", "transformers", "scipy", "rich"}
            print(sorted(heavy & sys.modules.keys()))
    """
    args = ["generate", "un mouton", "--model", str(model), "-o"]
    command = [sys.executable, "-c", code, *args, "froid.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == "froid.png\n[]\n"
    succeed(*args, "ici.png")
    assert Path("froid.png").read_bytes() == Path("ici.png").read_bytes()


@pytest.mark.skipif(not (WEIGHTS / "scenes.safetensors").exists(), reason="poids de référence absents")
def test_reference_weights_draw():
    succeed("generate", "un mouton à gauche d'un carré bleu", "-o", "mouton.png")
    assert pixels("mouton.png").std() > 1
    succeed("tokens", "mouton.png", "-o", "paire.png")


def test_a_file_that_its_card_does_not_describe_is_refused(model):
    for path in model.iterdir():
        Path(path.name).write_bytes(path.read_bytes())
    digest = hashlib.sha256(Path("model.safetensors").read_bytes()).hexdigest()
    Path("model.md").write_text(f"- **Empreinte** (sha256) : `{digest}`.\n", encoding="utf-8")
    succeed("generate", "un mouton", "--model", "model.safetensors", "-o", "a.png")
    whole = bytearray(Path("model.safetensors").read_bytes())
    whole[-5] ^= 1  # un bit de poids : rien d'autre ne le verrait
    for damaged in (whole, whole[:-100]):
        Path("model.safetensors").write_bytes(damaged)
        assert "n'a pas l'empreinte" in fail("generate", "un mouton", "--model", "model.safetensors")


def test_a_full_disk_leaves_nothing(model, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "disque plein" in fail("generate", "un mouton", "--model", model, "-o", "a.png")
    assert "disque plein" in fail("generate", "un mouton", "--model", model, "-o", "a.png", "--film", "a.gif")


def test_a_description_of_ten_thousand_characters(model):
    result = succeed("generate", "un mouton " * 1000, "--model", model, "-o", "a.png")
    assert "trop longue, non lu" in result.stderr and len(result.stderr) < 300


# --- guidage, choix, complétion -------------------------------------------------------------------


def test_guidance_is_passed_on_and_noted(model):
    succeed("generate", "un mouton", "--model", model, "--guidance", 3, "-o", "a.png", "--zoom", 1)
    expected = TextToImage.load(model).draw("un mouton", guidance=3).images[0]
    assert (pixels("a.png") == expected).all()
    assert texts("a.png")["Reglages"] == "--temperature 1.0 --guidance 3.0 --zoom 1"
    # À 1, le même fichier que sans lui.
    succeed("generate", "un mouton", "--model", model, "--guidance", 1, "-o", "un.png")
    succeed("generate", "un mouton", "--model", model, "-o", "rien.png")
    assert Path("un.png").read_bytes() == Path("rien.png").read_bytes()


def test_weights_may_advise_their_guidance(model):
    network, notes = load_model(model)
    advised = find_weights(model).with_name("conseil.safetensors")
    keep = {name: notes[name] for name in ("tokenizer", "vqvae")}
    save_model(advised, network, guidance="2.5", **keep)
    assert TextToImage.load(advised).guidance == 2.5
    succeed("generate", "un mouton", "--model", advised, "-o", "a.png")
    succeed("generate", "un mouton", "--model", advised, "--guidance", 2.5, "-o", "b.png")
    succeed("generate", "un mouton", "--model", advised, "--guidance", 1, "-o", "c.png")
    assert (pixels("a.png") == pixels("b.png")).all() and "--guidance 2.5" in texts("a.png")["Reglages"]
    assert "--guidance" not in texts("c.png")["Reglages"]
    save_model(advised, network, guidance="beaucoup", **keep)
    assert "guidage illisible" in fail("generate", "un mouton", "--model", advised, "-o", "d.png")


def test_rerank_keeps_the_best_and_tells_their_scores(model):
    images = TextToImage.load(model).draw("un mouton", 6, 10).images
    best = sorted(range(6), key=lambda i: -images[i].mean())[:2]
    options = ["--model", model, "--seed", 10, "-n", 2, "--rerank", 6, "--zoom", 1]
    told, *files = succeed("generate", "un mouton", *options, "-o", "choix/").stdout.splitlines()
    assert files == [f"choix/un-mouton-{10 + i}.png" for i in best]
    for i, path in zip(best, files, strict=True):
        assert (pixels(path) == images[i]).all()
        assert texts(path)["Graine"] == str(10 + i)
    assert told.startswith("Gardées sur 6") and f"graine {10 + best[0]}, 0," in told
    assert succeed("generate", "un mouton", *options).stdout.endswith("un-mouton-10-15-choix.png\n")
    assert texts("un-mouton-10-15-choix.png")["Graine"] == f"{10 + best[0]} {10 + best[1]}"


def test_complete_keeps_the_top(model):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save("photo.png")
    options = ["--model", model, "--complete", "photo.png", "--json"]
    painter = TextToImage.load(model)
    from minidalle.data.captioned import load_image

    kept = painter.draw("un mouton", complete=load_image("photo.png", SIDE)).tokens[0]
    for keep, rows in ((None, 2), (0.3, 1), (0.9, 3)):
        extra = [] if keep is None else ["--keep", keep]
        grid = json.loads(succeed("generate", "un mouton", *options, *extra, "-o", "a.png").stdout)["tokens"][
            0
        ]
        assert grid[: min(rows, 2)] == kept[: min(rows, 2)].tolist()
        assert re.search(
            rf"--complete photo.png [0-9a-f]{{12}} --keep {keep or 0.5} ", texts("a.png")["Reglages"]
        )


def test_film_ends_on_the_image(model):
    result = succeed("generate", "un mouton", "--model", model, "--film", "a.gif", "-o", "a.png", "--zoom", 2)
    assert result.stdout.split() == ["a.png", "a.gif"]
    with Image.open("a.gif") as film:
        assert film.size == (2 * SIDE, 2 * SIDE) and 10 < film.n_frames <= 17
        film.seek(film.n_frames - 1)
        last, duration = np.asarray(film.convert("RGB")).astype(int), film.info["duration"]
    assert duration == 2000
    assert abs(last - pixels("a.png")).mean() < 8  # un GIF n'a que 256 couleurs
    succeed("generate", "un mouton", "--model", model, "--film", "b.gif", "-o", "a.png", "--zoom", 2)
    assert Path("a.gif").read_bytes() == Path("b.gif").read_bytes()


def test_json_describes_everything(model):
    result = succeed("generate", "un dragon", "--model", model, "-n", 2, "--seed", 5, "--rerank", 3, "--json")
    report = json.loads(result.stdout)
    assert (report["prompt"], report["unknown"], report["dropped"]) == ("un dragon", ["dragon"], [])
    assert report["files"] == ["un-dragon-5-7-choix.png"] and Path(report["files"][0]).exists()
    drawing = TextToImage.load(model).draw("un dragon", 3, 5)
    assert report["tokens"] == [drawing.tokens[seed - 5].tolist() for seed in report["seeds"]]
    assert report["scores"] == sorted(report["scores"], reverse=True) and len(report["scores"]) == 2
    assert "--rerank 3 -n 2 --seed 5" in report["settings"]
    plain = json.loads(succeed("generate", "un mouton", "--model", model, "--json").stdout)
    assert (plain["scores"], plain["seeds"]) == (None, [0])


def test_memory_only_changes_the_size_of_batches(model, monkeypatch):
    succeed("generate", "un mouton", "--model", model, "-n", 5, "-o", "a.png")
    row = TextToImage.load(model).row_bytes()
    sizes = []
    whole = TextToImage.draw_many
    monkeypatch.setattr(cli_generate, "_resident", lambda: 5 * 10**6)
    monkeypatch.setattr(cli_generate, "_WORKSPACE", 4 * 10**6)
    monkeypatch.setattr(
        TextToImage,
        "draw_many",
        lambda self, *args, **options: sizes.append(options["batch"]) or whole(self, *args, **options),
    )
    options = ["--model", model, "-n", 5, "-o", "b.png", "--memory"]
    succeed("generate", "un mouton", *options, 9 + 2.5 * row / 1e6)
    assert sizes == [2]
    assert (pixels("a.png") == pixels("b.png")).all()
    assert "ce modèle veut 10 Mo" in fail("generate", "un mouton", *options, 9 + 0.5 * row / 1e6)


# --- un fichier de descriptions -------------------------------------------------------------------


def write_prompts():
    lines = "\ufeffun mouton\n\n  un carré bleu  \nUn mouton !\nun mouton\n"
    Path("descriptions.txt").write_text(lines, encoding="utf-8")


def test_prompts_draw_each_line_once(model):
    write_prompts()
    options = ["--model", model, "--prompts", "descriptions.txt", "-n", 2, "--zoom", 1]
    files = succeed("generate", *options).stdout.split()
    assert len(set(files)) == 6 and {str(Path(f).parent) for f in files} == {"descriptions"}
    painter = TextToImage.load(model)
    for i, prompt in enumerate(["un mouton", "un carré bleu", "Un mouton !"]):
        for seed in range(2):
            path = files[2 * i + seed]
            assert texts(path)["Description"] == prompt and texts(path)["Graine"] == str(seed)
            assert (pixels(path) == painter.draw(prompt, seed=seed).images[0]).all()
    before = snapshot()
    result = CliRunner().invoke(
        app, ["generate", *map(str, options), "--prompts", "-", "-o", "ici"], input="un mouton\n"
    )
    assert result.exit_code == 0 and len(result.stdout.split()) == 2
    assert (Path("ici") / Path(files[0]).name).read_bytes() == before[Path(files[0])]


@pytest.mark.parametrize("extra", [[], ["--rerank", 3]])
def test_prompts_resume_only_what_is_missing_damaged_or_set_otherwise(model, extra):
    write_prompts()
    options = ["--model", model, "--prompts", "descriptions.txt", *extra]
    files = [line for line in succeed("generate", *options).stdout.splitlines() if line.endswith(".png")]
    whole = snapshot()
    again = succeed("generate", *options)
    assert again.stdout == "" and "Déjà dessinées : 3 sur 3" in again.stderr
    Path(files[0]).unlink()
    damaged = bytearray(Path(files[1]).read_bytes())
    damaged[-14] ^= 1  # la somme de contrôle des pixels : l'image s'ouvre encore
    Path(files[1]).write_bytes(damaged)
    redone = succeed("generate", *options)
    assert [line for line in redone.stdout.splitlines() if line.endswith(".png")] == files[:2]
    assert snapshot() == whole
    assert len(succeed("generate", *options, "--top-k", 3).stdout.splitlines()) >= 3


def test_two_processes_in_one_folder_lose_nothing(model):
    write_prompts()
    command = [
        sys.executable,
        "-m",
        "minidalle",
        "generate",
        "--model",
        str(model),
        "-n",
        "2",
        "-o",
        "dessins",
    ]
    command += ["--prompts", "descriptions.txt"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    succeed(*command[3:-1], "descriptions.txt", "-o", "seul")
    for path in Path("seul").iterdir():
        assert (Path("dessins") / path.name).read_bytes() == path.read_bytes()
    assert len(list(Path("dessins").iterdir())) == 6


@pytest.mark.parametrize(
    ("content", "extra", "expected"),
    [
        (b"\n  \n", [], "aucune description"),
        (b"\xff\xfe\x00", [], "UTF-8"),
        (b"un mouton\n\xe2\x80\xaf \n" + b"mouton" * 50, [], "Ligne 3 : Le premier mot"),
        (b"un mouton", ["--film", "a.gif"], "ne filme qu'une description"),
    ],
)
def test_prompts_that_cannot_be_drawn(model, content, extra, expected):
    Path("d.txt").write_bytes(content)
    assert expected in fail("generate", "--prompts", "d.txt", "--model", model, *extra)


def test_prompts_absent(model):
    assert "« d.txt » (rien à cet endroit)" in fail("generate", "--prompts", "d.txt", "--model", model)
    assert "manque « DESCRIPTION »" in fail("generate")
