"""CLIP : deux encodeurs, un d'images et un de textes, qui apprennent à tomber au même endroit.

Chaque image et chaque légende devient un vecteur de norme 1 ; leur produit scalaire dit à quel point elles
vont ensemble. D'un lot de N couples naissent N² rapprochements : N bons, sur la diagonale, et N² − N faux.
Chaque image choisit sa légende parmi les N, chaque légende son image, et la perte est la moyenne des deux
entropies croisées. Deux légendes égales d'un même lot se disputent alors deux images à tort, comme dans
l'article ; c'est rare ici (une sur cinquante, mesuré), et seulement un plancher que la perte ne passe pas.

Source : Radford et coll. (2021), section 2 ; Yuksekgonul et coll. (2023) pour les légendes presque justes.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.attention import MultiHeadAttention
from minidalle.models.blocks import check_images
from minidalle.models.linear import Linear
from minidalle.models.transformer import (
    Block,
    Decoder,
    Encoder,
    LanguageModelConfig,
    TokenEmbedding,
)

MAX_LOGIT_SCALE = math.log(100)


class QuickGELU(nn.Module):
    """x·σ(1,702·x), l'approximation de GELU des poids d'OpenAI : prendre l'une pour l'autre ne se voit pas."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


TOWERS = ("vit", "resnet")
ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


@dataclass(frozen=True, slots=True)
class CLIPConfig:
    """Tailles d'un CLIP.

    Attributes:
        vocabulary: nombre V de jetons de texte ; 0 est le remplissage. Le jeton V, que le modèle ajoute lui-même,
            marque la fin.
        length: jetons d'une légende, au plus, sans celui de fin.
        size: côté S des images, en pixels.
        tower: ce qui lit l'image, « vit » (des carreaux, un Transformer) ou « resnet » (des convolutions).
        patch: côté d'un carreau du « vit », en pixels ; divise `size`.
        channels: largeurs des étages du « resnet » ; le premier divise le côté par 4, les autres par 2.
        image_width, image_layers, image_heads: du Transformer qui lit les carreaux, ou la grille du « resnet ».
        text_width, text_layers, text_heads: ceux de l'encodeur de textes.
        dim: dimension d de l'espace commun.
        dropout: part des activations mise à zéro à l'entraînement, dans l'encodeur de textes.
        activation: « gelu », ou « quick_gelu » comme les poids d'OpenAI.
    """

    vocabulary: int
    length: int = 32
    size: int = 64
    tower: str = "vit"
    patch: int = 8
    channels: tuple[int, ...] = (64, 128)
    image_width: int = 128
    image_layers: int = 4
    image_heads: int = 4
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    dim: int = 128
    dropout: float = 0.0
    activation: str = "gelu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        named = ("tour", self.tower, TOWERS), ("activation", self.activation, ACTIVATIONS)
        for name, value, known in named:
            if value not in known:
                raise MinidalleError(f"« {value} » : {name} inconnue ; choisir parmi {', '.join(known)}.")
        step = self.patch if self.tower == "vit" else 2 ** (len(self.channels) + 1)
        if min(self.vocabulary, self.dim, self.size, step, *self.channels) < 1 or self.size % step:
            raise MinidalleError(f"Il faut des tailles d'au moins 1, et un côté d'image multiple de {step}.")


class VisionTransformer(nn.Module):
    """Image (B, 3, S, S) → vecteur (B, width) : carreaux, jeton de classe, blocs (Dosovitskiy et coll., 2021)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, patch = config.image_width, config.patch
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn((config.size // patch) ** 2 + 1, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        activation = ACTIVATIONS[config.activation]
        self.encoder = Encoder(width, config.image_layers, config.image_heads, activation=activation)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        return self.encoder(self.norm(x + self.positions))[:, 0]


class ResNet(nn.Module):
    """Image (B, 3, S, S) → vecteur (B, width) : convolutions résiduelles (He et coll., 2016), puis attention.

    Comme celui de CLIP, il réunit la grille par une attention dont la question est la moyenne des cases ; des blocs
    de Transformer la précèdent, où chaque case apprend ce que voient les autres.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        first, width, heads = config.channels[0], config.image_width, config.image_heads
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 7, stride=4, padding=3, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            BasicBlock(first, first),
            *(BasicBlock(a, b, stride=2) for a, b in itertools.pairwise(config.channels)),
            nn.Conv2d(config.channels[-1], width, 1),
        )
        side = config.size // 2 ** (len(config.channels) + 1)
        self.positions = nn.Parameter(torch.randn(side * side, width) * width**-0.5)
        # Sans la normalisation finale d'un `Encoder` : les cases vides y pèseraient autant que les autres.
        options = {"activation": ACTIVATIONS[config.activation]}
        self.blocks = nn.Sequential(*(Block(width, heads, **options) for _ in range(config.image_layers)))
        self.pool = MultiHeadAttention(width, heads, cross=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(images.contiguous(memory_format=torch.channels_last)).flatten(2).mT
        x = self.blocks(x + self.positions)
        return self.pool(x.mean(1, keepdim=True), x)[:, 0]


class BasicBlock(nn.Module):
    """Deux convolutions normalisées, plus l'entrée, projetée si sa forme change."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = before == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


class TextTransformer(nn.Module):
    """Jetons (B, L) → vecteur (B, width) : un Transformer causal, lu au jeton de fin, qui a tout vu."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.end = config.vocabulary
        sizes = LanguageModelConfig(
            config.vocabulary + 1,
            length=config.length + 1,
            width=config.text_width,
            layers=config.text_layers,
            heads=config.text_heads,
            dropout=config.dropout,
        )
        self.embedding = TokenEmbedding(sizes.vocabulary, sizes)
        options = {"dropout": config.dropout, "activation": ACTIVATIONS[config.activation]}
        self.decoder = Decoder(sizes.width, sizes.layers, sizes.heads, **options)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens, ends = closed(tokens, self.end), (tokens != 0).sum(1)
        order = ends.argsort()
        # Rien ne regarde ce qui suit la fin : par paquets de longueurs voisines, on ne le calcule presque jamais.
        parts = [self._read(tokens[rows], ends[rows]) for rows in order.split(32)]
        return torch.cat(parts)[order.argsort()]

    def _read(self, tokens: Tensor, ends: Tensor) -> Tensor:
        x = self.decoder(self.embedding(tokens[:, : int(ends.max()) + 1]))
        return x[torch.arange(len(x), device=x.device), ends]


def closed(tokens: Tensor, end: int) -> Tensor:
    """Légendes (B, L), complétées à droite par des 0, suivies du jeton `end` → (B, L + 1)."""
    ends = (tokens != 0).sum(1, keepdim=True)
    return F.pad(tokens, (0, 1)).scatter(1, ends, end)


def initialize(model: nn.Module) -> None:
    """Poids de départ de CLIP : gaussiens d'écart-type 1/√largeur, plus petits en sortie de bloc.

    Ceux de GPT-2, d'écart-type 0,02, laissent de si petits réseaux presque linéaires, qui apprennent moins vite.
    """
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for table in (m for m in model.modules() if isinstance(m, nn.Embedding)):
        nn.init.normal_(table.weight, std=0.02)
    for stack in (m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)):
        blocks = [m for m in stack if isinstance(m, Block)]
        for block in blocks:
            for layer in (block.attention.output, block.dense[2]):
                layer.weight.data.mul_((2 * len(blocks)) ** -0.5)


class CLIP(nn.Module):
    """Deux encodeurs, deux projections vers l'espace commun, une échelle apprise : rien d'autre."""

    Config = CLIPConfig

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.image = VisionTransformer(config) if config.tower == "vit" else ResNet(config)
        self.text = TextTransformer(config)
        self.image_projection = Linear(config.image_width, config.dim, bias=False)
        self.text_projection = Linear(config.text_width, config.dim, bias=False)
        initialize(self)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """Inverse de la température, appris : de 1 / 0,07 au départ, à 100 au plus."""
        # Comme open_clip, après chaque pas : bornée dans le calcul, sa pente s'annulerait et elle y resterait.
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        return self.logit_scale.exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) de 0 à 1 → vecteurs (B, d) de norme 1.

        Raises:
            MinidalleError: images d'une autre taille, ou pixels impossibles.
        """
        check_images(images, size=self.config.size, empty=False)
        return F.normalize(self.image_projection(self.image(2 * images - 1)).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Légendes (B, L), int64, complétées à droite par des 0 → vecteurs (B, d) de norme 1.

        Raises:
            MinidalleError: légende vide ou trop longue, remplissage ailleurs qu'à droite, jeton hors du vocabulaire.
        """
        length, vocabulary = self.config.length, self.config.vocabulary
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise MinidalleError(f"Légendes de forme {tuple(tokens.shape)} : donner des entiers (B, L).")
        if (tokens[:, length:] != 0).any():
            raise MinidalleError(f"Légende trop longue : la couper à {length} jetons.")
        if ((tokens < 0) | (tokens >= vocabulary)).any():
            raise MinidalleError(f"Jeton hors du vocabulaire : donner des numéros de 0 à {vocabulary - 1}.")
        said = tokens != 0
        if not len(said) or not said.any(1).all() or (said[:, 1:] & ~said[:, :-1]).any():
            raise MinidalleError(
                "Légende vide, ou remplie ailleurs qu'à droite : au moins un jeton, puis des 0."
            )
        return F.normalize(self.text_projection(self.text(tokens)).float(), dim=-1)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits (N, M) de N images (N, 3, S, S) et de M légendes (M, L) : cosinus, fois l'échelle."""
        return self.scale * self.encode_image(images) @ self.encode_text(texts).T

    def loss(self, images: Tensor, texts: Tensor, negatives: Tensor | None = None) -> dict[str, Tensor]:
        """Perte d'un lot de N couples, en nats.

        Args:
            images: (N, 3, S, S), de 0 à 1.
            texts: (N, L), celle de chaque image.
            negatives: (K, L), légendes fausses, K quelconque : chaque image les refuse toutes aussi.

        Returns:
            « loss » ; « accuracy », part des images qui préfèrent leur légende ; « scale ».
        """
        told = texts if negatives is None else torch.cat([texts, negatives])
        image, text = self.encode_image(images), self.encode_text(told)
        text, wrong = text.split([len(texts), len(told) - len(texts)])
        return contrastive_loss(image, text, self.scale, wrong)


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, negatives: Tensor | None = None
) -> dict[str, Tensor]:
    """Moyenne des deux entropies croisées, image → texte et texte → image (figure 3 de l'article).

    Sur plusieurs processus (`torch.distributed`), chacun apporte sa part et tous rendent la perte du lot entier.
    La pente de chaque part est alors multipliée par leur nombre, que la moyenne de DistributedDataParallel divise.

    Args:
        image, text: (N, d), de norme 1 ; la ligne i de l'un va avec la ligne i de l'autre.
        scale: échelle des cosinus.
        negatives: (K, d), textes qui ne vont avec aucune image.

    Raises:
        MinidalleError: nombres d'images et de textes différents.
    """
    if len(image) != len(text):
        raise MinidalleError(f"{len(image)} image(s) et {len(text)} légende(s) : une légende par image.")
    negatives = text[:0] if negatives is None else negatives
    image, text, negatives = gather(image), gather(text), gather(negatives)
    # En simple précision : en bfloat16, des cosinus multipliés par 100 n'auraient que deux chiffres justes.
    with torch.autocast(image.device.type, enabled=False):
        logits = scale * image @ torch.cat([text, negatives]).T
    right = torch.arange(len(image), device=image.device)
    from_image = F.cross_entropy(logits, right)
    from_text = F.cross_entropy(logits[:, : len(text)].T, right)
    accuracy = (logits.argmax(1) == right).float().mean()
    return {"loss": (from_image + from_text) / 2, "accuracy": accuracy, "scale": scale}


def gather(vectors: Tensor) -> Tensor:
    """Réunit les vecteurs (N, d) de tous les processus, gradient compris ; d'un seul, les rend tels quels."""
    if not distributed.is_initialized():
        return vectors
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(vectors))
