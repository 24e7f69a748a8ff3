"""« make weights » : refait les poids livrés dans minidalle/weights/, avec leurs notices.

Chaque étape reprend où elle s'était arrêtée (dossier runs/) ; une étape finie ne recalcule que sa notice.
"""

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minidalle import recipes, rewards
from minidalle.checkpoints import WEIGHTS, load_model, save_model
from minidalle.data.sources import Emojis, Mixture, Scenes, Source
from minidalle.evaluation.requests import CATEGORIES
from minidalle.files import atomic_write
from minidalle.generation import pad
from minidalle.plots import french
from minidalle.text import Tokenizer
from minidalle.training import Batches, Result, train

RUNS = Path("runs")
GUIDANCE = "1.5"  # conseillé : le meilleur de `tools.dessiner`
SIZE = 64
DATA = {
    "scenes": "scènes de `minidalle.data.scenes`, part « train », tirées à neuf à chaque pas, 64 × 64 pixels ; "
    "leurs émojis viennent d'OpenMoji (openmoji.org, CC BY-SA 4.0)",
    "mélange": "pour moitié des scènes de `minidalle.data.scenes`, tirées à neuf à chaque pas, pour moitié des émojis "
    "d'OpenMoji (openmoji.org, CC BY-SA 4.0) décalés de 6 pixels au plus ; parts « train », 64 × 64 pixels",
}

DATA["dessins"] = (
    "celles de `recipes.drawing_source` : scènes tirées à neuf à chaque pas, part « train », surtout un ou deux "
    "objets, situés ou non, et des objets tous pareils ; la couleur est toujours dite, sauf pour un quart des "
    "scènes, dont les teintes n'ont pas de nom ; 8 % des légendes sont vides ; les émojis viennent d'OpenMoji "
    "(openmoji.org, CC BY-SA 4.0)"
)
DATA["récompense"] = (
    "pour moitié, ses propres dessins, que l'oracle note (`minidalle.rewards`), sur des demandes permises à "
    "l'entraînement ; pour moitié, les scènes de `recipes.drawing_source`, dont les trois cinquièmes aux teintes sans "
    "nom, et qui contiennent des émojis d'OpenMoji (openmoji.org, CC BY-SA 4.0)"
)
DATA["noms"] = (
    "les émojis d'OpenMoji (openmoji.org, CC BY-SA 4.0) de la part « train », sous leur nom français ; 8 % des noms "
    "sont tus"
)
DATA["clip"] = (
    "pour moitié des scènes de `minidalle.data.scenes`, pour un quart de ces scènes à un seul objet, toutes tirées à "
    "neuf à chaque pas, pour un quart des émojis nommés d'OpenMoji (openmoji.org, CC BY-SA 4.0) décalés de 6 pixels "
    "au plus ; parts « train », 64 × 64 pixels"
)
DATA["clip-ordre"] = (
    "celles de `clip`, mais les scènes ont deux objets, que leur légende situe dès qu'elle le peut ; et dans chaque "
    "lot, les légendes opposées (`scenes.opposite`) de toutes celles qui situent un objet, que chaque image doit "
    "refuser"
)

MEASURED = {
    "scenes": "Mesures sur 512 scènes de la part « test » (combinaisons jamais vues), poids moyens :",
    "mélange": "Mesures de la part « test », poids moyens : 512 scènes (combinaisons jamais vues), 512 émojis "
    "(concepts jamais vus, avec répétitions) ; les codes se comptent sur 1000 images des deux sortes :",
    "clip": "Parts de réponses justes sur la part « test », poids moyens : 256 questions de chaque sorte, et 195 "
    "émojis (voir `minidalle.recipes.examine_clip`) :",
}
MEASURED["clip-ordre"] = MEASURED["clip"]
MEASURED["dessins"] = (
    "Mesures sur 256 scènes fraîches de la part « train », poids moyens ; ce que les modèles savent dessiner des "
    "combinaisons réservées au test est mesuré par `python -m tools.dessiner` :"
)


MEASURED["récompense"] = (
    "Parts de dessins justes, sans guidage, poids moyens, sur 40 demandes fixes de chaque catégorie, combinaisons "
    "réservées au test puis (« vu ») permises ; la mesure complète est celle de `python -m tools.dessiner` :"
)
MEASURED["noms"] = "Mesures sur les émojis de la part « test » (concepts jamais vus), poids moyens :"

# D'où partent les générateurs, quand ce n'est ni du hasard ni des poids tels quels.
STARTS = {
    "scenes-imitation": "le premier générateur du livre (étape `scenes-socle`), greffé sur les jetons de `vqvae` "
    "(`recipes.transplant`)",
    "scenes": "l'étape `scenes-imitation`",
    "scenes-mini": "hasard, sauf les tables de mots et de jetons d'image, reprises de `scenes`",
}


# Ce que la commande ne refait pas tout à fait.
REMARKS = {
    "scenes": "appris par des scripts équivalents : 70 minutes d'imitation en plusieurs reprises, où le dosage des "
    "scènes a changé aux pas 1000 et 1800 avant d'être celui de `drawing_source` ; puis la récompense en quatre "
    "reprises, d'optimiseur neuf : 104 pas au taux 0,0003 et 804 pas au taux 0,0005, où un quart du lot est de vraies "
    "scènes, un quart d'entre elles teintées ; 499 pas à 0,0005 et 317 pas à 0,0004, où c'en est la moitié, trois puis "
    "quatre cinquièmes teintées. Les mesures des pas 0, 104, 908 et 1407 portent sur 60 demandes",
    "emojis": "un même entraînement, prévu pour 2500 pas, et repris au pas 500 pour finir au pas 1200",
    "scenes-mini": "appris par un script équivalent, en deux reprises d'un budget de 37 minutes ; ses tables viennent "
    "de `scenes` pris en cours d'entraînement",
}

USE = "le monde du livre seulement, ses mots et ses objets"
USES = {"emojis": "redessiner les émojis dont il a appris le nom"}


@dataclass(frozen=True)
class Stage:
    """Un auto-encodeur à entraîner.

    Attributes:
        model: nom du modèle ; ses réglages sont ceux de son préréglage « reference ».
        data: clé de `DATA`.
        init: poids livrés dont partir, s'il ne part pas de zéro.
        changes: réglages d'entraînement qui diffèrent du préréglage.
    """

    model: str
    data: str = "mélange"
    init: str | None = None
    changes: dict | None = None


AUTOENCODERS = {
    "scenes-vqvae": Stage("vqvae", "scenes"),
    "autoencoder": Stage("autoencoder"),
    "vae": Stage("vae"),
    "vqvae": Stage("vqvae", init="scenes-vqvae", changes={"steps": 20_000, "learning_rate": 1.5e-3}),
    "dvae": Stage("dvae"),
    "vqgan": Stage("vqgan"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "tout"], nargs="?", default="tout", metavar="ÉTAPE")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="fils de calcul")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, make in STAGES.items():
        if options.stage in (name, "tout") and not make(name):
            sys.exit(130)  # interrompu : l'étape suivante partirait de poids périmés


def make_autoencoder(name: str) -> bool:
    stage = AUTOENCODERS[name]
    preset = recipes.preset(stage.model, "reference")
    preset = replace(preset, training=replace(preset.training, **stage.changes or {}))
    if stage.init:
        model = recipes.ready(load_model(place(stage.init), stage.model)[0])
    else:
        model = recipes.build(stage.model, preset.model, size=SIZE)
    result = fit(name, model, recipes.image_batches(source(stage.data)), preset, measure(stage.data))
    if result.finished:
        finish(name, model, result, preset, {"size": str(SIZE)}, stage.data, stage.init)
    return result.finished


def source(data: str) -> Source:
    scenes = Scenes("train", SIZE)
    return scenes if data == "scenes" else Mixture([scenes, Emojis("train", SIZE, shift=6)])


def measure(data: str) -> Callable[[nn.Module], dict[str, float]]:
    """Mesures sur ce qui est réservé au test ; les codes d'un mélange se comptent sur le mélange."""
    on_scenes = recipes.measure_images(Scenes("test", SIZE), n=512)
    if data == "scenes":
        return on_scenes
    emojis = Emojis("test", SIZE)
    on_emojis = recipes.measure_images(emojis, n=512)
    on_both = recipes.measure_images(Mixture([Scenes("test", SIZE), emojis]), n=1000)
    return lambda model: (
        on_both(model) | {"psnr": on_scenes(model)["psnr"], "emoji_psnr": on_emojis(model)["psnr"]}
    )


# Étapes qui ne sont pas livrées : d'autres en partent. Leurs poids restent dans runs/.
STEPPING_STONES = ("scenes-vqvae", "scenes-socle", "scenes-imitation")


def place(name: str) -> Path:
    """Où une étape range ses poids."""
    return (RUNS / name if name in STEPPING_STONES else WEIGHTS) / f"{name}.safetensors"


def same_eyes(name: str, vqvae: Path) -> None:
    """Arrête tout si le segmenteur d'images a changé : un transformeur ne reprend pas sur d'autres yeux."""
    eyes, known = digest(vqvae), RUNS / name / "vqvae.sha256"
    if known.exists() and known.read_text() != eyes:
        sys.exit(f"Le VQ-VAE a changé depuis le début de cet entraînement : effacer {RUNS / name}.")
    with atomic_write(known, "w") as file:
        file.write(eyes)


def make_first_dalle(name: str) -> bool:
    """Le transformeur du « Socle », sur ses propres jetons : il a appris à lire, et sert de corps à la greffe."""
    preset = recipes.preset("dalle", "socle")
    same_eyes(name, place("scenes-vqvae"))
    vqvae, _ = load_model(place("scenes-vqvae"), "vqvae")
    source = Scenes("train", SIZE)
    tokenizer = recipes.build_tokenizer(source)
    transformer = recipes.build_generator("dalle", preset.model, tokenizer, vqvae, SIZE)
    length = transformer.config.text_length
    measure = recipes.measure_dalle(Scenes("test", SIZE), tokenizer, vqvae, length, n=512)
    batches = recipes.token_batches(source, tokenizer, vqvae, length)
    result = fit(name, transformer, batches, preset, measure)
    if result.finished:
        notes = {"tokenizer": tokenizer.to_json(), "vqvae": "scenes-vqvae"}
        finish(name, transformer, result, preset, notes, "scenes")
    return result.finished


def make_generator(name: str) -> bool:
    """« scenes-imitation », un DALL·E greffé sur celui du Socle, et « scenes-mini », un DALL·E mini."""
    model = {"scenes-imitation": "dalle", "scenes-mini": "dalle_mini"}[name]
    preset = recipes.preset(model, "reference")
    same_eyes(name, place("vqvae"))
    vqvae, _ = load_model(place("vqvae"), "vqvae")
    first, notes = load_model(place("scenes-socle"), "dalle")
    tokenizer = Tokenizer.from_json(notes["tokenizer"])
    network = recipes.build_generator(model, preset.model, tokenizer, vqvae, SIZE)
    if model == "dalle":
        recipes.transplant(first, load_model(place("scenes-vqvae"), "vqvae")[0], network, vqvae)
    else:
        recipes.lend_tables(load_model(place("scenes"), "dalle")[0], network)
    length = network.config.text_length
    batches = practice(tokenizer, vqvae, length, tinted=0.25)
    fresh = recipes.drawing_source(SIZE, tinted=0.0)
    measure = recipes.measure_dalle(fresh, tokenizer, vqvae, length, n=256)
    result = fit(name, network, batches, preset, measure)
    if result.finished:
        notes = {"tokenizer": tokenizer.to_json(), "vqvae": "vqvae", "guidance": GUIDANCE}
        finish(name, network, result, preset, notes, "dessins", packed=True)
        if name in STEPPING_STONES:  # pour qu'il dessine, de là où il est
            shutil.copy(place("vqvae"), place(name).with_name("vqvae.safetensors"))
    return result.finished


def practice(tokenizer: Tokenizer, vqvae: nn.Module, length: int, tinted: float) -> Batches:
    """Les scènes dont apprennent les générateurs ; `tinted` est la part de teintes sans nom."""
    drawn = recipes.drawing_source(SIZE, tinted=tinted)
    return recipes.token_batches(drawn, tokenizer, vqvae, length, caption_dropout=0.08)


def make_rewarded(name: str) -> bool:
    """« scenes » : l'étape d'imitation, puis ses propres dessins."""
    preset = recipes.preset("dalle", "recompense")
    same_eyes(name, place("vqvae"))
    vqvae, _ = load_model(place("vqvae"), "vqvae")
    network, before = load_model(place("scenes-imitation"), "dalle")
    tokenizer = Tokenizer.from_json(before["tokenizer"])
    length = network.config.text_length
    real = practice(tokenizer, vqvae, length, tinted=0.6)
    batches = rewards.rewarded_batches(network, tokenizer, vqvae, real)
    result = fit(name, network, batches, preset, rewards.measure_drawings(tokenizer, vqvae))
    if result.finished:
        notes = {"tokenizer": tokenizer.to_json(), "vqvae": "vqvae", "guidance": GUIDANCE}
        finish(name, network, result, preset, notes, "récompense", packed=True, before=before["minutes"])
    return result.finished


def make_names(name: str) -> bool:
    """« emojis » : un petit DALL·E qui dessine un émoji d'après son nom, toujours les mêmes images."""
    preset = recipes.preset("dalle", "emojis")
    same_eyes(name, place("vqvae"))
    vqvae, _ = load_model(place("vqvae"), "vqvae")
    known, unknown = Emojis("train", SIZE), Emojis("test", SIZE)
    tokenizer = recipes.build_tokenizer(known, vocabulary=1024)
    network = recipes.build_generator("dalle", preset.model, tokenizer, vqvae, SIZE)
    length = network.config.text_length
    images = recipes.encode(vqvae, known.images)  # une fois pour toutes : ces images ne bougent pas
    texts = pad([tokenizer.encode(text, length).ids for text in known.names], length)

    def batches(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        picks = torch.from_numpy(rng.integers(len(images), size=n))
        told = torch.from_numpy(rng.random(n) >= 0.08)
        return texts[picks] * told[:, None], images[picks]

    measure = recipes.measure_dalle(unknown, tokenizer, vqvae, length, n=192)
    result = fit(name, network, batches, preset, measure)
    if result.finished:
        notes = {"tokenizer": tokenizer.to_json(), "vqvae": "vqvae"}
        finish(name, network, result, preset, notes, "noms", packed=True)
    return result.finished


# « clip-ordre » n'a que l'ordre à apprendre.
ORDER = {"steps": 400, "evaluate_every": 100}


def make_clip(name: str) -> bool:
    """« clip » part de zéro ; « clip-ordre » en repart, avec les légendes opposées dans chaque lot."""
    source = recipes.clip_source(SIZE, situated=name != "clip")
    preset = recipes.preset("clip", "reference")
    if name == "clip":
        init, opposites = None, 0.0
        tokenizer = recipes.build_tokenizer(source, vocabulary=1024)
        model = recipes.build_clip(preset.model, tokenizer, SIZE)
    else:
        init, opposites = "clip", 1.0
        preset = replace(preset, training=replace(preset.training, **ORDER))
        model, notes = load_model(init, "clip")
        tokenizer = Tokenizer.from_json(notes["tokenizer"])
    batches = recipes.clip_batches(source, tokenizer, model.config.length, opposites)
    result = fit(name, model, batches, preset, recipes.measure_clip(tokenizer, SIZE))
    if result.finished:
        notes = {"tokenizer": tokenizer.to_json()}
        finish(name, model, result, preset, notes, name, init)
    return result.finished


STAGES = (
    dict.fromkeys(AUTOENCODERS, make_autoencoder)
    | {"scenes-socle": make_first_dalle, "scenes-imitation": make_generator, "scenes": make_rewarded}
    | {"scenes-mini": make_generator, "emojis": make_names}
    | {"clip": make_clip, "clip-ordre": make_clip}
)


def fit(name: str, model: nn.Module, batches, preset: recipes.Preset, measure) -> Result:
    out = RUNS / name
    resume = (out / "resume.pt").exists()
    return train(model, batches, preset.training, out, resume=resume, evaluate=measure, label=name)


def finish(
    name: str,
    model: nn.Module,
    result: Result,
    preset: recipes.Preset,
    notes: dict[str, str],
    data: str,
    init: str | None = None,
    *,
    packed: bool = False,
    before: str | None = None,
) -> None:
    """Écrit les poids et leur notice ; `before` est la durée de l'étape d'où l'on part, si elle n'est pas livrée."""
    path = place(name)
    minutes = french(result.history[-1]["seconds"] / 60, 2)
    minutes = f"{before} + {minutes}" if before else minutes
    save_model(path, model, half=True, packed=packed, minutes=minutes, **notes)
    with atomic_write(path.with_suffix(".md"), "w") as file:
        file.write(card(name, model, result, preset, path, data, init))
    print(f"{path} : {french(path.stat().st_size / 1e6)} Mo")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listed(settings: dict) -> str:
    """`width=256, dropout=0.1`, comme on l'écrirait en Python."""
    return f"`{', '.join(f'{k}={v}' for k, v in settings.items())}`"


def card(
    name: str,
    model: nn.Module,
    result: Result,
    preset: recipes.Preset,
    path: Path,
    data: str,
    init: str | None,
) -> str:
    """Notice du modèle, en Markdown."""
    training = asdict(preset.training)
    settings = {k: v for k, v in training.items() if v is not None and k not in ("steps", "seed")}
    kind = type(model).__name__
    packed = data in ("dessins", "récompense", "noms")
    storage = "matrices sur 8 bits, le reste sur 16" if packed else "flottants sur 16 bits"
    lines = [
        f"# {name}",
        "",
        f"- **Modèle** : `{kind}`, {french(sum(p.numel() for p in model.parameters()))} paramètres, "
        f"{storage} ({french(path.stat().st_size / 1e6)} Mo).",
        f"- **Configuration** : {listed(asdict(model.config))}.",
        f"- **Données** : {DATA[data]}.",
        f"- **Départ** : {STARTS.get(name) or (f'les poids `{init}`' if init else 'poids tirés au hasard')}.",
        f"- **Commande** : `make weights` (étape `python tools/weights.py {name}`), "
        f"{french(result.steps)} pas, graine {training['seed']}.",
        f"- **Réglages** : {listed(settings)}.",
        f"- **Durée** : {french(result.history[-1]['seconds'] / 60, 2)} minutes sur "
        f"{torch.get_num_threads()} fil(s) d'un processeur partagé, torch {torch.__version__}.",
        f"- **Empreinte** (sha256) : `{digest(path)}`.",
        *([f"- **Remarque** : {REMARKS[name]}."] if name in REMARKS else []),
        "- **Licence** : CC BY-SA 4.0, celle des dessins d'OpenMoji qu'il a appris.",
        f"- **Usage** : {USES.get(name, USE)}. Il ne sait rien d'autre.",
        "",
        MEASURED[data],
        "",
    ]
    names = {
        "step": "pas",
        "loss": "perte d'entraînement",
        "psnr": "PSNR, scènes (dB)",
        "kl": "KL (nats par image)",
        "emoji_psnr": "PSNR, émojis (dB)",
        "codes": "codes employés",
        "test_perplexity": "perplexité des codes",
        "test_loss": "perte de test (nats par jeton)",
        "delta": "Δ (nats par image)",
        "recall": "bonne légende (sur 256)",
        "shape": "forme",
        "colour": "couleur",
        "order": "ordre",
        "emoji": "émoji (sur 195)",
    } | {f"{c}{seen}": f"{c}{' (vu)' if seen else ''}" for c in CATEGORIES for seen in ("", "_vu")}
    rows = [row for row in result.history if {"psnr", "delta", "recall", "couleur"} & row.keys()]
    columns = [column for column in names if column in rows[-1]]
    lines += ["| " + " | ".join(names[c] for c in columns) + " |", "|" + "---:|" * len(columns)]
    lines += [
        "| " + " | ".join(french(row[c], 4) if c in row else "–" for c in columns) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
