"""La page de notes : ordre des paires, réponses jamais perdues, et ce qu'elle refuse de servir."""

import errno
import io
import os
from collections import Counter
from itertools import pairwise
from urllib.parse import urlencode
from wsgiref.util import setup_testing_defaults

import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minidalle.data.captioned import CaptionedImages
from minidalle.errors import MinidalleError
from minidalle.evaluation.rating_page import SCALE, Answers, Item, application, choose, one_line, order, serve
from minidalle.evaluation.ratings import COLUMNS, read_ratings

HOSTILE = '<script>document.title = "piraté"</script> & "\u202eenvers"'


@pytest.fixture
def images(tmp_path):
    """Trois images de couleurs et de tailles différentes, à deux légendes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, (size, captions) in enumerate(
        [
            ((8, 8), ["un mouton", HOSTILE]),
            ((2000, 10), ["un carré", "un rond"]),
            ((300, 300), ["rien", "tout"]),
        ]
    ):
        Image.new("RGB", size, (80 * i, 0, 200)).save(folder / f"secret{i}.png")
        (folder / f"secret{i}.txt").write_text("\n".join(captions), encoding="utf-8")
    return CaptionedImages.open(folder)


@pytest.fixture
def answers(tmp_path):
    return Answers(tmp_path / "notes.csv")


@pytest.fixture
def items(images):
    return choose(images)


@pytest.fixture
def ask(images, items, answers):
    """Demande à la page : (statut, en-têtes, corps)."""
    app = application(images, items, answers, "Zoé <b>")

    def request(path="/", form=None, host="127.0.0.1:8421", **headers):
        body = urlencode(form or {}).encode()
        environ = {
            "PATH_INFO": path,
            "REQUEST_METHOD": "GET" if form is None else "POST",
            "HTTP_HOST": host,
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        setup_testing_defaults(environ)
        environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        told = []
        content = b"".join(
            app(environ, lambda status, headers, exc_info=None: told.append((status, dict(headers))))
        )
        return int(told[0][0][:3]), told[0][1], content

    return request


# --- paires et ordre ---


def test_every_pair_once(images):
    found = choose(images)
    assert [item.index for item in found] == [0, 0, 1, 1, 2, 2]
    assert found[1] == Item(0, "secret0.png", HOSTILE)
    images.captions[0] = ["deux  fois", "deux fois"]
    assert len(choose(images)) == 5


def test_a_few_images_are_the_same_for_all_and_depend_on_the_seed(images):
    draws = [frozenset(item.image for item in choose(images, 2, seed)) for seed in range(12)]
    assert all(len(draw) == 2 for draw in draws) and len(set(draws)) == 3
    assert choose(images, 2, 4) == choose(images, 2, 4)
    assert choose(images, 99) == choose(images)


def test_an_unreadable_image_is_said_before_the_first_grade(images, tmp_path):
    (tmp_path / "images" / "secret1.png").write_bytes(b"tronque")
    with pytest.raises(MinidalleError, match=r"secret1\.png"):
        choose(images)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 99))
def test_two_captions_of_an_image_never_follow_each_other_when_possible(counts, seed):
    pairs = [Item(i, f"{i}.png", str(k)) for i, count in enumerate(counts) for k in range(count)]
    shown = order(pairs, "Ana", seed)
    assert Counter(shown) == Counter(pairs)
    following = sum(a.image == b.image for a, b in pairwise(shown))
    assert following == max(0, 2 * max(counts) - sum(counts) - 1)


def test_each_rater_has_an_order_that_can_be_found_again():
    pairs = [Item(i, f"{i}.png", str(k)) for i in range(10) for k in range(3)]
    assert order(pairs, "Ana", 0) == order(pairs, "Ana", 0)
    assert len({tuple(order(pairs, *who)) for who in (("Ana", 0), ("Bob", 0), ("Ana", 1))}) == 3
    assert order(pairs, "Ana", 0) != pairs
    # La première légende d'une image n'a pas de raison de passer avant les autres.
    firsts = [next(p.caption for p in order(pairs, str(who)) if p.image == "0.png") for who in range(300)]
    assert all(70 <= count <= 130 for count in Counter(firsts).values())


def test_one_line():
    assert one_line(" deux\n lignes\r\x85et\udce9 ") == "deux lignes et?"


# --- réponses ---


def test_answers_are_on_disk_at_once_and_found_again(answers, items):
    answers.record(items[1], "Ana", 3)
    answers.record(items[1], "Ana", 0)
    answers.record(items[0], "Bob", 4)
    rows = read_ratings(answers.path)
    assert [(r.image, r.caption, r.rater, r.grade) for r in rows] == [
        ("secret0.png", HOSTILE, "Ana", 3),
        ("secret0.png", HOSTILE, "Ana", 0),
        ("secret0.png", "un mouton", "Bob", 4),
    ]
    before = answers.path.read_bytes()
    answers._file.close()
    again = Answers(answers.path)
    assert again.grades == {("secret0.png", HOSTILE, "Ana"): 0, ("secret0.png", "un mouton", "Bob"): 4}
    assert answers.path.read_bytes() == before and again.torn == ""


def test_each_answer_is_forced_to_disk(answers, items, monkeypatch):
    forced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(answers.path.read_bytes()))
    answers.record(items[0], "Ana", 3)
    assert forced == [f"{','.join(COLUMNS)}\nsecret0.png,un mouton,Ana,3\n".encode()]


def test_a_torn_last_line_is_removed_and_told(answers, items):
    answers.record(items[0], "Ana", 3)
    whole = answers.path.read_bytes()
    answers._file.close()
    answers.path.write_bytes(whole + b'secret0.png,"un mou')
    again = Answers(answers.path)
    assert again.torn == 'secret0.png,"un mou' and answers.path.read_bytes() == whole
    again.record(items[1], "Ana", 1)
    assert len(read_ratings(answers.path)) == 2


def test_a_full_disk_loses_only_the_answer_it_reports(answers, items, monkeypatch):
    answers.record(items[0], "Ana", 3)
    whole = answers.path.read_bytes()

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MinidalleError, match="disque plein"):
        answers.record(items[1], "Ana", 3)
    assert answers.path.read_bytes() == whole and len(answers.grades) == 1


def test_one_process_at_a_time(answers):
    with pytest.raises(MinidalleError, match="sert déjà à une autre page"):
        Answers(answers.path)
    answers._file.close()
    Answers(answers.path)


@pytest.mark.parametrize("content", ["un poème\nsans fin", "image,legende,note\na,x,3\n", "image"])
def test_another_file_is_left_alone(tmp_path, content):
    path = tmp_path / "autre.csv"
    path.write_text(content)
    with pytest.raises(MinidalleError, match="n'est pas un fichier de notes"):
        Answers(path)
    assert path.read_text() == content


def test_impossible_files(tmp_path):
    with pytest.raises(MinidalleError, match="c'est un dossier"):
        Answers(tmp_path)
    (tmp_path / "notes.csv").write_text(",".join(COLUMNS) + "\na,x,Ana,\n")
    with pytest.raises(MinidalleError, match="ligne 2"):
        Answers(tmp_path / "notes.csv")


# --- page ---


def test_a_pair_is_shown_as_text_and_says_nothing_else(ask):
    status, headers, content = ask("/1")
    page = BeautifulSoup(content, "html.parser")
    assert status == 200 and headers["Content-Type"].startswith("text/html; charset=UTF-8")
    assert page.find("figcaption").string == HOSTILE and page.find("bdi").string == "Zoé <b>"
    assert len(page.find_all("script")) == 1 and "nonce" in page.find("script").attrs
    assert page.html["lang"] == "fr" and page.img["alt"] and page.find("legend").string
    assert [b["value"] for b in page.find_all("button")] == list("01234")
    for value, (button, meaning) in enumerate(zip(page.find_all("button"), SCALE, strict=True)):
        assert button.get_text() == f"{value} {meaning}" and f"Digit{value}" in button["data-keys"].split()
    assert b"secret" not in content, "le nom d'une image peut dire ce qu'elle montre"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and f"'nonce-{page.script['nonce']}'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert headers["Cache-Control"] == "no-store" and "Access-Control-Allow-Origin" not in headers


def test_grades_move_to_the_next_pair_without_one(ask, answers, items):
    assert ask("/")[:2][1]["Location"] == "/0"
    for place, following in ((0, 1), (4, 5), (5, 1), (1, 2), (2, 3), (3, 6)):
        status, headers, _ = ask(f"/{place}", {"note": "2"})
        assert (status, headers["Location"]) == (303, f"/{following}")
    assert {key[2] for key in answers.grades} == {"Zoé <b>"} and len(answers.grades) == 6
    assert ask("/")[1]["Location"] == "/6"
    assert "Tout est noté" in ask("/6")[2].decode()


def test_a_grade_can_be_seen_and_corrected(ask, answers, items):
    answers.record(items[1], "Bob", 4)
    assert b'aria-pressed="true"' not in ask("/1")[2], "à l'aveugle : les notes des autres ne se voient pas"
    ask("/1", {"note": "0"})
    page = BeautifulSoup(ask("/1")[2], "html.parser")
    assert [b["aria-pressed"] for b in page.find_all("button")] == ["true"] + ["false"] * 4
    assert page.progress["value"] == "1" and page.progress["max"] == "6" and "1 sur 6" in page.title.string
    assert [a["href"] for a in page.find_all("a")] == ["/0", "/2"]
    ask("/1", {"note": "3"})
    assert answers.grades[items[1].image, items[1].caption, "Zoé <b>"] == 3
    assert answers.grades[items[1].image, items[1].caption, "Bob"] == 4
    unfinished = ask("/6")[2].decode()
    assert "Il reste des paires" in unfinished and 'href="/5"' in unfinished


def test_images_are_drawn_anew(ask, items):
    sizes = []
    for place in (0, 2, 4):
        status, headers, content = ask(f"/image/{place}")
        assert status == 200 and headers["Content-Type"] == "image/png"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        with Image.open(io.BytesIO(content)) as picture:
            sizes.append(picture.size)
            assert np.asarray(picture)[0, 0].tolist() == [80 * items[place].index, 0, 200]
    assert sizes == [(256, 256), (1024, 5), (300, 300)]


@pytest.mark.parametrize(
    "path",
    [
        "/7",
        "/-1",
        "/image/6",
        "/image/-1",
        "/image/0/x",
        "/image/../notes.csv",
        "/../notes.csv",
        "/image/..%2fnotes.csv",
        "/image/secret0.png",
        "/images/secret0.png",
        "/notes.csv",
        "//etc/passwd",
        "/static/../../etc/passwd",
        "/\x00",
    ],
)
def test_nothing_else_is_served(ask, path):
    status, _, content = ask(path)
    assert (status, content.decode()) == (404, "Rien ici.")


def test_an_endless_number_is_not_an_address(ask):
    assert ask("/" + "9" * 5000)[0] in (400, 404)
    assert ask("/" + "9" * 30)[0] == 404


@pytest.mark.parametrize(
    "form", [{}, {"note": ""}, {"note": "5"}, {"note": "-1"}, {"note": "٣"}, {"note": "1.0"}]
)
def test_a_grade_off_the_scale_is_refused(ask, answers, form):
    assert ask("/0", form)[0] == 400
    assert ask("/6", {"note": "1"})[0] == 404
    assert answers.grades == {}


@pytest.mark.parametrize(
    "host", ["pirate.fr", "pirate.fr:8421", "127.0.0.1.pirate.fr", "", "[::1", "192.168.1.2"]
)
def test_a_name_pointed_to_this_machine_is_refused(ask, answers, host):
    for path, form in (("/0", None), ("/image/0", None), ("/0", {"note": "1"})):
        status, _, content = ask(path, form, host=host)
        assert (status, content.decode()) == (403, "Demande venue d'ailleurs, refusée.")
    assert answers.grades == {}


@pytest.mark.parametrize(
    "origin", ["http://pirate.fr", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8421"]
)
def test_another_site_cannot_post(ask, answers, origin):
    assert ask("/0", {"note": "1"}, origin=origin)[0] == 403
    assert answers.grades == {}
    assert ask("/0", {"note": "1"}, origin="http://127.0.0.1:8421")[0] == 303
    assert ask("/1", {"note": "1"}, host="localhost:8421", origin="http://localhost:8421")[0] == 303


def test_an_answer_that_cannot_be_kept_is_said(ask, answers, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "fsync", refuse)
    status, _, content = ask("/0", {"note": "1"})
    assert status == 507 and "disque plein" in content.decode()
    assert ask("/")[1]["Location"] == "/0"


def test_ports(ask, images, items, answers):
    app = application(images, items, answers, "Ana")
    addresses = []

    def take_the_same(address):
        addresses.append(address)
        with pytest.raises(MinidalleError, match="est pris ou interdit"):
            serve(app, int(address.rsplit(":", 1)[1].strip("/")), addresses.append)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(app, 0, take_the_same)
    assert len(addresses) == 1 and addresses[0].startswith("http://127.0.0.1:")
    with pytest.raises(MinidalleError, match="Le port 99999"):
        serve(app, 99999, print)
