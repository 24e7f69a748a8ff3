import json
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minidalle.data.captioned import BAD_IMAGES, CaptionedImages, load_image
from minidalle.errors import MinidalleError

# Quatre quadrants : rouge, vert / bleu, blanc ; 6 × 4 pixels.
QUADRANTS = np.zeros((4, 6, 3), np.uint8)
QUADRANTS[:2, :3, 0] = QUADRANTS[:2, 3:, 1] = QUADRANTS[2:, :3, 2] = 255
QUADRANTS[2:, 3:] = 255


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(QUADRANTS)


def test_import_is_light():
    code = "import sys, minidalle.data.captioned; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- load_image


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp"])
def test_lossless_formats_are_read_exactly(name, image, tmp_path):
    image.save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    array = load_image(tmp_path / name)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, QUADRANTS)


def test_exif_rotation(image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # à tourner d'un quart de tour vers la droite
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(QUADRANTS, -1))


def test_transparency_lies_on_white(tmp_path):
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.png"), [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]
    )


def test_palette_and_colour_key_transparency(image, tmp_path):
    image.save(tmp_path / "cle.png", transparency=(255, 0, 0))
    np.testing.assert_array_equal(load_image(tmp_path / "cle.png")[0, 0], [255, 255, 255])
    palette = image.quantize(4)
    palette.save(tmp_path / "a.gif", transparency=palette.getpixel((0, 0)))
    loaded = load_image(tmp_path / "a.gif")
    np.testing.assert_array_equal(loaded[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(loaded[0, 5], [0, 255, 0])


def test_grey_and_bilevel(image, tmp_path):
    image.convert("L").save(tmp_path / "gris.png")
    grey = load_image(tmp_path / "gris.png")
    np.testing.assert_array_equal(grey, np.repeat(np.array(image.convert("L"))[..., None], 3, axis=2))
    Image.new("1", (5, 3), 1).save(tmp_path / "un.png")
    np.testing.assert_array_equal(load_image(tmp_path / "un.png"), np.full((3, 5, 3), 255))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(name, tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / name)
    np.testing.assert_array_equal(load_image(tmp_path / name)[0, :, 0], [0, 1, 128, 255])


def test_sixteen_bit_grey_in_a_32_bit_file(tmp_path):
    Image.fromarray(np.array([[-5, 0, 32896, 65535]], np.int32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif")[0, :, 1], [0, 0, 128, 255])


def test_sixteen_bit_colour(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = b"\0" + struct.pack(">HHH", 32768, 65535, 4660)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixel)), chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), [[[128, 255, 18]]])


def test_cmyk(image, tmp_path):
    image.convert("CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), QUADRANTS)
    image.resize((60, 40), 0).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(load_image(tmp_path / "a.jpg")[5, 5].astype(int) - [255, 0, 0]).max() < 12


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(MinidalleError, match=r"a\.tif.*virgule flottante"):
        load_image(tmp_path / "a.tif")


def test_size_crops_the_centre(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (0, 200, 0)  # seul le tiers central est vert
    Image.fromarray(wide).save(tmp_path / "a.png")
    array = load_image(tmp_path / "a.png", 10)
    np.testing.assert_array_equal(array, np.broadcast_to(np.array([0, 200, 0]), (10, 10, 3)))
    assert load_image(tmp_path / "a.png", 3).shape == (3, 3, 3)
    assert load_image(tmp_path / "a.png", 64).shape == (64, 64, 3)


@pytest.mark.parametrize("size", [0, -1])
def test_impossible_size(size, image, tmp_path):
    image.save(tmp_path / "a.png")
    with pytest.raises(MinidalleError, match=f"\\({size}\\)"):
        load_image(tmp_path / "a.png", size)


def test_missing_image_and_folder(tmp_path):
    with pytest.raises(MinidalleError, match=r"« .*rien\.png » est introuvable"):
        load_image(tmp_path / "rien.png")
    (tmp_path / "dossier.png").mkdir()
    with pytest.raises(MinidalleError, match=r"« .*dossier\.png » ne peut pas être ouverte"):
        load_image(tmp_path / "dossier.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncated_image(name, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(MinidalleError, match=f"« .*{name} » est tronquée"):
        load_image(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"bonjour", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_not_an_image(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MinidalleError, match=r"« .*a\.png » n'est d'aucun format connu"):
        load_image(tmp_path / "a.png")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spoiled_bytes_never_crash(data, tmp_path, image):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP"]))
    path = tmp_path / "abime"
    image.save(path, kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        array = load_image(path, 8)
    except MinidalleError as error:
        assert str(path) in str(error)
    else:
        assert (array.shape, array.dtype) == ((8, 8, 3), np.uint8)


# --- JSON de légendes COCO


def coco_content() -> dict:
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 7, "file_name": "b.png", "height": 4, "flickr_url": "http://exemple"},
            {"id": 3, "file_name": "a.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "un carré rouge"},
            {"id": 2, "image_id": 7, "caption": " quatre couleurs\n"},
            {"id": 3, "image_id": 3, "caption": "du rouge"},
        ],
    }


def write_coco(folder: Path, content) -> Path:
    path = folder / "legendes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def coco(tmp_path, image) -> Path:
    """Un jeu COCO minuscule : `legendes.json` à côté du dossier `images`."""
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images/b.png")
    Image.new("RGB", (5, 5), "red").save(tmp_path / "images/a.png")
    return write_coco(tmp_path, coco_content())


def test_coco_pairs_each_image_with_its_captions(coco):
    dataset = CaptionedImages.from_coco(coco, coco.parent / "images")
    assert len(dataset) == 2
    array, captions = dataset[0]
    np.testing.assert_array_equal(array, QUADRANTS)
    assert captions == ["quatre couleurs"]
    array, captions = dataset[1]
    np.testing.assert_array_equal(array, np.full((5, 5, 3), [255, 0, 0]))
    assert captions == ["un carré rouge", "du rouge"]
    assert dataset.captions == [["quatre couleurs"], ["un carré rouge", "du rouge"]]


def test_dataset_is_a_sequence(coco):
    dataset = CaptionedImages.from_coco(coco, coco.parent / "images", size=3)
    assert [captions for _, captions in dataset] == dataset.captions
    assert {array.shape for array, _ in dataset} == {(3, 3, 3)}
    assert dataset[-1][1] == dataset[1][1]
    with pytest.raises(IndexError):
        dataset[2]


def test_images_are_read_only_when_asked_for(coco):
    shutil.rmtree(coco.parent / "images")
    dataset = CaptionedImages.from_coco(coco, coco.parent / "images")
    assert dataset.captions[0] == ["quatre couleurs"]
    with pytest.raises(MinidalleError, match=r"legendes\.json », entrée 1 : .*a\.png » est introuvable"):
        dataset[1]


def test_bad_image_names_json_and_entry(coco):
    (coco.parent / "images/b.png").write_text("bonjour")
    dataset = CaptionedImages.from_coco(coco, coco.parent / "images")
    with pytest.raises(MinidalleError, match=r"legendes\.json », entrée 0 : .*b\.png"):
        dataset[0]
    assert dataset[1][1] == ["un carré rouge", "du rouge"]


def edited(*path, value=None, delete=False) -> dict:
    content = coco_content()
    target = content
    for step in path[:-1]:
        target = target[step]
    if delete:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (edited("images", delete=True), "« images »"),
        (edited("annotations", delete=True), "« annotations »"),
        (edited("images", value={}), "« images »"),
        (edited("annotations", value="x"), "« annotations »"),
        (edited("images", 1, value=5), r"images\[1\]"),
        (edited("images", 1, "id", delete=True), r"images\[1\] .*« id »"),
        (edited("images", 1, "id", value=True), r"images\[1\] .*« id »"),
        (edited("images", 1, "id", value=[1]), r"images\[1\] .*« id »"),
        (edited("images", 1, "id", value=7), r"images\[1\] .*7"),
        (edited("images", 0, "file_name", delete=True), r"images\[0\] .*« file_name »"),
        (edited("images", 0, "file_name", value=None), r"images\[0\] .*« file_name »"),
        (edited("images", 0, "file_name", value="../a.png"), r"images\[0\] .*sort du dossier"),
        (edited("images", 0, "file_name", value="x/../../a.png"), r"images\[0\] .*sort du dossier"),
        (edited("images", 0, "file_name", value="/etc/passwd"), r"images\[0\] .*sort du dossier"),
        (edited("annotations", 2, value=None), r"annotations\[2\]"),
        (edited("annotations", 2, "caption", delete=True), r"annotations\[2\] .*« caption »"),
        (edited("annotations", 2, "caption", value=["x"]), r"annotations\[2\] .*« caption »"),
        (edited("annotations", 2, "caption", value=" \n"), r"annotations\[2\] .*vide"),
        (edited("annotations", 2, "image_id", value=99), r"annotations\[2\] .*99"),
        (edited("annotations", 2, "image_id", value="3"), r"annotations\[2\] .*'3'"),
        (edited("annotations", 1, "image_id", value=3), r"images\[0\] .*aucune légende"),
        (edited("images", value=[]) | {"annotations": []}, "aucune image"),
        ([], "objet JSON"),
        ("null", "objet JSON"),
        ("", "JSON"),
        ('{"images": [\n\n}', "ligne 3"),
        ("[" * 100_000, "JSON"),
        ("1" * 5000, "JSON"),
        (json.dumps(coco_content()) + " x", r"JSON .*\(ligne 1\)"),
        (edited("images", 0, "height", value=float("nan")), "nombre impossible"),
        (edited("images", 0, "id", value=2**70), "nombre impossible"),
    ],
)
def test_faulty_coco_names_file_and_entry(content, place, coco):
    write_coco(coco.parent, content)
    with pytest.raises(MinidalleError, match=f"« .*legendes.json ».*{place}"):
        CaptionedImages.from_coco(coco, coco.parent / "images")


def test_annotations_may_come_before_images(coco):
    content = coco_content()
    turned = {name: content[name] for name in ("annotations", "info", "images")}
    write_coco(coco.parent, turned | {"type": "captions", "licenses": [{"id": [1, {"x": None}]}]})
    dataset = CaptionedImages.from_coco(coco, coco.parent / "images")
    assert dataset.names == ["b.png", "a.png"]
    assert dataset.captions == [["quatre couleurs"], ["un carré rouge", "du rouge"]]


def test_emoji_escapes_and_byte_order_mark(coco):
    content = edited("annotations", 1, "caption", value="un 🐑 à côté d'un œuf")
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False)):
        coco.write_bytes(b"\xef\xbb\xbf" + text.encode())
        captions = CaptionedImages.from_coco(coco, coco.parent / "images").captions
        assert captions[0] == ["un 🐑 à côté d'un œuf"]


def test_a_large_json_is_not_held_in_memory(coco):
    content = coco_content()
    content["annotations"] = [
        {"image_id": 3 + 4 * (i % 2), "caption": f"légende {i}", "inutile": f"{i:03}" * 200}
        for i in range(5000)
    ]
    write_coco(coco.parent, content)
    tracemalloc.start()
    dataset = CaptionedImages.from_coco(coco, coco.parent / "images")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(captions) for captions in dataset.captions] == [2500, 2500]
    assert peak < coco.stat().st_size / 3


def test_json_that_is_not_utf8(coco):
    coco.write_bytes(json.dumps(coco_content()).replace("un carr", "un carr\xe9").encode("latin-1"))
    with pytest.raises(MinidalleError, match=r"legendes\.json"):
        CaptionedImages.from_coco(coco, coco.parent / "images")


def test_missing_json(tmp_path):
    with pytest.raises(MinidalleError, match=r"rien\.json"):
        CaptionedImages.from_coco(tmp_path / "rien.json", tmp_path)


@pytest.mark.parametrize("name", ["nul\0.png", "n" * 400, "", "."])
def test_impossible_file_names_fail_politely(name, coco):
    write_coco(coco.parent, edited("images", 0, "file_name", value=name))
    dataset = CaptionedImages.from_coco(coco, coco.parent / "images")
    with pytest.raises(MinidalleError, match=r"legendes\.json », entrée 0"):
        dataset[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(["a.png", "", "un mot"]),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.sampled_from(["id", "caption"]), child),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_json_gives_a_dataset_or_a_clear_error(data, coco):
    content = coco_content()
    for _ in range(data.draw(st.integers(1, 3))):
        target, key = content, data.draw(st.sampled_from(["images", "annotations"]))
        if isinstance(target.get(key), list) and target[key] and data.draw(st.booleans()):
            target, key = target[key], data.draw(st.integers(0, len(target[key]) - 1))
            if isinstance(target[key], dict) and target[key] and data.draw(st.booleans()):
                target, key = target[key], data.draw(st.sampled_from(sorted(target[key])))
        if data.draw(st.booleans()):
            target[key] = data.draw(json_values)
        else:
            target.pop(key, None) if isinstance(target, dict) else target.pop(key)
    write_coco(coco.parent, content)
    try:
        dataset = CaptionedImages.from_coco(coco, coco.parent / "images")
    except MinidalleError as error:
        assert "legendes.json" in str(error)
    else:
        assert len(dataset) == len(dataset.captions) == len(content["images"])
        assert all(captions and all(c == c.strip() != "" for c in captions) for captions in dataset.captions)


# --- dossier de paires


@pytest.fixture
def pairs(tmp_path, image) -> Path:
    folder = tmp_path / "paires"
    folder.mkdir()
    for name, text in (("b.png", "un été\n\n  deux \n"), ("a.JPG", "\ufeffune légende\r\n")):
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    return folder


def test_folder_pairs(pairs):
    (pairs / "LISEZMOI.txt").write_text("sans image")
    (pairs / "._a.jpg").write_text("reste d'un autre système")
    dataset = CaptionedImages.from_folder(pairs)
    assert dataset.captions == [["une légende"], ["un été", "deux"]]
    np.testing.assert_array_equal(dataset[1][0], QUADRANTS)


def test_folder_with_a_lonely_image(pairs):
    (pairs / "b.txt").unlink()
    with pytest.raises(MinidalleError, match=r"b\.png » n'a pas de légende.*b\.txt"):
        CaptionedImages.from_folder(pairs)


@pytest.mark.parametrize(("content", "problem"), [(b" \n\n", "vide"), (b"\xe9t\xe9", "UTF-8")])
def test_folder_with_faulty_text(content, problem, pairs):
    (pairs / "b.txt").write_bytes(content)
    with pytest.raises(MinidalleError, match=f"b\\.txt ».*{problem}"):
        CaptionedImages.from_folder(pairs)


def test_folder_without_images(tmp_path):
    with pytest.raises(MinidalleError, match="aucune image"):
        CaptionedImages.from_folder(tmp_path)
    with pytest.raises(MinidalleError, match="nulle-part"):
        CaptionedImages.from_folder(tmp_path / "nulle-part")


def test_folder_bad_image_is_named(pairs):
    (pairs / "a.JPG").write_bytes(b"abc")
    with pytest.raises(MinidalleError, match=r"paires », entrée 0 : .*a\.JPG"):
        CaptionedImages.from_folder(pairs)[0]


# --- images absentes ou illisibles


@pytest.fixture
def spoiled(tmp_path, image) -> Path:
    """Cinq paires, dont trois aux images abîmées : coupée, vidée, remplacée par un texte."""
    folder = tmp_path / "abimees"
    folder.mkdir()
    for name in "abcde":
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"image {name}")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "c.png").write_bytes(b"")
    (folder / "e.png").write_text("bonjour")
    return folder


def test_bad_images_stop_at_the_first_one_read(spoiled):
    dataset = CaptionedImages.open(spoiled)
    assert dataset[0][1] == ["image a"]
    with pytest.raises(MinidalleError, match=r"entrée 1 : .*b\.png » est tronquée"):
        dataset[1]


def test_bad_images_are_listed_all_at_once(spoiled):
    with pytest.raises(MinidalleError) as caught:
        CaptionedImages.open(spoiled, bad_images="list")
    title, *lines = str(caught.value).split("\n")
    assert "3 sur 5" in title
    assert [line.split("entrée ")[1][0] for line in lines] == ["1", "2", "4"]
    assert all(f"{name}.png" in line for name, line in zip("bce", lines, strict=True))


def test_bad_images_are_skipped_and_told(spoiled):
    dataset = CaptionedImages.open(spoiled, size=2, bad_images="skip")
    assert dataset.names == ["a.png", "d.png"]
    assert [captions for _, captions in dataset] == dataset.captions == [["image a"], ["image d"]]
    assert [name in line for name, line in zip("bce", dataset.skipped, strict=True)] == [True] * 3


def test_missing_images_of_a_json_are_skipped(coco):
    (coco.parent / "images/b.png").unlink()
    dataset = CaptionedImages.open(coco, bad_images="skip")
    assert dataset.names == ["a.png"]
    np.testing.assert_array_equal(dataset[0][0], np.full((5, 5, 3), [255, 0, 0]))
    assert len(dataset.skipped) == 1 and "b.png » est introuvable" in dataset.skipped[0]


def test_nothing_readable_is_an_error(coco):
    shutil.rmtree(coco.parent / "images")
    with pytest.raises(MinidalleError, match="2 sur 2"):
        CaptionedImages.open(coco, bad_images="skip")


@pytest.mark.parametrize("choice", BAD_IMAGES)
def test_good_images_pass_every_choice(choice, pairs):
    dataset = CaptionedImages.open(pairs, bad_images=choice)
    assert (len(dataset), dataset.skipped) == (2, [])


def test_unknown_choice(pairs):
    with pytest.raises(MinidalleError, match="« ignore ».*fail, list, skip"):
        CaptionedImages.open(pairs, bad_images="ignore")


def test_keep_leaves_the_original_alone(spoiled):
    dataset = CaptionedImages.open(spoiled)
    kept = dataset.keep(iter([3, 0]))
    assert [captions for _, captions in kept] == [["image d"], ["image a"]]
    assert len(dataset) == len(dataset.captions) == 5


# --- open


def test_open_guesses(coco, pairs):
    expected = CaptionedImages.from_coco(coco, coco.parent / "images").captions
    assert CaptionedImages.open(coco, size=2)[0][0].shape == (2, 2, 3)
    assert CaptionedImages.open(coco.parent).captions == expected
    assert CaptionedImages.open(pairs).captions == [["une légende"], ["un été", "deux"]]


def test_open_finds_images_beside_the_json(coco):
    for path in (coco.parent / "images").iterdir():
        path.rename(coco.parent / path.name)
    (coco.parent / "images").rmdir()
    np.testing.assert_array_equal(CaptionedImages.open(coco)[0][0], QUADRANTS)


def test_open_with_several_json(coco):
    shutil.copy(coco, coco.parent / "autre.json")
    with pytest.raises(MinidalleError, match="plusieurs fichiers JSON"):
        CaptionedImages.open(coco.parent)
    coco.rename(coco.parent / "captions.json")
    assert CaptionedImages.open(coco.parent).source.name == "captions.json"


def test_open_nothing(tmp_path):
    with pytest.raises(MinidalleError, match="nulle-part"):
        CaptionedImages.open(tmp_path / "nulle-part")


# --- données réelles


@pytest.mark.skipif("MINIDALLE_DATA" not in os.environ, reason="MINIDALLE_DATA n'est pas défini")
def test_real_coco_sample():
    folder = Path(os.environ["MINIDALLE_DATA"]) / "coco"
    if not folder.is_dir():
        pytest.skip("MINIDALLE_DATA/coco est absent")
    dataset = CaptionedImages.open(folder, size=32)
    assert len(dataset) > 0
    for array, captions in dataset:
        assert array.shape == (32, 32, 3) and array.std() > 5
        assert len(captions) >= 5


@pytest.mark.skipif("MINIDALLE_DATA" not in os.environ, reason="MINIDALLE_DATA n'est pas défini")
def test_real_coco_captions_without_their_images():
    path = Path(os.environ["MINIDALLE_DATA"]) / "coco/captions_val2017.json"
    if not path.is_file():
        pytest.skip("MINIDALLE_DATA/coco/captions_val2017.json est absent")
    dataset = CaptionedImages.open(path)
    assert (len(dataset), sum(map(len, dataset.captions))) == (5000, 25_014)
    content = json.loads(path.read_text())
    assert dataset.names == [entry["file_name"] for entry in content["images"]]
    ranks = {entry["id"]: i for i, entry in enumerate(content["images"])}
    expected = [[] for _ in ranks]
    for entry in content["annotations"]:
        expected[ranks[entry["image_id"]]].append(entry["caption"].strip())
    assert dataset.captions == expected
