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
    from minidalle.evaluation.study import Item
    from minidalle.evaluation.study_files import Row
    from minidalle.evaluation.study_summary import Space

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
    que des dessins du monde du livre, ni photographies ni autres styles. Un modèle publié reçoit les mêmes demandes,
    en anglais, et ses verdicts restent vides jusqu'à ce que des humains les rendent, par « minidalle rate » sur le
    dossier « a-noter » de l'étude ; --resume lit ensuite leurs notes dans son fichier « notes.csv ».
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
    from minidalle.evaluation.english import EnglishPainter
    from minidalle.evaluation.study import opposites, run, strange
    from minidalle.evaluation.study_files import OPPOSITES, read_table
    from minidalle.generation import TextToImage
    from minidalle.sampling import check_guidance, check_sampling
    from minidalle.text import ByteTokenizer

    check_sampling(settings["temperature"], None, settings["top_p"])
    weights = find_weights(name)
    painter = TextToImage.load(weights)
    if settings["guidance"] is None:
        settings["guidance"] = painter.guidance
    check_guidance(settings["guidance"])
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    about = {"model": model_name(weights), "sha256": digest} | about | {"settings": settings}
    # Un modèle publié lit l'anglais et dessine des photographies, que l'oracle ne sait pas lire.
    published = isinstance(painter.tokenizer, ByteTokenizer)
    if published:
        painter, about = EnglishPainter(painter), about | {"language": "anglais"}
    try:
        with progress_bar("dessins", len(items) + len(opposites(items))) as bar:
            options = {"settings": settings, "resume": resume, "blind": published}
            rows = run(painter, out, items, about, progress=bar.update, **options)
    except KeyboardInterrupt:
        typer.echo(f"Ce qui est fait est dans « {out} » : continuer avec --resume.", err=True)
        raise
    notes = []
    if unknown := painter.read([item.request.prompt for item in items])[1]:
        notes.append(f"Ce modèle n'a jamais lu certains mots de l'étude : {quoted(unknown)}.")
    if published:
        _conclude_by_eye(out, rows, items, about, notes)
        return
    if left := strange(rows):
        notes.append(
            f"L'oracle n'explique pas le dessin médian (part inexpliquée : {100 * left:.0f} %) : ce modèle n'a pas "
            f"encore appris, ou il dessine autre chose que le monde du livre, et ces nombres ne veulent rien dire."
        )
    _conclude(out, rows, about, notes, read_table(out / f"{OPPOSITES}.csv"))


def _conclude_by_eye(
    out: Path, rows: "Sequence[Row]", items: "Sequence[Item]", about: dict, notes: list[str]
) -> None:
    """Donne les dessins à noter, lit les notes déjà là, écrit la table et la page, et dit ce qui reste à faire."""
    from minidalle.evaluation.ratings import read_ratings
    from minidalle.evaluation.study_files import OPPOSITES, TABLE, read_table, write_table
    from minidalle.evaluation.study_graded import NOTES, graded, steps, write_page, write_to_rate
    from minidalle.evaluation.study_summary import judged, write_counts

    ratings = read_ratings(out / NOTES) if (out / NOTES).exists() else []
    rows = graded(rows, items, ratings)
    done = judged(rows)
    notes.append(
        "Ce modèle publié n'a rien appris du monde du livre : « réservées » et « vues » n'y sont que deux tirages."
    )
    if ratings and len(done) < len(rows):
        notes.append(
            f"Dessins dont toutes les phrases sont notées : {number(len(done))} sur {number(len(rows))}."
        )
    measured = _tell(rows, notes)
    write_table(out / TABLE, rows)
    write_counts(out / "comptes.csv", rows)
    raters = sorted({rating.rater for rating in ratings})
    pages = write_page(out, rows, measured, about, read_table(out / f"{OPPOSITES}.csv"), notes, raters)
    for path in (write_to_rate(out, rows, items), out / TABLE, out / "comptes.csv", *pages):
        typer.echo(path)
    if not done:
        typer.echo(
            "Aucun verdict encore : l'oracle ne sait pas lire ces dessins. Les faire noter, puis reprendre :"
        )
        for step in steps(out):
            typer.echo(f"  {step}")


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
    from minidalle.evaluation.study_page import write_page
    from minidalle.evaluation.study_summary import write_counts

    measured = _tell(rows, notes)
    write_counts(out / "comptes.csv", rows)
    typer.echo(out / TABLE)
    typer.echo(out / "comptes.csv")
    for path in write_page(out, rows, measured, about, opposites, notes):
        typer.echo(path)


def _tell(rows: "Sequence[Row]", notes: Sequence[str]) -> "list[Space]":
    """Dit les avertissements et les comptes ; rend les mesures d'espace."""
    from minidalle.evaluation.study_page import told, told_space
    from minidalle.evaluation.study_summary import counts, spaces

    for note in notes:
        typer.echo(f"Attention : {note}", err=True)
    for count in counts(rows):
        typer.echo(told(count))
    measured = spaces(rows)
    for space in measured:
        typer.echo(f"VISOR, {told_space(space)}")
    return measured
