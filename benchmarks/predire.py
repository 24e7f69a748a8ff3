"""Prédire : écrire jeton à jeton avec un décodeur seul, l'entraîner.

Les lignes `generate-…` écrivent le plus probable, contre le plus rapide de deux pairs de mêmes poids ;
`per-token` suit le temps d'un jeton quand la suite s'allonge. La distance au plancher arithmétique, ce que
la machine mettrait au mieux à lire les poids et à faire les opérations, est dite au passage.

Exemple : python benchmarks/predire.py generate-1 --quick
"""

import time
from collections.abc import Callable

from harness import Bench, Comparison, Run, note, text

bench = Bench(__doc__)

VOCABULARY, WIDTH, LAYERS, HEADS = 2048, 256, 8, 8
PROMPT, NEW = 32, 256  # jetons lus, jetons écrits

# --- le modèle et ses pairs -----------------------------------------------------------------------


def decoder():
    """Notre décodeur, à poids assez grands pour que la suite ne répète pas toujours le même jeton."""
    import torch

    from minidalle.models.transformer import LanguageModel

    torch.manual_seed(0)
    model = LanguageModel(
        LanguageModel.Config(VOCABULARY, length=PROMPT + NEW, width=WIDTH, layers=LAYERS, heads=HEADS)
    ).eval()
    with torch.no_grad():
        for block in model.decoder.blocks:
            for weight in (p for p in block.parameters() if p.ndim == 2):
                weight.mul_(5)
    return model


def gpt2(run: Run, ours):
    """GPT-2 de transformers, aux poids de `ours`."""
    transformers = run.peer("transformers")
    import torch

    transformers.utils.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=PROMPT + NEW,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu",
        **dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0),
        **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"]),
    )
    names = {
        "embedding.tokens": "wte",
        "embedding.positions": "wpe",
        "decoder.norm": "ln_f",
        "decoder.blocks": "h",
        "attention_norm": "ln_1",
        "attention.queries_keys_values": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "dense_norm": "ln_2",
        "dense.0": "mlp.c_fc",
        "dense.2": "mlp.c_proj",
    }
    peer = transformers.GPT2LMHeadModel(config)
    state = {}
    for key, tensor in ours.state_dict().items():
        for mine, theirs in names.items():
            key = key.replace(mine, theirs)
        # Ses couches denses multiplient par la droite : leurs matrices sont transposées.
        state[key] = tensor.T if ".c_" in key and key.endswith("weight") else tensor
    peer.transformer.load_state_dict(state)
    _check_logits(ours, lambda tokens: peer(tokens).logits)
    assert torch.equal(peer.lm_head.weight, ours.embedding.tokens.weight)
    return peer.eval()


def gpt2_writer(run: Run, ours) -> Callable:
    import torch

    peer = gpt2(run, ours)

    @torch.inference_mode()
    def write(prompt, streamer=None):
        mask = torch.ones_like(prompt)
        options = {"max_new_tokens": NEW, "do_sample": False, "use_cache": True, "streamer": streamer}
        return peer.generate(prompt, attention_mask=mask, **options)[:, PROMPT:]

    return write


def x_transformers_writer(run: Run, ours) -> Callable:
    peers = run.peer("x_transformers")
    import torch

    layers = peers.Decoder(
        dim=WIDTH, depth=LAYERS, heads=HEADS, attn_dim_head=WIDTH // HEADS, attn_flash=True
    )
    peer = peers.TransformerWrapper(
        num_tokens=VOCABULARY,
        max_seq_len=PROMPT + NEW,
        tie_embedding=True,
        tie_embedding_scale=1.0,
        attn_layers=layers,
    )
    # Ses normalisations et ses attentions n'ont pas de biais : les nôtres, à ce stade, sont nuls. Ses gains
    # se comptent à partir de 1.
    state = {
        "token_emb.emb.weight": ours.embedding.tokens.weight,
        "pos_emb.emb.weight": ours.embedding.positions.weight * WIDTH**0.5,
        "attn_layers.final_norm.gamma": ours.decoder.norm.weight - 1,
    }
    for i, block in enumerate(ours.decoder.blocks):
        attention, dense = f"attn_layers.layers.{2 * i}.", f"attn_layers.layers.{2 * i + 1}."
        state[attention + "0.0.gamma"] = block.attention_norm.weight - 1
        for part, weight in zip("qkv", block.attention.queries_keys_values.weight.chunk(3), strict=True):
            state[f"{attention}1.to_{part}.weight"] = weight
        state[attention + "1.to_out.weight"] = block.attention.output.weight
        state[dense + "0.0.gamma"] = block.dense_norm.weight - 1
        for theirs, mine in (("0.0", block.dense[0]), ("2", block.dense[2])):
            state[f"{dense}1.ff.{theirs}.weight"] = mine.weight
            state[f"{dense}1.ff.{theirs}.bias"] = mine.bias
    peer.load_state_dict(state)
    _check_logits(ours, peer.eval())
    writer = peers.AutoregressiveWrapper(peer)
    return torch.inference_mode()(lambda prompt: writer.generate(prompt, NEW, temperature=0.0))


def _check_logits(ours, peer: Callable) -> None:
    import torch

    tokens = _tokens(2, PROMPT)
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), peer(tokens), rtol=1e-4, atol=1e-3)


def _tokens(batch: int, length: int):
    import torch

    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))


PEERS = {"transformers GPT-2": gpt2_writer, "x-transformers": x_transformers_writer}

# --- generate-1, generate-16 ----------------------------------------------------------------------


@bench.row("generate-1")
def generate_1(run: Run) -> None:
    """Une suite : chaque jeton relit tous les poids."""
    generate(run, "generate-1", 1)


@bench.row("generate-16")
def generate_16(run: Run) -> None:
    """Seize suites à la fois."""
    generate(run, "generate-16", 16)


def generate(run: Run, name: str, batch: int) -> None:
    import torch

    from minidalle.sampling import greedy

    ours, prompt = decoder(), _tokens(batch, PROMPT)
    writers = {who: writer(run, ours) for who, writer in PEERS.items()}

    def our_write() -> torch.Tensor:
        return greedy(ours, prompt, length=NEW)

    tokens = our_write()
    for who, write in writers.items():
        if not torch.equal(tokens, write(prompt)):
            raise RuntimeError(f"{who} n'écrit pas les mêmes jetons que nous, aux mêmes poids.")
    best = against_best(
        run,
        name,
        ours=our_write,
        peers={who: lambda write=write: write(prompt) for who, write in writers.items()},
        unit="jetons/s",
        work=batch * NEW,
    )
    # Par jeton : tous les poids lus, plongements mis à part, et en moyenne PROMPT + NEW / 2 clés et valeurs.
    weights = sum(p.numel() for p in ours.decoder.parameters()) + VOCABULARY * WIDTH
    known = LAYERS * WIDTH * (PROMPT + NEW / 2)
    operations, read = batch * (2 * weights + 4 * known), 4 * (weights + batch * 2 * known)
    seconds = batch / best.ours.median
    floor(name, seconds, operations, read)
    alone = products(ours, batch)
    note(
        f"  ses seuls produits de matrices, que tout décodeur doit faire : {text(1e3 * alone)} ms sur "
        f"{text(1e3 * seconds)} ; {best.peer_name} en met {text(1e3 * batch / best.peer.median)}"
    )


def products(ours, batch: int) -> float:
    """Secondes que prennent, sans rien autour, les produits d'un jeton par les matrices du décodeur."""
    import torch

    from minidalle.models.linear import linear

    weights = [m.weight for m in ours.decoder.modules() if isinstance(m, torch.nn.Linear)]
    weights.append(ours.embedding.tokens.weight)
    inputs = {n: torch.randn(batch, n) for n in {w.shape[1] for w in weights}}

    @torch.inference_mode()
    def read() -> None:
        for weight in weights:
            linear(inputs[weight.shape[1]], weight)

    return _fastest(read)


def against_best(
    run: Run, name: str, *, ours: Callable, peers: dict[str, Callable], unit: str, work: float
) -> Comparison:
    """Mesure contre chaque pair et ne garde que la comparaison avec le plus rapide."""
    first, found = len(run.results), []
    for who, peer in peers.items():
        found.append(run.compare(name, ours=ours, peer=peer, peer_name=who, unit=unit, work=work))
    best = min(found, key=lambda comparison: comparison.ratio)
    run.results[first:] = [r for r in run.results[first:] if r.peer_name == best.peer_name]
    return best


# --- train ----------------------------------------------------------------------------------------


@bench.row("train")
def train(run: Run) -> None:
    """Un pas d'entraînement : perte, passe arrière, AdamW, réglé de même des deux côtés."""
    import torch

    batch, length = 8, NEW
    ours = decoder().train()
    peer = gpt2(run, ours).train()
    tokens = _tokens(batch, length)
    # Un taux nul d'abord : rien ne bouge avant la vérification.
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.0, weight_decay=0.0) for m in (ours, peer)]

    def step(optimizer, loss) -> torch.Tensor:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def our_step() -> torch.Tensor:
        return step(optimizers[0], ours.loss(tokens)["loss"])

    def peer_step() -> torch.Tensor:
        return step(optimizers[1], peer(tokens, labels=tokens, use_cache=False).loss)

    torch.testing.assert_close(our_step(), peer_step(), rtol=1e-4, atol=1e-4)
    mine, theirs = ours.embedding.tokens.weight.grad, peer.transformer.wte.weight.grad
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 1e-5
    best = run.compare(
        "train",
        ours=our_step,
        peer=peer_step,
        peer_name="transformers GPT-2",
        unit="jetons/s",
        work=batch * length,
    )
    weights = sum(p.numel() for p in ours.decoder.parameters()) + VOCABULARY * WIDTH
    # Passe arrière : deux fois la passe avant. La causalité épargne la moitié de l'attention.
    operations = 3 * batch * length * (2 * weights + 4 * LAYERS * WIDTH * length / 2)
    floor("train", batch * length / best.ours.median, operations, 3 * 4 * weights)


# --- per-token ------------------------------------------------------------------------------------


@bench.row("per-token")
def per_token(run: Run) -> None:
    """Temps du dernier jeton ; et ce qu'il coûte de plus que le seizième, hors lecture de l'attention."""
    from minidalle.sampling import greedy

    ours, prompt = decoder(), _tokens(1, PROMPT)
    clock = Metronome(run.clock)
    write = gpt2_writer(run, ours)
    paces = {
        "nous": lambda: greedy(clock.follow(ours), prompt, length=NEW),
        "transformers GPT-2": lambda: write(prompt, streamer=clock),
    }
    times = {who: [] for who in paces}
    for _ in range(1 + run.repeats):
        for who, pace in paces.items():
            clock.beats.clear()
            pace()
            times[who].append([b - a for a, b in zip(clock.beats[:-1], clock.beats[1:], strict=True)])
    bandwidth, _ = machine_speed()
    extra = 8 * LAYERS * WIDTH * (NEW - 16) / bandwidth  # clés et valeurs de plus à lire
    last = {}
    for who, rows in times.items():
        early, late = (window(rows[1:], first) for first in (8, NEW - 18))
        last[who] = [1e3 * _median(row[NEW - 18 : NEW - 2]) for row in rows[1:]]
        grown = (late - early - extra) / early
        note(
            f"  {who} : jeton 16 en {text(1e3 * early)} ms, jeton {NEW} en {text(1e3 * late)} ms, "
            f"dont {text(1e3 * extra)} d'attention inévitable : {100 * grown:+.0f} %".replace(".", ",")
        )
    run.record("per-token", *last.values(), "transformers GPT-2", "ms")


class Metronome:
    """Note l'instant de chaque jeton : autour de notre modèle, ou comme `streamer` de transformers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.beats = clock, []

    def follow(self, model) -> "Metronome":
        self.model = model
        return self

    def start(self, prompt):
        return self.model.start(prompt)

    def step(self, previous, state):
        self.beats.append(self.clock())
        return self.model.step(previous, state)

    def put(self, tokens) -> None:
        self.beats.append(self.clock())

    def end(self) -> None:
        pass


def window(rows: list[list[float]], first: int, size: int = 16) -> float:
    """Temps médian d'un jeton autour d'une position, toutes répétitions réunies."""
    return _median([seconds for row in rows for seconds in row[first : first + size]])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


# --- le plancher ----------------------------------------------------------------------------------


def floor(name: str, seconds: float, operations: float, read: float) -> float:
    """Affiche, et rend, le temps qu'il faudrait au moins, et combien de fois nous le mettons.

    Args:
        seconds: temps mesuré.
        operations, read: opérations à faire et octets à lire, au moins.
    """
    bandwidth, peak = machine_speed()
    reading, computing = read / bandwidth, operations / peak
    least = max(reading, computing)
    note(
        f"  plancher de {name} : lire {text(read / 2**20)} Mio à {text(bandwidth / 2**30)} Gio/s, "
        f"{text(1e3 * reading)} ms ; {text(operations / 1e9)} Gflop à {text(peak / 1e9)} Gflop/s, "
        f"{text(1e3 * computing)} ms ; nous, {text(1e3 * seconds)} ms, {text(seconds / least)} fois le plancher"
    )
    return least


def machine_speed() -> tuple[float, float]:
    """Octets par seconde d'un produit matrice–vecteur, opérations par seconde d'un produit de matrices."""
    import torch

    matrix, vector = torch.rand(7000, 1024), torch.rand(1024)  # 27 Mio, la taille du modèle
    square = torch.rand(1024, 1024)
    bandwidth = matrix.nbytes / _fastest(lambda: matrix @ vector)
    return bandwidth, 2 * 1024**3 / _fastest(lambda: square @ square)


def _fastest(call: Callable) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    raise SystemExit(bench.main())
