"""L'orthographe du livre est juste, et le contrôle voit les fautes qu'il doit voir."""

from functools import cache
from pathlib import Path

import pytest

from tools import prose, spelling

PAGE = Path("page.md")

hunspell = pytest.mark.skipif(bool(spelling.missing()), reason=spelling.missing() or "hunspell est là")
book = pytest.mark.skipif(not prose.chapters(), reason="une copie sans les chapitres")


def faults(source: str, *permitted: str) -> list[tuple[int, str]]:
    return [(fault.line, fault.message) for fault in spelling.faults({PAGE: source}, permitted)]


@cache
def strangers() -> list[prose.Fault]:
    """Tout ce que hunspell ne connaît pas dans le livre."""
    return list(spelling.faults(spelling.pages(), []))


@hunspell
@book
def test_the_book_is_well_spelt() -> None:
    assert [str(fault) for fault in spelling.faults(spelling.pages(), spelling.listed())] == []


@hunspell
@book
def test_every_listed_word_is_needed() -> None:
    needed = {
        form for fault in strangers() for form in (fault.message, spelling.uncapitalised(fault.message))
    }
    useless = [word for word in spelling.listed() if word not in needed]
    assert useless == [], (
        "hunspell les connaît, ou le livre ne les emploie plus : les retirer de tests/mots.txt"
    )


def test_the_list_is_sorted_and_without_doubles() -> None:
    words = spelling.listed()
    assert words == sorted(set(words), key=lambda word: (word.casefold(), word))


@hunspell
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Un zorglub.", [(1, "zorglub")]),
        ("# Titre\n\nUn mot\net un zorglub.", [(4, "zorglub")]),
        ("Un mot.\n\n| a | b |\n|---|---|\n| un | deux |\n| trois | zorglub |", [(6, "zorglub")]),
        ("```{note}\n:class: tip\nRien.\n\nUn zorglub.\n```", [(5, "zorglub")]),
        (
            "```{figure} image.svg\n:alt: Un zorglub.\nUne légende zarglob.\n```",
            [(2, "zorglub"), (3, "zarglob")],
        ),
        (
            "```{code-cell} python3\n---\nmystnb:\n  figure:\n    caption: Un zorglub.\n"
            "  image:\n    alt: Un zarglob.\n---\nx = 1\n```",
            [(5, "zorglub"), (7, "zarglob")],
        ),
        ("L’étoille et l'étoille.", [(1, "étoille")]),
        ("Un zorglub ; un zarglob\u00a0: deux\u202f!", [(1, "zorglub"), (1, "zarglob")]),
        ("Le sous-zorglub d’aujourd’hui.", [(1, "zorglub")]),
        ("Un **zor**glub.", [(1, "zorglub")]),
        ("Voir {term}`zorglub`, l’{term}`étoille <étoile>`.", [(1, "zorglub"), (1, "étoille")]),
        ("Un mot,\n{ref}`zorglub\n<zarglob>`,\n{doc}`zerglub <zarglob>`.", [(2, "zorglub"), (4, "zerglub")]),
        ("Du *zorglub*, un *word*, mais un word.", [(1, "zorglub"), (1, "word")]),
        ("Un zorglub\nou deux.\n\nLe zorglub.", [(1, "zorglub"), (4, "zorglub")]),
    ],
)
def test_a_misspelling_is_seen_on_its_line(source: str, expected: list[tuple[int, str]]) -> None:
    assert sorted(faults(source)) == sorted(expected)


@hunspell
@pytest.mark.parametrize(
    "source",
    [
        "Le code `zorglub` et la formule $zorglub$.",
        "$$ zorglub $$",
        "```python\nzorglub\n```",
        "```{code-cell} python3\nzorglub = 1  # zarglob\n```",
        "Ils le disent {cite:p}`zorglub2021` et {glue:text}`zorglub`.",
        "Voir {ref}`la suite <zorglub>`, {doc}`zorglub`, {ref}`zarglob` et {eq}`zerglub`.",
        "Un lien vers [la page](https://zorglub.fr/zarglob).",
        "Le fichier zorglub.md, ResNet-50, h1.",
        "% une note zorglub pour les auteurs",
        "On dit *overall loss* en anglais.",
        "Aujourd’hui, l’œil qu’elle porte jusqu’aux presqu’îles\u00a0: peut-être\u202f!",
    ],
)
def test_what_is_right_or_not_prose_is_left_alone(source: str) -> None:
    assert faults(source) == []


@hunspell
def test_a_listed_word_is_right_capitalised_elided_or_hyphenated() -> None:
    source = "Un zorglub. Zorglub, l’zorglub, demi-zorglub. ZORGLUB."
    assert faults(source, "zorglub") == [(1, "ZORGLUB")]
    assert faults("Un zorglub.", "Zorglub") == [(1, "zorglub")]


@hunspell
def test_a_fault_gives_its_file_and_code_1(monkeypatch, capsys) -> None:
    monkeypatch.setattr(spelling, "pages", lambda: {PAGE: "Un mot.\n\nUn zorglub."})
    assert spelling.main() == 1
    assert capsys.readouterr().out.splitlines()[0] == "page.md:3: zorglub"
    monkeypatch.setattr(spelling, "pages", lambda: {PAGE: "Un mot."})
    assert spelling.main() == 0
    assert capsys.readouterr().out == ""


def test_without_hunspell_the_advice_is_given_and_nothing_fails(monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(spelling, "pages", lambda: {PAGE: "Un zorglub."})
    assert spelling.main() == 0
    assert "apt-get install hunspell hunspell-fr hunspell-en-us" in capsys.readouterr().err


@hunspell
def test_without_a_dictionary_the_advice_is_given(monkeypatch, capsys) -> None:
    monkeypatch.setattr(spelling, "FRENCH", "zz_ZZ")
    assert spelling.main() == 0
    assert "hunspell-fr" in capsys.readouterr().err
