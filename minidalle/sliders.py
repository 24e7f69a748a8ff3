"""Figures à curseur : des images calculées d'avance, que le lecteur parcourt sans serveur ni réseau.

Dans une page ou un carnet, un bloc HTML autonome ; dans le PDF, ou sans JavaScript, une image fixe.
"""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from minidalle.errors import MinidalleError

SIDE = 400  # largeur, en pixels de la page, jusqu'à laquelle une petite image est agrandie
DPI, SCREEN = 160, 96  # points par pouce d'une figure, et d'une page
IMAGE = '<img src="data:image/png;base64,{0}" alt="{1} {2}" data-label="{2}" decoding="sync" {3}{4}>'
BLOCK = """<div id="curseur-{name}" style="max-width: {width}px; margin: auto">
<style>#curseur-{name} img {{ max-width: 100%; height: auto }}
@media print {{ #curseur-{name} input {{ display: none }} }}</style>
{images}
<p style="display: flex; flex-wrap: wrap; align-items: center; gap: .3em .8em; margin: .4em 0; text-align: left">
<label for="curseur-{name}-place">{control}</label>
<input type="range" id="curseur-{name}-place" min="0" max="{last}" value="{still}" autocomplete="off" hidden
 aria-label="{control}" aria-valuetext="{label}" style="flex: 1 1 9em; min-width: 0; accent-color: #3b82c4">
<output for="curseur-{name}-place" aria-live="off" style="flex: 0 1 {room}ch">{label}</output>
</p>
<script>
(() => {{
  const [block, input] = ["", "-place"].map((end) => document.getElementById("curseur-{name}" + end));
  input.hidden = false;
  input.addEventListener("input", () => block.querySelectorAll("img").forEach((image, place) => {{
    image.hidden = place !== Number(input.value);
    if (image.hidden) return;
    block.querySelector("output").value = image.dataset.label;
    input.setAttribute("aria-valuetext", image.dataset.label);
  }}));
}})();
</script>
</div>"""


@dataclass(frozen=True)
class Slider:
    """Ce que rend `slider` ; un carnet l'affiche s'il est la dernière expression d'une cellule."""

    name: str
    html: str
    still: str  # PNG, en base 64

    def __repr__(self) -> str:
        return f"<curseur {self.name}>"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """myst-nb prend `text/html` pour une page, et `image/png` pour LaTeX, qui ignore le premier."""
        return {"text/html": self.html, "image/png": self.still, "text/plain": repr(self)}


def slider(
    frames: Iterable[np.ndarray | Figure],
    labels: Sequence[str],
    alt: str,
    name: str,
    still: int = 0,
    control: str = "Curseur",
) -> Slider:
    """Une image à la fois, choisie par un curseur.

    Args:
        frames: images uint8 (H, W) ou (H, W, 3), ou figures, d'une même taille ; elles peuvent venir une à une.
        labels: la valeur du curseur à chaque image, lue à voix haute.
        alt: ce que l'on voit, quelle que soit la position ; l'étiquette est ajoutée derrière.
        name: minuscules, chiffres et traits d'union, unique dans la page.
        still: rang de l'image montrée d'abord, et dans le PDF.
        control: nom du réglage.

    Raises:
        MinidalleError: nom impossible, moins de deux images, tailles différentes, étiquette de trop ou manquante.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise MinidalleError(f"Nom de curseur « {name} » : minuscules, chiffres et traits d'union seulement.")
    pictures = [_draw(f) if isinstance(f, Figure) else Image.fromarray(f) for f in frames]
    if not 2 <= len(pictures) == len(labels) or still not in range(len(labels)):
        raise MinidalleError(
            f"{len(pictures)} images, {len(labels)} étiquettes, image fixe n° {still} : il faut deux images ou plus,"
            " une étiquette par image, et une image fixe prise parmi elles."
        )
    if len({picture.size for picture in pictures}) > 1:
        raise MinidalleError("Les images d'un curseur doivent toutes avoir la même taille.")
    zoom = SCREEN / DPI if pictures[0].mode == "P" else max(1, SIDE // pictures[0].width)
    width, height = size = tuple(round(zoom * side) for side in pictures[0].size)
    look = f'width="{width}" height="{height}"' + ' style="image-rendering: pixelated"' * (zoom > 1)
    told, seen = [escape(label) for label in labels], escape(alt)
    images = "\n".join(
        IMAGE.format(_png(picture), seen, label, look, "" if place == still else " hidden")
        for place, (picture, label) in enumerate(zip(pictures, told, strict=True))
    )
    places = {"last": len(told) - 1, "still": still, "label": told[still], "room": max(map(len, labels))}
    html = BLOCK.format(name=name, control=escape(control), images=images, width=width, **places)
    if zoom > 1:  # les lecteurs de PDF adoucissent les pixels
        return Slider(name, html, _png(pictures[still].resize(size, Image.Resampling.NEAREST)))
    return Slider(name, html, _png(pictures[still], round(SCREEN / zoom)))


def _draw(figure: Figure) -> Image.Image:
    """La figure en 64 couleurs, refermée pour que le carnet ne l'affiche pas une seconde fois."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    return Image.open(buffer).quantize(64, Image.Quantize.FASTOCTREE)


def _png(picture: Image.Image, dpi: int = SCREEN) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, dpi=(dpi, dpi))
    return base64.b64encode(buffer.getvalue()).decode("ascii")
