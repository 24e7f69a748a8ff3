"""La ligne de commande : ce qu'elle écrit, et ce qu'elle dit quand elle ne peut pas."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import SIDE, english, fail, run, snapshot, succeed, tiny_model
from PIL import Image
from typer.main import get_command

from minidalle import __version__, cli, recipes
from minidalle.checkpoints import load_model
from minidalle.cli import app
from minidalle.data import openmoji, tuxpaint
from minidalle.data.captioned import CaptionedImages

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Dossier d'un modèle minuscule, non entraîné, qui dessine des images toutes différentes."""
    return tiny_model(tmp_path_factory.mktemp("modele"))


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
    assert re.search(r"\nArguments\n  DESCRIPTION +Ce qu'il faut dessiner, en français", generate)
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
