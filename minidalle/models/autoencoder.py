"""Auto-encodeur : un réseau résume l'image en k nombres, un autre la repeint d'après eux.

Sources : Baldi et Hornik, « Neural Networks and Principal Component Analysis » (1989), pour le cas linéaire ;
Rippel, Gelbart et Adams, « Learning Ordered Representations with Nested Dropout » (2014), pour les codes coupés.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.blocks import VectorDecoder, VectorEncoder, check_codes, check_images


@dataclass(frozen=True, slots=True)
class AutoEncoderConfig:
    """Tailles d'un auto-encodeur.

    Attributes:
        size: côté S des images.
        channels: largeur des étages ; chacun divise le côté par deux.
        blocks: blocs résiduels au plus petit étage.
        code_dim: nombre k de coordonnées du code.
        nested: couper des codes au hasard pendant l'entraînement, pour que les premières coordonnées portent
            l'essentiel et qu'un seul réseau serve à toutes les longueurs de code.
    """

    size: int = 64
    channels: tuple[int, ...] = (24, 48, 64)
    blocks: int = 2
    code_dim: int = 80
    nested: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or min(self.code_dim, *self.channels) < 1 or self.blocks < 0:
            raise MinidalleError(
                "Un auto-encodeur veut au moins un étage, un canal et une coordonnée de code."
            )


# --- codes coupés ---------------------------------------------------------------------------------


def truncate(codes: Tensor, lengths: Tensor | int) -> Tensor:
    """Codes dont seules les premières coordonnées restent, les autres mises à zéro.

    Args:
        codes: (B, k).
        lengths: coordonnées gardées, de 0 à k ; un entier pour toutes les lignes, ou un tenseur (B,).

    Returns:
        (B, k).

    Raises:
        MinidalleError: longueur hors de [0, k].
    """
    k = codes.shape[1]
    lengths = torch.as_tensor(lengths, device=codes.device)
    if lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= k:
        raise MinidalleError(f"Longueur de code impossible : garder de 0 à {k} coordonnées.")
    kept = torch.arange(k, device=codes.device) < lengths.reshape(-1, 1)
    return codes * kept


def nested_lengths(n: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """n longueurs de code (n,), int64 : k une fois sur deux, sinon de loi log-uniforme sur 1, …, k.

    P(m ≤ j) = ln(j + 1) / ln(k + 1) pour les codes coupés : doubler la longueur ajoute toujours la même
    probabilité, si bien que les codes très courts sont vus souvent.
    """
    whole, place = torch.rand(2, n, generator=generator)
    cut = (place * torch.tensor(k + 1.0).log()).exp().long().clamp(1, k)
    return torch.where(whole < 0.5, k, cut)


# --- modèle entier --------------------------------------------------------------------------------


class AutoEncoder(nn.Module):
    """Encodeur, code de k nombres, décodeur. Les images sont (B, 3, S, S), float, de 0 à 1."""

    Config = AutoEncoderConfig

    def __init__(self, config: AutoEncoderConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.channels, config.size)
        self.encoder = VectorEncoder(*shape, config.code_dim, config.blocks)
        self.decoder = VectorDecoder(*shape, config.code_dim, config.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction (B, 3, S, S), non bornée à [0, 1] ; à l'entraînement, d'après des codes coupés.

        Raises:
            MinidalleError: lot vide, images d'une autre taille, pixels qui ne sont pas des nombres finis.
        """
        codes = self._codes(images, empty=False)
        if self.training and self.config.nested:
            codes = truncate(codes, nested_lengths(*codes.shape).to(codes.device))
        return self._paint(codes)

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """Erreur quadratique moyenne, celle-là même que l'ACP rend minimale parmi les modèles linéaires."""
        return {"loss": F.mse_loss(self(images), images)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) → codes (B, k), jamais coupés."""
        return self._codes(images)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k), coupés ou non par `truncate` → images (B, 3, S, S), de 0 à 1.

        Raises:
            MinidalleError: codes d'une autre dimension.
        """
        check_codes(codes, self.config.code_dim)
        return self._paint(codes).clamp(0, 1)

    def _codes(self, images: Tensor, *, empty: bool = True) -> Tensor:
        check_images(images, size=self.config.size, empty=empty)
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        # Aucune borne : l'arrondi à huit bits connaît l'étendue de chaque coordonnée (evaluation/rates.py).
        return self.encoder(images).float()

    def _paint(self, codes: Tensor) -> Tensor:
        return (self.decoder(codes).float() + 1) / 2


class LinearAutoEncoder(nn.Module):
    """Le plus petit des auto-encodeurs : deux matrices, ni biais ni fonction d'activation (1989).

    Son minimum est l'ACP : `decoder.weight` (d, k) engendre alors le sous-espace des k premiers axes principaux.

    Args:
        features: nombre d de coordonnées des données, centrées.
        code_dim: nombre k d'unités cachées.
    """

    def __init__(self, features: int, code_dim: int) -> None:
        super().__init__()
        if not 1 <= code_dim <= features:
            raise MinidalleError(
                f"{code_dim} unités pour {features} coordonnées : en choisir de 1 à {features}."
            )
        self.encoder = nn.Linear(features, code_dim, bias=False)
        self.decoder = nn.Linear(code_dim, features, bias=False)

    def forward(self, centred: Tensor) -> Tensor:
        """Données centrées (n, d) → leur reconstruction (n, d)."""
        return self.decoder(self.encoder(centred))

    def loss(self, centred: Tensor) -> dict[str, Tensor]:
        """Erreur quadratique moyenne."""
        return {"loss": F.mse_loss(self(centred), centred)}
