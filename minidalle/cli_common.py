"""Ce que plusieurs commandes partagent : options, noms de fichiers, images PNG. Rien de lourd n'y est chargé."""

import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minidalle import __version__
from minidalle.errors import MinidalleError
from minidalle.files import atomic_write
from minidalle.typer_fr import label, natural

if TYPE_CHECKING:
    import numpy as np

# --- options --------------------------------------------------------------------------------------


def positive(param: typer.CallbackParam, value: float | None) -> float | None:
    # Écrit ainsi, « nan » est refusé aussi.
    if value is not None and not 0 < value < math.inf:
        raise MinidalleError(f"{label(param)} veut un nombre positif, pas {value}.")
    return value


def few(param: typer.CallbackParam, value: int | None) -> int | None:
    if value is not None and not 1 <= value <= 256:
        raise MinidalleError(f"{label(param)} veut un nombre de 1 à 256, pas {value}.")
    return value


Number = Annotated[
    int, typer.Option("-n", metavar="ENTIER", callback=few, help="Nombre d'images, de 1 à 256.")
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="ENTIER", callback=natural, help="Graine : la même redonne les mêmes images."
    ),
]
Size = Annotated[
    int, typer.Option("--size", metavar="PIXELS", callback=few, help="Côté des images, de 1 à 256 pixels.")
]
Split = Annotated[
    str,
    typer.Option("--split", metavar="PART", help="« train », ou « test » pour ce qui est réservé au test."),
]
Zoom = Annotated[
    int,
    typer.Option(
        "--zoom", metavar="ENTIER", callback=few, help="Agrandissement : pixels par pixel du modèle."
    ),
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", help="Moins de 1 : plus sage ; plus de 1 : plus varié.")
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help="Ne tirer que dans le noyau de probabilité P."),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="S",
        show_default="celui que conseillent les poids",
        help="Guidage : plus de 1, plus fidèle et moins varié, deux fois plus long ; 0, sans la description.",
    ),
]
Output = Annotated[str | None, typer.Option("-o", "--output", metavar="FICHIER.png", help="Image à écrire.")]

# --- noms -----------------------------------------------------------------------------------------


def file_path(output: str, suffix: str) -> Path:
    """Fichier à écrire, de la bonne extension.

    Raises:
        MinidalleError: une autre extension, ou un dossier.
    """
    path = Path(output)
    if path.suffix.lower() != suffix or path.is_dir():
        raise MinidalleError(
            f"« {output} » ne convient pas : donner un nom de fichier qui finit par {suffix}."
        )
    return path


def png_path(output: str | None, title: str = "") -> Path:
    """Fichier demandé, ou à défaut `title`.png."""
    return Path(f"{title}.png") if output is None else file_path(output, ".png")


def slug(text: str) -> str:
    """« Un cœur, à pois ! » → « un-coeur-a-pois », 60 caractères au plus."""
    text = unicodedata.normalize("NFKD", text.lower().replace("œ", "oe"))
    text = re.sub("[^a-z0-9]+", "-", text.encode("ascii", "ignore").decode())
    return text.strip("-")[:60].strip("-") or "image"


def model_name(weights: Path) -> str:
    """Nom d'un modèle à citer : celui de son fichier, ou du dossier où il a été entraîné."""
    return weights.stem if weights.stem != "model" else weights.resolve().parent.name


# --- images ---------------------------------------------------------------------------------------


def write_png(path: Path, images: "Sequence[np.ndarray]", zoom: int = 1, **texts: str) -> None:
    """`save_png`, puis dit où."""
    save_png(path, images, zoom, **texts)
    typer.echo(path)


def save_png(path: Path, images: "Sequence[np.ndarray]", zoom: int = 1, **texts: str) -> None:
    """Écrit des images uint8 (S, S, 3) en grille, agrandies, avec des textes.

    Raises:
        MinidalleError: image démesurée, ou écriture impossible.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    sheet = grid(images)
    if sheet.size * zoom**2 > 10**9:
        raise MinidalleError("L'image serait démesurée : réduire --zoom ou -n.")
    info = PngInfo()
    for name, text in (texts | {"Software": f"minidalle {__version__}"}).items():
        info.add_itxt(name, text)
    with atomic_write(path) as file:
        Image.fromarray(enlarge(sheet, zoom)).save(file, "PNG", pnginfo=info)


def enlarge(image: "np.ndarray", zoom: int) -> "np.ndarray":
    """Chaque pixel d'une image (H, W, 3) devient un carré de `zoom` pixels."""
    return image.repeat(zoom, 0).repeat(zoom, 1)


def grid(images: "Sequence[np.ndarray]", gap: int = 2) -> "np.ndarray":
    """Images (S, S, 3), de gauche à droite puis de haut en bas, dans une grille presque carrée."""
    import numpy as np

    side = len(images[0])
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    step = side + gap
    sheet = np.full((rows * step - gap, columns * step - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * step, i % columns * step
        sheet[y : y + side, x : x + side] = image
    return sheet
