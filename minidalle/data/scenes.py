"""Le monde du livre : de petites scènes dessinées, et des légendes françaises qui en disent plus ou moins.

Une `Scene` est un fond et de un à cinq objets. On sait exactement ce qu'elle contient : c'est ce qui
permet plus tard de juger une image sans juge humain. Trois fonctions se suivent :
`sample_scene` tire une scène, `render` la dessine, `caption` la raconte.

Les objets se posent sur une grille de huit cases par côté (`pitch`), celle des jetons d'image du livre :
un monde taillé pour que de petits modèles l'apprennent en une heure. `sample_scene(pitch=1 / 64)` rend
les positions libres.
"""

import functools
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import resvg_py
from PIL import Image

from minidalle.data import openmoji
from minidalle.errors import MinidalleError


@dataclass(frozen=True, slots=True)
class Noun:
    """Un nom d'objet et ce qu'il faut pour l'accorder ; `character` est l'émoji, None pour une forme."""

    singular: str
    plural: str
    gender: str  # "m" ou "f"
    character: str | None = None


@dataclass(frozen=True, slots=True)
class Adjective:
    """Les quatre formes d'un adjectif."""

    masculine: str
    feminine: str
    masculine_plural: str
    feminine_plural: str

    def agree(self, gender: str, count: int) -> str:
        """Forme accordée au genre ("m" ou "f") et au nombre."""
        if count > 1:
            return self.feminine_plural if gender == "f" else self.masculine_plural
        return self.feminine if gender == "f" else self.masculine


def _regular(masculine: str, feminine: str | None = None) -> Adjective:
    feminine = feminine or masculine + ("" if masculine.endswith("e") else "e")
    return Adjective(masculine, feminine, masculine + "s", feminine + "s")


SHAPES = {
    noun.singular: noun
    for noun in (
        Noun("cercle", "cercles", "m"),
        Noun("carré", "carrés", "m"),
        Noun("triangle", "triangles", "m"),
        Noun("étoile", "étoiles", "f"),
        Noun("croix", "croix", "f"),
        Noun("losange", "losanges", "m"),
        Noun("cœur", "cœurs", "m"),
        Noun("anneau", "anneaux", "m"),
    )
}
THINGS = {
    noun.singular: noun
    for noun in (
        Noun("mouton", "moutons", "m", "🐑"),
        Noun("chat", "chats", "m", "🐈"),
        Noun("chien", "chiens", "m", "🐕"),
        Noun("cochon", "cochons", "m", "🐖"),
        Noun("éléphant", "éléphants", "m", "🐘"),
        Noun("tortue", "tortues", "f", "🐢"),
        Noun("poisson", "poissons", "m", "🐟"),
        Noun("papillon", "papillons", "m", "🦋"),
        Noun("pingouin", "pingouins", "m", "🐧"),
        Noun("escargot", "escargots", "m", "🐌"),
        Noun("arbre", "arbres", "m", "🌳"),
        Noun("sapin", "sapins", "m", "🌲"),
        Noun("cactus", "cactus", "m", "🌵"),
        Noun("fleur", "fleurs", "f", "🌼"),
        Noun("champignon", "champignons", "m", "🍄"),
        Noun("pomme", "pommes", "f", "🍎"),
        Noun("banane", "bananes", "f", "🍌"),
        Noun("carotte", "carottes", "f", "🥕"),
        Noun("avocat", "avocats", "m", "🥑"),
        Noun("maison", "maisons", "f", "🏠"),
        Noun("voiture", "voitures", "f", "🚗"),
        Noun("bateau", "bateaux", "m", "⛵"),
        Noun("fusée", "fusées", "f", "🚀"),
        Noun("ballon", "ballons", "m", "🎈"),
    )
}
KINDS = SHAPES | THINGS

# Écarts ΔE2000 d'au moins 19 entre deux couleurs, comme entre une couleur et un fond ; 11 entre deux fonds.
COLOURS = {
    "rouge": (214, 30, 38),
    "orange": (250, 140, 20),
    "jaune": (250, 222, 10),
    "vert": (30, 150, 60),
    "bleu": (35, 80, 215),
    "violet": (140, 35, 150),
    "rose": (250, 130, 185),
    "noir": (25, 25, 30),
}
_COLOUR_WORDS = {
    "rouge": _regular("rouge"),
    "orange": Adjective("orange", "orange", "orange", "orange"),  # nom de fruit, invariable
    "jaune": _regular("jaune"),
    "vert": _regular("vert"),
    "bleu": _regular("bleu"),
    "violet": _regular("violet", "violette"),
    "rose": _regular("rose"),
    "noir": _regular("noir"),
}
TEXTURES = {
    "uni": _regular("uni"),
    "rayé": _regular("rayé"),
    "à pois": Adjective("à pois", "à pois", "à pois", "à pois"),
}
# Côté de l'objet en fraction du côté de l'image ; « moyen » ne se dit pas.
SIZES = {"petit": 0.25, "moyen": 0.375, "grand": 0.5}
SIZE_WORDS = {"petit": _regular("petit"), "grand": _regular("grand")}
BACKGROUNDS = {
    "blanc": (255, 255, 255),
    "gris": (205, 205, 210),
    "sable": (240, 222, 185),
    "azur": (185, 225, 245),
}
_NUMERALS = {2: "deux", 3: "trois", 4: "quatre", 5: "cinq"}
MAX_OBJECTS = 5

# De A vers B : « A est à gauche de B », et les trois autres.
RELATIONS = {
    "gauche": "à gauche de",
    "droite": "à droite de",
    "dessus": "au-dessus de",
    "dessous": "au-dessous de",
}
INVERSE = {"gauche": "droite", "droite": "gauche", "dessus": "dessous", "dessous": "dessus"}
_MARGIN = 0.125  # de combien un axe doit l'emporter sur l'autre pour que la relation soit nette

SPLITS = ("train", "test")
# Jamais vus à l'entraînement : une couleur par forme…
HELD_OUT_COLOURS = {
    "cercle": "violet",
    "carré": "orange",
    "triangle": "vert",
    "étoile": "rose",
    "croix": "bleu",
    "losange": "rouge",
    "cœur": "noir",
    "anneau": "jaune",
}
# … et des dispositions, ces deux-là plus une sur vingt tirée par hachage. La seconde est le titre du livre.
_HELD_OUT_LAYOUTS = {("étoile", "gauche", "croix"), ("mouton", "gauche", "carré")}


@dataclass(frozen=True, slots=True)
class Object:
    """Un objet d'une scène.

    Attributes:
        kind: nom français, clé de `KINDS`.
        colour: clé de `COLOURS` pour une forme, None pour un émoji, qui a ses propres couleurs.
        texture: clé de `TEXTURES` ; « uni » pour un émoji.
        size: clé de `SIZES`.
        x, y: centre, en fraction du côté de l'image ; (0, 0) est le coin en haut à gauche.

    Raises:
        MinidalleError: valeur hors de ces tables.
    """

    kind: str
    colour: str | None = None
    texture: str = "uni"
    size: str = "moyen"
    x: float = 0.5
    y: float = 0.5

    def __post_init__(self) -> None:
        _check("objet", self.kind, KINDS)
        _check("texture", self.texture, TEXTURES)
        _check("taille", self.size, SIZES)
        if self.kind in SHAPES:
            _check("couleur", self.colour, COLOURS)
        elif self.colour is not None or self.texture != "uni":
            raise MinidalleError(f"« {self.kind} » est un émoji : il ne prend ni couleur ni texture.")
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
            raise MinidalleError(f"Position ({self.x}, {self.y}) hors de l'image : rester entre 0 et 1.")

    @property
    def side(self) -> float:
        """Côté de la boîte qui contient l'objet, en fraction du côté de l'image."""
        return SIZES[self.size]


@dataclass(frozen=True, slots=True)
class Scene:
    """Un fond (clé de `BACKGROUNDS`) et de un à cinq objets, dessinés dans l'ordre.

    Raises:
        MinidalleError: fond inconnu, ou nombre d'objets hors de 1 à 5.
    """

    background: str
    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        _check("fond", self.background, BACKGROUNDS)
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise MinidalleError(
                f"Une scène a de 1 à {MAX_OBJECTS} objets, pas {len(self.objects)} : en ajouter ou en ôter."
            )


def relation(a: Object, b: Object) -> str | None:
    """Où est `a` par rapport à `b` : clé de `RELATIONS`, ou None si aucun axe ne l'emporte nettement.

    Au plus une relation est vraie, et `relation(b, a)` est son inverse.
    """
    dx, dy = b.x - a.x, b.y - a.y
    # La marge tolère l'arrondi : sur la grille, un écart d'une case doit compter pour une case.
    if abs(dx) - abs(dy) > _MARGIN - 1e-6:
        return "gauche" if dx > 0 else "droite"
    if abs(dy) - abs(dx) > _MARGIN - 1e-6:
        return "dessus" if dy > 0 else "dessous"
    return None


# --- découpage ------------------------------------------------------------------------------------


@functools.cache
def held_out_layout(kind_a: str, place: str, kind_b: str) -> bool:
    """La disposition « kind_a est `place` de kind_b » est-elle réservée au test ?"""
    if place in ("droite", "dessous"):
        kind_a, place, kind_b = kind_b, INVERSE[place], kind_a
    if (kind_a, place, kind_b) in _HELD_OUT_LAYOUTS:
        return True
    digest = hashlib.sha256(f"{kind_a}|{place}|{kind_b}".encode()).digest()
    return int.from_bytes(digest[:4]) % 20 == 0


def split_of(scene: Scene) -> str:
    """« test » si la scène contient une combinaison réservée (couleur d'une forme ou disposition)."""
    objects = scene.objects
    if any(HELD_OUT_COLOURS.get(o.kind) == o.colour for o in objects if o.colour):
        return "test"
    for i, a in enumerate(objects):
        for b in objects[i + 1 :]:
            place = relation(a, b)
            if place and held_out_layout(a.kind, place, b.kind):
                return "test"
    return "train"


# --- tirage ---------------------------------------------------------------------------------------

_COUNT_SHARES = (0.32, 0.36, 0.16, 0.10, 0.06)
_SIZE_SHARES = {
    1: (0.2, 0.4, 0.4),
    2: (0.3, 0.45, 0.25),
    3: (0.4, 0.5, 0.1),
    4: (0.6, 0.4, 0),
    5: (0.7, 0.3, 0),
}
_TEXTURE_SHARES = (0.6, 0.2, 0.2)
_SHAPE_SHARE = 0.55


def sample_scene(
    rng: np.random.Generator,
    split: str | None = "train",
    *,
    count: int | None = None,
    pitch: float = 1 / 8,
    identical: float = 0.3,
) -> Scene:
    """Tire une scène sans chevauchement.

    Args:
        rng: générateur ; le même état donne la même scène.
        split: « train », « test », ou None pour toutes les scènes.
        count: nombre d'objets, de 1 à 5 ; None pour le tirer (surtout un ou deux).
        pitch: pas de la grille où se posent les bords des objets, en fraction du côté.
        identical: part, parmi les scènes à plusieurs objets, de celles qui les ont tous pareils : « trois
            cercles rouges ».

    Raises:
        MinidalleError: part inconnue ou nombre d'objets impossible.
    """
    if split is not None:
        _check("part", split, SPLITS)
    if count is not None and not 1 <= count <= MAX_OBJECTS:
        raise MinidalleError(f"Nombre d'objets impossible ({count}) : choisir de 1 à {MAX_OBJECTS}.")
    while True:
        scene = _draw_scene(rng, count, pitch, identical)
        if scene is not None and split in (None, split_of(scene)):
            return scene


def sample_scenes(rng: np.random.Generator, n: int, split: str | None = "train", **options) -> list[Scene]:
    """`n` scènes indépendantes ; mêmes options que `sample_scene`."""
    return [sample_scene(rng, split, **options) for _ in range(n)]


def _draw_scene(
    rng: np.random.Generator, count: int | None, pitch: float, identical_share: float
) -> Scene | None:
    """Une scène, ou None quand les objets ne tiennent pas."""
    n = count or 1 + _choose(rng, _COUNT_SHARES)
    identical = n > 1 and rng.random() < identical_share
    looks: list[tuple] = []
    while len(looks) < n:
        look = looks[0] if identical and looks else _draw_look(rng, n)
        # Hors des scènes à compter, deux objets se distinguent par leur nom ou leur couleur.
        if identical or all(look[:2] != other[:2] for other in looks):
            looks.append(look)
    # Les grands d'abord : sinon ils ne trouvent plus de place.
    objects, order = [], sorted(range(n), key=lambda i: -SIZES[looks[i][3]])
    for i in order:
        placed = _place(rng, looks[i], objects, pitch)
        if placed is None:
            return None
        objects.append(placed)
    names = list(BACKGROUNDS)
    shuffled = [objects[i] for i in rng.permutation(n)]
    return Scene(names[rng.integers(len(names))], tuple(shuffled))


def _draw_look(rng: np.random.Generator, n: int) -> tuple[str, str | None, str, str]:
    size = tuple(SIZES)[_choose(rng, _SIZE_SHARES[n])]
    if rng.random() < _SHAPE_SHARE:
        kind = _pick(rng, tuple(SHAPES))
        colour = _pick(rng, tuple(COLOURS))
        # Rayures et pois ne se voient plus sur les petites formes.
        texture = "uni" if size == "petit" else tuple(TEXTURES)[_choose(rng, _TEXTURE_SHARES)]
        return kind, colour, texture, size
    # Réduit au quart du côté, un émoji n'est plus reconnaissable.
    return _pick(rng, tuple(THINGS)), None, "uni", "moyen" if size == "petit" else size


def _place(rng: np.random.Generator, look: tuple, others: list[Object], pitch: float) -> Object | None:
    side = SIZES[look[3]]
    steps = int((1 - side) / pitch + 1e-9)
    for _ in range(30):
        x, y = (rng.integers(steps + 1, size=2) * pitch + side / 2).tolist()
        if all(max(abs(x - o.x), abs(y - o.y)) >= (side + o.side) / 2 - 1e-9 for o in others):
            return Object(*look, x, y)
    return None


def _choose(rng: np.random.Generator, shares: Sequence[float]) -> int:
    """Indice tiré selon des parts de somme 1 (plus rapide que rng.choice sur de si petites tables)."""
    u = rng.random()
    for i, share in enumerate(shares):
        u -= share
        if u < 0:
            return i
    return max(i for i, share in enumerate(shares) if share)


def _pick(rng: np.random.Generator, items: Sequence):
    return items[rng.integers(len(items))]


# --- dessin ---------------------------------------------------------------------------------------

# Tracés dans un carré de côté 100, centré en (50, 50) ; un peu de marge sépare deux objets voisins.
_PATHS = {
    "cercle": "M50 5A45 45 0 1 1 49.9 5Z",
    "carré": "M8 8H92V92H8Z",
    "triangle": "M50 6L95 92H5Z",
    "étoile": "M50 3L62 36L97 37L69 59L79 93L50 73L21 93L31 59L3 37L38 36Z",
    "croix": "M34 5H66V34H95V66H66V95H34V66H5V34H34Z",
    "losange": "M50 3L90 50L50 97L10 50Z",
    "cœur": "M50 93L12 53C-4 33 8 8 29 8C40 8 47 14 50 22C53 14 60 8 71 8C92 8 104 33 88 53Z",
    "anneau": "M50 5A45 45 0 1 1 49.9 5ZM50 30A20 20 0 1 0 50.1 30Z",
}
_SUPERSAMPLING = 8


def render(
    scene: Scene, size: int = 64, tints: Sequence[tuple[int, int, int] | None] | None = None
) -> np.ndarray:
    """Dessine une scène, contours lissés.

    Args:
        scene: ce qu'il faut dessiner.
        size: côté de l'image en pixels, au moins 16.
        tints: par objet, la teinte (RVB, de 0 à 255) d'une forme à la place de sa couleur, ou None.

    Returns:
        Tableau uint8 (size, size, 3), RVB.

    Raises:
        MinidalleError: image trop petite pour qu'on y voie quelque chose.
    """
    if size < 16:
        raise MinidalleError(f"Image de {size} pixels : il en faut au moins 16 par côté.")
    image = np.empty((size, size, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for o, tint in zip(scene.objects, tints or [None] * len(scene.objects), strict=True):
        side = max(1, round(o.side * size))
        if tint is None or not o.colour:
            colour, opacity = _sprite(o.kind, o.colour, o.texture, side)
        else:
            colour, opacity = _tinted(o.kind, o.texture, side, tint)
        left, top = round(o.x * size - side / 2), round(o.y * size - side / 2)
        x0, y0, x1, y1 = max(0, left), max(0, top), min(size, left + side), min(size, top + side)
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        patch = image[y0:y1, x0:x1]
        # couleur déjà multipliée par l'opacité : image ← couleur + image · (1 − opacité), sur 0–255
        patch[:] = colour[inside] + (patch * (255 - opacity[inside]) + 127) // 255
    return image


@functools.lru_cache(maxsize=4096)
def _sprite(kind: str, colour: str | None, texture: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Couleur prémultipliée uint8 (side, side, 3) et opacité uint16 (side, side, 1)."""
    if kind in SHAPES:
        large = side * _SUPERSAMPLING
        svg = _svg(kind, colour, texture, side)
        png = resvg_py.svg_to_bytes(svg_string=svg, width=large, height=large, skip_system_fonts=True)
        rgba = Image.open(io.BytesIO(png)).convert("RGBA")
    else:
        rgba = Image.fromarray(openmoji.render(KINDS[kind].character, 4 * max(side, 64)))
        rgba = _fill_box(rgba)
    # « RGBa » : couleurs prémultipliées, sans quoi le noir des pixels vides déteint sur les bords.
    pixels = np.asarray(rgba.convert("RGBa").resize((side, side), Image.Resampling.BOX))
    return pixels[..., :3].copy(), pixels[..., 3:].astype(np.uint16)


def _tinted(kind: str, texture: str, side: int, tint: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Comme `_sprite`, d'une teinte quelconque : ses pixels sont une fonction affine de la teinte."""
    (low, opacity), (high, _) = (_sprite(kind, end, texture, side) for end in _ENDS)
    share = np.array(tint, np.float32) / 255
    return (low + share * (high.astype(np.float32) - low)).round().astype(np.uint8), opacity


def _fill_box(rgba: Image.Image) -> Image.Image:
    """Ôte la marge d'un émoji pour qu'il remplisse presque sa boîte carrée."""
    x0, y0, x1, y1 = rgba.getchannel("A").getbbox()
    side = max(x1 - x0, y1 - y0) * 1.04
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return rgba.crop(tuple(round(v) for v in (x - side / 2, y - side / 2, x + side / 2, y + side / 2)))


_ENDS = {"0": (0, 0, 0), "1": (255, 255, 255)}  # entre ces deux teintes, toutes les autres


def _svg(kind: str, colour: str, texture: str, side: int) -> str:
    rgb = (COLOURS | _ENDS)[colour]
    pale = ",".join(str(round(255 - 0.28 * (255 - c))) for c in rgb)
    fill = f"rgb({','.join(map(str, rgb))})"
    # Le motif garde la même échelle quelle que soit la taille : une période par jeton d'image à 64 pixels.
    step = 100 / max(1, round(side / 8)) if side >= 16 else 50
    motifs = {
        "rayé": f'<rect y="0" width="{step}" height="{step / 4}"/>'
        f'<rect y="{step / 2}" width="{step}" height="{step / 4}"/>',
        "à pois": f'<circle cx="{step * 0.27}" cy="{step * 0.27}" r="{step * 0.2}"/>'
        f'<circle cx="{step * 0.77}" cy="{step * 0.77}" r="{step * 0.2}"/>',
    }
    motif = ""
    if texture in motifs:
        motif = (
            f'<pattern id="motif" width="{step}" height="{step}" patternUnits="userSpaceOnUse">'
            f'<g fill="rgb({pale})">{motifs[texture]}</g></pattern>'
        )
    path = f'<path fill-rule="evenodd" d="{_PATHS[kind]}" fill='
    over = f'{path}"url(#motif)"/>' if motif else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
        f'<defs>{motif}</defs>{path}"{fill}"/>{over}</svg>'
    )


# --- légendes -------------------------------------------------------------------------------------

_VOWELS = "aeiouyàâéèêëîïôùûœ"


def caption(
    scene: Scene,
    rng: np.random.Generator,
    *,
    spatial: float = 0.5,
    colour: float = 0.9,
    texture: float = 0.6,
    size: float = 0.4,
    background: float = 0.3,
    comparison: float = 0.1,
    omission: float = 0.2,
    phrasing: float = 0.4,
) -> str:
    """Raconte une scène en français, complètement ou non, comme le font les vraies légendes.

    Chaque argument est une probabilité, de 0 à 1.

    Args:
        scene: ce qu'on raconte ; la légende est toujours vraie, rarement complète.
        rng: générateur.
        spatial: dire une relation (gauche, droite, dessus, dessous), parmi les scènes qui s'y prêtent : il
            y faut deux objets que leur description distingue, et une relation nette. Moins de la moitié
            des scènes tirées sont dans ce cas ; la part des légendes qui situent est donc plus petite.
        colour: dire la couleur des formes.
        texture: dire la texture des formes rayées ou à pois.
        size: dire « petit » ou « grand ».
        background: dire le fond.
        comparison: comparer deux tailles, quand aucune relation spatiale n'est dite.
        omission: taire un des objets ou, si une relation ou une comparaison est dite, tous les autres.
        phrasing: s'écarter de la tournure la plus simple.

    Returns:
        Phrase en minuscules, sans point final.
    """
    # Ces trois tirages valent pour toute la légende : on nomme les couleurs de tous les objets ou d'aucun.
    with_colour, with_texture, with_size = (rng.random() < p for p in (colour, texture, size))
    looks = Counter(_described(o, with_colour, with_texture, with_size) for o in scene.objects)
    groups = list(looks.items())
    groups = [groups[i] for i in rng.permutation(len(groups))]
    alone = dict(_single(scene, looks, with_colour, with_texture, with_size))

    text = None
    if rng.random() < spatial:
        text = _spatial_clause(rng, alone, phrasing)
    if text is None and rng.random() < comparison:
        text = _comparison_clause(rng, alone)
    if text is not None:
        clause, mentioned = text
        rest = [g for g in groups if g[0] not in mentioned]
        # « un chat avec un chien à sa gauche, avec un arbre » : un seul « avec » par légende.
        if rest and (rng.random() < omission or " avec " in clause):
            rest = []
        text = clause + (f", avec {listed([indefinite(*g) for g in rest])}" if rest else "")
        # « voici le carré est à gauche » : l'amorce veut un groupe nominal.
        if clause.startswith(("un ", "une ")) and rng.random() < phrasing / 3:
            text = _pick(rng, ("on voit ", "voici ")) + text
    else:
        if len(groups) > 1 and rng.random() < omission:
            groups = groups[:-1]
        text = _inventory(rng, [indefinite(*g) for g in groups], phrasing)
    if rng.random() < background:
        text += f" sur {'un ' if rng.random() < phrasing else ''}fond {scene.background}"
    return text


def describe(o: Object) -> str:
    """« un carré bleu », « un mouton » : l'objet et sa couleur, rien d'autre."""
    return indefinite(_described(o, True, False, False))


def situate(a: Object, place: str, b: Object) -> str:
    """« un cercle rouge à gauche d'un carré bleu », que ce soit vrai ou non ; `place` est une clé de `RELATIONS`."""
    _check("relation", place, RELATIONS)
    return f"{describe(a)} {join_to(RELATIONS[place], describe(b))}"


_OPPOSITES = {
    "gauche": "droite",
    "droite": "gauche",
    "dessus": "dessous",
    "dessous": "dessus",
    "haut": "bas",
    "bas": "haut",
    "sous ": "au-dessus d'",
}
_PLACE = re.compile(
    r"(?<=à )(?:gauche|droite)|(?<=à sa )(?:gauche|droite)|(?<=au-)dess(?:us|ous)|(?<=en )(?:haut|bas)"
    r"|\bsous (?=une? )"
)


def opposite(text: str) -> str | None:
    """La même légende, relations retournées : vraie de la scène vue à l'envers, fausse de celle-ci.

    « un chat à gauche d'un chien » donne « un chat à droite d'un chien ».

    Returns:
        None si la légende ne situe pas deux objets, ou si deux de ceux qu'elle nomme pourraient former une
        disposition réservée au test : répéter qu'elle est fausse, ce serait déjà l'apprendre.
    """
    turned = _PLACE.sub(lambda found: _OPPOSITES[found[0]], text)
    kinds = [word for word in re.findall(r"\w+", text) if word in KINDS]
    if turned == text or len(kinds) < 2:
        return None
    place = "gauche" if re.search("gauche|droite", text) else "dessus"
    reserved = any(held_out_layout(a, place, b) for a, b in itertools.permutations(kinds, 2))
    return None if reserved else turned


Look = tuple[
    str, str | None, str | None, str | None
]  # ce que la légende dit : objet, couleur, texture, taille


def _described(o: Object, with_colour: bool, with_texture: bool, with_size: bool) -> Look:
    return (
        o.kind,
        o.colour if with_colour else None,
        o.texture if with_texture and o.texture != "uni" else None,
        o.size if with_size and o.size in SIZE_WORDS else None,
    )


def _single(scene: Scene, looks: Counter, *flags: bool) -> Iterator[tuple[Look, Object]]:
    """Objets que leur description désigne sans ambiguïté : aucun autre ne la vérifie aussi."""
    for o in scene.objects:
        look = _described(o, *flags)
        if looks[look] == 1 and not any(_fits(other, look) for other in looks if other != look):
            yield look, o


def _fits(look: Look, description: Look) -> bool:
    """Ce que l'on dirait de `look` vérifie-t-il `description` ? « le cercle » désigne aussi un cercle rayé."""
    return all(wanted in (None, said) for said, wanted in zip(look, description, strict=True))


def _spatial_clause(rng, alone: dict[Look, Object], phrasing: float) -> tuple[str, set[Look]] | None:
    """Proposition qui situe un objet par rapport à un autre, et ce qu'elle mentionne."""
    pairs = [(a, b) for a in alone for b in alone if a != b and relation(alone[a], alone[b])]
    if not pairs:
        return None
    a, b = _pick(rng, pairs)
    place = relation(alone[a], alone[b])
    one, other = indefinite(a), indefinite(b)
    preposition = RELATIONS[place]
    plain = f"{one} {join_to(preposition, other)}"
    if rng.random() >= phrasing:
        return plain, {a, b}
    ends = {"gauche": ("à gauche", "à droite"), "dessus": ("en haut", "en bas")}
    here, there = ends.get(place) or ends[INVERSE[place]][::-1]
    aside = {"gauche": "à sa gauche", "droite": "à sa droite"}.get(place, preposition.removesuffix(" de"))
    turns = [
        f"{definite(a)} est {join_to(preposition, definite(b))}",
        f"{join_to(preposition, other)}, {one}",
        f"{other} avec {one} {aside}",
    ]
    axis = (alone[a].x, alone[b].x) if place in ("gauche", "droite") else (alone[a].y, alone[b].y)
    if min(axis) < 0.5 < max(axis):  # chacun de son côté de l'image
        turns.append(f"{one} {here} et {other} {there}")
    if place == "dessous":
        turns.append(f"{one} sous {other}")
    return _pick(rng, turns), {a, b}


def _comparison_clause(rng, alone: dict[Look, Object]) -> tuple[str, set[Look]] | None:
    """Proposition qui compare deux tailles, et ce qu'elle mentionne."""
    # Sans leur taille, les deux objets doivent encore se distinguer.
    pairs = [(a, b) for a in alone for b in alone if alone[a].side != alone[b].side and a[:3] != b[:3]]
    if not pairs:
        return None
    a, b = _pick(rng, pairs)
    word = "grand" if alone[a].side > alone[b].side else "petit"
    adjective = SIZE_WORDS[word].agree(KINDS[a[0]].gender, 1)
    # La taille est dans la comparaison : la redire devant le nom serait lourd.
    first, second = (indefinite((*look[:3], None)) for look in (a, b))
    return f"{first} plus {adjective} {join_to('que', second)}", {a, b}


def _inventory(rng, phrases: list[str], phrasing: float) -> str:
    """Simple énumération, avec ou sans amorce."""
    if rng.random() >= phrasing:
        return listed(phrases)
    if len(phrases) > 1 and rng.random() < 0.3:
        return f"{phrases[0]} avec {listed(phrases[1:])}"
    opening = _pick(rng, ("une image de", "un dessin de", "il y a", "on voit", "voici"))
    if opening.endswith(" de"):
        head = opening.removesuffix(" de")
        return f"{head} {listed([join_to('de', p) for p in phrases])}"
    return f"{opening} {listed(phrases)}"


def indefinite(look: Look, count: int = 1) -> str:
    """« un grand carré bleu rayé », « trois étoiles rouges »."""
    noun = KINDS[look[0]]
    determiner = _NUMERALS[count] if count > 1 else ("une" if noun.gender == "f" else "un")
    return f"{determiner} {_nominal(look, count)}"


def definite(look: Look) -> str:
    """« le carré bleu », « l'étoile », « la grande étoile »."""
    text = _nominal(look, 1)
    if text[0] in _VOWELS:
        return f"l'{text}"
    return f"{'la' if KINDS[look[0]].gender == 'f' else 'le'} {text}"


def _nominal(look: Look, count: int) -> str:
    kind, colour, texture, size = look
    noun = KINDS[kind]
    words = [noun.plural if count > 1 else noun.singular]
    if size:
        words.insert(0, SIZE_WORDS[size].agree(noun.gender, count))
    if colour:
        words.append(_COLOUR_WORDS[colour].agree(noun.gender, count))
    if texture:
        words.append(TEXTURES[texture].agree(noun.gender, count))
    return " ".join(words)


def join_to(preposition: str, phrase: str) -> str:
    """Préposition finissant par « de » ou « que », élidée ou contractée devant `phrase`."""
    if preposition.endswith("de") and phrase.startswith("le "):
        return f"{preposition[:-2]}du {phrase[3:]}"
    if phrase[0] in _VOWELS:
        return f"{preposition[:-1]}'{phrase}"
    return f"{preposition} {phrase}"


def listed(phrases: list[str]) -> str:
    """« a, b et c »."""
    return " et ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _check(what: str, value: object, table) -> None:
    if value not in table:
        raise MinidalleError(f"« {value} » : {what} sans définition ; choisir parmi {', '.join(table)}.")
