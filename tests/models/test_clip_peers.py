"""Le même CLIP chez open_clip et transformers : mêmes vecteurs, mêmes logits, même perte, mêmes pentes."""

import pytest
import torch
from test_clip import some_images, some_texts, tiny

from minidalle.errors import MinidalleError
from minidalle.models.clip import closed
from minidalle.models.clip_peers import to_open_clip, to_transformers

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
both = pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])


def inputs():
    """Des légendes de longueurs inégales, dont une de la plus grande : le jeton de fin n'est pas au même endroit."""
    texts = some_texts(6)
    assert len({*(texts != 0).sum(1).tolist()}) > 2 and (texts != 0).all(1).any()
    return some_images(6), texts


@both
def test_open_clip(activation):
    from open_clip.loss import ClipLoss

    ours, (images, texts) = tiny(activation=activation), inputs()
    peer = to_open_clip(ours)
    ended = closed(texts, 13)
    image, text = peer.encode_image(2 * images - 1, True), peer.encode_text(ended, True)
    torch.testing.assert_close(ours.encode_image(images), image, **CLOSE)
    torch.testing.assert_close(ours.encode_text(texts), text, **CLOSE)
    torch.testing.assert_close(ours(images, texts), peer.get_logits(2 * images - 1, ended)[0], **CLOSE)
    loss, theirs = ours.loss(images, texts)["loss"], ClipLoss()(image, text, peer.logit_scale.exp())
    torch.testing.assert_close(loss, theirs, **CLOSE)
    loss.backward()
    theirs.backward()
    pairs = (
        (ours.logit_scale, peer.logit_scale),
        (ours.image.patches.weight, peer.visual.conv1.weight),
        (ours.text.embedding.tokens.weight, peer.token_embedding.weight),
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@both
def test_transformers(activation):
    ours, (images, texts) = tiny(activation=activation), inputs()
    peer = to_transformers(ours)
    out = peer(input_ids=closed(texts, 13), pixel_values=2 * images - 1, return_loss=True)
    torch.testing.assert_close(ours.encode_image(images), out.image_embeds, **CLOSE)
    torch.testing.assert_close(ours.encode_text(texts), out.text_embeds, **CLOSE)
    torch.testing.assert_close(ours(images, texts), out.logits_per_image, **CLOSE)
    torch.testing.assert_close(ours.loss(images, texts)["loss"], out.loss, **CLOSE)


def test_the_two_activations_differ():
    images, texts = inputs()
    a, b = (tiny(activation=name)(images, texts) for name in ("gelu", "quick_gelu"))
    assert 1e-4 < (a - b).abs().max() < 5


def test_only_a_transformer_reads_images_there():
    for build in (to_open_clip, to_transformers):
        with pytest.raises(MinidalleError, match="vit"):
            build(tiny(tower="resnet"))
