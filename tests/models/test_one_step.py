"""La voie courte du décodeur : les mêmes valeurs que la voie ordinaire, et les mêmes caches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minidalle.models import transformer
from minidalle.models.attention import attend, attend_by_hand
from minidalle.models.one_step import attend_one, one_step_is_enough
from minidalle.models.transformer import Decoder


def decoder(**options):
    torch.manual_seed(0)
    built = Decoder(16, 2, 4, **options).eval()
    with torch.no_grad():
        for p in built.parameters():
            # Ni normalisations neutres, ni biais nuls.
            p.add_(0.3 * torch.randn_like(p))
    return built


def read(model, x, memory, mask, selected=None):
    """Sorties (B, T, d) position après position, et le dernier état."""
    state, seen = model.start(x.shape[1], memory, mask), []
    for i in range(x.shape[1]):
        if i == 3 and selected is not None:
            state.select(selected)
            x, seen = x[selected], [rows[selected] for rows in seen]
        seen.append(model(x[:, i : i + 1], state=state))
    return torch.cat(seen, 1), state


@pytest.fixture
def counted(monkeypatch):
    """Nombre de positions lues par la voie courte."""
    calls = []

    class Counted(transformer.OneStep):
        def __call__(self, *arguments):
            calls.append(1)
            return super().__call__(*arguments)

    monkeypatch.setattr(transformer, "OneStep", Counted)
    return calls


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_same_as_the_ordinary_way(batch, rotary, cross, counted):
    model = decoder(cross=cross, rotary=rotary)
    x = torch.randn(batch, 6, 16)
    memory = torch.randn(batch, 4, 16) if cross else None
    mask = (torch.rand(batch, 1, 1, 4) < 0.6) if cross else None  # des lignes ne voient parfois rien
    with torch.no_grad():
        whole = model(x, memory, memory_mask=mask)
        assert not counted
        short, state = read(model, x, memory, mask)
    # Le premier pas remplit les caches de l'attention croisée par la voie ordinaire.
    assert len(counted) == (5 if cross else 6)
    ordinary, reference = read(model, x, memory, mask)  # un gradient est possible : la voie ordinaire
    assert len(counted) == (5 if cross else 6)
    for other in (ordinary, whole):
        assert torch.allclose(short, other, atol=1e-5)
    for ours, theirs in zip(state.caches, reference.caches, strict=True):
        for mine, expected in zip(ours[: 2 if cross else 1], theirs, strict=False):
            assert mine.length == expected.length > 0
            for a, b in zip(mine.known(), expected.known(), strict=True):
                assert torch.allclose(a, b, atol=1e-5)


def test_selected_rows_go_on(counted):
    model, rows = decoder(), torch.tensor([4, 0, 0, 2, 1, 3])
    x = torch.randn(5, 6, 16)
    with torch.no_grad():
        short, _ = read(model, x, None, None, rows)
        whole = model(x[rows])
    assert len(counted) == 6
    assert torch.allclose(short, whole, atol=1e-5)


def test_weights_are_shared_not_copied():
    model, x = decoder(), torch.randn(2, 3, 16)
    with torch.no_grad():
        state = model.start(3)
        model(x[:, :1], state=state)
        for p in model.parameters():
            p.mul_(0.5)
        found = model(x[:, 1:2], state=state)
        keys, values = (tensor.clone() for tensor in state.caches[0][0].known())
    expected = model.blocks[0].attention.queries_keys_values(model.blocks[0].attention_norm(x[:, 1]))
    assert torch.allclose(keys[:, :, 1].flatten(1), expected[:, 16:32], atol=1e-5)
    assert torch.allclose(values[:, :, 1].flatten(1), expected[:, 32:], atol=1e-5)
    assert torch.isfinite(found).all()


@given(batch=st.integers(1, 6), known=st.integers(1, 9), masked=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_one_query_is_attention(batch, known, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = 3 * torch.randn(batch, 2, 1, 5, generator=generator)
    keys, values = torch.randn(2, batch, 2, known, 5, generator=generator)
    mask = torch.rand(batch, 1, 1, known, generator=generator) < 0.5 if masked else None
    found = attend_one(queries, keys, values, mask)
    assert torch.allclose(found, attend(queries, keys, values, mask), atol=1e-5)
    assert torch.allclose(found, attend_by_hand(queries, keys, values, mask)[0], atol=1e-5)


def test_it_is_taken_only_when_it_computes_the_same():
    model = decoder(dropout=0.5)
    crossed = decoder(cross=True)
    one, two = torch.randn(2, 1, 16), torch.randn(2, 2, 16)
    with torch.no_grad():
        assert one_step_is_enough(model, one, model.start(4))
        assert not one_step_is_enough(model, two, model.start(4)), "plusieurs positions"
        assert not one_step_is_enough(model, one.double(), model.start(4)), "autre précision"
        assert not one_step_is_enough(decoder(norm="post"), one, model.start(4)), "normalisation en aval"
        assert not one_step_is_enough(decoder(activation=nn.ReLU), one, model.start(4)), "autre activation"
        assert not one_step_is_enough(crossed, one, crossed.start(4, two)), "caches à remplir"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not one_step_is_enough(model, one, model.start(4)), "précision réduite"
        assert not one_step_is_enough(model.train(), one, model.start(4)), "abandon"
    assert not one_step_is_enough(model.eval(), one, model.start(4)), "gradient"


def test_a_mask_is_never_forgotten():
    model, x = decoder(), torch.randn(2, 3, 16)
    mask = torch.tensor([[[[True, False, True]]], [[[True, True, True]]]])
    with torch.no_grad():
        state = model.start(3)
        model(x[:, :2], state=state)
        masked = model(x[:, 2:], mask=mask, state=state)
        plain = model.start(3)
        model(x[:, :2], state=plain)
        free = model(x[:, 2:], state=plain)
    assert not torch.allclose(masked[0], free[0], atol=1e-3)
    assert torch.allclose(masked[1], free[1], atol=1e-5)
