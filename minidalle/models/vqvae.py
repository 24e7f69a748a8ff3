"""VQ-VAE : une image devient une petite grille de numéros pris dans un dictionnaire appris.

Source : van den Oord, Vinyals et Kavukcuoglu, « Neural Discrete Representation Learning » (2017) ;
dictionnaire suivi par moyenne mobile (annexe A.1 de l'article), codes morts remis en jeu.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.blocks import Decoder, Encoder


@dataclass(frozen=True, slots=True)
class VQVAEConfig:
    """Tailles d'un VQ-VAE.

    Attributes:
        channels: largeur des étages ; chacun divise le côté de l'image par deux.
        blocks: blocs résiduels au plus petit étage.
        codes: nombre K d'entrées du dictionnaire.
        code_dim: dimension D d'une entrée.
        commitment: poids β de la perte d'engagement.
        decay: inertie γ de la moyenne mobile du dictionnaire.
        dead_below: un code dont l'effectif moyen par lot tombe sous ce seuil est remis en jeu ; 0 pour jamais.
    """

    channels: tuple[int, ...] = (48, 64, 128)
    blocks: int = 2
    codes: int = 1024
    code_dim: int = 16
    commitment: float = 0.25
    decay: float = 0.98
    dead_below: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if min(self.codes, self.code_dim, *self.channels) < 1 or not self.channels:
            raise MinidalleError("Un VQ-VAE veut au moins un étage, un canal, un code et une dimension.")

    @property
    def factor(self) -> int:
        """Facteur de réduction f : une image de côté S donne une grille de côté S/f."""
        return 2 ** len(self.channels)


class Quantized(NamedTuple):
    """Ce que rend le quantificateur.

    vectors: (..., D), égaux aux codes choisis ; leur gradient passe tel quel à l'entrée.
    tokens: (...), int64 dans [0, K).
    commitment: scalaire, erreur quadratique moyenne entre l'entrée et les codes choisis, sans β.
    perplexity: scalaire entre 1 et K, nombre effectif de codes dans ce lot.
    """

    vectors: Tensor
    tokens: Tensor
    commitment: Tensor
    perplexity: Tensor


class VectorQuantizer(nn.Module):
    """Remplace chaque vecteur par le plus proche des K codes.

    En mode entraînement, le dictionnaire se déplace vers les vecteurs qui le choisissent : moyenne
    mobile des effectifs et des sommes, avec lissage de Laplace. Les codes partent d'un tirage du
    premier lot, et ceux que plus rien ne choisit repartent d'un vecteur du lot courant.
    """

    def __init__(self, codes: int, dim: int, decay: float = 0.98, dead_below: float = 0.05) -> None:
        super().__init__()
        self.decay, self.dead_below = decay, dead_below
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, vectors: Tensor) -> Quantized:
        """`vectors` : (..., D). Hors du mode entraînement, le dictionnaire ne bouge pas."""
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        if self.training and not self.started:
            self._start(flat.detach())
        # En précision réduite, les distances seraient trop grossières pour choisir le bon code.
        with torch.autocast(flat.device.type, enabled=False):
            tokens = self.nearest(flat)
        quantized = self.codebook[tokens].view_as(vectors)
        if self.training:
            self._follow(flat.detach(), tokens)
        commitment = F.mse_loss(vectors, quantized.detach())
        # Passage direct : la valeur est celle du code, le gradient celui de l'entrée.
        quantized = vectors + (quantized - vectors).detach()
        shares = torch.bincount(tokens, minlength=len(self.codebook)) / len(tokens)
        perplexity = torch.exp(-(shares * torch.log(shares.clamp_min(1e-10))).sum())
        return Quantized(quantized, tokens.view(vectors.shape[:-1]), commitment, perplexity)

    def nearest(self, flat: Tensor) -> Tensor:
        """Numéro du code le plus proche de chaque ligne de `flat` (N, D) → (N,)."""
        # ‖v − e‖² = ‖v‖² − 2 v·e + ‖e‖², où ‖v‖² ne change pas le classement.
        distances = torch.addmm(self.codebook.square().sum(1), flat, self.codebook.T, alpha=-2)
        return distances.argmin(1)

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        picks = torch.randint(len(flat), (len(self.codebook),))
        # Un rien de bruit sépare les codes partis du même vecteur.
        self.codebook.copy_(flat[picks] + 1e-3 * torch.randn_like(self.codebook))
        self.sums.copy_(self.codebook)
        self.counts.fill_(1)
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, flat: Tensor, tokens: Tensor) -> None:
        counts = torch.bincount(tokens, minlength=len(self.codebook)).to(flat.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, tokens, flat)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        if self.dead_below > 0:
            dead = torch.nonzero(self.counts < self.dead_below).flatten()
            if len(dead):
                self.sums[dead] = flat[torch.randint(len(flat), (len(dead),))]
                self.counts[dead] = 1
        # Lissage de Laplace : un code presque sans effectif ne part pas à l'infini.
        total = self.counts.sum()
        smoothed = (self.counts + 1e-5) / (total + len(self.counts) * 1e-5) * total
        self.codebook.copy_(self.sums / smoothed[:, None])


class VQVAE(nn.Module):
    """Encodeur, quantificateur, décodeur. Les images sont (B, 3, H, W), float, de 0 à 1."""

    Config = VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.channels, config.code_dim, config.blocks)
        self.quantizer = VectorQuantizer(config.codes, config.code_dim, config.decay, config.dead_below)
        self.decoder = Decoder(config.channels, config.code_dim, config.blocks)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (B, 3, H, W), non bornée à [0, 1], et résultat du quantificateur.

        Raises:
            MinidalleError: image dont la forme n'est pas (B, 3, H, W), ou dont le côté n'est pas un
                multiple du facteur de réduction.
        """
        quantized = self.quantizer(self._vectors(images))
        return self._paint(quantized.vectors), quantized

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """Perte L1 + L2 de reconstruction + β · engagement, et de quoi la suivre.

        L1 garde les contours nets, L2 punit les grosses fautes de couleur.
        """
        painted, quantized = self(images)
        painted = painted.float()
        reconstruction = F.l1_loss(painted, images) + F.mse_loss(painted, images)
        return {
            "loss": reconstruction + self.config.commitment * quantized.commitment,
            "reconstruction": reconstruction.detach(),
            "commitment": quantized.commitment.detach(),
            "perplexity": quantized.perplexity,
        }

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) → jetons (B, H/f, W/f), int64 dans [0, K)."""
        vectors = self._vectors(images)
        return self.quantizer.nearest(vectors.flatten(0, 2)).view(vectors.shape[:3])

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Jetons (B, h, w) → images (B, 3, h·f, w·f), de 0 à 1.

        Raises:
            MinidalleError: jeton hors de [0, K).
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.codes:
            raise MinidalleError(f"Jetons d'image hors de 0 à {self.config.codes - 1} : changer de modèle.")
        return self._paint(self.quantizer.codebook[tokens]).clamp(0, 1)

    def _vectors(self, images: Tensor) -> Tensor:
        f = self.config.factor
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % f or images.shape[3] % f:
            raise MinidalleError(
                f"Images de forme {tuple(images.shape)} : il faut (B, 3, H, W), H et W multiples de {f}."
            )
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return self.encoder(images).float().permute(0, 2, 3, 1)

    def _paint(self, vectors: Tensor) -> Tensor:
        return (self.decoder(vectors.permute(0, 3, 1, 2)) + 1) / 2
