"""La ligne de commande : dessiner, entraîner, regarder les jetons, parcourir les données.

PyTorch et les modules lourds ne sont chargés qu'à l'intérieur des commandes : l'aide s'affiche aussitôt, et
`generate` ne paie que ce qu'il emploie.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minidalle import __version__, cli_evaluate, cli_generate, cli_import, cli_train
from minidalle.cli_common import (
    Number,
    Output,
    Seed,
    Size,
    Split,
    Zoom,
    model_name,
    png_path,
    positive,
    slug,
    write_png,
)
from minidalle.cli_sources import MADE, open_source, tell_credit
from minidalle.errors import MinidalleError
from minidalle.files import atomic_write
from minidalle.typer_fr import PLAIN, Command, natural, number, progress_bar

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(**PLAIN)
data_app = typer.Typer(**PLAIN)
app.add_typer(data_app, name="data")
app.add_typer(cli_evaluate.app, name="evaluate")


def main() -> None:
    """Point d'entrée de la commande `minidalle`."""
    try:
        app(prog_name="minidalle")
    except SystemExit as end:
        # Démonter PyTorch relirait des bibliothèques jamais servies : plus de 100 Mo et 0,1 s, pour rien.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


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


app.command(cls=Command, epilog=cli_generate.EPILOG)(cli_generate.generate)
app.command(cls=Command, epilog=cli_train.EPILOG)(cli_train.train)


# --- tokens ---------------------------------------------------------------------------------------


@app.command(cls=Command, epilog="Exemple : minidalle tokens photo.jpg -o avant-apres.png")
def tokens(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP, TIFF ou PPM.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="CHEMIN|NOM", help="Auto-encodeur : un fichier, un dossier, un nom livré."
        ),
    ] = "vqvae",
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

    path = output and png_path(output)
    weights = find_weights(model)
    autoencoder, notes = load_model(weights)
    if not hasattr(autoencoder, "encode"):
        raise MinidalleError(
            f"« {model} » ne lit pas d'images : choisir un auto-encodeur, par exemple --model vqvae."
        )
    original = load_image(image, int(notes.get("size", 64)))
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
        write_png(path, [original, copy], zoom, Modele=model_name(weights))


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
        typer.Option("-n", metavar="ENTIER", callback=positive, help="Noter n images, tirées de la graine."),
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
    tell_credit("openmoji")


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
    path = png_path(output, f"planche-{slug(Path(source).resolve().name)}")
    _, examples = _examples(source, split, size, n, seed)
    images, captions = zip(*examples, strict=True)
    for i, caption in enumerate(captions, 1):
        typer.echo(f"{i:3}  {caption}")
    write_png(path, images)
    tell_credit(source)


@data_app.command(cls=Command, epilog="Exemple : minidalle data export scenes mes-scenes -n 200")
def export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="« scenes » ou « openmoji ».")],
    folder: Annotated[Path, typer.Argument(metavar="DOSSIER", help="Dossier neuf, ou d'un même export.")],
    n: Annotated[
        int, typer.Option("-n", metavar="ENTIER", callback=positive, help="Nombre d'images, au plus.")
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

    if source not in MADE:
        raise MinidalleError(f"« {source} » ne s'exporte pas : choisir {' ou '.join(MADE)}.")
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
    tell_credit(source)
    typer.echo(f"Images et légendes écrites dans « {folder} » : {number(count)}.")


def _examples(
    name: str, split: str, size: int, n: int, seed: int
) -> tuple[int, Iterator[tuple["np.ndarray", str]]]:
    """Nombre d'exemples (n au plus), et ces exemples ; les premiers ne dépendent pas de n."""
    import numpy as np

    if name not in MADE and split != "train":
        raise MinidalleError("Un dossier n'a pas de part « test » : retirer --split.")
    rng = np.random.default_rng(seed)
    source = open_source(name, split, size)
    if name == "scenes":
        batches = (source.batch(rng, 1) for _ in range(n))
        return n, ((images[0], captions[0]) for images, captions in batches)
    total = len(source.names if name == "openmoji" else source.pairs)
    order = rng.permutation(total)[:n].tolist()
    if name == "openmoji":
        return len(order), ((source.images[i], source.names[i]) for i in order)
    pairs = (source.pairs[i] for i in order)
    return len(order), ((image, " / ".join(captions)) for image, captions in pairs)


cli_import.add_to(app)  # en dernier : l'aide montre d'abord ce qui sert tous les jours
