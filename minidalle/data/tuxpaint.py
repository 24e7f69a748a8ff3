"""Tampons de Tux Paint : de vraies photographies, et des dessins, légendés en français.

Rien n'en est copié ici : on lit le paquet Debian `tuxpaint-stamps-default` là où il s'installe. Chaque image a
à côté d'elle un texte qui la dit dans une centaine de langues, dont le français (« fr.utf8=Une pomme rouge. »).
Les objets sont détourés et touchent les bords : ils sont complétés de blanc en carré, non rognés.

Source : https://tuxpaint.org, licence GPL-2.
"""

import io
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageOps

from minidalle.data.captioned import CaptionedImages, load_image
from minidalle.errors import MinidalleError

CREDIT = "Tampons de Tux Paint (tuxpaint.org), © Bill Kendrick et les contributeurs, licence GPL-2."
STAMPS = Path("/usr/share/tuxpaint/stamps")

_FRENCH = "fr.utf8="


class Stamps(CaptionedImages):
    """Suite de tampons ; voir `read_stamps`."""

    @property
    def categories(self) -> list[str]:
        """Dossier de chaque image, en anglais : « animals/birds », « food/fruit/cartoon »."""
        return [Path(name).parent.as_posix() for name in self.names]

    def _load(self, path: Path) -> np.ndarray:
        image = _draw(path, self._size) if path.suffix == ".svg" else Image.fromarray(load_image(path))
        if self._size is not None:
            image = ImageOps.pad(image, (self._size, self._size), Image.Resampling.LANCZOS, color="white")
        return np.array(image)


def read_stamps(size: int | None = None, folder: Path | str = STAMPS) -> Stamps:
    """Tampons qui ont une image et une légende française, dans l'ordre des noms.

    Dessins et photographies sont mêlés, et rien ne les distingue à coup sûr : les dossiers « cartoon » et
    « symbols » n'ont que des dessins. D'une image offerte en PNG et en SVG, on lit le PNG.

    Args:
        size: côté voulu, en pixels ; None garde les dimensions de chaque image.
        folder: où les tampons sont installés.

    Raises:
        MinidalleError: tampons absents ; le message dit comment les installer.
    """
    folder = Path(folder)
    names, captions = [], []
    for path in sorted(folder.rglob("*.txt")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.removeprefix(_FRENCH).strip() for line in lines if line.startswith(_FRENCH)]
        told = [caption for caption in told if caption]
        image = next((i for i in (path.with_suffix(".png"), path.with_suffix(".svg")) if i.is_file()), None)
        if image and told:
            names.append(image.relative_to(folder).as_posix())
            captions.append(told)
    if not names:
        raise MinidalleError(
            f"Aucun tampon de Tux Paint dans « {folder} » : les installer, sous Debian ou Ubuntu, par "
            f"« sudo apt-get install tuxpaint-stamps-default »."
        )
    return Stamps(folder, folder, names, captions, size)


def _draw(path: Path, size: int | None) -> Image.Image:
    """Dessin vectoriel sur fond blanc, quatre fois plus large qu'il ne faudra : le réduire en lisse les traits."""
    try:
        png = resvg_py.svg_to_bytes(
            svg_path=str(path),
            width=size and 4 * size,
            background="white",
            dpi=96,  # sans quoi resvg refuse les dimensions en points ou en millimètres
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise MinidalleError(f"Le dessin « {path} » est illisible : réinstaller les tampons.") from error
    return Image.open(io.BytesIO(png)).convert("RGB")
