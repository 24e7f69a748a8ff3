"""VQ-VAE : une image devient une petite grille de numéros pris dans un dictionnaire appris.

Source : van den Oord, Vinyals et Kavukcuoglu, « Neural Discrete Representation Learning » (2017) ;
dictionnaire appris par gradient, ou suivi par moyenne mobile (annexe A.1), codes morts remis en jeu.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.blocks import Decoder, Encoder, check_images, check_tokens

INITS = ("batch", "kmeans", "normal", "uniform")
_ROWS = 512  # vecteurs comparés à la fois aux codes : les distances restent dans le cache


@dataclass(frozen=True, slots=True)
class VQVAEConfig:
    """Tailles d'un VQ-VAE.

    Attributes:
        channels: largeur des étages ; chacun divise le côté de l'image par deux.
        blocks: blocs résiduels au plus petit étage.
        codes: nombre K d'entrées du dictionnaire.
        code_dim: dimension D d'une entrée.
        commitment: poids β de la perte d'engagement.
        decay, dead_below, init: voir `VectorQuantizer`.
    """

    channels: tuple[int, ...] = (48, 64, 128)
    blocks: int = 2
    codes: int = 1024
    code_dim: int = 16
    commitment: float = 0.25
    decay: float = 0.98
    dead_below: float = 0.05
    init: str = "batch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or min(self.channels) < 1 or self.blocks < 0 or self.commitment < 0:
            raise MinidalleError("Un VQ-VAE veut au moins un étage, un canal, et un engagement positif.")
        _check_codebook(self.codes, self.code_dim, self.decay, self.dead_below, self.init)

    @property
    def factor(self) -> int:
        """Facteur de réduction f : une image de côté S donne une grille de côté S/f."""
        return 2 ** len(self.channels)


def straight_through(vectors: Tensor, codes: Tensor) -> Tensor:
    """Passage direct : la valeur est celle des codes, le gradient va tel quel aux vecteurs."""
    return vectors + (codes - vectors).detach()


def commitment_loss(vectors: Tensor, codes: Tensor) -> Tensor:
    """Moyenne de (z − sg[e])² : n'attire que les vecteurs, vers leurs codes."""
    return F.mse_loss(vectors, codes.detach())


def codebook_loss(vectors: Tensor, codes: Tensor) -> Tensor:
    """Moyenne de (sg[z] − e)² : même valeur, mais n'attire que les codes, vers leurs vecteurs."""
    return F.mse_loss(codes, vectors.detach())


def reconstruction_loss(painted: Tensor, images: Tensor) -> Tensor:
    """L1 + L2 : la première garde les contours nets, la seconde punit les grosses fautes de couleur."""
    return F.l1_loss(painted, images) + F.mse_loss(painted, images)


class Quantized(NamedTuple):
    """Ce que rend le quantificateur ; les trois derniers sont des scalaires."""

    vectors: Tensor  # (..., D), égaux aux codes choisis ; leur gradient passe tel quel à l'entrée
    tokens: Tensor  # (...), int64 dans [0, K)
    commitment: Tensor  # perte d'engagement, sans β
    perplexity: Tensor  # entre 1 et K, nombre effectif de codes dans ce lot
    codebook: Tensor  # perte du dictionnaire ; nulle s'il suit une moyenne mobile


class VectorQuantizer(nn.Module):
    """Remplace chaque vecteur par le plus proche des K codes.

    En mode entraînement, le dictionnaire se déplace vers les vecteurs qui le choisissent, et les codes
    que plus rien ne choisit repartent d'un vecteur du lot courant.

    Args:
        codes, dim: nombre K de codes et leur dimension D.
        decay: inertie γ de la moyenne mobile des effectifs et des sommes, avec lissage de Laplace ;
            0 pour un dictionnaire appris par gradient, de perte `Quantized.codebook`.
        dead_below: effectif moyen par lot sous lequel un code est remis en jeu ; 0 pour jamais.
        init: départ des codes : « batch », vecteurs du premier lot ; « kmeans », k-moyennes de ce lot ;
            « normal », loi normale centrée réduite ; « uniform », loi uniforme entre −1/K et 1/K.
    """

    def __init__(
        self, codes: int, dim: int, decay: float = 0.98, dead_below: float = 0.05, init: str = "batch"
    ) -> None:
        super().__init__()
        _check_codebook(codes, dim, decay, dead_below, init)
        self.decay, self.dead_below, self.init = decay, dead_below, init
        codebook = torch.randn(codes, dim) if init != "uniform" else (2 * torch.rand(codes, dim) - 1) / codes
        if decay:
            self.register_buffer("codebook", codebook)
            self.register_buffer("sums", codebook.clone())
        else:
            self.codebook = nn.Parameter(codebook)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("started", torch.tensor(init in ("normal", "uniform")))

    def forward(self, vectors: Tensor) -> Quantized:
        """`vectors` : (..., D). Hors du mode entraînement, le dictionnaire ne bouge pas.

        Raises:
            MinidalleError: aucun vecteur, ou des coordonnées qui ne sont pas des nombres finis.
        """
        flat = vectors.detach().reshape(-1, vectors.shape[-1]).to(self.codebook.dtype)
        if not len(flat) or not torch.isfinite(flat.sum()):
            raise MinidalleError("Vecteurs absents ou infinis : vérifier les images, baisser le taux.")
        if self.training and not self.started:
            self._start(flat)
        tokens = self.nearest(flat)
        codes = F.embedding(tokens, self.codebook).view_as(vectors)
        used = torch.bincount(tokens, minlength=len(self.codebook)).to(flat.dtype)
        if self.training:
            self._follow(flat, tokens, used)
        return Quantized(
            vectors=straight_through(vectors, codes),
            tokens=tokens.view(vectors.shape[:-1]),
            commitment=commitment_loss(vectors, codes),
            perplexity=torch.special.entr(used / len(flat)).sum().exp(),
            codebook=vectors.new_zeros(()) if self.decay else codebook_loss(vectors, codes),
        )

    @torch.no_grad()
    def nearest(self, flat: Tensor) -> Tensor:
        """Numéro du code le plus proche de chaque ligne de `flat` (N, D) → (N,)."""
        # ‖v − e‖² = ‖v‖² − 2 v·e + ‖e‖², où ‖v‖² ne change pas le classement.
        norms, directions = self.codebook.square().sum(1), -2 * self.codebook.T
        # En précision réduite, les distances seraient trop grossières pour choisir le bon code.
        with torch.autocast(flat.device.type, enabled=False):
            return torch.cat([torch.addmm(norms, v, directions).argmin(1) for v in flat.split(_ROWS)])

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        # Un rien de bruit sépare les codes partis du même vecteur.
        codes = flat[torch.randint(len(flat), self.counts.shape)] + 1e-3 * torch.randn_like(self.codebook)
        if self.init == "kmeans":
            from scipy.cluster.vq import kmeans2  # lourd, et inutile à qui ne fait que dessiner

            with warnings.catch_warnings(action="ignore"):  # un centre sans vecteur reste où il est
                centres, _ = kmeans2(flat.cpu().numpy(), codes.cpu().numpy(), minit="matrix")
            codes = torch.from_numpy(centres).to(flat)
        self._place(slice(None), codes)
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, flat: Tensor, tokens: Tensor, used: Tensor) -> None:
        """Déplace le dictionnaire d'après un lot : vecteurs (N, D), leurs codes (N,), effectifs (K,)."""
        self.counts.lerp_(used, 1 - (self.decay or 0.98))  # appris par gradient, il compte quand même
        if self.decay:
            sums = torch.zeros_like(self.sums).index_add_(0, tokens, flat)
            self.sums.lerp_(sums, 1 - self.decay)
        dead = torch.nonzero(self.counts < self.dead_below).flatten()
        self._place(dead, flat[torch.randint(len(flat), dead.shape)])
        if self.decay:
            # Lissage de Laplace : un code presque sans effectif ne part pas à l'infini.
            total = self.counts.sum()
            smoothed = (self.counts + 1e-5) / (total + len(self.counts) * 1e-5) * total
            self.codebook.copy_(self.sums / smoothed[:, None])

    def _place(self, which: Tensor | slice, codes: Tensor) -> None:
        """Pose des codes comme s'ils venaient d'être choisis une fois par lot."""
        self.codebook.data[which] = codes
        self.counts[which] = 1
        if self.decay:
            self.sums[which] = codes


class VQVAE(nn.Module):
    """Encodeur, quantificateur, décodeur. Les images sont (B, 3, H, W), float, de 0 à 1."""

    Config = VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.channels, config.code_dim, config.blocks)
        codebook = config.codes, config.code_dim, config.decay, config.dead_below, config.init
        self.quantizer = VectorQuantizer(*codebook)
        self.decoder = Decoder(config.channels, config.code_dim, config.blocks)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (B, 3, H, W), non bornée à [0, 1], et résultat du quantificateur.

        Raises:
            MinidalleError: lot vide, ou images que `check_images` refuse.
        """
        quantized = self.quantizer(self._vectors(images, empty=False))
        return self._paint(quantized.vectors), quantized

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """Reconstruction + β · engagement, et la perte du dictionnaire s'il s'apprend par gradient."""
        painted, quantized = self(images)
        reconstruction = reconstruction_loss(painted.float(), images)
        return {
            "loss": reconstruction + self.config.commitment * quantized.commitment + quantized.codebook,
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
            MinidalleError: jeton hors de [0, K), ou grille qui n'est pas d'entiers (B, h, w).
        """
        check_tokens(tokens, self.config.codes)
        return self._paint(F.embedding(tokens.long(), self.quantizer.codebook)).clamp(0, 1)

    def _vectors(self, images: Tensor, *, empty: bool = True) -> Tensor:
        check_images(images, self.config.factor, empty=empty)
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return self.encoder(images).float().permute(0, 2, 3, 1)

    def _paint(self, vectors: Tensor) -> Tensor:
        return (self.decoder(vectors.permute(0, 3, 1, 2)) + 1) / 2


def _check_codebook(codes: int, dim: int, decay: float, dead_below: float, init: str) -> None:
    if min(codes, dim) < 1 or not 0 <= decay < 1 or dead_below < 0:
        raise MinidalleError(
            "Il faut un code et une dimension au moins, une inertie dans [0, 1[, un seuil positif."
        )
    if init not in INITS:
        raise MinidalleError(f"Départ « {init} » inconnu : choisir parmi {', '.join(INITS)}.")
