"""L'étude jugée à l'œil : ce qu'on donne à noter, ce que les notes concluent, et la page."""

import re
import shlex

import numpy as np
import pytest

from minidalle.data.captioned import CaptionedImages
from minidalle.errors import MinidalleError
from minidalle.evaluation.english import translate
from minidalle.evaluation.rating_page import choose
from minidalle.evaluation.ratings import Rating
from minidalle.evaluation.study import plan, run
from minidalle.evaluation.study_files import read_strip, read_table
from minidalle.evaluation.study_graded import captions, graded, steps, write_page, write_to_rate
from minidalle.evaluation.study_summary import counts, spaces
from tests.painters import Painter

ABOUT = {
    "model": "<b>mini</b>",
    "n": 2,
    "settings": {"guidance": 4.0, "top_p": None},
    "categories": ["a", "b"],
}


@pytest.fixture(scope="module")
def items():
    return plan(2, 0, ["couleur", "relation"], tries=2)


@pytest.fixture(scope="module")
def out(items, tmp_path_factory):
    out = tmp_path_factory.mktemp("étude à noter")
    run(Painter(), out, items, ABOUT, blind=True)
    return out


@pytest.fixture
def rows(out):
    return read_table(out / "table.csv")


def note(row, caption, grade, rater="Ana"):
    path, place = row.image.removeprefix("paquets/").split(".png#")
    return Rating(f"{path}-{place}.png", caption, rater, grade, None, "")


def all_notes(rows, items, **grades):
    """Une note par phrase : 4 si elle décide de « right » ou de « present », 1 sinon."""
    grades = {"right": 4, "present": 4, "contrast_right": 1, "other_right": 1} | grades
    return [
        note(r, text, grades[c]) for r, i in zip(rows, items, strict=True) for c, text in captions(i).items()
    ]


# --- donner à noter


def test_a_judge_reads_what_the_oracle_would_judge_and_no_more():
    items = {i.request.prompt: i for i in plan(60, 0, tries=1)}
    for item in items.values():
        told = captions(item)
        assert ("present" in told) == (item.request.category in ("relation", "ordre"))
        assert ("fond" in told["right"]) == (item.request.category == "fond")
        assert not re.search(r"\b(petit|grand)", told["right"]) or item.request.category == "taille"
    item = next(i for i in items.values() if i.request.prompt.startswith("au-dessous d'"))
    first, second = (wish.text for wish in item.request.wishes)
    assert captions(item)["present"] == f"{first} et {second}"
    assert captions(item)["right"].startswith(f"{first} au-dessous d")
    assert captions(item)["contrast_right"].startswith(f"{second} au-dessous d")


def test_the_folder_is_one_that_rate_reads(out, rows, items):
    images = CaptionedImages.open(write_to_rate(out, rows, items))
    assert len(images) == len(rows) == 12
    for i, (row, item) in enumerate(zip(rows, items, strict=True)):
        path, place = row.image.split("#")
        image, told = images[i]
        assert (image == read_strip(out / path)[int(place)]).all()
        assert set(told) == set(captions(item).values()) and len(told) == len(set(told))
    pairs = choose(images)
    assert {(p.image, p.caption) for p in pairs} == {(r.image, r.caption) for r in all_notes(rows, items)}


def test_images_already_there_are_kept(out, rows, items):
    folder = write_to_rate(out, rows, items)
    before = {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    (folder / "images/00000-3.png").unlink()
    write_to_rate(out, rows, items)
    after = {path: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    assert {path.name for path in after if after[path] != before[path]} == {"00000-3.png"}
    assert before.keys() == after.keys()


# --- lire les notes


def test_without_notes_nothing_is_judged(rows, items):
    assert graded(rows, items, []) == rows
    assert {row[9:14] + row[15:19] for row in rows} == {(None,) * 9}
    assert counts(rows) == spaces(rows) == []


def test_notes_become_verdicts_and_what_was_not_asked_stays_empty(rows, items):
    for row, before in zip(graded(rows, items, all_notes(rows, items)), rows, strict=True):
        told = {"right": True, "contrast_right": False, "other_right": row.other_right}
        if row.category == "relation":
            told["present"] = True
        assert row == before._replace(**told)
        assert row.other_right in (True, False)  # vrai si l'autre demande est la même
    found = counts(graded(rows, items, all_notes(rows, items)))
    assert [(c.category, c.n, c.right, c.present, c.exact, c.swapped) for c in found] == [
        ("couleur", 2, 2, None, None, None),
        ("couleur", 2, 2, None, None, None),
        ("relation", 2, 2, 2, None, None),
        ("relation", 2, 2, 2, None, None),
    ]


def test_visor_is_seen_by_eye_too(rows, items):
    judged = graded(rows, items, all_notes(rows, items, right=3, contrast_right=4))
    (space, _) = spaces(judged)
    assert (space.measured.objects, space.measured.conditional, space.chance.conditional) == (1, 0, 1)
    # Bien placés, ils sont là : sans quoi la part conditionnelle dépasserait un.
    judged = graded(rows, items, all_notes(rows, items, present=0))
    assert all(row.present for row in judged if row.category == "relation")


def test_a_drawing_counts_only_if_all_its_sentences_are_graded(rows, items):
    notes = all_notes(rows, items)
    judged = graded(
        rows, items, [n for n in notes if n != note(rows[0], captions(items[0])["contrast_right"], 1)]
    )
    assert judged[0] == rows[0] and all(row.right for row in judged[1:])
    assert counts(judged)[0].n == 1
    assert graded(rows, items, [note(rows[0], "un sapin", 4)]) == rows


@pytest.mark.parametrize(
    ("grades", "right"),
    [((4, 4, 1), True), ((4, 3), False), ((4,), True), ((3, 3, 3), False), ((4, 4), True)],
)
def test_more_than_half_of_the_judges_decide(rows, items, grades, right):
    caption = captions(items[0])["right"]
    notes = [n for n in all_notes(rows, items) if n[:2] != note(rows[0], caption, 0)[:2]]
    notes += [note(rows[0], caption, grade, f"juge {i}") for i, grade in enumerate(grades)]
    assert graded(rows, items, notes)[0].right is right


def test_grades_of_another_scale_are_refused(rows, items):
    with pytest.raises(MinidalleError, match="Note de 7 .* de 0 à 4"):
        graded(rows, items, [note(rows[0], captions(items[0])["right"], 7)])


# --- la page


def page(out, rows, **options):
    turned = read_table(out / "contraires.csv")
    files = write_page(out, rows, spaces(rows), ABOUT, turned, **options)
    return [path.name for path in files], (out / "index.html").read_text(encoding="utf-8")


def test_before_any_note_the_page_shows_the_drawings_and_says_what_to_do(out, rows):
    files, html = page(out, rows, notes=["Prudence."])
    assert (
        files == ["index.html"]
        and "Rien n'est encore jugé" in html
        and '<p class="note">Prudence.</p>' in html
    )
    assert all(step.replace("'", "&#039;") in html for step in steps(out))
    assert [shlex.split(step)[:3] for step in steps(out)] == [
        ["minidalle", "rate", str(out / "a-noter")],
        ["minidalle", "evaluate", "ratings"],
        ["minidalle", "evaluate", "study"],
    ]
    assert "juste<" not in html and "faux<" not in html and "<br>juste" not in html
    assert html.count("data:image/jpeg") == len(rows) + 8  # et huit contraires
    for row in rows:
        assert row.prompt.replace("'", "&#039;") in html and translate(row.prompt) in html
    assert (
        "&lt;b&gt;mini" in html and "<b>" not in html and "guidance 4.0</dd>" in html and "a, b</dd>" in html
    )
    assert "{{" not in html and "None" not in html and "<script" not in html
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', html))
    assert page(out, rows, notes=["Prudence."])[1] == html


def test_after_notes_the_page_says_the_shares(out, rows, items):
    judged = graded(rows, items, all_notes(rows, items, right=2))
    files, html = page(out, judged, raters=["Ana", "Bob"])
    assert files == ["parts.svg", "index.html"] and "Rien n'est encore jugé" not in html
    assert "12 (juges : Ana, Bob)" in html and html.count("<tr>") == 1 + 4 and "None" not in html
    assert len(re.findall(r"<br>faux", html)) == 12 and html.count("VISOR, relation, ") == 2
    assert "demande contraire" in (out / "parts.svg").read_text(encoding="utf-8")


def test_a_thumbnail_is_small_and_a_small_drawing_is_not_enlarged():
    from minidalle.evaluation.study_graded import _thumbnail

    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    assert len(_thumbnail(noise)) < 40_000 < len(_thumbnail(noise[:144, :144])) * 4
