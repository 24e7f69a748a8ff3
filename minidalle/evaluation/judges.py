"""Juges de l'accord d'une image et d'un texte : le CLIP du livre, ou un CLIP publié que l'on a chez soi.

Un juge met images et textes dans un même espace ; `judge_captions` lui soumet un jeu d'images légendées. Rien n'est
jamais téléchargé.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from minidalle.checkpoints import find_weights, load_model
from minidalle.data.captioned import CaptionedImages
from minidalle.errors import MinidalleError
from minidalle.evaluation.scores import clip_score, pair_cosines, recall_at_k, recall_by_chance
from minidalle.evaluation.statistics import Estimate, bootstrap
from minidalle.generation import to_tensor
from minidalle.models.clip import CLIP
from minidalle.recipes import embed_images, embed_texts
from minidalle.text import Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

KS = (1, 5, 10)

HOW_TO_OBTAIN = (
    "pour un CLIP publié, poser sur ce disque un dossier au format de transformers (config.json, "
    "model.safetensors, le vocabulaire), par exemple, sur une machine qui a le réseau, par « hf download "
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K --local-dir clip » (600 Mo), et donner ce dossier"
)


class Judge(Protocol):
    """Ce qui met des images et des textes dans un même espace.

    Attributes:
        name: ce qu'il faut citer à côté d'une note.
        size: côté S des images qu'il lit, en pixels.
    """

    name: str
    size: int

    def read(self, text: str) -> Encoding:
        """Ce qu'il lit d'un texte : jetons, mots qu'il n'a jamais vus, mots coupés faute de place."""

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (B, S, S, 3) → vecteurs (B, d)."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Textes dont `read` a des jetons → vecteurs (B, d) ; la fin des trop longs est coupée."""


class BookCLIP:
    """Le CLIP de ce livre, avec son segmenteur."""

    def __init__(self, clip: CLIP, tokenizer: Tokenizer, name: str = "clip") -> None:
        self.name, self.size = name, clip.config.size
        self._clip, self._tokenizer = clip, tokenizer

    @classmethod
    def load(cls, name: Path | str) -> "BookCLIP":
        """Charge des poids par leur chemin ou leur nom.

        Raises:
            MinidalleError: poids absents, illisibles, ou qui ne sont pas ceux d'un CLIP.
        """
        path = find_weights(name)
        clip, notes = load_model(path, "clip")
        if "tokenizer" not in notes:
            raise MinidalleError(f"« {path} » a perdu son vocabulaire : le refaire.")
        return cls(clip, Tokenizer.from_json(notes["tokenizer"]), path.stem)

    def read(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, self._clip.config.length)

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        return embed_images(self._clip, images).numpy()

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return embed_texts(self._clip, self._tokenizer, texts).numpy()


class PublishedCLIP:
    """Un CLIP publié, lu par `transformers`.

    Ses images lui arrivent déjà à sa taille, réduites par le filtre de Lanczos, non par le bicubique de ses
    auteurs : les cosinus s'en écartent un peu des leurs.
    """

    def __init__(
        self,
        model: "CLIPModel",
        tokenizer: "PreTrainedTokenizerBase",
        mean: Sequence[float],
        deviation: Sequence[float],
        name: str,
    ) -> None:
        """Assemble un modèle, son segmenteur, et les moyennes et écarts-types par canal de ses images."""
        self.name, self.size = name, model.config.vision_config.image_size
        self._model, self._tokenizer = model.eval(), tokenizer
        self._length = model.config.text_config.max_position_embeddings
        self._mean, self._deviation = (torch.tensor(x).view(3, 1, 1) for x in (mean, deviation))

    @classmethod
    def load(cls, folder: Path | str) -> "PublishedCLIP":
        """Charge un dossier au format de `transformers`, sans réseau, poids safetensors seulement.

        Raises:
            MinidalleError: `transformers` absent, dossier incomplet ou d'un autre modèle.
        """
        try:
            from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
        except ImportError as error:
            raise MinidalleError(
                "Un CLIP publié se lit avec transformers : « pip install transformers »."
            ) from error
        try:
            model = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            images = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers lève un peu de tout devant un dossier abîmé
            raise MinidalleError(f"« {folder} » n'est pas un CLIP lisible ; {HOW_TO_OBTAIN}.") from error
        return cls(model, tokenizer, images.image_mean, images.image_std, Path(folder).resolve().name)

    def read(self, text: str) -> Encoding:
        ids = self._tokenizer(text, verbose=False)["input_ids"]
        start, content, end = ids[:1], ids[1:-1], ids[-1:]
        room = self._length - 2
        dropped = self._tokenizer.decode(content[room:]).split()
        return Encoding([*start, *content[:room], *end] if content else [], [], dropped)

    @torch.no_grad()
    def embed_images(self, images: np.ndarray) -> np.ndarray:
        pixels = (to_tensor(images) - self._mean) / self._deviation
        return self._model.get_image_features(pixels).pooler_output.numpy()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        options = {"padding": True, "truncation": True, "max_length": self._length, "return_tensors": "pt"}
        parts = (list(texts[i : i + 256]) for i in range(0, len(texts), 256))
        tokens = (self._tokenizer(part, **options) for part in parts)
        return torch.cat([self._model.get_text_features(**part).pooler_output for part in tokens]).numpy()


def load_judge(name: Path | str) -> Judge:
    """Juge désigné par un dossier de `transformers`, ou par le chemin ou le nom d'un CLIP du livre.

    Raises:
        MinidalleError: rien de tel ; le message dit comment obtenir un CLIP publié.
    """
    if (Path(name) / "config.json").is_file():
        return PublishedCLIP.load(name)
    try:
        path = find_weights(name)
    except MinidalleError as error:
        raise MinidalleError(f"{error} Ou, {HOW_TO_OBTAIN}.") from error
    return BookCLIP.load(path)


class Judgement(NamedTuple):
    """Ce qu'un juge dit de N images et de leurs légendes, P couples en tout.

    « right » est l'image face à sa légende, « wrong » face à une légende tirée d'une autre, « blank » une image
    blanche face à la légende : le zéro de l'échelle.

    Attributes:
        images: numéro de l'image de chaque couple, (P,).
        cosines: par sorte, (P,).
        scores: CLIPScore, par sorte, (P,).
        texts_found: par k, l'une des légendes de l'image est-elle parmi les k plus proches, (N,) ?
        images_found: par k, l'image est-elle parmi les k plus proches de sa légende, (P,) ?
        texts_chance, images_chance: par k, la part attendue de qui classe au hasard.
        unknown: mots que le juge n'a jamais vus.
        cut: par légende trop longue, les mots laissés de côté.
    """

    images: np.ndarray
    cosines: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    texts_found: dict[int, np.ndarray]
    images_found: dict[int, np.ndarray]
    texts_chance: dict[int, float]
    images_chance: dict[int, float]
    unknown: list[str]
    cut: dict[str, list[str]]

    def estimate(self, values: np.ndarray, seed: int = 0) -> Estimate:
        """Moyenne de valeurs (P,) ou (N,), et son intervalle à 95 % en retirant des images entières."""
        groups = self.images if len(values) == len(self.images) else range(len(values))
        return bootstrap(lambda rows: values[rows].mean(), groups, seed=seed)


def judge_captions(
    judge: Judge, data: CaptionedImages, seed: int = 0, progress: Callable[[int], None] | None = None
) -> Judgement:
    """Fait juger des images et leurs légendes, les images lues par paquets.

    Une légende que portent plusieurs images est une bonne réponse pour chacune.

    Args:
        judge: juge.
        data: images de la taille du juge.
        seed: graine du tirage des fausses légendes.
        progress: appelé avec le nombre d'images que l'on vient de lire.

    Raises:
        MinidalleError: image illisible, légende où le juge ne lit rien, ou trop peu de légendes différentes.
    """
    own, texts = _numbered(data.captions)
    unknown, cut = _read(judge, data)
    vectors = judge.embed_texts(texts)
    seen = []
    for start in range(0, len(data), 64):
        part = range(start, min(start + 64, len(data)))
        seen.append(judge.embed_images(np.stack([data[i][0] for i in part])))
        if progress:
            progress(len(part))
    views = np.concatenate(seen)
    white = judge.embed_images(np.full((1, judge.size, judge.size, 3), 255, np.uint8))

    images = np.repeat(np.arange(len(own)), [len(row) for row in own])
    told = np.concatenate(own)
    wrong = _others(own, told, np.random.default_rng(seed))
    pairs = {
        "right": (views[images], vectors[told]),
        "wrong": (views[images], vectors[wrong]),
        "blank": (white.repeat(len(told), 0), vectors[told]),
    }
    holders: list[list[int]] = [[] for _ in texts]
    for image, text in zip(images.tolist(), told.tolist(), strict=True):
        holders[text].append(image)
    images_found = recall_at_k(vectors, views, holders, KS)
    asked = [holders[text] for text in told]
    return Judgement(
        images=images,
        cosines={kind: pair_cosines(*pair) for kind, pair in pairs.items()},
        scores={kind: clip_score(*pair) for kind, pair in pairs.items()},
        texts_found=recall_at_k(views, vectors, own, KS),
        images_found={k: found[told] for k, found in images_found.items()},
        texts_chance={k: recall_by_chance(own, len(texts), k) for k in KS},
        images_chance={k: recall_by_chance(asked, len(own), k) for k in KS},
        unknown=unknown,
        cut=cut,
    )


def _numbered(captions: Sequence[Sequence[str]]) -> tuple[list[list[int]], list[str]]:
    """Numéros des légendes de chaque image, et les légendes, chacune une fois."""
    numbers: dict[str, int] = {}
    own = [[numbers.setdefault(text, len(numbers)) for text in dict.fromkeys(told)] for told in captions]
    if len(own) < 2 or any(len(row) == len(numbers) for row in own):
        raise MinidalleError("Il faut au moins deux images, aux légendes différentes : en ajouter.")
    return own, list(numbers)


def _read(judge: Judge, data: CaptionedImages) -> tuple[list[str], dict[str, list[str]]]:
    unknown: dict[str, None] = {}
    cut = {}
    for i, captions in enumerate(data.captions):
        for caption in captions:
            reading = judge.read(caption)
            if not reading.ids:
                raise MinidalleError(
                    f"« {data.source} », entrée {i} : « {judge.name} » ne lit rien dans « {caption} », la corriger."
                )
            unknown |= dict.fromkeys(reading.unknown)
            if reading.dropped:
                cut[caption] = reading.dropped
    return list(unknown), cut


def _others(own: list[list[int]], told: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pour chaque couple, une légende tirée de ceux dont l'image ne la porte pas, (P,)."""
    return np.concatenate([rng.choice(told[~np.isin(told, row)], len(row)) for row in own])
