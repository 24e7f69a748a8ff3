"""Les règles gelées, sur des mesures dont on sait d'avance ce qu'elles doivent dire."""

import hashlib
import json
from importlib import resources

import numpy as np
import pytest

from minidalle.evaluation import verdicts
from minidalle.evaluation.arms import FLIPPED, ONE, SHUFFLED, TWO, Campaign
from minidalle.evaluation.statistics import Estimate, Undefined
from minidalle.evaluation.study_files import Row
from minidalle.evaluation.verdicts import HOLDS, OPEN, REJECTED, Skill, answer, over

N = 300
DEAF = {"relation inverse": (0.01, -0.1, 0.1), "une autre couleur": (9.0, 8.0, 10.0)}
HEARS = DEAF | {"relation inverse": (20.0, 19.0, 21.0)}


def row(category, i, right, turned=False, held_out=True, present=True, swapped=False, attempt=0):
    return Row(
        *(category, held_out, i, attempt, 0, "", "", "", 1),
        *(present, right, right, True, swapped, "", 1, 0.0, turned, False, ""),
    )


def table(shares, chance=0.0):
    """Par catégorie, une part de dessins justes, les autres accomplissant la demande contraire dans `chance`."""
    rows = []
    for category, share in shares.items():
        for i in range(N):
            right = i < share * N
            turned = not right and i >= N - chance * N
            rows.append(row(category, i, right, turned, held_out=category != "objet"))
    return rows


GOOD = dict.fromkeys(verdicts.STUDY, 0.9)


def test_three_answers():
    assert [answer(True, True), answer(True, None), answer(None, False)] == [HOLDS, OPEN, REJECTED]
    assert over(Estimate(0.7, 0.6, 0.8), 0.5) is True
    assert over(Estimate(0.3, 0.2, 0.4), 0.5) is False
    assert over(Estimate(0.5, 0.4, 0.6), 0.5) is None


def test_skill_takes_the_larger_chance_and_only_enough_drawings():
    rows = table({"couleur": 0.6}, chance=0.2)
    blind = [row("couleur", i, i < 0.5 * N) for i in range(N)]
    every = np.arange(N)
    assert Skill(rows, [], "couleur", True)(every) == pytest.approx((0.6 - 0.2) / 0.8)
    both = Skill(rows, blind, "couleur", True)
    assert both(np.arange(2 * N)) == pytest.approx((0.6 - 0.5) / 0.5)
    few = Skill(rows, blind[: verdicts.FEW - 1], "couleur", True)
    assert len(few.groups) == N, "trop peu de dessins aveugles ne mesurent rien"
    with pytest.raises(Undefined, match="Aucun dessin"):
        Skill(rows, blind, "couleur", False)


def test_skill_draws_whole_requests():
    rows = [row("relation", i, i % 2 == 0, attempt=k) for i in range(40) for k in range(4)]
    one = [r for r in rows if r.attempt == 0]
    wide, narrow = (Skill(r, [], "relation", True).estimate() for r in (rows, one))
    assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.15)


def test_given_keeps_the_drawings_with_both_objects():
    rows = [row("relation", i, i < 30, present=i < 60) for i in range(100)]
    assert Skill(rows, [], "relation", True, given=True)(np.arange(60)) == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "told"), [(0.9, HOLDS), (0.2, REJECTED), (0.5, OPEN)])
def test_colours_and_images(share, told):
    assert verdicts.colours(table({"couleur": share}), []).answer == told
    rows = table({"objet": 0.95, "texture": share})
    assert verdicts.images(rows, []).answer == told


def test_binding_counts_only_where_both_colours_are():
    rows = [row("paire", i, i < 60, swapped=60 <= i < 70) for i in range(500)]
    found = verdicts.binding(rows)
    assert found.numbers["bien liées"].value == pytest.approx(60 / 70)
    assert verdicts.binding([r._replace(swapped=not r.right) for r in rows]).answer == REJECTED


@pytest.mark.parametrize(
    ("relation", "nats", "told"),
    [(0.9, HEARS, REJECTED), (0.0, DEAF, HOLDS), (0.0, HEARS, REJECTED), (0.9, DEAF, REJECTED)],
)
def test_space_needs_all_three(relation, nats, told, monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 200)
    rows = table(GOOD | {"relation": relation})
    found = verdicts.space(rows, [], nats)
    assert found.answer == told
    assert found.numbers["Δ de la relation inverse (nats)"] == Estimate(*nats["relation inverse"])


def test_at_chance_space_is_null_not_half(monkeypatch):
    """Qui tire à pile ou face réussit une fois sur deux : la demande contraire ramène son adresse à zéro."""
    monkeypatch.setattr(verdicts, "RESAMPLES", 200)
    flips = np.random.default_rng(0).random(2000) < 0.5
    rows = table({c: 0.9 for c in GOOD if c != "relation"})
    rows += [row("relation", i, bool(z), not z) for i, z in enumerate(flips)]
    assert verdicts.space(rows, [], DEAF).answer == HOLDS


def test_a_judge_is_deaf_within_the_margin():
    assert verdicts.judge(205, 400).answer == HOLDS
    assert verdicts.judge(360, 400).answer == REJECTED
    assert verdicts.judge(6, 10).answer == OPEN


def test_the_published_model_is_judged_by_prompt():
    prompts = np.repeat(range(50), 4)
    right = np.tile([True, False, True, False], 50)
    assert verdicts.published(right, ~right, prompts).answer == HOLDS
    assert verdicts.published(right | True, ~right & False, prompts).answer == REJECTED
    assert verdicts.published([True, True, False, False], [False, False, True, True], range(4)).answer == OPEN


# --- les bras -------------------------------------------------------------------------------------


def arm(seed, share, subject="relation", dose=1.0, axis=None, **changes):
    """Un bras dont la part juste est `share`, sur un axe ou sur les deux ; les fautes tombent sur le bon axe."""
    lines = []
    for i in range(4):
        good = round(100 * (share if axis in (None, i // 2) else 0.95))
        line = [0] * 6
        line[i], line[i ^ 1] = good, 100 - good
        lines.append(line)
    named = {"subject": subject, "dose": dose, "seed": seed, "base": "référence", "cause": "", "times": 1}
    return named | changes | {"fin": {subject: {"lues": lines, "reservees": lines}}}


def campaign(changes, reference=0.95, dose=1.0):
    arms = [arm(s, reference + 0.01 * (s - 1), dose=dose) for s in range(3)]
    arms += [
        arm(s, share + 0.01 * (s - 1), dose=dose, axis=axis, **what)
        for what, share, axis in changes
        for s in range(3)
    ]
    return Campaign({"bras": {str(i): a for i, a in enumerate(arms)}})


def test_mirrors_and_shuffles():
    half = campaign([({"cause": FLIPPED}, 0.5, 0), ({"cause": SHUFFLED}, 0.5, None)])
    assert verdicts.mirror(half).answer == verdicts.order(half).answer == HOLDS
    worse = campaign([({"cause": FLIPPED}, 0.5, None), ({"cause": SHUFFLED}, 0.9, None)])
    assert verdicts.mirror(worse).answer == verdicts.order(worse).answer == REJECTED


@pytest.mark.parametrize(("share", "told"), [(0.3, HOLDS), (0.7, REJECTED), (0.6, OPEN)])
def test_an_accused_architecture(share, told):
    spread = campaign([({"base": ONE}, share, None), ({"base": TWO}, share, None)], reference=0.7, dose=0.25)
    if told == OPEN:  # une graine qui s'écarte des autres
        spread.report["bras"]["3"] = arm(0, 0.1, dose=0.25, base=ONE)
        assert verdicts.positions(spread).answer == OPEN
    else:
        assert verdicts.positions(spread).answer == verdicts.encoder(spread).answer == told


def doses(threshold):
    """Une campagne où la relation s'apprend à `threshold` fois la dose de la couleur."""
    arms = []
    for subject, scale in (("relation", threshold), ("couleur", 1.0)):
        for dose in (0.0005, 0.01, 0.05, 0.25, 1.0):
            for seed in range(3):
                share = 0.25 + 0.75 / (1 + (0.02 * scale / dose) ** 2)
                arms.append(arm(seed, share + 0.01 * (seed - 1) * (share < 0.9), subject, dose))
    return Campaign({"bras": {str(i): a for i, a in enumerate(arms)}})


def test_doses_accuse_the_data_or_the_architecture():
    assert verdicts.dose(doses(1.0)).answer == HOLDS
    late = verdicts.dose(doses(30.0))
    assert late.answer == REJECTED
    assert late.numbers["dose de la relation / dose de la couleur"].value == pytest.approx(30, rel=0.2)


def test_every_hypothesis_has_its_rule():
    frozen = verdicts.hypotheses()
    assert list(verdicts.ARMS) == [key for key in frozen if key in verdicts.ARMS] and len(frozen) == 12
    measured = [
        verdicts.colours(table({"couleur": 0.9}), []),
        *(rule(Campaign()) for rule in [verdicts.dose]),
    ]
    assert {found.id for found in measured} <= set(frozen)


def test_the_frozen_file_has_not_moved():
    """Les hypothèses ne se retouchent pas : ce qu'on ajoute se met à la fin, et ne change pas ce début."""
    text = (resources.files("minidalle.evaluation") / "hypotheses.toml").read_text(encoding="utf-8")
    frozen = text[: text.index('holds = "équivalente à 0,5 ± 0,10"')]
    assert hashlib.sha256(frozen.encode()).hexdigest()[:12] == "7b447d9f94ba"


def test_the_other_measures_are_of_the_packaged_weights():
    """`python -m tools.verdicts`."""
    stored = json.loads(
        (resources.files("minidalle") / "results" / "verdicts.json").read_text(encoding="utf-8")
    )
    for name, digest in stored["sha256"].items():
        path = resources.files("minidalle") / "weights" / f"{name}.safetensors"
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stored["nats"]["scenes"]["relation inverse"][1] > 0 and stored["clip"]["dessins"] == 400
