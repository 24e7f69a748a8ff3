"""Relecture des scènes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle import recipes
from minidalle.checkpoints import load_model
from minidalle.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    SHAPES,
    TEXTURES,
    Object,
    Scene,
    relation,
    render,
    sample_scene,
    sample_scenes,
)
from minidalle.evaluation.oracle import LOOKS, agreement, identify, read


def test_renders_are_read_without_a_fault():
    for pitch in (1 / 8, 1 / 64):
        scenes = sample_scenes(np.random.default_rng(0), 150, None, pitch=pitch)
        right = agreement([render(s, 64) for s in scenes], scenes)
        assert right["kind"].mean() >= 0.995 and right["colour"].all() and right["texture"].mean() >= 0.995


def test_every_attribute_is_read_from_the_image_not_from_the_scene():
    told = Scene("blanc", (Object("cercle", "rouge", x=0.25), Object("mouton", x=0.75)))
    drawn = Scene("blanc", (Object("étoile", "bleu", "rayé", x=0.25), Object("chat", x=0.75)))
    assert identify(render(drawn, 64), told) == [("étoile", "bleu", "rayé"), ("chat", None, "uni")]
    right = agreement([render(drawn, 64)], [told])
    assert right["kind"].tolist() == [False, False]
    assert right["colour"].tolist() == right["texture"].tolist() == [False]


def test_a_little_noise_changes_nothing():
    rng = np.random.default_rng(1)
    scenes = sample_scenes(rng, 40)
    noisy = [(render(s, 64) + rng.normal(0, 8, (64, 64, 3))).clip(0, 255).astype(np.uint8) for s in scenes]
    right = agreement(noisy, scenes)
    assert right["kind"].mean() > 0.98 and right["colour"].mean() > 0.98


def test_every_look_is_known_once():
    assert len(set(LOOKS)) == len(LOOKS) == len(SHAPES) * len(COLOURS) * len(TEXTURES) + 24


# --- lecture libre --------------------------------------------------------------------------------


def same(a, b):
    return Counter(a) == Counter(b)


def test_free_reading_finds_every_scene_from_its_picture_alone():
    scenes = sample_scenes(np.random.default_rng(2), 10_000, None)
    readings = read([render(s) for s in scenes])
    assert np.mean([same(r.objects, s.objects) for r, s in zip(readings, scenes, strict=True)]) >= 0.999
    assert all(r.background == s.background for r, s in zip(readings, scenes, strict=True))
    assert max(r.left for r in readings) < 0.01


def test_reconstructions_are_read_too():
    """Le plafond de tout ce qui se dessine avec ces jetons : au moins 98 % des noms et des couleurs."""
    scenes = sample_scenes(np.random.default_rng(3), 150, "test")
    vqvae, _ = load_model("vqvae", "vqvae")
    readings = read(list(recipes.reconstruct(vqvae, np.stack([render(s) for s in scenes]))))
    right = [
        (o.kind, o.colour, o.size, o.x, o.y) in {(p.kind, p.colour, p.size, p.x, p.y) for p in r.objects}
        for r, s in zip(readings, scenes, strict=True)
        for o in s.objects
    ]
    assert np.mean(right) >= 0.98


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_mirror_turns_left_into_right_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, None, count=2)
    a, b = scene.objects
    place = relation(a, b)
    moved = tuple(Object(o.kind, o.colour, o.texture, o.size, 1 - o.x, o.y) for o in (a, b))
    straight, turned = read([render(scene), render(Scene(scene.background, moved))])
    assert same(straight.objects, scene.objects) and same(turned.objects, moved)
    if place in ("gauche", "droite"):
        assert relation(*moved) == INVERSE[place]


def test_a_flipped_picture_is_read_flipped():
    """L'image retournée pixel à pixel, et non la scène : les objets changent de côté et gardent leur nom."""
    scenes = sample_scenes(np.random.default_rng(5), 300, None, count=2)
    pictures = [render(s) for s in scenes]
    turned = right = swapped = 0
    for s, r in zip(scenes, read([p[:, ::-1] for p in pictures]), strict=True):
        a, b = s.objects
        seen = [[p for p in r.objects if (p.kind, p.colour) == (o.kind, o.colour)] for o in (a, b)]
        if (a.kind, a.colour) == (b.kind, b.colour) or not all(seen) or not (place := relation(a, b)):
            continue
        turned += 1
        sideways = place in ("gauche", "droite")
        right += relation(seen[0][0], seen[1][0]) == (INVERSE[place] if sideways else place)
        swapped += sideways
        assert abs(seen[0][0].x - (1 - a.x)) < 1e-9 and seen[0][0].y == a.y
    # Bien des émojis, retournés, ne sont plus les mêmes ; les formes le restent.
    assert right == turned > 80 and swapped > 30


def test_repainting_one_object_changes_its_colour_alone():
    rng = np.random.default_rng(6)
    for scene in sample_scenes(rng, 60, None, count=3):
        i = next((i for i, o in enumerate(scene.objects) if o.colour and o.texture == "uni"), None)
        if i is None:
            continue
        painted = list(scene.objects)
        colours = [c for c in COLOURS if c != painted[i].colour]
        painted[i] = replace(painted[i], colour=colours[rng.integers(len(colours))])
        tints = [COLOURS[o.colour] if k == i else None for k, o in enumerate(painted)]
        # La scène d'avant, dont un seul objet est peint d'une autre teinte.
        (reading,) = read([render(scene, tints=tints)])
        assert same(reading.objects, painted)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)), st.sampled_from(sorted(COLOURS)), st.sampled_from(sorted(BACKGROUNDS))
)
def test_the_colour_follows_the_paint(kind, colour, background):
    for other in COLOURS:
        o = Object(kind, other, "uni", "moyen", 0.5625, 0.4375)
        (reading,) = read([render(Scene(background, (o,)))])
        assert reading.objects == (o,)
    assert colour in COLOURS


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_has_no_object(background):
    blank = np.empty((64, 64, 3), np.uint8)
    blank[:] = BACKGROUNDS[background]
    assert read([blank]) == [(background, (), 0.0)]


def test_what_resembles_nothing_is_left_over():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (reading,) = read([noise])
    assert reading.left > 0.9


def test_pictures_are_read_one_by_one():
    scenes = sample_scenes(np.random.default_rng(4), 40, None)
    pictures = [render(s) for s in scenes]
    assert read(pictures, batch=7) == read(pictures) == [read([p])[0] for p in pictures]
