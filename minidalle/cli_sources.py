"""Les sources de données, vues de la ligne de commande : leurs noms, comment les ouvrir, à qui elles sont dues."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from minidalle.errors import MinidalleError
from minidalle.typer_fr import tell_skipped

if TYPE_CHECKING:
    from minidalle.data.sources import Source

MADE = ("scenes", "openmoji")  # sources que le projet fabrique
MIXED = "scenes+openmoji"  # leur mélange, pour entraîner
NAMED = (*MADE, MIXED, "tuxpaint")  # toute autre source est un dossier


def open_source(name: str, split: str, size: int, bad_images: str = "fail") -> "Source":
    """Source nommée, ou dossier ; énumère les images écartées.

    Raises:
        MinidalleError: source inconnue, ou que `minidalle.data.sources.open_source` refuse.
    """
    from minidalle.data import sources

    if name not in NAMED and not Path(name).exists():
        raise MinidalleError(
            f"Source « {name} » inconnue : choisir {', '.join(MADE)} ou un dossier d'images légendées."
        )
    source = sources.open_source(name, split, size, bad_images)
    if isinstance(source, sources.Folder):
        tell_skipped(source.pairs.skipped)
    return source


def tell_credit(source: str) -> None:
    """Affiche la mention due aux dessinateurs des images ; les scènes contiennent des émojis."""
    from minidalle.data import openmoji, tuxpaint

    if source in (*MADE, MIXED):
        typer.echo(openmoji.CREDIT)
    elif source == "tuxpaint":
        typer.echo(tuxpaint.CREDIT)
