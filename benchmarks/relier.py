"""Relier : entraîner un CLIP, plonger images et légendes, classer des images d'après une légende.

Les deux pairs ont nos poids et nos légendes, celles du livre : une dizaine de jetons sur les 33 de leur
contexte. open_clip les lit toujours toutes entières ; transformers reçoit un lot coupé à la plus longue ; nous
allons par paquets de longueurs voisines.

Exemple : python benchmarks/relier.py train --quick
"""

from harness import Bench, Run

bench = Bench(__doc__)

SIZE, BATCH = 64, 64


def parts(batch: int):
    """Notre CLIP, à Transformer des deux côtés, le segmenteur et un lot : images, légendes, jetons."""
    import numpy as np

    from minidalle import recipes

    source = recipes.clip_source(SIZE)
    tokenizer = recipes.build_tokenizer(source, captions=2000, vocabulary=1024)
    clip = recipes.build_clip({"tower": "vit"}, tokenizer, SIZE)
    images, captions = source.batch(np.random.default_rng(0), batch)
    rows = [tokenizer.encode(caption, clip.config.length).ids for caption in captions]
    return clip, tokenizer, images, captions, recipes.pad(rows, clip.config.length)


# --- train ----------------------------------------------------------------------------------------


@bench.row("train")
def train(run: Run) -> None:
    """Un pas d'entraînement : perte, passe arrière, AdamW, réglé de même des deux côtés."""
    run.peer("open_clip", "open_clip_torch")
    import torch
    from open_clip.loss import ClipLoss

    from minidalle.generation import to_tensor
    from minidalle.models.clip import closed
    from minidalle.models.clip_peers import to_open_clip

    ours, _, pixels, _, texts = parts(BATCH)
    peer, peer_loss, ended = to_open_clip(ours).train(), ClipLoss(), closed(texts, ours.config.vocabulary)
    images = to_tensor(pixels)
    ours.train()
    # Un taux nul d'abord : rien ne bouge avant la vérification.
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.0, weight_decay=0.0) for m in (ours, peer)]

    def step(optimizer, loss) -> torch.Tensor:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def our_step() -> torch.Tensor:
        return step(optimizers[0], ours.loss(images, texts)["loss"])

    def peer_step() -> torch.Tensor:
        image, text = peer.encode_image(2 * images - 1, True), peer.encode_text(ended, True)
        return step(optimizers[1], peer_loss(image, text, peer.logit_scale.exp()))

    torch.testing.assert_close(our_step(), peer_step(), rtol=1e-4, atol=1e-4)
    mine, theirs = ours.image.patches.weight.grad, peer.visual.conv1.weight.grad
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 1e-5
    run.compare("train", ours=our_step, peer=peer_step, peer_name="open_clip", unit="couples/s", work=BATCH)


# --- embed, rank ----------------------------------------------------------------------------------


@bench.row("embed")
def embed(run: Run) -> None:
    """Images et légendes en vecteurs, des pixels et des jetons aux vecteurs de norme 1."""
    peer, ours, _, pixels, _, texts = with_transformers(run, 4 * BATCH)
    import torch

    from minidalle.generation import to_tensor

    images, count = to_tensor(pixels), len(pixels)

    @torch.inference_mode()
    def embed_ours() -> torch.Tensor:
        return torch.cat([ours.encode_image(images), ours.encode_text(texts)])

    def embed_peer() -> torch.Tensor:
        return torch.cat(peer(images, texts))

    torch.testing.assert_close(embed_ours(), embed_peer(), rtol=1e-4, atol=1e-4)
    run.compare(
        "embed", ours=embed_ours, peer=embed_peer, peer_name="transformers", unit="couples/s", work=count
    )


@bench.row("rank")
def rank(run: Run) -> None:
    """512 images classées d'après une légende, en un appel ; avec --memory, ce qu'il prend au plus fort."""
    peer, ours, tokenizer, pixels, captions, texts = with_transformers(run, 512)
    import torch

    from minidalle import recipes

    def rank_ours() -> torch.Tensor:
        text = recipes.embed_texts(ours, tokenizer, captions[:1])
        return (recipes.embed_images(ours, pixels) @ text[0]).argsort(descending=True)

    def rank_peer() -> torch.Tensor:
        image, text = peer(recipes.to_tensor(pixels), texts[:1])
        return (image @ text[0]).argsort(descending=True)

    if len({*rank_ours()[:10].tolist()} & {*rank_peer()[:10].tolist()}) < 9:
        raise RuntimeError("transformers ne classe pas ces images comme nous, aux mêmes poids.")
    run.compare(
        "rank", ours=rank_ours, peer=rank_peer, peer_name="transformers", unit="images/s", work=len(pixels)
    )


def with_transformers(run: Run, batch: int):
    """`parts`, précédé du plongement de transformers : (images, jetons) → vecteurs de norme 1 des deux sortes."""
    run.peer("transformers")
    import torch

    from minidalle.models.clip import closed
    from minidalle.models.clip_peers import to_transformers

    ours, *rest = parts(batch)
    ours.eval()
    peer, end = to_transformers(ours), ours.config.vocabulary

    @torch.inference_mode()
    def embed(images, texts) -> tuple:
        ended = closed(texts, end)[:, : int((texts != 0).sum(1).max()) + 1]
        out = peer(input_ids=ended, pixel_values=2 * images - 1)
        return out.image_embeds, out.text_embeds

    return embed, ours, *rest


if __name__ == "__main__":
    raise SystemExit(bench.main())
