"""Attention : l'opération, les masques, le cache, les positions ; parité avec PyTorch et transformers."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minidalle.errors import MinidalleError
from minidalle.models.attention import (
    GridPositions,
    KeyValueCache,
    MultiHeadAttention,
    attend,
    attend_by_hand,
    causal_mask,
    padding_mask,
    rotate,
    sinusoidal,
)

SMALL = st.integers(1, 5)
seeds = st.integers(0, 999)


def layer(width=12, heads=3, seed=0, **options):
    torch.manual_seed(seed)
    return MultiHeadAttention(width, heads, **options).eval()


def qkv(length=4, known=4, batch=2, heads=3, dim=5, seed=0):
    torch.manual_seed(seed)
    sizes = (length, known, known)
    return [torch.randn(batch, heads, size, dim, requires_grad=True) for size in sizes]


# --- l'opération ---


def test_attention_of_a_case_small_enough_for_paper():
    """d = 4 : un produit scalaire de 4 ln 9 s'y divise par 2 ; les poids valent donc 81/82 et 1/82."""
    queries = torch.tensor([[[[4 * math.log(3), 0.0, 0.0, 0.0]]]])
    keys = torch.tensor([[[[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]])
    values = torch.tensor([[[[82.0, 0.0], [0.0, 164.0]]]])
    output, weights = attend_by_hand(queries, keys, values)
    torch.testing.assert_close(weights, torch.tensor([[[[81 / 82, 1 / 82]]]]))
    torch.testing.assert_close(output, torch.tensor([[[[81.0, 2.0]]]]))
    torch.testing.assert_close(attend(queries, keys, values), output)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[SMALL] * 5), st.booleans(), st.sampled_from(("", "bhts", "b1ts", "11ts", "b11s")), seeds)
def test_attend_equals_attend_by_hand(shape, causal, form, seed):
    """Valeurs et gradients, quels que soient les formes et les masques, rangées entièrement masquées comprises."""
    batch, heads, length, known, dim = shape
    tensors = qkv(length, known, batch, heads, dim, seed)
    sizes = {"b": batch, "h": heads, "t": length, "s": known, "1": 1}
    mask = torch.rand([sizes[axis] for axis in form]) < 0.5 if form else None
    fast = attend(*tensors, mask, causal=causal)
    slow, weights = attend_by_hand(*tensors, mask, causal=causal)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    slopes = torch.randn_like(fast)
    gradients = [torch.autograd.grad((out * slopes).sum(), tensors) for out in (fast, slow)]
    for mine, other in zip(*gradients, strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)

    visible = torch.ones(batch, heads, length, known, dtype=torch.bool)
    if mask is not None:
        visible &= mask
    if causal:
        visible &= torch.arange(known) <= torch.arange(length)[:, None] + known - length
    blind = ~visible.any(-1)
    assert (weights[~visible] == 0).all() and (fast[blind] == 0).all() and (slow[blind] == 0).all()
    torch.testing.assert_close(weights.sum(-1), (~blind).float())


@pytest.mark.parametrize("size", [1e3, 1e18])
def test_huge_scores_do_not_overflow(size):
    queries, keys, values = qkv()
    for mask in (None, causal_mask(4)):
        output, weights = attend_by_hand(queries * size, keys * size, values, mask)
        assert torch.isfinite(output).all() and torch.isfinite(weights).all()
        assert torch.isfinite(attend(queries * size, keys * size, values, mask)).all()


def test_permuting_the_keys_changes_nothing():
    """L'attention mélange un ensemble de couples clé–valeur : leur ordre n'y est pour rien."""
    queries, keys, values = qkv(known=7)
    order = torch.randperm(7)
    shuffled = attend(queries, keys[:, :, order], values[:, :, order])
    torch.testing.assert_close(attend(queries, keys, values), shuffled)


def test_operation_drops_weights_and_keeps_their_expectation():
    """Valeurs à 1 et clés égales : la sortie est la part gardée, divisée par 1 − p."""
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 1, 200, 4), torch.zeros(1, 1, 50, 4)
    seen = attend(queries, keys, torch.ones(1, 1, 50, 1), dropout=0.4)
    kept = seen * 50 * 0.6
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    assert seen.std() > 0 and seen.mean().item() == pytest.approx(1, abs=0.04)


# --- masques ---


def test_causal_mask_sees_the_past_and_itself():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_padding_mask_hides_token_zero():
    mask = padding_mask(torch.tensor([[5, 0, 7], [0, 0, 1]]))
    assert mask.shape == (2, 1, 1, 3) and mask.dtype == torch.bool
    assert mask.flatten(1).tolist() == [[True, False, True], [False, False, True]]


@pytest.mark.parametrize("mask", [torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.int64)])
@pytest.mark.parametrize("function", [attend, attend_by_hand])
def test_masks_that_are_not_boolean(function, mask):
    with pytest.raises(MinidalleError, match="booléen"):
        function(*qkv(), mask)


@pytest.mark.parametrize("shape", [(4, 5), (3, 1, 4, 4), (2, 4, 4, 4), (1, 2, 3, 4, 4)])
@pytest.mark.parametrize("function", [attend, attend_by_hand])
def test_masks_of_the_wrong_shape(function, shape):
    with pytest.raises(MinidalleError, match="se diffuser vers"):
        function(*qkv(), torch.ones(shape, dtype=torch.bool))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.data(), st.booleans(), st.booleans(), seeds)
def test_the_future_never_changes_the_past(length, data, rotary, padded, seed):
    """Changer la position t ne change rien avant t, et change quelque chose à partir de t."""
    t = data.draw(st.integers(1, length - 1))
    model, x = layer(seed=seed, rotary=rotary), torch.randn(2, length, 12)
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool)
    mask[0, ..., 0] = not padded
    before = model(x, causal=True, mask=mask)
    changed = x.clone()
    changed[:, t] += torch.randn(2, 12)
    after = model(changed, causal=True, mask=mask)
    assert torch.equal(before[:, :t], after[:, :t]) and not torch.equal(before[:, t], after[:, t])


def test_padding_changes_nothing_to_what_is_read():
    """Une phrase courte, complétée de jetons 0, rend les mêmes vecteurs que seule."""
    model, x = layer(), torch.randn(1, 6, 12)
    tokens = torch.tensor([[4, 8, 3, 0, 0, 0]])
    together = model(x, mask=padding_mask(tokens))[:, :3]
    torch.testing.assert_close(together, model(x[:, :3]))


def test_a_query_that_sees_nothing_only_gets_the_output_bias():
    model, x = layer(), torch.randn(2, 4, 12, requires_grad=True)
    out = model(x, mask=torch.zeros(2, 1, 1, 4, dtype=torch.bool))
    torch.testing.assert_close(out, model.output.bias.expand(2, 4, 12))
    assert (model.weights(x, mask=torch.zeros(4, 4, dtype=torch.bool)) == 0).all()
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- parité avec PyTorch ---


def reference(model, width, heads):
    """`nn.MultiheadAttention` aux mêmes poids."""
    peer = nn.MultiheadAttention(width, heads, bias=model.output.bias is not None, batch_first=True).eval()
    mine = [model.queries, model.keys_values] if model.cross else [model.queries_keys_values]
    with torch.no_grad():
        for kind in ("weight", "bias"):
            if (theirs := getattr(peer, f"in_proj_{kind}")) is not None:
                theirs.copy_(torch.cat([getattr(part, kind) for part in mine]))
                getattr(peer.out_proj, kind).copy_(getattr(model.output, kind))
    return peer


def any_mask(*shape):
    """Quelconque, mais où chaque requête voit au moins une clé : PyTorch rendrait NaN."""
    mask = torch.rand(shape) < 0.5
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["tout", "causal", "remplissage", "quelconque", "causal et remplissage"])
@pytest.mark.parametrize("cross", [False, True])
def test_parity_with_pytorch(cross, kind, bias):
    """Valeurs, poids d'attention et gradients, en auto-attention comme en attention croisée."""
    batch, length, known, width, heads = 2, 5, 5 if "causal" in kind or not cross else 7, 12, 3
    model = layer(width, heads, cross=cross, bias=bias)
    peer = reference(model, width, heads)
    x, memory = torch.randn(batch, length, width), torch.randn(batch, known, width)
    ours, theirs = {}, {}
    if "causal" in kind:
        ours["causal"], theirs["attn_mask"] = True, ~causal_mask(length)
    if "remplissage" in kind:
        tokens = torch.randint(1, 9, (batch, known))
        tokens[0, 3:] = 0
        ours["mask"], theirs["key_padding_mask"] = padding_mask(tokens), tokens == 0
    if kind == "quelconque":
        mask = any_mask(batch, heads, length, known)
        ours["mask"], theirs["attn_mask"] = mask, ~mask.flatten(0, 1)

    inputs = [[x.clone().requires_grad_(), memory.clone().requires_grad_()] for _ in range(2)]
    mine = model(inputs[0][0], inputs[0][1] if cross else None, **ours)
    source = inputs[1][cross]
    other, weights = peer(inputs[1][0], source, source, average_attn_weights=False, **theirs)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    seen = model.weights(x, memory if cross else None, **ours)
    torch.testing.assert_close(seen, weights, rtol=0, atol=1e-5)

    slopes = torch.randn_like(mine)
    for out in (mine, other):
        (out * slopes).sum().backward()
    parts = [model.queries, model.keys_values] if cross else [model.queries_keys_values]
    pairs = [(torch.cat([part.weight.grad for part in parts]), peer.in_proj_weight.grad)]
    pairs += [(model.output.weight.grad, peer.out_proj.weight.grad)]
    if bias:
        pairs += [(torch.cat([part.bias.grad for part in parts]), peer.in_proj_bias.grad)]
        pairs += [(model.output.bias.grad, peer.out_proj.bias.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(*inputs, strict=True) if b.grad is not None]
    assert len(pairs) == 2 + 2 * bias + 1 + cross
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_heads_do_not_cost_more():
    """Le nombre de têtes ne change pas celui des paramètres : 4 d² + 4 d."""
    for heads in (1, 3, 12):
        assert sum(p.numel() for p in layer(heads=heads).parameters()) == 4 * 12 * 12 + 4 * 12


# --- la couche ---


def test_dropout_only_while_training():
    model, x = layer(dropout=0.5), torch.randn(1, 6, 12)
    calm = model(x)
    assert torch.equal(calm, model(x))
    torch.testing.assert_close(calm, layer()(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    mean = model(x.expand(20_000, 6, 12)).mean(0, keepdim=True)
    torch.testing.assert_close(mean, calm, rtol=0, atol=0.02)


@pytest.mark.parametrize("cross", [False, True])
def test_bfloat16_autocast_stays_close(cross):
    """Sous calculs mixtes, les projections sont en bfloat16 ; le softmax, lui, reste en simple précision."""
    model, x = layer(cross=cross, rotary=not cross), torch.randn(2, 5, 12, requires_grad=True)
    memory = torch.randn(2, 7, 12) if cross else None
    exact = model(x, memory, causal=not cross)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x, memory, causal=not cross)
        queries, keys, values = model._project(x, memory, None)
        weights = model.weights(x, memory)
    assert rough.dtype == torch.bfloat16
    assert {t.dtype for t in (queries, keys, values, weights)} == {torch.float32}
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.02)
    rough.float().square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_layer_converted_as_a_whole(dtype):
    model, x = layer(rotary=True), torch.randn(2, 5, 12)
    exact = model(x, causal=True)
    converted = model.to(dtype)(x.to(dtype), causal=True)
    assert converted.dtype == dtype
    near = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(converted.float(), exact, rtol=0, atol=near)


@pytest.mark.parametrize(("width", "heads"), [(12, 5), (0, 1), (12, 0), (12, 24), (-4, 2)])
def test_impossible_sizes(width, heads):
    with pytest.raises(MinidalleError, match="multiple"):
        MultiHeadAttention(width, heads)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_impossible_dropouts(dropout):
    with pytest.raises(MinidalleError, match="Abandon"):
        MultiHeadAttention(12, 3, dropout=dropout)


@pytest.mark.parametrize("options", [{"cross": True, "heads": 3}, {"heads": 4}])
def test_rotation_wants_self_attention_and_even_heads(options):
    with pytest.raises(MinidalleError, match="rotation"):
        MultiHeadAttention(12, rotary=True, **options)


def test_cross_attention_wants_something_to_ask():
    with pytest.raises(MinidalleError, match="memory"):
        layer(cross=True)(torch.randn(1, 2, 12))


# --- cache ---


def pieces(total, draw):
    """Découpage de `total` positions en tranches d'au moins une."""
    cuts = draw(st.sets(st.integers(1, total - 1))) if total > 1 else set()
    edges = [0, *sorted(cuts), total]
    return list(pairwise(edges))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 3), st.booleans(), st.data(), seeds)
@torch.no_grad()
def test_cache_equals_no_cache(total, room, rotary, data, seed):
    """Jeton par jeton ou par tranches, avec ou sans place en trop, on retrouve la passe entière."""
    model, x = layer(seed=seed, rotary=rotary), torch.randn(2, total, 12)
    whole, cache = model(x, causal=True), KeyValueCache(total + room)
    for start, stop in pieces(total, data.draw):
        part = model(x[:, start:stop], causal=True, cache=cache)
        torch.testing.assert_close(part, whole[:, start:stop], rtol=0, atol=1e-5)
        assert cache.length == stop and cache.known()[0].shape == (2, 3, stop, 4)


@torch.no_grad()
def test_cache_respects_masks():
    """Remplissage au début : le masque, donné à chaque tranche, couvre toutes les positions connues."""
    model, x, cache = layer(), torch.randn(2, 6, 12), KeyValueCache(6)
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., :2] = False
    whole = model(x, causal=True, mask=mask)
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        part = model(x[:, start:stop], causal=True, mask=mask[..., :stop], cache=cache)
        torch.testing.assert_close(part, whole[:, start:stop], rtol=0, atol=1e-5)


@torch.no_grad()
def test_cross_cache_reads_the_memory_once():
    model, cache = layer(cross=True), KeyValueCache(7)
    x, memory = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    mask = torch.rand(2, 1, 1, 7) < 0.6
    whole = model(x, memory, mask=mask)
    first = model(x[:, :1], memory, mask=mask, cache=cache)
    rest = [model(x[:, i : i + 1], mask=mask, cache=cache) for i in range(1, 4)]
    torch.testing.assert_close(torch.cat([first, *rest], 1), whole, rtol=0, atol=1e-5)
    assert cache.length == 7


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.booleans(), seeds)
@torch.no_grad()
def test_selected_rows_continue_as_themselves(rows, rotary, seed):
    """Réordonner, doubler ou perdre des lignes : chacune continue comme si elle avait été seule."""
    model, x = layer(seed=seed, rotary=rotary), torch.randn(3, 5, 12)
    cache, rows = KeyValueCache(5), torch.tensor(rows)
    cache.select(torch.tensor([0]))  # rien à choisir encore
    model(x[:, :3], causal=True, cache=cache)
    cache.select(rows)
    for i in (3, 4):
        got = model(x[rows, i : i + 1], causal=True, cache=cache)
        expected = model(x[:, : i + 1], causal=True)[rows, -1:]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_twins_part_after_the_selection():
    """Deux copies d'une ligne n'écrivent pas dans le même souvenir."""
    model, cache = layer(), KeyValueCache(3)
    x = torch.randn(1, 2, 12)
    model(x, causal=True, cache=cache)
    cache.select(torch.tensor([0, 0]))
    last = torch.randn(2, 1, 12)
    got = model(last, causal=True, cache=cache)
    torch.testing.assert_close(got, model(torch.cat([x.expand(2, 2, 12), last], 1), causal=True)[:, -1:])


@torch.no_grad()
def test_cache_never_moves_and_never_overflows():
    model, cache = layer(), KeyValueCache(3)
    model(torch.randn(1, 2, 12), causal=True, cache=cache)
    place = cache.keys.data_ptr()
    model(torch.randn(1, 1, 12), causal=True, cache=cache)
    assert cache.keys.data_ptr() == place
    with pytest.raises(MinidalleError, match="4 positions pour un cache de 3"):
        model(torch.randn(1, 1, 12), causal=True, cache=cache)
    assert cache.length == 3


# --- positions ---


@pytest.mark.parametrize(("length", "width"), [(1, 2), (50, 8), (300, 64)])
def test_sinusoidal_is_the_formula_of_the_paper(length, width):
    table = sinusoidal(length, width)
    assert table.shape == (length, width) and table.dtype == torch.float32
    for p in range(0, length, 7):
        for i in range(width // 2):
            angle = p / 10_000 ** (2 * i / width)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=5e-5)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=5e-5)


def test_sinusoidal_shift_is_a_rotation():
    """Avancer de k multiplie l'encodage par une matrice qui ne dépend pas de la position."""
    table = sinusoidal(200, 16)
    shift = torch.linalg.lstsq(table[:-5], table[5:]).solution
    torch.testing.assert_close(table[:-5] @ shift, table[5:], rtol=0, atol=1e-4)


def test_odd_widths_have_no_pairs():
    with pytest.raises(MinidalleError, match="impaire"):
        sinusoidal(4, 7)
    with pytest.raises(MinidalleError, match="impaire"):
        rotate(torch.randn(1, 1, 4, 7))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), seeds)
def test_rotation_only_tells_the_distance(pairs, first, second, shift, seed):
    torch.manual_seed(seed)
    query, key = torch.randn(2, 1, 1, 1, 2 * pairs, dtype=torch.float64)
    near = (rotate(query, first) * rotate(key, second)).sum()
    far = (rotate(query, first + shift) * rotate(key, second + shift)).sum()
    torch.testing.assert_close(near, far, rtol=0, atol=2e-3)
    torch.testing.assert_close(rotate(query, first).norm(), query.norm(), rtol=1e-5, atol=0)
    assert torch.equal(rotate(query, 0), query)


def test_rotation_starts_where_asked():
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(rotate(x)[:, :, 4:], rotate(x[:, :, 4:], 4))


@pytest.mark.parametrize("dim", [4, 16])
def test_parity_of_the_rotation_with_transformers(dim):
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 3, 40, dim, requires_grad=True)
    config = LlamaConfig(hidden_size=3 * dim, num_attention_heads=3)
    cos, sin = LlamaRotaryEmbedding(config)(queries, torch.arange(40)[None])
    theirs = apply_rotary_pos_emb(queries, keys, cos, sin)
    slopes = torch.randn_like(queries)
    for x, expected in zip((queries, keys), theirs, strict=True):
        got = rotate(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        slope, due = (torch.autograd.grad(y, x, slopes, retain_graph=True)[0] for y in (got, expected))
        torch.testing.assert_close(slope, due, rtol=0, atol=1e-5)


def test_rotary_layer_only_knows_distances():
    """Décaler la suite ne change rien à ses poids ; sans rotation, l'ordre ne compterait pas du tout."""
    model, x = layer(rotary=True), torch.randn(1, 6, 12)
    queries, keys, _ = layer()._project(x, None, None)
    moved = rotate(queries, 17), rotate(keys, 17)
    _, shifted = attend_by_hand(*moved, keys)
    torch.testing.assert_close(shifted, model.weights(x), rtol=0, atol=1e-5)
    order = torch.randperm(6)
    assert not torch.allclose(model(x)[:, order], model(x[:, order]), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), seeds)
def test_without_positions_attention_is_equivariant(length, heads, seed):
    """Permuter l'entrée permute la sortie, et rien d'autre."""
    model, x = layer(4 * heads, heads, seed), torch.randn(2, length, 4 * heads)
    order = torch.randperm(length)
    torch.testing.assert_close(model(x)[:, order], model(x[:, order]), rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(SMALL, SMALL, st.data())
def test_grid_positions_are_row_plus_column(rows, columns, data):
    grid = GridPositions(rows, columns, 6)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    expected = torch.stack([grid.rows.weight[i] + grid.columns.weight[j] for i, j in places])
    assert torch.equal(grid(), expected)
    first = data.draw(st.integers(0, rows * columns))
    length = data.draw(st.integers(0, rows * columns - first))
    assert torch.equal(grid(first, length), expected[first : first + length])
    assert torch.equal(grid(first), expected[first:])


@pytest.mark.parametrize(("first", "length"), [(0, 7), (5, 2), (-1, 2), (7, None), (3, -1)])
def test_cells_outside_the_grid(first, length):
    with pytest.raises(MinidalleError, match="grille de 6 cases"):
        GridPositions(2, 3, 4)(first, length)
