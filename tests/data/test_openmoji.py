import contextlib
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidalle.data import openmoji
from minidalle.data.openmoji import catalogue, find, images, on_background, render, split_of
from minidalle.errors import MinidalleError

EVERY = catalogue(skin_tones=True)
TONES = "🏻🏼🏽🏾🏿"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Un cache propre à cette série de tests, jamais celui de l'utilisateur."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("MINIDALLE_CACHE", str(folder))
    return folder


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """Un cache vide, en mémoire comme sur disque."""
    monkeypatch.setenv("MINIDALLE_CACHE", str(tmp_path / "neuf"))
    return tmp_path / "neuf"


def cached_file(folder: Path) -> Path:
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    return path


def test_import_is_light():
    code = "import sys, minidalle.data.openmoji; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_catalogue_names_are_clean_and_unique():
    assert len(catalogue()) > 1500
    for attribute in ("name", "character", "hexcode"):
        values = [getattr(e, attribute) for e in EVERY]
        assert len(set(values)) == len(values)
    for emoji in EVERY:
        assert emoji.name == unicodedata.normalize("NFC", emoji.name).strip()
        assert emoji.name and not set(emoji.name) & set(":_")
        assert (openmoji._SVG / f"{emoji.hexcode}.svg").is_file()


def test_catalogue_order_is_that_of_code_points():
    assert [e.character for e in EVERY] == sorted(e.character for e in EVERY)
    assert set(catalogue()) < set(EVERY)


def test_skin_tones_are_optional():
    assert not any(set(e.character) & set(TONES) for e in catalogue())
    assert len(EVERY) - len(catalogue()) == sum(bool(set(e.character) & set(TONES)) for e in EVERY) > 1500


def test_concept_is_the_name_without_skin_tone():
    assert all(e.concept == e.name for e in catalogue())
    assert {e.concept for e in EVERY} == {e.name for e in catalogue()}
    assert find("👋🏽").concept == find("👋").name
    assert find("👩🏾‍🦳").concept == find("👩‍🦳").name
    # Deux teintes à la fois : la séquence sans teinte n'existe pas, l'émoji simple s'écrit autrement.
    assert find("🫱🏻‍🫲🏿").concept == find("🤝").name
    assert find("🧑🏽‍❤️‍🧑🏿").concept == find("💑").name


@pytest.mark.parametrize(
    ("key", "character"),
    [
        ("mouton", "🐑"),
        ("Mouton", "🐑"),
        ("🐑", "🐑"),
        ("chat", "🐈"),
        ("chien", "🐕"),
        ("maison", "🏠"),
        ("cœur vert", "💚"),
        ("COEUR VERT", "💚"),
        ("❤", "❤️"),
        ("medaille d'or", "🥇"),
        ("médaille d’or", "🥇"),
        (":tête_de_chat:", "🐱"),
        # Noms courants, absents du CLDR.
        ("arbre", "🌳"),
        ("pomme", "🍎"),
        ("ballon", "🎈"),
        ("lune", "🌙"),
    ],
)
def test_find(key, character):
    assert find(key).character == character


def test_find_reaches_every_emoji_by_name_and_character():
    for emoji in EVERY:
        assert find(emoji.name) is find(emoji.character) is find(emoji.name.upper()) is emoji


@pytest.mark.parametrize(("key", "close"), [("moutton", "« mouton »"), ("pomme rou", "« pomme rouge »")])
def test_find_suggests_close_names(key, close):
    with pytest.raises(MinidalleError, match=close) as caught:
        find(key)
    assert f"« {key} »" in str(caught.value)


@pytest.mark.parametrize("key", ["", "  ", "zzzzqqq", "🐑🐑"])
def test_find_rejects_nonsense(key):
    with pytest.raises(MinidalleError, match="Aucun émoji"):
        find(key)


@given(st.text(max_size=30))
def test_find_never_crashes(key):
    with contextlib.suppress(MinidalleError):
        assert find(key) in EVERY


@pytest.mark.parametrize("size", [1, 7, 32, 33, 64, 65, 150])
def test_render_size(size):
    rgba = render("mouton", size)
    assert (rgba.shape, rgba.dtype) == ((size, size, 4), np.uint8)


def test_render_draws_the_emoji_on_transparency():
    rgba = render("cœur vert", 64)
    red, green, blue, alpha = rgba[32, 32].astype(int)
    assert alpha == 255 and green > red > blue
    assert rgba[0, 0, 3] == rgba[-1, -1, 3] == 0


@pytest.mark.parametrize("key", ["mouton", "💚", "ballon", "⚽"])
@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (250, 40, 160)])
def test_small_render_is_the_average_of_a_large_one(key, colour):
    small = on_background(render(key, 16), colour).astype(float)
    large = on_background(render(key, 512), colour).astype(float)
    average = large.reshape(16, 32, 16, 32, 3).mean(axis=(1, 3))
    assert np.sqrt(np.mean((small - average) ** 2)) < 3.5
    assert np.abs(small - average).max() < 20


def test_render_accepts_emoji_or_key():
    assert render(find("mouton"), 20) is render("🐑", 20)


def test_render_is_read_only_because_shared():
    with pytest.raises(ValueError, match="read-only"):
        render("mouton", 20)[0, 0] = 0


@pytest.mark.parametrize("size", [0, -4, 5000])
def test_render_rejects_impossible_sizes(size):
    with pytest.raises(MinidalleError, match=f"\\({size}\\)"):
        render("mouton", size)


def test_disk_cache_is_read_back(fresh_cache, monkeypatch):
    first = render("mouton", 24)
    openmoji._render.cache_clear()
    monkeypatch.setattr(openmoji, "_draw", lambda *_: pytest.fail("redessiné malgré le cache"))
    np.testing.assert_array_equal(render("mouton", 24), first)


def test_disk_cache_tells_emojis_and_sizes_apart(fresh_cache):
    expected = {(key, size): render(key, size) for key in ("mouton", "chat") for size in (16, 24)}
    openmoji._render.cache_clear()
    for (key, size), rgba in expected.items():
        np.testing.assert_array_equal(render(key, size), rgba)
    assert not np.array_equal(expected["mouton", 16], expected["chat", 16])


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "spoil", [flipped, lambda data: data[:-40], lambda data: b"", lambda data: b"bonjour" * 100]
)
def test_corrupt_cache_is_remade(spoil, fresh_cache):
    first = render("mouton", 24)
    path = cached_file(fresh_cache)
    good = path.read_bytes()
    path.write_bytes(spoil(good))
    openmoji._render.cache_clear()
    np.testing.assert_array_equal(render("mouton", 24), first)
    openmoji._render.cache_clear()
    np.testing.assert_array_equal(openmoji._read(path, 24), first)


@pytest.mark.parametrize(
    "array", [np.zeros((24, 24, 3), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((24, 24, 4))]
)
def test_foreign_cache_is_remade(array, fresh_cache):
    first = render("mouton", 24)
    np.savez_compressed(cached_file(fresh_cache), rgba=array)
    openmoji._render.cache_clear()
    np.testing.assert_array_equal(render("mouton", 24), first)


def test_unwritable_cache_is_ignored(tmp_path, monkeypatch):
    (tmp_path / "fichier").write_text("pas un dossier")
    monkeypatch.setenv("MINIDALLE_CACHE", str(tmp_path / "fichier"))
    assert render("mouton", 24).any()


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIDALLE_CACHE", str(tmp_path))
    assert openmoji.cache_dir() == tmp_path
    monkeypatch.delenv("MINIDALLE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert openmoji.cache_dir() == tmp_path / "xdg/minidalle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert openmoji.cache_dir() == Path.home() / ".cache/minidalle"


def test_on_background():
    rgba = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    np.testing.assert_array_equal(on_background(rgba), [[[255, 255, 255], [200, 100, 0], [244, 224, 204]]])
    np.testing.assert_array_equal(
        on_background(rgba, (0, 10, 20)), [[[0, 10, 20], [200, 100, 0], [40, 28, 16]]]
    )


def test_split_keeps_a_tenth_of_the_concepts_for_the_test():
    held_out = sum(split_of(e) == "test" for e in catalogue()) / len(catalogue())
    assert 0.08 < held_out < 0.12


def test_split_never_changes():
    # Des modèles publiés en dépendent : ces valeurs sont figées.
    assert [split_of(find(k)) for k in ("mouton", "chat", "étoile", "vélo", "🏃")] == [
        "train",
        "train",
        "test",
        "test",
        split_of(find("🏃🏿‍♀️‍➡️")),
    ]


def test_split_keeps_variants_together():
    sides = {}
    for emoji in EVERY:
        assert sides.setdefault(emoji.concept, split_of(emoji)) == split_of(emoji)
    for family in (("🏃", "🏃‍♀️", "🏃‍♂️", "🏃‍➡️"), ("🧑‍🌾", "👩‍🌾", "👨‍🌾"), ("🕵️", "🕵️‍♀️")):
        assert len({split_of(find(character)) for character in family}) == 1
    known = {e.character for e in EVERY}
    gendered = [e for e in EVERY if e.character[0] in "👩👨" and "\u200d" in e.character]
    pairs = [(e, "🧑" + e.character[1:]) for e in gendered]
    pairs = [(e, find(neutral)) for e, neutral in pairs if neutral in known]
    assert len(pairs) > 100
    assert all(split_of(e) == split_of(neutral) for e, neutral in pairs)


def test_images():
    arrays, names = images("test", 16)
    assert (arrays.shape, arrays.dtype) == ((len(names), 16, 16, 3), np.uint8)
    assert names == [e.name for e in catalogue() if split_of(e) == "test"]
    i = names.index("étoile")
    np.testing.assert_array_equal(arrays[i], on_background(render("étoile", 16)))
    np.testing.assert_array_equal(arrays[i, 0, 0], [255, 255, 255])
    assert arrays.flags.writeable


def test_images_with_skin_tones_share_no_concept_between_splits():
    _, plain = images("test", 2)
    _, toned = images("test", 2, skin_tones=True)
    assert set(plain) < set(toned)
    assert not {find(n).concept for n in toned} & {e.concept for e in EVERY if split_of(e) == "train"}


def test_images_rejects_unknown_split():
    with pytest.raises(MinidalleError, match="« valid »"):
        images("valid", 16)


def test_credit_names_source_and_licence():
    assert "OpenMoji" in openmoji.CREDIT and "CC BY-SA 4.0" in openmoji.CREDIT
