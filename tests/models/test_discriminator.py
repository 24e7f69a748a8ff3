"""Critique par imagettes, pertes du jeu et poids adaptatif : ceux de taming-transformers."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    known_gradient,
)


def gap(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_scores_and_gradients_are_those_of_taming(layers):
    peers = pytest.importorskip("taming.modules.discriminator.model")
    torch.manual_seed(0)
    peer = peers.NLayerDiscriminator(ndf=4, n_layers=layers).apply(peers.weights_init)
    ours = PatchDiscriminator(4, layers)
    ours.load_state_dict(peer.state_dict())
    inputs = [torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    scores = []
    for module, images in zip((ours, peer), inputs, strict=True):
        score = module(images.requires_grad_())
        score.square().mean().backward()
        scores.append(score)
    assert scores[0].shape[1] == 1 and gap(*scores) < 1e-5
    assert gap(inputs[0].grad, inputs[1].grad) < 1e-5
    assert max(gap(a.grad, b.grad) for a, b in zip(ours.parameters(), peer.parameters(), strict=True)) < 1e-5
    statistics = zip(ours.buffers(), peer.buffers(), strict=True)
    assert max(gap(a.float(), b.float()) for a, b in statistics) < 1e-5


def test_weights_start_small():
    torch.manual_seed(0)
    critic = PatchDiscriminator(64, 3)
    assert critic.main[5].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert critic.main[6].weight.mean().item() == pytest.approx(1, abs=0.02) and not critic.main[6].bias.any()


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_score_sees_exactly_its_receptive_field(layers, field):
    critic = PatchDiscriminator(2, layers).double().eval()
    assert critic.receptive_field == field
    images = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    scores = critic(images)
    centre = scores.shape[-1] // 2
    scores[0, 0, centre, centre].backward()
    seen = torch.nonzero(images.grad[0].abs().sum(0))
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [field, field]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_images_too_small_for_a_score_are_refused(layers):
    critic, side = PatchDiscriminator(2, layers).eval(), 3 * 2**layers
    assert critic(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(MinidalleError, match=f"{side} pixels"):
        critic(torch.zeros(1, 3, side, side - 1))


logits = st.lists(st.floats(-4, 4), min_size=1, max_size=8)


@given(logits, logits)
def test_losses_are_those_of_taming(real, fake):
    peers = pytest.importorskip("taming.modules.losses.vqperceptual")
    real, fake = torch.tensor(real), torch.tensor(fake)
    assert gap(discriminator_loss(real, fake), peers.hinge_d_loss(real, fake)) < 1e-5
    assert generator_loss(fake) == -fake.mean()


def test_the_critic_wants_true_above_one_and_copies_below_minus_one():
    assert discriminator_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -5.0])) == 0
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_the_weight_is_that_of_taming():
    peers = pytest.importorskip("taming.modules.losses.vqperceptual")
    torch.manual_seed(0)
    layer = torch.randn(3, 4, requires_grad=True)
    for scale in (1e-3, 1.0, 1e3, 0.0):
        losses = [(layer @ torch.randn(4)).square().sum(), scale * (layer @ torch.randn(4)).sum()]
        gradients = [torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses]
        shell = torch.nn.Module()
        shell.discriminator_weight = 0.8
        expected = peers.VQLPIPSWithDiscriminator.calculate_adaptive_weight(shell, *losses, last_layer=layer)
        assert 0.8 * adaptive_weight(*gradients) == pytest.approx(expected.item(), rel=1e-5)


def test_the_weight_stays_finite():
    one, zero = torch.ones(3), torch.zeros(3)
    assert adaptive_weight(1e9 * one, zero) == 1e4
    assert adaptive_weight(zero, one) == 0


def test_gradients_of_the_losses_are_right():
    torch.manual_seed(0)
    real, fake = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(discriminator_loss, (real, fake))
    assert torch.autograd.gradcheck(generator_loss, (fake,))
    assert torch.autograd.gradcheck(adaptive_weight, (real, fake))


def test_a_known_gradient_has_the_value_and_the_gradient_of_the_loss():
    torch.manual_seed(0)
    a, b = (torch.randn(4, requires_grad=True) for _ in range(2))
    loss = (a * b.square()).sum()
    known = known_gradient(loss, torch.autograd.grad(loss, (a, b)), (a, b))
    assert known == loss.detach()
    (3 * known + a.sum()).backward()  # le graphe de `loss` est déjà libéré : rien n'y repasse
    assert gap(a.grad, 3 * b.detach().square() + 1) < 1e-5
    assert gap(b.grad, 6 * (a * b).detach()) < 1e-5


def test_a_critic_learns_to_tell_two_textures_apart():
    torch.manual_seed(0)
    critic = PatchDiscriminator(8, 2)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(25):
            smooth = torch.rand(4, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
            loss = discriminator_loss(critic(torch.rand(4, 3, 32, 32)), critic(smooth))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss < 0.3
