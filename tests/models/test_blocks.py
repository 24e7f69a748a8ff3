"""Encodeur et décodeur partagés."""

import pytest
import torch

from minidalle.errors import MinidalleError
from minidalle.models.blocks import (
    Decoder,
    Encoder,
    ResidualBlock,
    VectorDecoder,
    VectorEncoder,
    check_codes,
    check_images,
    check_tokens,
)


@pytest.mark.parametrize("channels", [(8,), (8, 12), (8, 12, 16)])
def test_each_stage_halves_then_doubles_the_side(channels):
    factor = 2 ** len(channels)
    grid = Encoder(channels, 5)(torch.rand(2, 3, 4 * factor, 6 * factor))
    assert grid.shape == (2, 5, 4, 6)
    assert Decoder(channels, 5)(grid).shape == (2, 3, 4 * factor, 6 * factor)
    assert Decoder(channels, 5, out_channels=6)(grid).shape[1] == 6


def test_blocks_are_where_the_grid_is_small():
    def count(blocks):
        return sum(isinstance(m, ResidualBlock) for m in Encoder((8, 12, 16), 5, blocks).modules())

    assert [count(b) for b in (0, 1, 2, 4)] == [0, 1, 3, 6]
    shapes = [tuple(p.shape[:2]) for p in Decoder((8, 12, 16), 5, 0).parameters() if p.ndim == 4]
    assert shapes == [(16, 5), (16, 12), (12, 8), (8, 3)]


def test_a_residual_block_that_learnt_nothing_changes_nothing():
    block = ResidualBlock(4)
    for p in block.layers[-1].parameters():
        torch.nn.init.zeros_(p)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_outputs_take_both_signs():
    torch.manual_seed(0)
    grid = Encoder((8, 12), 5)(torch.rand(4, 3, 16, 16))
    image = Decoder((8, 12), 5)(torch.randn(4, 5, 4, 4))
    for output in (grid, image):
        assert output.min() < 0 < output.max()


@pytest.mark.parametrize("size", [8, 16, 24])
def test_vectors_come_from_and_become_whole_images(size):
    torch.manual_seed(0)
    encoder, decoder = VectorEncoder((6, 8), size, 5, 1), VectorDecoder((6, 8), size, 4, 1)
    images = torch.rand(3, 3, size, size)
    codes = encoder(images)
    assert codes.shape == (3, 5) and decoder(torch.randn(3, 4)).shape == images.shape
    corner = images.clone()
    corner[:, :, -1, -1] += 5  # chaque coordonnée voit toute l'image
    assert (encoder(corner) != codes).any(0).all()


@pytest.mark.parametrize("size", [0, 2, 10])
def test_vectors_refuse_sides_they_cannot_halve(size):
    with pytest.raises(MinidalleError, match="multiple de 4"):
        VectorEncoder((6, 8), size, 5)


@pytest.mark.parametrize(
    "shape, options, said",
    [
        ((3, 16, 16), {}, "forme"),
        ((2, 1, 16, 16), {}, "forme"),
        ((2, 3, 12, 16), {"factor": 8}, "multiples de 8"),
        ((2, 3, 16, 12), {"factor": 8}, "multiples de 8"),
        ((2, 3, 0, 16), {"factor": 8}, "forme"),
        ((2, 3, 16, 8), {"size": 16}, "16 × 16, les redimensionner"),
        ((0, 3, 16, 16), {"empty": False}, "Lot vide"),
    ],
)
def test_impossible_images_are_refused(shape, options, said):
    with pytest.raises(MinidalleError, match=said):
        check_images(torch.zeros(shape), **options)


@pytest.mark.parametrize("pixel", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_numbers_are_refused(pixel):
    images = torch.rand(2, 3, 8, 8)
    check_images(images, 8, 8, empty=False)
    images[1, 2, 3, 4] = pixel
    with pytest.raises(MinidalleError, match="nombres finis"):
        check_images(images)


def test_bytes_are_refused():
    with pytest.raises(MinidalleError, match="flottants de 0 à 1"):
        check_images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_an_empty_batch_is_an_image_batch():
    check_images(torch.zeros(0, 3, 16, 16), 8)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1)])
def test_codes_of_another_shape_are_refused(shape):
    check_codes(torch.zeros(2, 3), 3)
    with pytest.raises(MinidalleError, match=r"en veut \(B, 3\)"):
        check_codes(torch.zeros(shape), 3)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(2, 3),
        torch.zeros(2, 2, 2, dtype=torch.long) - 1,
        torch.full((1, 2, 2), 9),
        torch.zeros(1, 2, 2),
    ],
)
def test_tokens_outside_the_codebook_are_refused(tokens):
    check_tokens(torch.full((1, 2, 2), 8), 9)
    with pytest.raises(MinidalleError, match="de 0 à 8"):
        check_tokens(tokens, 9)
