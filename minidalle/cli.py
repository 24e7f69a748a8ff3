"""La ligne de commande : dessiner, entraîner, regarder les jetons, parcourir les données.

PyTorch et les modules lourds ne sont chargés qu'à l'intérieur des commandes : l'aide s'affiche aussitôt, et
`generate` ne paie que ce qu'il emploie.
"""

import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from minidalle import __version__, cli_evaluate
from minidalle.errors import MinidalleError
from minidalle.files import atomic_write
from minidalle.typer_fr import (
    BAD_IMAGES_HELP,
    INTERRUPTED,
    PLAIN,
    Command,
    label,
    natural,
    number,
    progress_bar,
    quoted,
    tell_skipped,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from minidalle.data.sources import Source
    from minidalle.text import Tokenizer
    from minidalle.training import TrainingConfig

app = typer.Typer(**PLAIN)
data_app = typer.Typer(**PLAIN)
app.add_typer(data_app, name="data")
app.add_typer(cli_evaluate.app, name="evaluate")


def main() -> None:
    """Point d'entrée de la commande `minidalle`."""
    app(prog_name="minidalle")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"minidalle {__version__}")
        raise typer.Exit


@app.callback(epilog='Exemple : minidalle generate "un mouton à gauche d\'un carré bleu" -o mouton.png')
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Afficher la version.")
    ] = False,
) -> None:
    """Du texte à l'image : les modèles du livre « Dessine-moi un mouton à gauche d'un carré bleu »."""


# --- options communes -----------------------------------------------------------------------------


def _positive(param: typer.CallbackParam, value: float | None) -> float | None:
    # Écrit ainsi, « nan » est refusé aussi.
    if value is not None and not 0 < value < math.inf:
        raise MinidalleError(f"{label(param)} veut un nombre positif, pas {value}.")
    return value


def _few(param: typer.CallbackParam, value: int | None) -> int | None:
    if value is not None and not 1 <= value <= 256:
        raise MinidalleError(f"{label(param)} veut un nombre de 1 à 256, pas {value}.")
    return value


Number = Annotated[
    int, typer.Option("-n", metavar="ENTIER", callback=_few, help="Nombre d'images, de 1 à 256.")
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="ENTIER", callback=natural, help="Graine : la même redonne les mêmes images."
    ),
]
Size = Annotated[
    int, typer.Option("--size", metavar="PIXELS", callback=_few, help="Côté des images, de 1 à 256 pixels.")
]
Split = Annotated[
    str,
    typer.Option("--split", metavar="PART", help="« train », ou « test » pour ce qui est réservé au test."),
]
Zoom = Annotated[
    int,
    typer.Option(
        "--zoom", metavar="ENTIER", callback=_few, help="Agrandissement : pixels par pixel du modèle."
    ),
]
Output = Annotated[str | None, typer.Option("-o", "--output", metavar="FICHIER.png", help="Image à écrire.")]


# --- generate -------------------------------------------------------------------------------------


@app.command(
    cls=Command,
    epilog='Exemple : minidalle generate "trois pommes au-dessus d\'une maison" -n 9 --seed 4 -o pommes.png',
)
def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="DESCRIPTION", help="Ce qu'il faut dessiner, en français.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FICHIER|DOSSIER",
            show_default="un nom tiré de la description",
            help="Image à écrire, ou dossier où écrire une image par graine.",
        ),
    ] = None,
    n: Number = 1,
    seed: Seed = 0,
    model: Annotated[
        str,
        typer.Option("--model", metavar="CHEMIN|NOM", help="Poids : un fichier, un dossier, un nom livré."),
    ] = "scenes",
    temperature: Annotated[
        float,
        typer.Option("--temperature", metavar="T", help="Moins de 1 : plus sage ; plus de 1 : plus varié."),
    ] = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="K", help="Ne tirer que parmi les K jetons les plus probables."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", metavar="P", help="Ne tirer que dans le noyau de probabilité P."),
    ] = None,
    zoom: Zoom = 4,
) -> None:
    """Dessiner une description.

    Plusieurs images forment une grille, ou autant de fichiers si la sortie est un dossier. La même graine
    redonne le même fichier, octet pour octet ; l'image i d'une série a la graine de la première plus i.
    """
    from minidalle.checkpoints import find_weights
    from minidalle.generation import TextToImage
    from minidalle.sampling import check_sampling

    prompt = prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    folder = output is not None and (
        Path(output).is_dir() or not Path(output).suffix or output.endswith(os.sep)
    )
    if output == "":
        raise MinidalleError("Nom de sortie vide : donner un fichier .png ou un dossier après -o.")
    title, last = _slug(prompt), seed + n - 1
    path = Path(output) if folder else _png_path(output, f"{title}-{seed}" + (f"-{last}" if n > 1 else ""))
    check_sampling(temperature, top_k, top_p)
    weights = find_weights(model)
    painter = TextToImage.load(weights)
    with progress_bar("jetons", painter.transformer.config.image_length) as bar:
        drawing = painter.draw(
            prompt,
            n,
            seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            progress=lambda *_: bar.update(),
        )
    if drawing.unknown:
        typer.echo(f"Attention : ce modèle n'a jamais lu {quoted(drawing.unknown)}.", err=True)
    if drawing.dropped:
        typer.echo(f"Attention : description trop longue, non lu : {quoted(drawing.dropped)}.", err=True)

    settings = {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p, "--zoom": zoom}
    texts = {
        "Description": prompt,
        "Modele": f"{_model_name(weights)} {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}",
        "Reglages": " ".join(f"{name} {value}" for name, value in settings.items() if value is not None),
    }
    if folder:
        for i, image in enumerate(drawing.images, seed):
            _write_png(path / f"{title}-{i}.png", [image], zoom, Graine=str(i), **texts)
    else:
        seeds = str(seed) if n == 1 else f"{seed} à {last}"
        _write_png(path, drawing.images, zoom, Graine=seeds, **texts)


# --- train ----------------------------------------------------------------------------------------

_DEFAULTS = {"preset": "mini", "seed": 0, "size": 64, "vqvae": "scenes-vqvae", "bad_images": "fail"}
_MEASURES = {
    "loss": "perte",
    "reconstruction": "perte de reconstruction",
    "commitment": "engagement",
    "kl": "divergence KL (nats)",
    "perplexity": "perplexité",
    "psnr": "PSNR (dB)",
    "codes": "codes employés",
    "test_perplexity": "perplexité au test",
    "test_loss": "perte au test",
    "delta": "écart Δ entre mauvaise et bonne légende (nats)",
}


@app.command(
    cls=Command,
    epilog="Exemples : minidalle train vqvae --data scenes --out essai --minutes 5\n"
    "           minidalle train --out essai --resume",
)
def train(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DOSSIER", help="Où ranger poids, mesures et point de reprise."),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODÈLE",
            help="« autoencoder », « vae », « vqvae », « dvae », « vqgan », « dalle ».",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="« scenes », « openmoji », « scenes+openmoji », « tuxpaint » ou un dossier d'images légendées.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NOM",
            show_default=_DEFAULTS["preset"],
            help="« mini » (une minute) ou « reference » (les poids livrés).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continuer l'entraînement de ce dossier, sans rien redire d'autre."),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", metavar="DURÉE", callback=_positive, help="Budget en minutes, non reproductible."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="ENTIER",
            callback=_positive,
            show_default="selon le préréglage",
            help="Budget en pas d'optimisation.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="ENTIER",
            callback=natural,
            show_default=str(_DEFAULTS["seed"]),
            help="Graine des poids initiaux et de l'ordre des données.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PIXELS",
            callback=_few,
            show_default=str(_DEFAULTS["size"]),
            help="Côté des images.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="TYPE",
            show_default="selon le préréglage",
            help="« float32 », ou « bfloat16 », plus rapide si le processeur le connaît.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", metavar="CHEMIN|NOM", help="Partir de ces poids, non de poids tirés au hasard."
        ),
    ] = None,
    vqvae: Annotated[
        str | None,
        typer.Option(
            "--vqvae",
            metavar="CHEMIN|NOM",
            show_default=_DEFAULTS["vqvae"],
            help="Pour un transformeur : le VQ-VAE qui met les images en jetons.",
        ),
    ] = None,
    bad_images: Annotated[
        str | None,
        typer.Option(
            "--bad-images", metavar="CHOIX", show_default=_DEFAULTS["bad_images"], help=BAD_IMAGES_HELP
        ),
    ] = None,
) -> None:
    """Entraîner un modèle.

    Ctrl-C ne perd rien : avec --resume, l'entraînement reprend exactement où il en était.
    """
    from minidalle.checkpoints import save_model
    from minidalle.training import train as run

    if minutes and steps:
        raise MinidalleError("Deux budgets à la fois : choisir --minutes ou --steps.")
    given = {
        "model": model,
        "data": data if data in (None, *_NAMED) else str(Path(data).resolve()),
        "preset": preset,
        "seed": seed,
        "size": size,
        "precision": precision,
        "init": init and _lasting(init),
        "vqvae": vqvae and _lasting(vqvae),
        "bad_images": bad_images,
    }
    given = {name: value for name, value in given.items() if value is not None}
    budget = {"steps": steps, "minutes": None} if steps else {"minutes": minutes} if minutes else {}
    training = _resume(out, given, budget) if resume else _start(out, given, budget)
    options, config, network, *_ = training
    batches, measure, notes = _recipe(training)
    _keep(out, training)
    side = options["size"]
    length = f"{number(config.minutes)} min" if config.minutes else f"{number(config.steps)} pas"
    _credit(options["data"])
    typer.echo(f"Données : {options['data']}, {side} × {side} pixels.")
    typer.echo(
        f"Modèle : {options['model']}, {number(sum(p.numel() for p in network.parameters()))} paramètres."
    )
    typer.echo(f"Budget : {length}, par lots de {config.batch_size}.")
    if options["data"] not in (*_MADE, _MIXED):
        typer.echo("Un dossier n'a pas de part « test » : les mesures porteront sur les images apprises.")
    result = run(network, batches, config, out, resume=resume, evaluate=measure, label=options["model"])
    if not result.finished:
        raise typer.Exit(INTERRUPTED)
    path = out / "model.safetensors"
    save_model(path, network, size=str(side), data=Path(options["data"]).name, **notes)
    typer.echo(f"Après {number(result.steps)} pas :")
    for name, value in (result.history or [{}])[-1].items():
        if name in _MEASURES:
            typer.echo(f"  {_MEASURES[name]} : {number(value)}")
    typer.echo(path)


class _Training(NamedTuple):
    """Ce qu'il faut pour entraîner ; les deux dernières pièces ne servent qu'à un transformeur."""

    options: dict
    config: "TrainingConfig"
    network: "nn.Module"
    tokenizer: "Tokenizer | None" = None
    vqvae: "nn.Module | None" = None


def _start(out: Path, given: dict, budget: dict) -> _Training:
    from minidalle import recipes

    if (out / "resume.pt").exists():
        raise MinidalleError(
            f"« {out} » contient déjà un entraînement : le continuer avec --resume, ou changer de dossier."
        )
    if "model" not in given or "data" not in given:
        raise MinidalleError(
            "Il faut un modèle et des données : minidalle train vqvae --data scenes --out essai."
        )
    if "vqvae" in given and (given["model"] != "dalle" or "init" in given):
        raise MinidalleError("L'option --vqvae ne va qu'avec un transformeur neuf, sans --init : la retirer.")
    options = _DEFAULTS | given
    preset = recipes.preset(options["model"], options["preset"])
    chosen = {name: options[name] for name in ("seed", "precision") if name in options}
    config = replace(preset.training, **budget | chosen)
    new = _new_dalle if options["model"] == "dalle" else _new_autoencoder
    return _Training(options, config, *new(options, preset.model))


def _new_autoencoder(options: dict, sizes: dict) -> tuple["nn.Module"]:
    from minidalle import recipes
    from minidalle.checkpoints import load_model

    name, side = options["model"], options["size"]
    if init := options.get("init"):
        network = recipes.ready(load_model(init, name)[0])
    else:
        network = recipes.build(name, sizes, options["seed"], side)
    _check_side(side, network)
    return (network,)


def _new_dalle(options: dict, sizes: dict) -> tuple["nn.Module", "Tokenizer", "nn.Module"]:
    from minidalle import recipes
    from minidalle.checkpoints import load_model
    from minidalle.generation import TextToImage

    side = options["size"]
    if init := options.get("init"):
        painter = TextToImage.load(init)
        own = painter.transformer.config.grid[0] * painter.vqvae.config.factor
        if side != own:
            raise MinidalleError(f"« {init} » dessine des images de {own} pixels : ajouter --size {own}.")
        return painter.transformer, painter.tokenizer, painter.vqvae
    vqvae, _ = load_model(options["vqvae"], "vqvae")
    _check_side(side, vqvae)
    tokenizer = recipes.build_tokenizer(_training_source(options, "train"))
    return recipes.build_dalle(sizes, tokenizer, vqvae, side, options["seed"]), tokenizer, vqvae


def _recipe(training: _Training) -> tuple:
    """Lots, mesure et notes à garder avec les poids."""
    from minidalle import recipes

    options, _, network, tokenizer, vqvae = training
    source = _training_source(options, "train")
    held_out = _training_source(options, "test") if options["data"] in (*_MADE, _MIXED) else source
    if options["model"] != "dalle":
        return recipes.image_batches(source), recipes.measure_images(held_out), {}
    pieces = (tokenizer, vqvae, network.config.text_length)
    notes = {"tokenizer": tokenizer.to_json(), "vqvae": "vqvae"}
    return recipes.token_batches(source, *pieces), recipes.measure_dalle(held_out, *pieces), notes


def _training_source(options: dict, split: str) -> "Source":
    return _open_source(options["data"], split, options["size"], options.get("bad_images", "fail"))


def _keep(out: Path, training: _Training) -> None:
    """Écrit ce qui permet de reprendre sans rien redire et, pour un transformeur, de dessiner."""
    from minidalle.checkpoints import save_model

    options, config, network, tokenizer, vqvae = training
    if tokenizer:
        tokenizer.save(out / "tokenizer.json")
        save_model(out / "vqvae.safetensors", vqvae, size=str(options["size"]))
    saved = {"options": options, "training": asdict(config), "network": asdict(network.config)}
    with atomic_write(out / "train.json", "w") as file:
        json.dump(saved, file, ensure_ascii=False, indent=1)


def _resume(out: Path, given: dict, budget: dict) -> _Training:
    """Ce que `_keep` a écrit, sauf un budget redonné ; les poids viendront du point de reprise."""
    from minidalle import recipes
    from minidalle.checkpoints import load_model, model_class
    from minidalle.text import Tokenizer
    from minidalle.training import TrainingConfig

    path = out / "train.json"
    if not path.exists():
        raise MinidalleError(f"Rien à reprendre dans « {out} » : lancer d'abord sans --resume.")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        options, config = saved["options"], TrainingConfig(**saved["training"])
        cls = model_class(options["model"])
        network = recipes.ready(cls(cls.Config(**saved["network"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MinidalleError(f"« {path} » est abîmé : recommencer dans un autre dossier.") from error
    for name, value in given.items():
        if options.get(name) != value:
            raise MinidalleError(
                f"Reprise impossible : « {name} » valait {options.get(name, 'rien')}, pas {value} ; "
                f"ne pas le redonner, ou changer de dossier."
            )
    pieces = ()
    if options["model"] == "dalle":
        pieces = Tokenizer.load(out / "tokenizer.json"), load_model(out / "vqvae.safetensors", "vqvae")[0]
    return _Training(options, replace(config, **budget), network, *pieces)


def _check_side(side: int, autoencoder: "nn.Module") -> None:
    config = autoencoder.config
    own = getattr(config, "size", None)
    if own not in (None, side):
        raise MinidalleError(f"Ce modèle connaît des images de {own} pixels : ajouter --size {own}.")
    if own is None and side % config.factor:
        raise MinidalleError(f"Ce modèle veut un côté multiple de {config.factor} : changer --size {side}.")


def _lasting(name: str) -> str:
    """Désignation de poids qui vaut encore depuis un autre dossier."""
    from minidalle.checkpoints import WEIGHTS, find_weights

    path = find_weights(name)
    return path.stem if path.parent == WEIGHTS else str(path.resolve())


# --- tokens ---------------------------------------------------------------------------------------


@app.command(cls=Command, epilog="Exemple : minidalle tokens photo.jpg -o avant-apres.png")
def tokens(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP, TIFF ou PPM.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="CHEMIN|NOM", help="Auto-encodeur : un fichier, un dossier, un nom livré."
        ),
    ] = "scenes-vqvae",
    output: Output = None,
    zoom: Zoom = 4,
) -> None:
    """Montrer les jetons d'une image, et ce qu'il en reste.

    L'image est rognée au carré et réduite à la taille que connaît le modèle. Un auto-encodeur continu n'a pas
    de jetons : on voit les nombres de son code. Avec -o, l'original et sa reconstruction sont écrits côte à
    côte.
    """
    from minidalle.checkpoints import find_weights, load_model
    from minidalle.data.captioned import load_image
    from minidalle.evaluation.scores import psnr
    from minidalle.recipes import decode, encode

    path = output and _png_path(output)
    weights = find_weights(model)
    autoencoder, notes = load_model(weights)
    if not hasattr(autoencoder, "encode"):
        raise MinidalleError(
            f"« {model} » ne lit pas d'images : choisir un auto-encodeur, par exemple --model vqvae."
        )
    original = load_image(image, int(notes.get("size", _DEFAULTS["size"])))
    codes = encode(autoencoder, original[None])
    copy = decode(autoencoder, codes)[0]
    if codes.is_floating_point():
        values = codes[0].tolist()
        for i in range(0, len(values), 10):
            typer.echo(" ".join(f"{value:6.2f}" for value in values[i : i + 10]))
        typer.echo(f"Un code de {number(len(values))} nombres, sans jetons.")
    else:
        width = len(str(int(codes.max())))
        for row in codes[0].tolist():
            typer.echo(" ".join(f"{token:{width}}" for token in row))
        distinct = f"{number(len(codes.unique()))} sur {number(codes.numel())}"
        known = number(autoencoder.config.codes)
        typer.echo(f"Jetons distincts : {distinct}, dans un dictionnaire de {known} codes.")
    typer.echo(f"PSNR de la reconstruction : {number(float(psnr(original[None], copy[None])[0]))} dB.")
    if path:
        _write_png(path, [original, copy], zoom, Modele=_model_name(weights))


# --- rate -----------------------------------------------------------------------------------------


@app.command(cls=Command, epilog="Exemple : minidalle rate mes-images --rater Ana --out notes.csv")
def rate(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Dossier d'images légendées, ou JSON au format COCO.")
    ],
    rater: Annotated[
        str | None, typer.Option("--rater", metavar="NOM", help="Qui note : l'ordre des paires en dépend.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FICHIER.csv", help="Fichier de notes, commencé ou repris.")
    ] = Path("notes.csv"),
    n: Annotated[
        int | None,
        typer.Option("-n", metavar="ENTIER", callback=_positive, help="Noter n images, tirées de la graine."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="ENTIER", callback=natural, help="Graine, la même pour tous les juges."
        ),
    ] = 0,
    port: Annotated[
        int, typer.Option("--port", metavar="ENTIER", callback=natural, help="Port local ; 0 pour un libre.")
    ] = 8421,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Ne pas ouvrir de navigateur.")] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FICHIER.csv", help="Écrire les notes corrigées, et quitter."),
    ] = None,
) -> None:
    """Noter des légendes sur une page locale, au clavier.

    Chaque juge voit toutes les paires, dans un ordre à lui, sans les notes des autres. Chaque note est
    enregistrée aussitôt : arrêter et relancer reprend où l'on en était. « minidalle evaluate ratings » lit le
    fichier de notes.
    """
    import threading
    import webbrowser

    from minidalle.data.captioned import CaptionedImages
    from minidalle.evaluation import rating_page, ratings

    if export:
        ratings.write_ratings(export, ratings.tabulate(ratings.read_ratings(out)))
        typer.echo(export)
        return
    if not (name := rating_page.one_line(rater or "")):
        raise MinidalleError("Qui note ? Ajouter --rater NOM.")
    images = CaptionedImages.open(source)
    items = rating_page.order(rating_page.choose(images, n, seed), name, seed)
    answers = rating_page.Answers(out)
    if answers.torn:
        typer.echo(f"Attention : ligne interrompue, retirée de « {out} » : {answers.torn}", err=True)

    def ready(address: str) -> None:
        typer.echo(f"{number(len(items))} paires à noter sur {address} ; Ctrl-C pour arrêter.")
        if not no_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    try:
        rating_page.serve(rating_page.application(images, items, answers, name), port, ready)
    except KeyboardInterrupt:
        typer.echo(f"Notes enregistrées dans « {out} ».")


# --- data -----------------------------------------------------------------------------------------

_MADE = ("scenes", "openmoji")  # sources que le projet fabrique
_MIXED = "scenes+openmoji"  # leur mélange, pour entraîner
_NAMED = (*_MADE, _MIXED, "tuxpaint")  # toute autre source est un dossier


@data_app.callback(epilog="Exemple : minidalle data show scenes -n 9 -o planche.png")
def _data() -> None:
    """Parcourir et exporter les données."""


@data_app.command("list", cls=Command, epilog="Exemple : minidalle data list")
def list_sources() -> None:
    """Énumérer les sources de données."""
    from collections import Counter

    from minidalle.data import openmoji, scenes

    emojis = Counter(openmoji.split_of(emoji) for emoji in openmoji.catalogue())
    typer.echo(
        f"scenes    tirées à volonté : de 1 à {scenes.MAX_OBJECTS} objets, pris parmi {len(scenes.SHAPES)} formes "
        f"en {len(scenes.COLOURS)} couleurs et {len(scenes.THINGS)} émojis\n"
        f"openmoji  {number(emojis['train'])} émojis nommés en français, et {number(emojis['test'])} autres "
        f"réservés au test\n"
        f"tuxpaint  photographies et dessins légendés en français, du paquet Debian tuxpaint-stamps-default\n"
        f"DOSSIER   les vôtres : photo.jpg et photo.txt, ou un fichier JSON au format COCO"
    )
    _credit("openmoji")


@data_app.command(cls=Command, epilog="Exemple : minidalle data show scenes -n 9 --seed 1 -o planche.png")
def show(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="« scenes », « openmoji », « tuxpaint » ou un dossier d'images légendées."
        ),
    ],
    n: Number = 16,
    seed: Seed = 0,
    size: Size = 128,
    split: Split = "train",
    output: Output = None,
) -> None:
    """Dessiner une planche d'exemples, et dire leurs légendes.

    Sans -o, la planche de « scenes » va dans planche-scenes.png, et ainsi des autres.
    """
    path = _png_path(output, f"planche-{_slug(Path(source).resolve().name)}")
    _, examples = _examples(source, split, size, n, seed)
    images, captions = zip(*examples, strict=True)
    for i, caption in enumerate(captions, 1):
        typer.echo(f"{i:3}  {caption}")
    _write_png(path, images)
    _credit(source)


@data_app.command(cls=Command, epilog="Exemple : minidalle data export scenes mes-scenes -n 200")
def export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="« scenes » ou « openmoji ».")],
    folder: Annotated[Path, typer.Argument(metavar="DOSSIER", help="Dossier neuf, ou d'un même export.")],
    n: Annotated[
        int, typer.Option("-n", metavar="ENTIER", callback=_positive, help="Nombre d'images, au plus.")
    ] = 100,
    seed: Seed = 0,
    size: Size = 64,
    split: Split = "train",
) -> None:
    """Écrire des images et leurs légendes : 00000.png, 00000.txt…

    Le dossier se relit par « --data DOSSIER ». Les premières images d'une graine ne dépendent pas de leur
    nombre.
    """
    from PIL import Image

    from minidalle.data.openmoji import CREDIT

    if source not in _MADE:
        raise MinidalleError(f"« {source} » ne s'exporte pas : choisir {' ou '.join(_MADE)}.")
    count, examples = _examples(source, split, size, n, seed)
    credit = folder / "CREDIT.txt"
    origin = f"{CREDIT}\nExport de « {source} », part « {split} », graine {seed}, {size} pixels de côté.\n"
    if credit.is_file() and credit.read_text(encoding="utf-8") != origin:
        raise MinidalleError(f"« {folder} » contient un autre export : choisir un dossier neuf.")
    if folder.is_dir():
        for path in folder.iterdir():
            numbered = re.fullmatch(r"(\d{5,})\.(?:png|txt)", path.name)
            if path != credit and not (numbered and int(numbered[1]) < count):
                raise MinidalleError(f"« {folder} » contient déjà « {path.name} » : choisir un dossier neuf.")
    with progress_bar("images", count) as bar:
        for i, (image, caption) in enumerate(examples):
            if i == 0:
                with atomic_write(credit, "w") as file:
                    file.write(origin)
            # Le texte d'abord : un dossier interrompu n'a pas d'image sans légende, et se relit.
            with atomic_write(folder / f"{i:05}.txt", "w") as file:
                file.write(f"{caption}\n")
            with atomic_write(folder / f"{i:05}.png") as file:
                Image.fromarray(image).save(file, "PNG")
            bar.update()
    _credit(source)
    typer.echo(f"Images et légendes écrites dans « {folder} » : {number(count)}.")


def _open_source(name: str, split: str, size: int, bad_images: str = "fail") -> "Source":
    from minidalle.data.sources import Folder, open_source

    if name not in _NAMED and not Path(name).exists():
        raise MinidalleError(
            f"Source « {name} » inconnue : choisir {', '.join(_MADE)} ou un dossier d'images légendées."
        )
    source = open_source(name, split, size, bad_images)
    if isinstance(source, Folder):
        tell_skipped(source.pairs.skipped)
    return source


def _examples(
    name: str, split: str, size: int, n: int, seed: int
) -> tuple[int, Iterator[tuple["np.ndarray", str]]]:
    """Nombre d'exemples (n au plus), et ces exemples ; les premiers ne dépendent pas de n."""
    import numpy as np

    if name not in _MADE and split != "train":
        raise MinidalleError("Un dossier n'a pas de part « test » : retirer --split.")
    rng = np.random.default_rng(seed)
    source = _open_source(name, split, size)
    if name == "scenes":
        batches = (source.batch(rng, 1) for _ in range(n))
        return n, ((images[0], captions[0]) for images, captions in batches)
    total = len(source.names if name == "openmoji" else source.pairs)
    order = rng.permutation(total)[:n].tolist()
    if name == "openmoji":
        return len(order), ((source.images[i], source.names[i]) for i in order)
    pairs = (source.pairs[i] for i in order)
    return len(order), ((image, " / ".join(captions)) for image, captions in pairs)


def _credit(source: str) -> None:
    """Affiche la mention due aux dessinateurs des images ; les scènes contiennent des émojis."""
    from minidalle.data import openmoji, tuxpaint

    if source in (*_MADE, _MIXED):
        typer.echo(openmoji.CREDIT)
    elif source == "tuxpaint":
        typer.echo(tuxpaint.CREDIT)


# --- images et textes -----------------------------------------------------------------------------


def _png_path(output: str | None, title: str = "") -> Path:
    """Fichier demandé, ou à défaut `title`.png."""
    if output is None:
        return Path(f"{title}.png")
    path = Path(output)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise MinidalleError(f"« {output} » ne convient pas : donner un nom de fichier qui finit par .png.")
    return path


def _slug(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.lower().replace("œ", "oe"))
    text = re.sub("[^a-z0-9]+", "-", text.encode("ascii", "ignore").decode())
    return text.strip("-")[:60].strip("-") or "image"


def _write_png(path: Path, images: "Sequence[np.ndarray]", zoom: int = 1, **texts: str) -> None:
    """Écrit des images uint8 (S, S, 3) en grille, agrandies, avec des textes ; dit où."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    grid = _grid(images)
    if grid.size * zoom**2 > 10**9:
        raise MinidalleError("L'image serait démesurée : réduire --zoom ou -n.")
    info = PngInfo()
    for name, text in (texts | {"Software": f"minidalle {__version__}"}).items():
        info.add_itxt(name, text)
    with atomic_write(path) as file:
        Image.fromarray(grid.repeat(zoom, 0).repeat(zoom, 1)).save(file, "PNG", pnginfo=info)
    typer.echo(path)


def _grid(images: "Sequence[np.ndarray]", gap: int = 2) -> "np.ndarray":
    """Images (S, S, 3), de gauche à droite puis de haut en bas, dans une grille presque carrée."""
    import numpy as np

    side = len(images[0])
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    step = side + gap
    grid = np.full((rows * step - gap, columns * step - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * step, i % columns * step
        grid[y : y + side, x : x + side] = image
    return grid


def _model_name(weights: Path) -> str:
    return weights.stem if weights.stem != "model" else weights.resolve().parent.name
