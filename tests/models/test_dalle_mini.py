"""DALL·E mini : parité avec min-dalle, remplissage invisible, cache, positions, apprentissage."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.hub import dalle_mini_parts
from minidalle.models.dalle_mini import DALLEMini, DALLEMiniConfig
from minidalle.sampling import beam_search, greedy, sample

TINY = DALLEMiniConfig(
    text_vocabulary=11,
    image_vocabulary=13,
    text_length=5,
    grid=(2, 3),
    width=16,
    layers=1,
    decoder_layers=2,
    heads=4,
    glu_width=24,
)
EMPTY = torch.zeros(1, 5, dtype=torch.int64)
NOISE = torch.linspace(-3, 3, 16) ** 3  # une constante, elle, disparaîtrait dans les normes


def tiny(config=TINY, scale=8.0):
    """Petit modèle aux poids assez grands pour que l'attention ne soit pas uniforme, sans biais nul."""
    torch.manual_seed(0)
    model = DALLEMini(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
    return model


def pair(batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    text, image = torch.randint(1, 11, (batch, 5), generator=g), torch.randint(0, 13, (batch, 6), generator=g)
    for row, words in zip(text, torch.randint(1, 6, (batch,), generator=g), strict=True):
        row[words:] = 0  # des légendes de longueurs inégales
    return text, image


def one_by_one(model, text, image):
    state, previous, logits = model.start(text), None, []
    for i in range(6):
        logits.append(model.step(previous, state))
        previous = image[:, i]
    return torch.stack(logits, 1)


# --- parité ---


@pytest.fixture(scope="module")
def peers():
    """Encodeur et décodeur de min-dalle, poids au hasard, et le nôtre, fait de leurs poids."""
    threads = torch.get_num_threads()
    peer = pytest.importorskip("min_dalle.models")
    # L'importer coupe le gradient et change le nombre de fils de tout le programme.
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    sizes = {"embed_count": 128, "attention_head_count": 2, "glu_embed_count": 80, "layer_count": 2}
    torch.manual_seed(0)
    encoder = peer.DalleBartEncoder(text_vocab_count=40, text_token_count=64, device="cpu", **sizes)
    decoder = peer.DalleBartDecoder(image_vocab_count=60, device="cpu", **sizes)
    scales = ("ln0.weight", "ln1.weight", "final_ln.weight")
    with torch.no_grad():
        for name, p in [*encoder.named_parameters(), *decoder.named_parameters()]:
            if not (name.endswith(scales) or ("pre_" in name and name.endswith("weight"))):
                p.add_(0.3 * torch.randn_like(p) if p.ndim == 1 else p)
    config = DALLEMiniConfig(
        text_vocabulary=40,
        image_vocabulary=60,
        text_length=64,
        grid=(16, 16),
        width=128,
        layers=2,
        heads=2,
        glu_width=80,
        pad=1,
    )
    states = [
        {
            k: v
            for k, v in part.state_dict().items()
            if not (k.endswith(scales) or ("pre_" in k and "weight" in k))
        }
        for part in (encoder, decoder)
    ]
    ours = DALLEMini(config).eval()
    parts = dalle_mini_parts(config, *states, Path("min-dalle"))
    ours.load_state_dict({key: torch.cat(tensors) for key, tensors in parts.items()})
    return encoder.eval(), decoder.eval(), ours


def published_pair():
    """Une légende vide et une de 9 mots, comme min-dalle les veut : deux lignes de 64 ; une image chacune."""
    text = torch.ones(2, 64, dtype=torch.int64)
    text[:, 0], text[0, 1], text[1, 10] = 0, 2, 2
    text[1, 1:10] = torch.arange(20, 29)
    return text, torch.randint(60, (1, 256), generator=torch.Generator().manual_seed(3)).expand(2, -1)


@torch.no_grad()
def test_encoder_states_and_every_logit_are_those_of_min_dalle(peers):
    encoder, decoder, ours = peers
    text, image = published_pair()
    memory = encoder(text)
    assert (ours.encode(text) - memory).abs().max() < 1e-4
    previous = torch.cat([torch.tensor([[60]]), image[:1, :-1]], 1)
    mask, state = (text != 1)[:, None, None, :], torch.zeros(2, 4, 256, 128)
    expected, _ = decoder(mask, memory, state, previous, torch.arange(256))
    assert expected.shape == (2, 256, 61) and expected[:, 0].std() > 0.3
    assert (ours(text, image) - expected[..., :60]).abs().max() < 1e-4
    assert (expected[0] - expected[1]).abs().max() > 0.1  # la légende se voit


@torch.no_grad()
def test_step_by_step_too(peers):
    encoder, decoder, ours = peers
    text, image = published_pair()
    mask, cache, memory = (text != 1)[:, None, None, :], torch.zeros(2, 4, 256, 128), encoder(text)
    state, previous = ours.start(text), None
    for i in range(6):
        token = torch.tensor([[60]]) if previous is None else previous[:1, None]
        expected, cache = decoder(mask, memory, cache, token, torch.tensor([i]))
        assert (ours.step(previous, state) - expected[:, 0, :60]).abs().max() < 1e-4
        previous = image[:, i]


@pytest.mark.parametrize(
    ("name", "sizes"), [("mini", (202_649_472, 235_341_696)), ("mega", (1_110_222_848, 1_477_691_392))]
)
def test_published_sizes(peers, name, sizes):
    """Aux échelles absentes et aux lignes inutiles près, nos nombres sont ceux des modules de min-dalle."""
    import min_dalle.models as peer

    config = getattr(DALLEMiniConfig, name)()
    rows = {"mini": 16_384, "mega": 16_415}[name]
    shared = {
        "embed_count": config.width,
        "attention_head_count": config.heads,
        "glu_embed_count": config.glu_width,
        "device": "meta",
    }
    with torch.device("meta"):
        ours = DALLEMini(config)
        encoder = peer.DalleBartEncoder(
            layer_count=config.layers,
            text_vocab_count=config.text_vocabulary,
            text_token_count=config.text_length,
            **shared,
        )
        decoder = peer.DalleBartDecoder(layer_count=config.decoder_layers, image_vocab_count=rows, **shared)
    counts = [sum(p.numel() for p in part.parameters()) for part in (encoder, decoder)]
    assert [round(count / 1e6, 1) for count in counts] == [round(size / 1e6, 1) for size in sizes]
    scales = config.layers * (2 * config.width + config.glu_width) + config.width
    scales += config.decoder_layers * (3 * config.width + config.glu_width) + config.width
    unused = (2 * (rows - 16_384) + 1) * config.width
    assert sum(p.numel() for p in ours.parameters()) == sum(counts) - scales - unused


# --- texte ---


def test_padding_is_never_seen():
    """Changer un plongement de remplissage ne change rien, à l'entraînement comme au tirage."""
    model, (text, image) = tiny(), pair(6)
    before, walked = model(text, image), one_by_one(model, text, image)
    with torch.no_grad():
        model.text_embedding.weight[0] += NOISE
        model.text_position.weight[text.ne(0).sum(1).max() :] += NOISE
    assert torch.equal(model(text, image), before)
    assert torch.allclose(one_by_one(model, text, image), walked, atol=1e-6)


def test_an_empty_caption_is_no_accident():
    """Elle ne lit que son premier remplissage : logits finis, gradients finis, et les mêmes dans tout lot."""
    model, (text, image) = tiny(), pair(3)
    mixed = torch.cat([EMPTY, text[1:]])
    alone = model(EMPTY, image[:1])
    assert torch.isfinite(alone).all()
    assert torch.allclose(model(mixed, image)[:1], alone, atol=1e-6)
    assert torch.allclose(one_by_one(model, mixed, image)[:1], alone, atol=1e-5)
    model.train().loss(mixed, image)["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.text_embedding.weight.grad[0].abs().sum() > 0


def test_every_word_counts_from_the_first_token():
    model, image = tiny(), pair(1)[1]
    text = torch.tensor([[3, 7, 2, 9, 4]])
    reference = model(text, image)
    for i in range(5):
        changed = text.clone()
        changed[0, i] = (changed[0, i] + 1) % 11
        assert (model(changed, image) - reference).abs().amax(-1).min() > 1e-5


def test_the_encoder_reads_both_ways():
    model = tiny()
    a, b = model.encode(torch.tensor([[3, 7, 2, 9, 4], [3, 7, 2, 9, 5]]))
    assert (a - b).abs().amax(-1).min() > 1e-4


def test_another_padding_token():
    model, (text, image) = tiny(replace(TINY, pad=1)), pair(2)
    text = torch.tensor([[3, 4, 1, 1, 1], [0, 4, 2, 1, 1]])
    before = model(text, image)
    with torch.no_grad():
        model.text_embedding.weight[1] += NOISE
    assert torch.equal(model(text, image), before)
    with torch.no_grad():
        model.text_embedding.weight[0] += NOISE
    assert not torch.allclose(model(text, image)[1], before[1])


# --- image ---


@given(st.integers(0, 5), st.integers(0, 12), st.integers(0, 99))
def test_a_token_never_changes_what_comes_before_nor_its_own_law(position, token, seed):
    model, (text, image) = tiny(), pair(1, seed)
    changed = image.clone()
    changed[0, position] = token
    before, after = model(text, image), model(text, changed)
    assert torch.equal(before[:, : position + 1], after[:, : position + 1])
    if token != image[0, position] and position < 5:
        assert not torch.allclose(before[:, position + 1], after[:, position + 1])


@pytest.mark.parametrize("positions", ["1d", "2d"])
@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("grad", [False, True])
def test_cached_generation_equals_the_whole_pass(batch, positions, grad):
    """Par la voie courte, sans gradient, comme par les modules."""
    model, (text, image) = tiny(replace(TINY, positions=positions)), pair(batch)
    with torch.set_grad_enabled(grad):
        assert torch.allclose(one_by_one(model, text, image), model(text, image), atol=1e-5)


@torch.no_grad()
def test_rows_can_be_chosen_and_doubled_at_any_step():
    model, (text, image) = tiny(), pair(3)
    expected, rows = model(text, image), torch.tensor([2, 0, 0, 1])
    for when in (0, 3):
        state, previous, current = model.start(text), None, torch.arange(3)
        for i in range(6):
            if i == when:
                state.select(rows)
                current, previous = rows, previous if previous is None else previous[rows]
            logits = model.step(previous, state)
            assert torch.allclose(logits, expected[current, i], atol=1e-5), (when, i)
            previous = image[current, i]
        assert state.length == 6


def test_the_caption_is_read_once(monkeypatch):
    model, (text, image) = tiny(), pair(2)
    calls = []
    for block in model.decoder:
        block.cross_attention.keys_values.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        one_by_one(model, text, image)
    assert len(calls) == 2


def test_one_dimensional_and_two_dimensional_positions():
    flat, grid = tiny(), tiny(replace(TINY, positions="2d"))
    assert flat.image_position().shape == grid.image_position().shape == (6, 16)
    with torch.no_grad():
        grid.image_position.rows.weight.copy_(torch.arange(2.0)[:, None] * 10)
        grid.image_position.columns.weight.copy_(torch.arange(3.0)[:, None])
    assert grid.image_position()[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert torch.equal(flat.image_position(), flat.image_position.weight)


def test_the_start_token_can_be_another():
    """min-dalle part du jeton 16 383, qui est aussi un vrai jeton."""
    model, (text, image) = tiny(replace(TINY, start=12)), pair(2)
    assert model.start(text).last.tolist() == [12, 12]
    before = model(text, image)
    with torch.no_grad():
        model.image_embedding.weight[13] += NOISE
    assert torch.equal(model(text, image), before)
    with torch.no_grad():
        model.image_embedding.weight[12] += NOISE
    assert not torch.allclose(model(text, image)[:, 0], before[:, 0])


# --- apprendre ---


def test_loss_is_the_mean_cross_entropy_in_nats():
    model, (text, image) = tiny(), pair(3)
    logp = model(text, image).log_softmax(-1)
    expected = -logp.gather(-1, image[..., None]).mean()
    assert torch.allclose(model.loss(text, image)["loss"], expected)
    assert torch.allclose(model.loss(text, image.view(3, 2, 3))["loss"], expected)
    alone = torch.cat([model.nats(t[None], i[None]) for t, i in zip(text, image, strict=True)])
    assert torch.allclose(model.nats(text, image), alone, atol=1e-4)
    assert torch.allclose(alone.mean() / 6, expected)


def test_a_new_model_knows_nothing():
    torch.manual_seed(0)
    assert DALLEMini(TINY).loss(*pair(8))["loss"].item() == pytest.approx(
        torch.tensor(13.0).log().item(), abs=0.1
    )


def test_eight_pairs_are_learnt_and_drawn_again():
    """Huit légendes, huit images : une perte sous 0,01 nat, et chacune redessinée exactement."""
    torch.manual_seed(0)
    model = DALLEMini(replace(TINY, width=32, init_std=0.05)).train()
    text, image = pair(8, seed=5)
    assert len(text.unique(dim=0)) == 8
    text[0] = 0
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(300):
        loss = model.loss(text, image)["loss"]
        if loss < 0.008:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert model.loss(text, image)["loss"].item() < 0.01
    assert model.loss(text.roll(1, 0), image)["loss"].item() > 1
    assert torch.equal(greedy(model, text, length=6), image)
    assert torch.equal(beam_search(model, text, width=2, length=6).tokens[:, 0], image)
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    assert torch.equal(sample(model, text, generators, length=6, top_k=1), image)


def test_half_precision_training_follows_the_full_one():
    model, (text, image) = tiny(scale=3.0).train(), pair(4)
    full = model.loss(text, image)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(text, image)["loss"]
    assert half.dtype == torch.float32 and 0 < abs(half - full) < 0.05
    half.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_dropout_acts_in_training_only():
    model = tiny(replace(TINY, dropout=0.5))
    text, image = pair()
    assert torch.equal(model(text, image), model(text, image))
    model.train()
    assert not torch.equal(model(text, image), model(text, image))


def test_sizes_left_out_are_filled_in():
    config = DALLEMiniConfig(text_vocabulary=5, width=256, layers=3)
    assert (config.decoder_layers, config.glu_width, config.start) == (3, 672, 1024)
    assert DALLEMiniConfig(**asdict(config)) == config
    assert DALLEMiniConfig.mini(layers=1).glu_width == 2730 and DALLEMiniConfig.mega().start == 16_384


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(1, 4, dtype=torch.int64), pair(1)[1]), "Texte de forme"),
        (lambda m: m(pair(1)[0], torch.zeros(1, 5, dtype=torch.int64)), "6 jetons ici, pas 5"),
        (lambda m: m.start(torch.zeros(1, 6, dtype=torch.int64)), "Texte de forme"),
        (lambda m: DALLEMiniConfig(3, width=10, heads=3), "multiple du nombre de têtes"),
        (lambda m: DALLEMiniConfig(0), "au moins 1"),
        (lambda m: DALLEMiniConfig(3, pad=3), "hors des vocabulaires"),
        (lambda m: DALLEMiniConfig(3, start=1025), "hors des vocabulaires"),
        (lambda m: DALLEMiniConfig(3, positions="3d"), "« 1d » ou « 2d »"),
        (lambda m: DALLEMiniConfig(3, dropout=1.0), "Abandon impossible"),
    ],
)
def test_wrong_sizes_are_refused(call, message):
    with pytest.raises(MinidalleError, match=message):
        call(tiny())


def test_an_image_ends():
    model, (text, image) = tiny(), pair(1)
    state = model.start(text)
    with torch.no_grad():
        for i in range(6):
            model.step(image[:, i], state)
        with pytest.raises(MinidalleError, match="Image finie"):
            model.step(image[:, 0], state)
