"""L'index de recherche du livre : ce qu'un mot de la page y laisse, ce qu'un mot demandé y trouve."""

import pytest

from _ext.recherche import FoldedFrench, fold


@pytest.fixture(scope="module")
def french() -> FoldedFrench:
    return FoldedFrench({})


def stems(french: FoldedFrench, text: str) -> set[str]:
    return {french.stem(word) for word in french.split(text)}


def test_fold() -> None:
    assert fold("cœur décodé à l’été") == "coeur decode a l’ete"


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("l'auto-encodeur", "autoencodeurs"),
        ("un auto‑encodeur", "autoencodeur"),  # trait insécable
        ("auto-encodeurs", "encodeur"),
        ("décodeurs", "decodeur"),
        ("entrai\u0302ne\u0301es", "entrainees"),  # accents décomposés dans la page
        ("entraînées", "entraînée"),
        ("une œuvre", "oeuvres"),
        ("VQ-VAE", "vqvae"),
    ],
)
def test_asked_word_is_found(french: FoldedFrench, written: str, asked: str) -> None:
    assert french.stem(asked) in stems(french, written)


def test_parts_of_a_compound_stay(french: FoldedFrench) -> None:
    assert french.split("cause-à-effet") == ["cause", "à", "effet", "causeàeffet", "causeaeffet"]
