"""Images légendées fournies par l'utilisateur : JSON de légendes COCO, ou dossier de paires image/texte.

Les légendes sont lues et vérifiées à l'ouverture ; les images ne le sont qu'à la demande, une par une.
Toute erreur nomme le fichier et l'entrée en cause.

Source du format COCO : https://cocodataset.org/#format-data, « Image Captioning ».
"""

import codecs
import contextlib
import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import ijson
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minidalle.errors import MinidalleError, reason

# Pillow lit bien d'autres formats, dont EPS, qui lance un programme extérieur.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")

BAD_IMAGES = ("fail", "list", "skip")


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
        names: fichier de chaque image, dans le dossier des images.
        captions: légendes de chaque image, lisibles sans ouvrir les images.
        skipped: une phrase par image que `sift` a écartée.
    """

    def __init__(
        self, source: Path, folder: Path, names: list[str], captions: list[list[str]], size: int | None = None
    ) -> None:
        """Assemble des entrées déjà vérifiées ; voir plutôt `open`, `from_coco` et `from_folder`."""
        self.source = source
        self.names = names
        self.captions = captions
        self.skipped: list[str] = []
        self._folder = folder
        self._size = size

    @classmethod
    def open(cls, path: Path | str, size: int | None = None, bad_images: str = "fail") -> Self:
        """Devine le format : un fichier JSON, un dossier qui en contient un, ou un dossier de paires.

        Les images d'un JSON sont cherchées dans le dossier voisin `images`, sinon à côté de lui. Dans un
        dossier qui contient plusieurs JSON, seul `captions.json` est lu.

        Args:
            path: fichier ou dossier.
            size: voir `load_image`.
            bad_images: voir `sift`.

        Raises:
            MinidalleError: rien de lisible à cet endroit, ou entrée fautive.
        """
        path = Path(path)
        if path.is_dir():
            found = sorted(path.glob("captions.json")) or sorted(path.glob("*.json"))
            if not found:
                return cls.from_folder(path, size).sift(bad_images)
            if len(found) > 1:
                raise MinidalleError(
                    f"Le dossier « {path} » contient plusieurs fichiers JSON : donner celui des légendes."
                )
            path = found[0]
        neighbour = path.parent / "images"
        folder = neighbour if neighbour.is_dir() else path.parent
        return cls.from_coco(path, folder, size).sift(bad_images)

    @classmethod
    def from_coco(cls, json_path: Path | str, images_dir: Path | str, size: int | None = None) -> Self:
        """Légendes au format COCO.

        Deux listes sont lues : `images` (`id`, `file_name`), qui donne l'ordre, et `annotations`
        (`image_id`, `caption`). L'existence des fichiers d'images n'est vérifiée qu'à leur lecture : les
        légendes se lisent sans les images.

        Le JSON est lu au fil de l'eau, et seul ce qui sert est gardé : 100 Mio pour 500 000 légendes, là où
        `json.load` en prend 350, ou 590 s'il s'y trouve un seul émoji.

        Args:
            json_path: fichier JSON, UTF-8.
            images_dir: dossier auquel se rapportent les `file_name`.
            size: voir `load_image`.

        Raises:
            MinidalleError: JSON illisible, champ absent ou d'un autre type, identifiant inconnu ou répété,
                légende vide, image sans légende ou hors du dossier.
        """
        json_path = Path(json_path)
        names: dict[int | str, str] = {}
        captions: dict[int | str, list[str]] = {}
        for where, part, entry in _entries(json_path):
            if part == "images":
                key, name = _field(entry, "id", (int, str), where), _field(entry, "file_name", str, where)
                if key in names:
                    raise MinidalleError(f"{where} : l'identifiant {key!r} est déjà pris, le rendre unique.")
                # Un fichier de données ne doit pas pouvoir faire lire ailleurs que dans son dossier.
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise MinidalleError(f"{where} : « file_name » sort du dossier des images, le corriger.")
                names[key] = name
            else:
                key = _field(entry, "image_id", (int, str), where)
                caption = _field(entry, "caption", str, where).strip()
                if not caption:
                    raise MinidalleError(f"{where} : légende vide, la compléter ou retirer l'entrée.")
                captions.setdefault(key, []).append(caption)
        if captions.keys() - names.keys():  # une seconde lecture, pour dire où
            for where, part, entry in _entries(json_path):
                if part == "annotations" and (key := entry["image_id"]) not in names:
                    raise MinidalleError(f"{where} : « image_id » vaut {key!r}, qu'aucune image ne porte.")
        for i, key in enumerate(names):
            if key not in captions:
                where = f"« {json_path} », images[{i}]"
                raise MinidalleError(f"{where} : l'image {key!r} n'a aucune légende, en ajouter une.")
        told = [captions[key] for key in names]
        return cls._checked(json_path, Path(images_dir), list(names.values()), told, size)

    @classmethod
    def from_folder(cls, folder: Path | str, size: int | None = None) -> Self:
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
    def _checked(cls, source: Path, *rest: Any) -> Self:
        dataset = cls(source, *rest)
        if not len(dataset):
            raise MinidalleError(f"« {source} » ne contient aucune image légendée : vérifier le chemin.")
        return dataset

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Image uint8 (H, W, 3), lue à l'instant, et ses légendes.

        Raises:
            MinidalleError: image absente ou illisible.
            IndexError: indice hors de la suite.
        """
        captions = self.captions[index]
        try:
            return self._load(self._folder / self.names[index]), captions
        except MinidalleError as error:
            raise MinidalleError(f"« {self.source} », entrée {index} : {error}") from error

    def _load(self, path: Path) -> np.ndarray:
        return load_image(path, self._size)

    def keep(self, indices: Iterable[int]) -> Self:
        """La même suite, réduite à ces entrées, dans cet ordre."""
        kept, indices = copy.copy(self), list(indices)
        kept.names = [self.names[i] for i in indices]
        kept.captions = [self.captions[i] for i in indices]
        return kept

    def sift(self, bad_images: str) -> Self:
        """Choisit que faire des images absentes ou illisibles.

        Args:
            bad_images: « fail », ne rien vérifier : la première que l'on lira lèvera une erreur ; « list »,
                les lire toutes, une à la fois, et lever une erreur qui énumère les mauvaises ; « skip », les
                lire toutes et rendre la suite sans les mauvaises, que `skipped` énumère.

        Raises:
            MinidalleError: choix inconnu, une image mauvaise si « list », toutes si « skip ».
        """
        if bad_images not in BAD_IMAGES:
            raise MinidalleError(
                f"« {bad_images} » n'est pas un choix pour les images illisibles : {', '.join(BAD_IMAGES)}."
            )
        if bad_images == "fail":
            return self
        faults: dict[int, str] = {}
        for i in range(len(self)):
            try:
                self[i]
            except MinidalleError as error:
                faults[i] = str(error)
        if faults and (bad_images == "list" or len(faults) == len(self)):
            raise MinidalleError(
                "\n".join([f"Images illisibles : {len(faults)} sur {len(self)}.", *faults.values()])
            )
        kept = self.keep(i for i in range(len(self)) if i not in faults)
        kept.skipped = list(faults.values())
        return kept


_LISTS = ("images", "annotations")
_Event = tuple[str, Any]  # sorte et valeur, comme les donne ijson


def _entries(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Éléments des deux listes d'un JSON COCO, un par un, dans l'ordre du fichier : (place, liste, élément)."""
    found = set()
    with _events(path) as events:
        first = next(events)
        if first[0] != "start_map":
            _field(_value(first, events), "images", list, f"« {path} »")
        for _, name in _until("end_map", events):
            first = next(events)
            if first[0] == "start_array":
                found.add(name)
                for i, event in enumerate(_until("end_array", events)):
                    entry = _value(event, events)
                    if name in _LISTS:
                        yield f"« {path} », {name}[{i}]", name, entry
            elif name in _LISTS:
                _field({name: _value(first, events)}, name, list, f"« {path} »")
            else:
                _value(first, events)
        next(events, None)  # rien ne doit suivre
    for name in _LISTS:
        if name not in found:
            _field({}, name, list, f"« {path} »")


@contextlib.contextmanager
def _events(path: Path) -> Iterator[Iterator[_Event]]:
    """Ce que contient un JSON, signe après signe."""
    try:
        with path.open("rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            # `ijson.items` serait plus court, mais sa mémoire croît avec le carré de la profondeur du JSON.
            yield ijson.basic_parse(file, use_float=True)
    except OSError as error:
        raise MinidalleError(f"« {path} » est illisible ({reason(error)}) : vérifier le chemin.") from error
    except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
        raise MinidalleError(f"« {path} » {_json_fault(path)} : le corriger.") from error


def _json_fault(path: Path) -> str:
    """Ce qui ne va pas dans un JSON, et la ligne, que le module json sait dire au contraire d'ijson."""
    try:
        json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        line = f" (ligne {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        return f"n'est pas du JSON en UTF-8{line}"
    return "contient un nombre impossible (NaN, infini ou de plus de 64 bits)"


def _value(event: _Event, events: Iterator[_Event]) -> Any:
    """Valeur dont `event` est le premier signe."""
    kind, value = event
    if kind == "start_map":
        return {key: _value(next(events), events) for _, key in _until("end_map", events)}
    if kind == "start_array":
        return [_value(event, events) for event in _until("end_array", events)]
    return value


def _until(end: str, events: Iterator[_Event]) -> Iterator[_Event]:
    for event in events:
        if event[0] == end:
            return
        yield event


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
