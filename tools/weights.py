"""« make weights » : refait les poids livrés dans minidalle/weights/, avec leurs notices.

Chaque étape reprend où elle s'était arrêtée (dossier runs/) ; une étape finie ne recalcule que sa notice.
"""

import argparse
import hashlib
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from minidalle import recipes
from minidalle.checkpoints import WEIGHTS, load_model, save_model
from minidalle.data.sources import Scenes
from minidalle.files import atomic_write
from minidalle.plots import french
from minidalle.training import Result, train

RUNS = Path("runs")
SIZE = 64
DATA = (
    "scènes de `minidalle.data.scenes`, part « train », tirées à neuf à chaque pas, 64 × 64 pixels ; "
    "leurs émojis viennent d'OpenMoji (openmoji.org, CC BY-SA 4.0)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["scenes-vqvae", "scenes", "tout"], nargs="?", default="tout")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="fils de calcul")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stages = {"scenes-vqvae": make_vqvae, "scenes": make_transformer}
    for name, make in stages.items():
        if options.stage in (name, "tout") and not make():
            sys.exit(130)  # interrompu : l'étape suivante partirait de poids périmés


def make_vqvae() -> bool:
    preset = recipes.preset("vqvae", "reference")
    vqvae = recipes.build("vqvae", preset.model)
    measure = recipes.measure_images(Scenes("test", SIZE), n=512)
    result = fit("scenes-vqvae", vqvae, recipes.image_batches(Scenes("train", SIZE)), preset, measure)
    if result.finished:
        finish("scenes-vqvae", vqvae, result, preset, {"size": str(SIZE)})
    return result.finished


def make_transformer() -> bool:
    preset = recipes.preset("transformer", "reference")
    vqvae, _ = load_model("scenes-vqvae", "vqvae")
    # Un transformeur ne reprend pas sur d'autres yeux que les siens.
    eyes, known = digest(WEIGHTS / "scenes-vqvae.safetensors"), RUNS / "scenes" / "vqvae.sha256"
    if known.exists() and known.read_text() != eyes:
        sys.exit(f"Le VQ-VAE a changé depuis le début de cet entraînement : effacer {RUNS / 'scenes'}.")
    with atomic_write(known, "w") as file:
        file.write(eyes)
    source = Scenes("train", SIZE)
    tokenizer = recipes.build_tokenizer(source)
    transformer = recipes.build_transformer(preset.model, tokenizer, vqvae, SIZE)
    length = transformer.config.text_length
    measure = recipes.measure_transformer(Scenes("test", SIZE), tokenizer, vqvae, length, n=512)
    batches = recipes.token_batches(source, tokenizer, vqvae, length)
    result = fit("scenes", transformer, batches, preset, measure)
    if result.finished:
        notes = {"tokenizer": tokenizer.to_json(), "vqvae": "scenes-vqvae"}
        finish("scenes", transformer, result, preset, notes)
    return result.finished


def fit(name: str, model: nn.Module, batches, preset: recipes.Preset, measure) -> Result:
    out = RUNS / name
    resume = (out / "resume.pt").exists()
    return train(model, batches, preset.training, out, resume=resume, evaluate=measure, label=name)


def finish(
    name: str, model: nn.Module, result: Result, preset: recipes.Preset, notes: dict[str, str]
) -> None:
    """Écrit les poids et leur notice."""
    path = WEIGHTS / f"{name}.safetensors"
    save_model(path, model, half=True, **notes)
    with atomic_write(path.with_suffix(".md"), "w") as file:
        file.write(card(name, model, result, preset, path))
    print(f"{path} : {french(path.stat().st_size / 1e6)} Mo")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listed(settings: dict) -> str:
    """`width=256, dropout=0.1`, comme on l'écrirait en Python."""
    return f"`{', '.join(f'{k}={v}' for k, v in settings.items())}`"


def card(name: str, model: nn.Module, result: Result, preset: recipes.Preset, path: Path) -> str:
    """Notice du modèle, en Markdown."""
    training = asdict(preset.training)
    settings = {k: v for k, v in training.items() if v is not None and k not in ("steps", "seed")}
    kind = type(model).__name__
    lines = [
        f"# {name}",
        "",
        f"- **Modèle** : {kind}, {french(sum(p.numel() for p in model.parameters()))} paramètres, "
        f"flottants sur 16 bits ({french(path.stat().st_size / 1e6)} Mo).",
        f"- **Configuration** : {listed(asdict(model.config))}.",
        f"- **Données** : {DATA}.",
        f"- **Commande** : `make weights` (étape `python tools/weights.py {name}`), "
        f"{french(result.steps)} pas, graine {training['seed']}.",
        f"- **Réglages** : {listed(settings)}.",
        f"- **Durée** : {french(result.history[-1]['seconds'] / 60, 2)} minutes sur "
        f"{torch.get_num_threads()} fil(s) d'un processeur partagé, torch {torch.__version__}.",
        f"- **Empreinte** (sha256) : `{digest(path)}`.",
        "- **Licence** : CC BY-SA 4.0, celle des dessins d'OpenMoji qu'il a appris.",
        "- **Usage** : le monde du livre seulement, ses mots et ses objets. Il ne sait rien d'autre.",
        "",
        "Mesures sur 512 scènes de la part « test » (combinaisons jamais vues), poids moyens :",
        "",
    ]
    names = {
        "step": "pas",
        "loss": "perte d'entraînement",
        "psnr": "PSNR (dB)",
        "codes": "codes employés",
        "test_perplexity": "perplexité des codes",
        "test_loss": "perte de test (nats par jeton)",
        "delta": "Δ (nats par image)",
    }
    rows = [row for row in result.history if "psnr" in row or "delta" in row]
    columns = [column for column in names if column in rows[-1]]
    lines += ["| " + " | ".join(names[c] for c in columns) + " |", "|" + "---:|" * len(columns)]
    lines += ["| " + " | ".join(french(row[c], 4) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
