"""La typographie posée à la construction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _ext.francais import NBSP, NNBSP, typeset


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
