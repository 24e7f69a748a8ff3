"""DALL·E en petit : causalité, cache, positions, apprentissage."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.dalle import DALLE, DALLEConfig

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
