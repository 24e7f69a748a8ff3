"""De la phrase à l'image : segmenteur, transformeur et décodeur d'images réunis."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minidalle.checkpoints import find_weights, load_model
from minidalle.errors import MinidalleError
from minidalle.sampling import check_guidance, check_sampling, sample
from minidalle.text import load_tokenizer

if TYPE_CHECKING:
    from minidalle.evaluation.judges import Judge
    from minidalle.models.dalle import DALLE
    from minidalle.models.dalle_mini import DALLEMini
    from minidalle.models.dvae import DVAE
    from minidalle.models.vqgan import VQGAN
    from minidalle.models.vqvae import VQVAE
    from minidalle.text import ByteTokenizer, Tokenizer

DEFAULT_MODEL = "scenes"
GENERATORS = ("dalle", "dalle_mini")  # modèles qui écrivent une image d'après un texte
BATCH = 64  # images dessinées à la fois : davantage ne va guère plus vite (mesuré)
_BLANK = (148, 168)  # damier des cases d'un film qui ne sont pas encore écrites


@dataclass(frozen=True, slots=True)
class Drawing:
    """Images d'une même description.

    Attributes:
        images: uint8 (n, S, S, 3).
        tokens: int64 (n, h, w).
        unknown: mots que le modèle n'a jamais lus.
        dropped: mots de la fin, laissés de côté faute de place.
        prompt: ce qui était demandé.
        seeds: graine de chaque image.
        scores: cosinus (n,) de chaque image et de la description selon un juge ; None avant `rerank`.
    """

    images: np.ndarray
    tokens: Tensor
    unknown: list[str]
    dropped: list[str]
    prompt: str = ""
    seeds: Sequence[int] = ()
    scores: np.ndarray | None = None


class TextToImage:
    """Un modèle complet : il lit une description et dessine.

    Attributes:
        tokenizer: ce qui met la description en jetons.
        transformer: ce qui écrit les jetons d'image, un `DALLE` ou un `DALLEMini`.
        vqvae: ce qui met une image en jetons et les peint, un `VQVAE`, un `DVAE` ou un `VQGAN`.
        guidance: guidage que conseillent ses auteurs ; `draw` ne l'emploie que si on le lui donne.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer | ByteTokenizer",
        transformer: "DALLE | DALLEMini",
        vqvae: "VQVAE | DVAE | VQGAN",
        guidance: float = 1.0,
    ) -> None:
        """Assemble trois pièces entraînées ensemble.

        Raises:
            MinidalleError: leurs vocabulaires ne s'accordent pas, ou guidage impossible.
        """
        check_guidance(guidance)
        self.guidance = guidance
        config = transformer.config
        # Des modèles publiés ont une table de textes plus longue que leur vocabulaire.
        if len(tokenizer) > config.text_vocabulary or vqvae.config.codes != config.image_vocabulary:
            raise MinidalleError(
                "Segmenteur, transformeur et décodeur d'images ne vont pas ensemble : les réentraîner."
            )
        self.tokenizer, self.transformer, self.vqvae = tokenizer, transformer.eval(), vqvae.eval()

    @classmethod
    def load(cls, name: Path | str = DEFAULT_MODEL) -> "TextToImage":
        """Charge un modèle par son chemin ou par son nom.

        Raises:
            MinidalleError: poids absents, illisibles, qui ne sont pas ceux que dit leur notice, ou qui ne sont pas
                ceux d'un générateur.
        """
        path = find_weights(name)
        transformer, notes = _load(path)
        if notes["model"] not in GENERATORS:
            raise MinidalleError(
                f"« {path} » contient un modèle « {notes['model']} », qui ne lit pas de description : "
                f"il faut un « {' » ou un « '.join(GENERATORS)} »."
            )
        if not {"tokenizer", "vqvae"} <= notes.keys() or Path(notes["vqvae"]).name != notes["vqvae"]:
            raise MinidalleError(
                f"« {path} » a perdu son vocabulaire ou le nom de son décodeur d'images : le refaire."
            )
        # Le décodeur voyage à côté du transformeur ; un autre du même nom aurait d'autres codes.
        beside = path.with_name(f"{notes['vqvae']}.safetensors")
        vqvae, theirs = _load(beside)
        if not hasattr(vqvae.config, "codes"):
            raise MinidalleError(
                f"« {beside} » contient un modèle « {theirs['model']} », qui ne peint pas de jetons : "
                f"mettre à sa place le décodeur livré avec « {path.name} »."
            )
        try:
            guidance = float(notes.get("guidance", 1))
        except ValueError as error:
            raise MinidalleError(f"« {path} » conseille un guidage illisible : le refaire.") from error
        return cls(load_tokenizer(notes["tokenizer"]), transformer, vqvae, guidance)

    @property
    def size(self) -> tuple[int, int]:
        """Hauteur et largeur des images, en pixels."""
        factor = self.vqvae.config.factor
        return tuple(side * factor for side in self.transformer.config.grid)

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, list[str], list[str]]:
        """Jetons de texte (B, L), puis mots inconnus et mots laissés de côté, toutes descriptions réunies.

        Raises:
            MinidalleError: description vide.
        """
        length = self.transformer.config.text_length
        encodings = [self.tokenizer.encode(prompt, length) for prompt in prompts]
        nothing = self.tokenizer.encode("").ids
        for encoding in encodings:
            if encoding.ids == nothing and encoding.dropped:
                raise MinidalleError("Le premier mot de la description est trop long : l'écrire autrement.")
            if encoding.ids == nothing:
                raise MinidalleError(
                    "Description vide : écrire quelque chose à dessiner, par exemple « un mouton »."
                )
        unknown = list(dict.fromkeys(word for e in encodings for word in e.unknown))
        dropped = [word for e in encodings for word in e.dropped]
        return pad([e.ids for e in encodings], length, self.tokenizer.pad_id), unknown, dropped

    def draw(self, prompt: str, n: int = 1, seed: int = 0, **options: object) -> Drawing:
        """Dessine n images d'une même description.

        L'image i dépend de la graine `seed` + i et d'elle seule : `draw(prompt, 1, seed + i)` la refait.

        Args:
            prompt: ce qu'il faut dessiner, en français.
            n: nombre d'images.
            seed: graine de la première.
            options: voir `draw_many`.

        Raises:
            MinidalleError: description vide ou réglage impossible.
        """
        return self.draw_many([prompt], [seed], n, **options)[0]

    def draw_many(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        complete: np.ndarray | None = None,
        keep: float = 0.5,
        batch: int = BATCH,
        progress: Callable[[int, Tensor], None] | None = None,
        observe: Callable[[int, Tensor], None] | None = None,
    ) -> list[Drawing]:
        """Dessine n images de chaque description, toutes ensemble par paquets.

        Chaque image est celle que `draw` ferait seule, octet pour octet, à ceci près que la taille d'un paquet peut
        changer le dernier bit d'un logit, donc, de loin en loin, le jeton d'un tirage au bord de deux.

        Args:
            prompts: ce qu'il faut dessiner, en français.
            seeds: graine de la première image de chaque description ; les suivantes ont les graines qui suivent.
            n: nombre d'images par description.
            temperature, top_k, top_p, guidance: voir `minidalle.sampling.sample` ; la condition vide du guidage est
                la description vide, apprise avec les autres.
            complete: uint8 (S, S, 3), image dont les jetons du haut sont gardés, et le bas redessiné.
            keep: part des lignes gardées, dans ]0 ; 1[ : une au moins, mais pas toutes.
            batch: images dessinées à la fois ; voir `row_bytes`.
            progress, observe: voir `minidalle.sampling.sample` ; appelées pour chaque paquet l'un après l'autre.

        Raises:
            MinidalleError: description vide ou réglage impossible.
        """
        if n < 1:
            raise MinidalleError(f"Nombre d'images impossible ({n}) : en demander au moins une.")
        if batch < 1:
            raise MinidalleError(f"Paquet impossible ({batch}) : dessiner au moins une image à la fois.")
        if not prompts or len(prompts) != len(seeds):
            raise MinidalleError(
                f"{len(prompts)} description(s) et {len(seeds)} graine(s) : une graine par description, au moins une."
            )
        for seed in seeds:
            if not 0 <= seed < 2**63 - n:
                raise MinidalleError(f"Graine impossible ({seed}) : un entier positif.")
        check_sampling(temperature, top_k, top_p)
        check_guidance(guidance)
        readings = [self.read([prompt]) for prompt in prompts]
        device = next(self.transformer.parameters()).device
        text = torch.cat([ids for ids, _, _ in readings]).repeat_interleave(n, 0).to(device)
        dice = [torch.Generator().manual_seed(seed + i) for seed in seeds for i in range(n)]
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        options |= {"progress": progress, "observe": observe, "null": self._nothing().to(device)}
        options["prefix"] = None if complete is None else self._top(complete, keep)
        length = self.transformer.config.image_length
        tokens = torch.cat(
            [
                sample(self.transformer, text[i : i + batch], dice[i : i + batch], length=length, **options)
                for i in range(0, len(dice), batch)
            ]
        )
        tokens = tokens.view(len(prompts), n, *self.transformer.config.grid).cpu()
        return [
            Drawing(self._paint(grids), grids, *words, prompt, range(seed, seed + n))
            for grids, (_, *words), prompt, seed in zip(tokens, readings, prompts, seeds, strict=True)
        ]

    def film(self, tokens: Tensor, frames: int = 128) -> np.ndarray:
        """L'image en train de s'écrire, de la grille vide à la grille pleine.

        Les cases à venir font un damier gris ; pour le décodeur, dont chaque pixel dépend aussi des cases voisines,
        elles valent le premier jeton : à lui près, rien n'est montré d'avance.

        Args:
            tokens: int64 (h, w), tirés de `Drawing.tokens`.
            frames: nombre d'images du film, au plus et au moins 2.

        Returns:
            uint8 (F, S, S, 3) ; F vaut h·w + 1, ou `frames` si c'est moins.
        """
        flat = tokens.flatten()
        counts = torch.linspace(0, len(flat), min(max(frames, 2), len(flat) + 1)).round()
        written = torch.arange(len(flat)) < counts[:, None]
        partial = torch.where(written, flat, flat[0]).view(-1, *tokens.shape)
        factor = self.vqvae.config.factor
        checks = np.array(_BLANK, np.uint8)[np.indices(tokens.shape).sum(0) % 2]
        seen, checks = (
            cells.repeat(factor, -2).repeat(factor, -1)[..., None]
            for cells in (written.view(-1, *tokens.shape).numpy(), checks)
        )
        return np.where(seen, self._paint(partial), checks)

    def row_bytes(self, guidance: float = 1.0) -> int:
        """Mémoire que prend chaque image d'un paquet, en octets : une estimation, plutôt large.

        Clés et valeurs de chaque bloc, à toutes les positions ; autant pour les calculs en cours ; et la loi d'un
        jeton, quelques fois recopiée en double précision.
        """
        config = self.transformer.config
        layers = getattr(config, "decoder_layers", config.layers)
        cache = 2 * layers * (config.text_length + config.image_length) * config.width * 4
        return (2 * cache + 6 * 8 * config.image_vocabulary) * (1 if guidance == 1 else 2)

    def _nothing(self) -> Tensor:
        """La description vide (1, L), que le modèle a apprise."""
        ids = self.tokenizer.encode("").ids
        return pad([ids], self.transformer.config.text_length, self.tokenizer.pad_id)

    def _top(self, image: np.ndarray, keep: float) -> Tensor:
        """Jetons (1, P) des lignes du haut d'une image."""
        if not 0 < keep < 1:
            raise MinidalleError(f"Part gardée impossible ({keep}) : choisir une part dans ]0 ; 1[.")
        if image.shape != (*self.size, 3) or image.dtype != np.uint8:
            height, width = self.size
            raise MinidalleError(
                f"Image à compléter de forme {image.shape} : ce modèle veut {height} × {width} pixels, uint8, RVB."
            )
        rows = self.transformer.config.grid[0]
        kept = min(max(round(keep * rows), 1), rows - 1)
        with torch.inference_mode():
            device = next(self.vqvae.parameters()).device
            return self.vqvae.encode(to_tensor(image[None]).to(device))[:, :kept].flatten(1)

    def _paint(self, tokens: Tensor) -> np.ndarray:
        """Jetons (n, h, w) → uint8 (n, S, S, 3), un par un : en lot, l'arrondi dépendrait du nombre."""
        device = next(self.vqvae.parameters()).device
        return np.concatenate([to_pixels(self.vqvae.decode(grid[None].to(device))) for grid in tokens])


def rerank(drawing: Drawing, judge: "Judge", keep: int | None = None) -> Drawing:
    """Range des images de la plus à la moins ressemblante à leur description, et garde les premières.

    Args:
        drawing: n images.
        judge: un CLIP (`minidalle.evaluation.judges.load_judge`).
        keep: nombre d'images gardées ; None pour toutes.

    Returns:
        Les images gardées, avec leurs `scores`.

    Raises:
        MinidalleError: garder moins d'une image, ou plus que n ; description dont le juge ne lit rien.
    """
    keep = len(drawing.images) if keep is None else keep
    if not 1 <= keep <= len(drawing.images):
        raise MinidalleError(
            f"Garder {keep} image(s) sur {len(drawing.images)} : impossible, en tirer davantage."
        )
    images = _resize(drawing.images, judge.size)
    scores = judge.embed_images(images) @ judge.embed_texts([drawing.prompt])[0]
    order = np.argsort(-scores, kind="stable")[:keep]
    return replace(
        drawing,
        images=drawing.images[order],
        tokens=drawing.tokens[torch.from_numpy(order)],
        seeds=[drawing.seeds[i] for i in order],
        scores=scores[order],
    )


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    sized = [Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in sized])


def _load(path: Path) -> tuple[torch.nn.Module, dict[str, str]]:
    """Poids et notes d'un fichier qui est bien celui que décrit sa notice, s'il en a une."""
    card = path.with_suffix(".md")
    if path.is_file() and card.is_file():
        told = re.search(r"Empreinte.*`([0-9a-f]{64})`", card.read_text(encoding="utf-8", errors="replace"))
        if told and told[1] != hashlib.sha256(path.read_bytes()).hexdigest():
            raise MinidalleError(
                f"« {path} » n'a pas l'empreinte que donne « {card.name} » : il est tronqué ou modifié ; le "
                f"télécharger à nouveau ou, s'il vient d'être réentraîné, retirer cette notice."
            )
    return load_model(path)


def pad(sequences: list[list[int]], length: int, value: int = 0) -> Tensor:
    """Suites de jetons complétées par `value` → (B, length), int64."""
    padded = torch.full((len(sequences), length), value)
    for row, ids in zip(padded, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return padded


def to_pixels(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) de 0 à 1 → uint8 (B, H, W, 3)."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_tensor(images: np.ndarray) -> Tensor:
    """Images uint8 (B, H, W, 3) → float (B, 3, H, W) de 0 à 1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(255).contiguous()
