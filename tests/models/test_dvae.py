"""dVAE : relaxation, vraisemblance, divergence, calendriers, architecture, formes."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.distributions import Categorical, Laplace, SigmoidTransform, TransformedDistribution, kl_divergence
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.dvae import (
    DVAE,
    DVAEConfig,
    categorical_kl,
    gumbel_softmax,
    logit_laplace_nll,
    map_pixels,
    paint,
    unmap_pixels,
    usage_gap,
)

TINY = DVAEConfig(hidden=8, groups=3, codes=16, code_dim=8, kl_steps=4, anneal_steps=8)
SEEDS = st.integers(0, 999)


def tiny(config=TINY, seed=0):
    torch.manual_seed(seed)
    return DVAE(config)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- pixels et vraisemblance ---


@given(SEEDS)
def test_pixels_come_back(seed):
    images = torch.rand(2, 3, 4, 4, generator=seeded(seed))
    mapped = map_pixels(images)
    assert 0.1 <= mapped.min() <= mapped.max() <= 0.9
    assert torch.allclose(unmap_pixels(mapped), images, atol=1e-6)


def test_pixels_are_bounded_on_the_way_back():
    assert torch.equal(unmap_pixels(torch.tensor([0.0, 0.05, 0.95, 1.0])), torch.tensor([0.0, 0.0, 1.0, 1.0]))


@given(SEEDS, st.floats(-3, 2))
def test_likelihood_is_that_of_the_sigmoid_of_a_laplace_variable(seed, log_scale):
    generator = seeded(seed)
    x = map_pixels(torch.rand(5, 3, generator=generator, dtype=torch.float64))
    mean = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    scale = torch.full_like(mean, log_scale)
    law = TransformedDistribution(Laplace(mean, scale.exp()), SigmoidTransform())
    assert torch.allclose(logit_laplace_nll(x, mean, scale), -law.log_prob(x), atol=1e-9)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.5, -1.0), (-2.0, -0.5)])
def test_density_integrates_to_one(mean, log_scale):
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:-1]
    nll = logit_laplace_nll(x, torch.full_like(x, mean), torch.full_like(x, log_scale))
    assert float(torch.trapezoid((-nll).exp(), x)) == pytest.approx(1, abs=1e-3)


def test_likelihood_keeps_32_bits_under_autocast():
    x = map_pixels(torch.rand(100))
    mean, log_scale = torch.randn(100), torch.randn(100) - 3
    with torch.autocast("cpu", torch.bfloat16):
        mixed = logit_laplace_nll(x, mean, log_scale)
        coarse = logit_laplace_nll(x.bfloat16(), mean.bfloat16(), log_scale.bfloat16())
    assert torch.allclose(mixed, logit_laplace_nll(x, mean, log_scale)) and mixed.dtype == torch.float32
    assert coarse.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        stats, logits = tiny()(torch.rand(1, 3, 8, 8), temperature=1.0)
    assert stats.dtype == logits.dtype == torch.float32


# --- divergence à la loi uniforme ---


def test_uniform_costs_nothing_and_certainty_costs_ln_k():
    assert categorical_kl(torch.full((2, 3, 10), 4.2)).abs().max() < 1e-6
    certain = F.one_hot(torch.tensor([3, 0]), 10).float()
    assert torch.allclose(categorical_kl(certain.log()), torch.full((2,), math.log(10)))
    assert torch.allclose(categorical_kl(1e4 * certain), torch.full((2,), math.log(10)))


@given(st.integers(1, 30), SEEDS, st.floats(0.01, 30))
def test_divergence_is_that_of_torch_and_stays_in_its_bounds(codes, seed, spread):
    logits = spread * torch.randn(4, codes, generator=seeded(seed), dtype=torch.float64)
    kl = categorical_kl(logits)
    uniform = Categorical(logits=torch.zeros(codes, dtype=torch.float64))
    assert torch.allclose(kl, kl_divergence(Categorical(logits=logits), uniform), atol=1e-9)
    assert (kl > -1e-9).all() and (kl < math.log(codes) + 1e-9).all()


def test_usage_gap_is_null_when_the_codes_share_the_work_and_ln_k_when_one_does_it_all():
    everyone = 1e4 * torch.eye(8).view(2, 4, 8)  # chaque case est sûre d'elle, toutes d'un autre code
    assert usage_gap(everyone).abs() < 1e-5
    assert usage_gap(torch.zeros(3, 8)).abs() < 1e-5
    alone = 1e4 * torch.eye(8)[torch.full((2, 4), 5)]
    assert float(usage_gap(alone)) == pytest.approx(math.log(8))


@given(SEEDS, st.floats(0.1, 10))
def test_divergence_less_usage_gap_is_the_mutual_information(seed, spread):
    logits = spread * torch.randn(6, 5, generator=seeded(seed), dtype=torch.float64)
    joint = logits.softmax(-1) / 6  # loi d'un couple (case, code), la case étant tirée au hasard
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    information = (joint * (joint / independent).log()).sum()
    assert torch.allclose(categorical_kl(logits).mean() - usage_gap(logits), information, atol=1e-9)


# --- relaxation ---


@given(st.integers(1, 12), SEEDS, st.floats(0.05, 20))
def test_relaxed_samples_live_on_the_simplex(codes, seed, temperature):
    logits = torch.randn(3, 4, codes, generator=seeded(seed))
    weights = gumbel_softmax(logits, temperature, seeded(seed))
    assert weights.shape == logits.shape and weights.min() >= 0
    assert torch.allclose(weights.sum(-1), torch.ones(3, 4), atol=1e-5)


def test_same_noise_same_numbers_as_torch():
    logits = torch.randn(50, 7, generator=seeded(0))
    for temperature in (0.1, 1.0, 3.0):
        torch.manual_seed(1)
        noise = -torch.empty_like(logits).exponential_().log()
        torch.manual_seed(1)
        theirs = F.gumbel_softmax(logits, tau=temperature)
        assert (gumbel_softmax(logits, temperature, noise=noise) - theirs).abs().max() < 1e-6


def test_gumbel_max_draws_from_the_softmax():
    """Théorème de Gumbel-max : le plus grand poids tombe sur k avec la probabilité q_k, à toute température."""
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    n = 40_000
    for temperature in (0.2, 5.0):
        picks = gumbel_softmax(law.log().expand(n, 4), temperature, seeded(3)).argmax(-1)
        shares = torch.bincount(picks, minlength=4) / n
        assert ((shares - law).abs() < 5 * (law * (1 - law) / n).sqrt()).all()


def test_samples_go_from_the_centre_to_the_corners_as_the_temperature_falls():
    logits = torch.randn(500, 5, generator=seeded(0))
    noise = -torch.rand(500, 5, generator=seeded(1)).log().neg().log()
    largest = [
        gumbel_softmax(logits, temperature, noise=noise).max(-1).values
        for temperature in (100.0, 2.0, 1.0, 0.5, 1 / 16, 1e-6)
    ]
    assert largest[0].max() < 0.25 and largest[-1].min() > 0.999
    assert all((warm <= cold + 1e-6).all() for warm, cold in itertools.pairwise(largest))


def test_a_generator_makes_the_noise_repeatable():
    logits = torch.zeros(4, 9)
    state = torch.get_rng_state()
    assert torch.equal(gumbel_softmax(logits, 1.0, seeded(5)), gumbel_softmax(logits, 1.0, seeded(5)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(MinidalleError, match="strictement positive"):
        gumbel_softmax(torch.zeros(3), temperature)


# --- gradients, en double précision ---


def test_gradients():
    generator = seeded(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = map_pixels(torch.rand(2, 3, 2, 2, generator=generator, dtype=torch.float64))
    mean, log_scale, logits = draw(2, 3, 2, 2), draw(2, 3, 2, 2), draw(3, 5)
    for tensor in (mean, log_scale, logits):
        tensor.requires_grad_()
    noise = draw(3, 5)
    assert gradcheck(lambda m, s: logit_laplace_nll(x, m, s), (mean, log_scale))
    assert gradcheck(categorical_kl, (logits,))
    assert gradcheck(usage_gap, (logits,))
    for temperature in (0.5, 2.0):
        assert gradcheck(lambda a, t=temperature: gumbel_softmax(a, t, noise=noise), (logits,))


def test_an_impossible_code_leaves_the_gradient_finite():
    logits = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    (categorical_kl(logits) + gumbel_softmax(logits, 0.5, seeded(0)).square().sum()).backward()
    assert torch.isfinite(logits.grad).all()


# --- calendriers ---


def test_schedules():
    config = DVAEConfig(kl_weight=6.6, kl_steps=100, anneal_steps=1000)
    assert config.temperature(0) == 1 and config.beta(0) == 0
    assert config.temperature(500) == pytest.approx((1 + 1 / 16) / 2) and config.beta(50) == pytest.approx(
        3.3
    )
    assert config.temperature(1000) == config.temperature(9999) == 1 / 16
    assert config.beta(100) == config.beta(9999) == 6.6
    temperatures = [config.temperature(step) for step in range(1001)]
    assert all(a > b for a, b in itertools.pairwise(temperatures))
    steady = DVAEConfig(kl_weight=2, kl_steps=0, anneal_steps=0)
    assert steady.temperature(0) == 1 / 16 and steady.beta(0) == 2


def test_training_alone_counts_steps():
    model, images = tiny(), torch.rand(2, 3, 8, 8)
    for step in range(3):
        assert int(model.step) == step
        assert model.train().loss(images)["temperature"] == pytest.approx(TINY.temperature(step))
        model.eval().loss(images)
    assert "step" in model.state_dict()


# --- perte ---


def test_loss_is_the_negative_elbo_per_number():
    """À β = 1 et sans plancher, la perte est −ELBO / 3HW, somme pour somme."""
    model = tiny(DVAEConfig(8, 3, codes=16, code_dim=8, kl_weight=1, min_log_scale=-math.inf)).eval()
    images = torch.rand(2, 3, 8, 12)
    stats, logits = model(images)
    nll = logit_laplace_nll(map_pixels(images), stats[:, :3], stats[:, 3:]).flatten(1).sum(1)
    kl = categorical_kl(logits).flatten(1).sum(1)
    losses = model.loss(images)
    assert torch.allclose(losses["loss"], ((nll + kl) / (3 * 8 * 12)).mean(), atol=1e-6)
    assert torch.allclose(losses["reconstruction"], nll.mean() / (3 * 8 * 12), atol=1e-6)
    assert torch.allclose(losses["kl"], kl.mean() / 6, atol=1e-5)


def test_beta_follows_its_schedule_in_training_only():
    model, images = (
        tiny(DVAEConfig(8, 3, codes=16, code_dim=8, kl_weight=5, kl_steps=4)),
        torch.rand(2, 3, 8, 8),
    )

    def beta():
        losses = model.loss(images)
        return float((losses["loss"].detach() - losses["reconstruction"]) * 48 / losses["kl"])

    assert model.eval() and beta() == pytest.approx(5, rel=1e-3)
    model.train()
    assert [beta() for _ in range(6)] == pytest.approx([0, 0.732, 2.5, 4.268, 5, 5], abs=0.01)


def test_the_floor_keeps_flat_images_from_running_away():
    images = torch.zeros(1, 3, 8, 8)
    losses = []
    for floor in (-math.inf, -2.0):
        model = tiny(DVAEConfig(8, 3, codes=16, code_dim=8, min_log_scale=floor)).eval()
        with torch.no_grad():
            model.stats.weight.zero_()
            model.stats.bias[:3], model.stats.bias[3:] = math.log(0.1 / 0.9), -50.0
        losses.append(float(model.loss(images)["reconstruction"]))
    # ln 2b + ln x(1 − x) avec b au plancher.
    assert losses == pytest.approx([math.log(2) + b + math.log(0.09) for b in (-50, -2)], abs=1e-3)


def test_perplexity_counts_the_codes_of_the_batch():
    model = tiny().eval()
    with torch.no_grad():
        model.logits.weight.zero_()
    assert model.loss(torch.rand(2, 3, 8, 8))["perplexity"] == pytest.approx(1)
    model = tiny().eval()
    images = torch.rand(4, 3, 16, 16)
    shares = torch.bincount(model.encode(images).flatten(), minlength=16) / 64
    expected = torch.distributions.Categorical(shares).entropy().exp()
    assert torch.allclose(model.loss(images)["perplexity"], expected)


def test_every_part_learns_and_the_loss_falls():
    model = tiny(DVAEConfig(8, 2, codes=8, code_dim=8, kl_steps=4, anneal_steps=40)).train()
    images = torch.rand(8, 3, 1, 1, generator=seeded(0)).expand(8, 3, 4, 4)  # huit aplats
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(50):
        loss = model.loss(images)["loss"]
        optimizer.zero_grad()
        loss.backward()
        if step == 1:  # au pas 0, β est nul
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


def test_the_usage_gap_enters_the_loss_with_its_weight():
    images = torch.rand(2, 3, 8, 8)
    losses = []
    for weight in (0, 0.5):
        model = tiny(DVAEConfig(8, 3, codes=16, code_dim=8, usage_weight=weight)).eval()
        losses.append(model.loss(images))
    gap = losses[1]["usage"]
    assert gap > 0 and torch.allclose(gap, usage_gap(model(images)[1]))
    assert torch.allclose(losses[1]["loss"] - losses[0]["loss"], 0.5 * gap, atol=1e-6)


# --- mêmes réseaux que DALL·E ---


def copy_weights(theirs, *ours):
    """Copie dans nos modules les poids du paquet : les deux les déclarent dans le même ordre."""
    targets = [parameter for module in ours for parameter in module.parameters()]
    with torch.no_grad():
        for (name, source), target in zip(theirs.named_parameters(), targets, strict=True):
            assert source.shape == target.shape, name
            target.copy_(source)


@pytest.mark.parametrize("blocks", [1, 2])
def test_encoder_and_decoder_are_those_of_the_dall_e_package(blocks):
    peer_encoder = pytest.importorskip("dall_e.encoder")
    peer_decoder = pytest.importorskip("dall_e.decoder")
    torch.manual_seed(0)
    sizes = {"n_hid": 64, "n_blk_per_group": blocks, "vocab_size": 512}
    encoder, decoder = peer_encoder.Encoder(**sizes), peer_decoder.Decoder(n_init=16, **sizes)
    model = DVAE(DVAEConfig(hidden=64, blocks_per_group=blocks, codes=512, code_dim=16)).eval()
    copy_weights(encoder, model.input, model.encoder, model.logits)
    copy_weights(decoder, model.codebook, model.decoder, model.stats)
    images = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        logits = encoder(map_pixels(images))
        tokens = logits.argmax(1)
        stats = decoder(F.one_hot(tokens, 512).permute(0, 3, 1, 2).float())
        our_stats, our_logits = model(images)
    assert (our_logits.permute(0, 3, 1, 2) - logits).abs().max() < 1e-5
    assert (our_stats - stats).abs().max() < 1e-5
    assert torch.equal(model.encode(images), tokens)
    shown = unmap_pixels(torch.sigmoid(stats[:, :3]))
    assert (model.decode(tokens) - shown).abs().max() < 1e-5


def test_pixel_maps_are_those_of_the_dall_e_package():
    peer = pytest.importorskip("dall_e.utils")
    images = torch.rand(1, 3, 4, 4)
    assert torch.allclose(map_pixels(images), peer.map_pixels(images))
    assert torch.allclose(unmap_pixels(images), peer.unmap_pixels(images))


def test_weights_start_as_those_of_dall_e_except_the_codes():
    model = DVAE(DVAEConfig(hidden=32, codes=256))
    for name, p in model.named_parameters():
        if p.ndim > 1:
            # La sortie, six filtres, a trop peu de poids pour une mesure fine.
            expected = 1 if name == "codebook.weight" else p[0].numel() ** -0.5
            assert float(p.detach().std()) == pytest.approx(expected, rel=0.25), name
        else:
            assert not p.any(), name


def test_dall_e_has_its_own_size():
    with torch.device("meta"):
        model = DVAE(DVAEConfig(hidden=256, blocks_per_group=2, codes=8192, code_dim=128))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes["input"] + sizes["encoder"] + sizes["logits"] == 53_786_240
    assert sizes["codebook"] + sizes["decoder"] + sizes["stats"] == 43_829_766
    assert model.config.factor == 8


# --- modèle entier ---


@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))
def test_shapes(batch, rows, columns):
    model = tiny().eval()
    images = torch.rand(batch, 3, rows * 4, columns * 4)
    tokens = model.encode(images)
    assert tokens.shape == (batch, rows, columns) and tokens.dtype == torch.int64
    painted = model.decode(tokens)
    assert painted.shape == images.shape
    assert not batch or 0 <= painted.min() <= painted.max() <= 1


@given(st.integers(1, 4))
def test_groups_give_the_factor(groups):
    config = DVAEConfig(hidden=4, groups=groups, codes=8, code_dim=4)
    tokens = DVAE(config).encode(torch.rand(1, 3, 16, 16))
    assert config.factor == 2 ** (groups - 1) and tokens.shape[-1] == 16 // config.factor


def test_decode_of_encode_is_the_reconstruction_without_noise():
    model = tiny().eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(model.decode(model.encode(images)), paint(model(images)[0]), atol=1e-6)


def test_reading_the_table_is_the_convolution_of_one_hot_vectors():
    model = tiny()
    torch.nn.init.normal_(model.codebook.bias)
    tokens = torch.randint(16, (2, 3, 5))
    assert torch.allclose(model._look_up(tokens), model.mix(F.one_hot(tokens, 16).float()), atol=1e-6)


def test_mixtures_are_in_the_convex_hull_of_the_codes():
    model = tiny()
    torch.nn.init.normal_(model.codebook.bias)
    weights = gumbel_softmax(torch.randn(2, 3, 5, 16), 0.7)
    mixed = torch.einsum("bhwk,kd->bdhw", weights, model.vectors())
    assert torch.allclose(model.mix(weights), mixed, atol=1e-5)


def test_the_relaxed_reconstruction_meets_the_hard_one_when_the_law_is_certain():
    model = tiny().eval()
    with torch.no_grad():
        model.logits.weight.mul_(1e4)
    images = torch.rand(2, 3, 8, 8)
    hard, relaxed = model(images)[0], model(images, 1 / 16, seeded(0))[0]
    assert torch.allclose(hard, relaxed, atol=1e-4)


def test_an_image_does_not_depend_on_its_batch():
    model = tiny().eval()
    images = torch.rand(5, 3, 16, 16)
    assert torch.equal(model.encode(images), torch.cat([model.encode(i[None]) for i in images]))


def test_evaluation_has_no_noise():
    model, images = tiny().eval(), torch.rand(2, 3, 8, 8)
    assert model.loss(images)["loss"] == model.loss(images)["loss"]
    assert model.train().loss(images)["loss"] != model.loss(images)["loss"]


@pytest.mark.parametrize("shape", [(1, 3, 10, 16), (1, 3, 16, 10), (1, 1, 16, 16), (3, 16, 16)])
def test_wrong_images_are_refused(shape):
    for method in (tiny().encode, tiny().loss, tiny()):
        with pytest.raises(MinidalleError, match="multiples de 4"):
            method(torch.rand(shape))


def test_wrong_pixels_and_empty_batches_are_refused():
    images = torch.rand(1, 3, 8, 8)
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(MinidalleError, match="nombres finis"):
        tiny().encode(images)
    with pytest.raises(MinidalleError, match="Lot vide"):
        tiny().loss(torch.rand(0, 3, 8, 8))


@pytest.mark.parametrize("token", [-1, 16])
def test_tokens_out_of_the_codebook_are_refused(token):
    with pytest.raises(MinidalleError, match="0 à 15"):
        tiny().decode(torch.full((1, 2, 2), token))


def test_one_code_is_enough():
    model = tiny(DVAEConfig(8, 3, codes=1, code_dim=4)).train()
    losses = model.loss(torch.rand(2, 3, 8, 8))
    assert losses["kl"] == 0 and losses["perplexity"] == 1 and torch.isfinite(losses["loss"])


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 0},
        {"blocks_per_group": 0},
        {"codes": 0},
        {"code_dim": 0},
        {"hidden": 0},
        {"hidden": 10},
        {"temperatures": (1, 0)},
        {"temperatures": (1, math.inf)},
        {"temperatures": (1,)},
        {"kl_weight": -1},
        {"kl_weight": math.nan},
        {"usage_weight": -1},
        {"kl_steps": -1},
        {"anneal_steps": -1},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(MinidalleError):
        DVAEConfig(**options)
