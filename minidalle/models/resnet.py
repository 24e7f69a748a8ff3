"""Encodeur et décodeur résiduels du VQGAN, à normalisation par groupes et attention à basse définition.

Source : taming-transformers (Esser, Rombach et Ommer, 2021), d'après les réseaux de Ho, Jain et Abbeel (2020).
Les couches portent les mêmes noms : des poids publiés s'y chargent tels quels.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResnetBlock(nn.Module):
    """Deux fois (normalisation, swish, convolution), plus l'entrée, projetée si la largeur change."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(before, groups)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = _norm(width, groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.nin_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttentionBlock(nn.Module):
    """Chaque case de la grille regarde toutes les autres : une tête d'auto-attention, plus l'entrée."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        queries, keys, values = (layer(h).flatten(2).mT for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(queries, keys, values)
        return x + self.proj_out(h.mT.reshape(x.shape))


class Downsample(nn.Module):
    """Convolution de pas 2, remplie à droite et en bas seulement, comme taming."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Chaque pixel répété 2 × 2, puis convolution 3 × 3 : les deux en une convolution transposée."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Répéter puis convoluer revient à étaler un noyau 4 × 4, somme de quatre copies décalées du noyau 3 × 3 :
        # 16 produits par pixel d'entrée au lieu de 36, et l'image agrandie n'existe jamais.
        shifts = ((i, 1 - i, j, 1 - j) for i in (0, 1) for j in (0, 1))
        kernel = sum(F.pad(self.conv.weight, shift) for shift in shifts)
        return F.conv_transpose2d(x, kernel.transpose(0, 1).flip(2, 3), self.conv.bias, stride=2, padding=1)


class Stage(nn.Module):
    """Les blocs d'une même définition."""

    def __init__(self, before: int, width: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        widths = [before] + blocks * [width]
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(width, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    """Image (B, 3, H, W), de −1 à 1 → grille (B, grid_channels, H/f, W/f), f = 2 puissance le nombre d'étages moins un.

    Args:
        widths: canaux de la première convolution, puis de chaque étage.
        grid_channels: canaux de la grille.
        blocks: blocs résiduels de chaque étage.
        attention: étages (0 pour la pleine définition) où une attention suit chaque bloc.
        groups: voir `VQGANConfig`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        grid_channels: int,
        blocks: Sequence[int],
        attention: Collection[int],
        groups: int,
    ) -> None:
        super().__init__()
        before, *widths = widths
        self.conv_in = nn.Conv2d(3, before, 3, padding=1)
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            stage = Stage(before, width, blocks[level], level in attention, groups)
            if level < len(widths) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
            before = width
        self.mid = _middle(before, groups)
        self.norm_out = _norm(before, groups)
        self.conv_out = nn.Conv2d(before, grid_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images.contiguous(memory_format=torch.channels_last))
        for stage in self.down[:-1]:
            x = stage.downsample(stage(x))
        return self.conv_out(F.silu(self.norm_out(self.mid(self.down[-1](x)))))


class Decoder(nn.Module):
    """Le miroir de `Encoder`, un bloc de plus par étage : grille → image (B, 3, h·f, w·f), environ de −1 à 1."""

    def __init__(
        self,
        widths: Sequence[int],
        grid_channels: int,
        blocks: Sequence[int],
        attention: Collection[int],
        groups: int,
    ) -> None:
        super().__init__()
        widths = widths[1:]
        before = widths[-1]
        self.conv_in = nn.Conv2d(grid_channels, before, 3, padding=1)
        self.mid = _middle(before, groups)
        self.up = nn.ModuleList()
        for level, width in reversed([*enumerate(widths)]):
            stage = Stage(before, width, blocks[level] + 1, level in attention, groups)
            if level > 0:
                stage.upsample = Upsample(width)
            self.up.insert(0, stage)
            before = width
        self.norm_out = _norm(before, groups)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        return self.conv_out(self.hidden(grid))

    def hidden(self, grid: Tensor) -> Tensor:
        """Ce que reçoit la dernière convolution, (B, channels, h·f, w·f)."""
        x = self.mid(self.conv_in(grid))
        for stage in reversed(self.up[1:]):
            x = stage.upsample(stage(x))
        return F.silu(self.norm_out(self.up[0](x)))


def _middle(width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            block_1=ResnetBlock(width, width, groups),
            attn_1=AttentionBlock(width, groups),
            block_2=ResnetBlock(width, width, groups),
        )
    )


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(width, groups), width, eps=1e-6)
