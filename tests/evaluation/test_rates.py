"""Bits par image."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minidalle.errors import MinidalleError
from minidalle.evaluation.rates import rounded, through_codec


@given(st.integers(1, 10), st.integers(0, 99))
def test_rounding_keeps_few_values_and_the_nearest(bits, seed):
    torch.manual_seed(seed)
    known = torch.randn(500, 3) * torch.tensor([0.1, 1, 30]) + 5
    codes = known[:80]
    out = rounded(codes, bits, known)
    for j in range(3):
        low, high = torch.quantile(known[:, j], torch.tensor([0.001, 0.999]))
        allowed = torch.linspace(low, high, 2**bits)
        nearest = (codes[:, j, None] - allowed).abs().min(1).values
        assert torch.allclose((codes - out)[:, j].abs(), nearest, atol=1e-4 * float(high - low))
        assert len(out[:, j].unique()) <= 2**bits


def test_a_constant_coordinate_stays():
    known = torch.full((10, 2), 3.0)
    assert torch.allclose(rounded(known, 8, known), known)


def test_no_bit_is_refused():
    with pytest.raises(MinidalleError, match="au moins un"):
        rounded(torch.zeros(1, 1), 0, torch.zeros(1, 1))


@pytest.mark.parametrize("codec", ["JPEG", "WEBP"])
@pytest.mark.parametrize("n", [1, 3, 4, 7])
def test_each_image_comes_back_in_its_place(codec, n):
    shades = np.linspace(20, 235, n).astype(np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (n, 32, 32, 3))
    copies, bits = through_codec(images, codec, 95)
    assert copies.shape == images.shape and np.abs(copies.astype(int) - images).max() <= 4
    assert bits > 0


def test_bits_are_those_of_the_file():
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG", quality=40)
    assert through_codec(image, "JPEG", 40)[1] == 8 * len(file.getvalue())


@pytest.mark.parametrize("codec", ["JPEG", "WEBP"])
def test_quality_costs_bits_and_brings_images_nearer(codec):
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    (low, few), (high, many) = (through_codec(images, codec, q) for q in (5, 95))
    gap = [np.abs(c.astype(int) - images).mean() for c in (low, high)]
    assert few < many and gap[0] > gap[1]


@pytest.mark.parametrize(
    "shape, codec", [((0, 16, 16, 3), "JPEG"), ((1, 20, 20, 3), "JPEG"), ((1, 16, 16, 3), "GIF")]
)
def test_impossible_requests_are_refused(shape, codec):
    with pytest.raises(MinidalleError):
        through_codec(np.zeros(shape, np.uint8), codec, 50)
