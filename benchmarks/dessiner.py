"""Dessiner : écrire les jetons d'une image, apprendre à le faire, et ce que l'on sait après vingt minutes.

Les lignes `generate-…` écrivent le plus probable : notre DALL·E contre le plus rapide de dalle-pytorch et de GPT-2
(mêmes poids, mêmes jetons écrits), puis notre DALL·E mini contre BART (mêmes tailles) et, guidé, contre min-dalle
(mêmes poids, mêmes jetons). `train` est un pas d'entraînement ; min-dalle ne sait pas apprendre. La dernière ligne
entraîne notre DALL·E et dalle-pytorch sur les mêmes scènes, tant de minutes de processeur chacun, et fait juger
leurs dessins par l'oracle. La distance au plancher arithmétique est dite au passage, comme dans `predire.py`.

dalle-pytorch est mis à son mieux : son cache, qu'il oublie sans guidage, sert vraiment ; la part de ses portes que
nos poids laissent ouverte est ôtée. Pour l'oracle, il garde ses propres réglages (portes, échelles de couche,
rotation, décalage des jetons).

Options de plus : --tokens N, jetons d'une image, 64 ou 256 (64) ; --minutes M, budget de chacun devant l'oracle
(20) ; --requests N, demandes jugées par catégorie (125).

Exemple : python benchmarks/dessiner.py generate-1 --quick --threads 1
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest import mock

from harness import Bench, MissingPeer, Run, note, text
from predire import _fastest, against_best, floor

bench = Bench(__doc__)
settings = SimpleNamespace(tokens=64, minutes=20.0, requests=125)

WIDTH, LAYERS, HEADS = 256, 4, 4  # ce que le paquet livre
WORDS, CODES, CAPTION = 512, 1024, 20
MINI_CAPTION, MINI_WORDS = 64, 16  # places des légendes publiées, et combien ont un mot
GUIDANCE, BATCH = 3.0, 32
SIZE = 64  # côté des images de l'oracle, en pixels


def peers(run: Run, package: str | None = None):
    """Le module `dessiner_peers`, une fois sûr que `package` s'importe.

    Raises:
        MissingPeer: il n'est pas installé.
    """
    import dessiner_peers

    try:
        if package == "dalle-pytorch":
            dessiner_peers.import_dalle_pytorch()
        if package == "min-dalle":
            dessiner_peers.import_min_dalle()
    except ImportError as error:
        raise MissingPeer(
            f"{package} manque ({error}) : l'installer avec « pip install --no-deps -r requirements-pairs.txt »."
        ) from error
    if package == "transformers":
        run.peer(package)
    return dessiner_peers


def dalle_config():
    from minidalle.models.dalle import DALLEConfig

    side = round(settings.tokens**0.5)
    sizes = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "positions": "1d", "text_weight": 0.125}
    return DALLEConfig(WORDS, CODES, CAPTION, (side, side), **sizes)


def mini_config(**changes: object):
    from minidalle.models.dalle_mini import DALLEMiniConfig

    sizes = {"text_length": MINI_CAPTION, "grid": (16, 16), "width": WIDTH, "layers": LAYERS, "heads": HEADS}
    return DALLEMiniConfig(
        **{"text_vocabulary": WORDS, "image_vocabulary": CODES, "pad": 1} | sizes | changes
    )


def numbers(first: int, last: int, *shape: int):
    """Jetons quelconques de [first, last[, les mêmes à chaque appel."""
    import torch

    return torch.randint(first, last, shape, generator=torch.Generator().manual_seed(0))


# --- generate-1, generate-16 ----------------------------------------------------------------------


@bench.row("generate-1")
def generate_1(run: Run) -> None:
    """Une image : chaque jeton relit tous les poids."""
    generate(run, "generate-1", 1)


@bench.row("generate-16")
def generate_16(run: Run) -> None:
    """Seize images à la fois."""
    generate(run, "generate-16", 16)


def generate(run: Run, name: str, batch: int) -> None:
    generate_dalle(run, name, batch)
    generate_mini(run, f"{name}-mini", batch)
    generate_guided(run, f"{name}-mini-guided", batch)


def generate_dalle(run: Run, name: str, batch: int) -> None:
    import torch

    from minidalle.sampling import greedy

    peer_modules, config, length = peers(run, "dalle-pytorch"), dalle_config(), settings.tokens
    peers(run, "transformers")
    torch.manual_seed(0)
    ours, twin = peer_modules.twins(config, scale=5)
    twin, gpt2 = peer_modules.without_gates(twin), peer_modules.gpt2(ours)
    captions = numbers(1, WORDS, batch, CAPTION)
    captions[:, 0] = peer_modules.FIRST
    twin_captions = peer_modules.peer_text(config, captions)
    prompt = peer_modules.gpt2_stream(config, captions)
    options = {"max_new_tokens": length, "do_sample": False, "use_cache": True}

    def our_write() -> torch.Tensor:
        return greedy(ours, captions, length=length)

    @torch.inference_mode()
    def twin_write() -> torch.Tensor:
        return twin.generate_images(twin_captions, filter_thres=1.0, use_cache=True)

    @torch.inference_mode()
    def gpt2_write() -> torch.Tensor:
        return gpt2.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, CAPTION + 1 :]

    writers = {"dalle-pytorch": twin_write, "transformers GPT-2": gpt2_write}
    check(our_write(), writers)
    best = against_best(run, name, ours=our_write, peers=writers, unit="jetons/s", work=batch * length)
    matrices = [*linears(ours.decoder), ours.head.weight]
    known = LAYERS * WIDTH * (CAPTION + length / 2)
    bound(name, best, matrices, batch, batch, known)


def generate_mini(run: Run, name: str, batch: int) -> None:
    """Sans guidage, contre BART : les poids ne peuvent être les mêmes, ses normes sont ailleurs."""
    import torch

    from minidalle.models.dalle_mini import DALLEMini
    from minidalle.sampling import greedy

    config, length = mini_config(text_length=CAPTION), settings.tokens
    peer_modules = peers(run, "transformers")
    ours, bart = DALLEMini(config).eval(), peer_modules.bart(config).eval()
    captions = numbers(2, WORDS, batch, CAPTION)
    options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "num_beams": 1}

    @torch.inference_mode()
    def bart_write() -> torch.Tensor:
        tokens = bart.generate(captions, attention_mask=torch.ones_like(captions), **options)[:, 1:]
        assert tokens.shape == (batch, length), tokens.shape
        return tokens

    best = run.compare(
        name,
        ours=lambda: greedy(ours, captions, length=length),
        peer=bart_write,
        peer_name="transformers BART",
        unit="jetons/s",
        work=batch * length,
    )
    bound(name, best, mini_matrices(ours), batch, batch, mini_known(CAPTION))


def generate_guided(run: Run, name: str, batch: int) -> None:
    """Guidé, comme min-dalle l'est toujours : deux lignes par image, avec et sans légende."""
    import torch

    from minidalle.sampling import sample

    length = settings.tokens
    torch.manual_seed(0)
    ours, write = peers(run, "min-dalle").mini_twins(mini_config(), scale=5)
    caption = torch.ones(1, MINI_CAPTION, dtype=torch.int64)
    caption[:, :MINI_WORDS] = numbers(2, WORDS, 1, MINI_WORDS)
    null = torch.ones_like(caption)
    null[:, :2] = torch.tensor([0, 2])
    captions, dice = caption.expand(batch, -1), [torch.Generator() for _ in range(batch)]
    options = {"null": null, "length": length, "guidance": GUIDANCE, "top_k": 1}

    def our_write() -> torch.Tensor:
        return sample(ours, captions, dice, **options)

    def peer_write() -> torch.Tensor:
        return write(caption, null, batch, length, GUIDANCE)

    check(our_write(), {"min-dalle": peer_write})
    best = run.compare(
        name, ours=our_write, peer=peer_write, peer_name="min-dalle", unit="jetons/s", work=batch * length
    )
    bound(name, best, mini_matrices(ours), batch, 2 * batch, mini_known(MINI_WORDS))


def check(tokens, writers: dict[str, Callable]) -> None:
    """Vérifie que chaque pair écrit ces jetons.

    Raises:
        RuntimeError: il en écrit d'autres.
    """
    import torch

    for who, write in writers.items():
        if not torch.equal(tokens, write()):
            raise RuntimeError(f"{who} n'écrit pas les mêmes jetons que nous, aux mêmes poids.")


def linears(module) -> list:
    """Les matrices des couches linéaires."""
    import torch

    return [m.weight for m in module.modules() if isinstance(m, torch.nn.Linear)]


def mini_matrices(ours) -> list:
    """Celles que relit chaque jeton : pas les clés et les valeurs de la légende, calculées une fois."""
    skipped = {id(block.cross_attention.keys_values.weight) for block in ours.decoder}
    return [m for m in linears(ours.decoder) if id(m) not in skipped] + [ours.head.weight]


def mini_known(words: int) -> float:
    """Nombres de clés relus en moyenne par jeton et par ligne."""
    return LAYERS * WIDTH * (words + settings.tokens / 2)


def bound(name: str, best, matrices: list, batch: int, rows: int, known: float) -> None:
    """Dit le plancher d'un jeton, et le temps des seuls produits par `matrices` (`rows` lignes par pas)."""
    import torch

    from minidalle.models.linear import linear

    weights = sum(m.numel() for m in matrices)
    seconds = batch / best.ours.median
    floor(name, seconds, rows * (2 * weights + 4 * known), 4 * (weights + rows * 2 * known))
    inputs = {n: torch.randn(rows, n) for n in {m.shape[1] for m in matrices}}

    @torch.inference_mode()
    def multiply() -> None:
        for matrix in matrices:
            linear(inputs[matrix.shape[1]], matrix)

    note(
        f"  ses seuls produits de matrices, que tout décodeur doit faire : {text(1e3 * _fastest(multiply))} ms "
        f"sur {text(1e3 * seconds)} ; {best.peer_name} en met {text(1e3 * batch / best.peer.median)}"
    )


# --- train ----------------------------------------------------------------------------------------


@bench.row("train")
def train(run: Run) -> None:
    """Un pas d'entraînement : perte, passe arrière, AdamW, réglé de même des deux côtés."""
    train_dalle(run)
    train_mini(run)


def stepper(model, loss: Callable) -> Callable:
    """Un pas d'AdamW à chaque appel, qui rend la perte d'avant."""
    import torch

    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    model.train()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def train_dalle(run: Run) -> None:
    import torch
    from torch.nn import functional as F

    peer_modules, config = peers(run, "dalle-pytorch"), dalle_config()
    peers(run, "transformers")
    torch.manual_seed(0)
    ours, twin = peer_modules.twins(config)
    twin, gpt2 = peer_modules.without_gates(twin), peer_modules.gpt2(ours)
    gpt2.words = torch.nn.Linear(WIDTH, WORDS, bias=False)
    gpt2.words.load_state_dict(ours.text_head.state_dict())
    captions, images = numbers(1, WORDS, BATCH, CAPTION), numbers(0, CODES, BATCH, config.image_length)
    captions[:, 0] = peer_modules.FIRST
    twin_captions = peer_modules.peer_text(config, captions)
    stream = peer_modules.gpt2_stream(config, captions, images)

    def gpt2_loss() -> torch.Tensor:
        # Deux têtes et deux pertes, comme nous : c'est moins de travail que son vocabulaire commun.
        states = gpt2.transformer(stream, use_cache=False).last_hidden_state
        words, codes = gpt2.words(states[:, : CAPTION - 1]), gpt2.lm_head(states[:, CAPTION:])
        text_loss = F.cross_entropy(words.flatten(0, 1), captions[:, 1:].flatten())
        return 0.125 * text_loss + 0.875 * F.cross_entropy(codes.flatten(0, 1), images.flatten())

    losses = {
        "dalle-pytorch": (twin, lambda: twin(twin_captions, images, return_loss=True)),
        "transformers GPT-2": (gpt2, gpt2_loss),
    }
    with torch.no_grad():
        expected = ours.loss(captions, images)
        torch.testing.assert_close(expected["loss"], gpt2_loss(), rtol=1e-4, atol=1e-4)
        logits = twin(twin_captions, images)[:, CAPTION:, twin.num_text_tokens :].flatten(0, 1)
        torch.testing.assert_close(
            expected["image"], F.cross_entropy(logits, images.flatten()), rtol=1e-4, atol=1e-4
        )
    best = against_best(
        run,
        "train",
        ours=stepper(ours, lambda: ours.loss(captions, images)["loss"]),
        peers={who: stepper(*pair) for who, pair in losses.items()},
        unit="images/s",
        work=BATCH,
    )
    length = CAPTION + config.image_length
    blocks = sum(m.numel() for m in linears(ours.decoder))
    heads = CAPTION * WORDS * WIDTH + config.image_length * CODES * WIDTH
    # Passe arrière : deux fois la passe avant. La causalité épargne la moitié de l'attention.
    operations = 3 * BATCH * (2 * (length * blocks + heads) + 4 * LAYERS * WIDTH * length**2 / 2)
    floor("train", BATCH / best.ours.median, operations, 3 * 4 * blocks)


def train_mini(run: Run) -> None:
    import torch
    from torch.nn import functional as F

    from minidalle.models.dalle_mini import DALLEMini

    peer_modules = peers(run, "transformers")
    side = round(settings.tokens**0.5)
    config = mini_config(text_length=CAPTION, grid=(side, side))
    ours, bart = DALLEMini(config), peer_modules.bart(config)
    captions, images = numbers(2, WORDS, BATCH, CAPTION), numbers(0, CODES, BATCH, config.image_length)
    read = torch.cat([torch.full_like(images[:, :1], config.start), images[:, :-1]], 1)

    def bart_loss() -> torch.Tensor:
        logits = bart(input_ids=captions, decoder_input_ids=read, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), images.flatten())

    best = run.compare(
        "train-mini",
        ours=stepper(ours, lambda: ours.loss(captions, images)["loss"]),
        peer=stepper(bart, bart_loss),
        peer_name="transformers BART",
        unit="images/s",
        work=BATCH,
    )
    read_by, size = (CAPTION, config.image_length), [linears(ours.encoder), linears(ours.decoder)]
    counts = [sum(m.numel() for m in matrices) for matrices in size]
    products = sum(n * count for n, count in zip(read_by, counts, strict=True)) + read_by[1] * CODES * WIDTH
    seen = read_by[0] ** 2 + read_by[1] ** 2 / 2 + read_by[0] * read_by[1]
    operations = 3 * BATCH * (2 * products + 4 * LAYERS * WIDTH * seen)
    floor("train-mini", BATCH / best.ours.median, operations, 3 * 4 * sum(counts))


# --- oracle ---------------------------------------------------------------------------------------


@bench.row("oracle-after-20-minutes", threads=(1,))
def oracle(run: Run) -> None:
    """Part des demandes jamais vues que chacun dessine juste après le même temps de processeur."""
    import torch

    from minidalle import recipes, training
    from minidalle.checkpoints import load_model

    modules = peers(run, "dalle-pytorch")
    vqvae, _ = load_model("vqvae")
    source = recipes.drawing_source(SIZE)
    tokenizer = recipes.build_tokenizer(source)
    batches = recipes.token_batches(source, tokenizer, vqvae, CAPTION)
    options = {"text_length": CAPTION, "text_weight": 0.125}
    ours = recipes.build_generator("dalle", options, tokenizer, vqvae, SIZE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = modules.PeerWriter(modules.dalle_pytorch(ours.config))
    # Les réglages de la recette livrée, sans compiler, pour l'un comme pour l'autre.
    config = training.TrainingConfig(
        minutes=settings.minutes, batch_size=64, learning_rate=1.2e-3, ema=0.99, precision="bfloat16"
    )
    scores = {}
    for who, model in (("nous", ours), ("dalle-pytorch", theirs)):
        # Le temps du processeur et non celui de la pendule : les voisins de la machine n'y prennent rien.
        with mock.patch.object(training, "time", SimpleNamespace(monotonic=time.process_time)):
            result = training.train(model, batches, config, label=who)
        loss = result.history[-1]["loss"]
        scores[who] = judged(model, tokenizer, vqvae, ours.config, run)
        note(f"  {who} : {result.steps} pas, perte {text(loss)}, {shown(scores[who])}")
    # Rien de juste : la moitié d'un dessin, pour qu'un rapport reste fini.
    least = 50 / (4 * settings.requests)
    values = [[max(score, least) for score in row["toutes"]] for row in scores.values()]
    run.record("oracle-after-20-minutes", *values, "dalle-pytorch", "%")


def judged(model, tokenizer, vqvae, config, run: Run) -> dict[str, list[float]]:
    """Part juste, en %, par catégorie et pour toutes, à chacun de trois tirages ; un dessin par demande."""
    import numpy as np
    import torch

    from minidalle import recipes
    from minidalle.evaluation.oracle import read
    from minidalle.evaluation.requests import CATEGORIES, balanced, judge
    from minidalle.generation import pad
    from minidalle.sampling import sample

    asked = balanced(np.random.default_rng(7), settings.requests)
    ids = [tokenizer.encode(request.prompt, config.text_length).ids for request in asked]
    captions, null = pad(ids, config.text_length), torch.zeros(1, config.text_length, dtype=torch.int64)
    scores: dict[str, list[float]] = {name: [] for name in [*CATEGORIES, "toutes"]}
    for seed in range(1 if run.quick else 3):
        dice = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(asked))]
        tokens = [
            sample(
                model.eval(),
                captions[i : i + 64],
                dice[i : i + 64],
                length=config.image_length,
                guidance=GUIDANCE,
                null=null,
            )
            for i in range(0, len(asked), 64)
        ]
        images = recipes.decode(vqvae, torch.cat(tokens).view(-1, *config.grid))
        right = np.array([judge(r, a).right for r, a in zip(read(images), asked, strict=True)])
        categories = np.array([request.category for request in asked])
        for name in CATEGORIES:
            scores[name].append(100 * float(right[categories == name].mean()))
        scores["toutes"].append(100 * float(right.mean()))
    return scores


def shown(scores: dict[str, list[float]]) -> str:
    """« couleur 12,0 %, paire … »."""
    return ", ".join(f"{name} {text(sum(values) / len(values))} %" for name, values in scores.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Les options de ce banc, puis celles de tous."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tokens", type=int, choices=(64, 256), default=64)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=125)
    own, rest = parser.parse_known_args(argv)
    if own.minutes <= 0 or own.requests < 1:
        parser.error("--minutes et --requests demandent des nombres positifs")
    vars(settings).update(vars(own))
    return bench.main(rest)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
