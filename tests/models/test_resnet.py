"""Encodeur et décodeur résiduels : les mêmes que ceux de taming-transformers, aux mêmes poids."""

import contextlib
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minidalle.models.resnet import AttentionBlock, Decoder, Downsample, Encoder, ResnetBlock, Upsample

WIDTHS, GRID = (32, 32, 64, 64), 8
SIZES = WIDTHS, GRID, (1, 1, 1), (1, 2), 32


def gap(a, b):
    return (a - b).abs().max().item()


def peers(cls, attention=(8, 4)):
    """Le pair de taming, aux mêmes tailles : images de 16 pixels, attention aux côtés donnés."""
    model = pytest.importorskip("taming.modules.diffusionmodules.model")
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):  # le décodeur de taming parle
        return getattr(model, cls)(
            ch=32,
            out_ch=3,
            ch_mult=(1, 2, 2),
            num_res_blocks=1,
            attn_resolutions=attention,
            in_channels=3,
            resolution=16,
            z_channels=GRID,
            double_z=False,
        )


def shaken(module):
    """Des normalisations dont poids et biais ne sont plus 1 et 0 : les oublier se verrait."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("cls", ["Encoder", "Decoder"])
def test_values_and_gradients_are_those_of_taming(cls):
    peer = shaken(peers(cls))
    ours = {"Encoder": Encoder, "Decoder": Decoder}[cls](*SIZES)
    ours.load_state_dict(peer.state_dict())  # mêmes noms, mêmes formes, rien de plus
    shape = (2, 3, 16, 16) if cls == "Encoder" else (2, GRID, 4, 4)
    inputs = [
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)
    ]
    outputs = ours(inputs[0]), peer(inputs[1])
    assert gap(*outputs) < 1e-5
    weights = torch.randn(outputs[0].shape)
    for output in outputs:
        (output * weights).mean().backward()
    assert gap(inputs[0].grad, inputs[1].grad) < 1e-5
    pairs = zip(ours.parameters(), peer.parameters(), strict=True)
    assert max(gap(a.grad, b.grad) for a, b in pairs) < 1e-5


def test_the_hidden_layer_is_what_the_last_convolution_reads():
    torch.manual_seed(0)
    decoder = Decoder((8, 8, 16), 4, (0, 1), (), 4)
    grid = torch.randn(1, 4, 3, 3)
    hidden = decoder.hidden(grid)
    assert hidden.shape == (1, 8, 6, 6)
    assert torch.equal(decoder.conv_out(hidden), decoder(grid))


@pytest.mark.parametrize("channels_last", [False, True])
def test_upsampling_repeats_each_pixel_then_convolves(channels_last):
    torch.manual_seed(0)
    up = Upsample(5)
    x = torch.randn(2, 5, 4, 6)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    expected = up.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert gap(up(x), expected) < 1e-5


def test_upsampling_gradients_are_right():
    torch.manual_seed(0)
    up = Upsample(2).double()
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: _upsample(up, x, w), (x, up.conv.weight.detach().requires_grad_())
    )


def _upsample(up, x, weight):
    return torch.func.functional_call(up, {"conv.weight": weight}, (x,))


def test_downsampling_pads_on_the_right_and_below():
    down = Downsample(1)
    nn.init.constant_(down.conv.weight, 1.0)
    nn.init.zeros_(down.conv.bias)
    assert down(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]


def test_attention_sees_the_whole_grid_at_once():
    torch.manual_seed(0)
    block = AttentionBlock(4, 2)
    x = torch.randn(1, 4, 3, 3)
    h = block.norm(x).flatten(2)[0]  # (C, N)
    q, k, v = (layer.weight[:, :, 0, 0] @ h + layer.bias[:, None] for layer in (block.q, block.k, block.v))
    seen = v @ F.softmax(q.T @ k / 2, dim=1).T
    expected = x + block.proj_out(seen.view(1, 4, 3, 3))
    assert gap(block(x), expected) < 1e-5


def test_a_block_without_change_of_width_starts_from_its_input():
    block = ResnetBlock(8, 8, 4)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_groups_shrink_to_a_divisor_of_the_width():
    block = ResnetBlock(12, 48, 32)
    assert (block.norm1.num_groups, block.norm2.num_groups) == (4, 16)
    assert block.norm1.eps == 1e-6
