"""Ce que dit la table."""

import csv

import numpy as np
import pytest

from minidalle.evaluation.scores import visor
from minidalle.evaluation.statistics import wilson
from minidalle.evaluation.study_summary import READ, confusion, counts, spaces, write_counts
from tests.evaluation.test_study_files import ROW

BASE = ROW._replace(category="relation", held_out=True, place="gauche")


def rows(flags, **changes):
    """Une demande par groupe de lettres, un dessin par lettre : J juste, C contraire, O objets seuls, « . » rien."""
    return [
        BASE._replace(
            index=i,
            attempt=k,
            present=flag in "JCO",
            right=flag == "J",
            alone=flag == "J" and i == 0,
            contrast_right=flag == "C",
            place_read={"J": "gauche", "C": "droite"}.get(flag, ""),
            **changes,
        )
        for i, word in enumerate(flags)
        for k, flag in enumerate(word)
    ]


def test_counts_take_the_first_drawing_of_each_request():
    table = rows(["JJ", "CJ", ".J", "OJ"]) + rows(["J"], category="objet", held_out=False)
    objet, relation = counts(table)
    assert objet[:3] == ("objet", False, 1)
    assert relation == ("relation", True, 4, 3, 1, 1, 0, 1, 4)
    assert (
        relation.share == wilson(1, 4) and relation.chance == wilson(1, 4) and relation.given == wilson(1, 3)
    )
    (nothing,) = counts(rows(["."]))
    assert nothing.given is None


def test_what_nobody_judged_does_not_count():
    nobody = [row._replace(right=None) for row in rows(["JJ", "JJ"])]
    assert counts(nobody) == spaces(nobody) == []
    (count,) = counts(nobody + rows(["CJ"]))
    assert (count.n, count.right, count.contrast) == (1, 0, 1)
    half = [row._replace(present=None, alone=None, swapped=None) for row in rows(["JJ", "CJ"])]
    (count,) = counts(half)
    assert count[3:] == (None, 1, None, None, 1, 2) and count.given is None


def test_counts_are_written(tmp_path):
    table = rows(["JJ", "CJ"])
    write_counts(tmp_path / "c.csv", table)
    with (tmp_path / "c.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["category"] == "relation" and (row["held_out"], row["n"], row["right"]) == ("1", "2", "1")


def test_visor_of_a_table():
    (space,) = spaces(rows(["JJ", "CJ", "..", "OJ"]))
    assert (space.requests, space.images) == (4, 2)
    assert space.measured == visor([[1, 1], [1, 1], [0, 0], [1, 1]], [[1, 1], [0, 1], [0, 0], [0, 1]])
    assert space.measured.conditional == pytest.approx(4 / 6) and space.measured.at_least == (0.75, 0.25)
    assert space.chance.conditional == pytest.approx(1 / 6)
    low, high = space.intervals["unconditional"][1:]
    assert low < space.measured.unconditional == space.intervals["unconditional"].value < high


def test_visor_takes_as_many_drawings_of_each_request():
    (space,) = spaces(rows(["JJJ", "C"]))
    assert space.images == 1 and space.measured.unconditional == 0.5


def test_visor_without_objects_has_no_conditional():
    (space,) = spaces(rows(["..", ".."]))
    assert space.measured.conditional is None and "conditional" not in space.intervals
    assert spaces(rows(["J"], category="couleur")) == []


def test_confusion_counts_what_is_read_where_both_objects_are():
    table = confusion(rows(["JC", "O.", "JJ"]) + rows(["J"], place="dessous", category="ordre"))
    assert table.shape == (4, 5) and table.sum() == 6
    assert table[0].tolist() == [3, 1, 0, 0, 1] and READ[-1] == ""
    assert table[3].tolist() == [1, 0, 0, 0, 0]
    assert not np.any(confusion(rows(["J"], category="paire")))
