"""Recettes : les données rencontrent les modèles."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch

from minidalle import recipes
from minidalle.data import scenes
from minidalle.data.pairs import Vocabulary, emoji_names
from minidalle.data.pairs import words as text_words
from minidalle.data.sources import Emojis, Scenes
from minidalle.errors import MinidalleError
from minidalle.models.seq2seq import Seq2Seq, Seq2SeqConfig
from minidalle.training import TrainingConfig, train

SMALL = {"channels": (8, 8, 8), "codes": 16, "code_dim": 4, "blocks": 0}


@pytest.fixture(scope="module")
def parts():
    source = Scenes("train", 32)
    vqvae = recipes.build("vqvae", SMALL)
    # Un premier lot remplit le dictionnaire ; sans lui, toutes les images auraient les mêmes jetons.
    vqvae.loss(*recipes.image_batches(source)(np.random.default_rng(0), 16))
    return source, vqvae.eval(), recipes.build_tokenizer(source, captions=3000)


def test_presets_build_and_unknown_ones_are_refused(parts):
    _, vqvae, tokenizer = parts
    assert recipes.build("vqvae", recipes.preset("vqvae", "mini").model).config.codes == 256
    for name in recipes.GENERATORS:
        for size in ("mini", "reference"):
            options = recipes.preset(name, size).model
            built = recipes.build_generator(name, options, tokenizer, vqvae, 32).config
            assert built.grid == (4, 4) and built.image_vocabulary == 16
            assert built.text_vocabulary == len(tokenizer)
    # Pour se comparer, les deux générateurs livrés apprennent de même.
    assert len({recipes.preset(name, "reference").training for name in recipes.GENERATORS}) == 1
    with pytest.raises(MinidalleError, match="pas un générateur : choisir parmi dalle, dalle_mini"):
        recipes.build_generator("vqvae", {}, tokenizer, vqvae, 32)
    for arguments in (("gan", "mini"), ("vqvae", "giga")):
        with pytest.raises(MinidalleError, match="inconnu ; choisir parmi"):
            recipes.preset(*arguments)


def test_seeds_choose_the_first_weights():
    def first(seed):
        return next(recipes.build("vqvae", SMALL, seed).parameters())

    state = torch.get_rng_state()
    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_tokenizer_gives_one_token_to_every_word_of_the_world(parts):
    source, _, tokenizer = parts
    _, captions = source.batch(np.random.default_rng(9), 300)
    encodings = [tokenizer.encode(c) for c in captions]
    assert not any(e.unknown for e in encodings)
    assert len(tokenizer.encode("un mouton à gauche d'un carré bleu").ids) == 8


def test_pairs_match_their_source(parts):
    source, vqvae, tokenizer = parts
    batches = recipes.token_batches(source, tokenizer, vqvae, 24, caption_dropout=0)
    text, tokens = batches(np.random.default_rng(4), 5)
    images, captions = source.batch(np.random.default_rng(4), 5)
    assert torch.equal(tokens, recipes.encode(vqvae, images))
    assert [tokenizer.decode(row) for row in text] == [
        tokenizer.decode(tokenizer.encode(c, 24).ids) for c in captions
    ]


def test_some_captions_are_dropped(parts):
    source, vqvae, tokenizer = parts
    batches = recipes.token_batches(source, tokenizer, vqvae, 24, caption_dropout=0.3)
    text, _ = batches(np.random.default_rng(0), 400)
    assert abs(float((text == 0).all(1).float().mean()) - 0.3) < 0.1


def test_vqvae_measures(parts):
    source, vqvae, _ = parts
    measure = recipes.measure_images(source, n=8)
    metrics = measure(vqvae)
    assert metrics == measure(vqvae)
    images, _ = source.batch(np.random.default_rng(1), 8)
    shares = np.unique(recipes.encode(vqvae, images), return_counts=True)[1] / (8 * 16)
    assert metrics["codes"] == len(shares) > 1
    assert metrics["test_perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert 0 < metrics["psnr"] < 30


def test_delta_tells_a_model_that_reads(parts):
    source, vqvae, tokenizer = parts
    torch.manual_seed(0)
    measure = recipes.measure_dalle(source, tokenizer, vqvae, 24, n=64)
    options = {"width": 32, "layers": 1, "text_length": 24}
    model = recipes.build_generator("dalle", options, tokenizer, vqvae, 32)
    blind = measure(model.eval())
    assert abs(blind["delta"]) < 0.5
    # On fait apprendre par cœur les images mesurées, avec leurs légendes : l'écart doit devenir net.
    batches = recipes.token_batches(source, tokenizer, vqvae, 24, caption_dropout=0)
    pairs = batches(np.random.default_rng(1), 64)
    config = TrainingConfig(steps=120, batch_size=64, learning_rate=1e-2, warmup=5)
    train(model, lambda rng, n: pairs, config)
    after = measure(model)
    assert after["test_loss"] < blind["test_loss"] and after["delta"] > 2


def leaves(source):
    """Les scènes d'un mélange de mélanges, chacune avec sa part."""
    if isinstance(source, Scenes):
        return [(source, 1.0)]
    return [(s, share / len(source.sources)) for part in source.sources for s, share in leaves(part)]


def test_a_generator_learns_single_objects_situated_pairs_and_counts():
    drawn = []
    for part, share in leaves(recipes.drawing_source(32)):
        told = part._draw(np.random.default_rng(len(drawn)), round(640 * share))
        drawn += zip(*(told[:2]), told[2], strict=True)
    counts = Counter(len(scene.objects) for scene, _, _ in drawn)
    assert counts[1] > 60 and counts[2] > 250 and min(counts[3], counts[4]) > 30
    alike = [scene for scene, _, _ in drawn if len({(o.kind, o.colour) for o in scene.objects}) == 1]
    assert {len(scene.objects) for scene in alike} >= {2, 3, 4}
    sides = re.compile("gauche|droite|dessus|dessous")
    situated = [bool(sides.search(text)) for scene, text, _ in drawn if len(scene.objects) == 2]
    assert 0.2 < np.mean(situated) < 0.9
    assert 0.15 < np.mean([tints is not None for _, _, tints in drawn]) < 0.35
    # La légende dit toujours la couleur d'une forme, sauf si elle n'a pas de nom.
    for scene, text, tints in drawn:
        shape = scene.objects[0]
        if len(scene.objects) == 1 and shape.kind in scenes.SHAPES:
            assert (shape.colour[:4] in text) == (tints is None), text
    assert not any(part.tinted for part, _ in leaves(recipes.drawing_source(32, "test", tinted=0)))


def test_scenes_alone_need_few_words(monkeypatch):
    asked = []
    monkeypatch.setattr(recipes.Tokenizer, "train", lambda texts, size: asked.append(size))
    for source in (Scenes("train", 16), recipes.drawing_source(16), Emojis("train", 16)):
        recipes.build_tokenizer(source, captions=500)
    assert asked == [512, 512, 4096]


@pytest.mark.parametrize("name", recipes.GENERATORS)
def test_a_transplant_follows_the_tokens(parts, name):
    """Les mêmes jetons : le même modèle. Les mêmes, numérotés autrement : les mêmes lois, permutées."""
    source, _, tokenizer = parts
    eyes = recipes.build("vqvae", SMALL | {"codes": 4})
    eyes.loss(*recipes.image_batches(source)(np.random.default_rng(0), 16))
    eyes.eval()
    order = torch.tensor([2, 0, 3, 1])
    turned = recipes.build("vqvae", SMALL | {"codes": 4}).eval()
    turned.load_state_dict(eyes.state_dict())
    turned.quantizer.codebook.copy_(eyes.quantizer.codebook[order])
    options = {"width": 16, "layers": 1, "heads": 2}
    old = recipes.build_generator(name, options | {"text_length": 24}, tokenizer, eyes, 64, seed=1).eval()
    images, captions = source.batch(np.random.default_rng(1), 8)
    images = images.repeat(2, 1).repeat(2, 2)
    ids = [tokenizer.encode(c, 20).ids for c in captions]
    text, longer = recipes.pad(ids, 20), recipes.pad(ids, 24)
    assert len(recipes.encode(eyes, images).unique()) == 4, "tous les codes servent"

    def grafted(new_eyes, length):
        new = recipes.build_generator(name, options | {"text_length": length}, tokenizer, eyes, 64, seed=2)
        recipes.transplant(old, eyes, new, new_eyes, n=64)
        return new.eval()

    same = grafted(eyes, 24).state_dict()
    assert all(torch.allclose(same[key], tensor, atol=1e-6) for key, tensor in old.state_dict().items())
    with torch.no_grad():
        logits = old(longer, recipes.encode(eyes, images))
        permuted = grafted(turned, 24)(longer, recipes.encode(turned, images))
        torch.testing.assert_close(permuted, logits[..., order])
        assert not torch.allclose(permuted, logits)
    shorter = grafted(eyes, 20)
    assert torch.equal(shorter.text_position.weight, old.text_position.weight[:20])
    assert shorter(text, recipes.encode(eyes, images)).shape == logits.shape


def test_lent_tables_are_copied_and_nothing_else(parts):
    _, eyes, tokenizer = parts
    sizes = {"width": 16, "layers": 1, "heads": 2, "text_length": 8}
    old, new, kept = (
        recipes.build_generator(name, sizes, tokenizer, eyes, 32, seed=seed)
        for name, seed in (("dalle", 1), ("dalle_mini", 2), ("dalle_mini", 2))
    )
    recipes.lend_tables(old, new)
    lent = {"text_embedding.weight", "image_embedding.weight", "head.weight"}
    for key, tensor in new.state_dict().items():
        assert torch.equal(tensor, (old if key in lent else kept).state_dict()[key]), key


# --- CLIP ---


@pytest.fixture(scope="module")
def clip_parts():
    source = Scenes("train", 32, caption={"spatial": 1.0})
    tokenizer = recipes.build_tokenizer(source, captions=1000, vocabulary=256)
    options = {
        "patch": 16,
        "image_width": 16,
        "image_layers": 1,
        "text_width": 16,
        "text_layers": 1,
        "length": 12,
    }
    return source, tokenizer, recipes.build_clip(options, tokenizer, 32).eval()


def test_clip_batches_match_their_source(clip_parts):
    source, tokenizer, clip = clip_parts
    images, texts, wrong = recipes.clip_batches(source, tokenizer, 32)(np.random.default_rng(4), 6)
    pixels, captions = source.batch(np.random.default_rng(4), 6)
    assert torch.equal(images, recipes.to_tensor(pixels)) and wrong.shape == (0, 32)
    assert [tokenizer.decode(row) for row in texts] == [
        tokenizer.decode(tokenizer.encode(c).ids) for c in captions
    ]
    assert clip.loss(images, texts[:, :12], wrong[:, :12])["loss"] > 0


def test_a_share_of_the_captions_brings_its_opposite(clip_parts):
    source, tokenizer, _ = clip_parts
    captions = source.batch(np.random.default_rng(4), 60)[1]
    turned = [tokenizer.encode(t).ids for t in map(scenes.opposite, captions) if t]

    def wrong(share):
        rows = recipes.clip_batches(source, tokenizer, 32, share)(np.random.default_rng(4), 60)[2]
        return [[i for i in row if i] for row in rows.tolist()]

    assert wrong(1.0) == turned and len(turned) > 15
    half = wrong(0.5)
    assert all(row in turned for row in half) and 0.2 < len(half) / len(turned) < 0.8


def test_long_captions_are_cut_and_large_batches_split(clip_parts):
    source, tokenizer, clip = clip_parts
    images, captions = source.batch(np.random.default_rng(0), 70)
    captions[0] = " et ".join(captions)
    image, text = recipes.embed_images(clip, images), recipes.embed_texts(clip, tokenizer, captions)
    assert image.shape == text.shape == (70, clip.config.dim) and not text.requires_grad
    torch.testing.assert_close(image[66:], clip.encode_image(recipes.to_tensor(images[66:])))
    kept = tokenizer.encode(captions[0], 12).ids
    torch.testing.assert_close(text[:1], clip.encode_text(torch.tensor([kept])))
    with pytest.raises(MinidalleError, match="vide"):
        recipes.embed_texts(clip, tokenizer, ["un chat", ""])


def test_recall_counts_the_nearest_captions(clip_parts, monkeypatch):
    source, tokenizer, clip = clip_parts
    captions = source.batch(np.random.default_rng(1), 20)[1]
    places = torch.eye(20)
    monkeypatch.setattr(recipes, "embed_images", lambda clip, images: places)
    monkeypatch.setattr(recipes, "embed_texts", lambda clip, tokenizer, texts: places[[*range(15), *[0] * 5]])
    right = [captions[i] == captions[i if i < 15 else 0] for i in range(20)]
    assert recipes.measure_recall(source, tokenizer, n=20)(clip) == {"recall": pytest.approx(np.mean(right))}


@pytest.fixture
def reader(monkeypatch):
    """Un CLIP de théâtre : une fonction, de ce qu'il faut dire d'une image à ce qu'il en dit."""
    shown, numbers = {}, {}
    render, caption = scenes.render, scenes.caption

    def drawn(scene, size=64):
        image = render(scene, size)
        told = {scenes.describe(o) for o in scene.objects} if len(scene.objects) == 1 else set()
        for a, b in itertools.permutations(scene.objects, 2):
            place = scenes.relation(a, b)
            told |= {scenes.situate(a, place, b)} if place else set()
        shown.setdefault(image.tobytes(), set()).update(told)
        return image

    def captioned(scene, *args, **options):
        text = caption(scene, *args, **options)
        shown.setdefault(render(scene, 64).tobytes(), set()).add(text)
        return text

    def vectors(sets):
        rows = torch.zeros(len(sets), 2000)
        for row, texts in zip(rows, sets, strict=True):
            for text in texts:
                row[numbers.setdefault(text, len(numbers))] = 1
        return rows

    emojis = Emojis("test", 64)
    shown.update({image.tobytes(): {name} for image, name in zip(emojis.images, emojis.names, strict=True)})
    monkeypatch.setattr(scenes, "render", drawn)
    monkeypatch.setattr(scenes, "caption", captioned)
    monkeypatch.setattr(
        recipes,
        "embed_images",
        lambda clip, images: vectors([{clip(t) for t in shown[i.tobytes()]} for i in images]),
    )
    monkeypatch.setattr(recipes, "embed_texts", lambda clip, tokenizer, texts: vectors([{t} for t in texts]))


@pytest.mark.usefixtures("reader")
def test_the_exam_marks_a_perfect_reader_and_a_confused_one():
    examine = recipes.examine_clip(None, n=40)
    answers = examine(lambda text: text)
    assert {name: len(right) for name, right in answers.items()} == {
        **dict.fromkeys(["recall", "shape", "colour", "order"], 40),
        "emoji": len(Emojis("test", 16).names),
    }
    # Sept émojis ont le dessin d'un autre : même un lecteur parfait s'y trompe.
    assert answers.pop("emoji").mean() > 0.95
    assert {name: right.mean() for name, right in answers.items()} == dict.fromkeys(answers, 1.0)

    def exchanged(text):
        """« A à gauche de B » devient « B à gauche de A »."""
        return re.sub(r"^(une? .+) (\S+ ?\S+) d'(une? .+)$", r"\3 \2 d'\1", text)

    assert not examine(exchanged)["order"].any()
    repainted = examine(lambda text: text.replace("violet", "noir").replace("violette", "noire"))
    assert 0 < repainted["colour"].mean() < 1 and repainted["shape"].all()
    metrics = recipes.measure_clip(None, n=40)(lambda text: text)
    assert metrics["emoji"] > 0.95 and metrics | {"emoji": 1.0} == dict.fromkeys(metrics, 1.0)


# --- traduction ---

NAMES = emoji_names()[:40]
SOURCE, TARGET = (Vocabulary(pair[side] for pair in NAMES) for side in (0, 1))


def test_encoded_pairs_follow_the_convention():
    source, target = recipes.encode_pairs(NAMES, SOURCE, TARGET)
    for pair, s, t in zip(NAMES, source.tolist(), target.tolist(), strict=True):
        s, t = ([i for i in row if i] for row in (s, t))
        assert s == [*SOURCE.encode(pair.source), SOURCE.stop_id]
        assert t == [TARGET.start_id, *TARGET.encode(pair.target), TARGET.stop_id]


def test_batches_of_pairs_are_matched_trimmed_and_uniform():
    batches, counts, rng = recipes.pair_batches(NAMES, SOURCE, TARGET), Counter(), np.random.default_rng(0)
    known = {pair.source: pair.target for pair in NAMES}
    for _ in range(500):
        source, target = batches(rng, 8)
        assert (source != 0).any(0).all() and (target != 0).any(0).all(), "pas de colonne vide"
        for s, t in zip(source, target, strict=True):
            name = SOURCE.decode(s.tolist())
            assert known[name] == TARGET.decode(t.tolist())
            counts[name] += 1
    # 100 tirages de chacune, à cinq écarts-types près.
    assert len(counts) == 40 and all(abs(n - 100) < 45 for n in counts.values())


def test_a_translator_reads_what_it_learnt_to_read():
    asked = {}

    def write(model, source, **options):
        asked.update(options, model=model, source=source)
        return recipes.encode_pairs(NAMES, SOURCE, TARGET)[1]

    texts = recipes.translate("modèle", [p.source for p in NAMES], SOURCE, TARGET, length=9, write=write)
    assert texts == [pair.target for pair in NAMES]
    assert torch.equal(asked.pop("source"), recipes.encode_pairs(NAMES, SOURCE, TARGET)[0])
    assert asked == {"model": "modèle", "length": 9, "stop": TARGET.stop_id}


def test_translations_and_their_measure():
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(len(SOURCE), len(TARGET), width=8, hidden=8)).eval()
    texts = recipes.translate(model, [pair.source for pair in NAMES], SOURCE, TARGET, length=5)
    assert len(texts) == 40 and all(len(text_words(text)) <= 5 for text in texts)
    alone = recipes.translate(model, [NAMES[3].source], SOURCE, TARGET, length=5)
    assert alone == texts[3:4]
    metrics = recipes.measure_translation(NAMES, SOURCE, TARGET)(model)
    assert metrics.keys() == {"test_loss", "exact", "chrf"}
    assert metrics["test_loss"] == pytest.approx(np.log(len(TARGET)), rel=0.1) and metrics["exact"] == 0


def test_nothing_to_translate():
    model = Seq2Seq(Seq2SeqConfig(len(SOURCE), len(TARGET), width=8, hidden=8))
    with pytest.raises(MinidalleError, match="Aucun texte"):
        recipes.translate(model, [], SOURCE, TARGET)
    with pytest.raises(MinidalleError, match="Aucun texte"):
        recipes.pair_batches([], SOURCE, TARGET)
