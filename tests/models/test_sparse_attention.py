"""Masques creux de DALL·E."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.sparse_attention import KINDS, image_mask, pattern, stream_mask


def test_the_pattern_is_that_of_the_article():
    # Ramesh et coll. (2021) : ligne, colonne, ligne, ligne…, une colonne toutes les quatre couches.
    assert pattern(9) == ["row", "column", "row", "row", "row", "column", "row", "row", "convolution"]
    assert pattern(1) == ["convolution"]
    assert pattern(64).count("column") == 16 and pattern(64)[-1] == "convolution"


@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3, 5]))
def test_masks_are_causal_and_say_what_their_names_say(kind, rows, columns, kernel):
    mask = image_mask(kind, (rows, columns), kernel)
    for query in range(rows * columns):
        for key in range(rows * columns):
            (y, x), (v, u) = divmod(query, columns), divmod(key, columns)
            near = {
                "full": True,
                "row": query - key <= columns,
                "column": x == u,
                "convolution": max(abs(y - v), abs(x - u)) <= kernel // 2,
            }[kind]
            assert mask[query, key] == (near and key <= query)


def test_a_row_sees_five_positions_of_a_four_by_four_grid():
    # Figure 11 de l'article : la grille a quatre colonnes, la bande en compte cinq.
    assert image_mask("row", (4, 4)).sum(1).tolist() == [1, 2, 3, 4] + [5] * 12


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_token_sees_the_whole_text(kind):
    mask = stream_mask(kind, 3, (2, 2))
    assert mask[3:, :3].all() and not mask[:3, 3:].any()
    assert torch.equal(mask[:3, :3], torch.ones(3, 3, dtype=torch.bool).tril())
    assert torch.equal(mask[3:, 3:], image_mask(kind, (2, 2)))


@pytest.mark.parametrize("wrong", [("diagonal", 3), ("convolution", 4), ("convolution", 0)])
def test_unknown_masks_are_refused(wrong):
    with pytest.raises(MinidalleError, match="choisir parmi"):
        image_mask(wrong[0], (2, 2), wrong[1])
