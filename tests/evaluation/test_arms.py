"""Les bras d'une campagne : les retrouver, lire leurs parts, les comparer."""

import numpy as np
import pytest

from minidalle.evaluation.arms import CASES, FLIPPED, FULL, Campaign, by_seed, counts, near, share
from minidalle.evaluation.statistics import Undefined

TABLE = [[7, 3, 0, 0, 0, 50], [1, 8, 0, 1, 2, 0], [0, 0, 5, 5, 0, 0], [2, 2, 3, 3, 0, 0]]


def arm(seed, table=TABLE, subject="relation", dose=1.0, **changes):
    named = {"subject": subject, "dose": dose, "seed": seed, "base": "référence", "cause": "", "times": 1}
    return (
        named | changes | {"fin": {subject: {"lues": table, "reservees": np.eye(4, 6, dtype=int).tolist()}}}
    )


def campaign(*arms):
    return Campaign({"bras": {str(i): a for i, a in enumerate(arms)}})


def test_absent_shapes_are_not_judged():
    assert counts(TABLE) == (23, 10 + 12 + 10 + 10)
    assert counts(TABLE, axis=0) == (15, 22)
    assert counts(TABLE, axis=1, same_axis=True) == (8, 16), "ce qui tombe sur l'autre axe ne se juge pas"
    assert counts(TABLE, same_axis=True) == (23, 10 + 9 + 10 + 6)


def test_a_share_is_of_its_subject_and_its_captions():
    assert share(arm(0)) == 23 / 42
    assert share(arm(0), kind="reservees") == 1
    assert share(arm(0), axis=0) == 15 / 22
    with pytest.raises(Undefined, match="deux formes"):
        share(arm(0, [[0, 0, 0, 0, 0, 9]] * 4))


def test_arms_are_found_by_all_they_are():
    found = campaign(
        arm(2), arm(0), arm(1, cause=FLIPPED), arm(1, times=5), arm(1, dose=0.25), arm(1, subject="couleur")
    )
    assert list(found.arms(*FULL)) == [0, 2], "par graine, croissante"
    assert list(found.arms(*FULL, cause=FLIPPED)) == list(found.arms("relation", 0.25)) == [1]
    assert found.arms("relation", 0.05) == {}
    assert found.doses == [0.25, 1.0]


def test_a_comparison_keeps_the_seeds_in_common():
    worse = [[5, 5, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0], *TABLE[2:]]
    found = campaign(arm(0), arm(1), arm(1, worse, cause=FLIPPED), arm(2, worse, cause=FLIPPED))
    before, after = found.compare("retournées : gauche, droite")
    assert before.tolist() == [15 / 19] and after.tolist() == [0.5]
    assert all(len(side) == 0 for side in found.compare("positions 1d, dose pleine"))


def test_an_interval_is_of_trainings():
    from scipy.stats import t

    value, low, high = by_seed([0.5, 0.6, 0.7])
    assert (low, high) == pytest.approx(t.interval(0.95, 2, 0.6, 0.1 / 3**0.5)) and value == pytest.approx(
        0.6
    )
    with pytest.raises(Undefined, match="deux entraînements"):
        by_seed([0.5])


def test_near_far_or_unknown():
    assert near([0.49, 0.5, 0.51], 0.5) is True
    assert near([0.79, 0.8, 0.81], 0.5) is False
    assert near([0.2, 0.5, 0.8], 0.5) is None


def test_the_stored_campaign_has_three_seeds_where_the_book_says_so():
    found = Campaign()
    assert found.doses == [0.0005, 0.01, 0.05, 0.25, 1.0]
    for subject in ("relation", "couleur"):
        for dose in found.doses:
            assert list(found.arms(subject, dose)) == [0, 1, 2]
    for case in CASES:
        before, after = found.compare(case)
        assert len(before) == len(after)
