"""Juger des images faites ailleurs : la phrase de chacune, relue, dit ce qu'il fallait dessiner."""

import csv
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from minidalle.data.captioned import load_image
from minidalle.data.scenes import HELD_OUT_COLOURS, held_out_layout
from minidalle.errors import MinidalleError, reason
from minidalle.evaluation.oracle import read
from minidalle.evaluation.phrases import Phrase, parse
from minidalle.evaluation.requests import SEEN_ONLY, STUDY, Request, contrast, request_of
from minidalle.evaluation.study import Item, strange, verdicts
from minidalle.evaluation.study_files import Row

PROMPTS = "prompts.csv"
SIDE = 64  # côté auquel l'oracle lit une image venue d'ailleurs
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}


def judge_images(
    images: Path, seed: int = 0, categories: Sequence[str] = tuple(STUDY)
) -> tuple[list[Row], list[str]]:
    """Juge les images d'un dossier, et dit lesquelles ne peuvent pas l'être.

    La phrase d'une image est, au premier trouvé : sa ligne de `prompts.csv` (colonnes « fichier » et « prompt ») ; la
    description que « minidalle generate » range dans ses PNG ; le nom du fichier, sans un « _1 » final. Une phrase est
    jugée dans chaque catégorie dont elle dit l'attribut ; « ordre » n'a que celles qui disent la place d'abord.

    Args:
        images: dossier.
        seed: graine des demandes contraires.
        categories: clés de `STUDY`.

    Returns:
        La table, et une ligne par image écartée.

    Raises:
        MinidalleError: dossier illisible ; rien de jugeable ; images où l'oracle ne reconnaît pas le monde du livre.
    """
    asked: list[tuple[str, Request]] = []
    pixels: dict[str, np.ndarray] = {}
    skipped = []
    for name, prompt in find_prompts(images).items():
        phrase = parse(prompt)
        found = [c for c in categories_of(phrase) if c in categories] if phrase else []
        if not found:
            skipped.append(
                f"{name} : « {prompt} » ne dit rien que ces catégories mesurent, ou pas dans ses tournures."
            )
            continue
        try:
            pixels[name] = _load(images / name)
        except MinidalleError as error:
            skipped.append(str(error))
            continue
        asked += [(name, request_of(phrase, category, _reserved(phrase, category))) for category in found]
    if not asked:
        raise MinidalleError(
            f"Aucune image de « {images} » n'est jugeable : les nommer par une demande de l'étude (voir --list), "
            f"par exemple « un carré bleu_1.png », ou écrire un {PROMPTS}."
        )
    readings = dict(zip(pixels, read(list(pixels.values())), strict=True))
    items = _items([request for _, request in asked], seed)
    rows = verdicts(items, [readings[name] for name, _ in asked], [name for name, _ in asked])
    if left := strange(rows):
        raise MinidalleError(
            f"L'oracle n'explique pas les images de « {images} » (part inexpliquée médiane : "
            f"{100 * left:.0f} %) : il ne lit que des dessins du monde du livre, ni photographies ni autres "
            f"styles. Ce qu'il en dirait serait faux ; les faire noter, par « minidalle rate »."
        )
    return rows, skipped


def find_prompts(images: Path) -> dict[str, str]:
    """Nom de chaque image d'un dossier, et sa phrase."""
    try:
        names = sorted(path.name for path in images.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise MinidalleError(
            f"« {images} » est illisible ({reason(error)}) : donner un dossier d'images."
        ) from error
    path = images / PROMPTS
    if not path.exists():
        return {name: _prompt_of(images / name) for name in names}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {Path(row["fichier"]).name: row["prompt"].strip() for row in csv.DictReader(file)}
    except (KeyError, TypeError, AttributeError, csv.Error, UnicodeDecodeError) as error:
        raise MinidalleError(
            f"« {path} » veut deux colonnes, « fichier » et « prompt », en UTF-8 : le corriger."
        ) from error


def _prompt_of(path: Path) -> str:
    try:
        with Image.open(path) as image:
            told = image.info.get("Description")
    except Exception:  # un fichier abîmé peut lever presque n'importe quoi ; il sera écarté en le lisant
        told = None
    name = unicodedata.normalize("NFC", path.stem)
    return told or re.sub(r"[ _-]+\d+$", "", name).replace("_", " ")


def categories_of(phrase: Phrase) -> list[str]:
    """Catégories dont une phrase dit l'attribut."""
    first, last, several = phrase.wishes[0], phrase.wishes[-1], len(phrase.wishes)
    if several == 2:
        both = first.colour and last.colour and first.colour != last.colour
        if first.kind == last.kind and not both:
            return []  # lequel est lequel ?
        if phrase.place:
            return ["ordre" if phrase.fronted else "relation"]
        if phrase.comparison:
            return ["taille"]
        return ["paire"] if both and first.kind != last.kind and first.count == last.count == 1 else []
    if several > 1:
        return []
    if first.count > 1:
        return ["nombre"]
    told = {
        "couleur": first.colour and not first.texture,
        "texture": first.texture,
        "fond": phrase.background,
    }
    return [category for category, said in told.items() if said] or ["objet"]


def _reserved(phrase: Phrase, category: str) -> bool:
    first, last = phrase.wishes[0], phrase.wishes[-1]
    if phrase.place:
        return held_out_layout(first.kind, phrase.place, last.kind)
    coloured = any(HELD_OUT_COLOURS.get(w.kind) == w.colour for w in phrase.wishes if w.colour)
    return coloured and category not in SEEN_ONLY


def _items(asked: Sequence[Request], seed: int) -> list[Item]:
    rng, attempts = np.random.default_rng([seed, 1]), Counter()
    groups: dict[tuple[str, bool], dict[str, Request]] = {}
    for r in asked:
        groups.setdefault((r.category, r.held_out), {}).setdefault(r.prompt, r)
    items = []
    for r in asked:
        group = list(groups[r.category, r.held_out])
        index, attempt = group.index(r.prompt), attempts[r.category, r.prompt]
        attempts[r.category, r.prompt] += 1
        opposite = contrast(r, rng)
        other = (
            groups[r.category, r.held_out][group[(index + 1) % len(group)]] if len(group) > 1 else opposite
        )
        items.append(Item(r, opposite, other, index, attempt, 0))
    return items


def _load(path: Path) -> np.ndarray:
    """L'image au côté que lit l'oracle ; un agrandissement exact, celui de « generate », est défait sans perte."""
    image = load_image(path)
    height, width = image.shape[:2]
    zoom = height // SIDE
    if height == width == zoom * SIDE:
        return image.reshape(SIDE, zoom, SIDE, zoom, 3).mean((1, 3)).round().astype(np.uint8)
    return load_image(path, SIDE)


def fingerprint(images: Path) -> str:
    """Empreinte des images et des phrases d'un dossier."""
    digest = hashlib.sha256()
    for name, prompt in find_prompts(images).items():
        content = (images / name).read_bytes() if (images / name).is_file() else b""
        digest.update(f"{name}\n{prompt}\n{len(content)}\n".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()
