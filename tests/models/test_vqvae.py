"""VQ-VAE : quantificateur, gradient, dictionnaire, formes, parité avec vector-quantize-pytorch."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.checkpoints import load_model
from minidalle.errors import MinidalleError
from minidalle.models.vqvae import (
    VQVAE,
    VectorQuantizer,
    VQVAEConfig,
    codebook_loss,
    commitment_loss,
    reconstruction_loss,
    straight_through,
)

TINY = VQVAEConfig(channels=(8, 12), blocks=1, codes=16, code_dim=4)


def tiny(config=TINY, seed=0):
    torch.manual_seed(seed)
    return VQVAE(config)


def quantizer(codes=8, dim=3, **options):
    torch.manual_seed(0)
    return VectorQuantizer(codes, dim, **options)


# --- pertes ---


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("loss", [commitment_loss, codebook_loss, reconstruction_loss])
def test_gradients_of_the_losses(loss):
    """Chaque perte n'a de gradient que vers celui qu'elle attire ; l'autre est une constante."""
    torch.manual_seed(0)
    first, second = doubles(5, 3), doubles(5, 3)
    moved, other = (second, first) if loss is codebook_loss else (first, second)
    other.requires_grad_(False)
    assert torch.autograd.gradcheck(loss, (first, second))
    other.requires_grad_(True)
    if loss is not reconstruction_loss:
        grads = torch.autograd.grad(loss(first, second), (moved, other), allow_unused=True)
        assert torch.allclose(grads[0], 2 * (moved - other) / 15) and grads[1] is None


def test_losses_have_their_closed_forms():
    a, b = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    assert commitment_loss(a, b) == codebook_loss(a, b) == 2.5
    assert reconstruction_loss(a, b) == 1.5 + 2.5


def test_straight_through_copies_the_gradient_around_the_step():
    vectors, codes, slopes = doubles(4, 3), doubles(4, 3), torch.randn(4, 3, dtype=torch.float64)
    out = straight_through(vectors, codes)
    assert torch.allclose(out, codes)
    (out * slopes).sum().backward()
    assert torch.equal(vectors.grad, slopes) and codes.grad is None


# --- quantificateur ---


@given(st.integers(1, 1100), st.integers(1, 9), st.integers(1, 5), st.integers(0, 999))
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


@pytest.mark.parametrize("decay", [0.98, 0])
def test_codes_start_from_the_first_batch(decay):
    q = quantizer(6, 2, decay=decay)
    batch = torch.randn(50, 2) + 100
    q.train()(batch)
    assert q.started and (torch.cdist(q.codebook, batch).min(1).values < 0.5).all()
    q.train()(-batch)
    assert (q.codebook > 0).all(), "le départ n'a lieu qu'une fois"


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_start_puts_the_codes_on_the_means(seed):
    """Un amas vingt fois plus petit que l'autre : deux vecteurs du lot, tirés au hasard, le manqueraient."""
    torch.manual_seed(seed)
    q = VectorQuantizer(2, 2, init="kmeans", decay=0, dead_below=0)
    large, small = torch.randn(100, 2), torch.randn(5, 2) + 20
    q.train()(torch.cat([large, small]))
    means = torch.stack([large.mean(0), small.mean(0)])
    codes = q.codebook.detach()
    torch.testing.assert_close(codes[codes[:, 0].argsort()], means)


def test_kmeans_start_reduces_the_distortion():
    torch.manual_seed(1)
    batch = torch.randn(400, 3)
    found = {}
    for init in ("batch", "kmeans"):
        q = quantizer(16, 3, init=init, decay=0, dead_below=0)
        found[init] = q.train()(batch).commitment.item()
    assert found["kmeans"] < 0.9 * found["batch"]


def test_kmeans_start_with_more_codes_than_vectors():
    q = quantizer(40, 2, init="kmeans")
    out = q.train()(torch.randn(5, 2))
    assert torch.isfinite(q.codebook).all() and out.commitment < 1e-4


@pytest.mark.parametrize(("init", "largest"), [("normal", 9.0), ("uniform", 1 / 32)])
def test_random_starts_ignore_the_batch(init, largest):
    q = quantizer(32, 4, init=init, decay=0)
    before = q.codebook.detach().clone()
    assert q.started and before.abs().max() <= largest and before.std() > 0.4 * min(1, largest)
    q.train()(torch.randn(9, 4) + 100)
    assert torch.equal(q.codebook, before)


def test_codebook_learned_by_gradient():
    """Le gradient de la perte du dictionnaire ne va qu'aux codes choisis, vers leurs vecteurs."""
    q = quantizer(8, 3, decay=0, dead_below=0, init="normal").train()
    assert isinstance(q.codebook, torch.nn.Parameter) and "sums" not in q.state_dict()
    vectors = torch.randn(5, 3, requires_grad=True)
    out = q(vectors)
    assert torch.equal(out.codebook, out.commitment)
    gradient, other = torch.autograd.grad(out.codebook, (q.codebook, vectors), allow_unused=True)
    expected = torch.zeros_like(gradient)
    expected.index_add_(0, out.tokens, 2 * (q.codebook[out.tokens] - vectors).detach() / 15)
    assert torch.allclose(gradient, expected, atol=1e-6) and other is None
    (from_commitment,) = torch.autograd.grad(out.commitment, q.codebook, allow_unused=True)
    assert from_commitment is None


def test_codebook_followed_by_average_has_no_loss_and_no_gradient():
    q = quantizer().train()
    assert not list(q.parameters())
    assert q(torch.randn(5, 3)).codebook == 0


def test_dead_codes_come_back_among_the_vectors_of_the_batch():
    q = quantizer(3, 2, decay=0.5, dead_below=0.1)
    q.started.fill_(True)
    q.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [500.0, 500.0]]))
    q.counts.copy_(torch.tensor([1.0, 1.0, 0.15]))
    q.sums.copy_(q.codebook * q.counts[:, None])
    batch = torch.rand(20, 2)
    q.train()(batch)
    assert q.codebook[2].abs().max() <= 1.01 and q.counts[2] == 1


def test_dead_codes_come_back_when_the_codebook_is_learned_by_gradient():
    q = quantizer(2, 2, decay=0, dead_below=0.5, init="normal").train()
    with torch.no_grad():
        q.codebook.copy_(torch.tensor([[0.0, 0.0], [500.0, 500.0]]))
    for _ in range(60):
        q(torch.rand(20, 2))
    assert q.codebook.abs().max() <= 1 and isinstance(q.codebook, torch.nn.Parameter)


def test_no_code_comes_back_below_a_null_threshold():
    q = quantizer(2, 2, dead_below=0, init="normal").train()
    q.codebook[1] = q.sums[1] = 500.0
    for _ in range(600):
        q(torch.rand(20, 2))
    assert (q.codebook[1] > 100).all()


@pytest.mark.parametrize("decay", [0.98, 0])
def test_a_single_code_is_always_chosen(decay):
    out = quantizer(1, 3, decay=decay).train()(torch.randn(7, 3))
    assert (out.tokens == 0).all() and out.perplexity == 1


@pytest.mark.parametrize("vectors", [torch.zeros(0, 3), torch.tensor([[1.0, float("nan"), 0.0]])])
@pytest.mark.parametrize("decay", [0.98, 0])
def test_impossible_vectors_are_refused_and_move_nothing(vectors, decay):
    q = quantizer(decay=decay).train()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    with pytest.raises(MinidalleError, match="Vecteurs absents ou infinis"):
        q(vectors)
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [{"decay": 1}, {"decay": -0.1}, {"dead_below": -1}, {"init": "hasard"}, {"codes": 0}, {"dim": 0}],
)
def test_impossible_codebooks_are_refused(options):
    with pytest.raises(MinidalleError, match="Il faut un code|Départ « hasard » inconnu"):
        quantizer(**options)


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


# --- parité ---


def peer_of(q, beta, **options):
    """Le quantificateur de vector-quantize-pytorch, dans le même état que `q`."""
    peers = pytest.importorskip("vector_quantize_pytorch")
    codes, dim = q.codebook.shape
    peer = peers.VectorQuantize(
        dim, codes, commitment_weight=beta, rotation_trick=False, threshold_ema_dead_code=0, **options
    )
    with torch.no_grad():
        peer._codebook.embed.copy_(q.codebook[None])
        peer._codebook.embed_avg.copy_(q.codebook[None])
    return peer


def test_parity_of_the_followed_codebook():
    """Sorties, codes, engagement, gradient, puis tout l'état du dictionnaire, pendant huit lots."""
    q = quantizer(32, 8, decay=0.9, dead_below=0, init="normal").train()
    peer = peer_of(q, beta=0.25, decay=0.9)
    for _ in range(8):
        vectors = torch.randn(3, 40, 8, requires_grad=True)
        slopes = torch.randn_like(vectors)
        ours, (quantized, tokens, loss) = q(vectors), peer(vectors)
        assert torch.equal(ours.tokens, tokens)
        torch.testing.assert_close(ours.vectors, quantized, rtol=0, atol=1e-5)
        torch.testing.assert_close(0.25 * ours.commitment, loss.sum(), rtol=0, atol=1e-5)
        gradients = [
            torch.autograd.grad((values * slopes).sum() + extra, vectors)[0]
            for values, extra in ((ours.vectors, 0.25 * ours.commitment), (quantized, loss.sum()))
        ]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
        for mine, theirs in (("counts", "cluster_size"), ("sums", "embed_avg"), ("codebook", "embed")):
            torch.testing.assert_close(
                getattr(q, mine), getattr(peer._codebook, theirs)[0], rtol=0, atol=1e-5
            )


def test_parity_of_the_learned_codebook():
    """Le pair n'arrête pas les gradients : son engagement est la somme de nos deux pertes."""
    q = quantizer(32, 8, decay=0, dead_below=0, init="normal").train()
    peer = peer_of(q, beta=1.0, learnable_codebook=True, ema_update=False)
    vectors = torch.randn(3, 40, 8, requires_grad=True)
    ours, (quantized, tokens, loss) = q(vectors), peer(vectors)
    assert torch.equal(ours.tokens, tokens)
    torch.testing.assert_close(ours.vectors, quantized, rtol=0, atol=1e-5)
    mine = torch.autograd.grad(ours.commitment + ours.codebook, (vectors, q.codebook))
    theirs = torch.autograd.grad(loss.sum(), (vectors, peer._codebook.embed))
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(mine[1], theirs[1][0], rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("options", [{}, {"decay": 0}, {"decay": 0, "init": "kmeans"}])
def test_every_part_learns_and_the_loss_falls(options):
    model = tiny(replace(TINY, **options)).train()
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


def test_loss_of_a_learned_codebook_adds_its_own_at_full_weight():
    """β pondère l'engagement, pas le dictionnaire (le défaut de taming-transformers, `legacy=True`, les échange)."""
    model = tiny(replace(TINY, decay=0, init="normal", commitment=0.5)).train()
    images = torch.rand(2, 3, 16, 16)
    losses = model.loss(images)
    assert torch.allclose(losses["loss"], losses["reconstruction"] + 1.5 * losses["commitment"])
    losses["loss"].backward()
    (alone,) = torch.autograd.grad(model(images)[1].codebook, model.quantizer.codebook)
    assert torch.allclose(model.quantizer.codebook.grad, alone, atol=1e-6)
    assert set(losses) == {"loss", "reconstruction", "commitment", "perplexity"}


@pytest.mark.parametrize("shape", [(1, 3, 10, 16), (1, 3, 16, 10), (1, 1, 16, 16), (3, 16, 16)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(MinidalleError, match="multiples de 4"):
        tiny().encode(torch.rand(shape))


def test_pixels_that_are_not_numbers_are_refused():
    images = torch.rand(2, 3, 16, 16)
    images[1, 0, 3, 3] = float("nan")
    for method in ("encode", "loss"):
        with pytest.raises(MinidalleError, match="nombres finis"):
            getattr(tiny(), method)(images)


def test_an_empty_batch_is_encoded_but_teaches_nothing():
    model, images = tiny(), torch.zeros(0, 3, 8, 16)
    tokens = model.encode(images)
    assert tokens.shape == (0, 2, 4) and tokens.dtype == torch.int64
    assert model.decode(tokens).shape == images.shape
    with pytest.raises(MinidalleError, match="Lot vide"):
        model.loss(images)


@pytest.mark.parametrize("token", [-1, 16])
def test_tokens_out_of_the_codebook_are_refused(token):
    with pytest.raises(MinidalleError, match="0 à 15"):
        tiny().decode(torch.full((1, 2, 2), token))


@pytest.mark.parametrize("tokens", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(1, 2, 2)])
def test_tokens_that_are_not_a_grid_of_integers_are_refused(tokens):
    with pytest.raises(MinidalleError, match="donner des entiers"):
        tiny().decode(tokens)


@pytest.mark.parametrize(
    "options",
    [
        *({"codes": 0}, {"code_dim": 0}, {"channels": (0,)}, {"channels": ()}, {"blocks": -1}),
        *({"commitment": -1}, {"decay": 1}, {"dead_below": -1}, {"init": "hasard"}),
    ],
)
def test_impossible_sizes_are_refused(options):
    with pytest.raises(MinidalleError):
        VQVAEConfig(**options)


def test_one_code_makes_a_whole_model():
    model = tiny(replace(TINY, codes=1)).train()
    images = torch.rand(2, 3, 8, 8)
    assert torch.isfinite(model.loss(images)["loss"]) and (model.encode(images) == 0).all()


def test_older_weights_still_load():
    """Les poids d'avant `init` : leur configuration l'ignore."""
    model, _ = load_model("vqvae", "vqvae")
    older = {name: value for name, value in asdict(model.config).items() if name != "init"}
    assert VQVAEConfig(**older).init == "batch" and model.encode(torch.rand(1, 3, 64, 64)).shape == (1, 8, 8)
