"""Couche linéaire : celle de PyTorch, par une autre bibliothèque de calcul."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from minidalle.models import linear as module
from minidalle.models.linear import Linear, linear

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@pytest.fixture(params=[0, 2**60], ids=["oneDNN", "MKL"])
def worth_it(request, monkeypatch):
    """Tous les produits par oneDNN, ou aucun."""
    monkeypatch.setattr(module, "_WORTH_IT", request.param)


def gradients(output, tensors):
    slopes = torch.linspace(-1, 1, output.numel()).view_as(output)
    return torch.autograd.grad(output, tensors, slopes)


@pytest.mark.parametrize("worth", [0, 2**60])
@given(shape=SHAPES, n=st.integers(1, 6), m=st.integers(1, 6), bias=st.booleans(), by_columns=st.booleans())
@settings(max_examples=60)
def test_same_values_and_gradients_as_torch(worth, shape, n, m, bias, by_columns):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator) for size in ((*shape, n), (m, n)))
    if by_columns:
        weight = weight.T.contiguous().T
    tensors = [x, weight] + ([torch.randn(m, generator=generator)] if bias else [])
    tensors = [tensor.requires_grad_() for tensor in tensors]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH_IT", worth)
        ours = linear(*tensors)
        found = gradients(ours, tensors)
        with torch.inference_mode():
            alone = linear(*tensors)
    theirs = F.linear(*tensors)
    assert torch.allclose(ours, theirs, atol=1e-5) and torch.allclose(alone, theirs, atol=1e-5)
    for mine, expected in zip(found, gradients(theirs, tensors), strict=True):
        assert mine.shape == expected.shape and torch.allclose(mine, expected, atol=1e-5)


def test_same_on_large_products(worth_it):
    torch.manual_seed(0)
    ours = Linear(256, 512)
    theirs = nn.Linear(256, 512)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 64, 256, requires_grad=True)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    for mine, expected in zip(
        gradients(ours(x), [x, *ours.parameters()]),
        gradients(theirs(x), [x, *theirs.parameters()]),
        strict=True,
    ):
        assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_rows_in_any_order(worth_it):
    """Ni l'entrée ni les pentes n'ont à se suivre en mémoire."""
    torch.manual_seed(0)
    x = torch.randn(5, 7, 6)[:, ::2].transpose(0, 1).requires_grad_()
    weight = torch.randn(3, 6, requires_grad=True)
    for mine, expected in zip(
        torch.autograd.grad(linear(x, weight).sum(), [x, weight]),
        torch.autograd.grad(F.linear(x, weight).sum(), [x, weight]),
        strict=True,
    ):
        assert torch.allclose(mine, expected, atol=1e-5)


def test_only_what_is_asked_is_computed(worth_it):
    layer, x = Linear(3, 2), torch.ones(4, 3)
    layer.weight.requires_grad_(False)
    (slope,) = torch.autograd.grad(layer(x).sum(), [layer.bias])
    assert torch.equal(slope, torch.full((2,), 4.0))


def test_what_onednn_cannot_do_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(module, "_WORTH_IT", 0)
    weight, bias = torch.randn(3, 5), torch.randn(3)
    assert torch.allclose(
        linear(torch.ones(5), weight, bias), F.linear(torch.ones(5), weight, bias), atol=1e-5
    )
    assert linear(torch.empty(0, 5), weight, bias).shape == (0, 3)
    doubled = linear(torch.ones(2, 5, dtype=torch.float64), weight.double())
    assert doubled.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.ones(2, 5), weight, bias).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="shapes"):
        linear(torch.ones(2, 4), weight)
    monkeypatch.setattr(module, "_AVAILABLE", False)
    assert torch.equal(linear(torch.ones(2, 5), weight, bias), F.linear(torch.ones(2, 5), weight, bias))


def test_large_products_go_to_onednn(monkeypatch):
    seen = []
    product = module._product
    monkeypatch.setattr(module, "_product", lambda *tensors: seen.append(1) or product(*tensors))
    layer = Linear(256, 256)
    with torch.no_grad():
        layer(torch.ones(1, 256))
        assert not seen
        layer(torch.ones(64, 256))
        assert seen or not module._AVAILABLE
