"""Encodeur et décodeur partagés."""

import pytest
import torch

from minidalle.models.blocks import Decoder, Encoder, ResidualBlock


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
