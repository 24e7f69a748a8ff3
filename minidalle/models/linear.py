"""La couche linéaire de PyTorch, plus rapide sur processeur : mêmes poids, mêmes valeurs à l'arrondi près.

PyTorch confie ses produits de matrices à MKL, qui n'emploie pas les plus larges instructions de bien des
processeurs ; oneDNN, livré avec lui et d'habitude réservé aux convolutions, les emploie : jusqu'à deux fois
plus rapide (mesuré), aussi rapide ailleurs. Les petits produits, où il est plus long à se mettre en route,
restent à MKL.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_WORTH_IT = 2**21  # multiplications à partir desquelles oneDNN est devant


class Linear(nn.Linear):
    """`torch.nn.Linear`, calculée par `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b : (..., n) → (..., m), comme `torch.nn.functional.linear`."""
    if x.numel() * len(weight) < _WORTH_IT or not _usual(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def _usual(x: Tensor, weight: Tensor) -> bool:
    """Un produit que l'on peut confier à oneDNN : en simple précision, sur processeur, aux bonnes formes."""
    single = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return _AVAILABLE and single and x.is_cpu and x.ndim > 1 and x.shape[-1] == weight.shape[-1]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """Le produit, et sa passe arrière : deux produits de plus."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, slopes: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows, inputs = slopes.flatten(0, -2), x.flatten(0, -2)
        return (
            _product(slopes, weight.T) if needs_x else None,
            _product(rows.T, inputs.T) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
