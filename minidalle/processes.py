"""Un entraînement réparti sur plusieurs processus, qui donne les nombres d'un seul à lot égal.

Chacun tire le même lot et en garde sa tranche ; les gradients sont moyennés, si bien que tous font le même pas. Le
premier seul mesure et écrit. `accelerate` n'est chargé que sous un lanceur, `accelerate launch` ou `torchrun`.

Pour que la moyenne des tranches soit la perte du lot, celle d'un modèle doit être une moyenne sur des exemples de
même poids, ou réunir les tranches elle-même, comme `minidalle.models.clip`. La normalisation par lot les réunit ici.
"""

import os

import numpy as np
import torch
from torch import Tensor, nn

from minidalle.errors import MinidalleError

# Ce que posent torchrun, et accelerate launch même pour un seul processus.
_LAUNCHERS = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")


class Alone:
    """Un seul processus, sur le processeur : rien à partager, rien n'est touché.

    Attributes:
        count: nombre de processus.
        first: vrai pour celui qui mesure et écrit.
        device: où se fait le calcul.
    """

    count, first, device = 1, True, torch.device("cpu")

    def enter(self, model: nn.Module) -> None:
        """Prépare un modèle à apprendre : le même partout, sur l'appareil du processus."""

    def leave(self, model: nn.Module) -> None:
        """Le rend comme `enter` l'a trouvé, sur le processeur."""

    def reseed(self, seed: int, step: int) -> None:
        """Donne au pas `step` le hasard de PyTorch qui revient à ce processus."""

    def share(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Part du lot qui revient à ce processus."""
        return batch

    def mean(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pertes du lot entier, d'après celles de chaque part."""
        return losses

    def average_gradients(self, model: nn.Module) -> None:
        """Remplace les gradients de chaque part par ceux du lot entier."""

    def latest(self, value: float) -> float:
        """La plus grande valeur de tous les processus : ils doivent s'arrêter et ralentir ensemble."""
        return value


class Team(Alone):
    """Un processus parmi d'autres, et le GPU qui lui revient quand il y en a."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MinidalleError(
                "Entraîner sur plusieurs processus demande accelerate : pip install accelerate."
            ) from error
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.count, self.rank = self._accelerator.num_processes, self._accelerator.process_index
        self.first, self.device = self.rank == 0, self._accelerator.device

    def enter(self, model: nn.Module) -> None:
        from accelerate.utils import broadcast

        model.to(self.device)
        for tensor in model.state_dict().values():
            tensor.copy_(broadcast(tensor.clone()))
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _SharedBatchNorm

    def leave(self, model: nn.Module) -> None:
        model.cpu()
        for module in model.modules():
            if type(module) is _SharedBatchNorm:
                module.__class__ = nn.BatchNorm2d

    def reseed(self, seed: int, step: int) -> None:
        # À chaque pas : la reprise n'a pas à retenir le hasard de chaque processus, ni celui des GPU.
        torch.manual_seed(
            int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)[0])
        )

    def share(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self._slice(part).to(self.device) for part in batch)

    def _slice(self, part: Tensor) -> Tensor:
        n, left = divmod(len(part), self.count)
        if left:
            raise MinidalleError(
                f"{len(part)} exemples ne se partagent pas entre {self.count} processus : "
                f"prendre un nombre de processus qui divise la taille du lot."
            )
        return part[self.rank * n : (self.rank + 1) * n]

    def mean(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        values = torch.stack([value.detach().float() for value in losses.values()])
        return dict(zip(losses, self._accelerator.reduce(values, "mean"), strict=True))

    def average_gradients(self, model: nn.Module) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        # Un seul échange pour tous : autant d'attentes de moins.
        means = self._accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def latest(self, value: float) -> float:
        mine = torch.tensor([float(value)], device=self.device)
        return float(self._accelerator.gather(mine).max())


def join() -> Alone:
    """L'équipe de ce processus : celle d'un lanceur, ou lui seul.

    Raises:
        MinidalleError: un lanceur, mais accelerate n'est pas installé.
    """
    return Team() if any(name in os.environ for name in _LAUNCHERS) else Alone()


def average(value: Tensor) -> Tensor:
    """Moyenne d'un nombre sur les processus, sans gradient ; d'un seul, le rend tel quel.

    Une perte qui divise par un compte (de mots, par exemple) divise par le compte moyen : la moyenne des tranches est
    alors celle du lot.
    """
    if not torch.distributed.is_initialized():
        return value
    total = value.detach().float()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class _SharedBatchNorm(nn.BatchNorm2d):
    """Normalisation par lot (B, C, H, W) dont les moyennes portent sur les tranches de tous les processus."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(x)
        mean = _Mean.apply(x.float().mean((0, 2, 3)))
        centred = x.float() - mean[:, None, None]
        variance = _Mean.apply(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            n = x.numel() / x.shape[1] * torch.distributed.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Mean(torch.autograd.Function):
    """Moyenne sur les processus ; le gradient de chacun est la moyenne des leurs, lui aussi."""

    @staticmethod
    def forward(context: object, vector: Tensor) -> Tensor:
        total = vector.clone()
        torch.distributed.all_reduce(total)
        return total / torch.distributed.get_world_size()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return _Mean.forward(context, gradient)
