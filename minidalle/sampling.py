"""Écrire une suite jeton à jeton : en tirant au sort, au plus probable, ou par recherche en faisceau.

Le modèle n'a que deux méthodes. `start(condition)` lit ce qui est donné et rend un état ;
`step(previous, state)` lit le dernier jeton écrit, None pour commencer, et rend les logits (B, K) du
suivant. L'état sait garder, permuter ou doubler ses lignes : `state.select(rows)`.

Chaque ligne d'un lot est seule au monde : la troisième d'une série est la même, qu'on en demande trois
ou trente.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError


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
        top_p: ne garde que le plus petit noyau de probabilité au moins p (Holtzman et coll., 2020).

    Returns:
        (..., K), positives, de somme 1.

    Raises:
        MinidalleError: réglage impossible.
    """
    check_sampling(temperature, top_k, top_p)
    # Ainsi écrit, même une température minuscule ne fait pas déborder les flottants.
    logits = (logits - logits.amax(-1, keepdim=True)).double() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        weakest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < weakest, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        # Un jeton reste tant que ceux qui le précèdent ne suffisent pas à atteindre p ; le premier, toujours.
        outside = ordered.cumsum(-1) - ordered >= top_p
        outside[..., 0] = False
        logits = logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return logits.softmax(-1).float()


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Un jeton par ligne de `probabilities` (B, K), par inversion de la fonction de répartition → (B,)."""
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
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
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Tire une suite par ligne de `condition`, jeton après jeton.

    Args:
        model: deux méthodes, `start(condition)` et `step(previous, state)`.
        condition: (B, ...), ce que le modèle lit d'abord : légende, phrase à traduire, début de texte.
        generators: B générateurs, un par ligne ; chacun donne un nombre par jeton écrit.
        length: nombre de jetons à écrire.
        stop: jeton qui finit une suite.
        temperature, top_k, top_p: voir `probabilities`.
        progress: appelée après chaque jeton avec leur nombre et les jetons (B, length) écrits jusque-là.

    Returns:
        Jetons (B, length), int64, complétés par `stop`.

    Raises:
        MinidalleError: réglage impossible, lot vide, ou pas un générateur par ligne.
    """
    check_sampling(temperature, top_k, top_p)
    if len(generators) != len(condition):
        raise MinidalleError(f"{len(condition)} ligne(s) et {len(generators)} générateur(s) : un par ligne.")

    def choose(logits: Tensor, rows: Tensor, written: Tensor) -> Tensor:
        law = probabilities(logits, temperature, top_k, top_p)
        return draw(law, [generators[row] for row in rows.tolist()])

    return _write(model, condition, length, stop, choose, progress)


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
    rows = torch.arange(len(condition))  # lignes pas encore finies
    tokens = torch.full((len(rows), length), 0 if stop is None else stop)
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
