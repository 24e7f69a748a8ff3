"""ACP : les k directions où les images varient le plus, sans un pas d'apprentissage.

Sources : Pearson, « On Lines and Planes of Closest Fit to Systems of Points in Space » (1901) ;
Hotelling, « Analysis of a Complex of Statistical Variables into Principal Components » (1933).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.blocks import check_codes, check_images


@dataclass(frozen=True, slots=True)
class PCAConfig:
    """Tailles d'une ACP.

    Attributes:
        size: côté S des images.
        code_dim: nombre k de composantes, au plus 3·S².
    """

    size: int = 64
    code_dim: int = 80

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.code_dim <= 3 * self.size**2:
            raise MinidalleError(
                f"Une ACP d'images de côté {self.size} n'a pas {self.code_dim} composantes : de 1 à 3·S²."
            )


def principal_axes(centred: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Les k premiers axes principaux de données centrées.

    Args:
        centred: (n, d), chaque colonne de moyenne nulle.
        k: nombre d'axes, au plus min(n, d).

    Returns:
        Les axes (k, d), orthonormés, du plus étendu au moins étendu, et l'écart-type le long de chacun (k,). Le
        signe d'un axe est arbitraire : sa plus grande coordonnée, en valeur absolue, est rendue positive.
    """
    n, d = centred.shape
    if n < d:
        # La matrice de Gram n × n a les mêmes valeurs propres non nulles que la covariance d × d.
        squares, left = torch.linalg.eigh(centred @ centred.T)  # valeurs propres croissantes
        values = squares.flip(0)[:k].clamp_min(0).sqrt()
        # QR plutôt que diviser par les valeurs singulières : l'une d'elles peut être nulle.
        axes = torch.linalg.qr(centred.T @ left.flip(1)[:, :k]).Q.T
    else:
        _, values, right = torch.linalg.svd(centred, full_matrices=False)
        values, axes = values[:k], right[:k]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return axes * largest.sign(), values / (n - 1) ** 0.5


class PCA(nn.Module):
    """Projection sur k composantes principales. Les images sont (B, 3, S, S), float, de 0 à 1.

    Attributes:
        mean: image moyenne, (3·S²,).
        components: axes principaux, (k, 3·S²), lignes orthonormées.
        scales: écart-type des images le long de chaque axe, (k,), décroissant.
    """

    Config = PCAConfig

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        self.config = config
        features = 3 * config.size**2
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("components", torch.zeros(config.code_dim, features))
        self.register_buffer("scales", torch.zeros(config.code_dim))

    @classmethod
    def fit(cls, images: Tensor, code_dim: int = 80) -> Self:
        """Ajuste une ACP à des images (n, 3, S, S), n > code_dim ; même résultat à chaque fois.

        Raises:
            MinidalleError: pas plus d'images que de composantes, images qui ne sont pas carrées ou pas finies.
        """
        check_images(images, empty=False)
        if images.shape[2] != images.shape[3]:
            raise MinidalleError(f"Images de forme {tuple(images.shape)} : les recadrer au carré.")
        if len(images) <= code_dim:
            # n images centrées n'ont que n − 1 directions.
            raise MinidalleError(f"{len(images)} images pour {code_dim} composantes : en donner davantage.")
        model = cls(PCAConfig(images.shape[-1], code_dim))
        flat = images.flatten(1).double()  # la matrice de Gram perd la moitié des décimales
        mean = flat.mean(0)
        axes, scales = principal_axes(flat - mean, code_dim)
        for buffer, value in ((model.mean, mean), (model.components, axes), (model.scales, scales)):
            buffer.copy_(value)
        return model.to(images.device).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Projection orthogonale (B, 3, S, S) des images, non bornée à [0, 1]."""
        return self._paint(self._codes(images, empty=False))

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """Erreur quadratique moyenne de la projection ; rien n'y est à apprendre."""
        return {"loss": F.mse_loss(self(images), images)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) → codes (B, k) : coordonnées le long des axes, centrées.

        Raises:
            MinidalleError: images d'une autre taille, pixels non finis, ou ACP jamais ajustée.
        """
        return self._codes(images)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k) → images (B, 3, S, S), de 0 à 1.

        Raises:
            MinidalleError: codes d'une autre dimension, ou ACP jamais ajustée.
        """
        check_codes(codes, self.config.code_dim)
        return self._paint(codes).clamp(0, 1)

    def _codes(self, images: Tensor, *, empty: bool = True) -> Tensor:
        check_images(images, size=self.config.size, empty=empty)
        return (images.flatten(1) - self.mean) @ self._axes().T

    def _paint(self, codes: Tensor) -> Tensor:
        side = self.config.size
        return (self.mean + codes @ self._axes()).unflatten(1, (3, side, side))

    def _axes(self) -> Tensor:
        if not self.components.any():
            raise MinidalleError("Cette ACP n'a vu aucune image : la créer par PCA.fit(images).")
        return self.components
