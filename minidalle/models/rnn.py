"""Réseaux récurrents : trois cellules, la boucle qui les déroule, et un modèle de langue de caractères.

L'état d'une cellule est un n-uplet de vecteurs (B, H), sa sortie h en premier : (h,), ou (h, c) pour le
LSTM. Les poids portent les noms et l'ordre de portes de `torch.nn`, dont on peut donc charger les modèles.

Sources : Elman (1990) ; Hochreiter et Schmidhuber (1997), porte d'oubli de Gers et coll. (2000) ; Cho et
coll. (2014) ; modèle de caractères d'après Karpathy (2015).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError

State = tuple[Tensor, ...]

# --- les cellules ---------------------------------------------------------------------------------


class Cell(nn.Module):
    """Ce que les trois cellules ont en commun : une carte affine de l'entrée, une autre de l'état.

    Les poids partent d'une loi uniforme entre −1/√H et 1/√H, les biais de zéro.

    Args:
        inputs: dimension D de l'entrée.
        hidden: dimension H de l'état.
    """

    gates = 1  # blocs de H lignes dans chaque matrice
    vectors = 1  # vecteurs de l'état

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        rows, bound = self.gates * hidden, hidden**-0.5
        self.weight_ih = nn.Parameter(torch.empty(rows, inputs).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.zeros(rows))
        self.bias_hh = nn.Parameter(torch.zeros(rows))

    def forward(self, x: Tensor, state: State | None = None) -> State:
        """Un pas : entrée (B, D) et état, nul s'il n'est pas donné → état suivant.

        `step`, propre à chaque cellule, fait de même avec l'entrée déjà projetée (B, G·H).
        """
        return self.step(self.project(x), self.zeros(x) if state is None else state)

    def project(self, x: Tensor) -> Tensor:
        """Part de l'entrée (..., D) dans chaque porte (..., G·H) : elle ne dépend pas de l'état."""
        return F.linear(x, self.weight_ih, self.bias_ih)

    def recur(self, h: Tensor) -> Tensor:
        """Part de l'état (B, H) dans chaque porte (B, G·H)."""
        return F.linear(h, self.weight_hh, self.bias_hh)

    def zeros(self, x: Tensor) -> State:
        """État nul d'un lot aussi grand que celui de `x` (B, ...)."""
        return tuple(x.new_zeros(len(x), self.weight_hh.shape[1]) for _ in range(self.vectors))


class RNNCell(Cell):
    """Cellule d'Elman : h' = tanh(W x + b + U h + d)."""

    def step(self, projected: Tensor, state: State) -> State:
        (h,) = state
        return (torch.tanh(projected + self.recur(h)),)


class LSTMCell(Cell):
    """Mémoire longue à court terme ; σ est la sigmoïde, ⊙ le produit coordonnée par coordonnée.

    i, f, o = σ(W x + b + U h + d)     portes d'entrée, d'oubli, de sortie, chacune avec ses poids
    n = tanh(W x + b + U h + d)        contenu proposé
    c' = f ⊙ c + i ⊙ n                 état de la cellule
    h' = o ⊙ tanh(c')                  état caché, la sortie

    Le biais d'oubli part de 1 : la cellule commence par se souvenir (Gers et coll., 2000).
    """

    gates, vectors = 4, 2

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        nn.init.ones_(self.bias_ih[hidden : 2 * hidden].detach())

    def step(self, projected: Tensor, state: State) -> State:
        h, c = state
        i, f, n, o = (projected + self.recur(h)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * n.tanh()
        return o.sigmoid() * c.tanh(), c


class GRUCell(Cell):
    """Unité récurrente à portes, dans la variante de `torch.nn` : r agit après U, non avant.

    r, z = σ(W x + b + U h + d)             portes de réinitialisation, de mise à jour
    n = tanh(W x + b + r ⊙ (U h + d))       contenu proposé
    h' = z ⊙ h + (1 − z) ⊙ n
    """

    gates = 3

    def step(self, projected: Tensor, state: State) -> State:
        (h,) = state
        (xr, xz, xn), (hr, hz, hn) = projected.chunk(3, dim=1), self.recur(h).chunk(3, dim=1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = torch.tanh(xn + r * hn)
        return (z * h + (1 - z) * n,)


CELLS = {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell}

# --- dérouler dans le temps -----------------------------------------------------------------------


class RNN(nn.Module):
    """Couches de cellules : la sortie de l'une, à chaque pas, est l'entrée de la suivante.

    Args:
        inputs, hidden: voir `Cell`.
        cell: « rnn », « lstm » ou « gru ».
        layers: nombre de couches, chacune avec sa cellule, la même à tous les pas.
    """

    def __init__(self, inputs: int, hidden: int, cell: str = "lstm", layers: int = 1) -> None:
        super().__init__()
        _check_sizes(cell, inputs, hidden, layers)
        self.inputs = inputs
        sizes = [inputs] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(CELLS[cell](size, hidden) for size in sizes)

    def forward(self, x: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Lit une suite.

        Args:
            x: (B, T, D).
            state: un état par couche, celui que rend un appel précédent ; nul s'il n'est pas donné.

        Returns:
            Les sorties de la dernière couche (B, T, H), et l'état de chaque couche après le dernier pas.

        Raises:
            MinidalleError: suite vide ou d'une autre dimension, état d'un autre réseau ou d'un autre lot.
        """
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != self.inputs:
            raise MinidalleError(
                f"Suite de forme {tuple(x.shape)} : donner (B, T, {self.inputs}), avec T d'au moins 1."
            )
        state = [cell.zeros(x) for cell in self.cells] if state is None else list(state)
        self._check(x, state)
        for layer, cell in enumerate(self.cells):
            outputs = []
            for projected in cell.project(x).unbind(1):  # toute la suite projetée d'un coup
                state[layer] = cell.step(projected, state[layer])
                outputs.append(state[layer][0])
            x = torch.stack(outputs, 1)
        return x, state

    def load_torch(self, weights: dict[str, Tensor]) -> None:
        """Charge le `state_dict` d'un `torch.nn.RNN`, `LSTM` ou `GRU` de mêmes tailles, à un seul sens."""
        renamed = {}
        for name, tensor in weights.items():
            kind, _, layer = name.rpartition("_l")  # « weight_ih_l0 »
            renamed[f"cells.{layer}.{kind}"] = tensor
        try:
            self.load_state_dict(renamed)
        except RuntimeError as error:
            raise MinidalleError(
                "Poids d'un autre réseau : mêmes tailles, même cellule, biais compris, un seul sens de lecture."
            ) from error

    def _check(self, x: Tensor, state: list[State]) -> None:
        expected = [[part.shape for part in cell.zeros(x)] for cell in self.cells]
        if [[part.shape for part in parts] for parts in state] != expected:
            raise MinidalleError("L'état n'est pas de ce réseau ou de ce lot : donner celui qu'il a rendu.")


def _check_sizes(cell: str, *sizes: int) -> None:
    if cell not in CELLS:
        raise MinidalleError(f"Cellule « {cell} » inconnue : choisir parmi {', '.join(CELLS)}.")
    if min(sizes) < 1:
        raise MinidalleError(f"Tailles impossibles {sizes} : chacune est d'au moins 1.")


# --- un modèle de langue --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CharRNNConfig:
    """Tailles d'un modèle de langue récurrent.

    Attributes:
        vocabulary: nombre V de jetons.
        width: dimension du plongement d'un jeton.
        hidden: dimension de l'état.
        cell, layers: voir `RNN`.
        dropout: part des sorties mises à zéro à l'entraînement.
    """

    vocabulary: int
    width: int = 64
    hidden: int = 256
    cell: str = "lstm"
    layers: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_sizes(self.cell, self.vocabulary, self.width, self.hidden, self.layers)
        if not 0 <= self.dropout < 1:
            raise MinidalleError(f"Abandon impossible ({self.dropout}) : choisir une part dans [0 ; 1[.")


@dataclass
class CharState:
    """Ce que le modèle retient en écrivant : l'état de chaque couche, et le jeton (B,) pas encore lu."""

    layers: list[State] | None
    unread: Tensor

    def select(self, rows: Tensor) -> None:
        """Remplace les suites du lot par celles de numéros `rows` (B',), dans cet ordre."""
        self.unread = self.unread[rows]
        if self.layers is not None:
            self.layers = [tuple(part[rows] for part in parts) for parts in self.layers]


class CharRNN(nn.Module):
    """Prédit chaque jeton d'après ceux qui le précèdent. Les jetons sont (B, T), int64 dans [0, V)."""

    Config = CharRNNConfig

    def __init__(self, config: CharRNNConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.rnn = RNN(config.width, config.hidden, config.cell, config.layers)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, config.vocabulary)

    def forward(self, tokens: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Logits (B, T, V) du jeton qui suit chacun des `tokens` (B, T), et l'état après le dernier.

        Raises:
            MinidalleError: suite vide, jetons qui ne sont pas des entiers de [0, V), état d'un autre lot.
        """
        self._check(tokens)
        outputs, state = self.rnn(self.embedding(tokens), state)
        return self.head(self.dropout(outputs)), state

    def loss(self, tokens: Tensor) -> dict[str, Tensor]:
        """Entropie croisée moyenne, en nats, de `tokens[:, 1:]` sachant `tokens[:, :-1]`."""
        self._check(tokens, least=2)
        logits, _ = self(tokens[:, :-1])
        return {"loss": F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())}

    @torch.no_grad()
    def start(self, prompt: Tensor) -> CharState:
        """Lit un début de texte (B, T), sauf son dernier jeton, que lira le premier `step`."""
        self._check(prompt)
        layers = self(prompt[:, :-1])[1] if prompt.shape[1] > 1 else None
        return CharState(layers, prompt[:, -1])

    @torch.no_grad()
    def step(self, previous: Tensor | None, state: CharState) -> Tensor:
        """Logits (B, V) du jeton suivant ; `state` est mis à jour sur place.

        Args:
            previous: (B,), le jeton qui vient d'être écrit ; None au premier appel.
        """
        if previous is not None:
            state.unread = previous
        logits, state.layers = self(state.unread[:, None], state.layers)
        return logits[:, 0]

    def _check(self, tokens: Tensor, least: int = 1) -> None:
        last = self.config.vocabulary - 1
        if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < least or tokens.is_floating_point():
            raise MinidalleError(
                f"Jetons de forme {tuple(tokens.shape)} : donner des entiers (B, T), avec T d'au moins {least}."
            )
        if tokens.min() < 0 or tokens.max() > last:
            raise MinidalleError(f"Jeton hors du vocabulaire : donner des entiers de 0 à {last}.")
