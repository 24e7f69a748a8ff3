"""Ce que partagent les tests de la ligne de commande : l'appeler, et un modèle minuscule à lui donner."""

import re
from pathlib import Path

import torch
from typer.testing import CliRunner

from minidalle.checkpoints import save_model
from minidalle.cli import app
from minidalle.models.dalle import DALLE, DALLEConfig
from minidalle.models.vqvae import VQVAE, VQVAEConfig
from minidalle.text import Tokenizer

SIDE = 16
SIZES = {
    "vqvae": {"channels": (8, 8), "blocks": 1, "codes": 16, "code_dim": 4},
    "dalle": {"width": 16, "layers": 1, "heads": 2, "text_length": 12},
}
# Mots que Typer, Click ou le système mettraient, et que le français n'a pas.
ENGLISH = re.compile(
    r"\b(?:the|this|and|exit|required|missing|invalid|no|such|got|unexpected|try|help|file|directory|not|is|value|"
    r"default|aborted|error|integer|int|float|text|path|range|choose|from|denied|did|you|mean)\b",
    re.IGNORECASE,
)


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="minidalle")


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def fail(*args):
    """Le message d'une commande qui doit échouer : une phrase, le code 2, rien d'écrit."""
    before = snapshot()
    result = run(*args)
    assert result.exit_code == 2, result.output
    message = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"Erreur : [^a-zé].*\.", message)
    assert "Traceback" not in result.output
    assert english(message) == set()
    assert snapshot() == before
    return message


def snapshot():
    return {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}


def english(text):
    """Mots anglais d'un texte, noms d'options et de commandes mis à part."""
    text = re.sub(r"--?[a-z-]+|«[^»]*»", " ", text)
    return set(ENGLISH.findall(text))


def tiny_model(folder, **changes):
    """Écrit dans `folder` un modèle non entraîné, qui dessine des images toutes différentes."""
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(**SIZES["vqvae"]))
    with torch.no_grad():
        vqvae.quantizer.codebook.mul_(30)
    tokenizer = Tokenizer.train(["un mouton à gauche d'un carré bleu", "trois pommes rouges"], 100)
    shared = {"text_vocabulary": len(tokenizer), "image_vocabulary": 16, "grid": (4, 4)}
    transformer = DALLE(DALLEConfig(**shared | SIZES["dalle"] | changes))
    save_model(folder / "vqvae.safetensors", vqvae, size=str(SIDE))
    save_model(folder / "model.safetensors", transformer, tokenizer=tokenizer.to_json(), vqvae="vqvae")
    return folder
