"""Relecture des scènes."""

import numpy as np

from minidalle.data.scenes import COLOURS, SHAPES, TEXTURES, Object, Scene, render, sample_scenes
from minidalle.evaluation.oracle import LOOKS, agreement, identify


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
