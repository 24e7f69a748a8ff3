"""DALL·E : un transformeur causal lit une légende, puis écrit une image jeton par jeton.

Une suite unique : d'abord le texte, complété à longueur fixe par des jetons de remplissage appris, un par
place, puis les jetons d'image ligne à ligne. Chaque position ne voit que ce qui la précède ; des masques creux
peuvent lui en cacher une partie.

Source : Ramesh et coll. (2021), sections 2.2 et B.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.attention import IMAGE_POSITIONS, check_image_positions
from minidalle.models.linear import Linear
from minidalle.models.sparse_attention import pattern, stream_mask
from minidalle.models.transformer import Decoder, DecoderState, initialize
from minidalle.processes import average


@dataclass(frozen=True, slots=True)
class DALLEConfig:
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
        text_weight: part du texte dans la perte, 1/8 dans l'article ; à 0, le modèle n'apprend pas à écrire de
            légendes.
        positions: « 2d », ligne + colonne, comme l'article ; « 1d », un plongement par case.
        sparse: les couches voient l'image par lignes, colonnes ou voisinages (voir `sparse_attention`).
    """

    text_vocabulary: int
    image_vocabulary: int = 1024
    text_length: int = 32
    grid: tuple[int, int] = (8, 8)
    width: int = 256
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0
    text_weight: float = 0.0
    positions: str = "2d"
    sparse: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        sizes = (self.text_vocabulary, self.image_vocabulary, self.text_length, self.width, self.layers)
        if min(*sizes, self.heads, *self.grid) < 1 or self.width % self.heads:
            raise MinidalleError(
                "Un transformeur veut des tailles d'au moins 1, et une largeur multiple du nombre de têtes."
            )
        if not 0 <= self.text_weight < 1:
            raise MinidalleError(f"Part du texte impossible ({self.text_weight}) : dans [0 ; 1[.")
        check_image_positions(self.positions)

    @property
    def image_length(self) -> int:
        """Nombre N de jetons d'image."""
        return self.grid[0] * self.grid[1]


def image_nats(logits: Tensor, image: Tensor) -> Tensor:
    """Surprise de chaque image, −ln p, en nats → (B,), d'après les logits (B, N, K) de ses N jetons."""
    by_token = F.cross_entropy(logits.flatten(0, 1).float(), image.flatten(), reduction="none")
    return by_token.view(len(image), -1).sum(1)


def weighted_nats(logits: Tensor, image: Tensor, weight: Tensor | None) -> Tensor:
    """Surprise moyenne par jeton, chaque image comptant pour `weight` (B,), ou toutes pour 1."""
    nats = image_nats(logits, image) / logits.shape[1]
    return nats.mean() if weight is None else (weight * nats).mean()


class DALLE(nn.Module):
    """Loi de chaque jeton d'image sachant la légende et les jetons précédents."""

    Config = DALLEConfig

    def __init__(self, config: DALLEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_embedding = nn.Embedding(config.text_vocabulary, width)
        self.text_position = nn.Embedding(config.text_length, width)
        # Une place sans mot n'est pas cachée : elle a son propre jeton (section 2.2).
        self.padding = nn.Embedding(config.text_length, width)
        # Le dernier numéro est le jeton de départ, lu avant le premier jeton d'image.
        self.image_embedding = nn.Embedding(config.image_vocabulary + 1, width)
        self.image_position = IMAGE_POSITIONS[config.positions](*config.grid, width)
        self.decoder = Decoder(width, config.layers, config.heads, dropout=config.dropout)
        # Deux vocabulaires, deux têtes : chacune ne note que les siens.
        self.text_head = Linear(width, config.text_vocabulary, bias=False) if config.text_weight else None
        self.head = Linear(width, config.image_vocabulary, bias=False)
        initialize(self)
        self.masks = None
        if config.sparse:
            sizes = (config.text_length, config.grid)
            self.masks = [stream_mask(kind, *sizes) for kind in pattern(config.layers)]

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
        return self.head(self._stream(text, image)[:, self.config.text_length :])

    def loss(self, text: Tensor, image: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Entropies croisées moyennes, en nats par jeton : « image », et « loss », où le texte a sa part.

        Le premier mot n'est pas prédit, faute de rien à lire avant lui ; le remplissage non plus.

        Args:
            text, image: voir `forward`.
            weight: (B,), ce que vaut chaque image ; 1 sans cela. Négatif, il l'écarte (voir `minidalle.rewards`).
        """
        x, share = self._stream(text, image.flatten(1)), self.config.text_weight
        written, drawn = x.split([self.config.text_length, self.config.image_length], dim=1)
        losses = {"image": weighted_nats(self.head(drawn), image, weight)}
        if not share:
            return losses | {"loss": losses["image"]}
        logits, words = self.text_head(written[:, :-1]).flatten(0, 1).float(), text[:, 1:].flatten()
        # Un lot sans un mot à prédire donne 0, et non 0/0.
        count = average((words != 0).sum()).clamp(1e-3)
        text_loss = F.cross_entropy(logits, words, ignore_index=0, reduction="sum") / count
        return losses | {"text": text_loss, "loss": share * text_loss + (1 - share) * losses["image"]}

    def nats(self, text: Tensor, image: Tensor) -> Tensor:
        """−ln p(image | texte) de chaque couple, en nats par image → (B,)."""
        return image_nats(self(text, image), image)

    def _stream(self, text: Tensor, image: Tensor) -> Tensor:
        """Sortie du décodeur pour toute la suite : (B, text_length + N, d)."""
        start = torch.full_like(image[:, :1], self.config.image_vocabulary)
        previous = torch.cat([start, image[:, :-1]], dim=1)
        x = torch.cat([self._embed_text(text), self._embed_image(previous, 0)], dim=1)
        return self.decoder(x, mask=self.masks)

    def start(self, text: Tensor) -> DecoderState:
        """Lit le texte (B, text_length) une fois pour toutes et rend l'état qui s'en souvient."""
        x = self._embed_text(text)
        state = self.decoder.start(self.config.text_length + self.config.image_length)
        self.decoder(x, state=state)  # le texte se voit tout entier, masques creux ou non
        state.last = torch.full_like(text[:, 0], self.config.image_vocabulary)
        return state

    def step(self, previous: Tensor | None, state: DecoderState) -> Tensor:
        """Logits (B, K) du jeton suivant.

        Args:
            previous: (B,) jeton qu'on vient d'écrire ; None pour demander le premier.
            state: celui de `start`, complété à chaque appel.
        """
        previous = state.last if previous is None else previous
        place = state.length
        x = self._embed_image(previous[:, None], place - self.config.text_length)
        mask = self.masks and [whole[place : place + 1, : place + 1] for whole in self.masks]
        return self.head(self.decoder(x, mask=mask, state=state)[:, 0])

    def _embed_text(self, text: Tensor) -> Tensor:
        if text.ndim != 2 or text.shape[1] != self.config.text_length:
            raise MinidalleError(
                f"Texte de forme {tuple(text.shape)} : il faut (B, {self.config.text_length})."
            )
        words = self.text_embedding(text) + self.text_position.weight
        return torch.where((text == 0)[..., None], self.padding.weight, words)

    def _embed_image(self, previous: Tensor, first: int) -> Tensor:
        """Plongements des jetons lus aux positions `first`, `first` + 1…

        La position ajoutée est celle du jeton à prédire, un cran plus loin que le jeton lu.
        """
        return self.image_embedding(previous) + self.image_position(first, previous.shape[1])
