"""VQGAN : parité avec taming-transformers, pertes des deux joueurs, départ du critique, interface commune."""

import contextlib
import io
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.discriminator import adaptive_weight, discriminator_loss
from minidalle.models.vqgan import VQGAN, VQGANConfig

SIZES = {"channels": 8, "multipliers": (1, 1, 2), "blocks": (0, 1, 1), "attention": (2,), "groups": 4}
CODES = {"grid_channels": 4, "codes": 16, "code_dim": 4, "discriminator_width": 4}
TINY = SIZES | CODES | {"perceptual": 0.0}
PEER = {
    "channels": 32,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "attention": (2,),
    "groups": 32,
    "grid_channels": 8,
}


class Eye:
    """Un œil jouet, dérivable : il compare les moyennes de blocs de 4 × 4 pixels."""

    def distance(self, originals, copies):
        return (F.avg_pool2d(originals, 4) - F.avg_pool2d(copies, 4)).square().mean((1, 2, 3))


def build(seed=0, features=None, **options):
    torch.manual_seed(seed)
    return VQGAN(VQGANConfig(**TINY | options), features)


def gap(a, b):
    return (a - b).abs().max().item()


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


# --- parité ---


class Taming(torch.nn.Module):
    """VQModel de taming-transformers, remonté à la main : la classe veut un vieux Lightning."""

    def __init__(self, config):
        model = pytest.importorskip("taming.modules.diffusionmodules.model")
        quantize = pytest.importorskip("taming.modules.vqvae.quantize")
        critic = pytest.importorskip("taming.modules.discriminator.model")
        super().__init__()
        sizes = {
            "ch": config.channels,
            "ch_mult": config.multipliers,
            "num_res_blocks": config.blocks[0],
            "attn_resolutions": [16 // 2**level for level in config.attention],
            "resolution": 16,
            "z_channels": config.grid_channels,
            "in_channels": 3,
            "out_ch": 3,
            "double_z": False,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self.encoder, self.decoder = model.Encoder(**sizes), model.Decoder(**sizes)
        self.quant_conv = torch.nn.Conv2d(config.grid_channels, config.code_dim, 1)
        self.post_quant_conv = torch.nn.Conv2d(config.code_dim, config.grid_channels, 1)
        self.quantize = quantize.VectorQuantizer2(
            config.codes, config.code_dim, config.commitment, legacy=False, sane_index_shape=True
        )
        self.discriminator = critic.NLayerDiscriminator(
            ndf=config.discriminator_width, n_layers=config.discriminator_layers
        ).apply(critic.weights_init)

    def forward(self, images):
        vectors, loss, (_, _, tokens) = self.quantize(self.quant_conv(self.encoder(images)))
        return self.decoder(self.post_quant_conv(vectors)), loss, tokens

    def losses(self, images, eye, perceptual, adversarial):
        """Ce que VQLPIPSWithDiscriminator rend aux deux tours, sans son LPIPS à télécharger."""
        peers = pytest.importorskip("taming.modules.losses.vqperceptual")
        painted, codebook, _ = self(images)
        rec = (images - painted).abs().mean()
        rec = rec + perceptual * eye.distance((images + 1) / 2, (painted + 1) / 2).mean()
        g = -self.discriminator(painted).mean()
        shell = SimpleNamespace(discriminator_weight=adversarial)
        weigh = peers.VQLPIPSWithDiscriminator.calculate_adaptive_weight
        weight = weigh(shell, rec, g, last_layer=self.decoder.conv_out.weight)
        critic = peers.hinge_d_loss(self.discriminator(images), self.discriminator(painted.detach()))
        return rec + weight * g + codebook, critic, weight


@pytest.fixture(scope="module")
def pair():
    """Le nôtre et celui de taming, mêmes poids, dictionnaire appris par gradient, et leurs gradients."""
    ours = build(**PEER, decay=0.0, dead_below=0.0, init="uniform", perceptual=0.7).train()
    ours.features = Eye()
    torch.manual_seed(1)
    peer = Taming(ours.config).train()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.02 * torch.randn_like(p))  # aucun biais nul, aucune normalisation neutre
        peer.quantize.embedding.weight.mul_(5).add_(peer.quant_conv.bias)
    state = {k: v for k, v in peer.state_dict().items() if not k.startswith("quantize")}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected and all(k.startswith("quantizer") or k == "step" for k in missing)
    ours.quantizer.codebook.data.copy_(peer.quantize.embedding.weight.data)
    return ours, peer, torch.rand(3, 3, 16, 16)


def test_reconstruction_and_tokens_are_those_of_taming(pair):
    ours, peer, images = pair
    painted, quantized = ours(images)
    expected, codebook, tokens = peer(2 * images - 1)
    assert torch.equal(quantized.tokens, tokens) and len(tokens.unique()) > 3
    assert gap(2 * painted - 1, expected) < 1e-5
    assert gap(quantized.codebook + ours.config.commitment * quantized.commitment, codebook) < 1e-5
    assert torch.equal(ours.encode(images), tokens)
    assert gap(ours.decode(tokens), ((expected + 1) / 2).clamp(0, 1)) < 1e-5


def test_losses_and_gradients_are_those_of_taming(pair):
    """Un seul appel et une seule passe arrière rendent les gradients des deux tours de taming."""
    ours, peer, images = pair
    ours.zero_grad()
    losses = ours.loss(images)
    losses["loss"].backward()
    loss, critic, weight = peer.losses(2 * images - 1, Eye(), 0.7, ours.config.adversarial)
    assert 0.8 * losses["adaptive"].item() == pytest.approx(weight.item(), rel=1e-5)
    assert losses["discriminator"].item() == pytest.approx(critic.item(), abs=1e-5)
    assert losses["loss"].item() == pytest.approx((loss + critic).item(), rel=1e-5)
    names = {
        name.replace("quantize.embedding.weight", "quantizer.codebook"): p
        for name, p in peer.named_parameters()
    }
    first = [name for name in names if "discriminator" not in name]
    second = [name for name in names if "discriminator" in name]
    grads = dict(zip(first, torch.autograd.grad(loss, [names[n] for n in first]), strict=True))
    grads |= dict(zip(second, torch.autograd.grad(critic, [names[n] for n in second]), strict=True))
    found = gradients(ours)
    assert found.keys() == grads.keys()
    for name, expected in grads.items():
        assert gap(found[name], expected) < 1e-5 * max(1, expected.abs().max().item()), name


def test_the_published_sizes_have_the_published_parameters():
    """DALL·E mini : décodeur, dictionnaire et projection de 46,7 M de nombres, 197 tableaux."""
    with torch.device("meta"):
        config = VQGANConfig(
            channels=128,
            multipliers=(1, 1, 2, 2, 4),
            blocks=2,
            attention=(4,),
            groups=32,
            grid_channels=256,
            code_dim=256,
            codes=16_384,
            decay=0.0,
        )
        model = VQGAN(config)
    painter = [*model.decoder.parameters(), *model.post_quant_conv.parameters(), model.quantizer.codebook]
    assert len(painter) == 197 and sum(p.numel() for p in painter) == 46_709_891
    assert len([*model.encoder.parameters()]) == 144
    assert config.factor == 16


# --- pertes ---


def test_each_player_learns_from_its_own_loss_only():
    model = build(decay=0.0, dead_below=0.0, init="uniform").train()
    images = torch.rand(4, 3, 16, 16)
    generator, critic = model.players()
    assert len(generator) + len(critic) == len([*model.parameters()])
    assert {id(p) for p in critic} == {id(p) for p in model.discriminator.parameters()}
    model.loss(images)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    both = gradients(model)
    # Le critique : sa perte charnière sur des copies détachées, et rien d'autre.
    painted, _ = model(images)
    real, fake = (model.discriminator(2 * x - 1) for x in (images, painted.detach()))
    expected = torch.autograd.grad(discriminator_loss(real, fake), critic)
    names = [name for name in both if name.startswith("discriminator")]
    assert max(gap(both[n], e) for n, e in zip(names, expected, strict=True)) < 1e-5


def test_without_a_critic_the_loss_is_the_written_sum():
    model = build(adversarial=0.0, perceptual=0.5, features=Eye()).eval()
    images = torch.rand(2, 3, 16, 16)
    losses = model.loss(images)
    painted, quantized = model(images)
    reconstruction = 2 * (painted - images).abs().mean()
    total = reconstruction + 0.5 * Eye().distance(images, painted).mean() + 0.25 * quantized.commitment
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    assert losses["reconstruction"].item() == pytest.approx(reconstruction.item(), rel=1e-5)
    losses["loss"].backward()
    found = gradients(model)
    model.zero_grad()
    total.backward()
    for name, expected in gradients(model).items():
        if expected is None:
            assert found[name] is None, name
        else:
            assert gap(found[name], expected) < 1e-5, name


def test_the_adversarial_gradient_has_the_strength_of_the_reconstruction():
    """C'est le sens de λ, mesuré aux poids de la dernière couche."""
    model = build(adversarial=1.0).eval()
    model.discriminator.requires_grad_(True)
    images = torch.rand(2, 3, 16, 16)
    last = model.decoder.conv_out.weight
    painted, _ = model(images)
    rec = torch.autograd.grad(2 * (painted - images).abs().mean(), last, retain_graph=True)[0]
    g = torch.autograd.grad(-model.discriminator(2 * painted - 1).mean(), last)[0]
    losses = model.loss(images)
    assert losses["adaptive"].item() == pytest.approx(adaptive_weight(rec, g).item(), rel=1e-4)
    losses["loss"].backward()
    assert gap(last.grad, rec + losses["adaptive"] * g) < 1e-5


def test_the_critic_starts_on_time():
    model = build(discriminator_start=3, discriminator_lead=2).train()
    images = torch.rand(2, 3, 16, 16)
    plays, listened = [], []
    for step in range(5):
        assert model.step == step
        losses = model.loss(images)
        model.zero_grad()
        losses["loss"].backward()
        plays.append(model.discriminator.main[0].weight.grad is not None)
        listened.append(losses["adaptive"].item() > 0)
    assert plays == [False, True, True, True, True]
    assert listened == [False, False, False, True, True]


def test_the_critic_sees_the_same_range_twice():
    """Images et copies vont de −1 à 1 devant lui : sinon l'échelle les trahirait."""
    model = build().eval()
    seen = []
    model.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(1, 3, 16, 16)
    model.loss(images)
    painted, _ = model(images)
    assert gap(seen[0], 2 * images - 1) < 1e-6 and gap(seen[1], 2 * painted - 1) < 1e-5


def test_names_do_not_change_when_the_critic_starts():
    model = build(discriminator_start=1).train()
    images = torch.rand(2, 3, 16, 16)
    names = [model.loss(images).keys() for _ in range(2)]
    assert names[0] == names[1] and "loss" in names[0]


def test_steps_count_training_only():
    model = build().eval()
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        losses = model.loss(images)
    assert model.step == 0 and all(torch.isfinite(v) for v in losses.values())
    assert "step" in model.state_dict()
    model.train().loss(images)
    assert model.step == 1


def test_followed_values_hold_no_graph():
    losses = build().train().loss(torch.rand(1, 3, 16, 16))
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    assert all(value.ndim == 0 for value in losses.values())


def test_the_eye_is_needed_only_by_the_loss():
    model = build(perceptual=1.0).eval()
    images = torch.rand(1, 3, 16, 16)
    assert model.decode(model.encode(images)).shape == images.shape
    with pytest.raises(MinidalleError, match="features"):
        model.loss(images)
    model.features = Eye()
    assert torch.isfinite(model.loss(images)["perceptual"])
    assert not any("features" in name for name in model.state_dict())


def test_mixed_precision_trains():
    model = build(perceptual=1.0, features=Eye()).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(torch.rand(2, 3, 16, 16))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_falls_and_the_game_goes_on():
    model = build(discriminator_start=25, codes=64).train()
    images = F.interpolate(torch.rand(8, 3, 4, 4), scale_factor=4)  # huit mosaïques de 4 × 4 couleurs
    optimizer = torch.optim.Adam(model.parameters(), 4e-3, betas=(0.5, 0.9))
    rows = []
    for _ in range(40):
        losses = model.loss(images)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        rows.append({name: value.item() for name, value in losses.items()})
    assert rows[-1]["reconstruction"] < 0.7 * rows[0]["reconstruction"]
    assert rows[24]["discriminator"] == 0 < rows[25]["discriminator"]


def test_frozen_tokens_do_not_change():
    model = build().train()
    images = torch.rand(4, 3, 16, 16)
    model.loss(images)
    model.freeze_tokens()
    before, painted = model.encode(images), model.decode(model.encode(images))
    state = {name: tensor.clone() for name, tensor in model.quantizer.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        model.train()  # comme la boucle d'entraînement
        losses = model.loss(images)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert torch.equal(model.encode(images), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.quantizer.state_dict().items())
    assert gap(model.decode(before), painted) > 1e-2


# --- interface ---


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_shapes(batch, rows, columns):
    model = build().eval()
    images = torch.rand(batch, 3, rows * 4, columns * 4)
    tokens = model.encode(images)
    assert tokens.shape == (batch, rows, columns) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < 16
    painted = model.decode(tokens)
    assert painted.shape == images.shape and 0 <= painted.min() <= painted.max() <= 1


def test_decode_of_encode_is_the_reconstruction():
    model = build().eval()
    images = torch.rand(2, 3, 16, 16)
    assert gap(model.decode(model.encode(images)), model(images)[0].clamp(0, 1)) < 1e-5


def test_an_image_does_not_depend_on_its_batch():
    model = build().eval()
    images = torch.rand(5, 3, 16, 16)
    assert torch.equal(model.encode(images), torch.cat([model.encode(i[None]) for i in images]))


def test_tokens_keep_the_layout_of_the_image():
    model = build(attention=()).eval()
    for network in (model.encoder, model.decoder):
        network.mid.attn_1.proj_out.weight.data.zero_()  # sans attention, chaque case ne voit que ses voisines
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda x: x  # ni normalisation : elle mêle aussi toutes les cases
    images = torch.rand(1, 3, 128, 128)
    changed = images.clone()
    changed[..., :4, -4:] = 1 - changed[..., :4, -4:]
    moved = torch.nonzero((model._vectors(images) != model._vectors(changed))[0].any(-1))
    assert len(moved) and moved[:, 0].max() < 14 and moved[:, 1].min() >= 32 - 14
    tokens = torch.zeros(1, 32, 32, dtype=torch.int64)
    other = tokens.clone()
    other[0, -1, 0] = 1
    painted = torch.nonzero((model.decode(tokens) != model.decode(other))[0].any(0))
    assert len(painted) and painted[:, 0].min() >= 64 and painted[:, 1].max() < 64


def test_an_empty_batch_encodes_to_nothing():
    model = build().eval()
    tokens = model.encode(torch.rand(0, 3, 16, 16))
    assert tokens.shape == (0, 4, 4) and model.decode(tokens).shape == (0, 3, 16, 16)
    with pytest.raises(MinidalleError, match="vide"):
        model.loss(torch.rand(0, 3, 16, 16))


def test_one_code_is_enough():
    model = build(codes=1).train()
    losses = model.loss(torch.rand(2, 3, 16, 16))
    losses["loss"].backward()
    assert losses["perplexity"].item() == pytest.approx(1, abs=1e-5)


def test_weights_come_back_from_a_file(tmp_path):
    from minidalle.checkpoints import load_model, save_model

    model = build(features=Eye()).train()
    images = torch.rand(2, 3, 16, 16)
    model.loss(images)
    save_model(tmp_path / "model.safetensors", model)
    copy, _ = load_model(tmp_path)
    assert copy.step == 1 and copy.config == model.config and copy.features is None
    assert torch.equal(copy.encode(images), model.eval().encode(images))


@pytest.mark.parametrize("shape", [(1, 3, 10, 16), (1, 3, 16, 10), (1, 1, 16, 16), (3, 16, 16)])
@pytest.mark.parametrize("method", ["encode", "loss", "forward"])
def test_wrong_images_are_refused(shape, method):
    with pytest.raises(MinidalleError, match="multiples de 4"):
        getattr(build(), method)(torch.rand(shape))


def test_pixels_that_are_not_numbers_are_refused():
    with pytest.raises(MinidalleError, match="finis"):
        build().loss(torch.full((1, 3, 16, 16), torch.nan))


@pytest.mark.parametrize("tokens", [torch.full((1, 2, 2), -1), torch.full((1, 2, 2), 16)])
def test_tokens_out_of_the_codebook_are_refused(tokens):
    with pytest.raises(MinidalleError, match="0 à 15"):
        build().decode(tokens)


@pytest.mark.parametrize("tokens", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(1, 2, 2)])
def test_grids_that_are_not_tokens_are_refused(tokens):
    with pytest.raises(MinidalleError, match=r"\(B, h, w\)"):
        build().decode(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "au moins"),
        ({"multipliers": (), "blocks": ()}, "au moins"),
        ({"multipliers": ()}, "au moins"),
        ({"discriminator_layers": 0}, "au moins"),
        ({"blocks": (1, 1)}, "étage"),
        ({"attention": (3,)}, "étage"),
        ({"blocks": (1, 1, 0)}, "change de largeur"),
        ({"perceptual": -1.0}, "négatif"),
        ({"discriminator_start": -1}, "négatif"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(MinidalleError, match=message):
        VQGANConfig(**TINY | options)


def test_one_number_of_blocks_stands_for_all_stages():
    assert VQGANConfig(multipliers=[1, 2], blocks=3, attention=[1]).blocks == (3, 3)
