"""Écriture jeton à jeton : tirage, au plus probable, recherche en faisceau."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle import sampling
from minidalle.errors import MinidalleError
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.sampling import beam_search, draw, forbid_repeats, greedy, probabilities, sample

K = 4  # vocabulaire du modèle jouet
STOP = 1


class Toy:
    """Loi du jeton suivant sachant la condition et les deux derniers jetons, lue dans une table.

    Son état est l'historique de chaque ligne : des lignes mal gardées ou mal permutées se voient.
    """

    def __init__(self, seed=0, sharpness=2.0):
        generator = torch.Generator().manual_seed(seed)
        # Deux « aucun jeton » de plus : rien avant le premier, rien avant le deuxième.
        self.table = sharpness * torch.randn(5, K + 1, K + 1, K, generator=generator)
        self.steps = []  # nombre de lignes de chaque appel

    def start(self, condition):
        return State(condition[:, 0], torch.full((len(condition), 2), K))

    def step(self, previous, state):
        if previous is not None:
            state.history = torch.stack([state.history[:, 1], previous], 1)
        self.steps.append(len(state.rows))
        return self.table[state.rows, state.history[:, 0], state.history[:, 1]]

    def log_probability(self, row, tokens):
        """ln p d'une suite, jeton par jeton, sans rien devoir au module testé."""
        total, history = 0.0, (K, K)
        for token in tokens:
            logits = self.table[row][history].tolist()
            total += logits[token] - math.log(sum(map(math.exp, logits)))
            history = history[1], token
        return total


class State:
    def __init__(self, rows, history):
        self.rows, self.history = rows, history

    def select(self, rows):
        self.rows, self.history = self.rows[rows], self.history[rows]


def conditions(*rows):
    return torch.tensor(rows)[:, None]


def generators(n, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


# --- la loi et le tirage --------------------------------------------------------------------------

# Pas d'ex æquo : leur départage n'est pas le même partout.
LOGITS = st.lists(st.integers(-80, 80), min_size=2, max_size=12, unique=True).map(
    lambda x: torch.tensor(x) / 10
)


@given(LOGITS, st.floats(0.1, 5))
def test_temperature_divides_the_logits(logits, temperature):
    assert torch.allclose(probabilities(logits, temperature), (logits / temperature).softmax(-1), atol=1e-6)


@given(LOGITS, st.integers(1, 14), st.floats(0.05, 1))
def test_same_filters_as_transformers(logits, k, p):
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    ours = probabilities(logits, top_k=k)
    theirs = TopKLogitsWarper(min(k, len(logits)))(None, logits[None].clone())[0].softmax(-1)
    assert torch.allclose(ours, theirs, atol=1e-6)
    ours = probabilities(logits, top_p=p)
    theirs = TopPLogitsWarper(p)(None, logits[None].clone())[0].softmax(-1)
    # Au seuil exact, l'arrondi peut garder un jeton d'un côté et pas de l'autre.
    kept = (ours > 0).sum() - (theirs > 0).sum()
    assert abs(int(kept)) <= 1 and (kept != 0 or torch.allclose(ours, theirs, atol=1e-6))


@given(LOGITS, st.floats(0.05, 1))
def test_nucleus_is_the_smallest_that_reaches_p(logits, p):
    full, kept = logits.double().softmax(-1), probabilities(logits.double(), top_p=p) > 0
    assert full[kept].sum() >= p - 1e-6
    if kept.sum() > 1:
        assert full[kept].sum() - full[kept].min() < p + 1e-6
    if (~kept).any():
        assert full[kept].min() >= full[~kept].max()


def test_draw_follows_the_law():
    law = torch.tensor([0.1, 0.0, 0.6, 0.3])
    n = 4000
    tokens = draw(law.expand(n, 4), generators(n))
    shares = torch.bincount(tokens, minlength=4) / n
    assert shares[1] == 0
    assert torch.allclose(shares, law, atol=4 * 0.5 / n**0.5)


def test_sequences_follow_the_model():
    model, n = Toy(3, sharpness=1.0), 4000
    tokens = sample(model, conditions(2).expand(n, 1), generators(n), length=2)
    shares = torch.bincount(tokens @ torch.tensor([K, 1]), minlength=K * K) / n
    expected = [math.exp(model.log_probability(2, pair)) for pair in itertools.product(range(K), repeat=2)]
    assert torch.allclose(shares, torch.tensor(expected), atol=4 * 0.5 / n**0.5)


@given(LOGITS, st.floats(0.05, 1), st.integers(1, 3))
def test_a_nucleus_wider_than_the_first_look_is_sorted_whole(logits, p, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_NUCLEUS", few)
        narrow = probabilities(logits, top_p=p)
    assert torch.equal(narrow, probabilities(logits, top_p=p))


def test_ties_at_the_edge_of_the_nucleus_stay_together():
    law = probabilities(torch.tensor([1.0, 0.0, 0.0, 0.0, -9.0]), top_p=0.6)
    assert (law > 0).tolist() == [True, True, True, True, False]


@given(st.integers(1, 70), st.integers(0, 99))
def test_numbers_drawn_ahead_are_those_drawn_one_by_one(n, seed):
    one_by_one = generators(1, seed)
    ahead = torch.rand(n, generator=generators(1, seed)[0], dtype=torch.float64)
    assert torch.equal(ahead, torch.cat([sampling._uniform(one_by_one) for _ in range(n)]))


# --- guidage --------------------------------------------------------------------------------------

SCALES = st.floats(0, 6)
NULL = conditions(4)  # la condition vide du modèle jouet


class Mixed(Toy):
    """Le modèle jouet dont la table est déjà celle d'un guidage, faite à la main."""

    def __init__(self, seed, scale):
        super().__init__(seed)
        plain = self.table.clone()
        for row in range(5):
            self.table[row] = plain[4] + scale * (plain[row] - plain[4])


@given(seed=st.integers(0, 50), scale=SCALES, stop=st.sampled_from([None, STOP]))
@settings(max_examples=40)
def test_guidance_follows_its_formula(seed, scale, stop):
    condition, options = conditions(0, 1, 2, 3), {"length": 6, "stop": stop}
    guided = sample(Toy(seed), condition, generators(4, seed), guidance=scale, null=NULL, **options)
    expected = sample(Mixed(seed, scale), condition, generators(4, seed), **options)
    assert torch.equal(guided, expected)


def test_guidance_reads_both_in_one_pass_and_drops_finished_rows():
    model, condition = Toy(5), conditions(0, 1, 2, 3)
    tokens = sample(model, condition, generators(4), length=9, stop=STOP, guidance=2.0, null=NULL)
    lengths = [row.index(STOP) + 1 if STOP in row else 9 for row in tokens.tolist()]
    assert len(set(lengths)) > 1
    assert model.steps == [2 * sum(length > i for length in lengths) for i in range(max(lengths))]


@pytest.mark.parametrize("null", [None, NULL, NULL.expand(3, 1)])
def test_guidance_one_is_no_guidance(null):
    plain, guided = Toy(3), Toy(3)
    expected = sample(plain, conditions(0, 1, 2), generators(3), length=6)
    tokens = sample(guided, conditions(0, 1, 2), generators(3), length=6, guidance=1.0, null=null)
    assert torch.equal(tokens, expected)
    assert guided.steps == plain.steps


def test_guidance_zero_forgets_the_condition():
    tokens = sample(Toy(3), conditions(0, 1), generators(2), length=6, guidance=0.0, null=NULL)
    assert torch.equal(tokens, sample(Toy(3), conditions(4, 4), generators(2), length=6))


# --- début imposé ---------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 50),
    prefix=st.lists(st.integers(0, K - 1), max_size=6),
    scale=st.sampled_from([1.0, 2.0]),
)
@settings(max_examples=40)
def test_a_prefix_is_kept_and_what_follows_is_drawn_from_it(seed, prefix, scale):
    model, used = Toy(seed), generators(3, seed)
    options = {"length": 6, "guidance": scale, "null": NULL}
    tokens = sample(model, conditions(0, 1, 2), used, prefix=torch.tensor([prefix]).long(), **options)
    assert tokens[:, : len(prefix)].tolist() == [prefix] * 3
    # Chaque jeton, imposé ou tiré, a coûté un nombre ; le n-ième nombre décide du n-ième jeton.
    table = Mixed(seed, scale).table
    for row in range(3):
        numbers = torch.rand(6, generator=generators(1, seed + row)[0], dtype=torch.float64)
        history = (K, K)
        for i, token in enumerate(tokens[row].tolist()):
            law = probabilities(table[row][history])
            if i >= len(prefix):
                assert sampling._invert(law[None], numbers[i : i + 1]).item() == token
            history = history[1], token


@given(seed=st.integers(0, 50), kept=st.integers(0, 7), stop=st.sampled_from([None, STOP]))
def test_imposing_its_own_start_redoes_a_sequence(seed, kept, stop):
    condition, options = conditions(0, 1, 2, 3), {"length": 7, "stop": stop}
    tokens = sample(Toy(seed), condition, generators(4, seed), **options)
    again = sample(Toy(seed), condition, generators(4, seed), prefix=tokens[:, :kept], **options)
    assert torch.equal(again, tokens)


# --- ce que l'on observe --------------------------------------------------------------------------


@given(seed=st.integers(0, 50), stop=st.sampled_from([None, STOP]), scale=st.sampled_from([1.0, 3.0]))
@settings(max_examples=30)
def test_observed_entropies_are_those_of_the_untouched_law(seed, stop, scale):
    seen, options = [], {"length": 5, "stop": stop, "temperature": 0.3, "top_k": 2}
    tokens = sample(
        Toy(seed),
        conditions(0, 1),
        generators(2),
        guidance=scale,
        null=NULL,
        observe=lambda i, entropies: seen.append((i, entropies)),
        **options,
    )
    assert [i for i, _ in seen] == list(range(1, len(seen) + 1))
    table = Mixed(seed, scale).table
    for row, sequence in enumerate(tokens.tolist()):
        history, over = (K, K), False
        for token, (_, entropies) in zip(sequence, seen, strict=False):
            p = table[row][history].double().softmax(-1)
            expected = float("nan") if over else -(p * p.log()).sum().item()
            assert entropies[row].item() == pytest.approx(expected, abs=1e-5, nan_ok=True)
            history, over = (history[1], token), over or token == stop
    plain = sample(Toy(seed), conditions(0, 1), generators(2), guidance=scale, null=NULL, **options)
    assert torch.equal(plain, tokens)


# --- un vrai modèle -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5])
def test_cached_is_uncached_for_dalle(rows):
    torch.manual_seed(0)
    model = DALLE(
        DALLEConfig(9, image_vocabulary=11, text_length=4, grid=(3, 4), width=16, layers=2, heads=2)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    model.eval()
    text = torch.randint(1, 9, (rows, 4))
    tokens = sample(model, text, generators(rows), length=12, top_k=1)
    for i in range(12):  # sans cache : tout relire à chaque jeton
        start = torch.cat([tokens[:, :i], torch.zeros(rows, 12 - i, dtype=torch.int64)], 1)
        assert torch.equal(model(text, start)[:, i].argmax(-1), tokens[:, i])
    assert len(tokens.unique()) > 3


# --- chaque ligne est seule au monde --------------------------------------------------------------

METHODS = {
    "sample": lambda model, condition, first, **o: sample(
        model, condition, generators(len(condition), first), **o
    ),
    "sample, guidé": lambda model, condition, first, **o: sample(
        model, condition, generators(len(condition), first), guidance=2.5, null=NULL, **o
    ),
    "greedy": lambda model, condition, first, **o: greedy(model, condition, **o),
    "sans répétition": lambda model, condition, first, **o: greedy(model, condition, no_repeat=2, **o),
    "beam": lambda model, condition, first, **o: beam_search(model, condition, width=3, **o).tokens,
    "beam, normalisé": lambda model, condition, first, **o: (
        beam_search(model, condition, width=2, length_penalty=0.8, **o).tokens
    ),
}


@pytest.mark.parametrize("method", METHODS)
@given(
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    seed=st.integers(0, 9),
    stop=st.sampled_from([None, 0, STOP]),
)
@settings(max_examples=40)
def test_a_row_depends_neither_on_the_batch_nor_on_its_neighbours(method, rows, seed, stop):
    write, options = METHODS[method], {"length": 7, "stop": stop}
    together = write(Toy(seed), conditions(*rows), seed, **options)
    for i, row in enumerate(rows):
        alone = write(Toy(seed), conditions(row), seed + i, **options)
        assert torch.equal(alone[0], together[i])


@given(seed=st.integers(0, 20))
@settings(max_examples=20)
def test_a_generator_gives_one_number_by_written_token(seed):
    used = generators(4, seed)
    tokens = sample(Toy(seed), conditions(0, 1, 2, 3), used, length=8, stop=STOP)
    for i, generator in enumerate(generators(4, seed)):
        written = tokens[i].tolist()
        for _ in range(written.index(STOP) + 1 if STOP in written else 8):
            torch.rand((), generator=generator, dtype=torch.float64)
        assert torch.equal(generator.get_state(), used[i].get_state())


@pytest.mark.parametrize("method", METHODS)
def test_after_stop_only_stop(method):
    tokens = METHODS[method](Toy(5), conditions(0, 1, 2, 3, 4), 0, length=9, stop=STOP).view(-1, 9)
    ended = (tokens == STOP).cummax(1).values
    assert ended.any() and not ended.all()
    assert (tokens[ended] == STOP).all()


def test_a_finished_row_costs_nothing():
    model = Toy(5)
    tokens = greedy(model, conditions(0, 1, 2, 3, 4), length=9, stop=STOP)
    lengths = [row.index(STOP) + 1 if STOP in row else 9 for row in tokens.tolist()]
    assert len(set(lengths)) > 1
    assert model.steps == [sum(length > i for length in lengths) for i in range(max(lengths))]


# --- au plus probable -----------------------------------------------------------------------------


@given(seed=st.integers(0, 50), row=st.integers(0, 4))
def test_greedy_takes_the_best_next_token(seed, row):
    model = Toy(seed)
    (tokens,) = greedy(model, conditions(row), length=6).tolist()
    for i in range(6):
        choices = [model.log_probability(row, [*tokens[:i], token]) for token in range(K)]
        assert tokens[i] == max(range(K), key=choices.__getitem__)
    assert sample(model, conditions(row), generators(1), length=6, top_k=1).tolist() == [tokens]


@given(
    written=st.lists(st.lists(st.integers(0, 5), min_size=8, max_size=8), min_size=1, max_size=4),
    length=st.integers(0, 8),
    n=st.integers(1, 4),
)
def test_same_bans_as_transformers(written, length, n):
    from transformers import NoRepeatNGramLogitsProcessor

    written = torch.tensor(written)[:, :length]
    logits = torch.randn(len(written), 7)  # le jeton 6 n'est jamais écrit : tout n'est pas interdit
    expected = NoRepeatNGramLogitsProcessor(n)(written, logits.clone())
    before = logits.clone()
    assert torch.equal(forbid_repeats(logits, written, n), expected)
    assert torch.equal(logits, before), "les logits du modèle sont à lui"


@given(seed=st.integers(0, 50), n=st.integers(1, 3))
def test_no_sequence_is_written_twice(seed, n):
    # Plus long, il pourrait ne plus y avoir de jeton permis.
    model, length = Toy(seed), {1: K, 2: 2 * K, 3: 3 * K}[n]
    plain = greedy(model, conditions(0, 3), length=length)
    tokens = greedy(model, conditions(0, 3), length=length, no_repeat=n)
    for row, usual in zip(tokens.tolist(), plain.tolist(), strict=True):
        seen = [tuple(row[i : i + n]) for i in range(length - n + 1)]
        assert len(set(seen)) == len(seen)
        repeats = [tuple(usual[i : i + n]) for i in range(length - n + 1)]
        if len(set(repeats)) == len(repeats):
            assert row == usual


def test_nothing_left_to_write_is_said():
    with pytest.raises(MinidalleError, match="plus un seul jeton"):
        greedy(Toy(), conditions(0), length=K + 1, no_repeat=1)


# --- recherche en faisceau ------------------------------------------------------------------------

SEEDS, ROWS, PENALTIES = st.integers(0, 1000), st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0, 2.0])
STOPS = st.sampled_from([None, STOP])


def every_sequence(length, stop):
    """Toutes les suites possibles, coupées à `stop` : un ensemble de tuples."""
    for tokens in itertools.product(range(K), repeat=length):
        yield tokens[: tokens.index(stop) + 1] if stop in tokens else tokens


def written(tokens, stop):
    """La suite sans ses jetons d'arrêt de remplissage."""
    return tuple(tokens[: tokens.index(stop) + 1] if stop in tokens else tokens)


def beam_by_hand(model, row, width, length, stop, penalty):
    """La recherche en faisceau, en listes, sans jamais s'arrêter avant la fin."""
    live, done = [((), 0.0)], []
    for i in range(1, length + 1):
        grown = [(*tokens, token) for tokens, _ in live for token in range(K)]
        ranked = sorted(((t, model.log_probability(row, t)) for t in grown), key=lambda x: -x[1])[: 2 * width]
        done += [(t, p / i**penalty) for t, p in ranked[:width] if t[-1] == stop or i == length]
        live = [(t, p) for t, p in ranked if t[-1] != stop][:width]
    return sorted(done, key=lambda x: -x[1])[:width]


@given(seed=SEEDS, row=ROWS, stop=STOPS, penalty=PENALTIES, length=st.integers(1, 3))
@settings(max_examples=60)
def test_wide_enough_a_beam_finds_every_sequence(seed, row, stop, penalty, length):
    model, width = Toy(seed), K**length
    beams = beam_search(model, conditions(row), width=width, length=length, stop=stop, length_penalty=penalty)
    expected = {
        t: model.log_probability(row, t) / len(t) ** penalty for t in set(every_sequence(length, stop))
    }
    scores, rows = beams.scores[0].tolist(), beams.tokens[0].tolist()
    found = {written(t, stop): s for t, s in zip(rows, scores, strict=True) if s > -math.inf}
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[t], expected[t], abs_tol=1e-5) for t in expected)
    assert scores == sorted(scores, reverse=True)
    assert math.isclose(scores[0], max(expected.values()), abs_tol=1e-5)


@given(seed=SEEDS, row=ROWS, stop=STOPS, penalty=PENALTIES, width=st.integers(1, 5), length=st.integers(1, 6))
@settings(max_examples=60)
def test_same_as_by_hand_though_it_stops_early(seed, row, stop, penalty, width, length):
    model = Toy(seed)
    beams = beam_search(model, conditions(row), width=width, length=length, stop=stop, length_penalty=penalty)
    expected = beam_by_hand(model, row, width, length, stop, penalty)
    for i, (tokens, score) in enumerate(expected):
        assert written(beams.tokens[0, i].tolist(), stop) == tokens
        assert math.isclose(beams.scores[0, i], score, abs_tol=1e-5)
    assert beams.scores[0, len(expected) :].isneginf().all()


@given(seed=SEEDS, stop=STOPS)
def test_a_beam_of_one_is_greedy(seed, stop):
    condition = conditions(0, 1, 2, 3, 4)
    beams = beam_search(Toy(seed), condition, width=1, length=6, stop=stop)
    assert torch.equal(beams.tokens[:, 0], greedy(Toy(seed), condition, length=6, stop=stop))


def test_it_stops_when_nothing_can_win():
    model = Toy(0)
    model.table[:, K, K, STOP] = 30.0  # s'arrêter tout de suite est presque certain
    beam_search(model, conditions(0, 1), width=1, length=50, stop=STOP, length_penalty=1.0)
    assert model.steps == [2]
    # La ligne 0 continue seule quand la ligne 1 a fini.
    model = Toy(0)
    model.table[1, K, K, STOP] = 30.0
    beam_search(model, conditions(0, 1), width=1, length=5, stop=STOP)
    assert model.steps[0] == 2 and set(model.steps[1:]) == {1}


def test_a_longer_sequence_may_still_win():
    """Moins probable d'abord, mais sûre ensuite : en moyenne par jeton, elle bat celle qui s'arrête tout de suite."""
    model = Toy(0)
    model.table[0, K, K] = torch.tensor([0.45, 0.55, 1e-9, 1e-9]).log()
    for history in ((K, 0), (0, 2)):
        model.table[0][history] = torch.tensor([0.0, 0.0, 40.0, 0.0])
    beams = beam_search(model, conditions(0), width=1, length=3, stop=STOP, length_penalty=1.0)
    assert beams.tokens.tolist() == [[[0, 2, 2]]]
    assert beams.scores.item() == pytest.approx(math.log(0.45) / 3)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_same_beams_as_transformers(penalty):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    peer = GPT2LMHeadModel(
        GPT2Config(
            **sizes, bos_token_id=None, eos_token_id=STOP, pad_token_id=STOP, tie_word_embeddings=False
        )
    ).eval()
    with torch.no_grad():
        peer.transformer.wte.weight.mul_(30)  # des lois contrastées, sans ex æquo
        peer.lm_head.weight.mul_(20)
    prompt = torch.tensor([[3, 4], [5, 0], [2, 2]])

    class Reader:
        """Le modèle de transformers, sans cache : l'état est tout ce qui est écrit."""

        def start(self, condition):
            return State(condition, torch.empty(len(condition), 0, dtype=torch.int64))

        def step(self, previous, state):
            if previous is not None:
                state.history = torch.cat([state.history, previous[:, None]], 1)
            return peer(torch.cat([state.rows, state.history], 1)).logits[:, -1]

    ours = beam_search(Reader(), prompt, width=3, length=8, stop=STOP, length_penalty=penalty)
    theirs = peer.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=penalty,
        early_stopping="never",
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = theirs.sequences[:, 2:]
    assert (ours.tokens == STOP).any() and (ours.tokens != STOP).all(-1).any()
    assert torch.equal(ours.tokens.flatten(0, 1)[:, : tokens.shape[1]], tokens)
    assert torch.allclose(ours.scores.flatten().float(), theirs.sequences_scores, atol=1e-5)


# --- suivi et demandes impossibles ----------------------------------------------------------------


def test_progress_sees_every_token():
    seen = []
    condition = conditions(0, 1)
    tokens = sample(
        Toy(), condition, generators(2), length=4, progress=lambda i, t: seen.append((i, t[:, :i].tolist()))
    )
    assert [i for i, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == tokens.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "Température impossible"),
        ({"temperature": -1}, "Température impossible"),
        ({"temperature": float("nan")}, "Température impossible"),
        ({"top_k": 0}, "Top-k impossible"),
        ({"top_p": 0}, "Top-p impossible"),
        ({"top_p": 1.5}, "Top-p impossible"),
        ({"top_p": float("nan")}, "Top-p impossible"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(MinidalleError, match=message):
        probabilities(torch.zeros(4), **options)
    with pytest.raises(MinidalleError, match=message):
        sample(Toy(), conditions(0), generators(1), length=2, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "Longueur impossible"),
        ({"length": -3}, "Longueur impossible"),
        ({"length": 2, "stop": -1}, "Jeton d'arrêt impossible"),
        ({"length": 2, "stop": K}, "Jeton d'arrêt impossible"),
        ({"length": 2, "condition": torch.empty(0, 1, dtype=torch.int64)}, "Lot vide"),
    ],
)
def test_impossible_requests_are_refused(method, options, message):
    options = {"condition": conditions(0, 1)} | options
    with pytest.raises(MinidalleError, match=message):
        METHODS[method](Toy(), options.pop("condition"), 0, **options)


def guided(model, condition, **options):
    return sample(model, condition, generators(2), **{"length": 2, "null": NULL} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: sample(m, c, generators(1), length=2), r"2 ligne\(s\) et 1 générateur"),
        (lambda m, c: sample(m, c, generators(3), length=2), r"2 ligne\(s\) et 3 générateur"),
        (lambda m, c: guided(m, c, guidance=-0.1), "Guidage impossible"),
        (lambda m, c: guided(m, c, guidance=float("nan")), "Guidage impossible"),
        (lambda m, c: guided(m, c, guidance=float("inf")), "Guidage impossible"),
        (lambda m, c: guided(m, c, guidance=2.0, null=None), "condition vide"),
        (lambda m, c: guided(m, c, guidance=2.0, null=torch.zeros(1, 2)), "Condition vide de forme"),
        (lambda m, c: guided(m, c, guidance=2.0, null=conditions(4, 4, 4)), "Condition vide de forme"),
        (lambda m, c: guided(m, c, prefix=torch.zeros(1, 3).long()), "trop long : 3 jetons"),
        (lambda m, c: guided(m, c, prefix=torch.tensor([[0, K]])), "hors du vocabulaire"),
        (lambda m, c: guided(m, c, prefix=torch.tensor([[0, -1]])), "hors du vocabulaire"),
        (lambda m, c: guided(m, c, prefix=torch.zeros(3, 1).long()), "Début imposé de forme"),
        (lambda m, c: guided(m, c, prefix=torch.zeros(1, 1)), "Début imposé de forme"),
        (lambda m, c: greedy(m, c, length=2, no_repeat=0), "Répétition"),
        (lambda m, c: beam_search(m, c, width=0, length=2), "Largeur de faisceau"),
        (lambda m, c: beam_search(m, c, width=2, length=2, length_penalty=-0.1), "Pénalité de longueur"),
        (
            lambda m, c: beam_search(m, c, width=2, length=2, length_penalty=float("nan")),
            "Pénalité de longueur",
        ),
    ],
)
def test_impossible_options_are_refused(call, message):
    with pytest.raises(MinidalleError, match=message):
        call(Toy(), conditions(0, 1))
