"""Le critique du VQGAN : un discriminateur par imagettes (PatchGAN), ses pertes et leur poids adaptatif.

Sources : Isola et coll., « Image-to-Image Translation with Conditional Adversarial Networks » (2017) pour le
réseau ; Goodfellow et coll. (2014) pour le jeu à deux ; Esser, Rombach et Ommer, « Taming Transformers for
High-Resolution Image Synthesis » (2021), équation 7, pour le poids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minidalle.errors import MinidalleError


class PatchDiscriminator(nn.Module):
    """Image (B, 3, H, W) → une note par imagette, (B, 1, h, w) : positive pour « vraie », négative pour « copie ».

    Les couches portent les noms de taming-transformers.

    Args:
        width: canaux de la première couche ; ils doublent à chaque couche, jusqu'à 8 fois.
        layers: convolutions de pas 2 ; une de pas 1 les suit, puis la note.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.smallest = 3 * 2**layers
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            modules += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """`images` : (B, 3, H, W), de −1 à 1.

        Raises:
            MinidalleError: images trop petites pour une seule note.
        """
        if min(images.shape[2:]) < self.smallest:
            raise MinidalleError(
                f"Images trop petites pour le critique : au moins {self.smallest} pixels de côté."
            )
        return self.main(images)

    @property
    def receptive_field(self) -> int:
        """Côté, en pixels, de l'imagette que voit une note."""
        field = 1
        for layer in reversed(self.main):
            if isinstance(layer, nn.Conv2d):
                field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
        return field


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Perte charnière du critique : ½ [moyenne (1 − D(x))₊ + moyenne (1 + D(x̂))₊], notes de formes libres."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """Perte de qui veut tromper le critique : − moyenne D(x̂)."""
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, generator: Tensor) -> Tensor:
    """Poids λ qui donne à la perte antagoniste la force de la reconstruction : ‖∇rec‖ / (‖∇gan‖ + 10⁻⁴), au plus 10⁴.

    Args:
        reconstruction, generator: gradients des deux pertes par rapport aux poids de la dernière couche.
    """
    return (reconstruction.norm() / (generator.norm() + 1e-4)).clamp(0, 1e4)


def known_gradient(value: Tensor, gradients: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Une perte déjà dérivée : sa passe arrière rend ces gradients sans rien recalculer, et s'arrête à ces tenseurs.

    Args:
        value: valeur de la perte, scalaire.
        gradients, tensors: autant de gradients que de tenseurs, de mêmes formes.
    """
    return _KnownGradient.apply(value.detach(), gradients, *tensors)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor) -> tuple:
        return None, None, *(scale * gradient for gradient in ctx.gradients)
