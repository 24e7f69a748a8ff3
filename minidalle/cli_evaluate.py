"""`minidalle evaluate` : les commandes qui mesurent. Rien de lourd n'est chargé hors des commandes."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minidalle import cli_study
from minidalle.files import atomic_write
from minidalle.typer_fr import (
    BAD_IMAGES_HELP,
    PLAIN,
    Command,
    natural,
    number,
    progress_bar,
    quoted,
    tell_skipped,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from minidalle.evaluation.judges import Judgement
    from minidalle.evaluation.ratings import Grades, Measure

app = typer.Typer(**PLAIN)


@app.callback(epilog="Exemple : minidalle evaluate ratings notes.csv --out etude")
def _evaluate() -> None:
    """Mesurer : ce qu'un modèle comprend, notes humaines, accord des juges, images et légendes vues par CLIP."""


app.command(cls=Command, epilog=cli_study.EPILOG)(cli_study.study)


# --- ratings --------------------------------------------------------------------------------------

_SCALES = {
    "ordinal": "notes lues comme des rangs, ce qu'elles sont",
    "interval": "notes lues comme des quantités",
}
_MEASURES = {
    "spearman": "corrélation de Spearman (rangs)",
    "kendall": "τ-b de Kendall (paires)",
    "pearson": "corrélation de Pearson (valeurs)",
    "within": "Spearman moyen dans une image",
    "concordance": "légendes d'une image rangées pareil",
    "first": "même légende préférée, la première de deux ex æquo",
    "any": "même légende préférée, un ex æquo suffit",
    "unique": "même légende préférée, ex æquo écartés",
}


@app.command(cls=Command, epilog="Exemple : minidalle evaluate ratings notes.csv --out etude")
def ratings(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FICHIER.csv…", help="Notes écrites par « minidalle rate »."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DOSSIER", help="Où écrire moyennes et figures.")
    ] = None,
) -> None:
    """Résumer des notes humaines : accord des juges, comparaison à CLIP.

    La comparaison se fait si une colonne « clip » donne le score de chaque paire. Les intervalles, à 95 %,
    viennent de 2000 tirages d'images entières, de graine 0 ; pour la légende préférée, de Wilson.
    """
    import numpy as np

    from minidalle.evaluation import ratings as study

    grades = study.tabulate(rating for file in files for rating in study.read_ratings(file))
    typer.echo(f"Légendes : {len(grades.pairs)} ; images : {len(set(grades.images))}.")
    for rater, row in zip(grades.raters, grades.grades, strict=True):
        known = row[~np.isnan(row)]
        missing = f" ; {len(row) - len(known)} manquent" if len(known) < len(row) else ""
        typer.echo(f"  {rater} : {len(known)} notes, moyenne {_decimals(known.mean(), 2)}{missing}")
    typer.echo("Accord des juges, α de Krippendorff (fiable à partir de 0,8, incertain de 0,667 à 0,8) :")
    _tell(study.agreement(grades), _SCALES)
    figures = {"notes.svg": _histogram(grades)} if out else {}
    if grades.clip is not None:
        typer.echo("Note moyenne des juges, et score de CLIP :")
        _tell(study.compare(grades.means, grades.clip, grades.images), _MEASURES)
        figures |= {"humains-clip.svg": _scatter(grades)} if out else {}
    if out:
        _write_means(out / "moyennes.csv", grades)
        for name, figure in figures.items():
            _save(figure, out / name)
            typer.echo(out / name)


def _tell(measures: "dict[str, Measure]", names: dict[str, str]) -> None:
    for key, measure in measures.items():
        typer.echo(f"  {names[key]} : {_said(measure)}")


def _said(measure: "Measure") -> str:
    """« 81 sur 91 (9 écartés), soit 0,890 [0,809 ; 0,939] », ou la raison pour laquelle la mesure n'existe pas."""
    from minidalle.evaluation.statistics import Ratio, Undefined

    if isinstance(measure, Undefined):
        return f"indéfini. {measure}"
    if isinstance(measure, Ratio):
        dropped = f" ({measure.dropped} écartés)" if measure.dropped else ""
        return f"{measure.successes} sur {measure.trials}{dropped}, soit {_said(measure.estimate)}"
    value, low, high = (_decimals(x) for x in measure)
    return f"{value} [{low} ; {high}]"


def _save(figure: "Figure", path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})


def _decimals(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace(".", ",")


def _write_means(path: Path, grades: "Grades") -> None:
    import numpy as np

    counts = (~np.isnan(grades.grades)).sum(0)
    clip = ("",) * len(counts) if grades.clip is None else grades.clip
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "legende", "notes", "moyenne", "clip"))
        for pair, count, mean, score in zip(grades.pairs, counts, grades.means, clip, strict=True):
            writer.writerow((*pair, count, round(mean, 4), score))
    typer.echo(path)


def _histogram(grades: "Grades") -> "Figure":
    """Combien de fois chaque juge a donné chaque note."""
    import numpy as np

    from minidalle import plots

    figure, ax = plots.axes()
    given = [row[~np.isnan(row)] for row in grades.grades]
    low, high = np.nanmin(grades.grades), np.nanmax(grades.grades)
    whole = not (np.concatenate(given) % 1).any() and high - low < 20
    bins = np.arange(low - 0.5, high + 1) if whole else 10
    # Un « $ » ouvrirait une formule, un « _ » en tête cacherait le nom.
    ax.hist(given, bins, label=[f"juge {rater}".replace("$", r"\$") for rater in grades.raters])
    ax.set(xlabel="note", ylabel="légendes")
    ax.legend()
    return figure


def _scatter(grades: "Grades") -> "Figure":
    """Note moyenne et score de CLIP de chaque paire."""
    from minidalle import plots

    figure, ax = plots.axes()
    ax.scatter(grades.means, grades.clip, s=14, alpha=0.5, color=plots.IMAGE)
    ax.set(xlabel="note moyenne des juges", ylabel="score de CLIP")
    return figure


# --- clip -----------------------------------------------------------------------------------------

_PAIRS = {
    "right": "bonne légende",
    "wrong": "légende d'une autre image",
    "blank": "image blanche et bonne légende",
}
_RECALLS = {
    "texts": "Une bonne légende parmi les k plus proches de l'image",
    "images": "L'image parmi les k plus proches de sa légende",
}


@app.command(cls=Command, epilog="Exemple : minidalle evaluate clip --data mes-images --out etude")
def clip(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="Dossier d'images légendées, JSON au format COCO, ou « tuxpaint » s'il est installé.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="CHEMIN|NOM",
            envvar="MINIDALLE_CLIP",
            show_default="$MINIDALLE_CLIP, sinon clip",
            help="Un CLIP du livre, ou le dossier d'un CLIP publié, au format de transformers.",
        ),
    ] = "clip",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DOSSIER", help="Où écrire mesures et histogramme.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="ENTIER",
            callback=natural,
            help="Graine des fausses légendes et des intervalles.",
        ),
    ] = 0,
    bad_images: Annotated[
        str,
        typer.Option(
            "--bad-images",
            metavar="CHOIX",
            help=BAD_IMAGES_HELP,
        ),
    ] = "fail",
    as_json: Annotated[
        bool, typer.Option("--json", help="Écrire les mesures en JSON sur la sortie.")
    ] = False,
) -> None:
    """Noter par CLIP des images et leurs légendes.

    Chaque légende est comparée à celle d'une autre image, tirée au hasard. Les intervalles, à 95 %, viennent de
    2000 tirages d'images entières. Un score n'est pas une probabilité, et ne se compare pas d'un modèle à
    l'autre : seuls le hasard, l'image blanche et la fausse légende lui donnent un sens.
    """
    from minidalle.data.sources import open_captioned
    from minidalle.data.tuxpaint import CREDIT
    from minidalle.evaluation.judges import judge_captions, load_judge

    judge = load_judge(model)
    images = open_captioned(data, judge.size, bad_images)
    if data == "tuxpaint":
        typer.echo(CREDIT, err=True)
    tell_skipped(images.skipped)
    with progress_bar("images", len(images)) as bar:
        judgement = judge_captions(judge, images, seed, bar.update)
    if judgement.unknown:
        typer.echo(f"Attention : « {judge.name} » n'a jamais lu {quoted(judgement.unknown)}.", err=True)
    if judgement.cut:
        endings = quoted([" ".join(words) for words in judgement.cut.values()])
        typer.echo(f"Attention : légendes trop longues, {len(judgement.cut)}, non lu : {endings}.", err=True)
    measures = _clip_measures(judgement, seed)
    report = {
        "model": judge.name,
        "data": data,
        "seed": seed,
        "images": len(images),
        "captions": len(judgement.images),
        "skipped": images.skipped,
        "unknown": judgement.unknown,
        "cut": judgement.cut,
    } | measures
    text = json.dumps(report, ensure_ascii=False, indent=1)
    if as_json:
        typer.echo(text)
    else:
        _tell_clip(report)
    if out:
        with atomic_write(out / "clip.json", "w") as file:
            file.write(text + "\n")
        _save(_cosines(judgement), out / "clip.svg")
        if not as_json:
            typer.echo(out / "clip.json")
            typer.echo(out / "clip.svg")


def _clip_measures(judgement: "Judgement", seed: int) -> dict:
    """Moyennes et intervalles, prêts pour le JSON."""

    def estimate(values: "np.ndarray", **notes: float) -> dict[str, float]:
        return judgement.estimate(values, seed)._asdict() | notes

    cosines = judgement.cosines
    found = {"texts": judgement.texts_found, "images": judgement.images_found}
    chance = {"texts": judgement.texts_chance, "images": judgement.images_chance}
    return {
        "clip_score": {kind: estimate(values) for kind, values in judgement.scores.items()},
        "cosine": {kind: estimate(values) for kind, values in cosines.items()},
        "preference": estimate(cosines["right"] > cosines["wrong"], chance=0.5),
        "recall": {
            what: {k: estimate(hits, chance=chance[what][k]) for k, hits in found[what].items()}
            for what in found
        },
    }


def _tell_clip(report: dict) -> None:
    def said(measure: dict[str, float]) -> str:
        value, low, high = (_decimals(measure[name]) for name in ("value", "low", "high"))
        chance = f" ; au hasard {_decimals(measure['chance'])}" if "chance" in measure else ""
        return f"{value} [{low} ; {high}]{chance}"

    typer.echo(
        f"{report['model']} : {number(report['images'])} images, {number(report['captions'])} légendes."
    )
    typer.echo("CLIPScore, 2,5 fois le cosinus s'il est positif :")
    for kind, name in _PAIRS.items():
        typer.echo(f"  {name} : {said(report['clip_score'][kind])}, cosinus {said(report['cosine'][kind])}")
    typer.echo(f"Bonne légende préférée à l'autre : {said(report['preference'])}")
    for what, name in _RECALLS.items():
        typer.echo(f"{name} :")
        for k, measure in report["recall"][what].items():
            typer.echo(f"  k = {k} : {said(measure)}")


def _cosines(judgement: "Judgement") -> "Figure":
    """Cosinus des bonnes et des mauvaises légendes."""
    from minidalle import plots

    figure, ax = plots.axes()
    kinds = ("right", "wrong")
    values = [judgement.cosines[kind] for kind in kinds]
    ax.hist(values, 30, label=[_PAIRS[kind] for kind in kinds], color=[plots.CODE, plots.IMAGE])
    ax.set(xlabel="cosinus de l'image et de la légende", ylabel="couples")
    ax.legend()
    return figure
