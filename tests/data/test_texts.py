"""Lire du texte, l'isoler du balisage, le numéroter, compter ses n-grammes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.data import texts
from minidalle.data.texts import Characters, NGram, book_text, crops, prose, read_text, split
from minidalle.errors import MinidalleError

CHAPTERS = Path(__file__).parents[2] / "chapters"
PAGE = """---
file_format: mystnb
---

(vae)=
# Le titre

:::{admonition} Dans ce chapitre
:class: tip

- **Objectifs** : lire *vite*
  et bien ;
- dire « oui » (ou non).
:::

L’encodeur {cite}`kingma2014vae` rend $\\mu$, comme sur la {numref}`fig-x` et {eq}`eq-x`.
Il vaut {glue:text}`vae-psnr` dB :

$$
x = y
$$ (eq-x)

```{code-cell} python3
---
tags: [hide-input]
---
print("du code")
```

| a | b |
|---|---|

```{exercise-start}
:label: ex-a
```
Un énoncé sur `sg`, et des {term}`codes <code>`.
```{exercise-end}
```
"""
READ = """Le titre
Dans ce chapitre
- Objectifs : lire vite et bien ;
- dire « oui » (ou non).
L'encodeur rend $\\mu$, comme sur la figure et (…). Il vaut … dB :
Un énoncé sur `sg`, et des codes.
"""


def test_prose_keeps_what_is_read():
    assert prose(PAGE) == READ


@pytest.mark.skipif(not CHAPTERS.is_dir(), reason="paquet sans ses chapitres, comme la copie des mutants")
def test_the_book_s_prose_is_clean_french():
    text = book_text()
    assert len(text) > 80_000 and not set(text) & set("|#\u00a0\u202f\t")
    for markup in ("```", ":::", "{cite", "{glue", "plt.", ":label:", "](", "  "):
        assert markup not in text, markup
    for word in ("dictionnaire", "œil", "« ", "à gauche d'un carré bleu"):
        assert word in text
    assert text.count("(") == pytest.approx(text.count(")"), rel=0.02)  # « 1) » en a une sans l'autre


def test_the_corpus_is_closed(tmp_path):
    """Un chapitre d'une autre partie n'y change rien ; une page du corpus, si."""
    for name in ("index.md", "comprimer/b.md", "comprimer/a.md", "predire/rnn.md", "annexes/execution.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Page {name}.\n", encoding="utf-8")
    assert book_text(tmp_path) == "Page index.md.\nPage comprimer/a.md.\nPage comprimer/b.md.\n"


def test_without_chapters_it_says_what_to_do(tmp_path):
    with pytest.raises(MinidalleError, match="cloner le projet entier, ou lire un autre texte"):
        book_text(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("été".encode("latin-1"), "n'est pas en UTF-8"), (b"", "est vide"), (b" \n\n", "est vide")],
)
def test_unreadable_files_are_refused(tmp_path, content, message):
    (tmp_path / "texte.txt").write_bytes(content)
    with pytest.raises(MinidalleError, match=message):
        read_text(tmp_path / "texte.txt")


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(MinidalleError, match="rien à cet endroit"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(MinidalleError, match="c'est un dossier"):
        read_text(tmp_path)


def test_line_ends_and_byte_order_marks_vanish(tmp_path):
    (tmp_path / "texte.txt").write_bytes("\ufeffœuf\r\nété\r\n".encode())
    assert read_text(tmp_path / "texte.txt") == "œuf\nété\n"


@given(st.integers(0, 999))
@settings(max_examples=20)
def test_split_shares_whole_lines(seed):
    lengths = np.random.default_rng(seed).integers(0, 30, 500)
    text = "".join(f"{i}{'é' * n}\n" for i, n in enumerate(lengths))
    parts = split(text, block=60)
    lines = [part.splitlines() for part in parts]
    together = [line for part in lines for line in part]
    assert sorted(together) == sorted(text.splitlines()) and all(part[-1] == "\n" for part in parts)
    assert all(line == sorted(line, key=text.splitlines().index) for line in lines)
    train, validation, test = map(len, parts)
    assert 0.7 < train / len(text) < 0.9 and 0.5 < validation / test < 2


def test_split_refuses_a_short_text():
    with pytest.raises(MinidalleError, match="trop court"):
        split("Une ligne.\n" * 10)


# --- caractères ---


@given(st.text(min_size=1, max_size=40), st.text(max_size=40))
def test_characters_come_back_and_strangers_do_not(known, other):
    alphabet = Characters(known + "a")
    tokens = alphabet.encode(other)
    assert tokens.dtype == torch.int64 and tokens.shape == (len(other),)
    back = alphabet.decode(tokens)
    expected = "".join(c if c in alphabet.symbols else texts.UNKNOWN for c in other)
    assert back == expected
    assert len(alphabet) == len(set(known + "a") - {texts.UNKNOWN}) + 1
    assert Characters(alphabet.symbols).symbols == alphabet.symbols


@pytest.mark.parametrize("token", [-1, 3])
def test_numbers_out_of_the_alphabet_are_refused(token):
    with pytest.raises(MinidalleError, match="de 0 à 2"):
        Characters("ab").decode(torch.tensor([token]))


def test_an_alphabet_wants_a_character():
    with pytest.raises(MinidalleError, match="au moins un caractère"):
        Characters("")


@pytest.mark.parametrize("length", [0, 10])
def test_crops_longer_than_the_text_are_refused(length):
    with pytest.raises(MinidalleError, match="ne donnent pas d'extraits"):
        crops(torch.arange(10), length)


def test_crops_come_from_everywhere():
    (batch,) = crops(torch.arange(12), 9)(np.random.default_rng(0), 200)
    assert set(batch[:, 0].tolist()) == {0, 1, 2}


# --- n-grammes ---


@given(st.text("abc", min_size=1, max_size=40), st.text("abcd", max_size=6), st.integers(0, 4))
@settings(max_examples=60)
def test_probabilities_add_up_to_one(text, context, order):
    model = NGram(text, order, size=4)
    assert sum(model.probability(context, symbol) for symbol in "abcd") == pytest.approx(1)


def test_witten_and_bell_by_hand():
    """« abab » : après a, toujours b (2 fois, 1 sorte) ; a et b, 2 fois chacun (4 fois, 2 sortes)."""
    model = NGram("abab", 1, size=5)
    below = (2 + 2 / 5) / 6
    assert model.probability("a", "b") == pytest.approx((2 + below) / 3)
    assert model.probability("a", "c") == pytest.approx((2 / 5 / 6) / 3)
    assert model.probability("z", "b") == pytest.approx(below)  # contexte jamais vu
    assert NGram("abab", 0, 5).probability("a", "b") == pytest.approx(below)


def test_bits_are_those_of_each_character():
    model = NGram("abcabcabd" * 3, 2, size=6)
    text = "abcad"
    due = [-math.log2(model.probability(text[:i], text[i])) for i in range(5)]
    assert np.allclose(model.bits(text), due) and model.bits("").shape == (0,)


@pytest.mark.parametrize(("order", "size"), [(-1, 3), (2, 0)])
def test_impossible_counts_are_refused(order, size):
    with pytest.raises(MinidalleError):
        NGram("abc", order, size)
