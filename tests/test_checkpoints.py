"""Fichiers de poids : aller-retour, refus clairs."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from minidalle import checkpoints
from minidalle.checkpoints import find_weights, load_model, pack, packaged_names, save_model, unpack
from minidalle.errors import MinidalleError
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.vqvae import VQVAE, VQVAEConfig


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(channels=(8,), codes=6, code_dim=4))


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path, vqvae, half):
    path = tmp_path / "m.safetensors"
    save_model(path, vqvae, half=half, commande="essai « accentué »")
    model, notes = load_model(path)
    assert notes["commande"] == "essai « accentué »" and notes["model"] == "vqvae"
    assert model.config == vqvae.config and not model.training
    for key, tensor in model.state_dict().items():
        expected = vqvae.state_dict()[key]
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected.half().to(expected.dtype) if half else expected)
    images = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model.eval()(images)[0], vqvae.eval()(images)[0], atol=2e-2)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_packed_matrices_are_right_to_half_a_step(seed, scale):
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * scale
    matrix[2] = 0
    bytes_, step = pack(matrix)
    assert bytes_.dtype == torch.int8 and step.shape == (5, 1)
    back = unpack({"m": bytes_, "m:pas": step})
    assert set(back) == {"m"}
    assert ((back["m"] - matrix).abs() <= step.float() * 0.501 + 1e-12).all()
    assert (step[:, 0].float() <= matrix.abs().amax(1) / 127 * 1.01 + 1e-5).all()


def test_a_packed_model_is_four_times_smaller_and_says_nearly_the_same(tmp_path):
    torch.manual_seed(0)
    model = DALLE(DALLEConfig(text_vocabulary=300, width=64, layers=2)).eval()
    save_model(tmp_path / "plein.safetensors", model)
    save_model(tmp_path / "leger.safetensors", model, packed=True)
    light, _ = load_model(tmp_path / "leger.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("plein", "leger")]
    assert sizes[1] < 0.3 * sizes[0]
    text, image = torch.randint(1, 300, (2, 32)), torch.randint(0, 1024, (2, 64))
    with torch.no_grad():
        gap = (light(text, image) - model(text, image)).abs().max()
    assert 0 < gap < 0.02
    assert torch.equal(light.decoder.norm.weight, model.decoder.norm.weight.half().float())


def test_same_weights_same_bytes(tmp_path, vqvae):
    for name in "abcdef":
        save_model(tmp_path / name, vqvae, commande="x", vqvae="y", autre="z")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_config_survives_with_its_types(tmp_path):
    config = DALLEConfig(text_vocabulary=5, grid=(2, 3), width=8, layers=1, heads=2)
    save_model(tmp_path / "t.safetensors", DALLE(config))
    assert load_model(tmp_path / "t.safetensors", "dalle")[0].config == config


def test_folders_and_packaged_names(tmp_path, vqvae, monkeypatch):
    save_model(tmp_path / "model.safetensors", vqvae)
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    assert packaged_names() == ["model"]
    assert load_model("model")[0].config == vqvae.config


def foreign(path):
    save_file({"x": torch.zeros(2)}, path)


def truncated(path):
    save_model(path, VQVAE(VQVAEConfig(channels=(8,), codes=6)))
    path.write_bytes(path.read_bytes()[:-10])


def text(path):
    path.write_text("ceci n'est pas un modèle")


def other_sizes(path):
    model = VQVAE(VQVAEConfig(channels=(8,), codes=6))
    model.config = VQVAEConfig(channels=(8,), codes=7)
    save_model(path, model)


def header(path, content):
    save_file({"x": torch.zeros(2)}, path, {checkpoints.FORMAT: content})


def unknown_model(path):
    header(path, json.dumps({"model": "imagen", "config": "{}"}))


def hostile_config(path):
    header(path, json.dumps({"model": "vqvae", "config": json.dumps({"channels": "beaucoup"})}))


def bad_header(path):
    header(path, "{pas du JSON")


def not_numbers(path):
    model = VQVAE(VQVAEConfig(channels=(8,), codes=6))
    model.quantizer.codebook[0, 0] = float("nan")
    save_model(path, model)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (foreign, "ne vient pas de minidalle"),
        (truncated, "n'est pas un fichier safetensors lisible"),
        (text, "n'est pas un fichier safetensors lisible"),
        (other_sizes, "ne correspond pas à cette version"),
        (unknown_model, "ne correspond pas à cette version"),
        (hostile_config, "ne correspond pas à cette version"),
        (bad_header, "en-tête illisible"),
        (not_numbers, "pas des nombres"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, write, message):
    path = tmp_path / "mauvais.safetensors"
    write(path)
    with pytest.raises(MinidalleError, match=message) as caught:
        load_model(path)
    assert "mauvais.safetensors" in str(caught.value)


def test_wrong_kind_and_missing_file_say_what_to_do(tmp_path, vqvae):
    save_model(tmp_path / "m.safetensors", vqvae)
    with pytest.raises(MinidalleError, match="contient un modèle « vqvae », il faut un « dalle »"):
        load_model(tmp_path / "m.safetensors", "dalle")
    with pytest.raises(MinidalleError, match="absent.*introuvable.*dossier d'entraînement"):
        load_model(tmp_path / "absent")


def test_a_failed_save_keeps_the_old_weights(tmp_path, vqvae, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(path, vqvae)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disque plein")))
    with pytest.raises(MinidalleError):
        save_model(path, vqvae, half=True)
    assert path.read_bytes() == before
