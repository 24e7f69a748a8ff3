"""`tools.dose` : ce que disent les légendes, ce qui leur est caché, ce que lisent les mesures, et la reprise."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from minidalle import recipes
from minidalle.checkpoints import load_model
from minidalle.data import scenes
from minidalle.errors import MinidalleError
from minidalle.evaluation import oracle
from tools import dose, dose_ordre
from tools.dose import BLIND, FLIPPED, OPPOSED, SHUFFLED, Arm, Budget, Contrasted, batches
from tools.dose_monde import (
    ABSENT,
    COLOURS,
    SHAPES,
    SILENT,
    VALUES,
    World,
    answer,
    caption,
    requests,
    reserved,
)

TINY = Budget(socle=2, steps=2, marks=1, sketched=4, drawn=8, scored=8, seeds=(0,), order=(1, 2))
NEWS = {"relation": ("gauche", "droite", "dessus", "dessous"), "couleur": COLOURS}


@pytest.fixture(scope="module")
def world():
    return World(load_model("vqvae")[0], tested=64, only=256)


def captions(world, arm, n=64, lots=20):
    """Les légendes de `lots` lots, en clair, et le nombre de celles qui disent le sujet."""
    said, data, rng = [], batches(world, arm, counted := []), np.random.default_rng(arm.seed)
    for _ in range(lots):
        said += [world.tokenizer.decode(row[row > 0].tolist()) for row in data(rng, n)[0]]
    return said, sum(counted)


def telling(texts, subject):
    return [any(word in text.replace("-", " ").split() for word in NEWS[subject]) for text in texts]


@pytest.mark.parametrize("subject", VALUES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 1.0])
def test_the_dose_is_the_share_of_captions_that_tell(world, subject, share):
    texts, counted = captions(world, Arm(subject, share, 3))
    told = sum(telling(texts, subject))
    assert told == counted
    assert abs(told - share * len(texts)) <= 4 * (len(texts) * share * (1 - share)) ** 0.5
    other = next(s for s in VALUES if s != subject)
    assert not any(telling(texts, other)), "l'autre sujet n'est jamais dit"
    assert all(sum(shape in text for shape in SHAPES) == 2 for text in texts), "les deux formes, toujours"


def test_what_a_small_dose_tells_a_large_one_tells_too(world):
    small, large = (captions(world, Arm("relation", share, 0))[0] for share in (0.05, 0.25))
    assert all(b == a for a, b, told in zip(small, large, telling(small, "relation"), strict=True) if told)
    # Un bras témoin voit les mêmes scènes.
    rows = [batches(world, Arm(s, 1.0, 5), [])(np.random.default_rng(5), 32)[1] for s in VALUES]
    assert torch.equal(*rows)


def test_captions_are_french_and_true(world):
    assert caption("relation", 0, 3, 1) == "un cercle au-dessous d'un carré"
    assert caption("couleur", 2, 2, 3) == "un triangle bleu et un cœur"
    assert caption("couleur", 3, SILENT, 0) == caption("relation", 3, SILENT, 0) == "un cœur et un cercle"
    rows, first = np.arange(len(world.scenes)), np.random.default_rng(0).integers(0, 2, len(world.scenes))
    for subject in VALUES:
        _, keys = world.tell(subject, rows, first, rows >= 0)
        for scene, (a, value, b) in zip(world.scenes, zip(*keys, strict=True), strict=True):
            reading = oracle.Reading("blanc", scene.objects, 0.0)
            assert answer(subject, reading, a, b) == value


@pytest.mark.parametrize("subject", VALUES)
def test_no_reserved_request_is_ever_told(world, subject):
    kept = requests(True)
    assert len(kept) == 8 and len(requests(False)) == 40
    for column, counts in ((0, [2] * 4), (1, [2] * 4), (2, [2] * 4)):
        assert np.bincount(kept[:, column], minlength=4).tolist() == counts
    secret = {caption(subject, a, v, b) for a, v, b in kept.tolist()}
    texts, _ = captions(world, Arm(subject, 1.0, 1))
    assert not secret & set(texts)
    # Les scènes qu'elles racontent, elles, se voient : le hasard reste d'un quart.
    rows = np.arange(world.tested, len(world.scenes))
    answers = world.places if subject == "relation" else world.colours
    assert reserved(world.kinds[rows, 0], answers[rows, 0], world.kinds[rows, 1]).any()


def test_flipping_swaps_left_and_right_and_nothing_else(world):
    seen, flipped = (
        oracle.read(list(recipes.decode(world.eye, world.codes[tokens[:40]])))
        for tokens in (world.image, world.mirrored)
    )
    for row in range(40):
        a, b = world.kinds[row]
        right, colour = world.places[row, 0], world.colours[row, 0]
        assert answer("relation", seen[row], a, b) == right
        assert answer("relation", flipped[row], a, b) == (right ^ 1 if right < 2 else right)
        assert answer("couleur", seen[row], a, b) == answer("couleur", flipped[row], a, b) == colour
    plain, turned = (
        batches(world, Arm("relation", 1.0, 0, cause=cause), [])(np.random.default_rng(0), 200)
        for cause in ("", FLIPPED)
    )
    assert torch.equal(plain[0], turned[0]), "la légende ne change pas"
    same = (plain[1] == turned[1]).flatten(1).all(1).float().mean()
    assert 0.4 < same < 0.7


def test_words_are_mixed_within_a_caption_and_captions_between_images(world):
    plain, mixed, blind = (
        batches(world, Arm("relation", 1.0, 0, cause=cause), [])(np.random.default_rng(0), 64)[0]
        for cause in ("", SHUFFLED, BLIND)
    )
    assert torch.equal(plain.sort(1).values, mixed.sort(1).values)
    assert torch.equal(plain == 0, mixed == 0), "le remplissage reste à la fin"
    assert (plain != mixed).any(1).float().mean() > 0.9
    assert torch.equal(blind, plain.roll(1, 0))


@pytest.mark.parametrize("subject", VALUES)
def test_the_opposite_caption_says_the_opposite_and_nothing_else(world, subject):
    plain, opposed = (
        batches(world, Arm(subject, 0.5, 0, cause=cause), [])(np.random.default_rng(0), 64)
        for cause in ("", OPPOSED)
    )
    assert all(map(torch.equal, plain, opposed)), "mêmes légendes, mêmes images"
    said, other = ([world.tokenizer.decode(row[row > 0].tolist()) for row in t] for t in opposed[::2])
    swap = dict(zip(VALUES[subject], np.array(VALUES[subject])[[1, 0, 3, 2]], strict=True))
    if subject == "relation":
        swap = {scenes.RELATIONS[a][:-3]: scenes.RELATIONS[b][:-3] for a, b in swap.items()}  # sans « de »
    for one, two, told in zip(said, other, telling(said, subject), strict=True):
        a = next((word for word in swap if word in one), "")
        assert two == (one.replace(a, swap[a]) if told else one)


def test_the_contrast_rewards_the_one_that_tells_them_apart(world):
    text, image, opposite = batches(world, Arm("relation", 0.5, 0, cause=OPPOSED), [])(
        np.random.default_rng(0), 16
    )
    told = float((text != opposite).any(1).float().mean())
    assert 0 < told < 1
    for knows, expected in ((0, np.log(2)), (1, np.log1p(np.exp(-3)))):
        teller = Teller(world, "relation", knows)
        teller.loss = lambda text, image: {"loss": torch.tensor(1.0)}
        losses = Contrasted(teller).loss(text, image, opposite)
        assert losses["contraste"] == pytest.approx(told * expected)
        assert losses["loss"] == pytest.approx(1 + dose.CONTRAST * told * expected)
    assert Contrasted(teller).loss(text, image, text) == {"loss": 1, "contraste": 0}, "rien à départager"


class Teller(nn.Module):
    """Un modèle qui sait, ou non, quelle réponse va à quelle image : 3 nats de plus pour chacune des autres."""

    def __init__(self, world, subject, knows):
        super().__init__()
        self.world, self.subject, self.knows = world, subject, knows

    def nats(self, text, image):
        found = [(self.world.image == one).flatten(1).all(1).nonzero()[0, 0] for one in image]
        wrong = torch.zeros(len(text))
        for i, (row, words) in enumerate(zip(found, text, strict=True)):
            keys = [
                self.world.tell(self.subject, np.array([row]), np.array([o]), np.array([True]))[0][0]
                for o in (0, 1)
            ]
            wrong[i] = 3.0 * self.knows * (not any(torch.equal(words, key) for key in keys))
        return wrong + 10


@pytest.mark.parametrize("subject", VALUES)
def test_delta_and_bits_see_who_listens(world, subject):
    deaf, good = (world.measure(Teller(world, subject, knows), subject, 24) for knows in (0, 1))
    assert deaf["delta"] == 0 and abs(deaf["bits"]) < 1e-6 and deaf["nats"] == 10
    assert good["delta"] == 3 and good["axes"] == [3, 3] and good["erreur"] == 0 and good["trouvees"] == 24
    assert good["bits"] == pytest.approx(2 - np.log2(1 + 3 * np.exp(-3)))


def test_a_drawing_without_the_two_shapes_answers_nothing(world):
    scene = world.scenes[0]
    a, b = world.kinds[0]
    alone = oracle.Reading("blanc", scene.objects[:1], 0.0)
    assert answer("relation", alone, a, b) == answer("couleur", alone, a, b) == ABSENT


def test_an_arm_that_is_stored_is_not_run_again(world, tmp_path, monkeypatch):
    arms = [Arm("relation", 0.0, 0), Arm("couleur", 1.0, 0), Arm("relation", 1.0, 0, cause=BLIND)]
    out, ran = tmp_path / "dose.json", []
    run = dose.run
    monkeypatch.setattr(dose, "run", lambda world, arm, *rest: ran.append(arm) or run(world, arm, *rest))
    dose.campaign(world, arms[:2], TINY, out, tmp_path, 60)
    before = out.read_text("utf-8")
    report = dose.campaign(world, [*arms, 0], TINY, out, tmp_path, 60)
    assert ran == arms, "chaque bras une fois"
    assert [mark["pas"] for mark in report["ordre"]["0"]["marques"]] == [0, 1, 2]
    assert json.loads(out.read_text("utf-8")) == report and list(report["bras"]) == [arm.name for arm in arms]
    after = out.read_text("utf-8")
    assert all(line.rstrip(",") in after for line in before.splitlines()), "ce qui est rangé ne bouge plus"
    for arm, row in zip(arms, report["bras"].values(), strict=True):
        assert set(row["fin"]) == ({arm.subject} if arm.subject == "couleur" else set(VALUES))
        assert [mark["pas"] for mark in row["marques"]] == [0, 2]
        assert row["dites"] == (64 if arm.dose else 0) and row["vues"] == 64
        for end in row["fin"].values():
            assert np.sum(end["lues"]) == np.sum(end["reservees"]) == TINY.drawn
    with pytest.raises(MinidalleError, match="autre campagne"):
        dose.campaign(world, arms, replace(TINY, steps=4), out, tmp_path, 60)


def test_the_plan_is_complete_and_names_are_unique():
    tasks = list(dose.plan((0, 1, 2)))
    arms = [task for task in tasks if isinstance(task, Arm)]
    assert len({arm.name for arm in arms}) == len(arms) and [t for t in tasks if t not in arms] == [0, 1, 2]
    for subject in VALUES:
        for share in dose.DOSES:
            assert [a.seed for a in arms if a == Arm(subject, share, a.seed)] == [0, 1, 2]


@pytest.fixture(scope="module")
def full(world):
    return dose_ordre.FullWorld(world, scored=48)


def test_each_fault_changes_one_thing(full):
    """La faute est fausse de la scène, et l'oracle qui lit la vraie image voit tout juste."""
    for name, (rows, wrong) in full.wrong.items():
        assert len(rows) >= 30
        for row, fault in zip(rows, wrong, strict=True):
            _, objects, place = full.told[row]
            right, false = (full.tokenizer.decode(t[t > 0].tolist()).split() for t in (full.text[row], fault))
            assert right == dose_ordre.tell(objects, place).replace("-", " - ").split() or right != false
            changed = [(a, b) for a, b in zip(right, false, strict=name != "relation") if a != b]
            assert changed
            if name in ("forme", "couleur"):
                assert len(changed) == 1
            if name == "liaison":
                assert sorted(right) == sorted(false) and len(changed) == 2
            if name == "relation":
                assert {*changed[0]} <= {"gauche", "droite", "dessus", "dessous", "au-dessus", "au-dessous"}


def test_what_is_measured_in_the_order_is_never_learnt(full):
    hidden = {full.told[row][0] for row in full.tested}
    learnt = {full.told[row][0] for row in (*full.couples, *full.groups)}
    assert not hidden & learnt and len(hidden) == 96
    text, image = full.batches()(np.random.default_rng(0), 64)
    assert text.shape == (64, full.length) and image.shape == (64, 8, 8)


def test_the_true_images_are_read_right_in_every_category(full):
    rows = full.tested
    pictures = recipes.decode(full.eye, full.codes[full.image[rows]])
    counts = {name: [] for name in dose_ordre.CATEGORIES}
    for row, reading in zip(rows, oracle.read(list(pictures)), strict=True):
        for name, right in dose_ordre.verdicts(reading, *full.told[row][1:]).items():
            counts[name].append(right)
    assert all(len(answers) >= 30 and np.mean(answers) > 0.95 for answers in counts.values())
    # Lu contre une autre demande, le même dessin est faux.
    row = rows[0]
    reading, (_, objects, place) = oracle.read(list(pictures[:1]))[0], full.told[row]
    assert not dose_ordre.verdicts(reading, objects, scenes.INVERSE[place])["relation"]
    assert not dose_ordre.verdicts(reading, objects[:1], None)["nombre"]


def test_the_stored_campaign_is_whole():
    """`python -m tools.dose` : chaque dose sur chaque graine, des légendes comptées, des comptes possibles."""
    stored = json.loads(dose.RESULT.read_text("utf-8"))
    budget = Budget()
    arms = [arm for arm in dose.plan(budget.seeds) if isinstance(arm, Arm)]
    rows = stored["bras"]
    assert stored["budget"].items() <= json.loads(json.dumps(asdict(budget))).items()
    assert {a.name for a in arms if (a.base, a.cause, a.times) == ("référence", "", 1)} <= set(rows)
    for row in rows.values():
        expected, spread = row["vues"] * row["dose"], (row["vues"] * row["dose"] * (1 - row["dose"])) ** 0.5
        assert abs(row["dites"] - expected) <= 4 * spread
        assert len(row["marques"]) == budget.marks + 1
        for end in row["fin"].values():
            for table in (end["lues"], end["reservees"]):
                assert np.shape(table) == (4, 6) and np.sum(table) == budget.drawn
                assert len(set(np.sum(table, 1))) == 1, "chaque réponse demandée aussi souvent"
            assert end["bits"] <= 2 and 0 <= end["trouvees"] <= stored["monde"]["reservees"]
    for marks in stored["ordre"].values():
        assert [mark["pas"] for mark in marks["marques"]] == [0, *budget.order]
    assert dose.RESULT.stat().st_size < 500_000
