"""L'attention : chaque position pose une question aux autres et rapporte un mélange de leurs réponses.

Tous les transformeurs du livre s'en servent : auto-attention ou attention croisée, masques, cache des clés
et des valeurs, positions. Un masque est booléen et dit ce qui est *visible* ; il se diffuse vers
(B, H, T, S) : B suites, H têtes, T requêtes, S clés.

Sources : Vaswani et coll. (2017), sections 3.2 et 3.5 ; Su et coll. (2021) pour la rotation ; Ramesh et
coll. (2021) pour les positions d'une grille.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.linear import Linear

# --- l'opération ----------------------------------------------------------------------------------


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q·kᵀ / √d)·v (équation 1 de l'article), par les noyaux rapides de PyTorch.

    Args:
        queries: (B, H, T, d).
        keys, values: (B, H, S, d).
        mask: booléen, diffusable vers (B, H, T, S) ; vrai là où la requête voit la clé. Une requête qui
            ne voit rien rapporte 0.
        causal: les requêtes sont les T dernières des S positions, et aucune ne voit après elle.
        dropout: part des poids mise à zéro.

    Returns:
        (B, H, T, d).

    Raises:
        MinidalleError: masque d'un autre type ou d'une autre forme.
    """
    length, known = queries.shape[-2], keys.shape[-2]
    if mask is None and (length == 1 or not causal or length == known):
        # Une requête seule est la dernière position : elle voit tout, sans masque.
        return F.scaled_dot_product_attention(
            queries, keys, values, is_causal=causal and length > 1, dropout_p=dropout
        )
    visible = _visible(queries, keys, mask, causal)
    return F.scaled_dot_product_attention(queries, keys, values, visible, dropout_p=dropout)


def attend_by_hand(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """`attend`, écrite comme dans l'article, et les poids d'attention.

    Returns:
        Sortie (B, H, T, d) et poids (B, H, T, S), de somme 1 sur S, ou 0 si la requête ne voit rien.
    """
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    visible = _visible(queries, keys, mask, causal)
    # Le plus petit nombre plutôt que −∞, puis un produit : une ligne sans rien à voir donne 0, pas NaN.
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1) * visible
    return weights @ values, weights


def causal_mask(length: int, known: int | None = None) -> Tensor:
    """Masque (T, S) des `length` dernières de `known` positions : la ligne i voit jusqu'à elle-même."""
    known = length if known is None else known
    return torch.ones(length, known, dtype=torch.bool).tril(known - length)


def padding_mask(tokens: Tensor) -> Tensor:
    """Masque (B, 1, 1, S) des jetons (B, S) : personne ne voit un remplissage, le jeton 0."""
    return (tokens != 0)[:, None, None, :]


def _visible(queries: Tensor, keys: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    shape = (*queries.shape[:-1], keys.shape[-2])
    visible = torch.ones(shape[-2:], dtype=torch.bool, device=queries.device)
    if causal:
        visible = causal_mask(*shape[-2:]).to(queries.device)
    if mask is None:
        return visible
    if mask.dtype != torch.bool:
        raise MinidalleError(f"Un masque d'attention est booléen (vrai = visible), pas {mask.dtype}.")
    try:
        mask.expand(shape)
    except RuntimeError as error:
        raise MinidalleError(
            f"Masque de forme {tuple(mask.shape)} : il doit se diffuser vers {shape} (lots, têtes, requêtes, clés)."
        ) from error
    return visible & mask


# --- le souvenir ----------------------------------------------------------------------------------


class KeyValueCache:
    """Clés et valeurs déjà calculées par une couche, dans des tableaux alloués une fois pour toutes.

    Args:
        capacity: nombre de positions qu'il peut retenir.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.keys = self.values = torch.empty(0)

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Range les clés et valeurs (B, H, T, d) des nouvelles positions ; rend toutes celles connues.

        Raises:
            MinidalleError: plus de place.
        """
        start, stop = self.length, self.length + keys.shape[2]
        if stop > self.capacity:
            raise MinidalleError(
                f"Suite trop longue : {stop} positions pour un cache de {self.capacity} ; écrire moins de jetons."
            )
        if not start:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values
        self.length = stop
        return self.known()

    def known(self) -> tuple[Tensor, Tensor]:
        """Clés et valeurs (B, H, length, d) retenues."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def select(self, rows: Tensor) -> None:
        """Remplace les suites par celles de numéros `rows` (B',), dans cet ordre."""
        if self.length:
            self.keys, self.values = self.keys[rows], self.values[rows]


# --- la couche ------------------------------------------------------------------------------------


class MultiHeadAttention(nn.Module):
    """Attention à plusieurs têtes (section 3.2.2) : chacune regarde à sa façon, puis on réunit.

    Args:
        width: dimension d des vecteurs, multiple de `heads`.
        heads: nombre H de têtes, de dimension d/H chacune.
        cross: les clés et les valeurs viennent d'une autre suite, `memory`.
        dropout: part des poids d'attention mise à zéro à l'entraînement.
        bias: les projections ont un terme constant.
        rotary: requêtes et clés tournées selon leur position (auto-attention seulement).

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
        bias: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if min(width, heads) < 1 or width % heads:
            raise MinidalleError(f"Largeur {width} et {heads} têtes : la largeur doit être un multiple.")
        if not 0 <= dropout < 1:
            raise MinidalleError(f"Abandon impossible ({dropout}) : une part, dans [0 ; 1[.")
        if rotary and (cross or width // heads % 2):
            raise MinidalleError("La rotation veut une auto-attention et des têtes de dimension paire.")
        self.heads, self.cross, self.dropout, self.rotary = heads, cross, dropout, rotary
        if cross:
            self.queries = Linear(width, width, bias=bias)
            self.keys_values = Linear(width, 2 * width, bias=bias)
        else:
            self.queries_keys_values = Linear(width, 3 * width, bias=bias)
        self.output = Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Vecteurs (B, T, d) → (B, T, d).

        Args:
            x: les T positions qui interrogent ; avec un cache, les nouvelles seulement.
            memory: (B, S, d), la suite interrogée par une attention croisée.
            mask, causal: voir `attend`.
            cache: souvenir des positions précédentes ; en attention croisée, il retient `memory` au
                premier appel et dispense ensuite de la donner.
        """
        queries, keys, values = self._project(x, memory, cache)
        # En simple précision : en bfloat16, la passe arrière de l'attention est plus lente sur processeur
        # (mesuré), et le softmax y perd des décimales.
        with torch.autocast(x.device.type, enabled=False):
            dropout = self.dropout if self.training else 0.0
            seen = attend(queries, keys, values, mask, causal=causal, dropout=dropout)
        return self.output(seen.transpose(1, 2).flatten(2).to(x.dtype))

    def weights(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Poids d'attention (B, H, T, S) : ce que chaque position regarde, tête par tête."""
        projected = self._project(x, memory, None)
        with torch.autocast(x.device.type, enabled=False):
            return attend_by_hand(*projected, mask, causal=causal)[1]

    def _project(
        self, x: Tensor, memory: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.cross:
            (queries,) = self._split(self.queries(x), 1)
            if cache is not None and cache.length:
                return queries, *cache.known()
            if memory is None:
                raise MinidalleError("Une attention croisée interroge une autre suite : donner « memory ».")
            keys, values = self._split(self.keys_values(memory), 2)
        else:
            queries, keys, values = self._split(self.queries_keys_values(x), 3)
            if self.rotary:
                first = cache.length if cache is not None else 0
                queries, keys = rotate(queries, first), rotate(keys, first)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        return queries, keys, values

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """(B, T, parts·d) → (parts, B, H, T, d/H), en simple précision au moins."""
        x = x.float() if x.element_size() < 4 else x
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


# --- les positions --------------------------------------------------------------------------------


def sinusoidal(length: int, width: int) -> Tensor:
    """Encodage de position (length, width), sinus et cosinus en alternance (section 3.5).

    Raises:
        MinidalleError: largeur impaire.
    """
    angles = torch.arange(length)[:, None] * _frequencies(width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def rotate(x: Tensor, first: int = 0) -> Tensor:
    """Tourne chaque couple de coordonnées (i, i + d/2) d'un angle proportionnel à la position.

    Le produit scalaire d'une requête et d'une clé ainsi tournées ne dépend que de leur distance.

    Args:
        x: (B, H, T, d), d pair.
        first: position du premier des T vecteurs.

    Raises:
        MinidalleError: largeur impaire.
    """
    places = torch.arange(first, first + x.shape[-2], device=x.device)
    angles = places[:, None] * _frequencies(x.shape[-1]).to(x.device)
    cos, sin = angles.cos(), angles.sin()
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def _frequencies(width: int) -> Tensor:
    """(width/2,) radians par position, de 1 à 1/10 000."""
    if width % 2:
        raise MinidalleError(f"Largeur {width} impaire : les coordonnées tournent par deux.")
    return 10_000 ** (-torch.arange(0, width, 2) / width)


class CellPositions(nn.Embedding):
    """Positions d'une grille lue ligne à ligne : un plongement par case, comme une suite quelconque."""

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__(rows * columns, width)

    def forward(self, first: int = 0, length: int | None = None) -> Tensor:
        """Voir `GridPositions.forward`."""
        return self.weight[_cells(first, length, self.num_embeddings)]


def _cells(first: int, length: int | None, cells: int) -> slice:
    length = cells - first if length is None else length
    if not 0 <= first <= first + length <= cells:
        raise MinidalleError(f"Cases {first} à {first + length - 1} hors d'une grille de {cells} cases.")
    return slice(first, first + length)


class GridPositions(nn.Module):
    """Positions d'une grille lue ligne à ligne : plongement de la ligne + plongement de la colonne."""

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(rows, width), nn.Embedding(columns, width)

    def forward(self, first: int = 0, length: int | None = None) -> Tensor:
        """Vecteurs (length, d) des cases `first`, `first` + 1… ; par défaut, jusqu'à la dernière.

        Raises:
            MinidalleError: cases hors de la grille.
        """
        columns = self.columns.num_embeddings
        kept = _cells(first, length, self.rows.num_embeddings * columns)
        places = torch.arange(kept.start, kept.stop, device=self.rows.weight.device)
        return self.rows(places // columns) + self.columns(places % columns)


# Positions d'une grille, telles que les nomment les configurations.
IMAGE_POSITIONS = {"1d": CellPositions, "2d": GridPositions}


def check_image_positions(name: str) -> None:
    """Vérifie un nom de positions d'image.

    Raises:
        MinidalleError: ni « 1d » ni « 2d ».
    """
    if name not in IMAGE_POSITIONS:
        raise MinidalleError(f"Positions « {name} » inconnues : choisir « 1d » ou « 2d ».")
