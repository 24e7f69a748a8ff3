"""dVAE, l'auto-encodeur discret de DALL·E : à chaque case de la grille, une loi sur les codes.

Tirer un code ne se dérive pas. Pendant l'entraînement, on tire donc des poids presque concentrés sur un
code (relaxation de Gumbel-softmax) et le décodeur reçoit le mélange des codes ; ensuite, un code et un seul.

Sources : Ramesh et coll., « Zero-Shot Text-to-Image Generation » (2021), §2.1 et annexe A, et le code
publié avec (openai/DALL-E) ; relaxation de Jang et coll. (2017) et de Maddison et coll. (2017).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidalle.errors import MinidalleError
from minidalle.models.blocks import check_images, check_tokens

EPSILON = 0.1  # marge de `map_pixels`


@dataclass(frozen=True, slots=True)
class DVAEConfig:
    """Tailles d'un dVAE et calendrier de son entraînement.

    Par défaut, le petit modèle du livre (64 × 64 pixels → 8 × 8 jetons). Celui de DALL·E :
    `DVAEConfig(hidden=256, blocks_per_group=2, codes=8192, code_dim=128, kl_weight=6.6,
    kl_steps=5000, anneal_steps=150_000, min_log_scale=-math.inf)`.

    Attributes:
        hidden: largeur du groupe au plus près des pixels, multiple de 4 ; elle double à chaque groupe.
        groups: nombre G de groupes ; le côté de l'image est divisé par f = 2 puissance (G − 1).
        blocks_per_group: blocs résiduels d'un groupe.
        codes: nombre K de codes.
        code_dim: dimension d'un code.
        kl_weight: poids β de la divergence KL ; à 1, la perte est l'opposé de l'ELBO (voir `DVAE.loss`).
        kl_steps: pas pendant lesquels ce poids monte de 0 à β.
        usage_weight: poids de `usage_gap`, qui fait servir tout le dictionnaire ; 0 pour s'en passer, comme DALL·E.
        temperatures: température τ de la relaxation au premier pas, puis au bout de `anneal_steps` pas.
        anneal_steps: durée de la descente de τ, en demi-cosinus.
        min_log_scale: plancher de ln b. Une image de synthèse a des aplats parfaits ; sans plancher, leur
            densité, et le gradient avec elle, grandiraient sans fin. Moins l'infini pour aucun, comme DALL·E.
    """

    hidden: int = 24
    groups: int = 4
    blocks_per_group: int = 1
    codes: int = 1024
    code_dim: int = 64
    kl_weight: float = 1.0
    kl_steps: int = 500
    usage_weight: float = 0.0
    temperatures: tuple[float, float] = (1.0, 1 / 16)
    anneal_steps: int = 5000
    min_log_scale: float = -4.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        if min(self.groups, self.blocks_per_group, self.codes, self.code_dim) < 1:
            raise MinidalleError("Un dVAE veut au moins un groupe, un bloc, un code et une dimension.")
        if self.hidden < 4 or self.hidden % 4:
            raise MinidalleError(f"Largeur {self.hidden} : il faut un multiple de 4, pour les goulots.")
        if len(self.temperatures) != 2 or not all(0 < t < math.inf for t in self.temperatures):
            raise MinidalleError("Les deux températures d'un dVAE doivent être strictement positives.")
        weights = (self.kl_weight, self.usage_weight, self.kl_steps, self.anneal_steps)
        if not all(0 <= weight < math.inf for weight in weights):
            raise MinidalleError("Les poids et les durées d'un dVAE doivent être positifs ou nuls.")

    @property
    def factor(self) -> int:
        """Facteur de réduction f : une image de côté S donne une grille de côté S/f."""
        return 2 ** (self.groups - 1)

    def temperature(self, step: int) -> float:
        """Température τ de la relaxation au pas `step`."""
        start, stop = self.temperatures
        return start + (stop - start) * _rise(step, self.anneal_steps)

    def beta(self, step: int) -> float:
        """Poids de la KL au pas `step`."""
        return self.kl_weight * _rise(step, self.kl_steps)


def _rise(step: int, steps: int) -> float:
    """De 0 à 1 en `steps` pas, par un demi-cosinus ; 1 ensuite."""
    return 1.0 if step >= steps else (1 - math.cos(math.pi * step / steps)) / 2


def map_pixels(images: Tensor) -> Tensor:
    """[0, 1] → [ε, 1 − ε] : le logit d'un pixel reste borné (annexe A.3)."""
    return (1 - 2 * EPSILON) * images + EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """L'inverse de `map_pixels`, borné à [0, 1]."""
    return ((mapped - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


def logit_laplace_nll(mapped: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """−ln p(x), où logit x suit une loi de Laplace : ln 2b + ln x(1 − x) + |logit x − μ| / b (annexe A.3).

    Args:
        mapped: pixels x, strictement entre 0 et 1, de forme quelconque.
        mean, log_scale: μ et ln b, de même forme.

    Returns:
        Nats, de même forme, jamais en moins de 32 bits. C'est une densité : ils peuvent être négatifs.
    """
    dtype = torch.promote_types(mapped.dtype, torch.float32)
    x, mean, log_scale = mapped.to(dtype), mean.to(dtype), log_scale.to(dtype)
    distance = (torch.logit(x) - mean).abs()
    return math.log(2) + log_scale + (x * (1 - x)).log() + distance * (-log_scale).exp()


def categorical_kl(logits: Tensor) -> Tensor:
    """KL(softmax(logits) ‖ uniforme) = Σ q ln q + ln K.

    Args:
        logits: (..., K).

    Returns:
        (...), en nats, de 0 (loi uniforme) à ln K (toute la masse sur un code).
    """
    log_q = logits.log_softmax(-1)
    # 0 · ln 0 vaut 0 : un logit peut être infiniment négatif.
    return (log_q.exp() * log_q.clamp_min(torch.finfo(log_q.dtype).min)).sum(-1) + math.log(logits.shape[-1])


def usage_gap(logits: Tensor) -> Tensor:
    """KL(moyenne des softmax(logits) ‖ uniforme) : nul quand tous les codes servent autant, en moyenne.

    `categorical_kl` veut que chaque case hésite ; celle-ci ne demande qu'aux cases de ne pas faire toutes le
    même choix. Leur différence est l'information mutuelle entre cases et codes (Krause et coll., 2010).

    Args:
        logits: (..., K).

    Returns:
        Scalaire, en nats, de 0 à ln K.
    """
    shares = logits.softmax(-1).flatten(0, -2).mean(0)
    return math.log(logits.shape[-1]) - torch.special.entr(shares).sum()


def gumbel_softmax(
    logits: Tensor,
    temperature: float,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """softmax((logits + g) / τ), où les g sont des variables de Gumbel indépendantes.

    Args:
        logits: (..., K), log-probabilités à une constante près.
        temperature: τ, strictement positive. Vers 0, un tirage de la loi ; vers l'infini, des poids égaux.
        generator: source du hasard ; None pour celle de torch.
        noise: les g, de la forme des logits, s'ils sont déjà tirés.

    Returns:
        Poids (..., K), positifs et de somme 1, que le gradient traverse.

    Raises:
        MinidalleError: température négative ou nulle.
    """
    if not temperature > 0:
        raise MinidalleError(f"Température {temperature} : il la faut strictement positive.")
    if noise is None:
        uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        noise = -uniform.log_().neg_().log_()
    return ((logits + noise) / temperature).softmax(-1)


def paint(stats: Tensor) -> Tensor:
    """Sortie (B, 6, H, W) du décodeur → images (B, 3, H, W), de 0 à 1 : la médiane de la loi des pixels."""
    return unmap_pixels(stats[:, :3].float().sigmoid())


def _conv(before: int, after: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=(before * kernel**2) ** -0.5)
    nn.init.zeros_(conv.bias)
    return conv


class Block(nn.Module):
    """Bloc résiduel à goulot : x + g · res(x). Sans normalisation, un petit gain g tient lieu de garde-fou."""

    def __init__(self, before: int, after: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        widths = [before, *[after // 4] * 3, after]
        convs = [_conv(*sizes) for sizes in zip(widths, widths[1:], kernels, strict=False)]
        self.identity = _conv(before, after, 1) if before != after else nn.Identity()
        self.residual = nn.Sequential(*(layer for conv in convs for layer in (nn.ReLU(), conv)))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.identity(x) + self.gain * self.residual(x)


def _groups(widths: Sequence[int], blocks: int, kernels: Sequence[int], between: nn.Module) -> nn.Sequential:
    """Groupes de `blocks` blocs, de largeurs `widths[1:]`, séparés par `between` ; puis ReLU."""
    gain = ((len(widths) - 1) * blocks) ** -2
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [between] if layers else []
        layers += [Block(before if i == 0 else after, after, kernels, gain) for i in range(blocks)]
    return nn.Sequential(*layers, nn.ReLU())


class DVAE(nn.Module):
    """Encodeur, loi sur les codes, décodeur. Les images sont (B, 3, H, W), float, de 0 à 1."""

    Config = DVAEConfig

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.hidden * 2**i for i in range(config.groups)]
        blocks = config.blocks_per_group
        self.input = _conv(3, config.hidden, 7)
        self.encoder = _groups([config.hidden, *widths], blocks, (3, 3, 3, 1), nn.MaxPool2d(2))
        # Les convolutions 1 × 1 qui entourent la relaxation ne mêlent pas les cases voisines (§2.1).
        self.logits = _conv(widths[-1], config.codes, 1)
        self.codebook = _conv(config.codes, config.code_dim, 1)
        # Une indicatrice n'a qu'un 1 : tirés comme les autres poids, les codes seraient √K fois trop petits.
        nn.init.normal_(self.codebook.weight)
        self.decoder = _groups([config.code_dim, *widths[::-1]], blocks, (1, 3, 3, 3), nn.Upsample(None, 2))
        self.stats = _conv(config.hidden, 6, 1)
        self.register_buffer("step", torch.tensor(0))

    def forward(
        self, images: Tensor, temperature: float | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode, mélange les codes à la température τ, ou choisit le plus probable si elle est None, décode.

        Returns:
            Loi des pixels (B, 6, H, W), trois μ puis trois ln b ; logits des codes (B, H/f, W/f, K).

        Raises:
            MinidalleError: côté qui n'est pas un multiple de f, ou pixels qui ne sont pas des nombres.
        """
        logits = self._logits(images)
        if temperature is None:
            return self._stats(self._look_up(logits.argmax(-1))), logits
        return self._stats(self.mix(gumbel_softmax(logits, temperature, generator))), logits

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """Reconstruction + β / (3f²) · KL + poids d'usage · écart d'usage, et de quoi la suivre.

        « reconstruction » est −ln p(x | codes), en nats par pixel et par canal ; « kl », la divergence à la
        loi uniforme, en nats par case. Une image a 3HW nombres et HW/f² cases : diviser −ELBO par 3HW divise
        la KL d'une case par 3f², soit 192 quand f = 8. À l'entraînement, τ et β suivent le calendrier ; sinon,
        code le plus probable et β entier. « perplexity » : nombre effectif de codes dans ce lot.
        """
        check_images(images, self.config.factor, empty=False)
        config, step = self.config, int(self.step)
        temperature = config.temperature(step) if self.training else None
        beta = config.beta(step) if self.training else config.kl_weight
        stats, logits = self(images, temperature)
        mean, log_scale = stats.chunk(2, dim=1)
        if config.min_log_scale > -math.inf:
            # Plancher doux : sous un plancher franc, ln b ne recevrait plus de gradient pour remonter.
            log_scale = config.min_log_scale + F.softplus(log_scale - config.min_log_scale)
        reconstruction = logit_laplace_nll(map_pixels(images), mean, log_scale).mean()
        kl = categorical_kl(logits).mean()
        usage = usage_gap(logits)
        if self.training:
            self.step += 1
        shares = torch.bincount(logits.argmax(-1).flatten()) / logits[..., 0].numel()
        return {
            "loss": reconstruction + beta / (3 * config.factor**2) * kl + config.usage_weight * usage,
            "reconstruction": reconstruction.detach(),
            "kl": kl.detach(),
            "usage": usage.detach(),
            "temperature": torch.tensor(temperature or 0.0),
            "perplexity": torch.exp(-torch.xlogy(shares, shares).sum()),
        }

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) → jetons (B, H/f, W/f), int64 dans [0, K) : les plus probables, sans bruit."""
        return self._logits(images).argmax(-1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Jetons (B, h, w) → images (B, 3, h·f, w·f), de 0 à 1.

        Raises:
            MinidalleError: jeton hors de [0, K), ou grille qui n'est pas d'entiers (B, h, w).
        """
        check_tokens(tokens, self.config.codes)
        return paint(self._stats(self._look_up(tokens.long())))

    def vectors(self) -> Tensor:
        """Les K codes e_k (K, code_dim)."""
        return self.codebook.weight[:, :, 0, 0].T + self.codebook.bias

    def mix(self, weights: Tensor) -> Tensor:
        """Poids (B, h, w, K), de somme 1 → mélanges Σ w_k e_k (B, code_dim, h, w), par la convolution 1 × 1."""
        with torch.autocast(weights.device.type, enabled=False):
            return self.codebook(weights.permute(0, 3, 1, 2))

    def _look_up(self, tokens: Tensor) -> Tensor:
        # Mélanger avec un seul poids non nul, c'est lire une table.
        return F.embedding(tokens, self.vectors()).permute(0, 3, 1, 2)

    def _logits(self, images: Tensor) -> Tensor:
        check_images(images, self.config.factor)
        mapped = map_pixels(images).contiguous(memory_format=torch.channels_last)
        features = self.encoder(self.input(mapped))
        # Comme DALL·E, les 1 × 1 des codes restent sur 32 bits : un logit arrondi change de code.
        with torch.autocast(features.device.type, enabled=False):
            return self.logits(features.float()).permute(0, 2, 3, 1)

    def _stats(self, vectors: Tensor) -> Tensor:
        features = self.decoder(vectors)
        # Sur 16 bits, μ serait plus grossier que l'échelle b à laquelle on compare son erreur.
        with torch.autocast(features.device.type, enabled=False):
            return self.stats(features.float())
