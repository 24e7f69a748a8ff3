"""Transformeurs : parité avec torch.nn, GPT-2 et BART, causalité, cache, remplissage, apprentissage."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.attention import causal_mask, padding_mask
from minidalle.models.transformer import (
    POSITIONS,
    Decoder,
    Encoder,
    LanguageModel,
    LanguageModelConfig,
    Transformer,
    TransformerConfig,
    attention_maps,
    cross_entropy,
)
from minidalle.sampling import beam_search, greedy

TINY = LanguageModelConfig(vocabulary=13, length=12, width=16, layers=2, heads=4)


def big(model, scale=8.0):
    """Le même modèle, aux poids assez grands pour que l'attention ne soit pas uniforme, ni les biais nuls."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale) if p.ndim > 1 else p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def language_model(**options):
    torch.manual_seed(0)
    return big(LanguageModel(replace(TINY, **options)))


def some_tokens(batch=2, length=9, seed=0, vocabulary=13):
    return torch.randint(1, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def renamed(tensors, table):
    """Les mêmes tenseurs, sous les noms d'un autre : chaque morceau de nom est remplacé d'après `table`."""
    out = {}
    for name, tensor in tensors:
        for mine, theirs in table.items():
            name = name.replace(mine, theirs)
        out[name] = tensor
    return out


def split_projections(tensors):
    """Découpe les projections réunies (q, k, v), sous les noms que leur donne BART."""
    for name, tensor in tensors:
        which = {"queries_keys_values": ("q_proj", "k_proj", "v_proj"), "keys_values": ("k_proj", "v_proj")}
        for joined, parts in which.items():
            if f".{joined}." in name:
                for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
                    yield name.replace(joined, part), piece
                break
        else:
            yield name.replace(".queries.", ".q_proj."), tensor


def gradients(model):
    return [(name, p.grad) for name, p in model.named_parameters()]


def assert_same(ours, theirs, atol=1e-5):
    """Mêmes noms, mêmes valeurs ; l'écart se juge à l'échelle de chaque tenseur."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        scale = max(1.0, theirs[name].abs().max().item())
        assert (tensor - theirs[name]).abs().max() < atol * scale, name


# --- les couches, contre torch.nn -----------------------------------------------------------------

TORCH = {
    "blocks": "layers",
    "cross_attention.output": "multihead_attn.out_proj",
    "cross_attention": "multihead_attn",
    "attention.output": "self_attn.out_proj",
    "attention.queries_keys_values.": "self_attn.in_proj_",
    "attention_norm": "norm1",
    "dense.0": "linear1",
    "dense.2": "linear2",
}


def torch_names(tensors, cross):
    """Les noms de torch.nn ; il réunit dans une table les trois projections de l'attention croisée."""
    table = TORCH | ({"cross_norm": "norm2", "dense_norm": "norm3"} if cross else {"dense_norm": "norm2"})
    out = renamed(tensors, table)
    for name in [name for name in out if ".queries." in name]:
        both = [out.pop(name), out.pop(name.replace("queries", "keys_values"))]
        out[name.replace("queries.", "in_proj_")] = torch.cat(both)
    return out


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("cross", [False, True])
def test_stacks_match_torch(norm, cross):
    torch.manual_seed(1)
    ours = big((Decoder if cross else Encoder)(16, 2, 4, norm=norm, **({"cross": True} if cross else {})), 2)
    final = nn.LayerNorm(16) if norm == "pre" else None
    settings = (16, 4, 64, 0.0, "gelu")
    options = {"batch_first": True, "norm_first": norm == "pre"}
    if cross:
        peer = nn.TransformerDecoder(nn.TransformerDecoderLayer(*settings, **options), 2, final)
    else:
        peer = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*settings, **options), 2, final, enable_nested_tensor=False
        )
    peer.load_state_dict(torch_names(ours.named_parameters(), cross))
    peer.train()  # sans abandon, c'est la voie générale, sans les raccourcis de l'inférence
    x, memory = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    tokens = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    if cross:
        out = ours(x, memory, memory_mask=padding_mask(tokens))
        causal = ~causal_mask(7)
        expected = peer(x, memory, tgt_mask=causal, memory_key_padding_mask=tokens == 0)
    else:
        x = x[:, :5]
        out = ours(x, mask=padding_mask(tokens))
        expected = peer(x, src_key_padding_mask=tokens == 0)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(out, expected, atol=1e-5)
    assert_same(torch_names(gradients(ours), cross), dict(gradients(peer)))


# --- le modèle de langue --------------------------------------------------------------------------

GPT2 = {
    "embedding.tokens": "transformer.wte",
    "embedding.positions": "transformer.wpe",
    "decoder.norm": "transformer.ln_f",
    "decoder.blocks": "transformer.h",
    "attention_norm": "ln_1",
    "dense_norm": "ln_2",
    "attention.queries_keys_values": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "dense.0": "mlp.c_fc",
    "dense.2": "mlp.c_proj",
    "head": "lm_head",
}


def gpt2_names(tensors):
    """Les noms de GPT-2, dont les couches linéaires sont transposées."""
    named = renamed(tensors, GPT2)
    return {name: t.T if ".c_" in name and t.ndim == 2 else t for name, t in named.items()}


def gpt2(ours):
    from transformers import GPT2Config, GPT2LMHeadModel

    c = ours.config
    sizes = {"vocab_size": c.vocabulary, "n_positions": c.length, "n_embd": c.width, "n_layer": c.layers}
    settings = {"resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0, "activation_function": "gelu"}
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "tie_word_embeddings": c.tied}
    peer = GPT2LMHeadModel(GPT2Config(**sizes, n_head=c.heads, **settings, **specials)).eval()
    peer.load_state_dict(gpt2_names(ours.named_parameters()), strict=False)
    return peer


@pytest.mark.parametrize("tied", [True, False])
def test_language_model_matches_gpt2(tied):
    ours = language_model(layers=3, tied=tied)
    peer, tokens = gpt2(ours), some_tokens(length=12)
    assert torch.allclose(ours(tokens), peer(tokens).logits, atol=1e-5)
    loss = ours.loss(tokens)["loss"]
    expected = peer(tokens, labels=tokens).loss
    assert torch.allclose(loss, expected, atol=1e-5)
    loss.backward()
    expected.backward()
    assert_same(gpt2_names(gradients(ours)), dict(gradients(peer)))


def test_language_model_writes_what_gpt2_writes():
    ours = language_model(layers=3)
    prompt = some_tokens(batch=3, length=4)
    mask = torch.ones_like(prompt)
    written = gpt2(ours).generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(greedy(ours, prompt, length=8), written[:, 4:])


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(POSITIONS), st.sampled_from(["pre", "post"]), st.integers(0, 8), st.integers(0, 99))
def test_a_token_never_changes_what_comes_before(positions, norm, place, seed):
    model, tokens = language_model(positions=positions, norm=norm), some_tokens(1, seed=seed)
    changed = tokens.clone()
    changed[0, place] = tokens[0, place] % 12 + 1
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.allclose(before[:, place], after[:, place], atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("first", [1, 4])
def test_cached_writing_equals_the_whole_pass(positions, batch, first):
    model, tokens = language_model(positions=positions), some_tokens(batch)
    with torch.no_grad():
        state, previous, logits = model.start(tokens[:, :first]), None, []
        for i in range(first, 10):
            logits.append(model.step(previous, state))
            previous = tokens[:, i] if i < 9 else None
        assert torch.allclose(torch.stack(logits, 1), model(tokens)[:, first - 1 :], atol=1e-5)
    assert state.length == 9


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_selected_rows_go_on_as_if_they_had_always_been_there(steps):
    model, tokens = language_model(), some_tokens(3)
    rows = torch.tensor([2, 0, 2, 1])

    def logits(tokens, rows):
        state = model.start(tokens[:, :2])
        for i in range(steps):
            model.step(tokens[:, 1 + i] if i else None, state)
        if rows is not None:
            state.select(rows)
            tokens = tokens[rows]
        return model.step(tokens[:, 1 + steps] if steps else None, state)

    with torch.no_grad():
        assert torch.allclose(logits(tokens, rows), logits(tokens[rows], None), atol=1e-6)


def test_order_matters_unless_there_are_no_positions():
    tokens = torch.tensor([[3, 4, 5, 6], [4, 3, 5, 6]])
    for positions in POSITIONS:
        a, b = language_model(positions=positions, layers=1)(tokens)[:, -1]
        assert torch.allclose(a, b, atol=1e-5) == (positions == "none"), positions


def test_sinusoids_are_added_to_embeddings_scaled_by_the_root_of_the_width():
    embedding = language_model(positions="sinusoidal").embedding
    tokens = torch.tensor([[5, 5]])
    x = embedding(tokens, first=3)[0]
    angle = torch.tensor(4.0)  # la deuxième position, première fréquence
    assert torch.allclose(
        x[1, :2], 4 * embedding.tokens.weight[5, :2] + torch.stack([angle.sin(), angle.cos()])
    )
    assert "waves" not in language_model(positions="sinusoidal").state_dict()


def test_rotary_positions_are_relative():
    """Un début en plus, caché aux suivants par le masque, ne change rien : seules comptent les distances."""
    model, tokens = language_model(positions="rotary"), some_tokens(1, 5)
    longer = torch.cat([some_tokens(1, 3, seed=1), tokens], 1)
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[3:, :3] = False
    shifted = model.decoder(model.embedding(longer), mask=mask)[:, 3:]
    assert torch.allclose(model.decoder(model.embedding(tokens)), shifted, atol=1e-5)


@pytest.mark.parametrize(("tied", "positions"), [(True, "learned"), (False, "learned"), (True, "rotary")])
def test_parameters_are_counted_by_hand(tied, positions):
    V, T, d, L = 13, 12, 16, 2
    block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 2 * 2 * d
    expected = V * d + T * d * (positions == "learned") + L * block + 2 * d + V * d * (not tied)
    model = LanguageModel(replace(TINY, tied=tied, positions=positions))
    assert sum(p.numel() for p in model.parameters()) == expected


def test_loss_predicts_the_next_token_and_skips_padding():
    model = language_model()
    tokens = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0]])
    laws = model(tokens).log_softmax(-1)
    told = [laws[0, i, tokens[0, i + 1]] for i in range(4)] + [laws[1, 0, 9]]
    assert torch.allclose(model.loss(tokens)["loss"], -torch.stack(told).mean())
    alone = model.loss(tokens[1:, :2])["loss"]
    assert torch.allclose(alone, -laws[1, 0, 9], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.9), st.integers(0, 99))
def test_smoothing_is_an_entropy_plus_a_divergence(smoothing, seed):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 5, 7, generator=g, dtype=torch.float64).float()
    targets = torch.randint(1, 7, (4, 5), generator=g)
    cross = cross_entropy(logits, targets, smoothing)
    p = (1 - smoothing) * F.one_hot(targets, 7).double() + smoothing / 7
    entropy = torch.special.entr(p).sum(-1).mean()
    divergence = F.kl_div(logits.double().log_softmax(-1), p, reduction="none").sum(-1).mean()
    assert torch.allclose(cross.double(), entropy + divergence, atol=1e-5)
    builtin = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
    assert torch.allclose(cross, builtin, atol=1e-6)
    padded = torch.cat([targets, torch.zeros(4, 1, dtype=torch.int64)], 1)
    assert torch.allclose(cross_entropy(F.pad(logits, (0, 0, 0, 1)), padded, smoothing), cross, atol=1e-6)


def test_a_new_model_knows_nothing():
    torch.manual_seed(0)
    loss = LanguageModel(TINY).loss(some_tokens(8))["loss"].item()
    assert loss == pytest.approx(math.log(13), abs=0.1)


def test_outputs_of_blocks_start_smaller():
    """GPT-2 : 0,02 / √(nombre d'ajouts au flux), et 0,02 ailleurs."""
    torch.manual_seed(0)
    model = LanguageModel(replace(TINY, width=64, layers=8))
    for block in model.decoder.blocks:
        for layer in (block.attention.output, block.dense[2]):
            assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.1)
        for layer in (block.attention.queries_keys_values, block.dense[0]):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_dropout_and_smoothing_act_where_they_should():
    model, tokens = language_model(dropout=0.5), some_tokens()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    soft, hard = language_model(smoothing=0.2), language_model()
    expected = cross_entropy(hard(tokens[:, :-1]), tokens[:, 1:], 0.2)
    assert torch.allclose(soft.loss(tokens)["loss"], expected)
    assert not torch.allclose(hard.loss(tokens)["loss"], expected, atol=1e-3)


# --- l'encodeur–décodeur --------------------------------------------------------------------------

PAIR = TransformerConfig(
    source_vocabulary=11, target_vocabulary=13, length=10, width=16, layers=2, heads=4, norm="post"
)
SOURCE = torch.tensor([[4, 5, 6, 7, 8, 9, 10], [7, 8, 9, 3, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0]])
TARGET = torch.tensor([[2, 9, 8, 12, 3, 0, 0], [2, 4, 5, 6, 7, 8, 3], [2, 6, 3, 0, 0, 0, 0]])

BART = {
    "decoder.": "model.decoder.",
    "encoder.": "model.encoder.",
    "source_embedding": "model.encoder.embed",
    "embedding": "model.decoder.embed",
    "embed.": "embed_",
    "blocks": "layers",
    "cross_attention.output": "encoder_attn.out_proj",
    "cross_attention": "encoder_attn",
    "cross_norm": "encoder_attn_layer_norm",
    "attention_norm": "self_attn_layer_norm",
    "dense_norm": "final_layer_norm",
    "attention.output": "self_attn.out_proj",
    ".attention.": ".self_attn.",
    "dense.0": "fc1",
    "dense.2": "fc2",
}


def translator(**options):
    torch.manual_seed(0)
    return big(Transformer(replace(PAIR, **options)), 2)


def bart_names(tensors):
    """Les noms de BART, dont les positions commencent à la troisième ligne de leur table."""
    named = renamed(split_projections(tensors), BART)
    return {name: F.pad(t, (0, 0, 2, 0)) if "embed_positions" in name else t for name, t in named.items()}


def bart(ours):
    """BART aux poids de `ours`, sans la normalisation qu'il ajoute aux plongements, ni table commune."""
    from transformers import BartConfig, BartForConditionalGeneration

    c = ours.config
    sizes = {"vocab_size": c.target_vocabulary, "d_model": c.width, "max_position_embeddings": c.length}
    for side in ("encoder", "decoder"):
        sizes |= {
            f"{side}_layers": c.layers,
            f"{side}_attention_heads": c.heads,
            f"{side}_ffn_dim": 4 * c.width,
        }
    tokens = {"pad_token_id": 0, "decoder_start_token_id": c.start, "bos_token_id": 2, "eos_token_id": 3}
    settings = {"dropout": 0.0, "forced_eos_token_id": None, "tie_word_embeddings": False}
    peer = BartForConditionalGeneration(BartConfig(**sizes, **tokens, **settings)).eval()
    peer.model.encoder.embed_tokens = nn.Embedding(c.source_vocabulary, c.width)
    peer.model.decoder.embed_tokens = nn.Embedding(c.target_vocabulary, c.width)
    peer.lm_head.weight = peer.model.decoder.embed_tokens.weight
    for stack in (peer.model.encoder, peer.model.decoder):
        stack.layernorm_embedding = nn.Identity()
    missing, unexpected = peer.load_state_dict(bart_names(ours.named_parameters()), strict=False)
    assert not unexpected
    assert set(missing) <= {"model.shared.weight", "lm_head.weight", "final_logits_bias"}
    return peer


def test_transformer_matches_bart():
    ours = translator()
    peer, mask = bart(ours), (SOURCE != 0).long()
    labels = TARGET[:, 1:].masked_fill(TARGET[:, 1:] == 0, -100)
    expected = peer(SOURCE, attention_mask=mask, decoder_input_ids=TARGET[:, :-1], labels=labels)
    assert torch.allclose(ours(SOURCE, TARGET[:, :-1]), expected.logits, atol=1e-5)
    loss = ours.loss(SOURCE, TARGET)["loss"]
    assert torch.allclose(loss, expected.loss, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    theirs = {name: g for name, g in gradients(peer) if g is not None}
    assert_same(bart_names(gradients(ours)), theirs)


def test_transformer_writes_what_bart_writes():
    ours = translator()
    options = {"max_new_tokens": 9, "do_sample": False, "num_beams": 1}
    written = bart(ours).generate(SOURCE, attention_mask=(SOURCE != 0).long(), **options)[:, 1:]
    mine = greedy(ours, SOURCE, length=9, stop=3).clone()
    mine[(mine == 3).cumsum(1) > 1] = 0  # après la fin, BART remplit de 0
    assert torch.equal(mine[:, : written.shape[1]], written)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_alone_or_in_a_padded_batch_a_sentence_reads_the_same(norm, positions):
    model = translator(norm=norm, positions=positions)
    with torch.no_grad():
        together = model(SOURCE, TARGET)
        for i in range(3):
            s, t = (SOURCE[i] != 0).sum(), (TARGET[i] != 0).sum()
            alone = model(SOURCE[i : i + 1, :s], TARGET[i : i + 1, :t])
            assert torch.allclose(together[i, :t], alone[0], atol=1e-5)
        wider = model(F.pad(SOURCE, (0, 3)), TARGET)
        assert torch.allclose(together, wider, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["pre", "post"]), st.integers(0, 6), st.integers(1, 12))
def test_what_is_written_depends_on_the_past_and_on_all_the_source(norm, place, token):
    model, source, target = translator(norm=norm), SOURCE[:1], TARGET[1:2]
    changed = target.clone()
    changed[0, place] = token
    with torch.no_grad():
        before, after = model(source, target), model(source, changed)
        assert torch.equal(before[:, :place], after[:, :place])
        if token != target[0, place]:
            assert not torch.allclose(before[:, place], after[:, place], atol=1e-4)
        changed = source.clone()
        changed[0, -1] = 4  # le dernier mot lu compte dès le premier mot écrit
        assert not torch.allclose(before[:, 0], model(changed, target)[:, 0], atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_cached_translation_equals_the_whole_pass(positions, norm):
    model = translator(positions=positions, norm=norm)
    with torch.no_grad():
        state, previous, logits = model.start(SOURCE), None, []
        for i in range(7):
            logits.append(model.step(previous, state))
            previous = TARGET[:, i + 1] if i < 6 else None
        expected = model(SOURCE, TARGET)
    assert torch.allclose(torch.stack(logits, 1), expected, atol=1e-5)


def test_the_source_is_read_once():
    model, calls = translator(), {"encoder": 0, "memory": 0}
    model.encoder.register_forward_hook(lambda *_: calls.update(encoder=calls["encoder"] + 1))
    crossed = model.decoder.blocks[0].cross_attention.keys_values
    crossed.register_forward_hook(lambda *_: calls.update(memory=calls["memory"] + 1))
    greedy(model, SOURCE, length=5)
    assert calls == {"encoder": 1, "memory": 1}


@pytest.mark.parametrize("steps", [0, 2])
def test_selected_sentences_go_on_as_if_they_had_always_been_there(steps):
    model, rows = translator(), torch.tensor([2, 1, 1, 0])

    def logits(source, target, rows):
        state = model.start(source)
        for i in range(steps):
            model.step(target[:, i] if i else None, state)
        if rows is not None:
            state.select(rows)
            target = target[rows]
        return model.step(target[:, steps] if steps else None, state)

    with torch.no_grad():
        assert torch.allclose(
            logits(SOURCE, TARGET, rows), logits(SOURCE[rows], TARGET[rows], None), atol=1e-5
        )


def test_a_beam_of_one_is_greedy_and_a_beam_of_all_is_exhaustive():
    model = translator()
    first = beam_search(model, SOURCE, width=1, length=6, stop=3)
    assert torch.equal(first.tokens[:, 0], greedy(model, SOURCE, length=6, stop=3))
    wide = beam_search(model, SOURCE, width=13, length=2)
    first = model(SOURCE, torch.full((3, 1), 2)).log_softmax(-1)[:, 0]
    pairs = torch.stack(
        [model(SOURCE, torch.tensor([[2, a]] * 3)).log_softmax(-1)[:, 1] for a in range(13)], 1
    )
    best = (first[..., None] + pairs).flatten(1).amax(1)
    assert torch.allclose(wide.scores[:, 0].float(), best, atol=1e-4)


def test_a_source_of_padding_alone_gives_numbers_and_gradients():
    model = translator()
    source = SOURCE.clone()
    source[1] = 0
    loss = model.loss(source, TARGET)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        a, b = model(source, TARGET)[1], model(F.pad(source, (0, 2)), TARGET)[1]
    assert torch.allclose(a, b, atol=1e-6)


def test_attention_maps_are_those_of_the_pass():
    model, target = translator(), TARGET[:, :-1]
    expected = model(SOURCE, target)
    maps = attention_maps(model, SOURCE, target)
    names = [
        "encoder.blocks.{}.attention",
        "decoder.blocks.{}.attention",
        "decoder.blocks.{}.cross_attention",
    ]
    assert sorted(maps) == sorted(name.format(i) for name in names for i in range(2))
    for name, weights in maps.items():
        assert weights.shape == (
            3,
            4,
            *((7, 7) if "encoder" in name else (6, 7) if "cross" in name else (6, 6)),
        )
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
        if not name.startswith("decoder.blocks.0.attention") and not name.startswith(
            "decoder.blocks.1.attention"
        ):
            assert (weights * (SOURCE == 0)[:, None, None]).abs().max() == 0
        else:
            assert torch.equal(weights, weights.tril())
    # Mêmes poids que ceux dont se sert la dernière couche : sans ce qu'ils rapportent, la sortie change.
    layer = model.decoder.blocks[1].cross_attention
    seen = []
    hook = layer.output.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    model(SOURCE, target)
    hook.remove()
    _, values = layer._split(layer.keys_values(model.encode(SOURCE)), 2)
    mixed = (maps["decoder.blocks.1.cross_attention"] @ values).transpose(1, 2).flatten(2)
    assert torch.allclose(mixed, seen[0], atol=1e-5)
    assert torch.equal(model(SOURCE, target), expected)


@pytest.mark.parametrize(("norm", "tied"), [("pre", True), ("post", True), ("pre", False)])
def test_translator_parameters_are_counted_by_hand(norm, tied):
    V, W, T, d, L = 11, 13, 10, 16, 2
    attention, dense, normalization = 4 * d * d + 4 * d, 8 * d * d + 5 * d, 2 * d
    encoder = L * (attention + dense + 2 * normalization)
    decoder = L * (2 * attention + dense + 3 * normalization)
    expected = (V + W + 2 * T) * d + encoder + decoder + 2 * normalization * (norm == "pre")
    model = Transformer(replace(PAIR, norm=norm, tied=tied))
    assert sum(p.numel() for p in model.parameters()) == expected + W * d * (not tied)


def test_a_translator_smooths_its_labels():
    soft, hard = translator(smoothing=0.2), translator()
    expected = cross_entropy(hard(SOURCE, TARGET[:, :-1]), TARGET[:, 1:], 0.2)
    assert torch.allclose(soft.loss(SOURCE, TARGET)["loss"], expected)
    assert not torch.allclose(hard.loss(SOURCE, TARGET)["loss"], expected, atol=1e-3)


def test_it_learns_to_translate():
    """Retourner une suite : chaque mot écrit dépend d'un mot lu, à une place qui change."""
    torch.manual_seed(0)
    model = Transformer(replace(PAIR, width=32, layers=1, heads=2, norm="pre")).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(100):
        source = torch.randint(4, 8, (32, 3))
        loss = model.loss(source, F.pad(F.pad(source.flip(1), (1, 0), value=2), (0, 1), value=3))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.tensor([[4, 5, 6], [7, 7, 4]])
    assert greedy(model.eval(), source, length=4, stop=3).tolist() == [[6, 5, 4, 3], [4, 7, 7, 3]]


# --- les fautes de l'appelant -----------------------------------------------------------------------

LONG = torch.ones(1, 13, dtype=torch.int64)
EMPTY = torch.ones(1, 0, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LanguageModelConfig(0), "au moins 1"),
        (lambda: LanguageModelConfig(5, layers=0), "au moins 1"),
        (lambda: LanguageModelConfig(5, width=10, heads=3), "multiple du nombre de têtes"),
        (lambda: LanguageModelConfig(5, positions="relative"), "Positions « relative » inconnues"),
        (lambda: LanguageModelConfig(5, dropout=1.0), "l'abandon et le lissage"),
        (lambda: LanguageModelConfig(5, smoothing=-0.1), "l'abandon et le lissage"),
        (lambda: LanguageModel(replace(TINY, norm="middle")), "« middle » inconnue"),
        (lambda: language_model()(LONG), "de 1 à 12 positions"),
        (lambda: language_model()(EMPTY), "de 1 à 12 positions"),
        (lambda: language_model()(torch.ones(3)), "entiers"),
        (lambda: language_model()(torch.tensor([[13]])), "de 0 à 12"),
        (lambda: language_model()(torch.tensor([[-1]])), "de 0 à 12"),
        (lambda: language_model().loss(torch.zeros(2, 4, dtype=torch.int64)), "Rien à prédire"),
        (lambda: language_model().start(EMPTY), "de 1 à 12 positions"),
        (lambda: language_model().start(torch.tensor([[3, 0]])), "remplissage dans l'invite"),
        (
            lambda: greedy(language_model(), torch.ones(1, 5, dtype=torch.int64), length=9),
            "de 1 à 12 positions",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(MinidalleError, match=f"(?i){message}"):
        call()


def test_each_block_may_have_its_own_mask():
    torch.manual_seed(0)
    decoder = Decoder(8, 2, 2).eval()
    x = torch.randn(1, 4, 8)
    near, full = torch.eye(4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    with torch.no_grad():
        by_hand = x
        for block, mask in zip(decoder.blocks, (near, full), strict=True):
            by_hand = block(by_hand, mask=mask, causal=True)
        assert torch.allclose(decoder(x, mask=[near, full]), decoder.norm(by_hand), atol=1e-6)
        outputs = [decoder(x, mask=masks) for masks in ([near, full], [full, near], near, full)]
    assert len({tuple(out.flatten().tolist()) for out in outputs}) == 4
