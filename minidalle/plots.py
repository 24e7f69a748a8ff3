"""Les figures du livre : un style, des couleurs qui veulent toujours dire la même chose.

Importer ce module règle Matplotlib : fond transparent, virgule décimale, palette lisible par les
daltoniens (Okabe et Ito), et dessins vectoriels dans les carnets.
"""

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import ScalarFormatter
from matplotlib_inline.backend_inline import set_matplotlib_formats

# Une couleur par sorte d'objet, dans tout le livre.
TEXT, IMAGE, MODEL, CODE = "#0072B2", "#D55E00", "#555555", "#009E73"
OTHER = ("#CC79A7", "#E69F00", "#56B4E9")
PALETTE = (TEXT, IMAGE, CODE, *OTHER, MODEL)

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.interpolation": "nearest",
    # Les textes restent du texte (cherchable, lisible par une synthèse vocale), et le fichier ne change
    # pas d'une construction à l'autre.
    "svg.fonttype": "none",
    "svg.hashsalt": "minidalle",
}


def use_style() -> None:
    """Pose le style du livre."""
    mpl.rcParams.update(STYLE)
    set_matplotlib_formats("svg", "pdf")


class FrenchFormatter(ScalarFormatter):
    """Graduations à virgule décimale, milliers séparés par une espace fine."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return french(super().__call__(x, pos))


def french(number: float | str, digits: int = 3) -> str:
    """Nombre écrit à la française : « 0,25 », « 12 000 ».

    Args:
        number: nombre, arrondi à `digits` chiffres significatifs s'il n'est pas entier, ou nombre
            déjà écrit avec un point décimal.
    """
    if isinstance(number, str):
        text = number
    elif float(number).is_integer():
        text = str(int(number))
    else:
        text = np.format_float_positional(number, digits, unique=False, fractional=False, trim="k")
        text = text.removesuffix(".")
    whole, point, decimals = text.partition(".")
    digits_only = whole.lstrip("-−")
    if len(digits_only) > 4 and digits_only.isdigit():
        whole = f"{int(whole.replace('−', '-')):,}".replace(",", "\u202f")
    return whole + point.replace(".", ",") + decimals


def axes(width: float = 5.6, height: float = 3.0, **options) -> tuple[Figure, Axes]:
    """Une figure à un seul repère, gradué à la française."""
    figure, ax = plt.subplots(figsize=(width, height), **options)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FrenchFormatter())
    return figure, ax


def show_images(
    images: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 8, side: float = 0.95
) -> Figure:
    """Planche d'images.

    Args:
        images: tableaux (H, W) ou (H, W, 3).
        titles: texte sous chaque image, coupé à sa largeur ; vide pour aucun.
        columns: images par ligne.
        side: côté d'une image, en pouces.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    line = 0.16  # hauteur d'une ligne de texte, en pouces
    wrapped = [textwrap.fill(title, round(side * 15)) for title in titles]
    below = line * max((text.count("\n") + 1 for text in wrapped), default=0)
    figure, grid = plt.subplots(
        rows, columns, figsize=(columns * side * 1.06, rows * (side * 1.06 + below)), squeeze=False
    )
    for ax in grid.flat[len(images) :]:
        ax.axis("off")
    for ax, image in zip(grid.flat, images, strict=False):
        show_image(ax, image)
    for ax, text in zip(grid.flat, wrapped, strict=False):
        ax.text(0.5, -0.04, text, transform=ax.transAxes, ha="center", va="top", fontsize=7.5)
    return figure


def show_image(ax: Axes, image: np.ndarray) -> None:
    """Une image sans graduations, cernée d'un trait fin : un fond blanc se perdrait sur la page."""
    ax.imshow(image)
    ax.grid(False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="#999999", linewidth=0.4)


def show_tokens(ax: Axes, image: np.ndarray, tokens: np.ndarray) -> None:
    """Grille de jetons (h, w) écrite sur son image (H, W, 3)."""
    height, width = image.shape[:2]
    rows, columns = tokens.shape
    show_image(ax, _pale(image))
    ax.set(xticks=np.arange(1, columns) * width / columns - 0.5)
    ax.set(yticks=np.arange(1, rows) * height / rows - 0.5)
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    ax.grid(True, color="white", alpha=1, linewidth=0.6)
    for (i, j), token in np.ndenumerate(tokens):
        place = ((j + 0.5) * width / columns - 0.5, (i + 0.5) * height / rows - 0.5)
        ax.text(*place, str(token), ha="center", va="center", fontsize=5.6, color="black")


def chain(steps: Sequence[tuple[str, str, str]], width: float = 7.4, height: float = 1.25) -> Figure:
    """Schéma d'une chaîne de boîtes : (nom, ce qui en sort, couleur) de gauche à droite.

    La sortie de la dernière boîte est écrite à droite de sa flèche, comme les autres.
    """
    figure, ax = plt.subplots(figsize=(width, height))
    ax.axis("off")
    pitch, box = 1.0, 0.56
    for i, (name, out, colour) in enumerate(steps):
        left = i * pitch
        ax.add_patch(
            FancyBboxPatch((left, 0), box, 1, boxstyle="round,pad=0,rounding_size=0.06", fc=colour, ec="none")
        )
        ax.text(left + box / 2, 0.5, name, ha="center", va="center", color="white", fontsize=7.8)
        start, stop = (left + box + 0.02, 0.5), (left + pitch - 0.02, 0.5)
        ax.add_patch(FancyArrowPatch(start, stop, arrowstyle="-|>", mutation_scale=9, color=MODEL))
        ax.text(
            left + box + (pitch - box) / 2, 0.64, out, ha="center", va="bottom", fontsize=6.8, color=MODEL
        )
    ax.set(xlim=(-0.05, len(steps) * pitch + 0.02), ylim=(-0.08, 1.3))
    return figure


def _pale(image: np.ndarray) -> np.ndarray:
    """Image éclaircie : on doit pouvoir écrire dessus."""
    return (255 - (255 - image.astype(float)) * 0.4).astype(np.uint8)


use_style()
