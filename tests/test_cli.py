"""La ligne de commande : ce qu'elle écrit, et ce qu'elle dit quand elle ne peut pas."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.main import get_command
from typer.testing import CliRunner

from minidalle import __version__, cli, recipes
from minidalle.checkpoints import WEIGHTS, load_model, save_model
from minidalle.cli import app
from minidalle.data import openmoji, tuxpaint
from minidalle.data.captioned import CaptionedImages
from minidalle.generation import TextToImage
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.vqvae import VQVAE, VQVAEConfig
from minidalle.text import Tokenizer
from minidalle.training import TrainingConfig

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
SIDE = 16
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
    "dalle": {"width": 16, "layers": 1, "heads": 2, "text_length": 12},
}
# Mots que Typer, Click ou le système mettraient, et que le français n'a pas.
ENGLISH = re.compile(
    r"\b(?:the|this|and|exit|required|missing|invalid|no|such|got|unexpected|try|help|file|directory|not|is|value|"
    r"default|aborted|error|integer|int|float|text|path|range|choose|from|denied|did|you|mean)\b",
    re.IGNORECASE,
)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Dossier d'un modèle minuscule, non entraîné, qui dessine des images toutes différentes."""
    folder = tmp_path_factory.mktemp("modele")
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(**SIZES["vqvae"]))
    with torch.no_grad():
        vqvae.quantizer.codebook.mul_(30)
    tokenizer = Tokenizer.train(["un mouton à gauche d'un carré bleu", "trois pommes rouges"], 100)
    shared = {"text_vocabulary": len(tokenizer), "image_vocabulary": 16, "grid": (4, 4)}
    transformer = DALLE(DALLEConfig(**shared | SIZES["dalle"]))
    save_model(folder / "vqvae.safetensors", vqvae, size=str(SIDE))
    save_model(folder / "model.safetensors", transformer, tokenizer=tokenizer.to_json(), vqvae="vqvae")
    return folder


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="minidalle")


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def fail(*args):
    """Le message d'une commande qui doit échouer : une phrase, le code 2, rien d'écrit."""
    before = snapshot()
    result = run(*args)
    assert result.exit_code == 2, result.output
    message = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"Erreur : [^a-zé].*\.", message)
    assert "Traceback" not in result.output
    assert english(message) == set()
    assert snapshot() == before
    return message


def snapshot():
    return {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}


def english(text):
    """Mots anglais d'un texte, noms d'options et de commandes mis à part."""
    text = re.sub(r"--?[a-z-]+|«[^»]*»", " ", text)
    return set(ENGLISH.findall(text))


def commands(command=None, path=()):
    """Chaque commande et groupe, par son chemin."""
    command = command or get_command(app)
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def texts(path):
    with Image.open(path) as image:
        return dict(image.text)


# --- aide -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path for path, _ in commands()], ids=lambda path: " ".join(path) or "racine"
)
def test_help_is_french_and_ends_with_an_example(path):
    text = succeed(*path, "--help").stdout
    assert english(text) == set()
    assert text.startswith(f"Usage : {' '.join(['minidalle', *path])} [OPTIONS]")
    assert "\nOptions\n" in text and "Afficher ce message et quitter." in text
    assert re.search(r"\n\nExemples? : minidalle .*\n( +minidalle .*\n)*$", text)
    assert succeed(*path, "-h").stdout == text


def test_help_shows_arguments_commands_defaults_and_what_is_required():
    root, generate, train = (succeed(*path, "-h").stdout for path in ((), ("generate",), ("train",)))
    assert re.search(r"\nCommandes\n  generate +Dessiner", root)
    assert re.search(
        r"\nArguments\n  DESCRIPTION +Ce qu'il faut dessiner, en français\. \[obligatoire\]", generate
    )
    assert re.search(r"--seed ENTIER .*\n?.*\[défaut : 0\]", generate)
    assert re.search(r"--out DOSSIER .*\n +\[obligatoire\]", train)
    assert "[MODÈLE]" in train and "[défaut : False]" not in train


def test_every_parameter_is_described():
    for _, command in commands():
        for param in command.params:
            assert param.help, param.name
            assert param.metavar or param.is_flag, param.name


@pytest.mark.parametrize("path", [[], ["data"]])
def test_a_group_alone_shows_its_help(path):
    assert succeed(*path).stdout == succeed(*path, "--help").stdout


def test_version():
    assert succeed("--version").stdout == f"minidalle {__version__}\n"
    command = [sys.executable, "-m", "minidalle", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == f"minidalle {__version__}\n"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["generat", "x"], "« generat » ; essayer « generate »"),
        (["data", "xyz"], "choisir parmi list, show, export"),
        (["generate"], "manque « DESCRIPTION »"),
        (["generate", "un", "mouton"], "entre guillemets"),
        (["generate", "x", "--sed", "3"], "« --sed » ; essayer « --seed »"),
        (["generate", "x", "--zzzzzz"], "« --zzzzzz » ; voir « minidalle generate --help »"),
        (["generate", "x", "-n"], "manque une valeur après l'option « -n »"),
        (["generate", "x", "-n", "deux"], "Valeur impossible pour « -n ENTIER »"),
        (["generate", "x", "--top-p", "beaucoup"], "Valeur impossible pour « --top-p P »"),
        (["train", "--resume=oui"], "« --resume » ne prend pas de valeur"),
        (["train", "vqvae"], "manque « --out DOSSIER »"),
        (["--zut"], "« --zut » ; voir « minidalle --help »"),
    ],
)
def test_misspelt_commands(args, expected):
    assert expected in fail(*args)


# --- generate -------------------------------------------------------------------------------------


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
    # L'arrondi peut dépendre de la taille du lot, d'un niveau de gris au plus.
    assert abs(pixels(paths[1]).astype(int) - pixels("seule.png")).max() <= 1


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
    ],
)
def test_generate_refuses_what_is_impossible(model, args, expected):
    Path("fichier").write_bytes(b"")
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
    assert "dalle" in fail("generate", "un mouton", "--model", model / "vqvae.safetensors")
    assert "vqvae" in fail("tokens", "texte.safetensors", "--model", model)


def test_a_system_refusal_is_one_sentence(model, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", "/un/fichier")

    monkeypatch.setattr(TextToImage, "draw", refuse)
    message = fail("generate", "un mouton", "--model", model)
    assert "« /un/fichier » (accès refusé)" in message


def test_ctrl_c_is_one_sentence(model, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(TextToImage, "draw", interrupt)
    result = run("generate", "un mouton", "--model", model)
    assert (result.exit_code, result.stdout) == (130, "")
    assert re.fullmatch(r"Interrompu : .*\.\n", result.stderr)
    assert snapshot() == {}


def test_a_bug_keeps_its_traceback(model, monkeypatch):
    monkeypatch.setattr(TextToImage, "draw", lambda *args, **options: 1 / 0)
    assert isinstance(run("generate", "un mouton", "--model", model).exception, ZeroDivisionError)


def test_cold_generate_loads_only_what_it_needs_and_repeats_itself(model):
    code = """if True:
        import sys
        from minidalle.cli import main
        assert "torch" not in sys.modules and "numpy" not in sys.modules
        try:
            main()
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


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_prints_the_grid_and_writes_both_images(model):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save("photo.png")
    weights = model / "vqvae.safetensors"
    lines = succeed(
        "tokens", "photo.png", "--model", weights, "-o", "ab.png", "--zoom", 2
    ).stdout.splitlines()
    pair = pixels("ab.png")[::2, ::2]
    assert pair.shape == (SIDE, 2 * SIDE + 2, 3)
    original, copy = pair[:, :SIDE], pair[:, SIDE + 2 :]
    grid = recipes.encode(load_model(weights)[0], original[None])[0]
    assert [[int(token) for token in line.split()] for line in lines[:4]] == grid.tolist()
    assert len({len(line) for line in lines[:4]}) == 1
    assert f"distincts : {len(grid.unique())} sur 16, dans un dictionnaire de 16 codes" in lines[4]
    psnr = 10 * np.log10(255**2 / np.mean((original.astype(float) - copy) ** 2))
    shown = re.search(r"PSNR de la reconstruction : (.*) dB", lines[5])[1]
    assert float(shown.replace(",", ".")) == pytest.approx(psnr, rel=1e-3)
    assert lines[6] == "ab.png"


@pytest.mark.parametrize(
    ("image", "output", "expected"),
    [
        ("absente.png", "a.png", "introuvable"),
        ("texte.png", "a.png", "aucun format connu"),
        ("tronquee.png", "a.png", "tronquée"),
        ("bonne.png", "dossier", "finit par .png"),
    ],
)
def test_tokens_refuses_bad_images(model, image, output, expected):
    Image.new("RGB", (50, 50), "red").save("bonne.png")
    Path("tronquee.png").write_bytes(Path("bonne.png").read_bytes()[:60])
    Path("texte.png").write_text("rien")
    assert expected in fail("tokens", image, "--model", model / "vqvae.safetensors", "-o", output)


def test_tokens_reads_images_of_every_kind(model):
    """Un même damier sous toutes ses formes : mêmes jetons, qu'il soit transparent, gris ou retourné."""
    side = np.indices((SIDE, SIDE)).sum(0) // 4 % 2
    grey = Image.fromarray((side * 255).astype(np.uint8))
    grey.save("gris.png")
    grey.convert("RGB").save("rvb.tif")
    grey.convert("CMYK").save("cmjn.tif")
    Image.fromarray((side * 65535).astype(np.uint16)).save("16bits.png")
    alpha = Image.new("RGBA", (SIDE, SIDE), "black")
    alpha.putalpha(Image.fromarray(((1 - side) * 255).astype(np.uint8)))
    alpha.save("transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 8  # à redresser d'un quart de tour
    grey.transpose(Image.Transpose.ROTATE_270).save("tourne.png", exif=exif)
    weights = model / "vqvae.safetensors"
    names = ("gris.png", "rvb.tif", "cmjn.tif", "16bits.png", "transparent.png", "tourne.png")
    outputs = {name: succeed("tokens", name, "--model", weights).stdout for name in names}
    assert len(set(outputs.values())) == 1, outputs
    Image.new("RGB", (1, 1), "blue").save("point.png")
    assert len(succeed("tokens", "point.png", "--model", weights).stdout.splitlines()) == 4 + 2


def test_tokens_refuses_a_model_that_reads_no_image(model):
    Image.new("RGB", (50, 50), "red").save("bonne.png")
    assert "choisir un auto-encodeur" in fail("tokens", "bonne.png", "--model", model / "model.safetensors")


# --- data -----------------------------------------------------------------------------------------


@pytest.fixture
def few_emojis(monkeypatch):
    """Un catalogue de quarante émojis : les dessiner tous prend des secondes."""
    catalogue = openmoji.catalogue()[:40]
    monkeypatch.setattr(openmoji, "catalogue", lambda **options: catalogue)
    return catalogue


def test_data_list_counts_and_credits():
    text = succeed("data", "list").stdout
    emojis = [openmoji.split_of(emoji) for emoji in openmoji.catalogue()]
    assert re.search(r"^scenes .* 8 formes en 8 couleurs et 24 émojis$", text, re.MULTILINE)
    assert f"{emojis.count('train'):_}".replace("_", "\u202f") in text
    assert f"{emojis.count('test')} autres" in text
    assert text.count(openmoji.CREDIT) == 1


@pytest.mark.parametrize("source", ["scenes", "openmoji"])
def test_data_show_draws_a_sheet_and_prints_its_captions(few_emojis, source):
    out = succeed("data", "show", source, "-n", 5, "--size", 24, "--seed", 2).stdout
    path = Path(f"planche-{source}.png")
    captions = re.findall(r"^ +\d+  (.+)$", out, re.MULTILINE)
    assert len(captions) == 5 and openmoji.CREDIT in out and f"\n{path}\n" in out
    assert pixels(path).shape == (2 * 26 - 2, 3 * 26 - 2, 3)
    if source == "openmoji":
        assert set(captions) <= {emoji.name for emoji in few_emojis} and len(set(captions)) == 5
        for i, name in enumerate(captions):
            y, x = i // 3 * 26, i % 3 * 26
            emoji = openmoji.on_background(openmoji.render(name, 24))
            assert (pixels(path)[y : y + 24, x : x + 24] == emoji).all()


@pytest.mark.parametrize("source", ["scenes", "openmoji"])
def test_exported_pairs_read_back_and_show_the_same(few_emojis, source):
    succeed("data", "export", source, "paires", "-n", 4, "--seed", 1, "--size", 32)
    pairs = CaptionedImages.from_folder("paires")
    assert len(pairs) == 4
    shown = succeed("data", "show", source, "-n", 9, "--seed", 1, "--size", 32, "-o", "planche.png").stdout
    captions = re.findall(r"^ +\d+  (.+)$", shown, re.MULTILINE)
    for i in range(4):
        image, caption = pairs[i]
        assert caption == [captions[i]]
        assert (image == pixels("planche.png")[i // 3 * 34 :, i % 3 * 34 :][:32, :32]).all()
    origin = Path("paires/CREDIT.txt").read_text(encoding="utf-8")
    assert origin.startswith(openmoji.CREDIT) and source in origin and "graine 1" in origin
    for other in (["--seed", 2], ["--size", 16], ["--split", "test"]):
        arguments = ["export", source, "paires", "-n", 4, "--seed", 1, "--size", 32, *other]
        assert "contient un autre export" in fail("data", *arguments)
    again = snapshot()
    succeed("data", "export", source, "paires", "-n", 4, "--seed", 1, "--size", 32)
    assert snapshot() == again
    own = succeed("data", "show", "paires", "-n", 2).stdout
    assert openmoji.CREDIT not in own and Path("planche-paires.png").exists()


def test_export_gives_no_more_emojis_than_there_are(few_emojis):
    count = sum(openmoji.split_of(emoji) == "train" for emoji in few_emojis)
    assert (
        f"« tous » : {count}." in succeed("data", "export", "openmoji", "tous", "-n", 100, "--size", 8).stdout
    )
    names = [caption for captions in CaptionedImages.from_folder("tous").captions for caption in captions]
    assert sorted(names) == sorted(e.name for e in few_emojis if openmoji.split_of(e) == "train")


def test_an_interrupted_export_has_no_image_without_caption(monkeypatch):
    def broken(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", broken)
    assert run("data", "export", "scenes", "d", "-n", 2).exit_code == 130
    assert sorted(path.name for path in Path("d").iterdir()) == ["00000.txt", "CREDIT.txt"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["show", "absent"], "Source « absent » inconnue"),
        (["show", "vide"], "aucune image légendée"),
        (["show", "scenes", "--split", "val"], "« val »"),
        (["show", "scenes", "-n", 0], "pas 0"),
        (["show", "scenes", "--size", 0], "pas 0"),
        (["show", "scenes", "-o", "x.gif"], "finit par .png"),
        (["export", "vide", "d"], "ne s'exporte pas"),
        (["export", "scenes", "plein"], "contient déjà « notes.md »"),
        (["export", "scenes", "long", "-n", 2], "contient déjà « 00002.txt »"),
        (["export", "scenes", "fichier/d"], "Impossible d'écrire"),
        (["export", "scenes", "fichier"], "Impossible d'écrire"),
        (["export", "scenes", "d", "-n", -3], "pas -3"),
        (["export", "scenes", "d", "--size", 4], "au moins 16"),
    ],
)
def test_data_refuses_what_is_impossible(args, expected):
    for folder in ("vide", "plein", "long"):
        Path(folder).mkdir()
    Path("plein/notes.md").write_text("à garder")
    Path("long/00002.txt").write_text("d'un export plus long")
    Path("fichier").write_bytes(b"")
    assert expected in fail("data", *args)


def test_data_show_draws_the_stamps_of_tux_paint(monkeypatch):
    stamps = Path("tampons")
    stamps.mkdir()
    Image.new("RGB", (20, 10), "red").save(stamps / "pomme.png")
    (stamps / "pomme.txt").write_text("An apple.\nfr.utf8=Une pomme rouge.\n", encoding="utf-8")
    monkeypatch.setattr(tuxpaint.read_stamps, "__defaults__", (None, stamps))
    result = succeed("data", "show", "tuxpaint", "--size", SIDE)
    assert "Une pomme rouge." in result.stdout and tuxpaint.CREDIT in result.stdout
    assert Image.open("planche-tuxpaint.png").size == (SIDE, SIDE)


# --- train ----------------------------------------------------------------------------------------


@pytest.fixture
def small_recipes(monkeypatch):
    """Préréglages de quelques pas, vocabulaire de quelques légendes, mesures de quelques images."""
    for name, sizes in SIZES.items():
        config = TrainingConfig(steps=4, batch_size=4, warmup=1, log_every=1, save_every=1, evaluate_every=2)
        monkeypatch.setitem(recipes.PRESETS[name], "mini", recipes.Preset(sizes, config, "minuscule"))
    for name, options in {
        "build_tokenizer": {"captions": 500},
        "measure_images": {"n": 8},
        "measure_dalle": {"n": 8},
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


def test_train_transformer_on_a_folder_then_generate(small_recipes, model):
    succeed("data", "export", "scenes", "paires", "-n", 6, "--size", SIDE)
    weights = model / "vqvae.safetensors"
    result = succeed(
        "train", "dalle", "--data", "paires", "--out", "essai", "--size", SIDE, "--vqvae", weights
    )
    assert openmoji.CREDIT not in result.stdout and "écart Δ" in result.stdout
    moved = Path("essai").rename("ailleurs")
    result = succeed(
        "generate", CaptionedImages.from_folder("paires")[0][1][0], "--model", moved, "-o", "a.png"
    )
    assert result.stderr == ""  # le vocabulaire est celui du dossier
    # Partir de ces poids, c'est aussi garder leur vocabulaire et leur VQ-VAE.
    succeed(
        "train",
        "dalle",
        "--data",
        "scenes",
        "--out",
        "suite",
        "--size",
        SIDE,
        "--init",
        moved,
        "--steps",
        1,
    )
    assert Path("suite/tokenizer.json").read_bytes() == Path("ailleurs/tokenizer.json").read_bytes()
    assert "--size 16" in fail("train", "dalle", "--data", "scenes", "--out", "x", "--init", moved)


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


@pytest.mark.parametrize("kind", ["vqvae", "dalle"])
def test_interrupted_training_resumes_bit_for_bit_with_nothing_said_again(
    small_recipes, model, monkeypatch, kind
):
    start = ["train", kind, "--data", "scenes", "--size", SIDE, "--seed", 5]
    start += ["--vqvae", model / "vqvae.safetensors"] if kind == "dalle" else []
    succeed(*start, "--out", "entier")

    name = "image_batches" if kind == "vqvae" else "token_batches"
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
        (["dalle", "--data", "scenes", "--vqvae", "absent"], "« absent » introuvable"),
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
