"""Notes données à des images."""

import numpy as np
import pytest

from minidalle.evaluation.scores import psnr, ssim


def test_psnr_is_that_of_the_formula():
    originals = np.zeros((2, 4, 4, 3), np.uint8)
    copies = originals.copy()
    copies[0] += 10
    copies[1, 0, 0, 0] = 255
    expected = [10 * np.log10(255**2 / 100), 10 * np.log10(255**2 / (255**2 / 48))]
    assert psnr(originals, copies) == pytest.approx(expected)


def test_a_perfect_copy_is_infinitely_good_without_a_warning():
    images = np.full((1, 4, 4, 3), 7, np.uint8)
    assert psnr(images, images).tolist() == [np.inf]


def test_ssim_is_one_for_a_copy_and_falls_with_structure_not_with_light():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 180, (1, 32, 32, 3)).astype(np.uint8)
    lighter, shuffled = image + 12, rng.permutation(image.reshape(-1, 3)).reshape(image.shape)
    assert ssim(image, image) == pytest.approx([1])
    assert ssim(image, lighter)[0] > 0.9 > 0.3 > ssim(image, shuffled)[0]


def test_ssim_of_flat_images_is_that_of_the_formula():
    # Sans variance, il ne reste que le terme de luminance : (2ab + c) / (a² + b² + c), c = (0,01 · 255)².
    a, b, c = 100.0, 130.0, 2.55**2
    images = [np.full((1, 16, 16, 3), v, np.uint8) for v in (100, 130)]
    assert ssim(*images) == pytest.approx([(2 * a * b + c) / (a * a + b * b + c)])
