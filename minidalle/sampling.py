"""Écrire une suite jeton à jeton : en tirant au sort, au plus probable, ou par recherche en faisceau.

Le modèle n'a que deux méthodes. `start(condition)` lit ce qui est donné et rend un état ;
`step(previous, state)` lit le dernier jeton écrit, None pour commencer, et rend les logits (B, K) du
suivant. L'état sait garder, permuter ou doubler ses lignes : `state.select(rows)`.

Chaque ligne d'un lot est seule au monde : la troisième d'une série est la même, qu'on en demande trois
ou trente (aux arrondis du modèle près, que la taille du lot peut changer).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError

_NUCLEUS = 128  # jetons parmi lesquels chercher d'abord un noyau


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Vérifie les réglages du tirage.

    Raises:
        MinidalleError: température nulle ou négative, `top_k` inférieur à 1, `top_p` hors de ]0, 1].
    """
    if not 0 < temperature < float("inf"):
        raise MinidalleError(
            f"Température impossible ({temperature}) : un nombre positif, ou top-k = 1 pour ne rien tirer au hasard."
        )
    if top_k is not None and top_k < 1:
        raise MinidalleError(f"Top-k impossible ({top_k}) : garder au moins 1 jeton.")
    if top_p is not None and not 0 < top_p <= 1:
        raise MinidalleError(f"Top-p impossible ({top_p}) : choisir une probabilité dans ]0 ; 1].")


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Loi dans laquelle on tire.

    Args:
        logits: (..., K).
        temperature: divise les logits ; moins de 1 resserre la loi, plus de 1 l'aplatit.
        top_k: ne garde que les k jetons les plus probables (Fan et coll., 2018).
        top_p: ne garde que le plus petit noyau de probabilité au moins p (Holtzman et coll., 2020), et les
            jetons aussi probables que son dernier.

    Returns:
        (..., K), positives, de somme 1.

    Raises:
        MinidalleError: réglage impossible.
    """
    check_sampling(temperature, top_k, top_p)
    # Ainsi écrit, même une température minuscule ne fait pas déborder les flottants.
    logits = logits - logits.amax(-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[-1]:
        weakest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < weakest, float("-inf"))
    logits = logits.double() / temperature
    if top_p is not None and top_p < 1:
        law = logits.softmax(-1)
        logits = logits.masked_fill(law < _nucleus_edge(law, top_p), float("-inf"))
    return logits.softmax(-1).float()


def _nucleus_edge(law: Tensor, p: float) -> Tensor:
    """Probabilité (..., 1) du dernier jeton du plus petit noyau qui atteint p."""
    # Les premiers suffisent presque toujours, et coûtent bien moins que de tout trier.
    best = law.topk(min(_NUCLEUS, law.shape[-1])).values
    if (best.sum(-1) < p).any():
        best = law.sort(descending=True).values
    # Un jeton reste tant que ceux qui le précèdent ne suffisent pas à atteindre p ; le premier, toujours.
    inside = best.cumsum(-1) - best < p
    last = inside.sum(-1, keepdim=True).clamp_min(1) - 1
    return best.gather(-1, last)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Un jeton par ligne de `probabilities` (B, K), par inversion de la fonction de répartition → (B,)."""
    return _invert(probabilities, _uniform(generators))


def _uniform(generators: Sequence[torch.Generator]) -> Tensor:
    """Un nombre de [0, 1[ par générateur → (B,)."""
    return torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Jetons (B,) où les répartitions des lois (B, K) dépassent `uniform` (B,)."""
    cumulative = probabilities.double().cumsum(-1)
    # Le total n'est 1 qu'à l'arrondi près : comparer à la même échelle pour ne jamais sortir de la loi.
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    return tokens[:, 0].clamp_max(probabilities.shape[-1] - 1)


@torch.inference_mode()
def sample(
    model: nn.Module,
    condition: Tensor,
    generators: Sequence[torch.Generator],
    *,
    length: int,
    stop: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    null: Tensor | None = None,
    prefix: Tensor | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Tire une suite par ligne de `condition`, jeton après jeton.

    Un jeton imposé coûte au générateur le même nombre qu'un jeton tiré : imposer à une suite son propre
    début la refait tout entière.

    Args:
        model: deux méthodes, `start(condition)` et `step(previous, state)`.
        condition: (B, ...), ce que le modèle lit d'abord : légende, phrase à traduire, début de texte.
        generators: B générateurs, un par ligne ; chacun donne un nombre par jeton écrit, imposé ou tiré.
        length: nombre de jetons à écrire.
        stop: jeton qui finit une suite.
        temperature, top_k, top_p: voir `probabilities`.
        guidance: s, pour tirer selon ℓ = ℓ∅ + s (ℓ − ℓ∅), où ℓ∅ sont les logits sans condition (Ho et
            Salimans, 2022) ; à 1, la condition seule, sans second calcul ; à 0, le modèle l'ignore.
        null: (B, ...) ou (1, ...), la condition vide ; inutile à 1.
        prefix: (B, P) ou (1, P), int64, jetons imposés au début.
        progress: appelée après chaque jeton avec leur nombre et les jetons (B, length) écrits jusque-là.
        observe: appelée à chaque jeton avec son numéro, à partir de 1, et l'entropie (B,), en nats, de la loi
            que donnent les logits, guidage compris, avant température, top-k et top-p ; NaN pour une ligne finie.

    Returns:
        Jetons (B, length), int64, complétés par `stop`.

    Raises:
        MinidalleError: réglage impossible, lot vide, pas un générateur par ligne, guidage sans condition vide,
            début trop long ou hors du vocabulaire.
    """
    check_sampling(temperature, top_k, top_p)
    check_guidance(guidance)
    _check_request(condition, length, stop)
    count = len(condition)
    if len(generators) != count:
        raise MinidalleError(f"{count} ligne(s) et {len(generators)} générateur(s) : un par ligne.")
    if guidance != 1:
        model = _Guided(model, _spread(null, condition), guidance)
    prefix = _check_prefix(prefix, count, length).to(condition.device)
    # Sans jeton d'arrêt, toutes les lignes vont au bout : leurs nombres sont ceux que l'on tirerait un à un.
    ahead = None
    if stop is None:
        draws = [torch.rand(length, generator=g, dtype=torch.float64) for g in generators]
        ahead = torch.stack(draws).to(condition.device)

    def choose(logits: Tensor, rows: Tensor, written: Tensor) -> Tensor:
        i = written.shape[1]
        if observe:
            entropies = torch.full((count,), float("nan"), dtype=torch.float64)
            entropies[rows.cpu()] = torch.special.entr(logits.double().softmax(-1)).sum(-1).cpu()
            observe(i + 1, entropies)
        if ahead is None:
            uniform = _uniform([generators[row] for row in rows.tolist()]).to(logits.device)
        else:
            uniform = ahead[:, i]
        if i < prefix.shape[1]:
            _check_vocabulary(prefix, logits)
            return prefix[rows, i]
        return _invert(probabilities(logits, temperature, top_k, top_p), uniform)

    return _write(model, condition, length, stop, choose, progress)


def check_guidance(guidance: float) -> None:
    """Vérifie un guidage.

    Raises:
        MinidalleError: guidage négatif ou infini.
    """
    if not 0 <= guidance < float("inf"):
        raise MinidalleError(f"Guidage impossible ({guidance}) : un nombre positif, ou 1 pour s'en passer.")


class _Guided:
    """Un modèle qui lit chaque ligne avec et sans sa condition, d'une seule passe de 2B lignes."""

    def __init__(self, model: nn.Module, null: Tensor, scale: float) -> None:
        self.model, self.null, self.scale = model, null, scale

    def start(self, condition: Tensor) -> "_Pairs":
        return _Pairs(self.model.start(torch.cat([condition, self.null])), len(condition))

    def step(self, previous: Tensor | None, state: "_Pairs") -> Tensor:
        previous = None if previous is None else previous.repeat(2)
        told, untold = self.model.step(previous, state.both).chunk(2)
        return untold + self.scale * (told - untold)


class _Pairs:
    """État d'un `_Guided` : les lignes qui ont leur condition, puis les mêmes sans elle."""

    def __init__(self, both: object, count: int) -> None:
        self.both, self.count = both, count

    def select(self, rows: Tensor) -> None:
        self.both.select(torch.cat([rows, rows + self.count]))
        self.count = len(rows)


def _spread(null: Tensor | None, condition: Tensor) -> Tensor:
    """La condition vide, une ligne par ligne de `condition`."""
    if null is None:
        raise MinidalleError("Un guidage autre que 1 compare à la condition vide : la donner par null.")
    if null.shape[1:] != condition.shape[1:] or len(null) not in (1, len(condition)):
        raise MinidalleError(
            f"Condition vide de forme {tuple(null.shape)} : il faut celle de la condition, "
            f"{tuple(condition.shape)}, ou une seule ligne."
        )
    return null.expand_as(condition)


def _check_prefix(prefix: Tensor | None, rows: int, length: int) -> Tensor:
    """Le début imposé (B, P), vide s'il n'y en a pas."""
    if prefix is None:
        return torch.empty(rows, 0, dtype=torch.int64)
    if prefix.ndim != 2 or len(prefix) not in (1, rows) or prefix.is_floating_point():
        raise MinidalleError(
            f"Début imposé de forme {tuple(prefix.shape)} : donner des entiers, {rows} ligne(s) ou une seule."
        )
    if prefix.shape[1] > length:
        raise MinidalleError(
            f"Début imposé trop long : {prefix.shape[1]} jetons pour une suite de {length} ; en imposer moins."
        )
    return prefix.expand(rows, -1)


def _check_vocabulary(prefix: Tensor, logits: Tensor) -> None:
    if prefix.min() < 0 or prefix.max() >= logits.shape[-1]:
        raise MinidalleError(
            f"Début imposé hors du vocabulaire : donner des jetons de 0 à {logits.shape[-1] - 1}."
        )


@torch.inference_mode()
def greedy(
    model: nn.Module,
    condition: Tensor,
    *,
    length: int,
    stop: int | None = None,
    no_repeat: int | None = None,
) -> Tensor:
    """Écrit toujours le jeton le plus probable.

    Args:
        model, condition, length, stop: voir `sample`.
        no_repeat: n, pour ne jamais écrire deux fois la même suite de n jetons (Paulus et coll., 2018).

    Returns:
        Jetons (B, length), int64, complétés par `stop`.

    Raises:
        MinidalleError: réglage impossible, lot vide, ou plus un seul jeton permis.
    """
    if no_repeat is not None and no_repeat < 1:
        raise MinidalleError(f"Répétition de {no_repeat} jeton(s) : interdire des suites d'au moins 1 jeton.")

    def choose(logits: Tensor, rows: Tensor, written: Tensor) -> Tensor:
        if no_repeat is not None:
            logits = forbid_repeats(logits, written[rows], no_repeat)
        return logits.argmax(-1)

    return _write(model, condition, length, stop, choose)


def forbid_repeats(logits: Tensor, written: Tensor, n: int) -> Tensor:
    """Logits (B, K), où vaut −∞ tout jeton qui referait une suite de n jetons de `written` (B, T).

    Raises:
        MinidalleError: aucun jeton n'est plus permis.
    """
    if written.shape[1] < n:
        return logits
    windows = written.unfold(1, n, 1)  # (B, T − n + 1, n)
    ending = written[:, None, written.shape[1] - n + 1 :]  # les n − 1 derniers jetons
    row, place = (windows[..., :-1] == ending).all(-1).nonzero(as_tuple=True)
    logits = logits.clone()
    logits[row, windows[row, place, -1]] = float("-inf")
    if logits.amax(-1).isneginf().any():
        raise MinidalleError("Sans répétition, plus un seul jeton n'est permis : écrire moins de jetons.")
    return logits


class Beams(NamedTuple):
    """Ce que rend `beam_search`, les meilleures suites d'abord."""

    tokens: Tensor  # (B, width, length), int64, complétés par le jeton d'arrêt
    scores: Tensor  # (B, width), float64 ; −∞ là où il n'existe pas autant de suites


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    condition: Tensor,
    *,
    width: int,
    length: int,
    stop: int | None = None,
    length_penalty: float = 0.0,
) -> Beams:
    """Cherche les suites les plus probables en gardant, à chaque jeton, les `width` meilleurs débuts.

    Le score d'une suite de n jetons, celui d'arrêt compris, est ln p / n^length_penalty : à 0, sa
    log-probabilité ; à 1, sa moyenne par jeton, qui ne favorise plus les suites courtes (Wu et coll., 2016).
    Une suite finie est retenue si elle est parmi les `width` meilleurs débuts de sa longueur. La recherche
    cesse dès qu'aucun début ne peut plus battre les `width` meilleures suites finies.

    Args:
        model, condition, length, stop: voir `sample`.
        width: nombre de débuts gardés ; à 1, et sans pénalité, c'est `greedy`.
        length_penalty: exposant, positif ou nul.

    Raises:
        MinidalleError: réglage impossible ou lot vide.
    """
    if width < 1:
        raise MinidalleError(f"Largeur de faisceau impossible ({width}) : garder au moins 1 début.")
    if not 0 <= length_penalty < float("inf"):
        raise MinidalleError(
            f"Pénalité de longueur impossible ({length_penalty}) : un nombre positif ou nul."
        )
    _check_request(condition, length, stop)
    rows = torch.arange(len(condition))  # lignes où l'on cherche encore
    starts = torch.full((len(rows), width, length), 0 if stop is None else stop)
    totals = torch.full((len(rows), width), float("-inf"), dtype=torch.float64)  # ln p de chaque début
    best = Beams(starts.clone(), totals.clone())
    totals[:, 0] = 0  # un seul début, vide ; les autres places sont libres
    state, previous = model.start(condition), None
    state.select(rows.repeat_interleave(width))
    for i in range(length):
        logits = model.step(previous, state)
        _check_stop(stop, logits)
        k = logits.shape[-1]
        # Deux fois trop de candidats : si la moitié finit, l'autre suffit à continuer.
        laws = logits.double().log_softmax(-1).view(len(rows), width, k)
        totals, places = (totals[..., None] + laws).flatten(1).topk(min(2 * width, width * k))
        parents, last = places // k, places % k
        starts = _pick(starts, parents)
        starts[..., i] = last
        ended = torch.full_like(last, i + 1 == length, dtype=torch.bool)
        if stop is not None:
            ended |= last == stop
        # Les suites finies entrent parmi les meilleures…
        scores = (totals / (i + 1) ** length_penalty).masked_fill(~ended, float("-inf"))[:, :width]
        scores, kept = torch.cat([best.scores[rows], scores], 1).topk(width)
        best.scores[rows] = scores
        best.tokens[rows] = _pick(torch.cat([best.tokens[rows], starts[:, :width]], 1), kept)
        # … les autres continuent, tant que l'une d'elles pourrait encore gagner : ln p ne fait que baisser.
        totals, kept = totals.masked_fill(ended, float("-inf")).topk(width)
        going = (totals[:, 0] / length**length_penalty > scores[:, -1]).nonzero()[:, 0]
        if not len(going):
            break
        parents, last, starts = (_pick(x, kept)[going] for x in (parents, last, starts))
        rows, totals, previous = rows[going], totals[going], last.flatten()
        state.select((going[:, None] * width + parents).flatten())
    return best


def _pick(x: Tensor, places: Tensor) -> Tensor:
    """Éléments (B, n, ...) de `x` (B, m, ...) aux places (B, n)."""
    return x[torch.arange(len(x))[:, None], places]


def _write(
    model: nn.Module,
    condition: Tensor,
    length: int,
    stop: int | None,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Écrit une suite par ligne : `choose(logits, rows, written)` élit le jeton des lignes `rows`."""
    _check_request(condition, length, stop)
    rows = torch.arange(len(condition), device=condition.device)  # lignes pas encore finies
    tokens = torch.full((len(rows), length), 0 if stop is None else stop, device=condition.device)
    state, previous = model.start(condition), None
    for i in range(length):
        logits = model.step(previous, state)
        _check_stop(stop, logits)
        previous = choose(logits, rows, tokens[:, :i])
        tokens[rows, i] = previous
        if progress:
            progress(i + 1, tokens)
        if stop is not None and (previous == stop).any():
            # Une ligne finie quitte le lot : elle ne coûte plus rien, ni nombres au hasard ni calcul.
            going = (previous != stop).nonzero()[:, 0]
            if not len(going):
                break
            rows, previous = rows[going], previous[going]
            state.select(going)
    return tokens


def _check_request(condition: Tensor, length: int, stop: int | None) -> None:
    if not len(condition):
        raise MinidalleError("Lot vide : donner au moins une ligne à lire.")
    if length < 1:
        raise MinidalleError(f"Longueur impossible ({length}) : écrire au moins 1 jeton.")
    if stop is not None and stop < 0:
        raise MinidalleError(f"Jeton d'arrêt impossible ({stop}) : un numéro du vocabulaire.")


def _check_stop(stop: int | None, logits: Tensor) -> None:
    if stop is not None and stop >= logits.shape[-1]:
        raise MinidalleError(f"Jeton d'arrêt impossible ({stop}) : le vocabulaire en a {logits.shape[-1]}.")
