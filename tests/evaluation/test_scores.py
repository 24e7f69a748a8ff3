"""Notes données à des images."""

import numpy as np
import pytest

from minidalle.evaluation.scores import psnr


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
