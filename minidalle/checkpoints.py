"""Ranger un modèle dans un fichier safetensors, et le retrouver par son chemin ou par son nom.

Un fichier de poids ne contient que des tableaux et du texte : l'ouvrir n'exécute rien.
"""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from minidalle.errors import MinidalleError
from minidalle.files import atomic_write

WEIGHTS = Path(__file__).parent / "weights"
_SCALE = ":pas"  # suffixe du tableau qui accompagne une matrice sur 8 bits
FORMAT = "minidalle-1"  # clé des notes dans l'en-tête des fichiers
# Nom d'un modèle dans les fichiers et sur la ligne de commande → où trouver sa classe.
MODELS = {
    "pca": "PCA",
    "autoencoder": "AutoEncoder",
    "vae": "VAE",
    "vqvae": "VQVAE",
    "dvae": "DVAE",
    "vqgan": "VQGAN",
    "dalle": "DALLE",
    "dalle_mini": "DALLEMini",
    "clip": "CLIP",
}


def model_class(name: str) -> type[nn.Module]:
    """Classe du modèle `name` (« vqvae », « dalle »…).

    Raises:
        MinidalleError: nom inconnu.
    """
    if name not in MODELS:
        raise MinidalleError(f"Modèle « {name} » inconnu : choisir parmi {', '.join(MODELS)}.")
    return getattr(importlib.import_module(f"minidalle.models.{name}"), MODELS[name])


def save_model(
    path: Path | str, model: nn.Module, *, half: bool = False, packed: bool = False, **notes: str
) -> None:
    """Écrit les poids, la configuration et des notes, atomiquement.

    Args:
        path: fichier `.safetensors` à écrire.
        model: modèle de `minidalle.models`.
        half: flottants sur 16 bits, deux fois plus petits ; ils sont relus sur 32 bits.
        packed: de plus, matrices sur 8 bits, quatre fois plus petites : chaque ligne est un multiple de son plus
            grand nombre.
        notes: textes à garder avec les poids (vocabulaire, commande, scores).
    """
    name = type(model).__module__.rpartition(".")[2]
    tensors = {}
    for key, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if packed and tensor.is_floating_point() and tensor.ndim == 2:
            tensors[key], tensors[key + _SCALE] = pack(tensor)
        else:
            tensors[key] = tensor.half() if (half or packed) and tensor.is_floating_point() else tensor
    notes |= {"model": name, "config": json.dumps(asdict(model.config))}
    # Une seule entrée : safetensors range les siennes au hasard, et les mêmes poids changeraient d'octets.
    with atomic_write(path) as file:
        file.write(save(tensors, {FORMAT: json.dumps(notes, sort_keys=True, ensure_ascii=False)}))


def pack(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Matrice (n, m) sur 8 bits : int8 (n, m), et le pas de chaque ligne, float16 (n, 1)."""
    # Arrondi vers le haut : un pas trop petit ferait déborder le plus grand nombre.
    step = (matrix.abs().amax(1, keepdim=True) / 127 * (1 + 2**-10)).clamp(min=2**-20).half()
    return (matrix / step.float()).round().clamp(-127, 127).to(torch.int8), step


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tableaux d'un fichier, flottants sur 32 bits, matrices de `pack` reconstituées."""
    whole = {}
    for key, tensor in tensors.items():
        if key + _SCALE in tensors:
            tensor = tensor.float() * tensors[key + _SCALE].float()
        if not key.endswith(_SCALE):
            whole[key] = tensor.float() if tensor.is_floating_point() else tensor
    return whole


def find_weights(name: Path | str) -> Path:
    """Fichier désigné par un chemin, un dossier d'entraînement, ou le nom de poids livrés.

    Raises:
        MinidalleError: rien de tel ; le message liste les noms livrés.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "model.safetensors"
    packaged = WEIGHTS / f"{name}.safetensors"
    for candidate in (path, packaged):
        if candidate.is_file():
            return candidate
    raise MinidalleError(
        f"Modèle « {name} » introuvable : donner un fichier .safetensors, un dossier d'entraînement "
        f"ou l'un de ces noms : {', '.join(packaged_names()) or 'aucun poids livré'}."
    )


def packaged_names() -> list[str]:
    """Noms des poids livrés avec le paquet."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_model(name: Path | str, expected: str | None = None) -> tuple[nn.Module, dict[str, str]]:
    """Reconstruit un modèle, prêt à servir (mode évaluation, simple précision).

    Args:
        name: ce que `find_weights` accepte.
        expected: nom du modèle voulu (« vqvae ») ; None pour accepter n'importe lequel.

    Returns:
        Le modèle et les notes de son fichier.

    Raises:
        MinidalleError: fichier absent, illisible, étranger à minidalle, ou d'un autre modèle.
    """
    path = find_weights(name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (ce n'est pas un dict)
    except (SafetensorError, OSError) as error:
        raise MinidalleError(
            f"« {path} » n'est pas un fichier safetensors lisible : le télécharger ou l'entraîner à nouveau."
        ) from error
    if FORMAT not in metadata:
        raise MinidalleError(f"« {path} » ne vient pas de minidalle : donner des poids écrits par lui.")
    try:
        notes = json.loads(metadata[FORMAT])
        kind = notes["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise MinidalleError(f"« {path} » a une en-tête illisible : l'entraîner à nouveau.") from error
    if expected not in (None, kind):
        raise MinidalleError(f"« {path} » contient un modèle « {kind} », il faut un « {expected} ».")
    try:
        cls = model_class(kind)
        model = cls(cls.Config(**json.loads(notes["config"])))
        model.load_state_dict(unpack(tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MinidalleError(
            f"« {path} » ne correspond pas à cette version de minidalle : l'entraîner à nouveau."
        ) from error
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise MinidalleError(f"« {path} » contient des poids qui ne sont pas des nombres : le refaire.")
    return model.eval(), notes
