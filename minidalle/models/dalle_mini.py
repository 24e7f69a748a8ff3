"""DALL·E mini : un encodeur lit la légende, un décodeur écrit l'image jeton par jeton en l'interrogeant.

C'est un BART, avec les normes de NormFormer (une avant, une après chaque attention ; une avant, une au milieu de
chaque sous-réseau dense) et un sous-réseau à portes (GLU). Aucune couche linéaire n'a de terme constant.

Sources : Dayma et coll. (2021), code de dalle-mini, d'où viennent poids et tailles ; Lewis et coll. (2020) pour
BART ; Shleifer et coll. (2021) pour NormFormer ; Shazeer (2020) pour les portes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.attention import (
    IMAGE_POSITIONS,
    KeyValueCache,
    MultiHeadAttention,
    check_image_positions,
    padding_mask,
)
from minidalle.models.dalle import image_nats, weighted_nats
from minidalle.models.linear import Linear, linear
from minidalle.models.one_step import attend_one
from minidalle.models.transformer import DecoderState


@dataclass(frozen=True, slots=True)
class DALLEMiniConfig:
    """Tailles d'un DALL·E mini ; `mini` et `mega` donnent celles des modèles publiés.

    Attributes:
        text_vocabulary: nombre de jetons de texte, remplissage compris.
        image_vocabulary: nombre K de jetons d'image.
        text_length: positions réservées au texte.
        grid: lignes et colonnes de la grille d'image.
        width: dimension d du flux résiduel.
        layers: nombre de blocs de l'encodeur.
        decoder_layers: nombre de blocs du décodeur ; None pour autant.
        heads: têtes d'attention ; divise `width`.
        glu_width: largeur du sous-réseau à portes ; None pour 8/3·d, au multiple de 32 le plus proche.
        positions: « 1d », un plongement par case, comme les modèles publiés ; « 2d », ligne + colonne.
        pad: jeton de remplissage du texte, que personne ne voit.
        start: jeton d'image lu avant le premier, de 0 à K ; None pour K.
        dropout: part de ce qui s'ajoute au flux mise à zéro à l'entraînement.
        init_std: écart-type des poids de départ.
    """

    text_vocabulary: int
    image_vocabulary: int = 1024
    text_length: int = 32
    grid: tuple[int, int] = (8, 8)
    width: int = 256
    layers: int = 4
    decoder_layers: int | None = None
    heads: int = 4
    glu_width: int | None = None
    positions: str = "1d"
    pad: int = 0
    start: int | None = None
    dropout: float = 0.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        fill = {"grid": tuple(self.grid)}
        if self.decoder_layers is None:
            fill["decoder_layers"] = self.layers
        if self.glu_width is None:
            fill["glu_width"] = max(1, round(self.width / 12)) * 32
        if self.start is None:
            fill["start"] = self.image_vocabulary
        for name, value in fill.items():
            object.__setattr__(self, name, value)
        sizes = (self.text_vocabulary, self.image_vocabulary, self.text_length, self.width, self.glu_width)
        if (
            min(*sizes, self.layers, self.decoder_layers, self.heads, *self.grid) < 1
            or self.width % self.heads
        ):
            raise MinidalleError(
                "Un transformeur veut des tailles d'au moins 1, et une largeur multiple du nombre de têtes."
            )
        if not (0 <= self.pad < self.text_vocabulary and 0 <= self.start <= self.image_vocabulary):
            raise MinidalleError(
                f"Remplissage {self.pad} ou départ {self.start} hors des vocabulaires : donner un de leurs numéros."
            )
        check_image_positions(self.positions)
        if not 0 <= self.dropout < 1:
            raise MinidalleError(f"Abandon impossible ({self.dropout}) : une part, dans [0 ; 1[.")

    @property
    def image_length(self) -> int:
        """Nombre N de jetons d'image."""
        return self.grid[0] * self.grid[1]

    @classmethod
    def mini(cls, **changes: object) -> "DALLEMiniConfig":
        """Le modèle publié « mini-1 » : 438 millions de nombres, images de 256 × 256 en 16 × 16 jetons."""
        published = {"text_vocabulary": 50_264, "width": 1024, "layers": 12, "heads": 16, "glu_width": 2730}
        return cls(**_PUBLISHED | published | changes)

    @classmethod
    def mega(cls, **changes: object) -> "DALLEMiniConfig":
        """Le modèle publié « mega-1 » : 2,6 milliards de nombres."""
        published = {"text_vocabulary": 50_272, "width": 2048, "layers": 24, "heads": 32, "glu_width": 4096}
        return cls(**_PUBLISHED | {"init_std": 0.01} | published | changes)


_PUBLISHED = {"image_vocabulary": 16_384, "text_length": 64, "grid": (16, 16), "pad": 1}

# --- les blocs ------------------------------------------------------------------------------------


class ShiftNorm(nn.Module):
    """Normalisation de couche sans échelle : la couche linéaire qui suit sait déjà multiplier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        # Sans échelle, PyTorch ne sait pas dériver une entrée sur 16 bits et un biais sur 32.
        return F.layer_norm(x, self.bias.shape, None, self.bias.to(x.dtype))


class GatedDense(nn.Module):
    """Sous-réseau à portes : une moitié, passée par GELU, multiplie l'autre. (..., d) → (..., d)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = ShiftNorm(width)
        self.gate_value = Linear(width, 2 * inner, bias=False)  # les deux moitiés en un produit
        self.inner_norm = ShiftNorm(inner)
        self.output = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_value(self.norm(x)).chunk(2, -1)
        return self.output(self.inner_norm(F.gelu(gate) * value))


class Block(nn.Module):
    """x + norme(attention(norme(x))), de même pour l'attention croisée s'il y a lieu, puis x + GLU(x)."""

    def __init__(self, config: DALLEMiniConfig, *, cross: bool) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.norm, self.attention = ShiftNorm(width), MultiHeadAttention(width, heads, bias=False)
        self.post_norm = nn.LayerNorm(width)
        self.cross = cross
        if cross:
            self.cross_norm = ShiftNorm(width)
            self.cross_attention = MultiHeadAttention(width, heads, cross=True, bias=False)
            self.cross_post_norm = nn.LayerNorm(width)
        self.dense = GatedDense(width, config.glu_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        caches: tuple[KeyValueCache | None, KeyValueCache | None] = (None, None),
    ) -> Tensor:
        """Flux (B, T, d) → (B, T, d) ; `mask` (B, 1, 1, S) dit les mots visibles, ici ou dans `memory`."""
        own, crossed = caches
        seen = self.attention(self.norm(x), mask=None if self.cross else mask, causal=self.cross, cache=own)
        x = x + self.dropout(self.post_norm(seen))
        if self.cross:
            seen = self.cross_attention(self.cross_norm(x), memory, mask=mask, cache=crossed)
            x = x + self.dropout(self.cross_post_norm(seen))
        return x + self.dropout(self.dense(x))


# --- le modèle ------------------------------------------------------------------------------------


class DALLEMini(nn.Module):
    """Loi de chaque jeton d'image sachant la légende et les jetons précédents."""

    Config = DALLEMiniConfig

    def __init__(self, config: DALLEMiniConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_embedding = nn.Embedding(config.text_vocabulary, width)
        self.text_position = nn.Embedding(config.text_length, width)
        self.text_norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(Block(config, cross=False) for _ in range(config.layers))
        self.encoder_norm = ShiftNorm(width)
        # Le dernier numéro est d'ordinaire le jeton de départ, lu avant le premier jeton d'image.
        self.image_embedding = nn.Embedding(config.image_vocabulary + 1, width)
        self.image_position = IMAGE_POSITIONS[config.positions](*config.grid, width)
        self.image_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(Block(config, cross=True) for _ in range(config.decoder_layers))
        self.decoder_norm = ShiftNorm(width)
        self.head = Linear(width, config.image_vocabulary, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.init_std)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Passe d'entraînement, toutes les positions à la fois.

        Args:
            text: (B, text_length), int64, complété par le jeton de remplissage.
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
        self._check(text)
        mask = self._mask(text)
        memory = self._encode(text, mask)
        start = torch.full_like(image[:, :1], self.config.start)
        x = self._embed_image(torch.cat([start, image[:, :-1]], dim=1), self.image_position())
        for block in self.decoder:
            x = block(x, memory, mask)
        return self.head(self.decoder_norm(x))

    def loss(self, text: Tensor, image: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Entropie croisée moyenne, en nats par jeton d'image ; `weight` (B,) dit ce que vaut chaque image."""
        return {"loss": weighted_nats(self(text, image), image, weight)}

    def nats(self, text: Tensor, image: Tensor) -> Tensor:
        """−ln p(image | texte) de chaque couple, en nats par image → (B,)."""
        return image_nats(self(text, image), image)

    def encode(self, text: Tensor) -> Tensor:
        """Texte (B, S), S = text_length → vecteurs (B, S, d) ; ceux du remplissage ne servent à personne."""
        self._check(text)
        return self._encode(text, self._mask(text))

    def start(self, text: Tensor) -> DecoderState:
        """Lit le texte (B, text_length) une fois pour toutes et rend l'état qui s'en souvient."""
        self._check(text)
        mask = self._mask(text)
        # Le remplissage commun à toutes les légendes ne coûte rien : personne ne le voit.
        longest = int(mask.any(0).nonzero().max()) + 1
        mask = mask[..., :longest]
        memory = self._encode(text[:, :longest], mask)
        state = DecoderState(len(self.decoder), self.config.image_length, memory, mask)
        for block, (_, crossed) in zip(self.decoder, state.caches, strict=True):
            projected = block.cross_attention.keys_values(memory).unflatten(-1, (2, self.config.heads, -1))
            crossed.extend(*projected.to(memory.dtype).permute(2, 0, 3, 1, 4))
        state.memory = None  # ses clés et ses valeurs suffisent
        state.memory_mask = None if mask.all() else mask
        state.last = torch.full_like(text[:, 0], self.config.start)
        return state

    def step(self, previous: Tensor | None, state: DecoderState) -> Tensor:
        """Logits (B, K) du jeton suivant.

        Args:
            previous: (B,) jeton qu'on vient d'écrire ; None pour demander le premier.
            state: celui de `start`, complété à chaque appel.

        Raises:
            MinidalleError: l'image est finie.
        """
        if state.length == self.config.image_length:
            raise MinidalleError(f"Image finie : elle ne compte que {state.length} jetons.")
        previous = state.last if previous is None else previous
        if self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(previous.device.type):
            x = self._embed_image(previous[:, None], self.image_position(state.length, 1))
            for block, caches in zip(self.decoder, state.caches, strict=True):
                x = block(x, None, state.memory_mask, caches)
            return self.head(self.decoder_norm(x))[:, 0]
        state.one_step = state.one_step or OneStep(self)
        return state.one_step(previous, state)

    def _check(self, text: Tensor) -> None:
        if text.ndim != 2 or text.shape[1] != self.config.text_length:
            raise MinidalleError(
                f"Texte de forme {tuple(text.shape)} : il faut (B, {self.config.text_length})."
            )

    def _mask(self, text: Tensor) -> Tensor:
        """Mots visibles (B, 1, 1, S) : tous sauf le remplissage, dont une légende vide garde le premier."""
        visible = text != self.config.pad
        visible[:, 0] = True  # il faut bien que l'attention ait quelque chose à lire
        return padding_mask(visible)

    def _encode(self, text: Tensor, mask: Tensor) -> Tensor:
        x = self.text_embedding(text) + self.text_position.weight[: text.shape[1]]
        x = self.dropout(self.text_norm(x))
        for block in self.encoder:
            x = block(x, mask=mask)
        return self.encoder_norm(x)

    def _embed_image(self, previous: Tensor, positions: Tensor) -> Tensor:
        return self.dropout(self.image_norm(self.image_embedding(previous) + positions))


class OneStep:
    """Le décodeur, une position (B, d) à la fois : les calculs des modules, mêmes poids, sans leurs détours."""

    def __init__(self, model: DALLEMini) -> None:
        self.embedding, self.positions = model.image_embedding.weight, model.image_position()
        self.image_norm, self.norm, self.head = _norm(model.image_norm), _norm(model.decoder_norm), model.head
        self.blocks, self.heads = [_weights(block) for block in model.decoder], model.config.heads

    def __call__(self, previous: Tensor, state: DecoderState) -> Tensor:
        """`previous` (B,) → logits (B, K)."""
        batch, heads = len(previous), self.heads
        x = F.embedding(previous, self.embedding) + self.positions[state.length]
        x = torch.layer_norm(x, *self.image_norm)
        for (own, crossed), weights in zip(state.caches, self.blocks, strict=True):
            (norm, queries_keys_values, output, post), cross, (dense_norm, up, inner_norm, down) = weights
            projected = linear(torch.layer_norm(x, *norm), queries_keys_values)
            queries, keys, values = projected.view(batch, 3, heads, 1, -1).unbind(1)
            seen = attend_one(queries, *own.extend(keys, values)).reshape(batch, -1)
            x = x + torch.layer_norm(linear(seen, output), *post)
            norm, queries, output, post = cross
            queries = linear(torch.layer_norm(x, *norm), queries).view(batch, heads, 1, -1)
            seen = attend_one(queries, *crossed.known(), state.memory_mask).reshape(batch, -1)
            x = x + torch.layer_norm(linear(seen, output), *post)
            gate, value = linear(torch.layer_norm(x, *dense_norm), up).chunk(2, -1)
            x = x + linear(torch.layer_norm(F.gelu(gate) * value, *inner_norm), down)
        return self.head(torch.layer_norm(x, *self.norm))


def _weights(block: Block) -> tuple:
    own, cross, dense = block.attention, block.cross_attention, block.dense
    return (
        (_norm(block.norm), own.queries_keys_values.weight, own.output.weight, _norm(block.post_norm)),
        (_norm(block.cross_norm), cross.queries.weight, cross.output.weight, _norm(block.cross_post_norm)),
        (_norm(dense.norm), dense.gate_value.weight, _norm(dense.inner_norm), dense.output.weight),
    )


def _norm(layer: nn.LayerNorm | ShiftNorm) -> tuple:
    return layer.bias.shape, getattr(layer, "weight", None), layer.bias, 1e-5
