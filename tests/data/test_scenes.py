"""Le monde des scènes : règles, dessin, légendes, combinaisons réservées."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab

from minidalle.data import openmoji, scenes
from minidalle.data.scenes import Object, Scene, caption, relation, render, sample_scene, split_of
from minidalle.errors import MinidalleError

SEEDS = st.integers(0, 2**32 - 1)
SQUARE = Object("carré", "bleu", size="moyen", x=0.75, y=0.5)
SHEEP = Object("mouton", size="moyen", x=0.25, y=0.5)
TITLE = Scene("blanc", (SHEEP, SQUARE))
FULL = {"colour": 1, "texture": 1, "size": 1, "omission": 0, "phrasing": 0, "comparison": 0, "background": 0}


def scene_of(seed, split=None, **options):
    return sample_scene(np.random.default_rng(seed), split, **options)


# --- le monde ---


def test_the_world_is_as_large_as_promised():
    assert len(scenes.SHAPES) >= 8 and len(scenes.THINGS) >= 24 and len(scenes.COLOURS) == 8
    for noun in scenes.THINGS.values():
        openmoji.find(noun.character)


def test_colours_are_far_apart_for_the_eye():
    def distance(a, b):
        lab = rgb2lab(np.array([[a, b]]) / 255.0)[0]
        return float(deltaE_ciede2000(lab[0], lab[1]))

    colours, backgrounds = list(scenes.COLOURS.values()), list(scenes.BACKGROUNDS.values())
    pairs = [(a, b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distance(a, b) for a, b in pairs + [(a, b) for a in colours for b in backgrounds]) >= 19
    assert min(distance(a, b) for i, a in enumerate(backgrounds) for b in backgrounds[:i]) >= 11


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Object("dragon"), "dragon.*choisir parmi"),
        (lambda: Object("carré"), "None.*couleur"),
        (lambda: Object("carré", "turquoise"), "turquoise"),
        (lambda: Object("mouton", "rouge"), "émoji"),
        (lambda: Object("mouton", texture="rayé"), "émoji"),
        (lambda: Object("mouton", x=1.5), "hors de l'image"),
        (lambda: Scene("blanc", ()), "de 1 à 5 objets, pas 0"),
        (lambda: Scene("blanc", (SHEEP,) * 6), "pas 6"),
        (lambda: Scene("fuchsia", (SHEEP,)), "fuchsia"),
        (lambda: scene_of(0, "validation"), "validation"),
        (lambda: scene_of(0, count=9), "Nombre d'objets impossible"),
        (lambda: render(TITLE, 4), "au moins 16"),
    ],
)
def test_impossible_worlds_are_refused(build, message):
    with pytest.raises(MinidalleError, match=message):
        build()


# --- relations et découpage ---


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.8, 0.5, "gauche"),
        (0.2, 0.5, "droite"),
        (0.5, 0.8, "dessus"),
        (0.5, 0.2, "dessous"),
        (0.8, 0.8, None),
    ],
)
def test_relation_reads_the_coordinates(x, y, expected):
    assert relation(Object("mouton"), Object("chat", x=x, y=y)) == expected


@given(*[st.floats(0, 1)] * 4)
def test_relations_are_inverse_of_each_other(ax, ay, bx, by):
    a, b = Object("mouton", x=ax, y=ay), Object("chat", x=bx, y=by)
    assert relation(b, a) == scenes.INVERSE.get(relation(a, b))


@given(SEEDS)
def test_train_scenes_hold_no_reserved_combination(seed):
    scene = scene_of(seed, "train")
    for a in scene.objects:
        assert a.colour is None or scenes.HELD_OUT_COLOURS[a.kind] != a.colour
        for b in scene.objects:
            assert (a.kind, relation(a, b), b.kind) != ("étoile", "gauche", "croix")
            assert (a.kind, relation(a, b), b.kind) != ("carré", "droite", "mouton")
    assert split_of(scene) == "train"
    assert split_of(scene_of(seed, "test")) == "test"


def test_the_title_and_the_examples_are_reserved_for_the_test():
    assert split_of(TITLE) == "test"
    star, cross = Object("étoile", "jaune", x=0.2), Object("croix", "rouge", x=0.8)
    assert split_of(Scene("gris", (cross, star))) == "test"
    mirrored = (Object("étoile", "jaune", x=0.8), Object("croix", "rouge", x=0.2))
    assert split_of(Scene("gris", mirrored)) == "train"
    assert split_of(Scene("gris", (Object("triangle", "vert"),))) == "test"
    assert split_of(Scene("gris", (Object("triangle", "bleu"),))) == "train"


def test_every_word_of_the_world_is_seen_in_training():
    seen = set()
    rng = np.random.default_rng(0)
    for scene in scenes.sample_scenes(rng, 3000):
        for o in scene.objects:
            seen |= {o.kind, o.colour, o.texture, o.size}
    tables = (scenes.KINDS, scenes.COLOURS, scenes.TEXTURES, scenes.SIZES)
    assert seen - {None} == set().union(*tables)


# --- tirage et dessin ---


@given(SEEDS, st.sampled_from([1 / 8, 1 / 64]))
def test_objects_stay_inside_and_apart(seed, pitch):
    objects = scene_of(seed, pitch=pitch).objects
    for i, a in enumerate(objects):
        assert a.side / 2 - 1e-9 <= min(a.x, a.y) <= max(a.x, a.y) <= 1 - a.side / 2 + 1e-9
        corner = (a.x - a.side / 2) / pitch, (a.y - a.side / 2) / pitch
        assert np.allclose(corner, np.round(corner))
        for b in objects[:i]:
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.side + b.side) / 2 - 1e-9


@given(SEEDS, st.integers(1, 5))
def test_same_seed_same_scene_and_same_pixels(seed, count):
    a, b = scene_of(seed, count=count), scene_of(seed, count=count)
    assert a == b and len(a.objects) == count
    assert np.array_equal(render(a, 32), render(b, 32))


@pytest.mark.parametrize("size", [16, 33, 64, 128])
def test_render_shows_colours_where_objects_are(size):
    red = Object("carré", "rouge", size="grand", x=0.25, y=0.75)
    image = render(Scene("sable", (red,)), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert tuple(image[round(0.75 * size), round(0.25 * size)]) == scenes.COLOURS["rouge"]
    assert tuple(image[2, 2]) == scenes.BACKGROUNDS["sable"]


def test_edges_are_smooth_and_without_a_dark_rim():
    image = render(Scene("blanc", (Object("cercle", "jaune", size="grand"),)), 64).astype(int)
    colour, background = (np.array(c) for c in (scenes.COLOURS["jaune"], scenes.BACKGROUNDS["blanc"]))
    mixed = [p for p in image.reshape(-1, 3) if tuple(p) not in (tuple(colour), tuple(background))]
    assert len(mixed) > 50
    # Chaque pixel du bord est un mélange des deux couleurs, à l'arrondi près.
    low, high = np.minimum(colour, background) - 2, np.maximum(colour, background) + 2
    assert all((low <= p).all() and (p <= high).all() for p in mixed)


@pytest.mark.parametrize("kind", [k for k in scenes.KINDS if k not in ("mouton", "chat")])
def test_every_object_can_be_told_from_the_others(kind):
    def picture(name):
        colour = "rouge" if name in scenes.SHAPES else None
        return render(Scene("blanc", (Object(name, colour, size="moyen"),)), 64).astype(int)

    mine = picture(kind)
    assert (mine != 255).any()
    assert all(np.abs(mine - picture(other)).mean() > 2.5 for other in scenes.KINDS if other != kind)


@pytest.mark.parametrize("size", ["moyen", "grand"])
def test_textures_show(size):
    def picture(texture):
        return render(Scene("blanc", (Object("carré", "bleu", texture, size),)), 64).astype(int)

    plain, striped, dotted = map(picture, scenes.TEXTURES)
    assert np.abs(plain - striped).mean() > 2 and np.abs(plain - dotted).mean() > 2
    # Des rayures horizontales : chaque ligne du milieu est d'une seule couleur.
    row = striped[32, 26:38]
    assert (row == row[0]).all() and (striped[26:38, 32] != striped[26, 32]).any()


def test_a_mirrored_scene_gives_a_mirrored_image():
    scene = Scene("gris", (Object("cercle", "rouge", x=0.25, y=0.375), Object("carré", "vert", x=0.75)))
    flipped = Scene("gris", tuple(Object(o.kind, o.colour, x=1 - o.x, y=o.y) for o in scene.objects))
    assert np.abs(render(scene)[:, ::-1].astype(int) - render(flipped)).max() <= 40
    assert np.abs(render(scene)[:, ::-1].astype(int) - render(flipped)).mean() < 0.5


# --- légendes ---


def tell(scene, seed=0, **options):
    return caption(scene, np.random.default_rng(seed), **FULL | options)


def test_the_title_of_the_book():
    told = {tell(TITLE, seed, spatial=1) for seed in range(20)}
    assert "un mouton à gauche d'un carré bleu" in told
    assert "un carré bleu à droite d'un mouton" in told
    assert len(told) == 2


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ((Object("étoile", "vert", "rayé", "grand"),), {"une grande étoile verte rayée"}),
        ((Object("croix", "orange", "à pois"),), {"une croix orange à pois"}),
        ((SHEEP, Object("mouton", x=0.7)), {"deux moutons"}),
        (
            tuple(Object("étoile", "violet", "uni", "petit", x) for x in (0.1, 0.5, 0.9)),
            {"trois petites étoiles violettes"},
        ),
        (tuple(Object("bateau", x=x) for x in (0.1, 0.4, 0.6, 0.9)), {"quatre bateaux"}),
        (
            (SQUARE, Object("anneau", "noir", y=0.1)),
            {"un carré bleu et un anneau noir", "un anneau noir et un carré bleu"},
        ),
    ],
)
def test_agreements_and_plurals(objects, expected):
    assert {tell(Scene("blanc", objects), seed, spatial=0) for seed in range(8)} == expected


def test_elisions_and_contractions():
    star, square = Object("étoile", "rouge", y=0.1), Object("carré", "bleu", x=0.6, y=0.8)
    told = {tell(Scene("azur", (star, square)), s, spatial=1, phrasing=1) for s in range(80)}
    texts = " | ".join(told)
    assert "l'étoile rouge est au-dessus du carré bleu" in texts
    assert "le carré bleu est au-dessous de l'étoile rouge" in texts
    assert "d'une étoile" in texts and "d'un carré" in texts and "en haut et" in texts
    for fault in (" de un", " de le ", " la é", " le é", " que un", "voici le", "voici l'", " de é"):
        assert fault not in texts


@given(SEEDS, SEEDS)
def test_captions_are_true_and_well_formed(seed, voice):
    scene = scene_of(seed)
    text = caption(scene, np.random.default_rng(voice), phrasing=0.8)
    assert text == text.strip().lower() and "  " not in text and "none" not in text
    assert not re.search(r"\b(de|que|le|la) [aeiouyéèêœ]", text), text
    # Rien n'est dit qui ne soit dans la scène ; « à gauche » etc. sont vérifiés plus bas.
    kinds = {o.kind for o in scene.objects}
    named = {k for k, n in scenes.KINDS.items() if re.search(rf"\b({n.singular}|{n.plural})\b", text)}
    assert named and named <= kinds
    colours = {o.colour for o in scene.objects}
    for name, word in scenes._COLOUR_WORDS.items():
        forms = {word.masculine, word.feminine, word.masculine_plural, word.feminine_plural}
        if any(re.search(rf"\b{form}\b", text) for form in forms):
            assert name in colours


@given(SEEDS, SEEDS)
def test_stated_relations_hold(seed, voice):
    scene = scene_of(seed)
    text = caption(scene, np.random.default_rng(voice), **FULL | {"spatial": 1})
    words = {
        "à gauche de": "gauche",
        "à droite de": "droite",
        "au-dessus de": "dessus",
        "au-dessous de": "dessous",
    }
    for words_of, place in words.items():
        stem = words_of[:-1]
        if re.search(stem + r"[e' ]", text):
            first, second = re.split(stem + r"(?:e |')", text)[:2]
            second = second.split(", avec")[0]

            def matching(phrase):
                return [
                    o
                    for o in scene.objects
                    if re.search(rf"\b{o.kind}\b", phrase)
                    and (
                        o.colour is None
                        or scenes._COLOUR_WORDS[o.colour].agree(scenes.KINDS[o.kind].gender, 1)
                        in phrase.split()
                    )
                ]

            assert any(relation(a, b) == place for a in matching(first) for b in matching(second))
            return


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (
            Object("chat", x=0.2),
            Object("croix", "vert", x=0.8),
            {
                "un chat à gauche d'une croix verte",
                "une croix verte à droite d'un chat",
                "le chat est à gauche de la croix verte",
                "la croix verte est à droite du chat",
                "à gauche d'une croix verte, un chat",
                "à droite d'un chat, une croix verte",
                "une croix verte avec un chat à sa gauche",
                "un chat avec une croix verte à sa droite",
                "un chat à gauche et une croix verte à droite",
                "une croix verte à droite et un chat à gauche",
            },
        ),
        (
            Object("chat", y=0.2),
            Object("croix", "vert", y=0.45),
            {
                "un chat au-dessus d'une croix verte",
                "une croix verte au-dessous d'un chat",
                "le chat est au-dessus de la croix verte",
                "la croix verte est au-dessous du chat",
                "au-dessus d'une croix verte, un chat",
                "au-dessous d'un chat, une croix verte",
                "une croix verte avec un chat au-dessus",
                "un chat avec une croix verte au-dessous",
                "une croix verte sous un chat",
            },
        ),
    ],
)
def test_every_spatial_turn(a, b, expected):
    """Exactement ces phrases ; « en haut, en bas » seulement quand chacun est de son côté de l'image."""
    opening = re.compile("^(on voit|voici) ")
    told = {tell(Scene("blanc", (a, b)), s, spatial=1, phrasing=p) for s in range(120) for p in (0, 1)}
    assert {opening.sub("", text) for text in told} == expected


def test_top_and_bottom_follow_the_objects():
    scene = Scene("blanc", (Object("chat", y=0.2), Object("chien", y=0.8)))
    told = {tell(scene, s, spatial=1, phrasing=1) for s in range(80)}
    ends = {re.sub("^(on voit|voici) ", "", t) for t in told if " en haut" in t}
    assert ends == {"un chat en haut et un chien en bas", "un chien en bas et un chat en haut"}


def test_what_is_named_is_the_only_one_of_its_kind():
    """« le cercle » ne se dit pas s'il y a aussi un cercle rayé ; ni « une étoile plus petite qu'une étoile »."""
    scene = Scene(
        "blanc", (Object("cercle", "bleu", "uni", x=0.2), Object("cercle", "bleu", "rayé", "grand", x=0.7))
    )
    for seed in range(60):
        for size in (0, 1):
            text = tell(scene, seed, spatial=1, comparison=1, phrasing=1, size=size)
            assert "gauche" not in text and "droite" not in text and "plus" not in text


@given(SEEDS, SEEDS)
def test_numerals_count_what_is_there(seed, voice):
    scene = scene_of(seed)
    text = caption(scene, np.random.default_rng(voice), omission=0)
    counts = {k: sum(o.kind == k for o in scene.objects) for k in scenes.KINDS}
    numerals = {"un": 1, "une": 1, "le": 1, "la": 1, "deux": 2, "trois": 3, "quatre": 4, "cinq": 5}
    told = dict.fromkeys(scenes.KINDS, 0)
    words = re.sub("[,']", " ", text).split()
    for kind, noun in scenes.KINDS.items():
        for i, word in enumerate(words):
            if word in (noun.singular, noun.plural):
                before = [numerals[w] for w in words[max(0, i - 2) : i] if w in numerals]
                told[kind] += before[-1] if before else 1
    for kind, count in counts.items():
        # Après une tournure en « avec », le reste est tu : on compte alors au plus ce qui est là.
        assert told[kind] <= count
        if not re.search("(?<!,) avec ", text):
            assert told[kind] == count


def test_after_a_relation_the_rest_is_counted():
    squares = (Object("carré", "rouge", x=0.2, y=0.8), Object("carré", "bleu", x=0.8, y=0.8))
    scene = Scene("blanc", (Object("chat", x=0.2, y=0.2), Object("chien", x=0.8, y=0.2), *squares))
    assert {tell(scene, s, spatial=1, colour=0) for s in range(20)} == {
        "un chat à gauche d'un chien, avec deux carrés",
        "un chien à droite d'un chat, avec deux carrés",
    }


def test_omission_leaves_an_object_out():
    scene = Scene("blanc", (Object("chat", x=0.2), Object("chien", x=0.5), Object("pomme", x=0.8)))
    rng = np.random.default_rng(0)
    for share in (0, 0.5, 1):
        options = FULL | {"spatial": 0, "omission": share}
        told = [caption(scene, rng, **options) for _ in range(200)]
        two = np.mean(["," not in text for text in told])
        assert abs(two - share) <= 4 * np.sqrt(share * (1 - share) / 200)


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_spatial_sets_the_share_of_captions_that_state_a_relation(share):
    rng = np.random.default_rng(0)
    able = [
        s
        for s in scenes.sample_scenes(rng, 2000, count=2)
        if relation(*s.objects) and len({(o.kind, o.colour) for o in s.objects}) == 2
    ]
    pattern = re.compile(r"gauche|droite|dessus|dessous|en haut|en bas| sous ")
    said = np.mean([bool(pattern.search(caption(s, rng, spatial=share, colour=1))) for s in able])
    assert abs(said - share) <= 4 * np.sqrt(share * (1 - share) / len(able))


@pytest.mark.parametrize(
    ("option", "pattern"),
    [("colour", r"bleu"), ("texture", r"rayé"), ("size", r"grand"), ("background", r"fond azur")],
)
def test_each_attribute_is_said_as_often_as_asked(option, pattern):
    scene = Scene("azur", (Object("carré", "bleu", "rayé", "grand"),))
    rng = np.random.default_rng(0)
    for share in (0, 0.5, 1):
        said = np.mean([bool(re.search(pattern, caption(scene, rng, **{option: share}))) for _ in range(400)])
        assert abs(said - share) <= 4 * np.sqrt(share * (1 - share) / 400)


def test_sizes_are_compared():
    scene = Scene("blanc", (Object("étoile", "rouge", size="grand"), Object("mouton", x=0.9, y=0.9)))
    told = {tell(scene, s, spatial=0, comparison=1) for s in range(10)}
    assert told == {"une étoile rouge plus grande qu'un mouton", "un mouton plus petit qu'une étoile rouge"}


# --- légendes opposées ---


def test_an_object_and_a_place_in_words():
    star, square = Object("étoile", "violet", "rayé", "grand"), Object("carré", "bleu")
    assert scenes.describe(star) == "une étoile violette" and scenes.describe(SHEEP) == "un mouton"
    assert scenes.situate(star, "gauche", square) == "une étoile violette à gauche d'un carré bleu"
    assert scenes.situate(SHEEP, "dessous", star) == "un mouton au-dessous d'une étoile violette"
    with pytest.raises(MinidalleError, match="relation"):
        scenes.situate(star, "derrière", square)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("un chat à gauche d'un chien", "un chat à droite d'un chien"),
        ("la grande croix est au-dessus du chat", "la grande croix est au-dessous du chat"),
        ("un chat avec un chien à sa droite", "un chat avec un chien à sa gauche"),
        ("un chat en haut et un chien en bas", "un chat en bas et un chien en haut"),
        ("un chat sous une croix sur un fond gris", "un chat au-dessus d'une croix sur un fond gris"),
        ("à droite d'un chat, un chien", "à gauche d'un chat, un chien"),
        ("un chat et un chien", None),
        ("un chat plus grand qu'un chien", None),
        ("flèche vers le haut", None),
        ("main avec index pointant à gauche", None),
        # Dispositions réservées au test : la légende est vraie à l'entraînement, son opposée y serait fausse.
        ("un mouton à droite d'un carré bleu", None),
        ("une croix verte à gauche d'une étoile", None),
    ],
)
def test_opposite_captions(text, expected):
    assert scenes.opposite(text) == expected


@given(SEEDS, SEEDS)
def test_the_opposite_is_told_of_the_scene_upside_down(seed, voice):
    scene = scene_of(seed)
    turned = Scene(scene.background, tuple(replace(o, x=1 - o.x, y=1 - o.y) for o in scene.objects))
    text, told = (tell(s, voice, spatial=1) for s in (scene, turned))
    assert scenes.opposite(text) in (None, told)


@pytest.mark.parametrize("texture", scenes.TEXTURES)
def test_a_tint_equal_to_the_named_colour_draws_the_same_picture(texture):
    for colour, rgb in scenes.COLOURS.items():
        scene = Scene("sable", (Object("cœur", colour, texture, "grand"),))
        gap = render(scene).astype(int) - render(scene, 64, [rgb])
        assert np.abs(gap).max() <= 2  # arrondis du dessin vectoriel
        other = render(scene, 64, [(255 - rgb[0], rgb[1], rgb[2])]).astype(int)
        assert np.abs(render(scene) - other).max() > 20


def test_an_emoji_takes_no_tint():
    scene = Scene("blanc", (Object("mouton"),))
    assert np.array_equal(render(scene), render(scene, 64, [(1, 2, 3)]))


def test_identical_scenes_can_be_asked_for():
    rng = np.random.default_rng(0)
    for share, expected in ((1.0, True), (0.0, False)):
        for scene in scenes.sample_scenes(rng, 30, None, count=3, identical=share):
            assert (len({(o.kind, o.colour) for o in scene.objects}) == 1) == expected
