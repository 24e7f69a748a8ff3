"""Auto-encodeur : codes coupés, réseau, cas linéaire."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from minidalle.errors import MinidalleError
from minidalle.models.autoencoder import (
    AutoEncoder,
    AutoEncoderConfig,
    LinearAutoEncoder,
    nested_lengths,
    truncate,
)
from minidalle.models.pca import principal_axes

TINY = {"size": 8, "channels": (8, 12), "blocks": 1, "code_dim": 6}


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return AutoEncoder(AutoEncoderConfig(**TINY | options))


def images(n=3, side=8):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


# --- codes coupés ---


@given(st.integers(0, 5), st.integers(1, 9), st.data())
def test_truncate_keeps_the_first_coordinates(n, k, data):
    codes = torch.rand(n, k) + 1
    lengths = data.draw(st.lists(st.integers(0, k), min_size=n, max_size=n))
    cut = truncate(codes, torch.tensor(lengths, dtype=torch.int64))
    assert cut.shape == codes.shape
    for row, before, m in zip(cut, codes, lengths, strict=True):
        assert torch.equal(row[:m], before[:m]) and not row[m:].any()
    assert torch.equal(truncate(codes, k), codes) and not truncate(codes, 0).any()


def test_truncated_coordinates_receive_no_gradient():
    codes = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([0, 2, 3, 5])
    truncate(codes, lengths).sum().backward()
    assert torch.equal(codes.grad.sum(1), lengths.double())
    assert torch.autograd.gradcheck(lambda c: truncate(c, lengths), codes)


def test_lengths_are_whole_half_of_the_time_and_log_uniform_otherwise():
    n, k = 200_000, 15
    lengths = nested_lengths(n, k, torch.Generator().manual_seed(0))
    assert lengths.shape == (n,) and lengths.dtype == torch.int64
    assert lengths.min() == 1 and lengths.max() == k
    # k + 1 = 16 = 2⁴ : chacune des tranches 1, 2–3, 4–7 et 8–15 a un quart des codes coupés.
    shares = [((lengths >= a) & (lengths < 2 * a)).float().mean().item() for a in (1, 2, 4, 8)]
    assert shares == pytest.approx([1 / 8, 1 / 8, 1 / 8, 1 / 8 + 1 / 2], abs=0.005)


def test_lengths_follow_their_generator():
    a, b = (nested_lengths(50, 9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(nested_lengths(5, 1), torch.ones(5, dtype=torch.int64))


@pytest.mark.parametrize("length", [-1, 7])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(MinidalleError, match="de 0 à 6"):
        truncate(torch.zeros(2, 6), length)


# --- modèle entier ---


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 7))
def test_shapes(batch, rows, k):
    model = tiny(size=4 * rows, code_dim=k).eval()
    codes = model.encode(images(batch, 4 * rows))
    assert codes.shape == (batch, k) and codes.dtype == torch.float32
    painted = model.decode(codes * 100)
    assert painted.shape == (batch, 3, 4 * rows, 4 * rows)
    assert ((painted >= 0) & (painted <= 1)).all()


def test_codes_are_cut_in_training_only():
    model = tiny(code_dim=40).train()
    x = images(16)
    whole = model._paint(model.encode(x))
    torch.manual_seed(1)
    lengths = nested_lengths(16, 40)
    torch.manual_seed(1)
    painted = model(x)
    assert torch.allclose(painted, model._paint(truncate(model.encode(x), lengths)), atol=1e-6)
    assert not torch.allclose(painted, whole, atol=1e-5)
    assert torch.allclose(model.eval()(x), whole, atol=1e-6)
    assert torch.allclose(tiny(code_dim=40, nested=False).train()(x), whole, atol=1e-6)


def test_the_loss_is_the_mean_squared_error_between_images():
    model = tiny().eval()
    x = images()
    losses = model.loss(x)
    assert losses.keys() == {"loss"}
    assert torch.allclose(losses["loss"], (model(x) - x).square().mean())


def test_encode_and_decode_leave_no_gradient():
    model = tiny()
    assert not model.encode(images()).requires_grad and not model.decode(torch.zeros(1, 6)).requires_grad


def test_decode_of_encode_is_the_reconstruction():
    model = tiny().eval()
    x = images()
    assert torch.allclose(model.decode(model.encode(x)), model(x).clamp(0, 1), atol=1e-6)


def test_an_image_does_not_depend_on_its_batch():
    model = tiny().eval()
    x = images(5)
    assert torch.allclose(model.encode(x), torch.cat([model.encode(i[None]) for i in x]), atol=1e-5)


def test_black_and_white_are_opposite_for_the_network():
    """Le réseau voit les pixels de −1 à 1 : un gris moyen vaut zéro."""
    model = tiny().eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.encode(torch.stack([torch.full((3, 8, 8), v) for v in (0.0, 0.5, 1.0)]))
    assert torch.allclose(seen[0].mean((1, 2, 3)), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6)


def test_it_learns_and_nesting_puts_the_essential_first():
    """Huit aplats gris : un seul nombre suffit, mais seul le modèle aux codes coupés le met en tête."""
    x = images(8, 1)[:, :1].expand(8, 3, 8, 8)
    errors = {}
    for nested in (True, False):
        model = tiny(code_dim=8, nested=nested).train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        torch.manual_seed(0)
        for step in range(400):
            loss = model.loss(x)["loss"]
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                assert all(p.grad is not None and p.grad.any() for p in model.parameters())
            optimizer.step()
        model.eval()
        codes = model.encode(x)
        cuts = {m: (model.decode(truncate(codes, m)) - x).square().mean() / x.var() for m in (0, 1, 8)}
        errors[nested] = {m: error.item() for m, error in cuts.items()}
    assert errors[True][8] < 0.1 and errors[False][8] < 0.1
    assert errors[True][1] < 0.1 < 0.5 < min(errors[True][0], errors[False][1])


def test_mixed_precision_gives_a_full_precision_loss():
    model = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(images())["loss"]
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_wrong_images_and_codes_are_refused():
    model = tiny()
    with pytest.raises(MinidalleError, match="redimensionner"):
        model.encode(images(side=12))
    with pytest.raises(MinidalleError, match="finis"):
        model.encode(images() / 0)
    with pytest.raises(MinidalleError, match="Lot vide"):
        model.loss(images(0))
    for codes in (torch.zeros(2, 5), torch.zeros(6)):
        with pytest.raises(MinidalleError, match=r"\(B, 6\)"):
            model.decode(codes)


@pytest.mark.parametrize("options", [{"code_dim": 0}, {"channels": ()}, {"channels": (0,)}, {"blocks": -1}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(MinidalleError):
        AutoEncoderConfig(**options)
    with pytest.raises(MinidalleError, match="multiple de 4"):
        tiny(size=10)


# --- cas linéaire ---


def cloud(n=200, d=10):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator) * torch.linspace(2, 0.2, d)
    x = x @ torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    return x - x.mean(0)


def test_the_linear_autoencoder_finds_the_principal_subspace():
    x = cloud()
    axes, _ = principal_axes(x, 3)
    torch.manual_seed(0)
    model = LinearAutoEncoder(10, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, tolerance_change=0, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        loss = model.loss(x)["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    painter = model.decoder.weight.detach()
    assert subspace_angles(painter.numpy(), axes.T.numpy()).max() < 1e-2
    expected = (x - x @ axes.T @ axes).square().mean()
    assert torch.allclose(model.loss(x)["loss"], expected, rtol=1e-4)
    # Les axes, eux, sont quelconques : c'est le sous-espace que la perte détermine.
    cosines = (painter / painter.norm(dim=0)).T @ axes.T
    assert cosines.abs().max(1).values.min() < 0.95


def test_the_linear_loss_has_the_right_gradient_and_no_bias():
    torch.manual_seed(0)
    model = LinearAutoEncoder(4, 2).double()
    names = [name for name, _ in model.named_parameters()]
    assert names == ["encoder.weight", "decoder.weight"]
    x = torch.randn(3, 4, dtype=torch.float64)

    def loss(*weights):
        call = torch.func.functional_call
        painted = call(model, dict(zip(names, weights, strict=True)), (x,))
        return (painted - x).square().mean()

    assert torch.allclose(model.loss(x)["loss"], loss(*model.parameters()))
    assert torch.autograd.gradcheck(loss, tuple(model.parameters()))
    assert not model(torch.zeros(1, 4, dtype=torch.float64)).any()


@pytest.mark.parametrize("code_dim", [0, 5])
def test_impossible_linear_sizes_are_refused(code_dim):
    with pytest.raises(MinidalleError, match="de 1 à 4"):
        LinearAutoEncoder(4, code_dim)
