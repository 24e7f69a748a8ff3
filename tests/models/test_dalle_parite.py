"""Notre DALL·E chez dalle-pytorch et chez transformers : mêmes poids, mêmes logits, mêmes jetons écrits."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.sampling import greedy, sample

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = {"text_vocabulary": 13, "image_vocabulary": 17, "text_length": 6, "grid": (4, 4), "width": 32}
CONFIG = DALLEConfig(**SIZES, layers=3, heads=4, text_weight=0.125, positions="1d")


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(BENCHMARKS))
    module = importlib.import_module("dessiner_peers")
    sys.path.pop(0)
    return module


@pytest.fixture(scope="module")
def twins(peers):
    """Le nôtre et celui de dalle-pytorch ; normalisations et constantes ne sont pas celles de départ."""
    try:
        peers.import_dalle_pytorch()
    except ImportError as missing:
        pytest.skip(f"dalle-pytorch manque ({missing})")
    torch.manual_seed(0)
    ours, peer = peers.twins(CONFIG, scale=8)
    shake(ours)
    peers._copy(ours, peer)
    return ours, peer


@torch.no_grad()
def shake(ours):
    for vector in (p for p in ours.decoder.blocks.parameters() if p.ndim == 1):
        vector.add_(0.3 * torch.randn_like(vector))
    ours.decoder.norm.weight.add_(0.3 * torch.randn_like(ours.decoder.norm.weight))
    for block in ours.decoder.blocks:
        block.attention.queries_keys_values.bias.zero_()  # dalle-pytorch n'en a pas
    for table in (ours.text_embedding, ours.padding, ours.image_embedding, ours.head):
        table.weight.mul_(50)  # pour que les jetons écrits varient


def pairs(count=5):
    """Des légendes de longueurs inégales, de même premier mot, et des images."""
    random = torch.Generator().manual_seed(1)
    text = torch.randint(1, 13, (count, 6), generator=random)
    text[:, 0] = 1
    for row, length in enumerate([6, 1, 3, 5, 2]):
        text[row, length:] = 0
    return text, torch.randint(17, (count, 16), generator=random)


def test_stubs_do_not_stay(peers, twins):
    stubs = [sys.modules[name] for name in peers._STUBS if name in sys.modules]
    assert all(hasattr(module, "__file__") for module in stubs)


@torch.no_grad()
def test_every_logit_is_that_of_dalle_pytorch(peers, twins):
    ours, peer = twins
    text, image = pairs()
    theirs = peer(peers.peer_text(CONFIG, text), image)[:, 6:, peer.num_text_tokens :]
    assert theirs.std() > 0.1 and (theirs[0] - theirs[1]).abs().max() > 0.05  # la légende se voit
    torch.testing.assert_close(ours(text, image), theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_text_logits_too(peers, twins):
    ours, peer = twins
    text, image = pairs()
    theirs = peer(peers.peer_text(CONFIG, text), image)[:, :5, :13]
    written = ours._stream(text, image)[:, :5]
    torch.testing.assert_close(ours.text_head(written), theirs, rtol=1e-5, atol=1e-5)


def test_image_loss_and_its_slopes(peers, twins):
    """Légendes sans remplissage, qu'il apprend aussi à prédire : à part d'image seule, la perte est la nôtre."""
    ours, peer = twins
    text, image = pairs()
    loss = ours.loss(text, image)["image"]
    theirs = peer(peers.peer_text(CONFIG, text), image)[:, 6:, peer.num_text_tokens :].transpose(1, 2)
    theirs = torch.nn.functional.cross_entropy(theirs, image)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(loss, [ours.image_embedding.weight])
    (other,) = torch.autograd.grad(theirs, [peer.image_emb.weight])
    torch.testing.assert_close(mine[:-1], other, rtol=1e-4, atol=1e-6)


def test_its_cache_really_works(peers, twins):
    """Les mêmes jetons avec et sans cache, et une position lue à la fois au lieu de toutes."""
    ours, peer = twins
    text = pairs()[0]
    lengths = []
    hook = peer.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    runs = {
        cached: peer.generate_images(peers.peer_text(CONFIG, text), filter_thres=1.0, use_cache=cached)
        for cached in (False, True)
    }
    hook.remove()
    assert torch.equal(runs[False], runs[True])
    assert lengths[:16] == list(range(7, 23)) and lengths[16:] == [7] + [1] * 15
    assert torch.equal(runs[True], greedy(ours, text, length=16))
    assert len({*runs[True].flatten().tolist()}) > 3


def test_gates_that_are_always_open_can_go(peers, twins):
    torch.manual_seed(0)
    _, peer = peers.twins(CONFIG, scale=8)
    text, image = pairs()
    with torch.no_grad():
        before = peer(peers.peer_text(CONFIG, text), image)
        count = sum(p.numel() for p in peer.parameters())
        after = peers.without_gates(peer)(peers.peer_text(CONFIG, text), image)
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)
    assert count - sum(p.numel() for p in peer.parameters()) == 3 * (4 * 32 * 32 + 4 * 32)


def test_writer_guides_where_the_package_erases_the_caption(peers, twins):
    ours, peer = twins
    text = pairs()[0]
    dice = lambda: [torch.Generator().manual_seed(i) for i in range(5)]  # noqa: E731
    null = torch.zeros_like(text[:1])
    null[:, 0] = 1
    options = {"length": 16, "guidance": 3.0}
    mine = sample(ours, text, dice(), null=null, **options)
    writer = peers.PeerWriter(peer)
    to_peer = lambda rows: peers.peer_text(CONFIG, rows)  # noqa: E731
    assert torch.equal(mine, sample(writer, to_peer(text), dice(), null=to_peer(null), **options))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["1d", "2d"])
def test_gpt2_of_transformers_reads_our_stream(peers, positions):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = DALLEConfig(**SIZES, layers=3, heads=4, positions=positions)
    ours = DALLE(config).eval()
    shake(ours)
    for matrix in (p for p in ours.decoder.parameters() if p.ndim == 2):
        matrix.mul_(8)
    for block in ours.decoder.blocks:
        block.attention.queries_keys_values.bias.normal_()
    peer = peers.gpt2(ours)
    text, image = pairs()
    logits = peer(peers.gpt2_stream(config, text, image)).logits[:, 6:]
    assert logits.std() > 0.1 and (logits[0] - logits[1]).abs().max() > 0.05
    torch.testing.assert_close(ours(text, image), logits, rtol=1e-5, atol=1e-5)
    prompt = peers.gpt2_stream(config, text)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 16, "do_sample": False}
    written = peer.generate(prompt, **options)[:, 7:]
    assert torch.equal(written, greedy(ours, text, length=16))


def test_min_dalle_writes_the_same_guided_image(peers):
    try:
        peers.import_min_dalle()
    except ImportError as missing:
        pytest.skip(f"min-dalle manque ({missing})")
    assert torch.is_grad_enabled()
    config = peers.DALLEMiniConfig(20, 30, text_length=8, grid=(16, 16), width=128, heads=2, layers=2, pad=1)
    torch.manual_seed(0)
    ours, write = peers.mini_twins(config, scale=8)
    text, null = torch.tensor([[0, 5, 6, 2, 1, 1, 1, 1]]), torch.tensor([[0, 2, 1, 1, 1, 1, 1, 1]])
    options = {"length": 8, "guidance": 1.5, "top_k": 1, "null": null}
    mine = sample(ours, text.expand(3, -1), [torch.Generator() for _ in range(3)], **options)
    assert torch.equal(mine, write(text, null, 3, 8, 1.5)) and len({*mine[0].tolist()}) > 3
