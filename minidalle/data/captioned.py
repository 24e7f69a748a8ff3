"""Images légendées fournies par l'utilisateur : JSON de légendes COCO, ou dossier de paires image/texte.

Les légendes sont lues et vérifiées à l'ouverture ; les images ne le sont qu'à la demande, une par une.
Toute erreur nomme le fichier et l'entrée en cause.

Source du format COCO : https://cocodataset.org/#format-data, « Image Captioning ».
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minidalle.errors import MinidalleError, reason

# Pillow lit bien d'autres formats, dont EPS, qui lance un programme extérieur.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def load_image(path: Path | str, size: int | None = None) -> np.ndarray:
    """Lit une image telle qu'un humain la verrait : redressée selon l'EXIF, transparence posée sur du blanc.

    Gris, palette, CMJN et 16 bits sont ramenés à trois canaux de 8 bits ; d'une animation, on garde la
    première image.

    Args:
        path: fichier JPEG, PNG, WebP, GIF, BMP, TIFF ou PPM.
        size: côté voulu ; l'image est rognée en carré autour de son centre puis réduite ou agrandie.
            None garde ses dimensions.

    Returns:
        Tableau uint8 (H, W, 3), RVB ; (size, size, 3) si `size` est donné.

    Raises:
        MinidalleError: fichier absent, tronqué, qui n'est pas une image, ou taille impossible.
    """
    if size is not None and size < 1:
        raise MinidalleError(f"Taille d'image impossible ({size}) : au moins 1 pixel.")
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            image = _to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # un fichier abîmé peut lever presque n'importe quoi dans les décodeurs
        raise MinidalleError(f"L'image « {path} » {_diagnosis(error)}.") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.array(image)


def _diagnosis(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"n'est d'aucun format connu : la convertir en {_FORMATS[0]} ou {_FORMATS[1]}"
    if isinstance(error, FileNotFoundError):
        return "est introuvable : vérifier le chemin"
    if isinstance(error, OSError) and error.errno:
        return f"ne peut pas être ouverte ({reason(error)}) : vérifier le chemin"
    if isinstance(error, NotImplementedError):
        return f"a des pixels d'un type imprévu ({error}) : la convertir en 8 ou 16 bits"
    return "est tronquée, abîmée ou démesurée : la remplacer ou la retirer"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise NotImplementedError("virgule flottante, d'échelle inconnue")
    if image.mode.startswith("I"):  # gris sur 16 bits, que Pillow écrêterait au lieu de le ramener à 8
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class CaptionedImages:
    """Suite d'images, chacune avec au moins une légende.

    Attributes:
        source: fichier JSON ou dossier d'où viennent les légendes.
        captions: légendes de chaque image, lisibles sans ouvrir les images.
    """

    def __init__(
        self, source: Path, folder: Path, names: list[str], captions: list[list[str]], size: int | None = None
    ) -> None:
        """Assemble des entrées déjà vérifiées ; voir plutôt `open`, `from_coco` et `from_folder`."""
        self.source = source
        self.captions = captions
        self._folder = folder
        self._names = names
        self._size = size

    @classmethod
    def open(cls, path: Path | str, size: int | None = None) -> "CaptionedImages":
        """Devine le format : un fichier JSON, un dossier qui en contient un, ou un dossier de paires.

        Les images d'un JSON sont cherchées dans le dossier voisin `images`, sinon à côté de lui. Dans un
        dossier qui contient plusieurs JSON, seul `captions.json` est lu.

        Args:
            path: fichier ou dossier.
            size: voir `load_image`.

        Raises:
            MinidalleError: rien de lisible à cet endroit, ou entrée fautive.
        """
        path = Path(path)
        if path.is_dir():
            found = sorted(path.glob("captions.json")) or sorted(path.glob("*.json"))
            if not found:
                return cls.from_folder(path, size)
            if len(found) > 1:
                raise MinidalleError(
                    f"Le dossier « {path} » contient plusieurs fichiers JSON : donner celui des légendes."
                )
            path = found[0]
        neighbour = path.parent / "images"
        return cls.from_coco(path, neighbour if neighbour.is_dir() else path.parent, size)

    @classmethod
    def from_coco(
        cls, json_path: Path | str, images_dir: Path | str, size: int | None = None
    ) -> "CaptionedImages":
        """Légendes au format COCO.

        Deux listes sont lues : `images` (`id`, `file_name`), qui donne l'ordre, et `annotations`
        (`image_id`, `caption`). L'existence des fichiers d'images n'est vérifiée qu'à leur lecture : les
        légendes se lisent sans les images.

        Args:
            json_path: fichier JSON, UTF-8.
            images_dir: dossier auquel se rapportent les `file_name`.
            size: voir `load_image`.

        Raises:
            MinidalleError: JSON illisible, champ absent ou d'un autre type, identifiant inconnu ou répété,
                légende vide, image sans légende ou hors du dossier.
        """
        json_path = Path(json_path)
        content = _read_json(json_path)
        where = f"« {json_path} »"
        names: list[str] = []
        captions: dict[int | str, list[str]] = {}
        for i, entry in enumerate(_field(content, "images", list, where)):
            where = f"« {json_path} », images[{i}]"
            key, name = _field(entry, "id", (int, str), where), _field(entry, "file_name", str, where)
            if key in captions:
                raise MinidalleError(f"{where} : l'identifiant {key!r} est déjà pris, le rendre unique.")
            # Un fichier de données ne doit pas pouvoir faire lire ailleurs que dans son dossier.
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise MinidalleError(f"{where} : « file_name » sort du dossier des images, le corriger.")
            captions[key] = []
            names.append(name)
        where = f"« {json_path} »"
        for i, entry in enumerate(_field(content, "annotations", list, where)):
            where = f"« {json_path} », annotations[{i}]"
            key, caption = _field(entry, "image_id", (int, str), where), _field(entry, "caption", str, where)
            if key not in captions:
                raise MinidalleError(f"{where} : « image_id » vaut {key!r}, qu'aucune image ne porte.")
            if not caption.strip():
                raise MinidalleError(f"{where} : légende vide, la compléter ou retirer l'entrée.")
            captions[key].append(caption.strip())
        for i, (key, found) in enumerate(captions.items()):
            if not found:
                where = f"« {json_path} », images[{i}]"
                raise MinidalleError(f"{where} : l'image {key!r} n'a aucune légende, en ajouter une.")
        return cls._checked(json_path, Path(images_dir), names, list(captions.values()), size)

    @classmethod
    def from_folder(cls, folder: Path | str, size: int | None = None) -> "CaptionedImages":
        """Paires « photo.jpg », « photo.txt » d'un dossier (sans ses sous-dossiers), dans l'ordre des noms.

        Le texte, en UTF-8, porte une légende par ligne ; lignes vides et textes sans image sont ignorés.

        Args:
            folder: dossier.
            size: voir `load_image`.

        Raises:
            MinidalleError: dossier sans image, image sans texte, texte vide ou qui n'est pas de l'UTF-8.
        """
        folder = Path(folder)
        try:
            files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES and f.name[0] != ".")
        except OSError as error:
            raise MinidalleError(
                f"Dossier « {folder} » illisible ({reason(error)}) : vérifier le chemin."
            ) from error
        captions = [_read_lines(file) for file in files]
        return cls._checked(folder, folder, [file.name for file in files], captions, size)

    @classmethod
    def _checked(cls, source: Path, *rest: Any) -> "CaptionedImages":
        dataset = cls(source, *rest)
        if not len(dataset):
            raise MinidalleError(f"« {source} » ne contient aucune image légendée : vérifier le chemin.")
        return dataset

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Image uint8 (H, W, 3), lue à l'instant, et ses légendes.

        Raises:
            MinidalleError: image absente ou illisible.
            IndexError: indice hors de la suite.
        """
        captions = self.captions[index]
        try:
            return load_image(self._folder / self._names[index], self._size), captions
        except MinidalleError as error:
            raise MinidalleError(f"« {self.source} », entrée {index} : {error}") from error


def _read_json(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise MinidalleError(f"« {path} » est illisible ({reason(error)}) : vérifier le chemin.") from error
    except (ValueError, RecursionError) as error:
        line = f" (ligne {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise MinidalleError(f"« {path} » n'est pas du JSON en UTF-8{line} : le corriger.") from error


def _field(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Champ `key` de `entry`, du type `kind` ; `where` situe l'entrée dans le message d'erreur."""
    if not isinstance(entry, dict):
        raise MinidalleError(f"{where} : un objet JSON est attendu, pas {entry!r:.40}.")
    if key not in entry:
        raise MinidalleError(f"{where} : il manque le champ « {key} », l'ajouter.")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MinidalleError(f"{where} : « {key} » est d'un type inattendu ({value!r:.40}), le corriger.")
    return value


def _read_lines(image: Path) -> list[str]:
    """Légendes du fichier .txt qui accompagne une image."""
    path = image.with_suffix(".txt")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError as error:
        raise MinidalleError(f"L'image « {image} » n'a pas de légende : écrire « {path.name} ».") from error
    except OSError as error:
        raise MinidalleError(f"« {path} » est illisible ({reason(error)}) : vérifier ses droits.") from error
    except UnicodeDecodeError as error:
        raise MinidalleError(f"« {path} » n'est pas en UTF-8 : l'enregistrer ainsi.") from error
    if not any(lines):
        raise MinidalleError(f"« {path} » est vide : y écrire une légende par ligne, ou retirer l'image.")
    return [line for line in lines if line]
