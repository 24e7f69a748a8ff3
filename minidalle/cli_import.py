"""`minidalle import` : un modèle publié, déjà sur le disque, devient un modèle du livre."""

from pathlib import Path
from typing import Annotated

import typer

from minidalle.typer_fr import Command, number


def import_model(
    kind: Annotated[str, typer.Argument(metavar="GENRE", help="« dvae », « vqgan » ou « min-dalle ».")],
    path: Annotated[
        Path, typer.Argument(metavar="CHEMIN", help="Fichier publié, ou dossier qui contient les siens.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DOSSIER", help="Où écrire le modèle.")],
) -> None:
    """Convertir un modèle publié, sans rien télécharger ni exécuter de ce qu'il contient.

    dvae : encoder.pkl et decoder.pkl d'OpenAI. vqgan : le .ckpt de taming-transformers. min-dalle : encoder.pt,
    decoder.pt, vocab.json, merges.txt et detoker.pt, de DALL·E mini ou mega.
    """
    from minidalle.hub import convert

    for file in convert(kind, path, out):
        typer.echo(f"{file} : {number(round(file.stat().st_size / 1e6))} Mo")


def add_to(app: typer.Typer) -> None:
    """Ajoute la commande à la ligne de commande du projet."""
    epilog = "Exemple : minidalle import min-dalle pretrained/dalle_bart_mini --out mini"
    app.command("import", cls=Command, epilog=epilog)(import_model)
