"""Lire les modèles publiés, depuis des fichiers que le lecteur a déjà, et les écrire au format du livre.

Rien n'est téléchargé. Ces fichiers sont des pickles, qui pourraient exécuter du code : PyTorch n'y lit que des
tableaux (`weights_only`), et les classes étrangères y sont remplacées par une classe vide. Les tableaux passent
d'un fichier à l'autre un par un, sans changer de précision : la mémoire n'en tient jamais qu'un.

Sources : openai/DALL-E, taming-transformers et min-dalle, dont viennent les noms des poids.
"""

import errno
import json
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.checkpoints import FORMAT
from minidalle.errors import MinidalleError, reason
from minidalle.files import atomic_write
from minidalle.models.dalle_mini import DALLEMini, DALLEMiniConfig
from minidalle.models.discriminator import PatchDiscriminator
from minidalle.models.dvae import DVAE, DVAEConfig
from minidalle.models.vqgan import VQGAN, VQGANConfig
from minidalle.text import ByteTokenizer

Weights = dict[str, Tensor]
# Nos poids, chacun comme la liste des tableaux publiés qu'il met bout à bout.
Parts = dict[str, list[Tensor]]

HEAD_WIDTH = 64  # largeur d'une tête d'attention, la même dans les deux tailles publiées


def convert(kind: str, path: Path | str, out: Path | str) -> list[Path]:
    """Lit un modèle publié et l'écrit dans le dossier `out`.

    Args:
        kind: « dvae », « vqgan » ou « min-dalle ».
        path: le fichier, ou le dossier qui contient les fichiers sous leurs noms publiés.
        out: dossier à remplir ; `model.safetensors`, et pour min-dalle `vqgan.safetensors` à côté.

    Returns:
        Fichiers écrits.

    Raises:
        MinidalleError: genre inconnu, fichier absent, abîmé, ou d'un autre modèle.
    """
    if kind not in KINDS:
        raise MinidalleError(f"Genre de modèle « {kind} » inconnu : choisir parmi {', '.join(KINDS)}.")
    return KINDS[kind](Path(path), Path(out))


# --- dVAE d'OpenAI --------------------------------------------------------------------------------

_DVAE_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
    "torch.nn.modules.linear.Identity",
)


def import_dvae(path: Path, out: Path) -> list[Path]:
    """Dossier de `encoder.pkl` et `decoder.pkl` → `model.safetensors`, un `DVAE`."""
    encoder = read_weights(_find(path, "encoder.pkl"), _DVAE_CLASSES)
    decoder = read_weights(_find(path, "decoder.pkl"), _DVAE_CLASSES)
    groups = _count(encoder, r"blocks\.group_(\d+)\.")
    blocks = _count(encoder, r"blocks\.group_1\.block_(\d+)\.")
    with _explained(path):
        config = DVAEConfig(
            hidden=len(encoder["blocks.input.w"]),
            groups=groups,
            blocks_per_group=blocks,
            codes=len(encoder["blocks.output.conv.w"]),
            code_dim=len(decoder["blocks.input.w"]),
            kl_weight=6.6,
            kl_steps=5000,
            anneal_steps=150_000,
            min_log_scale=float("-inf"),
        )
    parts: Parts = {"step": [torch.tensor(config.anneal_steps)]}
    for source, name, first, last in (
        (encoder, "encoder", "input", "logits"),
        (decoder, "decoder", "codebook", "stats"),
    ):
        renames = {"blocks.input": first, "blocks.output.conv": last}
        for group in range(groups):
            for block in range(blocks):
                # Un groupe est suivi de ce qui change la définition : une couche de plus.
                ours, theirs = (
                    f"{name}.{group * (blocks + 1) + block}",
                    f"group_{group + 1}.block_{block + 1}",
                )
                if f"blocks.{theirs}.id_path.w" in source:
                    renames[f"blocks.{theirs}.id_path"] = f"{ours}.identity"
                for i in range(1, 5):
                    renames[f"blocks.{theirs}.res_path.conv_{i}"] = f"{ours}.residual.{2 * i - 1}"
        wanted = {
            f"{b}.{long}": [f"{a}.{short}"] for a, b in renames.items() for short, long in _LONG.items()
        }
        parts |= _take(source, wanted, path)
    return [_write(out / "model.safetensors", DVAE, config, parts)]


_LONG = {"w": "weight", "b": "bias"}

# --- VQGAN ----------------------------------------------------------------------------------------

_LIGHTNING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.base.Callback",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


def import_vqgan(path: Path, out: Path) -> list[Path]:
    """Fichier .ckpt de taming, ou `detoker.pt` de min-dalle → `model.safetensors`, un `VQGAN`."""
    return [_import_vqgan(_find(path, "last.ckpt", "model.ckpt", "detoker.pt"), out / "model.safetensors")]


def _import_vqgan(path: Path, out: Path) -> Path:
    source = read_weights(path, _LIGHTNING)
    # Le critique et l'œil perceptuel voyagent sous « loss » : ils ne servent qu'à l'entraînement.
    source = {key: tensor for key, tensor in source.items() if not key.startswith("loss.")}
    whole = "quantize.embedding.weight" in source
    table = "quantize.embedding.weight" if whole else "embedding.weight"
    with _explained(path):
        config = _vqgan_config(source, source[table])
    model = _empty(VQGAN, config)
    wanted = {"quantizer.codebook": [table]}
    painter = ("decoder.", "post_quant_conv.")
    for key in model.state_dict():
        if key.startswith((*painter, "encoder.", "quant_conv.")):
            wanted[key] = [key]
    parts = _take(source, wanted, path)
    if not whole:
        # min-dalle peint de 0 à 1, taming de −1 à 1 : la dernière convolution rend 2x − 1.
        parts["decoder.conv_out.weight"] = [2 * source["decoder.conv_out.weight"].float()]
        parts["decoder.conv_out.bias"] = [2 * source["decoder.conv_out.bias"].float() - 1]
    return _write(out, VQGAN, config, parts | _untrained(model))


def _vqgan_config(source: Weights, table: Tensor) -> VQGANConfig:
    """Tailles lues dans celles des tableaux ; les 32 groupes de canaux, eux, n'en laissent pas trace."""
    stages = range(_count(source, r"decoder\.up\.(\d+)\.", 0))
    widths = [len(source[f"decoder.up.{i}.block.0.conv1.weight"]) for i in stages]
    channels = len(source["encoder.conv_in.weight"]) if "encoder.conv_in.weight" in source else widths[0]
    return VQGANConfig(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=tuple(_count(source, rf"decoder\.up\.{i}\.block\.(\d+)\.", 0) - 1 for i in stages),
        attention=tuple(i for i in stages if f"decoder.up.{i}.attn.0.q.weight" in source),
        groups=32,
        grid_channels=source["decoder.conv_in.weight"].shape[1],
        codes=len(table),
        code_dim=table.shape[1],
        decay=0.0,
        dead_below=0.0,
        init="uniform",
        encoder="encoder.conv_in.weight" in source,
    )


def _untrained(model: VQGAN) -> Parts:
    """Ce qu'un fichier publié n'a pas : compteurs et critique."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        config = model.config
        critic = PatchDiscriminator(config.discriminator_width, config.discriminator_layers)
    parts = {f"discriminator.{key}": [tensor] for key, tensor in critic.state_dict().items()}
    counters = {"quantizer.started": torch.tensor(True), "quantizer.counts": torch.zeros(config.codes)}
    return parts | {key: [tensor] for key, tensor in (counters | {"step": torch.tensor(0)}).items()}


# --- DALL·E mini ----------------------------------------------------------------------------------

# Notre nom → les leurs, à mettre bout à bout.
_LAYER = {
    "norm.bias": ["pre_self_attn_layer_norm.bias"],
    "attention.queries_keys_values.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
    "attention.output.weight": ["self_attn.out_proj.weight"],
    "post_norm.weight": ["self_attn_layer_norm.weight"],
    "post_norm.bias": ["self_attn_layer_norm.bias"],
    "dense.norm.bias": ["glu.ln0.bias"],
    "dense.gate_value.weight": ["glu.fc0.weight", "glu.fc1.weight"],
    "dense.inner_norm.bias": ["glu.ln1.bias"],
    "dense.output.weight": ["glu.fc2.weight"],
}
_CROSS = {
    "cross_norm.bias": ["pre_encoder_attn_layer_norm.bias"],
    "cross_attention.queries.weight": ["encoder_attn.q_proj.weight"],
    "cross_attention.keys_values.weight": [f"encoder_attn.{x}_proj.weight" for x in "kv"],
    "cross_attention.output.weight": ["encoder_attn.out_proj.weight"],
    "cross_post_norm.weight": ["encoder_attn_layer_norm.weight"],
    "cross_post_norm.bias": ["encoder_attn_layer_norm.bias"],
}
# Échelles que les modèles publiés n'ont pas : absentes de leurs fichiers, ou égales à 1.
_SCALES = re.compile(
    r"(layers\.\d+\.(pre_self_attn_layer_norm|pre_encoder_attn_layer_norm|glu\.ln[01])|final_ln)\.weight"
)


def import_min_dalle(path: Path, out: Path) -> list[Path]:
    """Dossier de min-dalle, mini ou mega → `model.safetensors`, un `DALLEMini`, et `vqgan.safetensors`."""
    if not path.is_dir():
        raise MinidalleError(
            f"« {path} » n'est pas un dossier : donner celui où sont encoder.pt et decoder.pt."
        )
    if (path / "encoder.pt").exists() and (path / "encoder_mini.pt").exists():
        raise MinidalleError(f"« {path} » contient les modèles mini et mega : donner à chacun son dossier.")
    files = [_find(path, name, name.replace(".", "_mini.")) for name in ("encoder.pt", "decoder.pt")]
    vocabulary = [_find(path, name, name.replace(".", "_mini.")) for name in ("vocab.json", "merges.txt")]
    detokenizer = _find(path, "detoker.pt", "vqgan/detoker.pt", "../vqgan/detoker.pt")
    tokenizer = ByteTokenizer.from_files(*vocabulary)
    encoder, decoder = (_without_scales(read_weights(file), file) for file in files)
    codes = len(read_weights(detokenizer).get("embedding.weight", ()))
    with _explained(path):
        config = _mini_config(encoder, decoder, len(tokenizer), codes)
    parts = dalle_mini_parts(config, encoder, decoder, path)
    notes = {"tokenizer": tokenizer.to_json(), "vqvae": "vqgan"}
    painter = _import_vqgan(detokenizer, out / "vqgan.safetensors")
    return [_write(out / "model.safetensors", DALLEMini, config, parts, **notes), painter]


def dalle_mini_parts(config: DALLEMiniConfig, encoder: Weights, decoder: Weights, path: Path) -> Parts:
    """Poids d'un `DALLEMini`, tirés de ceux de l'encodeur et du décodeur de min-dalle.

    Raises:
        MinidalleError: il en manque, ou il en reste ; le message nomme `path`.
    """
    wanted = _names("decoder", config.decoder_layers, _LAYER | _CROSS, "image")
    parts = _take(decoder, wanted | {"head.weight": ["lm_head.weight"]}, path)
    parts |= _take(encoder, _names("encoder", config.layers, _LAYER, "text"), path)
    # Les tables publiées ont des lignes de trop, pour des jetons que personne ne lit ni n'écrit.
    codes = config.image_vocabulary
    for name, rows in (("text", config.text_vocabulary), ("image", codes + 1)):
        parts[f"{name}_embedding.weight"] = [parts[f"{name}_embedding.weight"][0][:rows]]
    return parts | {"head.weight": [decoder["lm_head.weight"][:codes]]}


def _mini_config(encoder: Weights, decoder: Weights, words: int, codes: int) -> DALLEMiniConfig:
    rows, width = encoder["embed_tokens.weight"].shape
    cells = len(decoder["embed_positions.weight"])
    side = round(cells**0.5)
    if side**2 != cells or words > rows or codes >= len(decoder["embed_tokens.weight"]) or not codes:
        raise MinidalleError(
            f"Ces fichiers ne vont pas ensemble ({words} mots pour {rows} lignes, {codes} codes, {cells} cases) : "
            "les prendre tous du même modèle."
        )
    return DALLEMiniConfig(
        text_vocabulary=words,
        image_vocabulary=codes,
        text_length=len(encoder["embed_positions.weight"]),
        grid=(side, side),
        width=width,
        layers=_count(encoder, r"layers\.(\d+)\.", 0),
        decoder_layers=_count(decoder, r"layers\.(\d+)\.", 0),
        heads=width // HEAD_WIDTH,
        glu_width=len(encoder["layers.0.glu.fc0.weight"]),
        pad=ByteTokenizer.pad_id,
    )


def _names(name: str, layers: int, layer: dict[str, list[str]], tokens: str) -> dict[str, list[str]]:
    wanted = {
        f"{tokens}_embedding.weight": ["embed_tokens.weight"],
        f"{tokens}_position.weight": ["embed_positions.weight"],
        f"{tokens}_norm.weight": ["layernorm_embedding.weight"],
        f"{tokens}_norm.bias": ["layernorm_embedding.bias"],
        f"{name}_norm.bias": ["final_ln.bias"],
    }
    for i in range(layers):
        wanted |= {f"{name}.{i}.{a}": [f"layers.{i}.{b}" for b in found] for a, found in layer.items()}
    return wanted


def _without_scales(source: Weights, path: Path) -> Weights:
    for key in filter(_SCALES.fullmatch, source):
        if not (source[key] == 1).all():
            raise MinidalleError(
                f"« {path} » : « {key} » devrait valoir 1, ce n'est pas un DALL·E mini publié."
            )
    return {key: tensor for key, tensor in source.items() if not _SCALES.fullmatch(key)}


KINDS = {"dvae": import_dvae, "vqgan": import_vqgan, "min-dalle": import_min_dalle}

# --- lire -----------------------------------------------------------------------------------------


class Inert:
    """Tient la place d'une classe étrangère : ses attributs, et aucune de ses méthodes."""


def read_weights(path: Path, foreign: Iterable[str] = ()) -> Weights:
    """Tableaux d'un fichier de `torch.save`, par leur nom, sans exécuter le code qu'il pourrait contenir.

    Args:
        path: dictionnaire de poids, point de reprise de Lightning, ou module entier.
        foreign: classes que le fichier nomme, et que `Inert` remplace.

    Raises:
        MinidalleError: fichier absent, abîmé, qui contient autre chose, ou dont des nombres manquent.
    """
    names = [(Inert, name) for name in foreign] + [(set, "builtins.set")]
    try:
        with torch.serialization.safe_globals(names):
            # Les tableaux restent sur le disque jusqu'à ce qu'on les lise.
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # un fichier abîmé fait lever à peu près n'importe quoi
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO):
            raise MinidalleError(
                f"« {path} » est illisible ({reason(error)}) : vérifier le chemin et ses droits."
            ) from error
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise MinidalleError(
                f"« {path} » veut exécuter « {forbidden[1]} », ce qui est refusé : ce n'est pas le fichier publié."
            ) from error
        raise MinidalleError(
            f"« {path} » est tronqué ou n'est pas un fichier de PyTorch : le télécharger à nouveau."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    weights = dict(_flatten(content)) if isinstance(content, Inert) else content
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise MinidalleError(f"« {path} » ne contient pas de poids : vérifier le fichier donné.")
    return {str(key): tensor.detach() for key, tensor in weights.items()}


def _flatten(module: Inert, prefix: str = "") -> Iterable[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for name, tensor in getattr(module, kind, {}).items():
            if tensor is not None:
                yield prefix + name, tensor
    for name, child in getattr(module, "_modules", {}).items():
        yield from _flatten(child, f"{prefix}{name}.")


def _find(path: Path, *names: str) -> Path:
    """`path` si c'est un fichier, sinon le premier de ces noms que le dossier contient."""
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise MinidalleError(f"« {path} » ne contient pas {' ni '.join(names)} : donner les fichiers publiés.")


def _count(source: Weights, pattern: str, first: int = 1) -> int:
    """Nombre de couches numérotées à partir de `first`."""
    found = [int(match[1]) for match in map(re.compile(pattern).match, source) if match]
    return max(found, default=first - 1) - first + 1


def _take(source: Weights, wanted: dict[str, list[str]], path: Path) -> Parts:
    """Nos poids, chacun fait des leurs.

    Raises:
        MinidalleError: il en manque, ou il en reste.
    """
    needed = [key for keys in wanted.values() for key in keys]
    missing = [key for key in needed if key not in source]
    extra = sorted(source.keys() - set(needed))
    for keys, what in ((missing, "manquent"), (extra, "sont en trop")):
        if keys:
            named = ", ".join(keys[:3]) + (f" et {len(keys) - 3} autres" if len(keys) > 3 else "")
            raise MinidalleError(f"« {path} » est d'un autre modèle : des poids {what} ({named}).")
    return {ours: [source[key] for key in keys] for ours, keys in wanted.items()}


class _explained:
    """Une clé ou une taille introuvable : le fichier est d'un autre modèle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, MinidalleError):
            return
        if isinstance(error, KeyError | IndexError | ValueError | ZeroDivisionError | TypeError):
            raise MinidalleError(f"« {self.path} » n'a pas les poids attendus ({error}).") from error


# --- écrire ---------------------------------------------------------------------------------------

_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


def _empty(cls: type[nn.Module], config: object) -> nn.Module:
    """Le modèle, sans mémoire : seulement des formes."""
    with torch.device("meta"):
        return cls(config)


def _write(path: Path, cls: type[nn.Module], config: object, parts: Parts, **notes: str) -> Path:
    """Le fichier qu'écrirait `save_model`, un tableau après l'autre.

    Raises:
        MinidalleError: tableau d'une autre forme, ou qui contient autre chose que des nombres.
    """
    notes |= {"model": cls.__module__.rpartition(".")[2], "config": json.dumps(asdict(config))}
    notes_text = json.dumps(notes, sort_keys=True, ensure_ascii=False)
    header, place = {"__metadata__": {FORMAT: notes_text}}, 0
    expected = _empty(cls, config).state_dict()
    for key in sorted(expected):
        first, shape = parts[key][0], list(expected[key].shape)
        rows = [sum(len(part) for part in parts[key]), *first.shape[1:]] if shape else []
        if rows != shape or first.dtype not in _DTYPES:
            raise MinidalleError(f"« {path.name} » : « {key} » est de forme {rows}, il faut {shape}.")
        stop = place + expected[key].numel() * first.element_size()
        header[key] = {"dtype": _DTYPES[first.dtype], "shape": shape, "data_offsets": [place, stop]}
        place = stop
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in sorted(expected):
            tensor = torch.cat(parts[key]) if len(parts[key]) > 1 else parts[key][0].contiguous()
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise MinidalleError(f"« {key} » contient autre chose que des nombres : fichier abîmé.")
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
    return path
