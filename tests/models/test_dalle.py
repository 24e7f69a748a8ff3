"""DALL·E en petit : causalité, cache, positions, apprentissage."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.dalle_mini import DALLEMini, DALLEMiniConfig
from minidalle.models.sparse_attention import stream_mask
from minidalle.sampling import greedy

TINY = DALLEConfig(
    text_vocabulary=11, image_vocabulary=13, text_length=5, grid=(2, 3), width=16, layers=2, heads=4
)


def tiny(config=TINY, scale=8.0):
    """Petit modèle aux poids assez grands pour que l'attention ne soit pas uniforme."""
    torch.manual_seed(0)
    model = DALLE(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(scale)
    return model


def pair(batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(1, 11, (batch, 5), generator=g), torch.randint(0, 13, (batch, 6), generator=g)


@given(st.integers(0, 5), st.integers(0, 12), st.integers(0, 99))
def test_a_token_never_changes_what_comes_before_nor_its_own_law(position, token, seed):
    model, (text, image) = tiny(), pair(1, seed)
    changed = image.clone()
    changed[0, position] = token
    before, after = model(text, image), model(text, changed)
    assert torch.equal(before[:, : position + 1], after[:, : position + 1])
    if token != image[0, position] and position < 5:
        assert not torch.allclose(before[:, position + 1], after[:, position + 1])


def test_every_word_counts_from_the_first_token():
    model, (text, image) = tiny(), pair(1)
    reference = model(text, image)
    for i in range(5):
        changed = text.clone()
        changed[0, i] = (changed[0, i] + 1) % 11
        assert (model(changed, image) - reference).abs().amax(-1).min() > 1e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_cached_generation_equals_the_whole_pass(batch):
    model, (text, image) = tiny(), pair(batch)
    state, previous, logits = model.start(text), None, []
    for i in range(6):
        logits.append(model.step(previous, state))
        previous = image[:, i]
    assert torch.allclose(torch.stack(logits, 1), model(text, image), atol=1e-5)
    assert state.length == 5 + 6


def test_positions_are_row_plus_column_of_the_token_to_predict():
    model = tiny()
    with torch.no_grad():
        model.image_embedding.weight.zero_()
        model.image_position.rows.weight.copy_(torch.arange(2.0)[:, None] * 10)
        model.image_position.columns.weight.copy_(torch.arange(3.0)[:, None])
    embedded = model._embed_image(torch.zeros(1, 6, dtype=torch.int64), 0)[0, :, 0]
    assert embedded.tolist() == [0, 1, 2, 10, 11, 12]
    assert model._embed_image(torch.zeros(1, 1, dtype=torch.int64), 4)[0, 0, 0] == 11


def test_padding_is_a_token_like_any_other_and_depends_on_its_place():
    model, (_, image) = tiny(), pair(1)
    texts = torch.tensor([[3, 4, 0, 0, 0], [0, 0, 3, 4, 0]])
    a, b = model(texts, image.repeat(2, 1))
    assert not torch.allclose(a, b)


def test_the_same_word_reads_differently_at_each_place():
    embedded = tiny()._embed_text(torch.full((1, 5), 3))[0]
    assert torch.cdist(embedded, embedded)[~torch.eye(5, dtype=torch.bool)].min() > 1e-3


def test_loss_is_the_mean_cross_entropy_in_nats():
    model, (text, image) = tiny(), pair(3)
    logp = model(text, image).log_softmax(-1)
    expected = -logp.gather(-1, image[..., None]).mean()
    assert torch.allclose(model.loss(text, image)["loss"], expected)
    assert torch.allclose(model.loss(text, image.view(3, 2, 3))["loss"], expected)
    one_by_one = torch.cat([model.nats(t[None], i[None]) for t, i in zip(text, image, strict=True)])
    assert torch.allclose(model.nats(text, image), one_by_one, atol=1e-4)
    assert torch.allclose(one_by_one.mean() / 6, expected)


def test_a_new_model_knows_nothing():
    torch.manual_seed(0)
    assert DALLE(TINY).loss(*pair(8))["loss"].item() == pytest.approx(
        torch.tensor(13.0).log().item(), abs=0.1
    )


def test_it_learns_to_read():
    """Deux légendes, deux images : seul le texte permet de savoir laquelle dessiner."""
    torch.manual_seed(0)
    model = DALLE(TINY).train()
    text, image = pair(2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        loss = model.loss(text, image)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    model.eval()
    swapped = model.loss(text.flip(0), image)["loss"].item()
    assert swapped > 1


def test_dropout_acts_in_training_only():
    model = tiny(DALLEConfig(**{f: getattr(TINY, f) for f in TINY.__slots__} | {"dropout": 0.5}))
    text, image = pair()
    assert torch.equal(model(text, image), model(text, image))
    model.train()
    assert not torch.equal(model(text, image), model(text, image))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(1, 4, dtype=torch.int64), pair(1)[1]), "Texte de forme"),
        (lambda m: m(pair(1)[0], torch.zeros(1, 5, dtype=torch.int64)), "6 jetons ici, pas 5"),
        (lambda m: DALLEConfig(3, width=10, heads=3), "multiple du nombre de têtes"),
        (lambda m: DALLEConfig(0), "au moins 1"),
    ],
)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(MinidalleError, match=message):
        call(tiny())


@pytest.mark.parametrize("change", [{"sparse": True}, {"positions": "1d"}, {"text_weight": 0.125}])
def test_the_options_keep_cache_and_whole_pass_equal(change):
    model, (text, image) = tiny(replace(TINY, layers=3, **change)), pair(3)
    state, previous, logits = model.start(text), None, []
    for i in range(6):
        logits.append(model.step(previous, state))
        previous = image[:, i]
    assert torch.allclose(torch.stack(logits, 1), model(text, image), atol=1e-5)


def test_sparse_masks_hide_the_far_image_but_never_the_text():
    config = replace(TINY, grid=(3, 3), layers=1, sparse=True)
    model = tiny(config)
    # La seule couche est alors une convolution de côté 11, qui voit toute cette petite grille…
    text, image = torch.randint(1, 11, (1, 5)), torch.randint(0, 13, (1, 9))
    changed = image.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 13
    assert not torch.allclose(model(text, image)[0, 8], model(text, changed)[0, 8])
    # … et une couche « row » ne voit plus le premier jeton, lu à la position 1, depuis la position 8.
    model.masks = [stream_mask("row", 5, (3, 3))]
    assert torch.allclose(model(text, image)[0, 8], model(text, changed)[0, 8])
    other = text.clone()
    other[0, 0] = (other[0, 0] + 1) % 11
    assert not torch.allclose(model(text, image)[0, 8], model(other, image)[0, 8])


@torch.no_grad()
def test_losses_are_weighted_one_eighth_and_seven_eighths():
    model, (text, image) = tiny(replace(TINY, text_weight=0.125)), pair(4)
    text[:, 3:] = 0
    losses = model.loss(text, image)
    assert losses["loss"] == pytest.approx(float(losses["text"] / 8 + 7 * losses["image"] / 8))
    assert losses["image"] == pytest.approx(float(model.nats(text, image).mean() / 6), rel=1e-5)
    # Par le menu : seuls les jetons 2 et 3 sont prédits, chacun depuis le précédent.
    x = model._stream(text, image)[:, :2]
    laws = model.text_head(x).log_softmax(-1)
    by_hand = -laws.gather(-1, text[:, 1:3, None]).mean()
    assert losses["text"] == pytest.approx(float(by_hand), rel=1e-5)
    empty = model.loss(torch.zeros_like(text), image)
    assert float(empty["text"]) == 0 and torch.isfinite(empty["loss"])


def test_each_empty_place_has_its_own_learned_token():
    model, (_, image) = tiny(), pair(1)
    text = torch.tensor([[3, 4, 0, 0, 0]])
    with torch.no_grad():
        before = model(text, image)
        model.text_embedding.weight[0] += 1.0  # le jeton 0 n'est lu par personne…
        assert torch.equal(model(text, image), before)
        model.padding.weight[3] += 1.0  # … celui de la quatrième place, si
        assert not torch.allclose(model(text, image), before)


@pytest.mark.parametrize("change", [{"text_weight": 1.0}, {"text_weight": -0.1}, {"positions": "3d"}])
def test_impossible_options_are_refused(change):
    with pytest.raises(MinidalleError):
        replace(TINY, **change)


def test_it_memorises_eight_pairs_and_draws_them_again():
    torch.manual_seed(0)
    config = DALLEConfig(12, 16, 4, (3, 3), width=32, layers=2, heads=4, text_weight=0.125)
    model = DALLE(config)
    text, image = torch.randint(1, 12, (8, 4)), torch.randint(0, 16, (8, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        losses = model.loss(text, image)
        losses["loss"].backward()
        optimizer.step()
    assert losses["image"] < 0.01
    assert torch.equal(greedy(model.eval(), text, length=9), image)


@pytest.mark.parametrize("cls, config", [(DALLE, DALLEConfig), (DALLEMini, DALLEMiniConfig)])
def test_a_weight_scales_the_gradient_of_its_image(cls, config):
    sizes = {"text_vocabulary": 11, "image_vocabulary": 13, "text_length": 5, "grid": (2, 3)}
    start = {"start": 13} if cls is DALLEMini else {}
    model, (text, image) = cls(config(**sizes, **start, width=8, layers=1, heads=2)).eval(), pair(3)
    weight = torch.tensor([2.0, -1.0, 0.0])

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return model.head.weight.grad.clone()

    whole = gradient(model.loss(text, image, weight)["loss"])
    alone = [gradient(model.nats(text[i : i + 1], image[i : i + 1]).sum()) for i in range(3)]
    expected = sum(w * g for w, g in zip(weight, alone, strict=True)) / (3 * 6)
    assert torch.allclose(whole, expected, atol=1e-6)
    same = [float(model.loss(text, image, w)["loss"].detach()) for w in (None, torch.ones(3))]
    assert same[0] == pytest.approx(same[1])
