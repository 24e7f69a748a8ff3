"""Les trois sources d'images légendées."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from minidalle.data import openmoji, scenes, tuxpaint
from minidalle.data.sources import Emojis, Folder, Mixture, Scenes, open_captioned, open_source
from minidalle.errors import MinidalleError


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("rouge", "vert")):
        Image.new("RGB", (20, 10), [(200, 0, 0), (0, 200, 0)][i]).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"un fond {name}\ntout {name}\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["scenes", "openmoji", "scenes+openmoji", "dossier"])
def test_batches_depend_on_the_generator_alone(name, folder):
    source = open_source(str(folder) if name == "dossier" else name, size=32)
    (a, words), (b, same), (c, _) = (source.batch(np.random.default_rng(s), 6) for s in (3, 3, 4))
    assert a.shape == (6, 32, 32, 3) and a.dtype == np.uint8
    assert np.array_equal(a, b) and words == same and len(words) == 6
    assert not np.array_equal(a, c)
    assert source.captions(np.random.default_rng(3), 6) == words


def test_scenes_pass_their_options_on():
    rng = np.random.default_rng(0)
    _, told = Scenes(caption={"colour": 0, "size": 0, "texture": 0}, sampling={"count": 1}).batch(rng, 50)
    words = set(" ".join(told).split())
    assert not words & set(scenes.COLOURS) and not words & {"grand", "petite", "et", "deux"}


def test_emojis_of_one_split_only():
    _, names = Emojis("test", 16).batch(np.random.default_rng(0), 40)
    assert {openmoji.split_of(openmoji.find(name)) for name in names} == {"test"}


def test_a_shift_moves_emojis_within_its_bound():
    still, moved = Emojis("test", 32), Emojis("test", 32, shift=2)
    images, names = moved.batch(np.random.default_rng(2), 40)
    seen = set()
    for image, name in zip(images, names, strict=True):
        original = still.images[still.names.index(name)]
        places = [
            (i, j)
            for i in range(-2, 3)
            for j in range(-2, 3)
            if np.array_equal(np.roll(original, (i, j), (0, 1)), image)
        ]
        assert places
        seen.update(places)
    assert {i for i, _ in seen} == {j for _, j in seen} == {-2, -1, 0, 1, 2}


def test_a_mixture_pairs_images_with_their_captions_and_is_even():
    class Plain:
        size = 8

        def __init__(self, shade):
            self.shade = shade

        def batch(self, rng, n):
            return np.full((n, 8, 8, 3), self.shade, np.uint8), self.captions(rng, n)

        def captions(self, rng, n):
            return [str(self.shade)] * n

    images, captions = Mixture([Plain(3), Plain(200)]).batch(np.random.default_rng(0), 400)
    assert [str(shade) for shade in images[:, 0, 0, 0]] == captions
    assert 150 < captions.count("3") < 250
    assert len(set(captions[:20])) == 2  # mêlées, non bout à bout
    with pytest.raises(MinidalleError, match="même taille"):
        Mixture([Plain(3), Scenes(size=16)])


def test_folder_pairs_each_image_with_one_of_its_captions(folder):
    images, captions = Folder(folder, 16).batch(np.random.default_rng(0), 30)
    for image, text in zip(images, captions, strict=True):
        assert text.endswith("rouge" if image[8, 8, 0] > 100 else "vert")
    assert len(set(captions)) == 4


def test_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(MinidalleError, match="absent"):
        open_source(str(tmp_path / "absent"))


def test_bad_images_are_never_drawn_when_skipped(folder):
    (folder / "rouge.png").write_bytes(b"abc")
    source = open_source(str(folder), size=8, bad_images="skip")
    images, captions = source.batch(np.random.default_rng(0), 20)
    assert {*captions} == {"un fond vert", "tout vert"} and (images == (0, 200, 0)).all()
    assert len(source.pairs.skipped) == 1
    with pytest.raises(MinidalleError, match="1 sur 2"):
        open_source(str(folder), bad_images="list")


def test_tux_paint_is_a_source(folder, monkeypatch):
    (folder / "vert.txt").write_text("Green.\nfr.utf8=Du vert.\n", encoding="utf-8")
    monkeypatch.setattr(tuxpaint.read_stamps, "__defaults__", (None, folder))
    images, captions = open_source("tuxpaint", size=8).batch(np.random.default_rng(0), 3)
    assert images.shape == (3, 8, 8, 3) and captions == ["Du vert."] * 3
    assert open_captioned("tuxpaint").names == ["vert.png"]


def test_tinted_scenes_name_no_colour_and_never_come_near_the_reserved_one(monkeypatch):
    seen = []
    real = scenes.render
    monkeypatch.setattr(scenes, "render", lambda *given: seen.append(given) or real(*given))
    source = Scenes("train", 32, {"colour": 1.0}, tinted=1.0)
    _, captions = source.batch(np.random.default_rng(0), 300)
    words = {word for adjective in scenes._COLOUR_WORDS.values() for word in dataclasses.astuple(adjective)}
    assert not words & {word for text in captions for word in text.split()}
    for scene, _, tints in seen:
        background = scenes.BACKGROUNDS[scene.background]
        for o, tint in zip(scene.objects, tints, strict=True):
            assert math.dist(tint, background) >= 90
            if o.kind in scenes.HELD_OUT_COLOURS:
                assert math.dist(tint, scenes.COLOURS[scenes.HELD_OUT_COLOURS[o.kind]]) >= 75


def test_the_tinted_share_is_kept_and_untinted_captions_name_their_colours():
    _, captions = Scenes("train", 32, {"colour": 1.0}, {"count": 1}, tinted=0.25).batch(
        np.random.default_rng(1), 800
    )
    shapes = [text for text in captions if any(kind in text.split() for kind in scenes.SHAPES)]
    named = [any(colour[:4] in text for colour in scenes.COLOURS) for text in shapes]
    assert 0.68 < np.mean(named) < 0.82
