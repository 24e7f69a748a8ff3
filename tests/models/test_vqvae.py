"""VQ-VAE : quantificateur, gradient, dictionnaire, formes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.errors import MinidalleError
from minidalle.models.vqvae import VQVAE, VectorQuantizer, VQVAEConfig

TINY = VQVAEConfig(channels=(8, 12), blocks=1, codes=16, code_dim=4)


def tiny(config=TINY, seed=0):
    torch.manual_seed(seed)
    return VQVAE(config)


def quantizer(codes=8, dim=3, **options):
    torch.manual_seed(0)
    return VectorQuantizer(codes, dim, **options)


# --- quantificateur ---


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 999))
def test_nearest_is_nearest(n, codes, dim, seed):
    torch.manual_seed(seed)
    q = VectorQuantizer(codes, dim)
    q.codebook.mul_(torch.rand(codes, 1) * 5)  # des codes de longueurs très différentes
    flat = torch.randn(n, dim)
    expected = torch.cdist(flat.double(), q.codebook.double())
    got = q.nearest(flat)
    assert got.shape == (n,) and 0 <= got.min() <= got.max() < codes
    assert torch.allclose(expected.gather(1, got[:, None])[:, 0], expected.min(1).values, atol=1e-4)


def test_values_are_codes_and_gradients_pass_straight_through():
    q = quantizer().eval()
    vectors = torch.randn(2, 5, 3, requires_grad=True)
    out = q(vectors)
    assert out.vectors.shape == (2, 5, 3) and out.tokens.shape == (2, 5)
    assert torch.allclose(out.vectors, q.codebook[out.tokens], atol=1e-6)
    weights = torch.randn_like(out.vectors)
    (out.vectors * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)


def test_commitment_pulls_the_vectors_towards_their_codes():
    q = quantizer().eval()
    vectors = torch.randn(6, 3, requires_grad=True)
    out = q(vectors)
    code = q.codebook[out.tokens]
    assert torch.allclose(out.commitment, (vectors - code).square().mean())
    (gradient,) = torch.autograd.grad(out.commitment, vectors)
    assert torch.allclose(gradient, 2 * (vectors - code).detach() / vectors.numel(), atol=1e-6)


def test_perplexity_counts_the_codes_in_use():
    q = quantizer(4, 2).eval()
    assert q(q.codebook.clone()).perplexity == pytest.approx(4, abs=1e-4)
    assert q(q.codebook[:1].repeat(9, 1)).perplexity == pytest.approx(1, abs=1e-4)


def test_codebook_follows_a_moving_average_with_laplace_smoothing():
    q = quantizer(2, 2, decay=0.9, dead_below=0)
    q.started.fill_(True)
    q.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
    q.counts.copy_(torch.tensor([4.0, 4.0]))
    q.sums.copy_(q.codebook * 4)
    q.train()(torch.tensor([[1.0, 0.0], [3.0, 0.0], [9.0, 10.0]]))
    counts = torch.tensor([0.9 * 4 + 0.1 * 2, 0.9 * 4 + 0.1 * 1])
    sums = torch.tensor([[0.1 * 4, 0.0], [0.9 * 40 + 0.1 * 9, 0.9 * 40 + 0.1 * 10]])
    smoothed = (counts + 1e-5) / (counts.sum() + 2e-5) * counts.sum()
    assert torch.allclose(q.counts, counts) and torch.allclose(q.sums, sums)
    assert torch.allclose(q.codebook, sums / smoothed[:, None], atol=1e-6)


def test_codes_start_from_the_first_batch():
    q = quantizer(6, 2)
    batch = torch.randn(50, 2) + 100
    q.train()(batch)
    assert q.started and (torch.cdist(q.codebook, batch).min(1).values < 0.5).all()


def test_dead_codes_come_back_among_the_vectors_of_the_batch():
    q = quantizer(3, 2, decay=0.5, dead_below=0.1)
    q.started.fill_(True)
    q.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [500.0, 500.0]]))
    q.counts.copy_(torch.tensor([1.0, 1.0, 0.15]))
    q.sums.copy_(q.codebook * q.counts[:, None])
    batch = torch.rand(20, 2)
    q.train()(batch)
    assert q.codebook[2].abs().max() <= 1.01 and q.counts[2] == 1


def test_mixed_precision_chooses_the_same_codes():
    q = quantizer(256, 16).eval()
    vectors = torch.randn(500, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = q(vectors).tokens
    assert torch.equal(mixed, q(vectors).tokens)


def test_evaluation_moves_nothing():
    q = quantizer().eval()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    q(torch.randn(30, 3))
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())


# --- modèle entier ---


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_shapes(batch, rows, columns):
    model = tiny().eval()
    images = torch.rand(batch, 3, rows * 4, columns * 4)
    tokens = model.encode(images)
    assert tokens.shape == (batch, rows, columns) and tokens.dtype == torch.int64
    painted = model.decode(tokens)
    assert painted.shape == images.shape and 0 <= painted.min() <= painted.max() <= 1


def test_tokens_keep_the_layout_of_the_image():
    """La case (i, j) de la grille ne dépend que des pixels voisins de (i, j), et les repeint eux."""
    model = tiny(VQVAEConfig(channels=(8, 12), blocks=0, codes=64, code_dim=4)).eval()
    torch.manual_seed(1)
    images = torch.rand(1, 3, 32, 16)
    changed = images.clone()
    changed[..., :4, 12:] = 1 - changed[..., :4, 12:]
    moved = model._vectors(images) != model._vectors(changed)
    rows, columns = torch.nonzero(moved[0].any(-1), as_tuple=True)
    assert set(rows.tolist()) <= {0, 1} and set(columns.tolist()) <= {2, 3} and len(rows)
    tokens = torch.zeros(1, 8, 4, dtype=torch.int64)
    other = tokens.clone()
    other[0, 7, 0] = 1
    painted = (model.decode(tokens) != model.decode(other))[0].any(0)
    where = torch.nonzero(painted)
    assert where[:, 0].min() >= 20 and where[:, 1].max() <= 11


def test_an_image_does_not_depend_on_its_batch():
    model = tiny().eval()
    images = torch.rand(5, 3, 16, 16)
    together = model.encode(images)
    assert torch.equal(together, torch.cat([model.encode(i[None]) for i in images]))


def test_decode_of_encode_is_the_reconstruction():
    model = tiny().eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(model.decode(model.encode(images)), model(images)[0].clamp(0, 1), atol=1e-5)


def test_every_part_learns_and_the_loss_falls():
    model = tiny().train()
    images = torch.rand(8, 3, 1, 1).expand(8, 3, 16, 16)  # huit aplats
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        loss = model.loss(images)["loss"]
        optimizer.zero_grad()
        loss.backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim > 1
        )
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_encoder_learns_from_the_reconstruction():
    model = tiny().train()
    model(torch.rand(4, 3, 16, 16))
    painted, _ = model(torch.rand(4, 3, 16, 16))
    painted.sum().backward()
    assert model.encoder.layers[0].weight.grad.abs().sum() > 0


def test_loss_is_reconstruction_plus_weighted_commitment():
    model = tiny().eval()
    images = torch.rand(2, 3, 16, 16)
    losses = model.loss(images)
    painted, quantized = model(images)
    reconstruction = (painted - images).abs().mean() + (painted - images).square().mean()
    assert torch.allclose(losses["loss"], reconstruction + 0.25 * quantized.commitment)


@pytest.mark.parametrize("shape", [(1, 3, 10, 16), (1, 3, 16, 10), (1, 1, 16, 16), (3, 16, 16)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(MinidalleError, match="multiples de 4"):
        tiny().encode(torch.rand(shape))


@pytest.mark.parametrize("token", [-1, 16])
def test_tokens_out_of_the_codebook_are_refused(token):
    with pytest.raises(MinidalleError, match="0 à 15"):
        tiny().decode(torch.full((1, 2, 2), token))


def test_impossible_sizes_are_refused():
    for options in ({"codes": 0}, {"code_dim": 0}, {"channels": (0,)}, {"channels": ()}):
        with pytest.raises((MinidalleError, TypeError)):
            VQVAEConfig(**options)
