"""Seq2seq : scores, attention, masques, forçage et génération, contre une écriture naïve, phrase à phrase."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.seq2seq import SCORES, Attention, Seq2Seq, Seq2SeqConfig
from minidalle.sampling import beam_search, greedy
from minidalle.training import TrainingConfig, train

KINDS = (None, *SCORES)


def tiny(attention="general", seed=0, **options):
    torch.manual_seed(seed)
    return Seq2Seq(Seq2SeqConfig(9, 8, width=5, hidden=6, attention=attention, **options)).eval()


def sentences(*lengths, vocabulary=9, seed=0):
    """Source (B, S) de mots tirés au hasard, complétée par des 0."""
    torch.manual_seed(seed)
    tokens = torch.randint(4, vocabulary, (len(lengths), max(lengths)))
    return tokens * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def targets(*lengths, seed=1):
    tokens = sentences(*lengths, vocabulary=8, seed=seed)
    tokens[:, 0] = 2
    return tokens


# --- l'attention ---


def naive_score(attention, s, h):
    """Un score, pour un état du décodeur (H,) et un de l'encodeur (H,)."""
    if attention.kind == "dot":
        return sum(a * b for a, b in zip(s, h, strict=True))
    if attention.kind == "general":
        return s @ (attention.keys.weight @ h)
    if attention.kind == "concat":
        return attention.v.weight[0] @ torch.tanh(attention.both.weight @ torch.cat([s, h]))
    inside = attention.queries.weight @ s + attention.keys.weight @ h
    return attention.v.weight[0] @ torch.tanh(inside)


@pytest.mark.parametrize("kind", SCORES)
def test_attention_is_the_formula_written_word_by_word(kind):
    """Scores, poids, contexte et gradients, un nombre à la fois."""
    torch.manual_seed(0)
    attention = Attention(kind, 4)
    s, h = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)
    lengths = (5, 2)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    context, weights = attention(s, h, mask)

    expected = []
    for b, t in np.ndindex(2, 3):
        notes = torch.stack([naive_score(attention, s[b, t], h[b, i]) for i in range(lengths[b])])
        exponentials = notes.exp()
        alpha = exponentials / exponentials.sum()
        expected.append(sum(alpha[i] * h[b, i] for i in range(lengths[b])))
        torch.testing.assert_close(attention.scores(s, h)[b, t, : lengths[b]], notes)
        torch.testing.assert_close(weights[b, t, : lengths[b]], alpha)
    expected = torch.stack(expected).view(2, 3, 4)
    torch.testing.assert_close(context, expected)

    parameters, slopes = [s, h, *attention.parameters()], torch.randn(2, 3, 4)
    for got, due in zip(
        torch.autograd.grad((context * slopes).sum(), parameters),
        torch.autograd.grad((expected * slopes).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, due, atol=1e-5, rtol=1e-5)


def test_concat_is_the_additive_score_with_its_two_matrices_side_by_side():
    torch.manual_seed(0)
    additive, concat = Attention("additive", 4), Attention("concat", 4)
    both = torch.cat([additive.queries.weight, additive.keys.weight], 1)
    concat.load_state_dict({"both.weight": both, "v.weight": additive.v.weight})
    s, h = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    torch.testing.assert_close(concat.scores(s, h), additive.scores(s, h))


@pytest.mark.parametrize("kind", SCORES)
def test_gradients_of_the_attention(kind):
    torch.manual_seed(0)
    attention = Attention(kind, 3).double()
    s, h = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 4))
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    assert torch.autograd.gradcheck(lambda *x: attention(*x, mask)[0], (s, h))


# --- le modèle entier, contre une écriture naïve ---


def lstm_step(x, h, c, lstm, suffix="l0"):
    """Les équations du LSTM, avec les poids de torch.nn : portes i, f, contenu g, porte o."""
    gates = getattr(lstm, f"weight_ih_{suffix}") @ x + getattr(lstm, f"bias_ih_{suffix}")
    gates = gates + getattr(lstm, f"weight_hh_{suffix}") @ h + getattr(lstm, f"bias_hh_{suffix}")
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def naive_logits(model, source, target):
    """Une phrase (S,) et les jetons lus par le décodeur (T,), sans lot ni remplissage → (T, V)."""
    half = model.config.hidden // 2
    words = [model.source.weight[i] for i in source]
    memories, lasts = [], []
    for suffix, order in (("l0", range(len(words))), ("l0_reverse", reversed(range(len(words))))):
        h = c = torch.zeros(half)
        seen = {}
        for i in order:
            h, c = lstm_step(words[i], h, c, model.encoder, suffix)
            seen[i] = h
        memories.append(torch.stack([seen[i] for i in range(len(words))]))
        lasts.append((h, c))
    memory = torch.cat(memories, 1)
    h, c = (torch.cat(pair) for pair in zip(*lasts, strict=True))

    def look(s):
        notes = torch.stack([naive_score(model.attention, s, memory[i]) for i in range(len(words))])
        return (notes.softmax(0)[:, None] * memory).sum(0)

    logits = []
    for token in target:
        x = model.target.weight[token]
        if model.config.attention == "additive":
            context = look(h)  # l'état d'avant
            h, c = lstm_step(torch.cat([x, context]), h, c, model.decoder)
        else:
            h, c = lstm_step(x, h, c, model.decoder)
            context = look(h) if model.config.attention else None
        out = h
        if context is not None:
            out = torch.tanh(model.combine.weight @ torch.cat([context, h]))
        logits.append(model.output(out))
    return torch.stack(logits)


@pytest.mark.parametrize("attention", KINDS)
def test_model_is_its_equations_written_sentence_by_sentence(attention):
    """Valeurs et gradients, dans un lot de longueurs différentes."""
    model = tiny(attention)
    source, target = sentences(5, 2, 4), targets(3, 4, 2)
    got = model.decode(target, model.start(source))
    due = [
        naive_logits(model, s[s != 0].tolist(), t[t != 0].tolist())
        for s, t in zip(source, target, strict=True)
    ]
    flat = torch.cat([row[: len(naive)] for row, naive in zip(got, due, strict=True)])
    torch.testing.assert_close(flat, torch.cat(due), atol=1e-5, rtol=1e-5)
    slopes = torch.randn_like(flat)
    parameters = list(model.parameters())
    for name, a, b in zip(
        dict(model.named_parameters()),
        torch.autograd.grad((flat * slopes).sum(), parameters),
        torch.autograd.grad((torch.cat(due) * slopes).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=name)


# --- masques, états ---


@pytest.mark.parametrize("attention", KINDS)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=10)
def test_a_sentence_alone_or_in_a_batch_is_the_same(attention, lengths, more, seed):
    model = tiny(attention, seed)
    source = torch.nn.functional.pad(sentences(*lengths, seed=seed), (0, more))
    target = targets(*[4] * len(lengths), seed=seed)
    together = model.decode(target, model.start(source))
    for i, length in enumerate(lengths):
        alone = model.decode(target[i : i + 1], model.start(source[i : i + 1, :length]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
def test_a_sentence_without_words_gives_numbers(attention):
    """Tout est masqué : ni NaN ni infini, à l'aller comme au retour, et la voisine n'en souffre pas."""
    model = tiny(attention)
    source, target = sentences(3, 1), targets(3, 3)
    source[1] = 0
    loss = model.loss(source, target)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if attention:
        weights = model.weights(source, target)
        assert (weights[1] == 0).all() and torch.allclose(weights[0].sum(-1), torch.ones(2))


@pytest.mark.parametrize("attention", SCORES)
def test_weights_are_a_law_over_the_real_words(attention):
    model = tiny(attention)
    source, target = sentences(5, 2), targets(4, 4)
    weights = model.weights(source, target)
    assert weights.shape == (2, 3, 5) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    assert (weights[1, :, 2:] == 0).all()
    state = model.start(source)
    for t in range(3):
        model.step(target[:, t], state)
        torch.testing.assert_close(state.weights, weights[:, t : t + 1])


def test_without_attention_only_the_last_state_is_read():
    """Effacer les états de l'encodeur ne change rien sans attention, et tout avec elle."""
    source, target = sentences(5, 3), targets(4, 4)
    for attention in KINDS:
        model = tiny(attention)
        state = model.start(source)
        state.memory = torch.randn_like(state.memory)
        same = torch.equal(model.decode(target, state), model.decode(target, model.start(source)))
        assert same == (attention is None)


def test_without_attention_there_are_no_weights():
    with pytest.raises(MinidalleError, match="pas d'attention"):
        tiny(None).weights(sentences(2), targets(3))


@pytest.mark.parametrize("attention", KINDS)
def test_step_by_step_is_teacher_forcing(attention):
    """Un pas à la fois depuis None, ou tout d'un coup : mêmes logits."""
    model = tiny(attention)
    source, target = sentences(5, 2), targets(4, 4)
    forced, state = model.decode(target, model.start(source)), model.start(source)
    for t in range(4):
        logits = model.step(target[:, t] if t else None, state)
        torch.testing.assert_close(logits, forced[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
@given(st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=8)
def test_the_decoder_never_sees_the_future(attention, t, seed):
    model = tiny(attention, seed)
    source, target = sentences(4, 4), targets(5, 5, seed=seed)
    before = model.decode(target, model.start(source))
    target[:, t] = (target[:, t] + 1) % 8
    after = model.decode(target, model.start(source))
    torch.testing.assert_close(after[:, :t], before[:, :t])
    assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize("attention", KINDS)
def test_select_permutes_and_doubles_sentences(attention):
    model = tiny(attention)
    source, rows = sentences(5, 2, 4), torch.tensor([2, 0, 0, 1])
    state, direct = model.start(source), model.start(source[rows])
    first = model.step(None, state)
    state.select(rows)
    torch.testing.assert_close(model.step(None, direct), first[rows])
    tokens = torch.tensor([4, 5, 6, 7])
    torch.testing.assert_close(model.step(tokens, state), model.step(tokens, direct))


@pytest.mark.parametrize("attention", KINDS)
def test_greedy_and_beam_search_drive_the_model(attention):
    model = tiny(attention)
    source = sentences(5, 2, 3)
    written = greedy(model, source, length=6, stop=3)
    assert written.shape == (3, 6)
    for i, length in enumerate((5, 2, 3)):
        assert torch.equal(greedy(model, source[i : i + 1, :length], length=6, stop=3)[0], written[i])
    beams = beam_search(model, source, width=1, length=6, stop=3)
    assert torch.equal(beams.tokens[:, 0], written)


# --- perte ---


@pytest.mark.parametrize("attention", KINDS)
def test_loss_is_the_mean_surprise_of_the_next_tokens(attention):
    model = tiny(attention)
    source, target = sentences(5, 2), targets(4, 3)
    laws = model.decode(target[:, :-1], model.start(source)).log_softmax(-1)
    surprises = [-laws[b, t, target[b, t + 1]] for b, n in ((0, 4), (1, 3)) for t in range(n - 1)]
    torch.testing.assert_close(model.loss(source, target)["loss"], torch.stack(surprises).mean())


def test_loss_ignores_the_padding_of_the_targets():
    model = tiny()
    source, target = sentences(5, 2), targets(4, 3)
    longer = torch.nn.functional.pad(target, (0, 3))
    torch.testing.assert_close(model.loss(source, longer), model.loss(source, target))


@pytest.mark.parametrize("attention", [None, "additive", "general"])
def test_it_learns_to_reverse(attention):
    """Recopier à l'envers trois jetons parmi quatre : il faut lire la source, et dans l'ordre."""

    def batches(rng, n):
        words = torch.from_numpy(rng.integers(4, 8, size=(n, 3)))
        ends = torch.full((n, 1), 3)
        return torch.cat([words, ends], 1), torch.cat([ends - 1, words.flip(1), ends], 1)

    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(8, 8, width=16, hidden=32, attention=attention))
    train(model, batches, TrainingConfig(steps=150, batch_size=32, learning_rate=1e-2, warmup=10))
    source, target = batches(np.random.default_rng(9), 64)
    assert (greedy(model, source, length=4, stop=3) == target[:, 1:]).all(1).float().mean() > 0.9


def test_dropout_only_in_training():
    model, source, target = tiny(dropout=0.5), sentences(5, 2), targets(4, 4)
    assert torch.equal(model.loss(source, target)["loss"], model.loss(source, target)["loss"])
    model.train()
    assert not torch.equal(model.loss(source, target)["loss"], model.loss(source, target)["loss"])


# --- refus ---


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 5},
        {"width": 0},
        {"attention": "cosine"},
        {"dropout": 1.0},
        {"start": 8},
        {"start": 0},
        {"target_vocabulary": 0},
    ],
)
def test_impossible_settings(options):
    with pytest.raises(MinidalleError):
        Seq2SeqConfig(**{"source_vocabulary": 9, "target_vocabulary": 8} | options)


@pytest.mark.parametrize(
    "source",
    [
        torch.tensor([[4, 9]]),
        torch.tensor([[-1, 4]]),
        torch.tensor([4, 5]),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.tensor([[4.0, 5.0]]),
        torch.tensor([[4, 0, 5]]),
    ],
)
def test_impossible_sources(source):
    with pytest.raises(MinidalleError):
        tiny().start(source)


def test_impossible_targets():
    model = tiny()
    with pytest.raises(MinidalleError, match="hors du vocabulaire"):
        model.loss(sentences(3), torch.tensor([[2, 8, 3]]))
    with pytest.raises(MinidalleError, match="non vide"):
        model.loss(sentences(3), torch.tensor([[2]]))
