"""ACP : axes, projection, formes, parité."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.pca import PCA, PCAConfig, principal_axes

SIDE = 4  # 48 nombres par image


def images(n, seed=0, side=SIDE):
    """Images dont les pixels varient ensemble, comme dans une photo : quelques directions dominent."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3 * side**2, 3 * side**2, generator=generator) * torch.linspace(1, 0.05, 3 * side**2)
    factors = torch.randn(n, 3 * side**2, generator=generator)
    return (0.5 + 0.02 * factors @ mixing.T).view(n, 3, side, side)


def centred(n, d, seed=0, rank=None):
    generator = torch.Generator().manual_seed(seed)
    rank = rank or min(n, d)
    x = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(3, 0.5, rank, dtype=torch.float64)
    x = x @ torch.randn(rank, d, generator=generator, dtype=torch.float64)
    return x - x.mean(0)


# --- axes principaux ---


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 99), st.data())
def test_axes_are_orthonormal_ordered_and_signed(n, d, seed, data):
    k = data.draw(st.integers(1, min(n, d)))
    axes, scales = principal_axes(centred(n, d, seed), k)
    assert axes.shape == (k, d) and scales.shape == (k,)
    assert torch.allclose(axes @ axes.T, torch.eye(k, dtype=axes.dtype), atol=1e-9)
    assert (scales >= 0).all() and (scales.diff() <= 1e-6 * scales[0]).all()
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(200, 12), (12, 200)])
def test_scales_are_the_standard_deviations_along_the_axes(shape):
    x = centred(*shape)
    axes, scales = principal_axes(x, 8)
    codes = x @ axes.T
    assert torch.allclose(codes.std(0), scales, rtol=1e-6)
    assert torch.allclose(codes.T.cov(), torch.diag(scales**2), atol=1e-6)


def test_both_paths_agree():
    """Gram ou SVD : le chemin dépend de la forme, le résultat non."""
    x = centred(20, 12)
    wide = torch.cat([x, x.new_zeros(20, 30)], 1)  # 20 < 42 : par la matrice de Gram
    (tall_axes, tall_scales), (axes, scales) = principal_axes(x, 6), principal_axes(wide, 6)
    assert torch.allclose(axes[:, :12], tall_axes, atol=1e-8) and torch.allclose(scales, tall_scales)
    assert axes[:, 12:].abs().max() < 1e-9


def test_fewer_directions_than_axes_still_gives_orthonormal_axes():
    axes, scales = principal_axes(centred(9, 20, rank=3), 6)
    assert torch.allclose(axes @ axes.T, torch.eye(6, dtype=axes.dtype), atol=1e-9)
    assert (scales[3:] < 1e-6 * scales[0]).all()


# --- modèle ---


@pytest.mark.parametrize("n", [30, 200])
def test_parity_with_the_eigenvectors_of_the_covariance(n):
    x = images(n)
    flat = x.flatten(1).double().numpy()
    mean = flat.mean(0)
    _, vectors = np.linalg.eigh(np.cov(flat.T))
    top = vectors[:, ::-1][:, :10]
    expected = mean + (flat - mean) @ top @ top.T
    got = PCA.fit(x, 10)(x).flatten(1)
    assert np.abs(got.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("n", [30, 200])
def test_parity_with_scikit_learn(n):
    peer = pytest.importorskip("sklearn.decomposition").PCA(10, svd_solver="full")
    x = images(n)
    flat = x.flatten(1).double().numpy()
    codes = peer.fit_transform(flat)
    model = PCA.fit(x, 10)
    assert np.abs(model(x).flatten(1).numpy() - peer.inverse_transform(codes)).max() < 1e-5
    assert np.abs(np.abs(model.encode(x).numpy()) - np.abs(codes)).max() < 1e-5
    assert np.allclose(model.scales.numpy(), peer.explained_variance_**0.5, atol=1e-5)


def test_no_other_subspace_does_better():
    x = images(60)
    model = PCA.fit(x, 5)
    flat = x.flatten(1) - model.mean
    best = model.loss(x)["loss"]
    for seed in range(20):
        noise = torch.randn(5, 48, generator=torch.Generator().manual_seed(seed))
        other = torch.linalg.qr((model.components + 0.1 * noise).T).Q
        assert (flat - flat @ other @ other.T).square().mean() > best


def test_the_loss_is_the_variance_left_aside():
    x = images(60)
    total = PCA.fit(x, 48).scales.square().sum()
    model = PCA.fit(x, 5)
    left = (total - model.scales.square().sum()) * 59 / 60 / 48
    assert model.loss(x)["loss"] == pytest.approx(left.item(), rel=1e-4)
    assert model.loss(x).keys() == {"loss"}


def test_all_the_components_rebuild_the_images_exactly():
    x = images(60).clamp(0, 1)
    model = PCA.fit(x, 48)
    assert torch.allclose(model.decode(model.encode(x)), x, atol=1e-5)


def test_the_mean_image_has_a_null_code():
    x = images(60)
    model = PCA.fit(x, 5)
    assert torch.allclose(model.encode(x.mean(0, keepdim=True)), torch.zeros(1, 5), atol=1e-5)
    assert torch.allclose(model.encode(x).mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(model.decode(torch.zeros(1, 5))[0], x.mean(0).clamp(0, 1), atol=1e-6)


@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 6))
def test_shapes(batch, side, k):
    k = min(k, 3 * side**2)
    model = PCA.fit(images(k + 2, side=side), k)
    assert model.config == PCAConfig(side, k)
    codes = model.encode(images(batch, side=side) * 9 - 4)
    painted = model.decode(codes)
    assert codes.shape == (batch, k) and painted.shape == (batch, 3, side, side)
    assert ((painted >= 0) & (painted <= 1)).all()


def test_an_image_does_not_depend_on_its_batch():
    x = images(40)
    model = PCA.fit(x, 5)
    assert torch.allclose(model.encode(x[:1]), model.encode(x)[:1], atol=1e-6)


def test_fit_is_deterministic_and_survives_a_save(tmp_path):
    from minidalle.checkpoints import load_model, save_model

    model = PCA.fit(images(40), 5)
    again = PCA.fit(images(40), 5).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in model.state_dict().items())
    save_model(tmp_path / "acp.safetensors", model)
    loaded, _ = load_model(tmp_path / "acp.safetensors", "pca")
    assert torch.equal(loaded.encode(images(3)), model.encode(images(3)))


# --- refus ---


def test_fit_refuses_what_it_cannot_fit():
    with pytest.raises(MinidalleError, match="5 images pour 5 composantes"):
        PCA.fit(images(5), 5)
    with pytest.raises(MinidalleError, match="Lot vide"):
        PCA.fit(images(5)[:0], 5)
    with pytest.raises(MinidalleError, match="carré"):
        PCA.fit(torch.rand(9, 3, 4, 8), 5)
    with pytest.raises(MinidalleError, match="finis"):
        PCA.fit(images(9) / 0, 5)
    with pytest.raises(MinidalleError, match="forme"):
        PCA.fit(torch.rand(9, 1, 4, 4), 5)


def test_an_unfitted_pca_says_so():
    model = PCA(PCAConfig(SIDE, 5))
    for call in (lambda: model.encode(images(2)), lambda: model.decode(torch.zeros(2, 5))):
        with pytest.raises(MinidalleError, match=r"PCA\.fit"):
            call()


def test_wrong_images_and_codes_are_refused():
    model = PCA.fit(images(9), 5)
    with pytest.raises(MinidalleError, match="redimensionner"):
        model.encode(images(2, side=5))
    with pytest.raises(MinidalleError, match="Lot vide"):
        model.loss(images(2)[:0])
    for codes in (torch.zeros(2, 4), torch.zeros(5)):
        with pytest.raises(MinidalleError, match=r"\(B, 5\)"):
            model.decode(codes)


@pytest.mark.parametrize("options", [{"size": 0}, {"code_dim": 0}, {"size": 2, "code_dim": 13}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(MinidalleError, match="composantes"):
        PCAConfig(**options)
