"""« make weights » : refait les poids livrés dans minidalle/weights/, avec leurs notices.

Chaque étape reprend où elle s'était arrêtée (dossier runs/) ; une étape finie n'est pas refaite.
"""

import argparse
import hashlib
import json
import platform
import time
from pathlib import Path

import torch

from minidalle import recipes
from minidalle.checkpoints import WEIGHTS, load_model, save_model
from minidalle.data.sources import Scenes
from minidalle.training import train

RUNS = Path("runs")
SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("étape", choices=["scenes-vqvae", "scenes", "tout"], nargs="?", default="tout")
    parser.add_argument("--threads", type=int, default=2, help="fils de calcul")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    step = options.étape
    if step in ("scenes-vqvae", "tout"):
        make_vqvae()
    if step in ("scenes", "tout"):
        make_transformer()


def make_vqvae() -> None:
    preset = recipes.preset("vqvae", "reference")
    out = RUNS / "scenes-vqvae"
    vqvae = recipes.build_vqvae(preset.model)
    measure = recipes.measure_vqvae(Scenes("test", SIZE), n=512)
    batches = recipes.image_batches(Scenes("train", SIZE))
    result = train(
        vqvae,
        batches,
        preset.training,
        out,
        resume=(out / "resume.pt").exists(),
        evaluate=measure,
        label="VQ-VAE",
    )
    if result.finished:
        finish("scenes-vqvae", vqvae, result, preset, {})


def make_transformer() -> None:
    preset = recipes.preset("transformer", "reference")
    out = RUNS / "scenes"
    vqvae, _ = load_model("scenes-vqvae", "vqvae")
    source = Scenes("train", SIZE)
    tokenizer = recipes.build_tokenizer(source)
    transformer = recipes.build_transformer(preset.model, tokenizer, vqvae, SIZE)
    length = transformer.config.text_length
    measure = recipes.measure_transformer(Scenes("test", SIZE), tokenizer, vqvae, length, n=512)
    batches = recipes.token_batches(source, tokenizer, vqvae, length)
    result = train(
        transformer,
        batches,
        preset.training,
        out,
        resume=(out / "resume.pt").exists(),
        evaluate=measure,
        label="transformeur",
    )
    if result.finished:
        finish(
            "scenes", transformer, result, preset, {"tokenizer": tokenizer.to_json(), "vqvae": "scenes-vqvae"}
        )


def finish(name: str, model: torch.nn.Module, result, preset, notes: dict[str, str]) -> None:
    """Écrit les poids, leur courbe et leur empreinte."""
    path = WEIGHTS / f"{name}.safetensors"
    save_model(path, model, half=True, **notes)
    evaluations = [row for row in result.history if "psnr" in row or "delta" in row]
    card = {
        "date": time.strftime("%Y-%m-%d"),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} fils, torch {torch.__version__}",
        "evaluations": evaluations,
    }
    (WEIGHTS / f"{name}.json").write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n")
    print(f"{path} : {path.stat().st_size / 1e6:.1f} Mo")


if __name__ == "__main__":
    main()
