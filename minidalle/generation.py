"""De la phrase à l'image : segmenteur, transformeur et décodeur d'images réunis."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minidalle.checkpoints import find_weights, load_model
from minidalle.errors import MinidalleError
from minidalle.models.dalle import DALLE
from minidalle.models.vqvae import VQVAE
from minidalle.sampling import sample
from minidalle.text import Tokenizer

DEFAULT_MODEL = "scenes"


@dataclass(frozen=True, slots=True)
class Drawing:
    """Résultat de `TextToImage.draw`.

    Attributes:
        images: uint8 (n, S, S, 3).
        tokens: int64 (n, h, w).
        unknown: mots que le modèle n'a jamais lus.
        dropped: mots de la fin, laissés de côté faute de place.
    """

    images: np.ndarray
    tokens: Tensor
    unknown: list[str]
    dropped: list[str]


class TextToImage:
    """Un modèle complet : il lit une description et dessine."""

    def __init__(self, tokenizer: Tokenizer, transformer: DALLE, vqvae: VQVAE) -> None:
        """Assemble trois pièces entraînées ensemble.

        Raises:
            MinidalleError: leurs vocabulaires n'ont pas la même taille.
        """
        if (len(tokenizer), vqvae.config.codes) != (
            transformer.config.text_vocabulary,
            transformer.config.image_vocabulary,
        ):
            raise MinidalleError("Segmenteur, transformeur et VQ-VAE ne vont pas ensemble : les réentraîner.")
        self.tokenizer, self.transformer, self.vqvae = tokenizer, transformer.eval(), vqvae.eval()

    @classmethod
    def load(cls, name: Path | str = DEFAULT_MODEL) -> "TextToImage":
        """Charge un modèle par son chemin ou par son nom.

        Raises:
            MinidalleError: poids absents, illisibles, ou qui ne sont pas ceux d'un générateur.
        """
        path = find_weights(name)
        transformer, notes = load_model(path, "dalle")
        if not {"tokenizer", "vqvae"} <= notes.keys() or Path(notes["vqvae"]).name != notes["vqvae"]:
            raise MinidalleError(f"« {path} » a perdu son vocabulaire ou le nom de son VQ-VAE : le refaire.")
        # Le VQ-VAE voyage à côté du transformeur ; un autre du même nom aurait d'autres codes.
        vqvae, _ = load_model(path.with_name(f"{notes['vqvae']}.safetensors"), "vqvae")
        return cls(Tokenizer.from_json(notes["tokenizer"]), transformer, vqvae)

    def read(self, prompts: list[str]) -> tuple[Tensor, list[str], list[str]]:
        """Jetons de texte (B, L), puis mots inconnus et mots laissés de côté, toutes descriptions réunies.

        Raises:
            MinidalleError: description vide.
        """
        length = self.transformer.config.text_length
        encodings = [self.tokenizer.encode(prompt, length) for prompt in prompts]
        if any(encoding.dropped and not encoding.ids for encoding in encodings):
            raise MinidalleError("Le premier mot de la description est trop long : l'écrire autrement.")
        if not all(encoding.ids for encoding in encodings):
            raise MinidalleError(
                "Description vide : écrire quelque chose à dessiner, par exemple « un mouton »."
            )
        unknown = list(dict.fromkeys(word for e in encodings for word in e.unknown))
        dropped = [word for e in encodings for word in e.dropped]
        return pad([e.ids for e in encodings], length), unknown, dropped

    def draw(
        self,
        prompt: str,
        n: int = 1,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        progress: Callable[[int, Tensor], None] | None = None,
    ) -> Drawing:
        """Dessine n images d'une même description.

        L'image i dépend de la graine `seed` + i et d'elle seule : `draw(prompt, 1, seed + i)` la refait.

        Args:
            prompt: ce qu'il faut dessiner, en français.
            n: nombre d'images.
            seed: graine de la première.
            temperature, top_k, top_p: voir `minidalle.sampling.probabilities`.
            progress: voir `minidalle.sampling.sample`.

        Raises:
            MinidalleError: description vide ou réglage impossible.
        """
        if n < 1:
            raise MinidalleError(f"Nombre d'images impossible ({n}) : en demander au moins une.")
        if not 0 <= seed < 2**63 - n:
            raise MinidalleError(f"Graine impossible ({seed}) : un entier positif.")
        text, unknown, dropped = self.read([prompt])
        generators = [torch.Generator().manual_seed(seed + i) for i in range(n)]
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "progress": progress}
        rows, columns = self.transformer.config.grid
        tokens = sample(self.transformer, text.expand(n, -1), generators, length=rows * columns, **options)
        tokens = tokens.view(-1, rows, columns)
        return Drawing(to_pixels(self.vqvae.decode(tokens)), tokens, unknown, dropped)


def pad(sequences: list[list[int]], length: int) -> Tensor:
    """Suites de jetons complétées par des 0 → (B, length), int64."""
    padded = torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, ids in zip(padded, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return padded


def to_pixels(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) de 0 à 1 → uint8 (B, H, W, 3)."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_tensor(images: np.ndarray) -> Tensor:
    """Images uint8 (B, H, W, 3) → float (B, 3, H, W) de 0 à 1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(255).contiguous()
