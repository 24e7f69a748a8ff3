"""Séquence à séquence : un LSTM lit une phrase, un autre en écrit la traduction, avec ou sans attention.

Sans attention, le décodeur ne reçoit que le dernier état (h, c) de l'encodeur (Sutskever et coll., 2014).
Avec elle, il revient à chaque mot sur tous les états de l'encodeur : attention additive de Bahdanau et coll.
(2015), qui interroge avec l'état d'avant, ou attention globale de Luong et coll. (2015), qui interroge avec
l'état d'après, par l'un de ses trois scores.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from minidalle.errors import MinidalleError

SCORES = ("additive", "dot", "general", "concat")


@dataclass(frozen=True, slots=True)
class Seq2SeqConfig:
    """Tailles d'un traducteur.

    Attributes:
        source_vocabulary, target_vocabulary: nombre de jetons de chaque langue ; 0 est le remplissage.
        width: dimension des plongements.
        hidden: dimension H des états, paire : l'encodeur lit dans les deux sens, H/2 pour chacun.
        attention: « additive », « dot », « general », « concat », ou None pour s'en passer.
        dropout: part des plongements et des états mise à zéro à l'entraînement.
        start: jeton de début d'une cible.
    """

    source_vocabulary: int
    target_vocabulary: int
    width: int = 128
    hidden: int = 128
    attention: str | None = "general"
    dropout: float = 0.0
    start: int = 2

    def __post_init__(self) -> None:
        if min(self.source_vocabulary, self.target_vocabulary, self.width, self.hidden) < 1:
            raise MinidalleError("Vocabulaires et dimensions d'un traducteur doivent être positifs.")
        if self.hidden % 2 or not 0 <= self.dropout < 1 or not 0 < self.start < self.target_vocabulary:
            raise MinidalleError(
                "États de dimension paire, abandon dans [0, 1[, jeton de début dans le vocabulaire cible."
            )
        if self.attention is not None and self.attention not in SCORES:
            raise MinidalleError(
                f"Attention « {self.attention} » inconnue : choisir parmi {', '.join(SCORES)}, ou None."
            )


class Attention(nn.Module):
    """Note chaque état de l'encodeur, en tire des poids, puis un contexte.

    Args:
        kind: « dot », s·h ; « general », s·Wh ; « concat », v·tanh(W[s, h]) ; « additive », v·tanh(Ws + Uh).
        hidden: dimension H de s et de h.
    """

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "general":
            self.keys = nn.Linear(hidden, hidden, bias=False)
        elif kind == "concat":
            self.both = nn.Linear(2 * hidden, hidden, bias=False)
        elif kind == "additive":
            self.queries = nn.Linear(hidden, hidden, bias=False)
            self.keys = nn.Linear(hidden, hidden, bias=False)
        if kind in ("concat", "additive"):
            self.v = nn.Linear(hidden, 1, bias=False)

    def scores(self, s: Tensor, h: Tensor) -> Tensor:
        """États du décodeur (B, T, H), de l'encodeur (B, S, H) → scores (B, T, S)."""
        if self.kind == "dot":
            return s @ h.mT
        if self.kind == "general":
            return s @ self.keys(h).mT
        if self.kind == "additive":
            return self.v(torch.tanh(self.queries(s)[:, :, None] + self.keys(h)[:, None])).squeeze(-1)
        grid = (-1, s.shape[1], h.shape[1], -1)
        both = torch.cat([s[:, :, None].expand(grid), h[:, None].expand(grid)], -1)
        return self.v(torch.tanh(self.both(both))).squeeze(-1)

    def forward(self, s: Tensor, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Contexte (B, T, H) et poids (B, T, S) ; `mask` (B, S) est vrai sur les vrais mots.

        Une phrase sans aucun mot a des poids et un contexte nuls.
        """
        scores = self.scores(s, h).masked_fill(~mask[:, None], torch.finfo(s.dtype).min)
        weights = scores.softmax(-1) * mask[:, None]
        return weights @ h, weights


@dataclass
class State:
    """Ce que le décodeur sait à un instant.

    Attributes:
        h, c: son état LSTM, (B, H) chacun ; au départ, ceux de l'encodeur.
        memory: (B, S, H), les états de l'encodeur, un par mot.
        mask: (B, S), vrai sur les vrais mots.
        weights: (B, T, S), les poids d'attention du dernier appel ; None avant, ou sans attention.
    """

    h: Tensor
    c: Tensor
    memory: Tensor
    mask: Tensor
    weights: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Remplace les lignes du lot par celles de numéros `rows` (B',), dans cet ordre."""
        self.h, self.c = self.h[rows], self.c[rows]
        self.memory, self.mask = self.memory[rows], self.mask[rows]
        self.weights = None if self.weights is None else self.weights[rows]


class Seq2Seq(nn.Module):
    """Encodeur LSTM bidirectionnel, décodeur LSTM. Une source est (B, S), int64, complétée par des 0."""

    Config = Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.width, config.hidden
        self.source = nn.Embedding(config.source_vocabulary, width)
        self.target = nn.Embedding(config.target_vocabulary, width)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.LSTM(width, hidden // 2, batch_first=True, bidirectional=True)
        # Bahdanau donne le contexte au LSTM du décodeur ; Luong le réunit à ce qui en sort.
        fed = hidden if config.attention == "additive" else 0
        self.decoder = nn.LSTM(width + fed, hidden, batch_first=True)
        if config.attention:
            self.attention = Attention(config.attention, hidden)
            self.combine = nn.Linear(2 * hidden, hidden, bias=False)
        self.output = nn.Linear(hidden, config.target_vocabulary)

    def loss(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Entropie croisée par jeton, avec forçage par l'enseignant.

        Args:
            source: (B, S).
            target: (B, T), jeton de début compris : le décodeur lit les T − 1 premiers jetons de la vraie
                traduction et doit annoncer les T − 1 derniers.
        """
        logits = self.decode(target[:, :-1], self.start(source))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0)}

    def start(self, source: Tensor) -> State:
        """Lit la source (B, S).

        Raises:
            MinidalleError: lot vide, jetons hors du vocabulaire, ou remplissage ailleurs qu'à la fin.
        """
        _check(source, self.config.source_vocabulary)
        mask = source != 0
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise MinidalleError("Le remplissage se met à la fin d'une source, pas au milieu.")
        x = self.dropout(self.source(source))
        if mask.all():  # sans remplissage, c'est pareil et deux fois plus rapide
            memory, (h, c) = self.encoder(x)
        else:
            # Une phrase sans mot en a un, le remplissage : un LSTM ne lit pas rien.
            lengths = mask.sum(1).clamp_min(1).cpu()
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            outputs, (h, c) = self.encoder(packed)
            memory, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])
        # Le dernier état de chaque sens, bout à bout : (2, B, H/2) → (B, H).
        h, c = (last.transpose(0, 1).flatten(1) for last in (h, c))
        return State(h, c, memory, mask)

    def step(self, previous: Tensor | None, state: State) -> Tensor:
        """Logits (B, V) du prochain jeton ; `previous` (B,) est le dernier écrit, None pour commencer."""
        if previous is None:
            previous = torch.full((len(state.h),), self.config.start, device=state.h.device)
        return self.decode(previous[:, None], state)[:, 0]

    def decode(self, tokens: Tensor, state: State) -> Tensor:
        """Lit les jetons cibles (B, T) à la suite de `state`, qui avance d'autant → logits (B, T, V)."""
        _check(tokens, self.config.target_vocabulary)
        x = self.dropout(self.target(tokens))
        read = {None: self._plain, "additive": self._bahdanau}.get(self.config.attention, self._luong)
        return self.output(self.dropout(read(x, state)))

    @torch.no_grad()
    def weights(self, source: Tensor, target: Tensor) -> Tensor:
        """Poids d'attention (B, T − 1, S) : ligne t, ce que le décodeur regarde pour annoncer target[:, t + 1].

        Raises:
            MinidalleError: ce modèle n'a pas d'attention.
        """
        if self.config.attention is None:
            raise MinidalleError("Ce traducteur n'a pas d'attention : il n'a pas de poids à montrer.")
        state = self.start(source)
        self.decode(target[:, :-1], state)
        return state.weights

    def _advance(self, x: Tensor, state: State) -> Tensor:
        """Fait avancer le LSTM du décodeur : (B, T, …) → ses états (B, T, H)."""
        s, (h, c) = self.decoder(x, (state.h[None], state.c[None]))
        state.h, state.c = h[0], c[0]
        return s

    def _plain(self, x: Tensor, state: State) -> Tensor:
        return self._advance(x, state)

    def _luong(self, x: Tensor, state: State) -> Tensor:
        s = self._advance(x, state)
        context, state.weights = self.attention(s, state.memory, state.mask)
        return torch.tanh(self.combine(torch.cat([context, s], -1)))

    def _bahdanau(self, x: Tensor, state: State) -> Tensor:
        outputs, weights = [], []
        for now in x.split(1, 1):  # le contexte entre dans l'état : un mot après l'autre
            context, seen = self.attention(state.h[:, None], state.memory, state.mask)
            s = self._advance(torch.cat([now, context], -1), state)
            outputs.append(torch.tanh(self.combine(torch.cat([context, s], -1))))
            weights.append(seen)
        state.weights = torch.cat(weights, 1)
        return torch.cat(outputs, 1)


def _check(tokens: Tensor, vocabulary: int) -> None:
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or not tokens.numel():
        raise MinidalleError(f"Jetons de forme {tuple(tokens.shape)} : un lot non vide d'entiers (B, S).")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise MinidalleError(
            f"Jeton hors du vocabulaire : {int(tokens.min())} à {int(tokens.max())}, pour {vocabulary} jetons."
        )
