"""Socle : dessiner des scènes, écrire une image jeton par jeton.

Exemple : python benchmarks/socle.py scenes --quick
"""

import dataclasses

import numpy as np
from harness import Bench, Run

bench = Bench(__doc__)

SIZE = 64
SCENES = 256


# --- scenes ---------------------------------------------------------------------------------------


@bench.row("scenes", threads=(1,))  # ni l'un ni l'autre n'a de fils
def scenes(run: Run) -> None:
    """Nos vignettes dessinées une fois puis posées, contre Pillow qui redessine tout, lissé par 4×4."""
    from minidalle.data.scenes import render

    drawn = shape_scenes(SCENES)
    gap = np.mean([np.abs(render(s, SIZE).astype(int) - pillow_render(s)).mean() for s in drawn])
    if gap > 1.5:
        raise RuntimeError(f"Pillow ne dessine pas les mêmes scènes : {gap:.1f} niveaux d'écart en moyenne.")
    run.compare(
        "scenes",
        ours=lambda: [render(scene, SIZE) for scene in drawn],
        peer=lambda: [pillow_render(scene) for scene in drawn],
        peer_name="Pillow",
        unit="scènes/s",
        work=SCENES,
    )


def shape_scenes(n: int) -> list:
    """Scènes du livre, dont chaque émoji est remplacé par une forme : Pillow ne dessine pas les SVG."""
    from minidalle.data.scenes import COLOURS, SHAPES, sample_scenes

    rng = np.random.default_rng(0)

    def shaped(item):
        if item.kind in SHAPES:
            return item
        return dataclasses.replace(item, kind=rng.choice(list(SHAPES)), colour=rng.choice(list(COLOURS)))

    return [
        dataclasses.replace(scene, objects=tuple(map(shaped, scene.objects)))
        for scene in sample_scenes(rng, n, None)
    ]


def _curve(*points: tuple[float, float]) -> list[tuple[float, float]]:
    """Seize points d'une courbe de Bézier cubique."""
    t = np.linspace(0, 1, 16)[:, None]
    a, b, c, d = (np.array(p, float) for p in points)
    return [*map(tuple, (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d)]


# Sommets dans un carré de côté 100, comme dans minidalle.data.scenes.
POLYGONS = {
    "carré": [(8, 8), (92, 8), (92, 92), (8, 92)],
    "triangle": [(50, 6), (95, 92), (5, 92)],
    "étoile": [
        *((50, 3), (62, 36), (97, 37), (69, 59), (79, 93)),
        *((50, 73), (21, 93), (31, 59), (3, 37), (38, 36)),
    ],
    "croix": [
        *((34, 5), (66, 5), (66, 34), (95, 34), (95, 66), (66, 66)),
        *((66, 95), (34, 95), (34, 66), (5, 66), (5, 34), (34, 34)),
    ],
    "losange": [(50, 3), (90, 50), (50, 97), (10, 50)],
    "cœur": [
        *[(50, 93), (12, 53)],
        *_curve((12, 53), (-4, 33), (8, 8), (29, 8)),
        *_curve((29, 8), (40, 8), (47, 14), (50, 22)),
        *_curve((50, 22), (53, 14), (60, 8), (71, 8)),
        *_curve((71, 8), (92, 8), (104, 33), (88, 53)),
    ],
}


def pillow_render(scene) -> np.ndarray:
    """La scène par ImageDraw, 4 fois trop grande puis réduite : uint8 (64, 64, 3)."""
    from PIL import Image, ImageDraw

    from minidalle.data.scenes import BACKGROUNDS, COLOURS

    image = Image.new("RGB", (4 * SIZE, 4 * SIZE), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        side = 4 * round(item.side * SIZE)
        left, top = (round(4 * SIZE * centre - side / 2) for centre in (item.x, item.y))
        colour = COLOURS[item.colour]
        if item.texture == "uni":
            pillow_shape(draw, item.kind, left, top, side, colour)
            continue
        mask = Image.new("L", (side, side))
        pillow_shape(ImageDraw.Draw(mask), item.kind, 0, 0, side, 255)
        image.paste(pillow_texture(item.texture, side, colour), (left, top), mask)
    return np.asarray(image.reduce(4))


def pillow_shape(draw, kind: str, left: int, top: int, side: int, fill) -> None:
    if kind in POLYGONS:
        draw.polygon([(left + x * side / 100, top + y * side / 100) for x, y in POLYGONS[kind]], fill)
        return
    disc = [left + 0.05 * side, top + 0.05 * side, left + 0.95 * side, top + 0.95 * side]
    if kind == "anneau":
        draw.ellipse(disc, outline=fill, width=round(0.25 * side))
    else:
        draw.ellipse(disc, fill)


def pillow_texture(texture: str, side: int, colour: tuple[int, int, int]):
    """Carré de couleur unie, rayé ou semé de pois plus pâles."""
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (side, side), colour)
    draw = ImageDraw.Draw(tile)
    pale = tuple(round(255 - 0.28 * (255 - c)) for c in colour)
    count = max(1, round(side / 32))
    step = side / count
    for i in range(count):
        if texture == "rayé":
            for y in (i * step, (i + 0.5) * step):
                draw.rectangle([0, y, side, y + step / 4 - 1], pale)
            continue
        for j in range(count):
            for shift in (0.27, 0.77):
                x, y = (i + shift) * step, (j + shift) * step
                draw.ellipse([x - 0.2 * step, y - 0.2 * step, x + 0.2 * step, y + 0.2 * step], pale)
    return tile


# --- generate-1 -----------------------------------------------------------------------------------


@bench.row("generate-1")
def generate(run: Run) -> None:
    """Une image, jeton après jeton : mêmes couches, mêmes longueurs, un cache des deux côtés."""
    transformers = run.peer("transformers")
    import torch

    from minidalle.models.dalle import DALLE
    from minidalle.sampling import sample

    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    vocabulary = 1024
    config = DALLE.Config(text_vocabulary=vocabulary, image_vocabulary=vocabulary)
    ours = DALLE(config).eval()
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocabulary,
            n_positions=config.text_length + 1 + config.image_length,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    sizes = [sum(p.numel() for p in blocks.parameters()) for blocks in (ours.blocks, peer.transformer.h)]
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"Les deux décodeurs n'ont pas les mêmes couches : {sizes} paramètres.")

    text = torch.randint(1, vocabulary, (1, config.text_length))
    # Notre décodeur ajoute de lui-même le jeton de départ.
    prompt = torch.cat([text, torch.ones_like(text[:, :1])], dim=1)
    mask = torch.ones_like(prompt)
    generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def peer_sample() -> torch.Tensor:
        tokens = peer.generate(
            prompt,
            attention_mask=mask,
            max_new_tokens=config.image_length,
            do_sample=True,
            top_k=0,
            use_cache=True,
        )
        return tokens[:, prompt.shape[1] :]

    def our_sample() -> torch.Tensor:
        return sample(ours, text, [generator], length=config.image_length)

    if our_sample().shape != peer_sample().shape:
        raise RuntimeError("Les deux décodeurs n'écrivent pas le même nombre de jetons.")
    run.compare(
        "generate-1",
        ours=our_sample,
        peer=peer_sample,
        peer_name="transformers GPT-2",
        unit="jetons/s",
        work=config.image_length,
    )


if __name__ == "__main__":
    raise SystemExit(bench.main())
