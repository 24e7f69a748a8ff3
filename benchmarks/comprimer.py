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


@bench.row("vqgan-train")
def vqgan_train(run: Run) -> None:
    """Un pas des deux joueurs, aux mêmes poids : nos pertes en une passe, contre les deux tours de taming."""
    for module in ("diffusionmodules.model", "vqvae.quantize", "losses.vqperceptual"):
        run.peer(f"taming.modules.{module}", "taming-transformers-rom1504")
    import torch

    from minidalle.models.vqgan import VQGAN, VQGANConfig

    batch, size, rate = 4, 64, 1e-4
    torch.manual_seed(0)
    config = VQGANConfig(
        channels=32,
        multipliers=(1, 1, 2, 4),
        blocks=1,
        groups=32,
        grid_channels=64,
        code_dim=64,
        decay=0.0,
        dead_below=0.0,
        init="uniform",
        perceptual=0.0,  # taming y mettrait un VGG à télécharger
        discriminator_width=32,
    )
    ours = VQGAN(config).train()
    peer = taming_vqgan(config, size).train()
    state = peer.state_dict()
    state["quantizer.codebook"] = state.pop("quantize.embedding.weight")
    state = {key.replace("loss.", ""): tensor for key, tensor in state.items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    if unexpected or {"quantizer.counts", "quantizer.started", "step"} != {*missing}:
        raise RuntimeError(f"Les deux VQGAN n'ont pas la même architecture : {missing}, {unexpected}.")

    images = torch.rand(batch, 3, size, size)
    options = {"lr": 0.0, "betas": (0.5, 0.9)}  # rien ne bouge avant la vérification
    ours_optimizer = torch.optim.Adam(ours.parameters(), **options)
    critic = list(peer.loss.parameters())
    painter = [p for name, p in peer.named_parameters() if not name.startswith("loss")]
    players = (painter, torch.optim.Adam(painter, **options)), (critic, torch.optim.Adam(critic, **options))

    def our_step() -> list[torch.Tensor]:
        losses = ours.loss(images)
        ours_optimizer.zero_grad()
        losses["loss"].backward()
        ours_optimizer.step()
        return [losses["loss"].detach(), losses["discriminator"]]

    def peer_step() -> list[torch.Tensor]:
        """Ce que fait Lightning 1 de `VQModel.training_step` : un tour par optimiseur, l'autre joueur figé."""
        values = []
        for turn, (parameters, optimizer) in enumerate(players):
            peer.requires_grad_(False)
            for parameter in parameters:
                parameter.requires_grad_(True)
            painted, codebook = peer(2 * images - 1)
            last = peer.decoder.conv_out.weight
            loss, _ = peer.loss(codebook, 2 * images - 1, painted, turn, 0, last_layer=last)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
        return values

    (total, ours_critic), (painting, peer_critic) = our_step(), peer_step()
    torch.testing.assert_close(total - ours_critic, painting, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours_critic, peer_critic, rtol=1e-4, atol=1e-5)
    for optimizer in (ours_optimizer, *(optimizer for _, optimizer in players)):
        optimizer.param_groups[0]["lr"] = rate
    run.compare(
        "vqgan-train",
        ours=our_step,
        peer=peer_step,
        peer_name="taming-transformers",
        unit="images/s",
        work=batch,
    )


def taming_vqgan(config, size: int):
    """`VQModel` de taming sans Lightning, et sa perte sans LPIPS : les classes elles-mêmes, montées à la main."""
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
    from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator, hinge_d_loss
    from taming.modules.vqvae.quantize import VectorQuantizer2
    from torch import nn

    class Loss(VQLPIPSWithDiscriminator):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.discriminator = NLayerDiscriminator(
                ndf=config.discriminator_width, n_layers=config.discriminator_layers
            ).apply(weights_init)
            self.perceptual_weight, self.codebook_weight, self.disc_factor = 0.0, 1.0, 1.0
            self.discriminator_weight, self.discriminator_iter_start = config.adversarial, 0
            self.disc_conditional, self.disc_loss = False, hinge_d_loss

    class VQModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {
                "ch": config.channels,
                "ch_mult": config.multipliers,
                "num_res_blocks": config.blocks[0],
                "attn_resolutions": [size // 2**level for level in config.attention],
                "resolution": size,
                "z_channels": config.grid_channels,
                "in_channels": 3,
                "out_ch": 3,
                "double_z": False,
            }
            self.encoder, self.decoder = Encoder(**sizes), Decoder(**sizes)
            self.quantize = VectorQuantizer2(config.codes, config.code_dim, config.commitment, legacy=False)
            self.quant_conv = nn.Conv2d(config.grid_channels, config.code_dim, 1)
            self.post_quant_conv = nn.Conv2d(config.code_dim, config.grid_channels, 1)
            self.loss = Loss()

        def forward(self, images):
            vectors, codebook, _ = self.quantize(self.quant_conv(self.encoder(images)))
            return self.decoder(self.post_quant_conv(vectors)), codebook

    return VQModel()


if __name__ == "__main__":
    raise SystemExit(bench.main())
