"""VAE : tirage, divergence, vraisemblance, perte et sa montée, interface."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from minidalle.errors import MinidalleError
from minidalle.models.vae import VAE, VAEConfig, gaussian_kl, gaussian_nll, reparametrize

TINY = {"size": 8, "channels": (6, 8), "blocks": 0, "code_dim": 3, "beta": 1.0, "beta_warmup": 0}


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return VAE(VAEConfig(**TINY | options))


def laws(n, dim, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(2, n, dim, generator=generator, dtype=dtype)


# --- tirage ---


def test_draws_follow_the_law():
    mean, log_variance = torch.tensor([1.0, -3.0, 0.0]), torch.tensor([0.0, 2.0, -4.0])
    n = 20_000
    z = reparametrize(mean.expand(n, 3), log_variance.expand(n, 3), torch.Generator().manual_seed(0))
    sigma = (log_variance / 2).exp()
    # Cinq erreurs-types : la moyenne et l'écart-type d'un échantillon de n.
    assert ((z.mean(0) - mean).abs() < 5 * sigma / n**0.5).all()
    assert ((z.std(0) / sigma - 1).abs() < 5 / (2 * n) ** 0.5).all()


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 999))
def test_gradient_passes_beside_the_draw(n, dim, seed):
    mean, log_variance = (t.requires_grad_() for t in laws(n, dim, seed))
    z = reparametrize(mean, log_variance, torch.Generator().manual_seed(seed))
    noise = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    weights = torch.randn(n, dim)
    by_mean, by_log_variance = torch.autograd.grad((z * weights).sum(), (mean, log_variance))
    assert torch.equal(by_mean, weights)
    expected = weights * noise * (log_variance / 2).exp() / 2
    assert torch.allclose(by_log_variance, expected, rtol=1e-4, atol=1e-6)


def test_the_generator_decides_of_the_draw():
    law = laws(2, 3, 0)
    first, again = (reparametrize(*law, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, reparametrize(*law, torch.Generator().manual_seed(8)))


# --- les deux termes ---


@given(st.integers(1, 6), st.integers(1, 90), st.integers(0, 999))
def test_kl_is_that_of_torch_distributions(n, dim, seed):
    mean, log_variance = laws(n, dim, seed)
    peer = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    kl = gaussian_kl(mean, log_variance)
    assert kl.shape == (n,) and (kl >= 0).all()
    assert torch.allclose(kl, peer, rtol=1e-5, atol=1e-5)


def test_kl_is_null_for_the_prior_and_only_there():
    zeros = torch.zeros(1, 4)
    assert gaussian_kl(zeros, zeros) == 0
    for shift in (-1e-2, 1e-2):
        assert gaussian_kl(zeros + shift, zeros) > 0 and gaussian_kl(zeros, zeros + shift) > 0


@given(st.integers(1, 3), st.integers(1, 4), st.floats(-4, 2), st.integers(0, 999))
def test_likelihood_is_that_of_torch_distributions(n, side, log_sigma, seed):
    torch.manual_seed(seed)
    painted, images = torch.rand(2, n, 3, side, side)
    log_sigma = torch.tensor(log_sigma)
    peer = -Independent(Normal(painted, log_sigma.exp()), 3).log_prob(images)
    assert torch.allclose(gaussian_nll(painted, images, log_sigma), peer, rtol=1e-4, atol=1e-4)


def test_best_sigma_is_the_error():
    painted, images = torch.rand(2, 4, 3, 5, 5, dtype=torch.float64)
    log_sigma = ((painted - images).square().mean().log() / 2).requires_grad_()
    gaussian_nll(painted, images, log_sigma).sum().backward()
    assert abs(log_sigma.grad) < 1e-9


def test_gradients():
    mean, log_variance = (t.requires_grad_() for t in laws(2, 3, 0, torch.float64))
    assert torch.autograd.gradcheck(gaussian_kl, (mean, log_variance))

    def draw(mean, log_variance):
        return reparametrize(mean, log_variance, torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(draw, (mean, log_variance))
    painted, images = torch.rand(2, 2, 3, 2, 2, dtype=torch.float64)
    log_sigma = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gaussian_nll, (painted.requires_grad_(), images, log_sigma))


# --- perte ---


def test_at_beta_one_the_loss_is_minus_the_elbo_per_number():
    model, images = tiny().eval(), torch.rand(5, 3, 8, 8)
    torch.manual_seed(3)
    losses = model.loss(images)
    elbo = model.elbo(images, torch.Generator().manual_seed(3))
    assert elbo.shape == (5,)
    assert torch.allclose(losses["loss"], -elbo.mean() / 192, atol=1e-6)
    assert torch.allclose(losses["reconstruction"] + losses["kl"], -elbo.mean(), rtol=1e-5)


def test_the_elbo_averages_to_a_bound_of_the_exact_likelihood():
    """Un décodeur affine dont on connaît p(x) : N(b, W Wᵀ + σ_x² I)."""
    model = tiny(code_dim=2).eval()
    weights, bias = 0.3 * torch.randn(192, 2), torch.rand(192)
    model.decoder = torch.nn.Sequential(torch.nn.Linear(2, 192), torch.nn.Unflatten(1, (3, 8, 8)))
    with torch.no_grad():
        model.decoder[0].weight.copy_(2 * weights)  # _paint divise par deux
        model.decoder[0].bias.copy_(2 * bias - 1)
    sigma2 = (2 * model.log_sigma).exp()
    covariance = weights @ weights.T + sigma2 * torch.eye(192)
    x = torch.rand(1, 3, 8, 8)
    exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x.flatten(1))
    elbo = model.elbo(x.expand(4000, 3, 8, 8), torch.Generator().manual_seed(0))
    assert elbo.mean() + 5 * elbo.std() / 4000**0.5 < exact


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_beta_weighs_the_kl(beta):
    images = torch.rand(4, 3, 8, 8)
    losses = tiny(beta=beta).eval().loss(images)
    expected = (losses["reconstruction"] + beta * losses["kl"]) / 192
    assert torch.allclose(losses["loss"], expected, atol=1e-6)


def test_the_kl_weight_rises_from_zero_in_training_only():
    model, images = tiny(beta=6.0, beta_warmup=4), torch.rand(4, 3, 8, 8)
    for expected in (0, 1.5, 3, 4.5, 6, 6):
        losses = model.train().loss(images)
        weight = (losses["loss"] * 192 - losses["reconstruction"]) / losses["kl"]
        assert weight.item() == pytest.approx(expected, abs=1e-2)
        before = model.step.clone()
        losses = model.eval().loss(images)
        weight = (losses["loss"] * 192 - losses["reconstruction"]) / losses["kl"]
        assert weight.item() == pytest.approx(6, abs=1e-2) and model.step == before
    assert model.step == 6 and model.step.dtype == torch.int64


def test_free_bits_are_given_to_each_dimension():
    images = torch.rand(6, 3, 8, 8)
    model = tiny(free_bits=0.2).eval()
    mean, log_variance = model.posterior(images)
    by_dimension = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean(0)
    model.config = VAEConfig(**TINY | {"free_bits": by_dimension.median().item()})
    losses = model.loss(images)
    paid = by_dimension.clamp_min(by_dimension.median()).sum()
    assert torch.allclose(losses["loss"] * 192 - losses["reconstruction"], paid, atol=1e-3)
    assert torch.allclose(losses["kl"], by_dimension.sum(), atol=1e-5)


def test_active_counts_the_dimensions_in_use():
    model = tiny(code_dim=4).eval()
    last = model.encoder.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.bias[0], last.bias[5] = 1.0, -3.0  # μ de la première, ln σ² de la deuxième
        last.bias[2] = 0.1  # ½ · 0,01 nat : pas assez
    losses = model.loss(torch.rand(3, 3, 8, 8))
    assert losses["active"] == 2
    expected = 0.5 + (math.exp(-3) - 1 + 3) / 2 + 0.005
    assert losses["kl"].item() == pytest.approx(expected, abs=1e-5)


def test_losses_are_detached_scalars_but_the_first():
    losses = tiny().train().loss(torch.rand(2, 3, 8, 8))
    assert set(losses) == {"loss", "reconstruction", "kl", "active", "sigma"}
    assert all(value.ndim == 0 for value in losses.values())
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]


def test_every_part_learns_and_the_loss_falls():
    model = tiny(code_dim=4, beta_warmup=20).train()
    images = torch.rand(8, 3, 1, 1).expand(8, 3, 8, 8)  # huit aplats
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    history = []
    for _ in range(80):
        losses = model.loss(images)
        optimizer.zero_grad()
        losses["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
        optimizer.step()
        history.append(losses["reconstruction"].item())
    assert history[-1] < history[0] - 100
    assert losses["sigma"] < 0.2  # σ_x suit l'erreur : il part de e^(−1,5), soit 0,22


def test_mixed_precision_gives_a_close_loss():
    model, images = tiny().eval(), torch.rand(4, 3, 8, 8)
    torch.manual_seed(0)
    exact = model.loss(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.loss(images)
    assert mixed["loss"].dtype == torch.float32
    assert torch.allclose(mixed["loss"], exact["loss"], atol=2e-2)
    assert torch.allclose(mixed["kl"], exact["kl"], rtol=5e-2)


def test_extreme_variances_stay_finite():
    model = tiny().train()
    with torch.no_grad():
        model.encoder.layers[-1].bias[3:] = 500
    assert model.loss(torch.rand(2, 3, 8, 8))["loss"].isfinite()


# --- interface ---


@given(st.integers(0, 4), st.integers(1, 3), st.integers(1, 5))
def test_shapes(batch, scale, dim):
    size = 4 * scale
    model = tiny(size=size, code_dim=dim).eval()
    images = torch.rand(batch, 3, size, size)
    codes = model.encode(images)
    assert codes.shape == (batch, dim) and codes.dtype == torch.float32 and not codes.requires_grad
    painted = model.decode(10 * codes)
    assert painted.shape == images.shape and not painted.requires_grad
    assert not batch or 0 <= painted.min() <= painted.max() <= 1
    mean, log_variance = model.posterior(images)
    assert torch.equal(mean, codes) and log_variance.shape == mean.shape


def test_an_image_does_not_depend_on_its_batch():
    model, images = tiny().eval(), torch.rand(5, 3, 8, 8)
    apart = torch.cat([model.encode(i[None]) for i in images])
    assert torch.allclose(model.encode(images), apart, atol=1e-6)
    painted = torch.cat([model.decode(c[None]) for c in apart])
    assert torch.allclose(model.decode(apart), painted, atol=1e-6)


def test_forward_repaints_a_draw_of_the_posterior():
    model, images = tiny().eval(), torch.rand(2, 3, 8, 8)
    painted, mean, log_variance = model(images, torch.Generator().manual_seed(4))
    z = reparametrize(*model.posterior(images), torch.Generator().manual_seed(4))
    assert torch.equal(mean, model.encode(images)) and torch.equal(log_variance, model.posterior(images)[1])
    assert torch.allclose(painted.clamp(0, 1), model.decode(z), atol=1e-6)


def test_samples_decode_draws_of_the_prior():
    model = tiny().eval()
    drawn = model.sample(5, torch.Generator().manual_seed(2))
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(drawn, model.decode(z)) and not drawn.requires_grad
    assert model.sample(0).shape == (0, 3, 8, 8)
    with pytest.raises(MinidalleError, match="positif"):
        model.sample(-1)


@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (1, 3, 8, 12), (1, 1, 8, 8), (3, 8, 8)])
def test_wrong_images_are_refused(shape):
    for method in (tiny().encode, tiny().loss):
        with pytest.raises(MinidalleError):
            method(torch.rand(shape))


def test_pixels_that_are_not_numbers_are_refused():
    for value in (float("nan"), float("inf")):
        images = torch.rand(2, 3, 8, 8)
        images[1, 2, 3, 4] = value
        with pytest.raises(MinidalleError, match="finis"):
            tiny().loss(images)


def test_an_empty_batch_has_no_loss():
    with pytest.raises(MinidalleError, match="vide"):
        tiny().loss(torch.rand(0, 3, 8, 8))


@pytest.mark.parametrize("shape", [(2, 4), (3,), (1, 3, 1)])
def test_wrong_codes_are_refused(shape):
    with pytest.raises(MinidalleError, match=r"\(B, 3\)"):
        tiny().decode(torch.zeros(shape))


@pytest.mark.parametrize(
    "options",
    [
        {"code_dim": 0},
        {"channels": ()},
        {"channels": (0,)},
        {"blocks": -1},
        {"beta": -1.0},
        {"beta": math.nan},
        {"beta_warmup": -1},
        {"free_bits": -0.1},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(MinidalleError):
        VAEConfig(**TINY | options)


def test_impossible_side_is_refused():
    with pytest.raises(MinidalleError, match="multiple de 4"):
        tiny(size=10)
