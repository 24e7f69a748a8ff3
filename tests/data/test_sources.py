"""Les trois sources d'images légendées."""

import numpy as np
import pytest
from PIL import Image

from minidalle.data import openmoji, scenes
from minidalle.data.sources import Emojis, Folder, Scenes, open_source
from minidalle.errors import MinidalleError


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("rouge", "vert")):
        Image.new("RGB", (20, 10), [(200, 0, 0), (0, 200, 0)][i]).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"un fond {name}\ntout {name}\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["scenes", "openmoji", "dossier"])
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


def test_folder_pairs_each_image_with_one_of_its_captions(folder):
    images, captions = Folder(folder, 16).batch(np.random.default_rng(0), 30)
    for image, text in zip(images, captions, strict=True):
        assert text.endswith("rouge" if image[8, 8, 0] > 100 else "vert")
    assert len(set(captions)) == 4


def test_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(MinidalleError, match="absent"):
        open_source(str(tmp_path / "absent"))
