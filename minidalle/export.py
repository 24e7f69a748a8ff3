"""Un modèle de dessin hors de PyTorch : deux graphes ONNX et quelques réglages, que fait tourner la page « Atelier ».

Le graphe d'écriture lit une position et rend les logits du jeton suivant ; clés et valeurs entrent et sortent, car un
graphe ne se souvient de rien. Le graphe de peinture fait une image d'une grille de jetons. Leurs poids sont ceux du
fichier, au bit près : ce qui y est sur 8 bits le reste, et n'est déplié qu'au chargement.

`Exported` rejoue le graphe d'écriture sous l'interface de `minidalle.sampling`. Il faut le paquet `onnx` pour écrire
un graphe, et `onnxruntime` pour le rejouer.
"""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError
from minidalle.generation import TextToImage
from minidalle.models.blocks import ResidualBlock
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.transformer import Block
from minidalle.models.vqvae import VQVAE
from minidalle.text import Tokenizer

OPSET, IR = 20, 10  # le premier jeu d'opérations qui connaisse GELU, et le format de fichier qui l'admet
TOP_P = 0.95  # le noyau de l'étude, choisi avec le guidage que conseillent les poids
READ = ("token", "place")  # ce que le graphe d'écriture lit, en plus des caches

Shapes = Mapping[str, tuple[str, Sequence[int | str]]]  # nom → type, forme


# --- les graphes ----------------------------------------------------------------------------------


def writer(model: DALLE, *, packed: bool = True) -> bytes:
    """Graphe d'écriture d'un transformeur : B suites, une position de plus.

    Entrées : `token` et `place`, int32 (B,), voir `rows` ; par bloc i, `keys_i` (B, H, d, S) et `values_i`
    (B, H, S, d), les S positions déjà lues. Sorties : `logits` (B, K), puis `new_keys_i` et `new_values_i`, d'une
    position de plus.

    Args:
        model: transformeur sans masques creux.
        packed: garder sur 8 ou 16 bits les poids qui y tiennent sans changer ; sinon, tout est sur 32.

    Raises:
        MinidalleError: autre modèle, ou `onnx` absent.
    """
    if not isinstance(model, DALLE) or model.config.sparse:
        raise MinidalleError("Ce transformeur ne s'exporte pas : il faut un DALL·E à attention pleine.")
    config, graph = model.config, _Graph(packed)
    token, place = (
        graph("Gather", graph.weights(t), name) for t, name in zip(_tables(model), READ, strict=True)
    )
    x = graph("Add", token, place)
    for i, block in enumerate(model.decoder.blocks):
        x = _block(graph, block, x, i)
    graph(
        "Gemm", graph.norm(model.decoder.norm, x), graph.weights(model.head.weight), name="logits", transB=1
    )
    inputs = {name: ("int32", ["B"]) for name in READ}
    outputs = {"logits": ("float32", ["B", config.image_vocabulary])}
    for name, shape in caches(config).items():
        inputs[name] = ("float32", shape)
        outputs[f"new_{name}"] = ("float32", ["T" if side == "S" else side for side in shape])
    return graph.finish(inputs, outputs)


def painter(vqvae: VQVAE, *, packed: bool = True) -> bytes:
    """Graphe de peinture : `tokens`, int32 (h, w) → `pixels`, uint8 (H, W, 3), comme `to_pixels` les arrondit.

    Args:
        vqvae: décodeur d'images.
        packed: voir `writer`.

    Raises:
        MinidalleError: autre décodeur, ou `onnx` absent.
    """
    if not isinstance(vqvae, VQVAE):
        raise MinidalleError("Ce décodeur d'images ne s'exporte pas : il faut un VQ-VAE.")
    graph = _Graph(packed)
    x = graph("Gather", graph.weights(vqvae.quantizer.codebook), "tokens")
    x = graph("Unsqueeze", graph("Transpose", x, perm=[2, 0, 1]), graph.constant([0]))
    x = _layers(graph, vqvae.decoder.layers, x)
    x = graph("Div", graph("Add", x, graph.constant(1.0)), graph.constant(2.0))
    x = graph("Clip", x, graph.constant(0.0), graph.constant(1.0))
    x = graph("Round", graph("Mul", x, graph.constant(255.0)))  # au pair le plus proche, comme PyTorch
    x = graph("Transpose", graph("Squeeze", x, graph.constant([0])), perm=[1, 2, 0])
    graph("Cast", x, name="pixels", to=graph.types["uint8"])
    return graph.finish({"tokens": ("int32", ["h", "w"])}, {"pixels": ("uint8", ["H", "W", 3])})


def rows(text: Iterable[int], config: DALLEConfig) -> list[tuple[int, int]]:
    """Couples (`token`, `place`) que le graphe d'écriture lit d'un texte de L = `text_length` jetons.

    Viennent ensuite, pour chaque case i de l'image, (V + t, 2L + i), où V est `text_vocabulary` et t le jeton d'image
    précédent ; celui de départ est t = K.
    """
    # Un remplissage n'a pas de mot, mais une place à lui.
    return [(token, place if token else config.text_length + place) for place, token in enumerate(text)]


def caches(config: DALLEConfig) -> dict[str, tuple[int | str, ...]]:
    """Forme de chaque cache du graphe d'écriture, B suites et S positions."""
    heads, part = config.heads, config.width // config.heads
    shapes = {"keys": ("B", heads, part, "S"), "values": ("B", heads, "S", part)}
    return {f"{kind}_{i}": shape for i in range(config.layers) for kind, shape in shapes.items()}


def _tables(model: DALLE) -> tuple[Tensor, Tensor]:
    """Vecteurs de ce qui est lu, puis de l'endroit où on le lit, numérotés comme le disent les `rows`."""
    words = model.text_embedding.weight.detach().clone()
    words[0] = 0
    places = [model.text_position.weight, model.padding.weight, model.image_position()]
    return torch.cat([words, model.image_embedding.weight]), torch.cat(places)


def _block(graph: "_Graph", block: Block, x: str, i: int) -> str:
    """Les calculs de `Block.forward` pour une seule position, qui voit tout ce qui la précède."""
    attention, part = block.attention, block.attention.output.in_features // block.attention.heads
    projected = graph.linear(attention.queries_keys_values, graph.norm(block.attention_norm, x))
    queries, keys, values = graph("Split", projected, outputs=3, axis=1, num_outputs=3)
    queries, values = (graph.reshape(y, -1, attention.heads, 1, part) for y in (queries, values))
    keys = graph.reshape(keys, -1, attention.heads, part, 1)  # transposées une fois, et non à chaque pas
    keys = graph("Concat", f"keys_{i}", keys, name=f"new_keys_{i}", axis=3)
    values = graph("Concat", f"values_{i}", values, name=f"new_values_{i}", axis=2)
    scores = graph("Mul", graph("MatMul", queries, keys), graph.constant(part**-0.5))
    seen = graph("MatMul", graph("Softmax", scores, axis=-1), values)
    x = graph("Add", x, graph.linear(attention.output, graph("Flatten", seen, axis=1)))
    inside = graph("Gelu", graph.linear(block.dense[0], graph.norm(block.dense_norm, x)))
    return graph("Add", x, graph.linear(block.dense[2], inside))


def _layers(graph: "_Graph", layers: nn.Sequential, x: str) -> str:
    """Les couches d'un décodeur de convolutions, l'une après l'autre."""
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            x = graph("Relu", x)
        elif isinstance(layer, ResidualBlock):
            x = graph("Add", x, _layers(graph, layer.layers, x))
        else:
            kind = "ConvTranspose" if isinstance(layer, nn.ConvTranspose2d) else "Conv"
            sides = {"strides": [*layer.stride], "pads": [*layer.padding] * 2}
            x = graph(kind, x, graph.weights(layer.weight), graph.weights(layer.bias), **sides)
    return x


class _Graph:
    """Un graphe ONNX écrit nœud après nœud : appeler une opération rend le nom de son résultat."""

    types: Mapping[str, int] = {"float32": 1, "uint8": 2, "int32": 6}  # numéros d'ONNX

    def __init__(self, packed: bool) -> None:
        self.packed, self.nodes, self.tables = packed, [], []
        self.onnx = _require("onnx")

    def __call__(
        self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: object
    ) -> str:
        names = [name or f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: float | Sequence[int] | np.ndarray) -> str:
        """Un tableau ; un flottant est sur 32 bits, une liste d'entiers sur 64."""
        array = np.asarray(value, np.float32 if isinstance(value, float) else None)
        self.tables.append(self.onnx.numpy_helper.from_array(array, f"table_{len(self.tables)}"))
        return self.tables[-1].name

    def weights(self, weight: Tensor) -> str:
        """Un tableau de poids, flottant sur 32 bits une fois déplié."""
        weight = weight.detach().float()
        if self.packed and (found := eight_bits(weight)):
            return self("Mul", *(self("Cast", self.constant(part.numpy()), to=1) for part in found))
        if self.packed and torch.equal(weight.half().float(), weight):
            return self("Cast", self.constant(weight.half().numpy()), to=1)
        return self.constant(weight.numpy())

    def linear(self, layer: nn.Linear, x: str) -> str:
        return self("Gemm", x, self.weights(layer.weight), self.weights(layer.bias), transB=1)

    def norm(self, layer: nn.LayerNorm, x: str) -> str:
        weights = self.weights(layer.weight), self.weights(layer.bias)
        return self("LayerNormalization", x, *weights, axis=-1, epsilon=layer.eps)

    def reshape(self, x: str, *shape: int) -> str:
        return self("Reshape", x, self.constant([*shape]))

    def finish(self, inputs: Shapes, outputs: Shapes) -> bytes:
        """Le graphe vérifié, en octets."""
        helper = self.onnx.helper
        ends = [
            [
                helper.make_tensor_value_info(name, self.types[kind], shape)
                for name, (kind, shape) in end.items()
            ]
            for end in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "minidalle", *ends, self.tables)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        self.onnx.checker.check_model(model)
        return model.SerializeToString()


def eight_bits(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """La matrice (n, m) comme `checkpoints.pack` l'avait rangée : int8 (n, m), et pas float16 (n, 1).

    Returns:
        None si ce n'est pas une matrice, ou si l'arrondi changerait un seul de ses nombres.
    """
    if matrix.ndim != 2:
        return None
    # `pack` donne toujours 127 pas au plus grand nombre d'une ligne.
    step = (matrix.abs().amax(1, keepdim=True) / 127).clamp(min=2**-20).half()
    whole = (matrix / step.float()).round().clamp(-127, 127)
    return (whole.to(torch.int8), step) if torch.equal(whole * step.float(), matrix) else None


# --- ce qui les accompagne ------------------------------------------------------------------------


def settings(model: TextToImage) -> dict[str, object]:
    """Ce que doit savoir, en plus des graphes, qui veut dessiner : segmenteur, tailles, réglages conseillés.

    Raises:
        MinidalleError: modèle d'un autre segmenteur que celui du livre.
    """
    if not isinstance(model.tokenizer, Tokenizer):
        raise MinidalleError("Ce modèle ne s'exporte pas : son segmenteur n'est pas celui du livre.")
    content, config = json.loads(model.tokenizer.to_json()), model.transformer.config
    bpe = content["bpe"]["model"]
    return {
        "vocabulary": bpe["vocab"],
        "merges": [pair if isinstance(pair, list) else pair.split(" ") for pair in bpe["merges"]],
        "known": content["known"],
        "caches": caches(config),
        "textLength": config.text_length,
        "textVocabulary": config.text_vocabulary,
        "imageVocabulary": config.image_vocabulary,
        "grid": config.grid,
        "factor": model.vqvae.config.factor,
        "guidance": model.guidance,
        "topP": TOP_P,
    }


# --- pour vérifier --------------------------------------------------------------------------------


class Exported:
    """Le graphe d'écriture, calculé par ONNX Runtime : mêmes méthodes que `DALLE` pour `minidalle.sampling`."""

    def __init__(self, graph: bytes, config: DALLEConfig) -> None:
        """`config` : celle du modèle exporté.

        Raises:
            MinidalleError: `onnxruntime` absent.
        """
        runtime = _require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1  # des produits si petits qu'un second fil les ralentit
        providers = ["CPUExecutionProvider"]
        self.session, self.config = runtime.InferenceSession(graph, options, providers=providers), config

    def start(self, text: Tensor) -> "_State":
        """Lit le texte (B, L) position par position ; le graphe n'en connaît pas d'autre façon."""
        empty = {
            name: np.zeros([{"B": len(text), "S": 0}.get(side, side) for side in shape], np.float32)
            for name, shape in caches(self.config).items()
        }
        state = _State(empty)
        lines = [rows(line, self.config) for line in text.tolist()]
        for place in range(self.config.text_length):
            self._read(np.array([line[place] for line in lines], np.int32), state)
        return state

    def step(self, previous: Tensor | None, state: "_State") -> Tensor:
        """Logits (B, K) du jeton suivant ; voir `DALLE.step`."""
        config, batch = self.config, len(state.caches["keys_0"])
        last = torch.full((batch,), config.image_vocabulary) if previous is None else previous
        read = np.full((batch, 2), config.text_length + state.length, np.int32)
        read[:, 0] = config.text_vocabulary + last.numpy()
        return torch.from_numpy(self._read(read, state))

    def _read(self, pairs: np.ndarray, state: "_State") -> np.ndarray:
        """Lit un couple par suite, int32 (B, 2) ; complète les caches, et rend les logits."""
        logits, *new = self.session.run(None, dict(zip(READ, pairs.T, strict=True)) | state.caches)
        state.caches = dict(zip(state.caches, new, strict=True))
        return logits


class _State:
    """Caches des positions lues."""

    def __init__(self, empty: dict[str, np.ndarray]) -> None:
        self.caches = empty

    @property
    def length(self) -> int:
        return self.caches["values_0"].shape[2]

    def select(self, chosen: Tensor) -> None:
        self.caches = {name: cache[chosen.numpy()] for name, cache in self.caches.items()}


def paint(graph: bytes, tokens: Tensor) -> np.ndarray:
    """Grille de jetons (h, w) → uint8 (H, W, 3), par le graphe de peinture.

    Raises:
        MinidalleError: `onnxruntime` absent.
    """
    session = _require("onnxruntime").InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"tokens": tokens.numpy().astype(np.int32)})[0]


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MinidalleError(f"Il manque le paquet « {name} » : pip install {name}.") from error
