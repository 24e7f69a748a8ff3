"""Notes données à des images."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.evaluation.scores import (
    clip_score,
    cosines,
    psnr,
    r_precision,
    recall_at_k,
    recall_by_chance,
    ssim,
    visor,
    zero_shot,
)


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


# --- images et textes


def directions(*degrees):
    """Vecteurs du plan, (N, 2), de longueurs diverses : seul l'angle doit compter."""
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]


def test_clip_score_is_that_of_the_formula():
    scores = clip_score(directions(0, 0, 0, 0), directions(0, 60, 90, 120))
    assert scores == pytest.approx([2.5, 1.25, 0, 0])
    assert cosines(directions(0), directions(0, 60, 120)) == pytest.approx(np.array([[1, 0.5, -0.5]]))


def test_scores_read_the_vectors_of_a_model():
    vectors = torch.tensor([[3.0, 4.0]])
    assert clip_score(vectors, vectors) == pytest.approx([2.5])


@pytest.mark.parametrize("bad", [[[0.0, 0.0]], [[np.nan, 1.0]], [[np.inf, 1.0]]])
def test_vectors_without_a_direction_are_refused(bad):
    with pytest.raises(MinidalleError, match="nul"):
        clip_score(np.array(bad), directions(0))


def test_vectors_of_two_models_are_refused():
    with pytest.raises(MinidalleError, match="2 et de 3"):
        cosines(directions(0), np.ones((1, 3)))


def test_recall_counts_the_closest_candidates():
    # À 0°, les candidats se rangent 10°, −20°, 30°, −40° ; à 90°, dans l'ordre 30°, 10°, −20°, −40°.
    found = recall_at_k(
        directions(0, 0, 90), directions(30, -40, 10, -20), [[2], [0, 1], [1]], ks=(1, 2, 3, 4)
    )
    assert [found[k].tolist() for k in (1, 2, 3, 4)] == [
        [True, False, False],
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(2, 12))
def test_recall_is_that_of_a_sort(seed, questions, candidates):
    rng = np.random.default_rng(seed)
    queries, texts = rng.normal(size=(questions, 3)), rng.normal(size=(candidates, 3))
    relevant = [
        rng.choice(candidates, rng.integers(1, candidates), replace=False).tolist() for _ in range(questions)
    ]
    order = (-cosines(queries, texts)).argsort(1)
    for k, found in recall_at_k(queries, texts, relevant, ks=(1, 2, 5)).items():
        expected = [bool({*top[:k].tolist()} & {*good}) for top, good in zip(order, relevant, strict=True)]
        assert found.tolist() == expected


def test_recall_gives_nothing_to_equal_vectors():
    same = np.full((300, 7), 0.3)
    found = recall_at_k(same, same, [[i] for i in range(300)])
    assert not any(hits.any() for hits in found.values())
    # …mais un texte commun à deux images reste une bonne réponse pour chacune.
    assert recall_at_k(same[:1], same[:2], [[0, 1]])[1].all()


def test_recall_wants_an_answer_to_each_question():
    for relevant in ([[0], []], [[0]]):
        with pytest.raises(MinidalleError, match="bonne réponse"):
            recall_at_k(directions(0, 1), directions(0, 1), relevant)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_recall_by_chance_is_that_of_every_draw(k):
    relevant = [[0], [1, 3], [0, 2, 4]]
    draws = list(combinations(range(5), min(k, 5)))
    expected = np.mean([np.mean([bool({*draw} & {*row}) for draw in draws]) for row in relevant])
    assert recall_by_chance(relevant, 5, k) == pytest.approx(expected)


def test_r_precision_of_a_good_a_blind_and_a_constant_judge():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2000, 16))
    assert r_precision(images, images + 0.01 * rng.normal(size=images.shape), 100).all()
    blind = r_precision(images, rng.normal(size=images.shape), 10)
    assert 0.08 < blind.mean() < 0.12  # 1 sur 10, à 3 écarts-types
    assert not r_precision(np.ones((50, 4)), np.ones((50, 4)), 10).any()


def test_r_precision_draws_other_texts_than_the_right_one():
    # De deux textes, le seul faux est l'autre : l'image 0 préfère le sien, l'image 1 celui de l'image 0.
    assert r_precision(directions(0, 10), directions(0, 90), 2).tolist() == [True, False]
    for candidates in (1, 3):
        with pytest.raises(MinidalleError, match="de 2 à 2"):
            r_precision(directions(0, 10), directions(0, 90), candidates)


def test_r_precision_depends_on_its_seed_alone():
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 200, 3))
    assert (r_precision(*pair, 5, seed=1) == r_precision(*pair, 5, seed=1)).all()
    assert (r_precision(*pair, 5, seed=1) != r_precision(*pair, 5, seed=2)).any()


def test_zero_shot_picks_the_closest_class():
    assert zero_shot(directions(5, 80), directions(90, 0)).argmax(1).tolist() == [1, 0]


def test_ensembling_averages_directions_not_lengths():
    # Deux tournures ; celle de 40°, bien plus longue, ne doit pas peser davantage.
    long = 100 * directions(40, 90)
    prompts = np.stack([directions(0, 90), long])
    assert zero_shot(directions(20), prompts)[0] == pytest.approx([1, np.cos(np.deg2rad(70))])


# --- relations


def test_visor_is_that_of_its_definition():
    present = [[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]
    right = [[1, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0]]  # juste sans les objets : ne compte pas
    found = visor(present, right)
    assert found.objects == pytest.approx(6 / 12) and found.unconditional == pytest.approx(5 / 12)
    assert found.conditional == pytest.approx(5 / 6) == pytest.approx(found.unconditional / found.objects)
    assert found.at_least == pytest.approx((2 / 3, 2 / 3, 1 / 3, 0))


def test_visor_without_any_object_has_no_conditional():
    assert visor(np.zeros((3, 2)), np.zeros((3, 2))) == (0, 0, None, (0, 0))


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_visor_falls_with_k_and_its_mean_is_the_unconditional(seed, k):
    rng = np.random.default_rng(seed)
    present = rng.random((20, k)) < 0.7
    found = visor(present, present & (rng.random((20, k)) < 0.5))
    assert list(found.at_least) == sorted(found.at_least, reverse=True)
    assert np.mean(found.at_least) == pytest.approx(found.unconditional)
    assert found.unconditional <= found.objects


@pytest.mark.parametrize(
    ("present", "right"), [([[1]], [[1, 0]]), ([1, 0], [1, 0]), (np.zeros((0, 4)), np.zeros((0, 4)))]
)
def test_visor_wants_two_tables(present, right):
    with pytest.raises(MinidalleError, match="mêmes demandes"):
        visor(present, right)
