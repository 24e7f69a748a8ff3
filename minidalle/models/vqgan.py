"""VQGAN : un VQ-VAE plus profond, jugé par un œil préentraîné et par un critique qui apprend contre lui.

Source : Esser, Rombach et Ommer, « Taming Transformers for High-Resolution Image Synthesis » (2021) et leur
code, taming-transformers. C'est l'auto-encodeur de DALL·E mini.
"""

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.blocks import check_images, check_tokens
from minidalle.models.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    known_gradient,
)
from minidalle.models.resnet import Decoder, Encoder
from minidalle.models.vqvae import Quantized, VectorQuantizer


class Perceiver(Protocol):
    """L'œil donné au VQGAN : `minidalle.evaluation.perceptual.Features` en est un."""

    def distance(self, originals: Tensor, copies: Tensor) -> Tensor:
        """Distance (B,) entre deux lots (B, 3, H, W), de 0 à 1, dérivable par rapport au second."""


@dataclass(frozen=True, slots=True)
class VQGANConfig:
    """Tailles et pertes d'un VQGAN.

    Celui de DALL·E mini : `channels=128, multipliers=(1, 1, 2, 2, 4), blocks=2, attention=(4,), groups=32,
    grid_channels=256, code_dim=256, codes=16_384`, images de 256 pixels, grille de 16 × 16.

    Attributes:
        channels: largeur de base.
        multipliers: largeur de chaque étage, en multiples de `channels` ; le côté est divisé par 2 entre deux étages.
        blocks: blocs résiduels de chaque étage de l'encodeur, ou un nombre pour tous ; le décodeur en a un de plus.
        attention: étages (0 pour la pleine définition) où un bloc d'attention suit chaque bloc résiduel.
        groups: groupes de canaux normalisés ensemble, ou leur plus grand diviseur commun avec les canaux.
        grid_channels: canaux de la grille que rend l'encodeur, avant la projection vers les codes.
        codes: nombre K d'entrées du dictionnaire.
        code_dim: dimension D d'une entrée.
        commitment: poids β de la perte d'engagement.
        decay: inertie de la moyenne mobile du dictionnaire ; 0 pour l'apprendre par gradient, comme l'article.
        dead_below, init: remise en jeu et départ des codes (voir `VectorQuantizer`).
        perceptual: poids de la distance perceptuelle ; 0 pour s'en passer.
        adversarial: poids de la perte antagoniste, avant λ ; 0 pour se passer de critique.
        discriminator_width, discriminator_layers: tailles du critique.
        discriminator_start: pas à partir duquel le critique note l'auto-encodeur.
        discriminator_lead: pas d'avance pendant lesquels le critique apprend sans être écouté.
        encoder: faux pour un détokeniseur, qui peint des jetons et ne lit pas d'image.
    """

    channels: int = 16
    multipliers: tuple[int, ...] = (1, 1, 3, 4)
    blocks: int | tuple[int, ...] = (0, 1, 1, 1)
    attention: tuple[int, ...] = (3,)
    groups: int = 4
    grid_channels: int = 16
    codes: int = 1024
    code_dim: int = 16
    commitment: float = 0.25
    decay: float = 0.98
    dead_below: float = 0.05
    init: str = "batch"
    perceptual: float = 1.0
    adversarial: float = 0.8
    discriminator_width: int = 24
    discriminator_layers: int = 2
    discriminator_start: int = 0
    discriminator_lead: int = 0
    encoder: bool = True

    def __post_init__(self) -> None:
        stages = len(self.multipliers)
        if isinstance(self.blocks, int):
            object.__setattr__(self, "blocks", stages * (self.blocks,))
        for name in ("blocks", "multipliers", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = (self.channels, *self.multipliers, self.groups, self.grid_channels, self.codes, self.code_dim)
        if min(*sizes, self.discriminator_width, self.discriminator_layers) < 1 or not stages:
            raise MinidalleError("Un VQGAN veut au moins un étage, un canal, un groupe, un code, une couche.")
        if len(self.blocks) != stages or not set(self.attention) <= set(range(stages)):
            raise MinidalleError(f"Il y a {stages} étage(s) : accorder `blocks` et `attention`.")
        wider = [a != b for a, b in itertools.pairwise((1, *self.multipliers))]
        if any(count < change for count, change in zip(self.blocks, wider, strict=True)):
            raise MinidalleError("Un étage qui change de largeur veut au moins un bloc résiduel.")
        weights = (self.commitment, self.perceptual, self.adversarial)
        if min(*weights, self.discriminator_start, self.discriminator_lead) < 0:
            raise MinidalleError("Un poids ou un départ ne peut être négatif : mettre 0 pour s'en passer.")

    @property
    def factor(self) -> int:
        """Facteur de réduction f : une image de côté S donne une grille de côté S/f."""
        return 2 ** (len(self.multipliers) - 1)


class VQGAN(nn.Module):
    """Encodeur, quantificateur, décodeur, critique. Les images sont (B, 3, H, W), float, de 0 à 1.

    Attributes:
        features: l'œil de la distance perceptuelle, que seule `loss` demande. Il ne fait pas partie des poids.
        step: pas d'entraînement déjà faits.
        frozen: vrai après `freeze_tokens`.
    """

    Config = VQGANConfig

    def __init__(self, config: VQGANConfig, features: Perceiver | None = None) -> None:
        super().__init__()
        self.config, self.features, self.frozen = config, features, False
        widths = [config.channels * multiple for multiple in (1, *config.multipliers)]
        sizes = widths, config.grid_channels, config.blocks, config.attention, config.groups
        self.encoder = Encoder(*sizes) if config.encoder else None
        self.decoder = Decoder(*sizes)
        self.quant_conv = nn.Conv2d(config.grid_channels, config.code_dim, 1) if config.encoder else None
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.grid_channels, 1)
        self.quantizer = VectorQuantizer(
            config.codes, config.code_dim, config.decay, config.dead_below, config.init
        )
        self.discriminator = PatchDiscriminator(config.discriminator_width, config.discriminator_layers)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (B, 3, H, W), non bornée à [0, 1], et résultat du quantificateur."""
        check_images(images, self.config.factor, empty=False)
        quantized = self.quantizer(self._vectors(images))
        return (self.decoder(self._grid(quantized.vectors)) + 1) / 2, quantized

    def freeze_tokens(self) -> None:
        """Fige encodeur et dictionnaire : on affine la peinture, et les jetons que lit un transformeur restent bons."""
        self.frozen = True
        for part in filter(None, (self.encoder, self.quant_conv, self.quantizer)):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VQGAN":
        super().train(mode)
        self.quantizer.train(mode and not self.frozen)
        return self

    def players(self) -> list[list[nn.Parameter]]:
        """Les deux adversaires : l'auto-encodeur, puis le critique."""
        critic = list(self.discriminator.parameters())
        return [[p for p in self.parameters() if all(p is not q for q in critic)], critic]

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """Pertes des deux joueurs, additionnées : aucune n'a de gradient chez l'autre.

        L'auto-encodeur réduit L1 + perceptuelle + λ · antagoniste + dictionnaire (équations 5 à 7 de
        l'article) ; le critique, sa perte charnière. Contrairement à taming, la même reconstruction et les
        mêmes notes servent aux deux.

        Raises:
            MinidalleError: images impossibles, ou distance perceptuelle demandée sans `features`.
        """
        config = self.config
        check_images(images, config.factor, empty=False)
        quantized = self.quantizer(self._vectors(images))
        hidden = self.decoder.hidden(self._grid(quantized.vectors))
        painted = self.decoder.conv_out(hidden).float()
        with torch.enable_grad():
            # Les pertes s'arrêtent à cette copie : leur gradient, calculé une fois, sert à λ, puis au décodeur.
            copy = painted.detach().requires_grad_()
            reconstruction = F.l1_loss(copy, 2 * images - 1)
            perceptual = self._perceptual(images, copy)
            value = reconstruction + config.perceptual * perceptual
            (gradient,) = torch.autograd.grad(value, copy)
            game, slope = self._play(2 * images - 1, copy)
        if slope is not None:
            game["adaptive"] = adaptive_weight(*(self._last_layer(hidden, g) for g in (gradient, slope)))
            weight = config.adversarial * game["adaptive"]
            value, gradient = value + weight * game["generator"], gradient + weight * slope
        if self.training:
            self.step += 1
        total = known_gradient(value, [gradient], [painted])
        total = total + config.commitment * quantized.commitment + quantized.codebook + game["discriminator"]
        game |= {"reconstruction": reconstruction, "perceptual": perceptual}
        game |= {"commitment": quantized.commitment, "perplexity": quantized.perplexity}
        return {"loss": total} | {name: term.detach() for name, term in game.items()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) → jetons (B, H/f, W/f), int64 dans [0, K)."""
        check_images(images, self.config.factor)
        vectors = self._vectors(images)
        return self.quantizer.nearest(vectors.flatten(0, 2)).view(vectors.shape[:3])

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Jetons (B, h, w) → images (B, 3, h·f, w·f), de 0 à 1.

        Raises:
            MinidalleError: jeton hors de [0, K), ou grille qui n'est pas d'entiers (B, h, w).
        """
        check_tokens(tokens, self.config.codes)
        painted = self.decoder(self._grid(F.embedding(tokens.long(), self.quantizer.codebook)))
        return ((painted.float() + 1) / 2).clamp(0, 1)

    def _vectors(self, images: Tensor) -> Tensor:
        if self.encoder is None:
            raise MinidalleError("Ce VQGAN n'a pas d'encodeur : il peint des jetons, et ne lit pas d'image.")
        return self.quant_conv(self.encoder(2 * images - 1)).float().permute(0, 2, 3, 1)

    def _grid(self, vectors: Tensor) -> Tensor:
        return self.post_quant_conv(vectors.permute(0, 3, 1, 2))

    def _perceptual(self, images: Tensor, copy: Tensor) -> Tensor:
        """Distance perceptuelle moyenne entre images de 0 à 1 et copies de −1 à 1."""
        if not self.config.perceptual:
            return copy.new_zeros(())
        if self.features is None:
            raise MinidalleError(
                "La perte perceptuelle demande un œil : model.features = perceptual.Features.load(), ou perceptual=0."
            )
        return self.features.distance(images, (copy + 1) / 2).mean()

    def _play(self, images: Tensor, copy: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Une manche du jeu, images de −1 à 1 : mesures, et pente de la perte antagoniste si elle compte."""
        game = dict.fromkeys(("discriminator", "generator", "adaptive", "real", "fake"), copy.new_zeros(()))
        late = int(self.step) - self.config.discriminator_start
        if not self.config.adversarial or late < -self.config.discriminator_lead:
            return game, None
        real, fake = (self.discriminator(x).float() for x in (images, copy))
        game |= {"generator": generator_loss(fake), "real": real.mean(), "fake": fake.mean()}
        slope = None
        if late >= 0:
            (slope,) = torch.autograd.grad(game["generator"], copy, retain_graph=True)
        loss, parameters = discriminator_loss(real, fake), list(self.discriminator.parameters())
        # Le gradient du critique s'arrête à ses propres poids : il ne remonte pas dans la copie.
        gradients = torch.autograd.grad(loss, parameters)
        game["discriminator"] = known_gradient(loss, gradients, parameters)
        return game, slope

    def _last_layer(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Gradient des poids de la dernière convolution, d'après celui de l'image peinte."""
        shape = self.decoder.conv_out.weight.shape
        return torch.nn.grad.conv2d_weight(hidden.detach().float(), shape, gradient, padding=1)
