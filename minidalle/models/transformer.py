"""Transformeur causal : il lit une légende, puis écrit une image jeton par jeton.

La suite est celle de DALL·E : d'abord le texte, complété à longueur fixe par un jeton de remplissage
que sa position rend unique, puis les jetons d'image ligne à ligne. Chaque position ne voit que ce qui
la précède. Les positions d'image sont la somme d'un plongement de ligne et d'un plongement de colonne.

Sources : Vaswani et coll. (2017) pour le bloc, Radford et coll. (2019) pour la normalisation en
amont, Ramesh et coll. (2021) pour la suite texte + image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Tailles d'un transformeur texte + image.

    Attributes:
        text_vocabulary: nombre de jetons de texte ; le jeton 0 est le remplissage.
        image_vocabulary: nombre K de jetons d'image.
        text_length: positions réservées au texte.
        grid: lignes et colonnes de la grille d'image.
        width: dimension d du flux résiduel.
        layers: nombre de blocs.
        heads: têtes d'attention ; divise `width`.
        dropout: part des activations mises à zéro à l'entraînement.
    """

    text_vocabulary: int
    image_vocabulary: int = 1024
    text_length: int = 32
    grid: tuple[int, int] = (8, 8)
    width: int = 256
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        sizes = (self.text_vocabulary, self.image_vocabulary, self.text_length, self.width, self.layers)
        if min(*sizes, self.heads, *self.grid) < 1 or self.width % self.heads:
            raise MinidalleError(
                "Un transformeur veut des tailles d'au moins 1, et une largeur multiple du nombre de têtes."
            )

    @property
    def image_length(self) -> int:
        """Nombre N de jetons d'image."""
        return self.grid[0] * self.grid[1]


class KeyValueCache:
    """Clés et valeurs déjà calculées, dans des tableaux alloués une fois pour toutes.

    Args:
        batch, length: nombre de suites et longueur maximale.
        config: donne le nombre de couches et de têtes.
    """

    def __init__(self, config: TransformerConfig, batch: int, length: int) -> None:
        shape = (config.layers, batch, config.heads, length, config.width // config.heads)
        self.keys, self.values = torch.empty(shape), torch.empty(shape)
        self.length = 0  # positions déjà remplies

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Range les clés et valeurs (B, H, T, d/H) des nouvelles positions ; rend toutes celles connues."""
        stop = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]


class Attention(nn.Module):
    """Auto-attention causale à plusieurs têtes : (B, T, d) → (B, T, d)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.queries_keys_values = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, layer: int, cache: KeyValueCache | None) -> Tensor:
        batch, length, width = x.shape
        parts = self.queries_keys_values(x).view(batch, length, 3, self.heads, width // self.heads)
        # Calcul en simple précision : en bfloat16, la passe arrière de l'attention est dix fois plus
        # lente sur processeur (mesuré), et le softmax y perd des décimales.
        q, k, v = parts.float().permute(2, 0, 3, 1, 4)
        first = cache is None or cache.length == 0
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if not first and length > 1:
            raise MinidalleError("Avec un cache déjà rempli, avancer d'un seul jeton à la fois.")
        with torch.autocast(x.device.type, enabled=False):
            # Un jeton seul voit tout ce qui le précède : le masque causal ne sert qu'aux passes entières.
            seen = F.scaled_dot_product_attention(
                q, k, v, is_causal=first and length > 1, dropout_p=self.dropout if self.training else 0.0
            )
        return self.output(seen.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """x + attention(norm(x)), puis x + dense(norm(x)) : le flux résiduel n'est jamais normalisé."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.dense_norm = nn.LayerNorm(config.width)
        self.dense = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layer: int = 0, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), layer, cache))
        return x + self.dropout(self.dense(self.dense_norm(x)))


class Transformer(nn.Module):
    """Loi de chaque jeton d'image sachant la légende et les jetons précédents."""

    Config = TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, (rows, columns) = config.width, config.grid
        self.text_embedding = nn.Embedding(config.text_vocabulary, width)
        self.text_position = nn.Embedding(config.text_length, width)
        # Le dernier numéro est le jeton de départ, lu avant le premier jeton d'image.
        self.image_embedding = nn.Embedding(config.image_vocabulary + 1, width)
        self.row_position = nn.Embedding(rows, width)
        self.column_position = nn.Embedding(columns, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.image_vocabulary, bias=False)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            # Chaque bloc ajoute deux termes au flux : les réduire garde sa variance constante (GPT-2).
            for layer in (module.attention.output, module.dense[2]):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * self.config.layers))

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Passe d'entraînement, toutes les positions à la fois.

        Args:
            text: (B, text_length), int64, complété par des 0.
            image: (B, N) ou (B, lignes, colonnes), int64 dans [0, K).

        Returns:
            Logits (B, N, K) : la ligne i donne la loi du jeton i sachant le texte et les jetons < i.

        Raises:
            MinidalleError: texte ou image d'une autre longueur.
        """
        image = image.flatten(1)
        if image.shape[1] != self.config.image_length:
            raise MinidalleError(
                f"Une image compte {self.config.image_length} jetons ici, pas {image.shape[1]}."
            )
        start = torch.full_like(image[:, :1], self.config.image_vocabulary)
        previous = torch.cat([start, image[:, :-1]], dim=1)
        x = torch.cat([self._embed_text(text), self._embed_image(previous, 0)], dim=1)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer)
        return self.head(self.norm(x[:, self.config.text_length :]))

    def loss(self, text: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Entropie croisée moyenne, en nats par jeton d'image."""
        return {"loss": self.nats(text, image).mean() / self.config.image_length}

    def nats(self, text: Tensor, image: Tensor) -> Tensor:
        """−ln p(image | texte) de chaque couple, en nats par image → (B,)."""
        logits = self(text, image).flatten(0, 1).float()
        by_token = F.cross_entropy(logits, image.flatten(), reduction="none")
        return by_token.view(len(image), -1).sum(1)

    def start(self, text: Tensor) -> KeyValueCache:
        """Lit le texte (B, text_length) une fois pour toutes et rend le cache qui s'en souvient."""
        cache = KeyValueCache(self.config, len(text), self.config.text_length + self.config.image_length)
        self._advance(self._embed_text(text), cache)
        return cache

    def step(self, previous: Tensor | None, cache: KeyValueCache) -> Tensor:
        """Logits (B, K) du jeton suivant.

        Args:
            previous: (B,) jeton qu'on vient d'écrire ; None pour demander le premier.
            cache: celui de `start`, complété à chaque appel.
        """
        if previous is None:
            previous = torch.full((cache.keys.shape[1],), self.config.image_vocabulary)
        position = cache.length - self.config.text_length
        x = self._advance(self._embed_image(previous[:, None], position), cache)
        return self.head(self.norm(x[:, 0]))

    def _advance(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache)
        cache.length += x.shape[1]
        return x

    def _embed_text(self, text: Tensor) -> Tensor:
        if text.ndim != 2 or text.shape[1] != self.config.text_length:
            raise MinidalleError(
                f"Texte de forme {tuple(text.shape)} : il faut (B, {self.config.text_length})."
            )
        return self.text_embedding(text) + self.text_position.weight

    def _embed_image(self, previous: Tensor, first: int) -> Tensor:
        """Plongements des jetons lus aux positions `first`, `first` + 1…

        La position ajoutée est celle du jeton à prédire, un cran plus loin que le jeton lu.
        """
        positions = torch.arange(first, first + previous.shape[1])
        columns = self.config.grid[1]
        where = self.row_position(positions // columns) + self.column_position(positions % columns)
        return self.image_embedding(previous) + where
