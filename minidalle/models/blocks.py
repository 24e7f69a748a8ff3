"""L'encodeur et le décodeur convolutifs que partagent les auto-encodeurs du livre."""

from collections.abc import Sequence

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))) : la couche n'apprend que la correction (He et coll., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Encoder(nn.Module):
    """Image (B, 3, H, W) → grille (B, out_channels, H/f, W/f), f = 2 puissance le nombre d'étages.

    Args:
        channels: largeur de chaque étage, de l'image vers la grille ; chaque étage divise le côté par 2.
        out_channels: nombre de canaux de la grille.
        blocks: blocs résiduels du dernier étage ; l'avant-dernier en a moitié moins, les premiers
            aucun, car c'est à pleine définition que les convolutions coûtent le plus.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, blocks: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage, width in enumerate(channels):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1)]
            layers += [ResidualBlock(width) for _ in range(_blocks(stage, channels, blocks))]
            layers += [nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, out_channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Decoder(nn.Module):
    """Le miroir de `Encoder` : grille (B, in_channels, h, w) → image (B, out_channels, h·f, w·f)."""

    def __init__(
        self, channels: Sequence[int], in_channels: int, blocks: int = 2, out_channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels[-1], 3, padding=1)]
        for stage in reversed(range(len(channels))):
            width = channels[stage]
            after = channels[stage - 1] if stage else out_channels
            layers += [ResidualBlock(width) for _ in range(_blocks(stage, channels, blocks))]
            layers += [nn.ReLU(), nn.ConvTranspose2d(width, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, grid: Tensor) -> Tensor:
        return self.layers(grid)


def _blocks(stage: int, channels: Sequence[int], blocks: int) -> int:
    return {len(channels) - 1: blocks, len(channels) - 2: blocks // 2}.get(stage, 0)
