"""Comprimer : quantifier des vecteurs, entraîner un VQGAN.

Exemple : python benchmarks/comprimer.py quantiser --quick
"""

from harness import Bench, Run

bench = Bench(__doc__)


# --- quantiser ------------------------------------------------------------------------------------


@bench.row("quantiser")
def quantiser(run: Run) -> None:
    """Un pas d'entraînement : plus proche code, pertes, moyenne mobile, codes morts, passe arrière."""
    peers = run.peer("vector_quantize_pytorch")
    import torch

    from minidalle.models.vqvae import VectorQuantizer

    count, dim, codes, decay, dead_below, beta = 4096, 64, 1024, 0.99, 0.05, 0.25
    torch.manual_seed(0)
    vectors = torch.randn(count, dim, requires_grad=True)
    slopes = torch.randn(count, dim)  # le gradient que rendrait un décodeur
    ours = VectorQuantizer(codes, dim, decay=decay, dead_below=dead_below, init="normal")
    # Le même travail : passage direct simple, mêmes seuils ; ni l'un ni l'autre ne saute d'étape.
    peer = peers.VectorQuantize(
        dim,
        codes,
        decay=decay,
        threshold_ema_dead_code=dead_below,
        rotation_trick=False,
        commitment_weight=beta,
    )
    with torch.no_grad():
        peer._codebook.embed.copy_(ours.codebook)
        peer._codebook.embed_avg.copy_(ours.sums)

    def our_step() -> tuple[torch.Tensor, ...]:
        out = ours(vectors)
        loss = (out.vectors * slopes).sum() + beta * out.commitment
        return out.vectors, out.tokens, loss, *torch.autograd.grad(loss, vectors)

    def peer_step() -> tuple[torch.Tensor, ...]:
        quantized, tokens, commitment = peer(vectors[None])
        loss = (quantized[0] * slopes).sum() + commitment.sum()
        return quantized[0], tokens[0], loss, *torch.autograd.grad(loss, vectors)

    a, b = our_step(), peer_step()
    if not torch.equal(a[1], b[1]):
        raise RuntimeError("Les deux quantificateurs ne choisissent pas les mêmes codes.")
    for mine, theirs in zip((*a, ours.codebook), (*b, peer.codebook), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    run.compare(
        "quantiser",
        ours=our_step,
        peer=peer_step,
        peer_name="vector-quantize-pytorch",
        unit="vecteurs/s",
        work=count,
    )


# --- vqgan-train ----------------------------------------------------------------------------------


if __name__ == "__main__":
    raise SystemExit(bench.main())
