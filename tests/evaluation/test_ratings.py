"""Notes humaines : lecture, tableau, accord, et l'étude des auteurs refaite au nombre près."""

import json
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from minidalle.errors import MinidalleError
from minidalle.evaluation import ratings
from minidalle.evaluation.ratings import (
    COLUMNS,
    agreement,
    compare,
    human_study,
    read_ratings,
    tabulate,
    write_ratings,
)
from minidalle.evaluation.statistics import Undefined, krippendorff_alpha, wilson

HEADER = ",".join(COLUMNS)
STUDY_HEADER = "image_id,auteur,evaluateur,legende,note_humaine,proba_clip"


@pytest.fixture
def write(tmp_path):
    def written(*lines, header=HEADER):
        path = tmp_path / "notes.csv"
        path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
        return path

    return written


# --- lecture ---


def test_the_last_grade_of_a_rater_holds(write):
    path = write(
        'a.png,"un chat, noir",Ana,1',
        "b.png,un chien,Ana,2",
        'a.png,"un chat, noir",Ana,4',
        "b.png,un chien,Bob,0",
    )
    grades = tabulate(read_ratings(path))
    assert grades.pairs == [("a.png", "un chat, noir"), ("b.png", "un chien")]
    assert grades.raters == ["Ana", "Bob"] and grades.images == ["a.png", "b.png"]
    np.testing.assert_array_equal(grades.grades, [[4, 2], [np.nan, 0]])
    np.testing.assert_array_equal(grades.means, [4, 1])
    assert grades.clip is None


def test_a_spreadsheet_s_byte_order_mark_and_other_columns(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(
        "note,clip,image,legende,evaluateur,remarque\r\n3,0.5,a,x,Ana,bof\r\n", encoding="utf-8-sig"
    )
    assert read_ratings(path) == [("a", "x", "Ana", 3.0, 0.5, "")]


def test_written_grades_are_read_back(write, tmp_path):
    grades = tabulate(read_ratings(write("a,x,Ana,1", "a,x,Bob,2.5", "b,y,Bob,0", "a,x,Ana,3")))
    write_ratings(tmp_path / "copie.csv", grades)
    assert (tmp_path / "copie.csv").read_text() == f"{HEADER}\na,x,Ana,3\na,x,Bob,2.5\nb,y,Bob,0\n"


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("image,legende,evaluateur", "a,x,Ana", "pas de colonne « note »"),
        (
            "image;legende;evaluateur;note",
            "a;x;Ana;3",
            "pas de colonne « image » (des virgules les séparent)",
        ),
        ("", "", "pas de colonne « image »"),
        (HEADER, "a,x,Ana,", "ligne 2 : « note » manque"),
        (HEADER, "a,x,Ana", "ligne 2 : « note » manque"),
        (HEADER, "a,x, ,3", "ligne 2 : « evaluateur » manque"),
        (HEADER, "a,x,Ana,bien", "ligne 2 : « bien » n'est pas un nombre"),
        (HEADER, 'a,x,Ana,"0,5"', "« 0,5 » n'est pas un nombre"),
        (HEADER, "a,x,Ana,nan", "« nan » n'est pas un nombre"),
        (f"{HEADER},clip", "a,x,Ana,1,inf", "« inf » n'est pas un nombre"),
        (HEADER, 'a,"x,Ana,3', "n'est pas du CSV"),
    ],
)
def test_faulty_files_name_the_line(write, header, line, expected):
    path = write(line, header=header)
    with pytest.raises(MinidalleError) as error:
        read_ratings(path)
    assert expected in str(error.value) and str(path) in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(MinidalleError, match="rien à cet endroit"):
        read_ratings(tmp_path / "absent.csv")
    (tmp_path / "octets.csv").write_bytes(b"image,legende\xff\n")
    with pytest.raises(MinidalleError, match="UTF-8"):
        read_ratings(tmp_path / "octets.csv")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "aucune note"),
        (["a,x,Ana,1,0.5", "a,x,Bob,1,0.6"], "Deux scores de CLIP pour « x » (a)"),
        (["a,x,Ana,1,0.5", "b,y,Ana,1,"], "CLIP n'a pas noté « y » (b)"),
    ],
)
def test_faulty_tables(write, lines, expected):
    path = write(*lines, header=f"{HEADER},clip")
    with pytest.raises(MinidalleError) as error:
        tabulate(read_ratings(path))
    assert expected in str(error.value)


def test_clip_scores_follow_their_pair(write):
    path = write("a,x,Ana,1,0.5", "b,y,Ana,1,0.7", "b,y,Bob,1,0.7", "a,x,Bob,2,", header=f"{HEADER},clip")
    assert tabulate(read_ratings(path)).clip.tolist() == [0.5, 0.7]


# --- accord et comparaison ---


def test_agreement_says_why_when_there_is_none(write):
    alone = agreement(tabulate(read_ratings(write("a,x,Ana,1", "b,y,Ana,3"))))
    assert all(isinstance(m, Undefined) and "deux juges" in str(m) for m in alone.values())
    constant = agreement(
        tabulate(read_ratings(write(*(f"{i},x,{who},2" for i in "abc" for who in ("Ana", "Bob")))))
    )
    assert all("toutes les notes sont égales" in str(m) for m in constant.values())


def test_agreement_draws_whole_images(write):
    rng = np.random.default_rng(0)
    lines = []
    for image in range(12):
        theirs = rng.integers(0, 5, 2)
        lines += [
            f"{image},{caption},{who},{g}"
            for caption in range(6)
            for who, g in zip("AB", theirs, strict=True)
        ]
    grades = tabulate(read_ratings(write(*lines)))
    found = agreement(grades)["ordinal"]
    naive = krippendorff_alpha(grades.grades)
    assert found.value == naive.value and found.high - found.low > 1.5 * (naive.high - naive.low)


def test_comparison_of_identical_and_of_constant_grades():
    images = [i for i in range(20) for _ in range(3)]
    human = np.random.default_rng(0).permuted(np.tile([0.0, 0.5, 1.0], (20, 1)), axis=1).ravel()
    same = compare(human, human, images)
    assert [same[k].value for k in ("spearman", "kendall", "pearson", "within")] == pytest.approx([1] * 4)
    assert same["concordance"][:3] == (60, 60, 0)
    assert {same[k][:3] for k in ("first", "any", "unique")} == {(20, 20, 0)}
    flat = compare(np.ones(60), human, images)
    assert {k for k, m in flat.items() if isinstance(m, Undefined)} == set(flat) - {"first", "any"}
    assert flat["any"].successes == 20, "toutes ex æquo : n'importe laquelle est la préférée"


# --- l'étude des auteurs ---


def test_a_small_study(write):
    lines = []
    for image in range(4):
        lines += [
            f"{image},COCO,{'AB'[image % 2]},vraie,1.0,0.995",
            f"{image},A,{'AB'[image % 2]},moyenne,0.5,0.003",
            f"{image},B,{'AB'[image % 2]},sans rapport,{'0.5' if image == 3 else '0.0'},0.002",
        ]
    study = human_study(write(*lines, header=STUDY_HEADER))
    assert (study.images, study.pairs, study.raters_per_image, study.saturated) == (4, 12, 1, 4)
    assert study.clip_sums == pytest.approx((1, 1))
    assert study.measures["concordance"][:3] == (11, 11, 1) and study.invented[:3] == (3, 3, 1)
    assert study.prefers_coco == {"grade": 4, "clip": 4}
    assert study.raters == {"A": (6, 3, 0.5), "B": (6, 3, pytest.approx(3.5 / 6))}
    assert [(low, n, under) for low, _, n, under, _ in study.bins] == [(0, 3, 3), (0.3, 5, 5), (1, 4, 0)]


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        (STUDY_HEADER.replace("note_humaine", "note"), "1,COCO,A,x,1,0.9", "pas de colonne « note_humaine »"),
        (STUDY_HEADER, "1,COCO,A,x,,0.9", "« note_humaine » manque"),
        (STUDY_HEADER, "1,COCO,A,x,1,", "auteur » et « proba_clip »"),
        (STUDY_HEADER, "1,,A,x,1,0.9", "auteur » et « proba_clip »"),
    ],
)
def test_faulty_study_files(write, header, line, expected):
    with pytest.raises(MinidalleError, match=expected):
        human_study(write(line, header=header))


def test_stored_study_is_that_of_the_authors():
    """Les nombres publiés, d'après le résumé livré : le fichier n'est pas nécessaire."""
    stored = resources.files("minidalle") / "results" / "humains.json"
    found = json.loads(stored.read_text(encoding="utf-8"))
    assert (found["images"], found["paires"], found["juges_par_image"]) == (100, 300, 1)
    assert [found[k][0] for k in ("spearman", "kendall", "pearson")] == [0.859, 0.689, 0.742]
    assert found["spearman"] == [0.859, 0.830, 0.886] and found["pearson"] == [0.742, 0.712, 0.772]
    assert found["spearman_dans_une_image"][0] == 0.894
    assert found["sommes_de_clip"] == [1, 1], "un softmax sur les légendes d'une image"
    c = found["concordance"]
    assert (c["accords"], c["cas"], c["ecartes"], c["wilson"]) == (274, 291, 9, [0.942, 0.908, 0.963])
    assert (c["deux_inventees"], c["coco_et_inventee"]) == ([94, 100], [180, 191])
    preferred = {rule: (r["accords"], r["cas"]) for rule, r in found["legende_preferee"].items()}
    assert preferred == {"premiere_ligne": (87, 100), "ex_aequo_admis": (90, 100), "sans_ex_aequo": (81, 91)}
    assert found["legende_preferee"]["sans_ex_aequo"]["part"] == [round(x, 3) for x in wilson(81, 91)]
    assert found["prefere_coco"] == {"humain": 97, "clip": 88} and found["images_ou_clip_passe_0,99"] == 36
    middling = next(part for part in found["tranches"] if part["note"] == [0.3, 0.7])
    assert (middling["n"], middling["clip_sous_0,05"]) == (70, 45)
    assert sum(part["n"] for part in found["tranches"]) == 300, "aucune note entre deux tranches"
    assert sorted(j["notes_distinctes"] for j in found["juges"].values()) == [10, 11, 13, 23]


@pytest.mark.skipif("MINIDALLE_DATA" not in os.environ, reason="MINIDALLE_DATA n'est pas défini")
def test_stored_study_is_what_the_tool_writes():
    humains = pytest.importorskip("tools.humains")
    path = Path(os.environ["MINIDALLE_DATA"]) / "etude" / "humains_et_clip.csv"
    stored = resources.files("minidalle") / "results" / "humains.json"
    assert json.loads(stored.read_text(encoding="utf-8")) == humains.summary(path)


def test_the_scale_of_the_study_s_bins_has_no_gap():
    ends = [end for low, high in ratings.BINS for end in (low, high)]
    assert ends == sorted(ends) and ends[0] == 0 and ends[-1] == 1
    assert all(round(b - a, 2) == 0.01 for a, b in zip(ends[1::2], ends[2::2], strict=False))
