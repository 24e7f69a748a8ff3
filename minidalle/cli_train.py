"""`minidalle train` : entraîner un modèle du livre, sur les données que l'on veut, et reprendre où l'on en était."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from minidalle.cli_common import few, positive
from minidalle.cli_sources import MADE, MIXED, NAMED, open_source, tell_credit
from minidalle.errors import MinidalleError
from minidalle.files import atomic_write
from minidalle.typer_fr import BAD_IMAGES_HELP, INTERRUPTED, natural, number

if TYPE_CHECKING:
    from torch import nn

    from minidalle.data.sources import Source
    from minidalle.text import Tokenizer
    from minidalle.training import Batches, Result, TrainingConfig

EPILOG = (
    "Exemples : minidalle train vqvae --data scenes --out essai --minutes 5\n"
    "           minidalle train dalle-mini --data scenes --out essai\n"
    "           minidalle train --out essai --resume"
)
_DEFAULTS = {"preset": "mini", "seed": 0, "size": 64, "vqvae": "vqvae", "bad_images": "fail"}
REWARDED = "recompense"
_MEASURES = {
    "loss": "perte",
    "image": "perte de l'image",
    "text": "perte du texte",
    "reconstruction": "perte de reconstruction",
    "commitment": "engagement",
    "kl": "divergence KL (nats)",
    "perplexity": "perplexité",
    "accuracy": "légendes reconnues dans le lot",
    "scale": "échelle des cosinus",
    "psnr": "PSNR (dB)",
    "codes": "codes employés",
    "test_perplexity": "perplexité au test",
    "test_loss": "perte au test",
    "delta": "écart Δ entre mauvaise et bonne légende (nats)",
    "recall": "légendes retrouvées",
    "shape": "formes justes",
    "colour": "couleurs justes",
    "order": "ordres justes",
    "emoji": "émojis justes",
    "couleur": "dessins justes, couleur jamais vue",
    "paire": "dessins justes, paire jamais vue",
    "relation": "dessins justes, disposition jamais vue",
    "nombre": "dessins justes, objets comptés jamais vus",
}
# Leur perte suit tout le lot (dictionnaire, usage des codes, adversaire) : des tranches donneraient autre chose.
_WHOLE_BATCH = ("vqvae", "dvae", "vqgan")


def train(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DOSSIER", help="Où ranger poids, mesures et point de reprise."),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODÈLE",
            help="« autoencoder », « vae », « vqvae », « dvae », « vqgan », « dalle », « dalle-mini », « clip ».",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="« scenes », « openmoji », « scenes+openmoji », « tuxpaint » ou un dossier d'images légendées.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NOM",
            show_default=_DEFAULTS["preset"],
            help="« mini » (une minute), « reference » (les poids livrés) ; pour un générateur et les scènes, "
            "« recompense » : il apprend de ses propres dessins, que l'oracle note.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continuer l'entraînement de ce dossier, sans rien redire d'autre."),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", metavar="DURÉE", callback=positive, help="Budget en minutes, non reproductible."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="ENTIER",
            callback=positive,
            show_default="selon le préréglage",
            help="Budget en pas d'optimisation.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="ENTIER",
            callback=natural,
            show_default=str(_DEFAULTS["seed"]),
            help="Graine des poids initiaux et de l'ordre des données.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PIXELS",
            callback=few,
            show_default=str(_DEFAULTS["size"]),
            help="Côté des images.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="TYPE",
            show_default="selon le préréglage",
            help="« float32 », ou « bfloat16 », plus rapide si le processeur le connaît.",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="NOM",
            show_default="selon le préréglage",
            help="« adamw », ou « muon », qui redresse les pas des matrices des blocs.",
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compiled/--no-compiled",
            show_default="selon le préréglage",
            help="Compiler le calcul, ou non (--no-compiled) : une minute perdue, puis des pas plus rapides.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", metavar="CHEMIN|NOM", help="Partir de ces poids, non de poids tirés au hasard."
        ),
    ] = None,
    vqvae: Annotated[
        str | None,
        typer.Option(
            "--vqvae",
            metavar="CHEMIN|NOM",
            show_default=_DEFAULTS["vqvae"],
            help="Pour « dalle » et « dalle-mini » : l'auto-encodeur qui met les images en jetons.",
        ),
    ] = None,
    bad_images: Annotated[
        str | None,
        typer.Option(
            "--bad-images", metavar="CHOIX", show_default=_DEFAULTS["bad_images"], help=BAD_IMAGES_HELP
        ),
    ] = None,
) -> None:
    """Entraîner un modèle.

    Ctrl-C ne perd rien : avec --resume, l'entraînement reprend exactement où il en était. Sur plusieurs GPU :
    accelerate launch --num_processes 4 -m minidalle train …, ou torchrun --nproc-per-node 4 -m minidalle train … ;
    le lot se partage entre les processus et les nombres restent ceux d'un seul.
    """
    from minidalle.processes import join
    from minidalle.training import train as run

    if minutes and steps:
        raise MinidalleError("Deux budgets à la fois : choisir --minutes ou --steps.")
    given = {
        "model": model and model.replace("-", "_"),
        "data": data if data in (None, *NAMED) else str(Path(data).resolve()),
        "preset": preset,
        "seed": seed,
        "size": size,
        "precision": precision,
        "optimizer": optimizer,
        "init": init and _lasting(init),
        "vqvae": vqvae and _lasting(vqvae),
        "bad_images": bad_images,
    }
    given = {name: value for name, value in given.items() if value is not None}
    changes = {"steps": steps, "minutes": None} if steps else {"minutes": minutes} if minutes else {}
    changes |= {} if compiled is None else {"compiled": compiled}
    training = _resume(out, given, changes) if resume else _start(out, given, changes)
    team, name = join(), training.options["model"]
    if team.count > 1 and name in _WHOLE_BATCH:
        raise MinidalleError(f"« {name} » apprend d'un lot entier : l'entraîner sur un seul processus.")
    batches, measure, notes = _recipe(training)
    if team.first:
        _keep(out, training)
        _announce(training)
    result = run(
        training.network, batches, training.config, out, resume=resume, evaluate=measure, label=_spoken(name)
    )
    if not result.finished:
        raise typer.Exit(INTERRUPTED)
    if team.first:
        _conclude(out / "model.safetensors", training, result, notes)


class _Training(NamedTuple):
    """Ce qu'il faut pour entraîner ; CLIP a un segmenteur, un générateur a aussi des jetons d'image."""

    options: dict
    config: "TrainingConfig"
    network: "nn.Module"
    tokenizer: "Tokenizer | None" = None
    vqvae: "nn.Module | None" = None


def _spoken(model: str) -> str:
    """« dalle_mini » se dit « dalle-mini »."""
    return model.replace("_", "-")


def _announce(training: _Training) -> None:
    options, config, network, *_ = training
    side, parameters = options["size"], sum(p.numel() for p in network.parameters())
    length = f"{number(config.minutes)} min" if config.minutes else f"{number(config.steps)} pas"
    tell_credit(options["data"])
    typer.echo(f"Données : {options['data']}, {side} × {side} pixels.")
    typer.echo(f"Modèle : {_spoken(options['model'])}, {number(parameters)} paramètres.")
    typer.echo(f"Budget : {length}, par lots de {config.batch_size}.")
    if options["data"] not in (*MADE, MIXED):
        typer.echo("Un dossier n'a pas de part « test » : les mesures porteront sur les images apprises.")


def _conclude(path: Path, training: _Training, result: "Result", notes: dict) -> None:
    """Écrit les poids et dit les dernières mesures."""
    from minidalle.checkpoints import save_model

    options = training.options
    save_model(path, training.network, size=str(options["size"]), data=Path(options["data"]).name, **notes)
    typer.echo(f"Après {number(result.steps)} pas :")
    for name, value in (result.history or [{}])[-1].items():
        if name in _MEASURES:
            typer.echo(f"  {_MEASURES[name]} : {number(value)}")
    typer.echo(path)


# --- commencer ------------------------------------------------------------------------------------


def _start(out: Path, given: dict, changes: dict) -> _Training:
    from minidalle import recipes

    if (out / "resume.pt").exists():
        raise MinidalleError(
            f"« {out} » contient déjà un entraînement : le continuer avec --resume, ou changer de dossier."
        )
    if "model" not in given or "data" not in given:
        raise MinidalleError(
            "Il faut un modèle et des données : minidalle train vqvae --data scenes --out essai."
        )
    if "vqvae" in given and (given["model"] not in recipes.GENERATORS or "init" in given):
        raise MinidalleError("L'option --vqvae ne va qu'avec un transformeur neuf, sans --init : la retirer.")
    options = _DEFAULTS | given
    preset = recipes.preset(options["model"], options["preset"])
    chosen = {name: options[name] for name in ("seed", "precision", "optimizer") if name in options}
    config = replace(preset.training, **changes | chosen)
    new = {"clip": _new_clip} | dict.fromkeys(recipes.GENERATORS, _new_generator)
    return _Training(options, config, *new.get(options["model"], _new_autoencoder)(options, preset.model))


def _new_autoencoder(options: dict, sizes: dict) -> tuple["nn.Module"]:
    from minidalle import recipes
    from minidalle.checkpoints import load_model

    name, side = options["model"], options["size"]
    if init := options.get("init"):
        network = recipes.ready(load_model(init, name)[0])
    else:
        network = recipes.build(name, sizes, options["seed"], side)
    _check_side(side, network)
    return (network,)


def _new_clip(options: dict, sizes: dict) -> tuple["nn.Module", "Tokenizer"]:
    from minidalle import recipes
    from minidalle.checkpoints import load_model
    from minidalle.text import Tokenizer

    side = options["size"]
    if init := options.get("init"):
        network, notes = load_model(init, "clip")
        _check_side(side, network)
        if "tokenizer" not in notes:
            raise MinidalleError(f"« {init} » a perdu son vocabulaire : l'entraîner à nouveau.")
        return network, Tokenizer.from_json(notes["tokenizer"])
    tokenizer = recipes.build_tokenizer(_source(options, "train"), vocabulary=1024)
    return recipes.build_clip(sizes, tokenizer, side, options["seed"]), tokenizer


def _new_generator(options: dict, sizes: dict) -> tuple["nn.Module", "Tokenizer", "nn.Module"]:
    from minidalle import recipes
    from minidalle.checkpoints import load_model
    from minidalle.generation import TextToImage

    name, side = options["model"], options["size"]
    if init := options.get("init"):
        load_model(init, name)  # refuse l'autre générateur
        painter = TextToImage.load(init)
        own = painter.transformer.config.grid[0] * painter.vqvae.config.factor
        if side != own:
            raise MinidalleError(f"« {init} » dessine des images de {own} pixels : ajouter --size {own}.")
        return painter.transformer, painter.tokenizer, painter.vqvae
    vqvae, notes = load_model(options["vqvae"])
    if not hasattr(vqvae, "encode") or not hasattr(vqvae.config, "codes"):
        raise MinidalleError(
            f"« {options['vqvae']} » contient un modèle « {notes['model']} », qui ne met pas une image en jetons : "
            f"choisir un « vqvae », un « dvae » ou un « vqgan »."
        )
    _check_side(side, vqvae)
    tokenizer = recipes.build_tokenizer(_source(options, "train"))
    network = recipes.build_generator(name, sizes, tokenizer, vqvae, side, options["seed"])
    return network, tokenizer, vqvae


def _recipe(training: _Training) -> tuple:
    """Lots, mesure et notes à garder avec les poids."""
    from minidalle import recipes

    options, _, network, tokenizer, vqvae = training
    source = _source(options, "train")
    made = options["data"] in (*MADE, MIXED)
    held_out = _source(options, "test") if made else source
    if not tokenizer:
        return recipes.image_batches(source), recipes.measure_images(held_out), {}
    notes = {"tokenizer": tokenizer.to_json()}
    if not vqvae:
        # L'examen ne connaît que le monde du livre.
        exam = recipes.measure_clip(tokenizer, options["size"]) if made else None
        measure = exam or recipes.measure_recall(held_out, tokenizer)
        return recipes.clip_batches(source, tokenizer, network.config.length), measure, notes
    pieces = (tokenizer, vqvae, network.config.text_length)
    notes |= {"vqvae": "vqvae"}
    if options["preset"] == REWARDED:
        return *_rewarded(training, recipes.token_batches(source, *pieces)), notes
    return recipes.token_batches(source, *pieces), recipes.measure_dalle(held_out, *pieces), notes


def _rewarded(training: _Training, practice: "Batches") -> tuple:
    """Lots et mesure d'un générateur qui apprend de ses dessins."""
    from minidalle import rewards

    options, _, network, *pieces = training
    if options["data"] != "scenes" or "init" not in options:
        raise MinidalleError(
            "L'oracle ne sait noter que des scènes, et d'un modèle qui en dessine déjà : "
            "ajouter --data scenes --init scenes."
        )
    return rewards.rewarded_batches(network, *pieces, practice), rewards.measure_drawings(*pieces)


def _source(options: dict, split: str) -> "Source":
    """Les données demandées ; les scènes, avec les légendes et le dosage qui vont au modèle."""
    from minidalle import recipes
    from minidalle.data.sources import Emojis, Mixture, Scenes

    model, data, side = options["model"], options["data"], options["size"]
    if model == "clip" and data == MIXED:
        return recipes.clip_source(side, split)
    if model == "clip" and data == "scenes":
        return Scenes(split, side, recipes.CLIP_CAPTION)
    if model in recipes.GENERATORS and data in ("scenes", MIXED):
        drawn = recipes.drawing_source(side, split)
        return drawn if data == "scenes" else Mixture([drawn, Emojis(split, side)])
    return open_source(data, split, side, options.get("bad_images", "fail"))


# --- reprendre ------------------------------------------------------------------------------------


def _keep(out: Path, training: _Training) -> None:
    """Écrit ce qui permet de reprendre sans rien redire et, pour un générateur, de dessiner."""
    from minidalle.checkpoints import save_model

    options, config, network, tokenizer, vqvae = training
    if tokenizer:
        tokenizer.save(out / "tokenizer.json")
    if vqvae:
        save_model(out / "vqvae.safetensors", vqvae, size=str(options["size"]))
    saved = {"options": options, "training": asdict(config), "network": asdict(network.config)}
    with atomic_write(out / "train.json", "w") as file:
        json.dump(saved, file, ensure_ascii=False, indent=1)


def _resume(out: Path, given: dict, changes: dict) -> _Training:
    """Ce que `_keep` a écrit, `changes` mis à part ; les poids viendront du point de reprise."""
    from minidalle import recipes
    from minidalle.checkpoints import load_model, model_class
    from minidalle.text import Tokenizer
    from minidalle.training import TrainingConfig

    path = out / "train.json"
    if not path.exists():
        raise MinidalleError(f"Rien à reprendre dans « {out} » : lancer d'abord sans --resume.")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        options, config = saved["options"], TrainingConfig(**saved["training"])
        cls = model_class(options["model"])
        network = recipes.ready(cls(cls.Config(**saved["network"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MinidalleError(f"« {path} » est abîmé : recommencer dans un autre dossier.") from error
    for name, value in given.items():
        if options.get(name) != value:
            raise MinidalleError(
                f"Reprise impossible : « {name} » valait {options.get(name, 'rien')}, pas {value} ; "
                f"ne pas le redonner, ou changer de dossier."
            )
    pieces = ()
    if options["model"] in ("clip", *recipes.GENERATORS):
        pieces = (Tokenizer.load(out / "tokenizer.json"),)
    if options["model"] in recipes.GENERATORS:
        pieces += (load_model(out / "vqvae.safetensors")[0],)
    return _Training(options, replace(config, **changes), network, *pieces)


def _check_side(side: int, autoencoder: "nn.Module") -> None:
    config = autoencoder.config
    own = getattr(config, "size", None)
    if own not in (None, side):
        raise MinidalleError(f"Ce modèle connaît des images de {own} pixels : ajouter --size {own}.")
    if own is None and side % config.factor:
        raise MinidalleError(f"Ce modèle veut un côté multiple de {config.factor} : changer --size {side}.")


def _lasting(name: str) -> str:
    """Désignation de poids qui vaut encore depuis un autre dossier."""
    from minidalle.checkpoints import WEIGHTS, find_weights

    path = find_weights(name)
    return path.stem if path.parent == WEIGHTS else str(path.resolve())
