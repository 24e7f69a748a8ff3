"""Le décodeur, une position à la fois : les calculs de `Decoder.forward`, sans rien de superflu.

Lire un seul jeton demande des produits si petits que l'appel des modules, les masques et les découpages y
coûtent autant qu'eux. Cette voie courte fait les mêmes opérations dans le même ordre, sur les mêmes poids et
les mêmes caches ; `Decoder.forward` l'emprunte de lui-même.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.models.attention import rotate
from minidalle.models.linear import linear


class OneStep:
    """Un décodeur prêt à lire une position (B, d) → (B, d), sans gradient.

    Args:
        decoder: `Decoder` à normalisation en amont ; ses poids sont partagés, non copiés.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self.blocks = [_weights(block) for block in decoder.blocks]
        self.norm = _norm(decoder.norm)
        attention = decoder.blocks[0].attention
        self.heads, self.rotary = attention.heads, attention.rotary

    def __call__(self, x: Tensor, caches: list, memory_mask: Tensor | None) -> Tensor:
        """`caches` : par bloc, ceux de l'auto-attention, et de l'attention croisée, déjà rempli."""
        batch, heads = len(x), self.heads
        for weights, (own, crossed) in zip(self.blocks, caches, strict=True):
            norm, queries_keys_values, output, cross, dense_norm, up, down = weights
            projected = linear(torch.layer_norm(x, *norm), *queries_keys_values)
            queries, keys, values = projected.view(batch, 3, heads, 1, -1).unbind(1)
            if self.rotary:
                queries, keys = rotate(queries, own.length), rotate(keys, own.length)
            seen = attend_one(queries, *own.extend(keys, values))
            x = x + linear(seen.reshape(batch, -1), *output)
            if cross is not None:
                norm, queries, output = cross
                queries = linear(torch.layer_norm(x, *norm), *queries).view(batch, heads, 1, -1)
                seen = attend_one(queries, *crossed.known(), memory_mask)
                x = x + linear(seen.reshape(batch, -1), *output)
            x = x + linear(F.gelu(linear(torch.layer_norm(x, *dense_norm), *up)), *down)
        return torch.layer_norm(x, *self.norm)


def attend_one(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """`attend` pour une requête par suite (B, H, 1, d) : dès quatre suites, deux produits vont plus vite."""
    if mask is not None or len(queries) < 4:
        return F.scaled_dot_product_attention(queries, keys, values, mask)
    scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(-2, -1)
    return scores.softmax(-1) @ values


def one_step_is_enough(decoder: nn.Module, x: Tensor, state: object) -> bool:
    """Vrai si la voie courte calcule la même chose que l'autre : une position, sans gradient ni abandon."""
    inference = not (decoder.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    if not inference or x.shape[1] != 1 or x.dtype != torch.float32:
        return False
    block = decoder.blocks[0]
    if block.norm != "pre" or type(block.dense[1]) is not nn.GELU:
        return False
    return block.cross_attention is None or state.caches[0][1].length > 0


def _weights(block: nn.Module) -> tuple:
    attention, cross, dense = block.attention, block.cross_attention, block.dense
    if cross is not None:
        cross = _norm(block.cross_norm), _pair(cross.queries), _pair(cross.output)
    return (
        _norm(block.attention_norm),
        _pair(attention.queries_keys_values),
        _pair(attention.output),
        cross,
        _norm(block.dense_norm),
        _pair(dense[0]),
        _pair(dense[2]),
    )


def _pair(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return layer.weight, layer.bias


def _norm(layer: nn.LayerNorm) -> tuple:
    return layer.normalized_shape, layer.weight, layer.bias, layer.eps
