"""La typographie posée à la construction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pybtex.database import Entry, Person

from _ext.francais import NBSP, NNBSP, Labels, Sorting, letter_twins, short_title, typeset


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Vraiment ?", f"Vraiment{NNBSP}?"),
        ("oui ; non !", f"oui{NNBSP}; non{NNBSP}!"),
        ("deux-points : ici", f"deux-points{NBSP}: ici"),
        (" : suite d'un code", f"{NBSP}: suite d'un code"),
        ("dites « oui »", f"dites «{NBSP}oui{NBSP}»"),
        ("dites «oui»", f"dites «{NBSP}oui{NBSP}»"),
        ("25 % de 10 Mo en 2 min", f"25{NBSP}% de 10{NBSP}Mo en 2{NBSP}min"),
        (" dB", " dB"),
        ("12 [−3 ; 34,5] ; 2", f"12 [−3{NNBSP};{NBSP}34,5]{NNBSP}; 2"),
        ("à ± 5 points", f"à ±{NBSP}5{NBSP}points"),
        ("16 384 codes", f"16{NNBSP}384 codes"),
        ("1 000 000 de scènes", f"1{NNBSP}000{NNBSP}000 de scènes"),
        ("en 2024 100 images", "en 2024 100 images"),
        ("0,25 128", "0,25 128"),
        ("les lots de 32 64 fois", "les lots de 32 64 fois"),
        ("il est 12:30, a::b", "il est 12:30, a::b"),
        ("3 mots", "3 mots"),
    ],
)
def test_spaces(source: str, expected: str) -> None:
    assert typeset(source) == expected


def test_latex_leaves_double_signs_to_babel() -> None:
    assert typeset("Vraiment ? « oui » : 25 %", html=False) == f"Vraiment ? «{NBSP}oui{NBSP}» : 25{NBSP}%"


@given(st.text(alphabet="ab 09,.:;!?«»%€" + NBSP + NNBSP))
def test_only_spaces_change_and_once(source: str) -> None:
    done = typeset(source)
    assert typeset(done) == done
    assert "".join(done.split()) == "".join(source.split())


@pytest.mark.parametrize(
    ("title", "short"),
    [
        ("Le VAE : des codes", "Le VAE"),
        (f"Espace{NBSP}: incapable, ou jamais averti{NNBSP}?", "Espace"),
        ("De la phrase au vecteur, puis l’attention", "De la phrase au vecteur, puis l’attention"),
        ("A : b : c", "A"),
    ],
)
def test_a_reference_leaves_the_subtitle_out(title: str, short: str) -> None:
    assert short_title(title) == short


def test_bibliography_reads_and_sorts_names_as_they_are_pronounced() -> None:
    authors = [
        "Zhang, Richard",
        r"{\L}a{\'n}cucki, Adrian",
        "{OpenAI}",
        "van den Oord, Aäron",
        "Élie, Jean",
        "Le, Quoc",
    ]
    entries = [Entry("misc", {"year": "2021"}, {"author": [Person(author)]}) for author in authors]
    assert list(Labels().format_labels(Sorting().sort(entries))) == [
        f"{name}, 2021" for name in ("Élie", "Łańcucki", "Le", "OpenAI", "van den Oord", "Zhang")
    ]


def test_twin_references_are_told_apart() -> None:
    entries = [Entry("misc", {"year": "2021"}, {"author": [Person("{OpenAI}")]}) for _ in range(2)]
    assert list(Labels().format_labels(entries)) == ["OpenAI, 2021a", "OpenAI, 2021b"]
    for _ in range(2):  # une reconstruction relit les mêmes
        letter_twins([*entries, Entry("misc", {"year": "2021"}, {"author": [Person("Le, Quoc")]})])
        assert [entry.fields["year"] for entry in entries] == ["2021a", "2021b"]
        assert list(Labels().format_labels(entries)) == ["OpenAI, 2021a", "OpenAI, 2021b"]
