"""VAE : une image devient une loi sur des codes, et l'on sait tirer des images nouvelles.

L'encodeur rend la moyenne et la variance d'une gaussienne q(z | x) ; le décodeur repeint un z tiré selon
elle ; une divergence KL retient q(z | x) près de la loi a priori N(0, I).

Sources : Kingma et Welling, « Auto-Encoding Variational Bayes » (2014) ; écart-type σ_x du décodeur
appris, Rybkin, Daniilidis et Levine, « Simple and Effective VAE Training with Calibrated Decoders » (2021).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError
from minidalle.models.blocks import VectorDecoder, VectorEncoder, check_codes, check_images


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """Tailles d'un VAE et poids de ses deux termes.

    Attributes:
        size: côté des images.
        channels: largeur des étages ; chacun divise le côté par deux.
        blocks: blocs résiduels au plus petit étage.
        code_dim: dimension k du code.
        beta: poids β de la KL ; à 1, la perte est l'opposé de l'ELBO, et seulement à 1.
        beta_warmup: pas d'entraînement pendant lesquels ce poids monte de 0 à β, en ligne droite.
        free_bits: nats de KL qu'une dimension reçoit sans payer, en moyenne sur le lot ; 0 pour aucun.
    """

    size: int = 64
    channels: tuple[int, ...] = (24, 48, 64)
    blocks: int = 2
    code_dim: int = 80
    beta: float = 20.0
    beta_warmup: int = 2000
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or min(self.code_dim, *self.channels) < 1 or self.blocks < 0:
            raise MinidalleError("Un VAE veut au moins un étage, un canal et une dimension de code.")
        if not all(math.isfinite(w) and w >= 0 for w in (self.beta, self.beta_warmup, self.free_bits)):
            raise MinidalleError("β, sa montée et les nats gratuits d'un VAE doivent être positifs ou nuls.")


def reparametrize(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """z = μ + σ ⊙ ε, où ε ~ N(0, I) : un tirage de N(μ, σ²) que le gradient traverse (2014, §2.4).

    Args:
        mean, log_variance: μ et ln σ², de même forme.
        generator: source du hasard ; None pour celle de torch.

    Returns:
        z, de la même forme.
    """
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + (log_variance / 2).exp() * noise


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − ln σ²), exacte (2014, annexe B).

    Args:
        mean, log_variance: (B, k).

    Returns:
        (B,), en nats, jamais négative.
    """
    return _kl_by_dimension(mean, log_variance).sum(1)


def _kl_by_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    # expm1 garde les décimales quand σ² est proche de 1.
    return (mean.square() + torch.expm1(log_variance) - log_variance) / 2


def gaussian_nll(painted: Tensor, images: Tensor, log_sigma: Tensor) -> Tensor:
    """−ln N(x ; x̂, σ_x² I) : ½ Σ ((x − x̂)² / σ_x² + ln 2πσ_x²), sommée sur les pixels et les canaux.

    Args:
        painted, images: x̂ et x, (B, 3, H, W).
        log_sigma: ln σ_x, scalaire.

    Returns:
        (B,), en nats. C'est une densité : elle devient négative quand σ_x est petit.
    """
    errors = (painted - images).square().flatten(1)
    constant = errors.shape[1] * (log_sigma + math.log(2 * math.pi) / 2)
    return errors.sum(1) * torch.exp(-2 * log_sigma) / 2 + constant


class VAE(nn.Module):
    """Encodeur vers une gaussienne, tirage, décodeur. Les images sont (B, 3, S, S), float, de 0 à 1."""

    Config = VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.channels, config.size)
        self.encoder = VectorEncoder(*shape, 2 * config.code_dim, config.blocks)
        self.decoder = VectorDecoder(*shape, config.code_dim, config.blocks)
        self.log_sigma = nn.Parameter(torch.tensor(-1.5))  # ln σ_x : au départ, l'écart-type des images
        self.register_buffer("step", torch.tensor(0))

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, tire un code par image, repeint.

        Returns:
            La reconstruction (B, 3, S, S), non bornée à [0, 1], puis la moyenne et le logarithme de la
            variance (B, k) de la loi q(z | x).

        Raises:
            MinidalleError: images d'une autre taille, ou pixels qui ne sont pas des nombres.
        """
        mean, log_variance = self._posterior(images)
        return self._paint(reparametrize(mean, log_variance, generator)), mean, log_variance

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """(−ln p(x | z) + β · KL), par nombre de l'image, et de quoi la suivre.

        « reconstruction » (−ln p(x | z)) et « kl » sont en nats par image ; « active » compte les dimensions
        dont la KL moyenne dépasse un centième de nat ; « sigma » est σ_x.
        """
        check_images(images, size=self.config.size, empty=False)
        painted, mean, log_variance = self(images)
        reconstruction = gaussian_nll(painted, images, self.log_sigma).mean()
        by_dimension = _kl_by_dimension(mean, log_variance).mean(0)
        # Sous `free_bits`, une dimension ne coûte plus rien de plus : la vider ne rapporte rien.
        paid = by_dimension.clamp_min(self.config.free_bits).sum()
        loss = (reconstruction + self._kl_weight() * paid) / images[0].numel()
        if self.training:
            self.step += 1
        return {
            "loss": loss,
            "reconstruction": reconstruction.detach(),
            "kl": by_dimension.sum().detach(),
            "active": (by_dimension > 0.01).sum().detach(),
            "sigma": self.log_sigma.detach().exp(),
        }

    @torch.no_grad()
    def elbo(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Estimation, sur un tirage de z, d'une borne inférieure de ln p(x), en nats par image → (B,)."""
        painted, mean, log_variance = self(images, generator)
        return -gaussian_nll(painted, images, self.log_sigma) - gaussian_kl(mean, log_variance)

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Moyenne et logarithme de la variance (B, k) de q(z | x)."""
        return self._posterior(images)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) → codes (B, k) : la moyenne de q(z | x)."""
        return self._posterior(images)[0]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k) → images (B, 3, S, S), de 0 à 1.

        Raises:
            MinidalleError: codes d'une autre dimension.
        """
        check_codes(codes, self.config.code_dim)
        return self._paint(codes).clamp(0, 1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images nouvelles (n, 3, S, S), de 0 à 1 : z tiré de la loi a priori N(0, I), puis décodé."""
        if n < 0:
            raise MinidalleError(f"{n} images à tirer : en demander un nombre positif.")
        zeros = self.log_sigma.new_zeros(n, self.config.code_dim)
        return self.decode(reparametrize(zeros, zeros, generator))

    def _kl_weight(self) -> float:
        """β, ou la part de β que la montée a atteinte, à l'entraînement seulement."""
        if self.training and int(self.step) < self.config.beta_warmup:
            return self.config.beta * int(self.step) / self.config.beta_warmup
        return self.config.beta

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_images(images, size=self.config.size)
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        # Une variance hors de toute mesure rendrait la perte infinie d'un seul coup.
        return mean, log_variance.clamp(-20, 10)

    def _paint(self, codes: Tensor) -> Tensor:
        return (self.decoder(codes).float() + 1) / 2
