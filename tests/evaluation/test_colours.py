"""Couleurs : de l'œil, des objets, des palettes."""

import hashlib
import json
from importlib import resources

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000

from minidalle.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
    render,
    sample_scenes,
)
from minidalle.errors import MinidalleError
from minidalle.evaluation.colours import (
    NAMES,
    OUTCOMES,
    delta_e,
    gap_to,
    lab,
    object_colour,
    outcome,
    palette,
    palette_distance,
    shares,
)
from minidalle.evaluation.oracle import Reading
from minidalle.evaluation.phrases import Wish
from minidalle.evaluation.requests import Request
from minidalle.evaluation.study_files import read_summary

# Table 1 de Sharma, Wu et Dalal (2005) : deux couleurs Lab, leur ΔE2000. Les pièges y sont : gris, teintes opposées.
SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792
50 2.49 -0.001 50 -2.49 0.0010 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195
50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045
50 -0.001 2.49 50 0.0010 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_the_library_agrees_with_the_published_pairs():
    table = np.array([line.split() for line in SHARMA.split("\n") if line], float)
    assert len(table) == 34
    assert np.allclose(deltaE_ciede2000(table[:, :3], table[:, 3:6]), table[:, 6], atol=5e-5)
    assert np.allclose(deltaE_ciede2000(table[:, 3:6], table[:, :3]), table[:, 6], atol=5e-5)


def by_hand(rgb):
    """sRGB, puis XYZ, puis Lab, D65 : les formules du chapitre."""
    u = np.array(rgb) / 255
    u = np.where(u <= 0.04045, u / 12.92, ((u + 0.055) / 1.055) ** 2.4)
    matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    t = u @ np.transpose(matrix) / (0.95047, 1, 1.08883)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def test_lab_follows_its_formulas():
    colours = np.random.default_rng(0).integers(0, 256, (200, 3))
    assert np.allclose(lab(colours), by_hand(colours), atol=0.02)
    assert np.allclose(lab((255, 255, 255)), (100, 0, 0), atol=0.02)


def test_delta_e_is_zero_symmetric_and_broadcasts():
    names = np.array([*NAMES.values()])
    table = delta_e(names[:, None], names)
    assert table.shape == (12, 12) and np.allclose(table, table.T) and np.allclose(np.diag(table), 0)
    assert table[:8, :8][~np.eye(8, dtype=bool)].min() > 19, "ce que promet `scenes.COLOURS`"


@pytest.mark.parametrize("bad", [(0.2, 0.5, 1.0), (300, 0, 0), (-1, 0, 0), (1, 2)])
def test_a_colour_is_three_bytes(bad):
    with pytest.raises(MinidalleError, match="trois entiers de 0 à 255"):
        lab(bad)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("size", SIZES)
def test_the_colour_of_an_object_is_read_without_its_edges_its_motif_or_the_ground(texture, size):
    tint = (90, 200, 140)
    for ground in BACKGROUNDS:
        for kind in SHAPES:
            o = Object(kind, "rouge", texture, size, x=0.5, y=0.5)
            assert tuple(object_colour(render(Scene(ground, (o,))), o)) == COLOURS["rouge"]
            tinted = render(Scene(ground, (o,)), tints=[tint])
            assert np.abs(object_colour(tinted, o).astype(int) - tint).max() <= 1


def test_a_thing_has_no_colour_of_its_own():
    with pytest.raises(MinidalleError, match="émoji"):
        object_colour(np.zeros((64, 64, 3), np.uint8), Object("mouton"))


def reading(*objects):
    return Reading("blanc", tuple(Object(kind, colour) for kind, colour in objects), 0.0)


ASKED = ("losange", "rouge"), ("croix", "bleu")


@pytest.mark.parametrize(
    ("seen", "end"),
    [
        ([("losange", "rouge"), ("croix", "bleu")], "juste"),
        ([("losange", "bleu"), ("croix", "rouge")], "intervertie"),
        ([("losange", "bleu"), ("croix", "bleu"), ("carré", "rouge")], "mal liée"),
        ([("croix", "rouge"), ("croix", "bleu")], "autre forme"),
        ([("losange", "rouge"), ("croix", "rouge")], "autre couleur"),
        ([("croix", "rouge"), ("croix", "rouge")], "ni l'une ni l'autre"),
        ([], "ni l'une ni l'autre"),
    ],
)
def test_every_outcome_of_a_pair(seen, end):
    request = Request("", tuple(Wish(*look) for look in ASKED), None, "paire", True)
    assert outcome(reading(*seen), request) == end and end in OUTCOMES


def test_the_outcome_of_a_single_shape():
    request = Request("", (Wish("losange", "rouge"),), None, "couleur", True)
    for seen, end in {
        ("losange", "rouge"): "juste",
        ("croix", "rouge"): "autre forme",
        ("losange", "bleu"): "autre couleur",
        ("croix", "bleu"): "ni l'une ni l'autre",
    }.items():
        assert outcome(reading(seen), request) == end


def flat(*parts):
    """Image de 10 colonnes, chaque couleur sur tant d'entre elles."""
    return np.stack([np.array([c for c, n in parts for _ in range(n)], np.uint8)] * 6)


def test_shares_count_pixels_of_a_name_and_nothing_else():
    red, strange = NAMES["rouge"], (120, 110, 90)
    found = dict(zip(NAMES, shares(flat((red, 3), (NAMES["blanc"], 5), (strange, 2))), strict=True))
    assert found["rouge"] == 0.3 and found["blanc"] == 0.5 and sum(found.values()) == pytest.approx(0.8)


def test_a_palette_finds_flat_colours_their_shares_and_their_number():
    image = flat((NAMES["jaune"], 2), (NAMES["gris"], 7), (NAMES["bleu"], 1))
    found = palette(image)
    assert np.allclose(found.weights, [0.7, 0.2, 0.1])
    assert np.allclose(found.colours, lab([NAMES[c] for c in ("gris", "jaune", "bleu")]), atol=1e-6)
    assert len(palette(image, 2).weights) == 2 and len(palette(image, within=1e9).weights) == 1
    with pytest.raises(MinidalleError, match="l'image en a 3"):
        palette(image, 4)


def test_a_palette_clusters_what_the_eye_sees_alike():
    """Deux verts éloignés en RVB et proches dans Lab, deux sombres le contraire."""
    greens, darks = ((0, 255, 0), (60, 240, 60)), ((0, 0, 0), (60, 0, 0))
    assert np.ptp([*greens], 0).sum() > np.ptp([*darks], 0).sum()
    image = flat(*((c, 2) for c in (*greens, *darks)), ((255, 255, 255), 2))
    found = palette(image, 4)
    together = lab(greens).mean(0)
    assert np.linalg.norm(found.colours - together, axis=1).min() < 1e-6


def test_a_palette_depends_on_its_seed_only():
    image = render(sample_scenes(np.random.default_rng(4), 1, None)[0])
    first, again = palette(image, 5, seed=3), palette(image, 5, seed=3)
    assert np.array_equal(first.colours, again.colours) and np.array_equal(first.weights, again.weights)
    assert abs(first.weights.sum() - 1) < 1e-9 and (np.diff(first.weights) <= 0).all()


def test_palette_distance_weighs_the_way_and_the_load():
    red, white, blue = (NAMES[c] for c in ("rouge", "blanc", "bleu"))
    some, more, other = (palette(flat((c, n), (white, 10 - n))) for c, n in ((red, 1), (red, 4), (blue, 1)))
    way = np.linalg.norm(lab(red) - lab(white))
    assert palette_distance(some, more) == pytest.approx(0.3 * way, rel=1e-3)
    assert palette_distance(some, other) == pytest.approx(
        0.1 * np.linalg.norm(lab(red) - lab(blue)), rel=1e-3
    )
    assert palette_distance(some, some) == pytest.approx(0, abs=1e-6)
    assert palette_distance(more, other) == pytest.approx(palette_distance(other, more), rel=1e-6)


def test_a_palette_does_not_know_where_things_are():
    """Les mêmes pixels, mélangés : la même palette ; c'est pourquoi elle ne juge pas la liaison."""
    image = render(Scene("gris", (Object("carré", "rouge", x=0.25), Object("cercle", "bleu", x=0.75))))
    mixed = np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape)
    assert palette_distance(palette(image, 3), palette(mixed, 3)) < 0.5


def test_the_gap_to_a_name_ignores_crumbs():
    found = palette(np.concatenate([flat((NAMES["blanc"], 10))] * 10 + [flat((NAMES["rouge"], 10))[:1]]))
    assert min(found.weights) < 0.05
    assert gap_to("blanc", found) < 0.01 and gap_to("rouge", found) < 0.01
    assert gap_to("rouge", found, least=0.05) > 19


# --- ce qui est rangé -----------------------------------------------------------------------------


def test_the_stored_outcomes_are_those_of_the_study():
    """`python -m tools.couleurs` relit les dessins de l'étude : mêmes poids, mêmes comptes."""
    path = resources.files("minidalle") / "results" / "couleurs.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    about, rows = read_summary("scenes")
    weights = resources.files("minidalle") / "weights" / "scenes.safetensors"
    assert stored["sha256"] == about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    for name, held_out in (("reservees", True), ("vues", False)):
        singles, pairs = stored["couleur"][name], stored["paire"][name]
        ends = [entry["issues"] for entry in singles.values()], list(pairs.values())
        for category, counts in zip(("couleur", "paire"), ends, strict=True):
            own = [r for r in rows if (r.category, r.held_out) == (category, held_out)]
            assert sum(sum(c.values()) for c in counts) == len(own)
            assert sum(c.get("juste", 0) for c in counts) == sum(r.right for r in own)
            assert sum(c.get("intervertie", 0) for c in counts) == sum(r.swapped for r in own)
            assert {end for c in counts for end in c} <= {*OUTCOMES}
        for asked, entry in singles.items():
            kind, colour = asked.split()
            assert (HELD_OUT_COLOURS[kind] == colour) == held_out
            assert len(entry["teintes"]) == entry["issues"].get("juste", 0)
    assert len(stored["doubles"]) == 56
    assert all(
        sum(ends.values()) == stored["graines"] for pair in stored["doubles"] for _, ends in pair.values()
    )
