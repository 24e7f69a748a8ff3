"""Ce que partagent les auto-encodeurs du livre : blocs de convolution, encodeurs, décodeurs, vérifications."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError


def check_images(images: Tensor, factor: int = 1, size: int | None = None, *, empty: bool = True) -> None:
    """Refuse ce qu'un auto-encodeur ne saurait lire.

    Args:
        images: (B, 3, H, W).
        factor: H et W doivent en être des multiples.
        size: s'il est donné, H et W doivent valoir `size`.
        empty: accepter un lot sans image.

    Raises:
        MinidalleError: forme, côté ou pixels impossibles.
    """
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3 or min(shape[2:]) < 1 or shape[2] % factor or shape[3] % factor:
        raise MinidalleError(f"Images de forme {shape} : il faut (B, 3, H, W), H et W multiples de {factor}.")
    if size is not None and shape[2:] != (size, size):
        raise MinidalleError(
            f"Images de {shape[2]} × {shape[3]} pixels : ce modèle en veut {size} × {size}, les redimensionner."
        )
    if not images.is_floating_point():
        raise MinidalleError(f"Pixels de type {images.dtype} : les convertir en flottants de 0 à 1.")
    if not empty and not len(images):
        raise MinidalleError("Lot vide : donner au moins une image.")
    # Un seul pixel infini ou non numérique rend la somme non finie.
    if not torch.isfinite(images.sum()):
        raise MinidalleError("Des pixels ne sont pas des nombres finis : vérifier la lecture des images.")


def check_codes(codes: Tensor, dim: int) -> None:
    """Refuse des codes qui ne sont pas (B, dim).

    Raises:
        MinidalleError: codes d'une autre forme.
    """
    if codes.ndim != 2 or codes.shape[1] != dim:
        raise MinidalleError(f"Codes de forme {tuple(codes.shape)} : ce modèle en veut (B, {dim}).")


def check_tokens(tokens: Tensor, codes: int) -> None:
    """Refuse des jetons qui ne sont pas des entiers (B, h, w), de 0 à codes − 1.

    Raises:
        MinidalleError: autre forme, autre type, ou jeton hors du dictionnaire.
    """
    if tokens.ndim != 3 or tokens.is_floating_point() or ((tokens < 0) | (tokens >= codes)).any():
        raise MinidalleError(f"Jetons impossibles : donner des entiers (B, h, w), de 0 à {codes - 1}.")


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


class VectorEncoder(nn.Module):
    """Image (B, 3, S, S) → vecteur (B, out) : un `Encoder`, puis une couche linéaire.

    Args:
        channels: largeur de chaque étage.
        size: côté S des images, multiple de 2 puissance le nombre d'étages.
        out: nombre de coordonnées.
        blocks: blocs résiduels du dernier étage.
        thin: canaux de la grille juste avant la couche linéaire ; peu, pour qu'elle reste petite.
    """

    def __init__(self, channels: Sequence[int], size: int, out: int, blocks: int = 2, thin: int = 16) -> None:
        super().__init__()
        side = _grid_side(channels, size)
        self.layers = nn.Sequential(
            Encoder(channels, thin, blocks), nn.Flatten(), nn.Linear(thin * side * side, out)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class VectorDecoder(nn.Module):
    """Le miroir de `VectorEncoder` : vecteur (B, code_dim) → image (B, 3, S, S)."""

    def __init__(
        self, channels: Sequence[int], size: int, code_dim: int, blocks: int = 2, thin: int = 16
    ) -> None:
        super().__init__()
        side = _grid_side(channels, size)
        self.layers = nn.Sequential(
            nn.Linear(code_dim, thin * side * side),
            nn.Unflatten(1, (thin, side, side)),
            Decoder(channels, thin, blocks),
        )

    def forward(self, codes: Tensor) -> Tensor:
        return self.layers(codes)


def _grid_side(channels: Sequence[int], size: int) -> int:
    factor = 2 ** len(channels)
    if size < factor or size % factor:
        raise MinidalleError(f"Côté d'image {size} impossible : choisir un multiple de {factor}.")
    return size // factor


def _blocks(stage: int, channels: Sequence[int], blocks: int) -> int:
    return {len(channels) - 1: blocks, len(channels) - 2: blocks // 2}.get(stage, 0)
