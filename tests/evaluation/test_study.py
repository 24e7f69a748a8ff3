"""L'étude : ce qu'elle demande, ce qu'elle conclut de peintres connus, et ce qu'une coupure lui fait."""

from collections import Counter

import numpy as np
import pytest

from minidalle.errors import MinidalleError
from minidalle.evaluation import study
from minidalle.evaluation.oracle import read
from minidalle.evaluation.requests import SEEN_ONLY, SPATIAL, STUDY, requests
from minidalle.evaluation.study import opposites, plan, run, strange, verdicts
from minidalle.evaluation.study_files import read_strip, read_table
from minidalle.evaluation.study_summary import counts
from tests.painters import Painter, Tired, coin, deaf

ABOUT = {"model": "essai"}


@pytest.fixture(scope="module")
def items():
    return plan(25, 0, tries=2)


def judged(painter, items):
    """La table d'un peintre, sans rien écrire ; un dessin par demande."""
    items = [item for item in items if item.attempt == 0]
    drawn = painter.draw_many([i.request.prompt for i in items], [i.seed for i in items])
    return verdicts(items, read([d.images[0] for d in drawn]), [""] * len(items))


# --- ce qu'elle demande


def test_every_category_is_asked_on_new_and_known_combinations(items):
    asked = Counter((i.request.category, i.request.held_out) for i in items)
    for category in STUDY:
        each = 25 * (2 if category in SPATIAL else 1)
        assert asked[category, False] == each and asked[category, True] == (
            0 if category in SEEN_ONLY else each
        )
    assert [i.request for i in items if i.request.category == "paire"][:25] == requests(
        np.random.default_rng(0), "paire", 25
    )
    assert len({(i.request.category, i.request.held_out, i.index, i.attempt) for i in items}) == len(items)


def test_seeds_are_shared_by_categories_and_never_by_two_drawings_of_a_request(items):
    pair = [i for i in items if i.request.category == "relation" and i.index == 3 and i.request.held_out]
    assert [i.seed for i in pair] == [3, 1_000_003] and [i.attempt for i in pair] == [0, 1]
    assert {i.seed for i in items if i.attempt == 0} == set(range(25))
    later = plan(2, 7, ["fond"])
    assert {i.seed for i in later} == {700_000_000, 700_000_001}


def test_the_first_requests_do_not_depend_on_their_number(items):
    few = plan(5, 0, ["nombre", "ordre"], tries=2)
    many = [i for c in ("nombre", "ordre") for i in items if i.request.category == c and i.index < 5]
    assert [i[:2] + i[3:] for i in few if i.request.held_out] == [
        i[:2] + i[3:] for i in many if i.request.held_out
    ]


def test_the_other_request_is_the_next_one_of_its_group(items):
    group = [i for i in items if (i.request.category, i.request.held_out) == ("fond", True)]
    assert [i.other for i in group] == [i.request for i in group[1:] + group[:1]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": 0}, "« n » ne peut pas valoir 0"),
        ({"n": 1}, "choisir de 2"),
        ({"tries": 0}, "« tries »"),
        ({"seed": -1}, "« seed »"),
        ({"categories": ["goût"]}, "« goût » inconnue : choisir parmi objet"),
        ({"categories": []}, "au moins une"),
        ({"categories": ["fond", "fond"]}, "une seule fois"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, told):
    with pytest.raises(MinidalleError, match=told):
        plan(**{"n": 3} | changes)


# --- ce qu'elle conclut


def test_a_perfect_painter_is_right_everywhere_and_chance_is_nil(items):
    rows = judged(Painter(), items)
    for count in counts(rows):
        assert count.right == count.exact == count.present == count.n == 25
        assert count.contrast == count.swapped == 0 and count.other <= 4
    assert strange(rows) is None
    for row in rows:
        assert row.place == row.place_read or row.category not in SPATIAL
        assert row.count == row.asked or row.category != "nombre"


def test_a_deaf_painter_is_at_chance_everywhere(items):
    """Légendes permutées : la demande n'est pas mieux servie qu'une autre."""
    total = Counter()
    for count in counts(judged(deaf(items), items)):
        assert abs(count.right - count.other) <= 5 and count.right <= 6
        total += Counter(right=count.right, contrast=count.contrast, other=count.other, n=count.n)
    assert total["right"] < 0.1 * total["n"] and abs(total["right"] - total["other"]) < 20


def test_a_painter_deaf_to_the_attribute_alone_is_right_once_in_two(items):
    """Tout est là, sauf ce que la catégorie mesure, tiré à pile ou face : seule la demande contraire le révèle."""
    for count in counts(judged(coin(items), items)):
        assert count.right + count.contrast == count.n
        assert 5 <= count.right <= 20  # à trois écarts-types de 12,5
        assert count.category == "objet" or count.present >= count.right
    pairs = [c for c in counts(judged(coin(items), items)) if c.category == "paire"]
    assert all(c.swapped == c.contrast and c.present == c.n for c in pairs)


def test_pictures_of_another_world_are_strange(items):
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    rows = verdicts(items[:30], read(list(noise)), [""] * 30)
    assert strange(rows) > 0.9


# --- ce qu'elle écrit, et ce qu'une coupure lui fait

SMALL = {"n": 6, "categories": ["couleur", "relation"], "tries": 2}  # 36 dessins et 16 contraires


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "PACKET", 10)
    return plan(**SMALL)


def written(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_rows_pictures_and_opposites_are_kept(small, tmp_path):
    seen, painter = [], Painter()
    rows = run(painter, tmp_path / "e", small, ABOUT, settings={}, progress=seen.append)
    assert sum(seen) == len(small) + len(opposites(small)) == 36 + 16 == len(painter.drawn)
    assert read_table(tmp_path / "e/table.csv") == rows and len(rows) == 36
    path, _, place = rows[13].image.partition("#")
    (drawing,) = Painter().draw_many([rows[13].prompt], [rows[13].seed])
    assert (read_strip(tmp_path / "e" / path)[int(place)] == drawing.images[0]).all()
    turned = read_table(tmp_path / "e/contraires.csv")
    asked = {(r.category, r.held_out, r.index): r for r in rows if r.attempt == 0}
    for row in turned:
        first = asked[row.category, row.held_out, row.index]
        assert (row.prompt, row.contrast, row.seed) == (
            first.contrast,
            first.prompt,
            first.seed,
        ) and row.right


def test_a_study_cut_at_any_packet_loses_and_repeats_nothing(small, tmp_path):
    run(Painter(), tmp_path / "entière", small, ABOUT)
    whole = written(tmp_path / "entière")
    for cut in range(6):
        out, before, after = tmp_path / f"coupée-{cut}", Tired(cut), Painter()
        with pytest.raises(KeyboardInterrupt):
            run(before, out, small, ABOUT)
        assert not (out / "table.csv").exists()
        run(after, out, small, ABOUT, resume=True)
        assert written(out) == whole
        assert len(before.drawn) + len(after.drawn) == 52


def test_a_packet_half_written_is_done_again_and_its_crumbs_swept(small, tmp_path, monkeypatch):
    run(Painter(), tmp_path / "entière", small, ABOUT)
    out = tmp_path / "e"

    def cut(path, rows):
        (path.parent / f".{path.name}.abc").write_text("catego")  # ce que laisse un arrêt net
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study, "write_table", cut)
        run(Painter(), out, small, ABOUT)
    run(Painter(), out, small, ABOUT, resume=True)
    assert written(out) == written(tmp_path / "entière")
    # Abîmés après coup, la table d'un paquet et le dessin d'un autre sont refaits, eux seuls.
    (out / "paquets/00001.csv").write_text("category\n")
    picture = (out / "paquets/00002.png").read_bytes()
    (out / "paquets/00002.png").write_bytes(picture[: len(picture) // 2])
    again = Painter()
    run(again, out, small, ABOUT, resume=True)
    assert len(again.drawn) == 20 and written(out) == written(tmp_path / "entière")


def test_packets_of_other_requests_are_done_again(small, tmp_path):
    run(Painter(), tmp_path / "e", small, ABOUT)
    for kind in ("csv", "png"):
        (tmp_path / f"e/paquets/00000.{kind}").write_bytes(
            (tmp_path / f"e/paquets/00001.{kind}").read_bytes()
        )
    again = Painter()
    run(again, tmp_path / "e", small, ABOUT, resume=True)
    assert len(again.drawn) == 10


def test_a_blind_study_draws_the_same_and_judges_nothing(small, tmp_path, monkeypatch):
    run(Painter(), tmp_path / "lue", small, ABOUT)
    monkeypatch.setattr(study, "read", lambda images: pytest.fail("l'oracle est consulté"))
    painter, size = Painter(), study.SLOW_PACKET
    rows = run(painter, tmp_path / "e", small, ABOUT, blind=True)
    assert read_table(tmp_path / "e/table.csv") == rows == study.unread(small, [row.image for row in rows])
    verdicts = [row[9:14] + row[15:19] for row in rows]
    assert set(verdicts) == {(None,) * 9}
    for row, known in zip(rows, read_table(tmp_path / "lue/table.csv"), strict=True):
        assert row[:9] == known[:9]
    assert rows[size].image == "paquets/00001.png#0"
    whole = written(tmp_path / "e")
    again = Painter()
    run(again, tmp_path / "e", small, ABOUT, blind=True, resume=True)
    assert not again.drawn and written(tmp_path / "e") == whole


def test_settings_reach_the_painter_and_odd_pictures_are_refused(small, tmp_path):
    class Odd(Painter):
        def draw_many(self, prompts, seeds, **settings):
            self.settings = settings
            return [
                d for d in super().draw_many(prompts, seeds) if setattr(d, "images", d.images[:, :60]) is None
            ]

    painter = Odd()
    with pytest.raises(MinidalleError, match="60 × 64"):
        run(painter, tmp_path / "e", small, ABOUT, settings={"guidance": 3.0})
    assert painter.settings == {"guidance": 3.0}
