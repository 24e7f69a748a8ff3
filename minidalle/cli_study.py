"""`minidalle evaluate study` : toute l'étude d'un modèle, d'une commande. Rien de lourd n'est chargé hors d'elle."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minidalle import __version__
from minidalle.cli_common import Guidance, Temperature, TopP, model_name
from minidalle.errors import MinidalleError
from minidalle.typer_fr import natural, number, progress_bar, quoted

if TYPE_CHECKING:
    from minidalle.evaluation.study_files import Row
    from minidalle.generation import TextToImage

EPILOG = (
    "Exemples : minidalle evaluate study --model scenes --out etude --n 100\n"
    "           minidalle evaluate study --list --n 20 > demandes.txt\n"
    "           minidalle evaluate study --images mes-dessins --out etude-mes-dessins"
)


def study(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="CHEMIN|NOM",
            show_default="scenes",
            help="Modèle à étudier : un fichier, un dossier, un nom livré.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DOSSIER", help="Où écrire la table, les figures et la page."),
    ] = None,
    n: Annotated[
        int,
        typer.Option(
            "-n",
            "--n",
            metavar="ENTIER",
            callback=natural,
            help="Demandes par catégorie, sur des combinaisons réservées, et autant sur des vues.",
        ),
    ] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continuer l'étude de ce dossier ; redonner les mêmes options.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DOSSIER",
            help="Juger ces images, faites ailleurs dans le style du livre, au lieu d'un modèle. Leurs phrases sont "
            "leurs noms (« un carré bleu_1.png »), celles d'un prompts.csv (fichier,prompt), ou celles que "
            "« minidalle generate » y a rangées.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="ENTIER", callback=natural, help="Graine des demandes et des dessins."
        ),
    ] = 0,
    categories: Annotated[
        str | None,
        typer.Option(
            "--categories",
            metavar="NOMS",
            show_default="toutes",
            help="Catégories, séparées par des virgules : objet, couleur, paire, relation, nombre, taille, texture, "
            "ordre, fond.",
        ),
    ] = None,
    tries: Annotated[
        int,
        typer.Option(
            "--tries",
            metavar="ENTIER",
            callback=natural,
            help="Dessins par demande qui situe (relation, ordre) ; un pour les autres.",
        ),
    ] = 4,
    guidance: Guidance = None,
    temperature: Temperature = 1.0,
    top_p: TopP = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Dire les demandes, une par ligne, et ne rien dessiner.")
    ] = False,
) -> None:
    """Étudier ce qu'un modèle comprend : objets, couleurs, nombres, espace…

    Chaque dessin est lu par l'oracle, puis jugé par sa demande, par la demande contraire et par une autre : les deux
    dernières mesurent le hasard. Arrêtée, l'étude reprend par --resume sans rien perdre ni refaire. L'oracle ne lit
    que des dessins du monde du livre, ni photographies ni autres styles : un modèle publié s'étudie à la main, par
    « minidalle generate » puis « minidalle rate ».
    """
    from minidalle.evaluation.requests import STUDY
    from minidalle.evaluation.study import plan

    if images and (model or list_):
        raise MinidalleError("--images juge des images déjà faites : retirer --model et --list.")
    if out is None and not list_:
        raise MinidalleError("Il manque --out DOSSIER, où écrire l'étude : voir « --help ».")
    chosen = [name.strip() for name in categories.split(",")] if categories else list(STUDY)
    about = {"version": __version__, "seed": seed, "categories": chosen}
    if images:
        plan(2, seed, chosen)  # pour vérifier la graine et les catégories
        _study_images(images, out, about, resume)
        return
    items = plan(n, seed, chosen, tries)
    if list_:
        typer.echo("\n".join(dict.fromkeys(item.request.prompt for item in items)))
        return
    _study_model(
        model or "scenes",
        out,
        items,
        about | {"n": n, "tries": tries},
        {"guidance": guidance, "temperature": temperature, "top_p": top_p},
        resume,
    )


def _study_model(name: str, out: Path, items: Sequence, about: dict, settings: dict, resume: bool) -> None:
    from minidalle.checkpoints import find_weights
    from minidalle.evaluation.study import opposites, run, strange
    from minidalle.evaluation.study_files import OPPOSITES, read_table
    from minidalle.generation import TextToImage
    from minidalle.sampling import check_guidance, check_sampling

    check_sampling(settings["temperature"], None, settings["top_p"])
    weights = find_weights(name)
    painter = TextToImage.load(weights)
    _check_world(painter, name)
    if settings["guidance"] is None:
        settings["guidance"] = painter.guidance
    check_guidance(settings["guidance"])
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    about = {"model": model_name(weights), "sha256": digest} | about | {"settings": settings}
    try:
        with progress_bar("dessins", len(items) + len(opposites(items))) as bar:
            rows = run(painter, out, items, about, settings=settings, resume=resume, progress=bar.update)
    except KeyboardInterrupt:
        typer.echo(f"Ce qui est fait est dans « {out} » : continuer avec --resume.", err=True)
        raise
    notes = []
    if unknown := painter.read([item.request.prompt for item in items])[1]:
        notes.append(f"Ce modèle n'a jamais lu certains mots de l'étude : {quoted(unknown)}.")
    if left := strange(rows):
        notes.append(
            f"L'oracle n'explique pas le dessin médian (part inexpliquée : {100 * left:.0f} %) : ce modèle n'a pas "
            f"encore appris, ou il dessine autre chose que le monde du livre, et ces nombres ne veulent rien dire."
        )
    _conclude(out, rows, about, notes, read_table(out / f"{OPPOSITES}.csv"))


def _check_world(painter: "TextToImage", name: str) -> None:
    """Refuse un modèle publié : l'oracle ne sait pas lire ce qu'il dessine."""
    from minidalle.text import ByteTokenizer

    if isinstance(painter.tokenizer, ByteTokenizer):
        raise MinidalleError(
            f"« {name} » est un modèle publié : il lit l'anglais et dessine des photographies, que l'oracle ne sait "
            f"pas lire, et ses nombres seraient faux. Le faire dessiner par « minidalle generate », et noter par "
            f"« minidalle rate »."
        )


def _study_images(images: Path, out: Path, about: dict, resume: bool) -> None:
    from minidalle.evaluation.study_files import TABLE, folder, write_table
    from minidalle.evaluation.study_images import fingerprint, judge_images

    about = {"images": str(images), "sha256": fingerprint(images)} | about
    rows, skipped = judge_images(images, about["seed"], about["categories"])
    for line in skipped:
        typer.echo(f"Image écartée : {line}", err=True)
    with folder(out, about, resume):
        write_table(out / TABLE, rows)
    notes = [f"Images écartées, que rien ici ne sait juger : {number(len(skipped))}."] if skipped else []
    _conclude(out, rows, about, notes)


def _conclude(
    out: Path, rows: "Sequence[Row]", about: dict, notes: list[str], opposites: "Sequence[Row]" = ()
) -> None:
    """Écrit les comptes, les figures et la page, et dit l'essentiel."""
    from minidalle.evaluation.study_files import TABLE
    from minidalle.evaluation.study_page import told, told_space, write_page
    from minidalle.evaluation.study_summary import counts, spaces, write_counts

    for note in notes:
        typer.echo(f"Attention : {note}", err=True)
    for count in counts(rows):
        typer.echo(told(count))
    measured = spaces(rows)
    for space in measured:
        typer.echo(f"VISOR, {told_space(space)}")
    write_counts(out / "comptes.csv", rows)
    typer.echo(out / TABLE)
    typer.echo(out / "comptes.csv")
    for path in write_page(out, rows, measured, about, opposites, notes):
        typer.echo(path)
