"""CLIP : tours, perte, légendes fausses, échelle, plusieurs processus, mauvaises entrées."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, multiprocessing
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.clip import CLIP, CLIPConfig, QuickGELU, closed, contrastive_loss

SIZES = {
    "length": 7,
    "size": 8,
    "patch": 4,
    "channels": (6, 8),
    "image_width": 16,
    "text_width": 12,
    "dim": 10,
}
LAYERS = {"image_layers": 2, "text_layers": 2, "image_heads": 4, "text_heads": 3}
TINY = CLIPConfig(vocabulary=13, **SIZES, **LAYERS)


def tiny(**options):
    """Petit CLIP aux poids assez grands pour que l'attention ne soit pas uniforme, ni les biais nuls."""
    torch.manual_seed(0)
    model = CLIP(replace(TINY, **options)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "logit_scale":
                p.mul_(6) if p.ndim > 1 else p.add_(0.1 * torch.randn_like(p))
    return model


def some_images(n=4, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def some_texts(n=4, seed=0):
    """Légendes de 1 à 7 jetons."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 13, (n, 7), generator=g)
    return tokens * (torch.arange(7) < torch.randint(1, 8, (n, 1), generator=g))


def unit(n, seed, dtype=torch.float64):
    vectors = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.normalize(vectors, dim=-1)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_embeddings_have_norm_one_and_logits_are_scaled_cosines(tower):
    model, images, texts = tiny(tower=tower), some_images(3), some_texts(5)
    image, text = model.encode_image(images), model.encode_text(texts)
    assert image.shape == (3, 10) and text.shape == (5, 10)
    for vectors in (image, text):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        assert (vectors @ vectors.T - torch.eye(len(vectors))).abs().max() < 0.999, "tous confondus"
    torch.testing.assert_close(model(images, texts), image @ text.T / 0.07)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_every_pixel_and_where_it_is_count(tower):
    model, images = tiny(tower=tower), some_images(1)
    slopes = images.requires_grad_()
    model.encode_image(slopes)[0, 0].backward()
    assert (slopes.grad.abs() > 0).all()
    before, after = model.encode_image(images), model.encode_image(images.roll(4, -1))
    assert (before - after).abs().max() > 1e-3


def test_pixels_are_centred():
    """Les pairs et les poids publiés lisent des pixels de −1 à 1."""
    model, images, seen = tiny(), some_images(), []
    model.image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode_image(images)
    assert torch.equal(seen[0], 2 * images - 1)


def test_every_token_counts_up_to_the_end_token_and_no_padding():
    model = tiny()
    text = torch.tensor([[3, 4, 5, 6, 0, 0, 0]])
    reference = model.encode_text(text)
    for i in range(4):
        changed = text.clone()
        changed[0, i] += 1
        assert (model.encode_text(changed) - reference).abs().max() > 1e-4
    assert not torch.allclose(model.encode_text(text.roll(1, 0)[:, [1, 0, 2, 3]]), reference)
    # Le jeton de fin est lu à sa place : le même, plus loin, donnerait autre chose.
    assert closed(text, 13).tolist() == [[3, 4, 5, 6, 13, 0, 0, 0]]
    x = model.text.decoder(model.text.embedding(torch.tensor([[3, 4, 5, 6, 13]])))[:, -1]
    torch.testing.assert_close(reference, F.normalize(model.text_projection(x), dim=-1))


@settings(max_examples=25)
@given(st.integers(0, 99), st.integers(1, 7))
def test_padding_never_changes_an_embedding(seed, kept):
    model, texts = tiny(), some_texts(4, seed)
    texts[:, kept:] = 0
    short, alone = texts[:, :kept], torch.cat([model.encode_text(row[None]) for row in texts])
    torch.testing.assert_close(model.encode_text(texts), model.encode_text(short))
    torch.testing.assert_close(model.encode_text(F.pad(texts, (0, 5))), alone)


@settings(max_examples=25)
@given(st.permutations(range(4)), st.permutations(range(4)))
def test_shuffling_the_batch_shuffles_the_logits(rows, columns):
    model, images, texts = tiny(), some_images(), some_texts()
    logits = model(images, texts)[rows][:, columns]
    torch.testing.assert_close(model(images[rows], texts[columns]), logits)
    losses = model.loss(images, texts), model.loss(images[rows], texts[rows])
    torch.testing.assert_close(losses[0]["loss"], losses[1]["loss"])


def test_loss_is_the_mean_of_both_cross_entropies():
    model, images, texts = tiny(), some_images(), some_texts()
    logits = model(images, texts)
    by_hand = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    losses = model.loss(images, texts)
    torch.testing.assert_close(losses["loss"], by_hand)
    assert losses["accuracy"] == (logits.argmax(1) == torch.arange(4)).float().mean()
    assert losses["scale"].item() == pytest.approx(1 / 0.07)


def test_negatives_are_refused_by_every_image_and_ask_nothing_of_texts():
    model, images, texts, wrong = tiny(), some_images(), some_texts(), some_texts(3, seed=5)
    logits, wide = model(images, texts), model(images, torch.cat([texts, wrong]))
    by_hand = -(wide.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(model.loss(images, texts, wrong)["loss"], by_hand)
    nothing = model.loss(images, texts, wrong[:0])
    torch.testing.assert_close(nothing["loss"], model.loss(images, texts)["loss"])


def test_slopes_of_the_loss():
    image, text, wrong = (unit(n, seed).requires_grad_() for n, seed in ((4, 0), (4, 1), (2, 2)))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: contrastive_loss(*a)["loss"], (image, text, scale, wrong))
    # À la main : (softmax − identité) · texte, échelle comprise, de chacun des deux sens.
    logits = scale * image @ text.T
    gap = (logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(4)) / 8
    (slope,) = torch.autograd.grad(contrastive_loss(image, text, scale)["loss"], image)
    torch.testing.assert_close(slope, scale * gap @ text)


def test_quick_gelu():
    x = torch.linspace(-6, 6, 241)
    gap = (QuickGELU()(x) - F.gelu(x)).abs().max()
    assert 0.019 < gap < 0.0205  # l'écart maximal connu ; celui de x·σ(x) est dix fois plus grand
    torch.testing.assert_close(QuickGELU()(x), x / (1 + (-1.702 * x).exp()))


@settings(max_examples=25)
@given(st.floats(-3, 9))
def test_scale_never_passes_one_hundred_and_can_come_back(logarithm):
    model = tiny()
    with torch.no_grad():
        model.logit_scale.fill_(logarithm)
    assert model.scale.item() == pytest.approx(min(math.exp(logarithm), 100), rel=1e-5)
    model.loss(some_images(), some_texts())["loss"].backward()
    assert model.logit_scale.grad.abs() > 0


def test_bfloat16_keeps_the_cosines_in_single_precision():
    image, text = unit(4, 0, torch.float32), unit(4, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(image, text, torch.tensor(100.0))["loss"]
    assert torch.equal(loss, contrastive_loss(image, text, torch.tensor(100.0))["loss"])


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_it_learns_its_pairs(tower):
    torch.manual_seed(0)
    model, images, texts = CLIP(replace(TINY, tower=tower)), some_images(), some_texts()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = model.loss(images, texts)
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
    assert loss["accuracy"] == 1 and loss["loss"] < 0.1


# --- plusieurs processus --------------------------------------------------------------------------


def share(rank, results, store):
    """Un des deux processus : perte et pentes de sa moitié du lot."""
    distributed.init_process_group("gloo", store=distributed.FileStore(store, 2), rank=rank, world_size=2)
    mine = slice(3 * rank, 3 * rank + 3)
    image, text = (unit(6, seed)[mine].requires_grad_() for seed in (0, 1))
    wrong = unit(4, 2)[2 * rank : 2 * rank + 2].requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(image, text, scale, wrong)["loss"]
    loss.backward()
    # DistributedDataParallel divise par le nombre de processus.
    results[rank] = [loss.item(), *(p.grad.div(2).tolist() for p in (image, text, wrong)), scale.grad.item()]
    distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_slopes_of_one(tmp_path):
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(share, (results, str(tmp_path / "rendez-vous")), nprocs=2)
        first, second = results[0], results[1]
    image, text, wrong = (unit(n, seed).requires_grad_() for n, seed in ((6, 0), (6, 1), (4, 2)))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(image, text, scale, wrong)["loss"]
    loss.backward()
    assert first[0] == pytest.approx(loss.item()) == pytest.approx(second[0])
    for i, whole in enumerate((image, text, wrong), 1):
        torch.testing.assert_close(torch.tensor(first[i] + second[i], dtype=torch.float64), whole.grad)
    assert first[4] == pytest.approx(scale.grad.item()) == pytest.approx(second[4])


# --- mauvaises entrées ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[1] * 8], "trop longue : la couper à 7 jetons"),
        ([[1, 2], [0, 0]], "vide"),
        ([[0, 3]], "à droite"),
        ([[3, 0, 4]], "à droite"),
        ([[13]], "0 à 12"),
        ([[-1]], "0 à 12"),
        ([1, 2], r"\(B, L\)"),
        ([[1.0]], r"\(B, L\)"),
    ],
)
def test_bad_captions(texts, message):
    with pytest.raises(MinidalleError, match=message):
        tiny().encode_text(torch.tensor(texts))


def test_no_caption_at_all():
    with pytest.raises(MinidalleError, match="vide"):
        tiny().encode_text(torch.zeros(0, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 16, 16), "8 × 8"),
        (torch.rand(1, 1, 8, 8), "B, 3, H, W"),
        (torch.full((1, 3, 8, 8), math.nan), "finis"),
        (torch.zeros(0, 3, 8, 8), "Lot vide"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "flottants"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(MinidalleError, match=message):
        tiny().encode_image(images)


def test_one_caption_per_image():
    with pytest.raises(MinidalleError, match="une légende par image"):
        tiny().loss(some_images(3), some_texts(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tower": "vgg"}, "tour inconnue ; choisir parmi vit, resnet"),
        ({"activation": "relu"}, "activation inconnue"),
        ({"patch": 3}, "multiple de 3"),
        ({"patch": 0}, "au moins 1"),
        ({"tower": "resnet", "channels": (4, 4, 4)}, "multiple de 16"),
        ({"dim": 0}, "au moins 1"),
        ({"image_heads": 3}, "multiple"),
        ({"text_heads": 5}, "multiple"),
        ({"vocabulary": 0}, "au moins 1"),
        ({"text_layers": 0}, "au moins 1"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(MinidalleError, match=message):
        CLIP(replace(TINY, **options))
