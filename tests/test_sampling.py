"""Tirage des jetons."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.transformer import Transformer, TransformerConfig
from minidalle.sampling import draw, probabilities, sample

CONFIG = TransformerConfig(
    text_vocabulary=7, image_vocabulary=9, text_length=3, grid=(2, 2), width=16, layers=2, heads=2
)


def model():
    torch.manual_seed(0)
    built = Transformer(CONFIG).eval()
    with torch.no_grad():
        built.head.weight.mul_(40)
    return built


def generators(n, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


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


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_image_does_not_depend_on_its_batch(batch):
    text = torch.tensor([[1, 2, 0]])
    alone = sample(model(), text, generators(1, 4))
    together = sample(model(), text.expand(batch, -1), generators(batch, 4))
    assert torch.equal(alone[0], together[0])
    if batch > 1:
        assert not torch.equal(together[0], together[1])


def test_top_1_is_greedy():
    text = torch.tensor([[1, 2, 0]])
    tokens = sample(model(), text, generators(1), top_k=1)
    logits = model()(text, tokens)
    assert torch.equal(logits.argmax(-1).view(1, 2, 2), tokens)


def test_progress_sees_every_token():
    seen = []
    text = torch.tensor([[1, 2, 0]])
    tokens = sample(model(), text, generators(1), progress=lambda i, t: seen.append((i, t[0, :i].tolist())))
    assert [i for i, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == tokens.flatten().tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "Température impossible"),
        ({"temperature": -1}, "Température impossible"),
        ({"temperature": float("nan")}, "Température impossible"),
        ({"top_k": 0}, "Top-k impossible"),
        ({"top_p": 0}, "Top-p impossible"),
        ({"top_p": 1.5}, "Top-p impossible"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(MinidalleError, match=message):
        probabilities(torch.zeros(4), **options)
    with pytest.raises(MinidalleError, match=message):
        sample(model(), torch.zeros(1, 3, dtype=torch.int64), generators(1), **options)
