"""Cellules récurrentes, suites, modèle de langue ; parité avec torch.nn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minidalle.checkpoints import load_model, save_model
from minidalle.data.texts import crops
from minidalle.errors import MinidalleError
from minidalle.models.rnn import CELLS, RNN, CharRNN, CharRNNConfig, GRUCell, LSTMCell, RNNCell
from minidalle.sampling import sample
from minidalle.training import TrainingConfig, train

THEIRS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
THEIR_CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
TINY = CharRNNConfig(vocabulary=7, width=5, hidden=6)


def tiny(**options):
    torch.manual_seed(0)
    return CharRNN(CharRNNConfig(**{"vocabulary": 7, "width": 5, "hidden": 6} | options)).eval()


def close(a, b):
    return torch.allclose(a, b, atol=1e-5, rtol=1e-5)


def as_torch(state):
    """Nos états, couche par couche → h ou (h, c) de torch, (couches, B, H)."""
    stacked = tuple(torch.stack(parts) for parts in zip(*state, strict=True))
    return stacked if len(stacked) > 1 else stacked[0]


# --- cellules ---


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_torch_s_values_and_gradients(name):
    torch.manual_seed(0)
    theirs, ours = THEIR_CELLS[name](4, 6), CELLS[name](4, 6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 4)
    state = [torch.randn(3, 6) for _ in range(ours.vectors)]
    weights = [torch.randn(3, 6) for _ in state]
    grads = []
    for run in (lambda x, s: theirs(x, s if name == "lstm" else s[0]), lambda x, s: ours(x, s)):
        entry, before = x.clone().requires_grad_(), tuple(s.clone().requires_grad_() for s in state)
        after = run(entry, before)
        after = after if isinstance(after, tuple) else (after,)
        sum((a * w).sum() for a, w in zip(after, weights, strict=True)).backward()
        grads.append([*after, entry.grad, *(s.grad for s in before)])
    for a, b in zip(*grads, strict=True):
        assert close(a, b)
    for (key, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert close(p.grad, q.grad), key


@pytest.mark.parametrize("name", CELLS)
def test_without_a_state_a_cell_starts_from_zero(name):
    torch.manual_seed(0)
    cell, x = CELLS[name](4, 6), torch.randn(3, 4)
    given_zeros = cell(x, tuple(torch.zeros(3, 6) for _ in range(cell.vectors)))
    assert all(torch.equal(a, b) for a, b in zip(cell(x), given_zeros, strict=True))


def test_elman_s_cell_is_its_equation():
    cell = RNNCell(1, 1)
    for parameter, value in zip(cell.parameters(), (2.0, 3.0, 0.25, 0.5), strict=True):
        nn.init.constant_(parameter, value)
    (h,) = cell(torch.tensor([[0.1]]), (torch.tensor([[-0.2]]),))
    assert h.item() == pytest.approx(math.tanh(2 * 0.1 + 0.25 + 3 * -0.2 + 0.5))


def test_the_forget_gate_starts_open():
    """Biais d'oubli total de 1, les autres nuls : entrée nulle, c est multiplié par σ(1)."""
    cell = LSTMCell(3, 4)
    _, c = cell(torch.zeros(2, 3), (torch.zeros(2, 4), torch.ones(2, 4)))
    assert torch.allclose(c, torch.tensor(1.0).sigmoid().expand(2, 4))
    assert torch.equal(cell.bias_ih[4:8], torch.ones(4)) and cell.bias_ih.sum() == 4


def test_shut_gates_carry_the_cell_unchanged():
    """Oubli grand ouvert, entrée fermée : c traverse mille pas ; sortie fermée : rien ne se voit."""
    cell = LSTMCell(3, 4)
    i, f, _, o = cell.bias_ih.data.view(4, 4)
    i[:], f[:], o[:] = -30, 30, -30
    c = torch.randn(2, 4)
    state = (torch.zeros(2, 4), c)
    for _ in range(1000):
        state = cell(torch.randn(2, 3), state)
    assert torch.allclose(state[1], c, atol=1e-4) and state[0].abs().max() < 1e-9


@pytest.mark.parametrize(("name", "bias"), [("gru", 30.0), ("gru", -30.0)])
def test_the_update_gate_keeps_or_replaces(name, bias):
    torch.manual_seed(0)
    cell, h, x = GRUCell(3, 4), torch.randn(2, 4), torch.randn(2, 3)
    cell.bias_ih.data[4:8] = bias
    (after,) = cell(x, (h,))
    assert torch.allclose(after, h, atol=1e-5) == (bias > 0)


@given(st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20)
def test_parameter_counts_are_those_of_the_formula(d, h):
    """G (H D + H² + 2 H) : le GRU a un quart de moins que le LSTM."""
    counts = {name: sum(p.numel() for p in cell(d, h).parameters()) for name, cell in CELLS.items()}
    assert counts == {name: g * h * (d + h + 2) for name, g in (("rnn", 1), ("lstm", 4), ("gru", 3))}


# --- suites ---


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", CELLS)
def test_a_stack_is_torch_s_values_and_gradients(name, layers):
    torch.manual_seed(0)
    theirs, ours = THEIRS[name](4, 6, layers, batch_first=True), RNN(4, 6, name, layers)
    ours.load_torch(theirs.state_dict())
    x, begin = torch.randn(3, 9, 4), [tuple(torch.randn(3, 6) for _ in range(ours.cells[0].vectors))] * layers
    weights = torch.randn(3, 9, 6)
    mine, after = ours(x, begin)
    due, due_after = theirs(x, as_torch(begin))
    assert close(mine, due)
    for a, b in zip(torch.stack([*as_torch(after)]), torch.stack([*due_after]), strict=True):
        assert close(a, b)
    (mine * weights).sum().backward()
    (due * weights).sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for layer, cell in enumerate(ours.cells):
        for kind, parameter in cell.named_parameters():
            assert close(parameter.grad, grads[f"{kind}_l{layer}"]), (layer, kind)


@given(st.sampled_from(sorted(CELLS)), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=25)
def test_reading_in_two_goes_is_reading_in_one(name, layers, first, second):
    torch.manual_seed(first)
    model, x = RNN(3, 4, name, layers), torch.randn(2, first + second, 3)
    whole, state = model(x)
    a, between = model(x[:, :first])
    kept = [tuple(part.clone() for part in parts) for parts in between]
    b, after = model(x[:, first:], between)
    assert torch.allclose(torch.cat([a, b], 1), whole, atol=1e-6)
    assert torch.allclose(torch.stack(sum(after, ())), torch.stack(sum(state, ())), atol=1e-6)
    # L'état donné n'est pas modifié : on peut repartir deux fois du même.
    assert all(torch.equal(p, q) for p, q in zip(sum(kept, ()), sum(between, ()), strict=True))


@given(st.sampled_from(sorted(CELLS)), st.integers(0, 7))
@settings(max_examples=20)
def test_the_past_never_sees_the_future(name, t):
    torch.manual_seed(t)
    model, x = RNN(3, 4, name, 2), torch.randn(2, 8, 3)
    changed = x.clone()
    changed[:, t] += 1
    before, after = model(x)[0], model(changed)[0]
    assert torch.equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any(-1).all()


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 5, 4), (5, 3)])
def test_impossible_sequences_are_refused(shape):
    with pytest.raises(MinidalleError, match=r"donner \(B, T, 3\)"):
        RNN(3, 4)(torch.zeros(shape))


@pytest.mark.parametrize(
    "state",
    [
        [(torch.zeros(2, 4),)],  # un état de GRU
        [(torch.zeros(1, 4), torch.zeros(1, 4))],  # un autre lot, que la diffusion accepterait
        [(torch.zeros(2, 4), torch.zeros(2, 4))] * 2,  # une couche de trop
        [],
    ],
)
def test_states_of_another_network_are_refused(state):
    with pytest.raises(MinidalleError, match="L'état n'est pas de ce réseau"):
        RNN(3, 4)(torch.zeros(2, 5, 3), state)


@pytest.mark.parametrize(
    "theirs", [nn.LSTM(3, 5), nn.GRU(3, 4), nn.LSTM(3, 4, 2), nn.LSTM(3, 4, bidirectional=True)]
)
def test_weights_of_another_network_are_refused(theirs):
    with pytest.raises(MinidalleError, match="Poids d'un autre réseau"):
        RNN(3, 4).load_torch(theirs.state_dict())


@pytest.mark.parametrize("options", [{"cell": "elman"}, {"layers": 0}, {"hidden": 0}, {"inputs": 0}])
def test_impossible_networks_are_refused(options):
    with pytest.raises(MinidalleError):
        RNN(**{"inputs": 3, "hidden": 4} | options)


# --- modèle de langue ---


def test_the_loss_predicts_the_next_token():
    model, tokens = tiny(), torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(1))
    logits, _ = model(tokens)
    p = logits.double().log_softmax(-1)
    due = -sum(p[b, t, tokens[b, t + 1]] for b in range(3) for t in range(8)) / 24
    assert model.loss(tokens)["loss"].item() == pytest.approx(due.item(), abs=1e-6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("length", [1, 4])
def test_writing_step_by_step_is_reading_at_once(name, length):
    model, tokens = tiny(cell=name, layers=2), torch.randint(7, (3, 10))
    due = model(tokens)[0]
    state = model.start(tokens[:, :length])
    for t in range(length, 10):
        logits = model.step(tokens[:, t - 1] if t > length else None, state)
        assert torch.allclose(logits, due[:, t - 1], atol=1e-6)


@pytest.mark.parametrize("length", [1, 4])
def test_select_moves_whole_lines(length):
    model, tokens, rows = tiny(layers=2), torch.randint(7, (3, 6)), torch.tensor([2, 0, 2, 1])
    state = model.start(tokens[:, :length])
    state.select(rows)
    other = model.start(tokens[rows, :length])
    for t in range(length, 6):
        previous = tokens[rows, t - 1] if t > length else None
        assert torch.allclose(model.step(previous, state), model.step(previous, other), atol=1e-6)
        state.select(torch.tensor([3, 1, 2, 0]))
        state.select(torch.tensor([3, 1, 2, 0]))


def test_a_line_is_the_same_whatever_its_neighbours():
    model, prompts = tiny(), torch.randint(7, (4, 3))
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    many = sample(model, prompts, seeds, length=12)
    alone = sample(model, prompts[2:3], [torch.Generator().manual_seed(2)], length=12)
    assert many.shape == (4, 12) and torch.equal(many[2:3], alone)


def test_dropout_acts_in_training_only():
    model, tokens = tiny(dropout=0.5), torch.randint(7, (2, 5))
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("name", CELLS)
def test_it_learns_a_cycle(name):
    """0 1 2 0 3 : après 0, il faut se souvenir de ce qui le précédait."""
    tokens = torch.tensor([0, 1, 2, 0, 3]).repeat(20)
    model = tiny(cell=name, hidden=16)
    options = {"steps": 120, "batch_size": 8, "learning_rate": 1e-2, "warmup": 10}
    train(model, crops(tokens, 15), TrainingConfig(**options))
    assert model.loss(tokens[None])["loss"] < 0.1
    written = sample(model, tokens[None, :2], [torch.Generator()], length=10, top_k=1)
    assert written[0].tolist() == tokens[2:12].tolist()


def test_weights_come_back(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("minidalle.checkpoints").checkpoints.MODELS, "rnn", "CharRNN")
    model, tokens = tiny(cell="gru", layers=2), torch.randint(7, (2, 5))
    save_model(tmp_path / "m.safetensors", model)
    again, _ = load_model(tmp_path / "m.safetensors", "rnn")
    assert again.config == model.config and torch.equal(again(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("read", [lambda m, t: m(t), lambda m, t: m.start(t), lambda m, t: m.loss(t)])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), "au moins"),
        (torch.zeros(0, 3, dtype=torch.int64), "au moins"),
        (torch.zeros(3, dtype=torch.int64), "au moins"),
        (torch.zeros(2, 3), "des entiers"),
        (torch.tensor([[0, -1, 2]]), "de 0 à 6"),
        (torch.tensor([[0, 7, 2]]), "de 0 à 6"),
    ],
)
def test_impossible_tokens_are_refused(read, tokens, message):
    with pytest.raises(MinidalleError, match=message):
        read(tiny(), tokens)


def test_a_lone_token_has_nothing_to_predict():
    with pytest.raises(MinidalleError, match="au moins 2"):
        tiny().loss(torch.zeros(2, 1, dtype=torch.int64))


def test_a_step_refuses_a_token_out_of_the_vocabulary():
    model = tiny()
    state = model.start(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(MinidalleError, match="de 0 à 6"):
        model.step(torch.tensor([7]), state)


@pytest.mark.parametrize(
    "options", [{"vocabulary": 0}, {"width": 0}, {"cell": "x"}, {"layers": 0}, {"dropout": 1.0}]
)
def test_impossible_sizes_are_refused(options):
    with pytest.raises(MinidalleError):
        CharRNNConfig(**{"vocabulary": 7} | options)


def test_a_crop_is_a_piece_of_the_text():
    tokens = torch.arange(50)
    (batch,) = crops(tokens, 9)(np.random.default_rng(0), 64)
    assert batch.shape == (64, 10) and torch.equal(batch - batch[:, :1], torch.arange(10).expand(64, 10))
