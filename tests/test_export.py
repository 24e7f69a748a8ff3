"""Graphes ONNX : les mêmes nombres que PyTorch, les poids du fichier au bit près, et de quoi s'en servir ailleurs."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from minidalle import export
from minidalle.checkpoints import pack, unpack
from minidalle.errors import MinidalleError
from minidalle.generation import TextToImage, to_pixels
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.vqvae import VQVAE, VQVAEConfig
from minidalle.sampling import sample
from minidalle.text import Tokenizer, words

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZES = {
    "text_vocabulary": 9,
    "image_vocabulary": 7,
    "text_length": 5,
    "grid": (2, 3),
    "width": 16,
    "layers": 2,
    "heads": 2,
}
TEXT = torch.tensor([[4, 2, 0, 0, 0], [1, 3, 5, 7, 8]])  # des places vides, puis aucune


def dalle(**options):
    """Un transformeur aux poids assez grands pour que chaque terme compte."""
    torch.manual_seed(0)
    model = DALLE(DALLEConfig(**SIZES | options)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def rounded(model):
    """Le même, ses matrices passées par huit bits et le reste par seize, comme dans un fichier livré."""
    stored = {}
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:
            stored[name], stored[f"{name}:pas"] = pack(weight)
        else:
            stored[name] = weight.half()
    model.load_state_dict(unpack(stored))
    return model


def vqvae():
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(channels=(4, 8), blocks=2, codes=7, code_dim=4)).eval()
    for weight in model.decoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


@torch.inference_mode()
def worst_gap(model, graph):
    """Plus grand écart des logits à ceux de PyTorch, jeton après jeton."""
    ours, previous, gaps = export.Exported(graph, model.config), None, []
    states = model.start(TEXT), ours.start(TEXT)
    for _ in range(model.config.image_length):
        expected, found = model.step(previous, states[0]), ours.step(previous, states[1])
        gaps.append((expected - found).abs().max().item())
        previous = expected.argmax(-1)
    return max(gaps)


@pytest.fixture(scope="module")
def reference():
    return TextToImage.load("scenes")


@pytest.fixture(scope="module")
def graph(reference):
    return export.writer(reference.transformer)


# --- le graphe d'écriture ---


@pytest.mark.parametrize("packed", [False, True])
def test_logits_are_pytorch_s(packed):
    assert worst_gap(dalle(), export.writer(dalle(), packed=packed)) < 1e-4
    assert worst_gap(dalle(positions="1d"), export.writer(dalle(positions="1d"), packed=packed)) < 1e-4


def test_packed_weights_are_those_of_the_file():
    model = rounded(dalle())
    assert worst_gap(model, export.writer(model)) < 1e-4


def test_eight_bits_is_exact_or_nothing():
    torch.manual_seed(0)
    matrix = torch.randn(6, 40) * torch.logspace(-4, 2, 6)[:, None]
    matrix[2] = 0
    whole, step = pack(matrix)
    found = export.eight_bits(whole.float() * step.float())
    assert torch.equal(found[0], whole) and torch.equal(found[1].float() * whole, step.float() * whole)
    assert export.eight_bits(matrix) is None
    assert export.eight_bits(torch.ones(3)) is None


def test_reference_stays_on_eight_bits(reference, graph):
    parameters = sum(p.numel() for p in reference.transformer.parameters())
    assert len(graph) < 1.1 * parameters


def test_reference_writes_the_same_tokens(reference, graph):
    """Au plus probable, puis au tirage, guidage compris : les jetons de PyTorch, graine pour graine."""
    prompts = ["un mouton à gauche d’un carré bleu", "trois étoiles rouges", "un zèbre"]
    text, ours = reference.read(prompts)[0], export.Exported(graph, reference.transformer.config)
    options = {"length": 64, "guidance": 1.5, "null": torch.zeros_like(text)}
    for chosen in ({"top_k": 1}, {"top_p": export.TOP_P}):
        dice = [[torch.Generator().manual_seed(seed) for seed in range(3)] for _ in range(2)]
        theirs = sample(reference.transformer, text, dice[0], **options, **chosen)
        assert torch.equal(sample(ours, text, dice[1], **options, **chosen), theirs)


def test_rows_of_a_state_can_be_chosen():
    model = dalle()
    ours = export.Exported(export.writer(model), model.config)
    state, alone = ours.start(TEXT), ours.start(TEXT[1:])
    state.select(torch.tensor([1, 1]))
    both = ours.step(None, state)
    assert torch.equal(both[0], both[1])
    assert torch.allclose(both[:1], ours.step(None, alone), atol=1e-5)


# --- le graphe de peinture ---


@pytest.mark.parametrize("packed", [False, True])
def test_painting_is_pytorch_s(packed):
    model, tokens = vqvae(), torch.arange(6).view(2, 3)
    expected = to_pixels(model.decode(tokens[None]))[0].astype(int)
    painted = export.paint(export.painter(model, packed=packed), tokens)
    assert painted.dtype == np.uint8 and painted.shape == (8, 12, 3)
    assert 0 < expected.mean() < 255
    # Un pixel au bord de deux valeurs peut changer de côté ; un arrondi oublié en changerait la moitié.
    assert (np.abs(painted - expected) > 0).mean() < 0.02


# --- ce qui les accompagne ---


def test_settings_are_enough_to_read_a_sentence(reference):
    told = json.loads(json.dumps(export.settings(reference), ensure_ascii=False))
    ranks = {tuple(pair): rank for rank, pair in enumerate(told["merges"])}

    def pieces(word):
        parts = [letter if letter in told["vocabulary"] else "<unk>" for letter in f"▁{word}"]
        while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
            i = min(pairs)[1]
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        return [told["vocabulary"][part] for part in parts]

    sentence = "Dessine-moi trois étoiles rouges à gauche d’un éléphant, s’il te plaît !"
    expected = reference.tokenizer.encode(sentence)
    assert [i for word in words(sentence) for i in pieces(word)] == expected.ids
    assert [w for w in dict.fromkeys(words(sentence)) if w not in told["known"]] == expected.unknown
    config = reference.transformer.config
    assert told["textVocabulary"] == config.text_vocabulary and told["textLength"] == config.text_length
    assert told["guidance"] == reference.guidance and told["caches"].keys() >= {"keys_0", "values_3"}


def test_tables_hold_what_is_read(reference):
    """Ce qu'on lit, le texte puis les cases, tombe dans les tables du graphe, sans trou ni doublon."""
    config = reference.transformer.config
    read = export.rows([3, 9, 0, 0], DALLEConfig(9, 7, text_length=4))
    assert read == [(3, 0), (9, 1), (0, 6), (0, 7)]
    tokens, places = export._tables(reference.transformer)
    assert len(tokens) == config.text_vocabulary + config.image_vocabulary + 1
    assert len(places) == 2 * config.text_length + config.image_length


# --- les refus ---


def test_what_cannot_be_exported_is_refused(reference):
    with pytest.raises(MinidalleError, match="attention pleine"):
        export.writer(dalle(sparse=True))
    with pytest.raises(MinidalleError, match="attention pleine"):
        export.writer(vqvae())
    with pytest.raises(MinidalleError, match="VQ-VAE"):
        export.painter(dalle())
    other = TextToImage(Tokenizer.train(["un chat"], 40), dalle(text_vocabulary=40), vqvae())
    other.tokenizer = object()
    with pytest.raises(MinidalleError, match="segmenteur"):
        export.settings(other)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(monkeypatch, package):
    graph = export.painter(vqvae())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MinidalleError, match=f"pip install {package}$|pip install {package}\\."):
        export.painter(vqvae()) if package == "onnx" else export.paint(graph, torch.zeros(1, 1))
