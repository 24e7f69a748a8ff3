"""Les couleurs d'un dessin : d'un objet, d'une image entière, et leurs écarts tels que l'œil les voit.

Tout se passe dans CIELAB : L* dit le clair et le sombre, a* le vert et le rouge, b* le bleu et le jaune. ΔE2000 y
mesure les petits écarts ; pour les grands, la distance euclidienne, qui seule est une distance.
"""

from typing import NamedTuple

import numpy as np

from minidalle.data import scenes
from minidalle.data.scenes import BACKGROUNDS, COLOURS, Object, Scene
from minidalle.errors import MinidalleError
from minidalle.evaluation.oracle import Reading
from minidalle.evaluation.requests import Request, judge

NAMES = COLOURS | BACKGROUNDS  # toutes les couleurs qui ont un nom
STARTS = 4  # départs de k-moyennes ; on garde le meilleur
SMALL = 0.01  # une couleur qui couvre moins que cela n'est pas dans la palette
# Ce qui peut arriver à une demande de formes colorées ; dans les trois premiers cas, formes et couleurs sont là.
OUTCOMES = ("juste", "intervertie", "mal liée", "autre forme", "autre couleur", "ni l'une ni l'autre")


class Palette(NamedTuple):
    """Quelques couleurs, et la part de l'image que chacune couvre.

    Attributes:
        colours: (k, 3), en Lab, de la plus répandue à la plus rare.
        weights: (k,), de somme 1.
    """

    colours: np.ndarray
    weights: np.ndarray


def lab(rgb: np.ndarray) -> np.ndarray:
    """Coordonnées CIELAB (…, 3), blanc D65, de couleurs sRGB (…, 3) en octets.

    Raises:
        MinidalleError: valeurs qui ne sont pas des octets : des nombres de 0 à 1, par exemple.
    """
    from skimage.color import rgb2lab

    rgb = np.asarray(rgb)
    if (
        rgb.shape[-1:] != (3,)
        or rgb.dtype.kind not in "iu"
        or (rgb.size and not 0 <= rgb.min() <= rgb.max() <= 255)
    ):
        raise MinidalleError("Une couleur est faite de trois entiers de 0 à 255 (rouge, vert, bleu).")
    return rgb2lab(rgb.astype(np.uint8))  # des octets : skimage les divise lui-même par 255


def delta_e(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """ΔE2000 (Sharma et coll., 2005) de couleurs sRGB en octets, (…, 3) chacune, de formes compatibles.

    0 : pareilles ; vers 1, on commence à voir la différence ; au-delà de 20, on leur donne d'autres noms.

    Raises:
        MinidalleError: voir `lab`.
    """
    from skimage.color import deltaE_ciede2000

    return deltaE_ciede2000(*np.broadcast_arrays(lab(first), lab(second)))


def object_colour(image: np.ndarray, o: Object) -> np.ndarray:
    """Couleur (3,), en octets, que l'image donne à une forme lue par l'oracle : médiane de ses pixels pleins.

    Les pixels pleins sont ceux qu'un rendu exact de l'objet peindrait de sa couleur pure ; ni contour lissé, ni rayure,
    ni pois, ni fond n'y entrent.

    Args:
        image: uint8 (S, S, 3).
        o: une forme, à sa place dans l'image.

    Raises:
        MinidalleError: émoji, qui n'a pas une couleur mais plusieurs.
    """
    if o.colour is None:
        raise MinidalleError(f"« {o.kind} » est un émoji : il a plusieurs couleurs.")
    exact = scenes.render(Scene("blanc", (o,)), len(image))
    return np.median(image[(exact == COLOURS[o.colour]).all(-1)], 0).round().astype(np.uint8)


def outcome(reading: Reading, request: Request) -> str:
    """Ce qui est arrivé à une demande d'une ou deux formes colorées, clé de `OUTCOMES`.

    « intervertie » : chacune a la couleur de l'autre. « mal liée » : formes et couleurs sont là, unies autrement
    encore. « autre forme » : les couleurs sont là, une forme manque ; « autre couleur » : l'inverse.
    """
    verdict = judge(reading, request)
    if verdict.right or verdict.swapped:
        return "juste" if verdict.right else "intervertie"
    kinds = {wish.kind for wish in request.wishes} <= {o.kind for o in reading.objects}
    colours = {wish.colour for wish in request.wishes} <= {o.colour for o in reading.objects}
    if kinds:
        return "mal liée" if colours else "autre couleur"
    return "autre forme" if colours else "ni l'une ni l'autre"


def shares(image: np.ndarray, within: float = 15.0) -> np.ndarray:
    """Part (12,) de l'image que couvre chaque couleur de `NAMES` : ce qui lui ressemble plus qu'à toute autre.

    Args:
        image: uint8 (…, 3).
        within: ΔE2000 au-delà duquel un pixel n'a pas de nom, et ne compte pour personne.
    """
    seen, times = np.unique(np.reshape(image, (-1, 3)), axis=0, return_counts=True)
    gaps = delta_e(seen[:, None], np.array([*NAMES.values()]))
    nearest, named = gaps.argmin(1), gaps.min(1) < within
    return np.bincount(nearest[named], times[named], len(NAMES)) / times.sum()


def palette(
    image: np.ndarray, k: int | None = None, *, within: float = 10.0, most: int = 8, seed: int = 0
) -> Palette:
    """Palette d'une image par k-moyennes (Lloyd, 1982) dans Lab, départs de k-means++.

    Args:
        image: uint8 (…, 3).
        k: nombre de couleurs ; None : le plus petit qui ne laisse qu'un pixel sur cent à plus de `within` de la sienne.
        within: écart toléré, en unités de Lab.
        most: nombre de couleurs au plus, quand k est None.
        seed: graine des départs.

    Raises:
        MinidalleError: plus de couleurs demandées que l'image n'en a.
    """
    pixels = lab(np.reshape(image, (-1, 3)))
    distinct = len(np.unique(pixels, axis=0))
    if k is not None and not 1 <= k <= distinct:
        raise MinidalleError(f"Palette de {k} couleurs impossible : l'image en a {distinct}.")
    rng = np.random.default_rng(seed)
    for size in [k] if k else range(1, min(most, distinct) + 1):
        tries = (_cluster(pixels, size, rng) for _ in range(STARTS))
        centres, labels, gaps = min(tries, key=lambda found: np.square(found[2]).sum())
        if (gaps > within).mean() <= SMALL:
            break
    weights = np.bincount(labels, minlength=len(centres)) / len(pixels)
    order = np.argsort(-weights, kind="stable")
    order = order[weights[order] >= (0 if k else SMALL)]
    return Palette(centres[order], weights[order] / weights[order].sum())


def _cluster(pixels: np.ndarray, k: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Centres (k, 3), groupe de chaque pixel, son écart à son centre."""
    from scipy.cluster.vq import kmeans2

    centres, labels = kmeans2(pixels, k, minit="++", rng=rng)
    return centres, labels, np.linalg.norm(pixels - centres[labels], axis=1)


def palette_distance(first: Palette, second: Palette) -> float:
    """Travail qu'il faut pour changer une palette en l'autre, part × écart dans Lab (Rubner et coll., 2000)."""
    from scipy.stats import wasserstein_distance_nd

    return float(
        wasserstein_distance_nd(*(p.colours for p in (first, second)), first.weights, second.weights)
    )


def gap_to(colour: str, found: Palette, least: float = SMALL) -> float:
    """ΔE2000 entre une couleur nommée et la plus proche d'une palette, parmi celles qui couvrent au moins `least`."""
    from skimage.color import deltaE_ciede2000

    kept = found.colours[found.weights >= least]
    wanted = np.broadcast_to(lab(NAMES[colour]), kept.shape)
    return float(deltaE_ciede2000(kept, wanted).min(initial=np.inf))
