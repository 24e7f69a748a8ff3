"""Le Transformer de 2017, en piles de blocs : un encodeur, un décodeur, et ce que l'on en fait.

Un bloc fait parler les positions entre elles (attention), puis réfléchir chacune de son côté (sous-réseau
dense) ; tout s'ajoute à un flux résiduel. Le même `Decoder` sert au traducteur, au modèle de langue, à
DALL·E et à DALL·E mini.

Sources : Vaswani et coll. (2017), section 3 ; Radford et coll. (2019) pour la normalisation en amont ; Press
et Wolf (2017) pour la tête liée ; Szegedy et coll. (2016) pour le lissage d'étiquettes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.attention import KeyValueCache, MultiHeadAttention, padding_mask, sinusoidal
from minidalle.models.linear import Linear, linear
from minidalle.models.one_step import OneStep, one_step_is_enough

POSITIONS = ("learned", "sinusoidal", "rotary", "none")

# --- les piles ------------------------------------------------------------------------------------


class Block(nn.Module):
    """Auto-attention, attention croisée s'il y a lieu, puis sous-réseau dense, chacun ajouté au flux.

    En amont (« pre »), x + f(norm(x)) : le flux n'est jamais normalisé. En aval (« post »), comme
    dans l'article, norm(x + f(x)).

    Args:
        width, heads: voir `MultiHeadAttention`.
        cross: ajoute l'attention croisée.
        dropout: part des activations mise à zéro à l'entraînement.
        norm: « pre » ou « post ».
        rotary: positions par rotation.
        activation: ce qui sépare les deux couches du sous-réseau dense.

    Raises:
        MinidalleError: réglage impossible.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        cross: bool = False,
        dropout: float = 0.0,
        norm: str = "pre",
        rotary: bool = False,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise MinidalleError(f"Normalisation « {norm} » inconnue : choisir « pre » ou « post ».")
        self.norm = norm
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads, dropout=dropout, rotary=rotary)
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross_attention = (
            MultiHeadAttention(width, heads, cross=True, dropout=dropout) if cross else None
        )
        self.dense_norm = nn.LayerNorm(width)
        self.dense = nn.Sequential(Linear(width, 4 * width), activation(), Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        caches: tuple[KeyValueCache | None, KeyValueCache | None] = (None, None),
    ) -> Tensor:
        """Flux (B, T, d) → (B, T, d) ; masques et caches : l'auto-attention, puis l'attention croisée."""
        own, crossed = caches
        x = self._add(x, self.attention_norm, self.attention, mask=mask, causal=causal, cache=own)
        if self.cross_attention is not None:
            options = {"memory": memory, "mask": memory_mask, "cache": crossed}
            x = self._add(x, self.cross_norm, self.cross_attention, **options)
        return self._add(x, self.dense_norm, self.dense)

    def _add(self, x: Tensor, norm: nn.Module, layer: nn.Module, **options: object) -> Tensor:
        if self.norm == "pre":
            return x + self.dropout(layer(norm(x), **options))
        return norm(x + self.dropout(layer(x, **options)))


class Encoder(nn.Module):
    """Pile de blocs où chaque position voit toutes les autres : (B, S, d) → (B, S, d).

    Args:
        width, heads: voir `MultiHeadAttention`.
        layers: nombre de blocs.
        options: celles de `Block`.
    """

    def __init__(self, width: int, layers: int, heads: int, **options: object) -> None:
        super().__init__()
        self.blocks, self.norm = _stack(width, layers, heads, **options)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


class DecoderState:
    """Ce qu'un `Decoder` retient d'un appel à l'autre.

    Attributes:
        caches: par bloc, ceux de l'auto-attention et de l'attention croisée.
        memory_mask: positions visibles de la suite interrogée.
        last: (B,) jeton que le premier pas d'écriture lira, ou None.
        one_step: le décodeur, prêt à lire une position à la fois.
    """

    def __init__(self, layers: int, capacity: int, memory: Tensor | None, memory_mask: Tensor | None) -> None:
        self.memory, self.memory_mask = memory, memory_mask
        self.last: Tensor | None = None
        self.one_step: OneStep | None = None
        crossed = 0 if memory is None else memory.shape[1]
        self.caches = [(KeyValueCache(capacity), KeyValueCache(crossed)) for _ in range(layers)]

    @property
    def length(self) -> int:
        """Nombre de positions déjà lues."""
        return self.caches[0][0].length

    def select(self, rows: Tensor) -> None:
        """Remplace les suites du lot par celles de numéros `rows` (B',), dans cet ordre."""
        for cache in (cache for pair in self.caches for cache in pair):
            cache.select(rows)
        for name in ("memory", "memory_mask", "last"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[rows])


class Decoder(nn.Module):
    """Pile de blocs causaux : aucune position ne voit celles qui la suivent.

    Args:
        cross: ses blocs interrogent aussi une autre suite.
        width, layers, heads, options: voir `Encoder`.
    """

    def __init__(
        self, width: int, layers: int, heads: int, *, cross: bool = False, **options: object
    ) -> None:
        super().__init__()
        self.blocks, self.norm = _stack(width, layers, heads, cross=cross, **options)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | Sequence[Tensor] | None = None,
        memory_mask: Tensor | None = None,
        state: DecoderState | None = None,
    ) -> Tensor:
        """Flux (B, T, d) → (B, T, d).

        Args:
            x: toutes les positions, ou avec `state` celles qui suivent les positions déjà lues.
            memory: (B, S, d), la sortie de l'encodeur ; inutile avec `state`.
            mask: positions visibles, en plus de la causalité, diffusable vers (B, H, T, T) ; ou un par bloc.
            memory_mask: positions de `memory` visibles, diffusable vers (B, H, T, S) ; inutile avec `state`.
            state: celui de `start`, complété sur place.
        """
        if state is not None:
            memory, memory_mask = state.memory, state.memory_mask
            if mask is None and one_step_is_enough(self, x, state):
                state.one_step = state.one_step or OneStep(self)
                return state.one_step(x[:, 0], state.caches, memory_mask)[:, None]
        for i, block in enumerate(self.blocks):
            caches = (None, None) if state is None else state.caches[i]
            own = mask if mask is None or isinstance(mask, Tensor) else mask[i]
            options = {"mask": own, "memory_mask": memory_mask, "causal": True, "caches": caches}
            x = block(x, memory, **options)
        return self.norm(x)

    def start(
        self, capacity: int, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> DecoderState:
        """État vide, pour lire jusqu'à `capacity` positions."""
        return DecoderState(len(self.blocks), capacity, memory, memory_mask)


def initialize(model: nn.Module) -> None:
    """Poids de départ de GPT-2 : gaussiens d'écart-type 0,02, biais nuls, plus petits en sortie de bloc."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    for stack in (m for m in model.modules() if isinstance(m, Encoder | Decoder)):
        for block in stack.blocks:
            outputs = [block.attention.output, block.dense[2]]
            outputs += [block.cross_attention.output] if block.cross_attention is not None else []
            # Chaque ajout grossit le flux : les réduire garde sa variance constante quel que soit leur nombre.
            for layer in outputs:
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(len(outputs) * len(stack.blocks)))


def _stack(
    width: int, layers: int, heads: int, norm: str = "pre", **options: object
) -> tuple[nn.ModuleList, nn.Module]:
    if layers < 1:
        raise MinidalleError(f"{layers} couche : une pile en veut au moins une.")
    blocks = nn.ModuleList(Block(width, heads, norm=norm, **options) for _ in range(layers))
    # En aval, le dernier bloc a déjà normalisé.
    return blocks, nn.LayerNorm(width) if norm == "pre" else nn.Identity()


# --- les modèles ----------------------------------------------------------------------------------


class TokenEmbedding(nn.Module):
    """Jetons (B, T) → vecteurs (B, T, d) : un plongement par jeton, et sa position.

    Des positions « learned » sont un plongement par position ; « sinusoidal », des sinus, de taille 1 : les
    plongements des jetons sont alors multipliés par √d (section 3.4) ; « rotary » ou « none », rien ici.

    Args:
        vocabulary: nombre de jetons.
        config: tailles.
    """

    def __init__(self, vocabulary: int, config: "LanguageModelConfig | TransformerConfig") -> None:
        super().__init__()
        width, self.length = config.width, config.length
        self.tokens = nn.Embedding(vocabulary, width)
        self.scale = math.sqrt(width) if config.positions == "sinusoidal" else 1.0
        self.positions = nn.Embedding(self.length, width) if config.positions == "learned" else None
        waves = sinusoidal(self.length, width) if config.positions == "sinusoidal" else None
        self.register_buffer("waves", waves, persistent=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """`tokens` : (B, T), int64, le premier à la position `first`.

        Raises:
            MinidalleError: suite vide ou trop longue, jeton hors du vocabulaire.
        """
        stop = first + tokens.shape[-1]
        if tokens.ndim != 2 or tokens.is_floating_point() or not first < stop <= self.length:
            raise MinidalleError(
                f"Jetons de forme {tuple(tokens.shape)} à partir de la position {first} : donner des entiers (B, T), "
                f"de 1 à {self.length} positions en tout."
            )
        try:
            x = self.tokens(tokens) * self.scale
        except IndexError as error:
            raise _unknown(self.tokens.num_embeddings) from error
        table = self.waves if self.positions is None else self.positions.weight
        return self.dropout(x if table is None else x + table[first:stop])


class Writer(nn.Module):
    """Ce qui écrit des jetons : plongements, décodeur, et couche finale, qui donne un logit à chaque jeton.

    Args:
        config: tailles.
        vocabulary: nombre V de jetons qu'il peut écrire.
        cross: le décodeur interroge aussi une autre suite.
    """

    def __init__(
        self, config: "LanguageModelConfig | TransformerConfig", vocabulary: int, *, cross: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(vocabulary, config)
        self.decoder = Decoder(config.width, config.layers, config.heads, cross=cross, **_options(config))
        self.head = None if config.tied else Linear(config.width, vocabulary, bias=False)

    def step(self, previous: Tensor | None, state: DecoderState) -> Tensor:
        """Logits (B, V) du jeton suivant.

        Args:
            previous: (B,) jeton qu'on vient d'écrire ; None pour demander le premier.
            state: celui de `start`, complété à chaque appel.
        """
        previous = state.last if previous is None else previous
        x = self.embedding(previous[:, None], state.length)
        return self._logits(self.decoder(x, state=state)[:, 0])

    def _logits(self, x: Tensor) -> Tensor:
        """Sortie du décodeur (..., d) → (..., V) ; liée, la couche finale est la table des plongements."""
        return linear(x, (self.head or self.embedding.tokens).weight)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Entropie croisée moyenne en nats par jeton, sans compter le remplissage.

    Args:
        logits: (..., V).
        targets: (...), int64 ; 0 est ignoré.
        smoothing: part ε de la cible répartie également entre les V jetons.

    Raises:
        MinidalleError: rien que du remplissage, ou jeton hors du vocabulaire.
    """
    if not targets.any():
        raise MinidalleError("Rien à prédire : les suites sont vides ou ne contiennent que du remplissage.")
    logits, targets = logits.flatten(0, -2).float(), targets.flatten()
    try:
        return F.cross_entropy(logits, targets, ignore_index=0, label_smoothing=smoothing)
    except IndexError as error:
        raise _unknown(logits.shape[-1]) from error


@dataclass(frozen=True, slots=True)
class LanguageModelConfig:
    """Tailles d'un modèle de langue.

    Attributes:
        vocabulary: nombre V de jetons ; le jeton 0 est le remplissage.
        length: positions d'une suite, au plus.
        width: dimension d du flux résiduel.
        layers: nombre de blocs.
        heads: têtes d'attention ; divise `width`.
        positions: « learned », « sinusoidal », « rotary » ou « none » ; voir `TokenEmbedding`.
        norm: « pre » ou « post » ; voir `Block`.
        tied: la couche finale est la table des plongements.
        dropout: part des activations mise à zéro à l'entraînement.
        smoothing: lissage ε des étiquettes.
    """

    vocabulary: int
    length: int = 256
    width: int = 256
    layers: int = 4
    heads: int = 4
    positions: str = "learned"
    norm: str = "pre"
    tied: bool = True
    dropout: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.vocabulary)


class LanguageModel(Writer):
    """Décodeur seul : la loi de chaque jeton sachant ceux qui le précèdent."""

    Config = LanguageModelConfig

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config, config.vocabulary)
        initialize(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Jetons (B, T) → logits (B, T, V) : la ligne i donne la loi du jeton i + 1 sachant les jetons ≤ i.

        Raises:
            MinidalleError: suite vide ou trop longue, jeton hors du vocabulaire.
        """
        return self._logits(self.decoder(self.embedding(tokens)))

    def loss(self, tokens: Tensor) -> dict[str, Tensor]:
        """Entropie croisée moyenne, en nats par jeton à prédire : tous, sauf le premier et le remplissage."""
        return {"loss": cross_entropy(self(tokens[:, :-1]), tokens[:, 1:], self.config.smoothing)}

    def start(self, prompt: Tensor) -> DecoderState:
        """Lit une invite (B, T), T ≥ 1, et rend l'état qui s'en souvient.

        Raises:
            MinidalleError: celles de `forward`, et du remplissage dans l'invite.
        """
        if (prompt == 0).any():
            raise MinidalleError("Du remplissage dans l'invite : grouper les invites de même longueur.")
        state = self.decoder.start(self.config.length)
        x = self.embedding(prompt)
        if prompt.shape[1] > 1:
            self.decoder(x[:, :-1], state=state)
        state.last = prompt[:, -1]
        return state


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Tailles d'un encodeur–décodeur.

    Attributes:
        source_vocabulary, target_vocabulary: nombres de jetons des deux langues ; le jeton 0 est le remplissage.
        start: jeton que le décodeur lit avant d'écrire.
        length: positions de chacune des deux suites, au plus.
        layers: nombre de blocs de l'encodeur, et du décodeur.
        width, heads, positions, norm, tied, dropout, smoothing: voir `LanguageModelConfig`.
    """

    source_vocabulary: int
    target_vocabulary: int
    start: int = 2
    length: int = 64
    width: int = 128
    layers: int = 2
    heads: int = 4
    positions: str = "learned"
    norm: str = "pre"
    tied: bool = True
    dropout: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.source_vocabulary, self.target_vocabulary)
        if not 0 <= self.start < self.target_vocabulary:
            raise MinidalleError(
                f"Jeton de départ {self.start} hors du vocabulaire : donner un de ses numéros."
            )


class Transformer(Writer):
    """Encodeur–décodeur : la loi de chaque jeton écrit sachant la suite lue et ceux qui le précèdent."""

    Config = TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, config.target_vocabulary, cross=True)
        self.source_embedding = TokenEmbedding(config.source_vocabulary, config)
        self.encoder = Encoder(config.width, config.layers, config.heads, **_options(config))
        for matrix in (p for p in self.parameters() if p.ndim > 1):
            nn.init.xavier_uniform_(matrix)  # comme torch.nn.Transformer

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Passe d'entraînement, toutes les positions à la fois.

        Args:
            source: (B, S), int64, complétée par des 0.
            target: (B, T), int64, complétée par des 0 ; le premier est le jeton de départ.

        Returns:
            Logits (B, T, V) : la ligne i donne la loi du jeton i + 1 sachant la source et les jetons ≤ i.

        Raises:
            MinidalleError: suite vide ou trop longue, jeton hors du vocabulaire, lots de tailles différentes.
        """
        if len(source) != len(target):
            raise MinidalleError(f"{len(source)} source(s) et {len(target)} cible(s) : une cible par source.")
        # Un remplissage à droite n'a pas besoin de masque : la causalité le cache à tous ceux qui comptent.
        memory, memory_mask = self.encode(source), padding_mask(source)
        return self._logits(self.decoder(self.embedding(target), memory, memory_mask=memory_mask))

    def loss(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Entropie croisée moyenne, en nats par jeton à prédire : tous, sauf celui de départ et le remplissage."""
        return {"loss": cross_entropy(self(source, target[:, :-1]), target[:, 1:], self.config.smoothing)}

    def encode(self, source: Tensor) -> Tensor:
        """Source (B, S) → vecteurs (B, S, d), en une passe."""
        return self.encoder(self.source_embedding(source), mask=padding_mask(source))

    def start(self, source: Tensor) -> DecoderState:
        """Lit la source (B, S) une fois pour toutes et rend l'état qui s'en souvient."""
        state = self.decoder.start(self.config.length, self.encode(source), padding_mask(source))
        state.last = torch.full_like(source[:, 0], self.config.start)
        return state


@torch.no_grad()
def attention_maps(model: nn.Module, *batch: Tensor) -> dict[str, Tensor]:
    """Poids d'attention (B, H, T, S) de chaque couche pendant `model(*batch)`, sous le nom de la couche."""
    maps = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(layer: MultiHeadAttention, inputs: tuple, options: dict) -> None:
            maps[name] = layer.weights(*inputs, **{k: v for k, v in options.items() if k != "cache"})

        return keep

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, MultiHeadAttention)]
    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers]
    try:
        model(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _unknown(vocabulary: int) -> MinidalleError:
    return MinidalleError(f"Jeton hors du vocabulaire : donner des numéros de 0 à {vocabulary - 1}.")


def _options(config: LanguageModelConfig | TransformerConfig) -> dict[str, object]:
    return {"dropout": config.dropout, "norm": config.norm, "rotary": config.positions == "rotary"}


def _check(config: object, *vocabularies: int) -> None:
    sizes = (*vocabularies, config.length, config.width, config.layers, config.heads)
    if min(sizes) < 1 or config.width % config.heads:
        raise MinidalleError("Il faut des tailles d'au moins 1, et une largeur multiple du nombre de têtes.")
    if config.positions not in POSITIONS:
        raise MinidalleError(
            f"Positions « {config.positions} » inconnues : choisir parmi {', '.join(POSITIONS)}."
        )
    if not (0 <= config.dropout < 1 and 0 <= config.smoothing < 1):
        raise MinidalleError("L'abandon et le lissage sont des parts, dans [0, 1[.")
