"""Recettes d'entraînement : quelles données pour quel modèle, avec quels réglages.

C'est le seul endroit où données et modèles se rencontrent ; la ligne de commande, les chapitres et
`tools/weights.py` y puisent tous.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from minidalle.checkpoints import model_class
from minidalle.data import scenes
from minidalle.data.pairs import Pair, Vocabulary
from minidalle.data.sources import Emojis, Mixture, Scenes, Source
from minidalle.errors import MinidalleError
from minidalle.evaluation.scores import psnr
from minidalle.generation import GENERATORS, pad, to_pixels, to_tensor
from minidalle.models.clip import CLIP, CLIPConfig
from minidalle.sampling import greedy
from minidalle.text import Tokenizer
from minidalle.training import Batches, Metrics, TrainingConfig


@dataclass(frozen=True)
class Preset:
    """Tailles d'un modèle et réglages de son entraînement."""

    model: dict
    training: TrainingConfig
    help: str


# Les mêmes réglages pour les deux générateurs ; ceux qui sont livrés n'ont pas duré autant (voir leurs notices).
DRAWING_TRAINING = TrainingConfig(
    steps=3900,
    batch_size=64,
    learning_rate=1.2e-3,
    warmup=100,
    ema=0.99,
    precision="bfloat16",
    compiled=True,
    save_every=200,
    evaluate_every=200,
)

# De l'imitation à la récompense : la moitié d'un lot est faite de dessins du modèle (voir `minidalle.rewards`).
REWARDED_TRAINING = replace(
    DRAWING_TRAINING,
    steps=1700,
    batch_size=128,
    learning_rate=5e-4,
    warmup=20,
    floor=0.1,
    ema=0.98,
    save_every=100,
    evaluate_every=100,
)

PRESETS = {
    "autoencoder": {
        "mini": Preset(
            {},
            TrainingConfig(steps=600, batch_size=32, learning_rate=4e-3, warmup=50),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "reference": Preset(
            {},
            TrainingConfig(
                steps=15_000, batch_size=32, learning_rate=4e-3, warmup=200, ema=0.999, precision="bfloat16"
            ),
            "les poids livrés : un quart d'heure d'un cœur récent",
        ),
    },
    "vae": {
        "mini": Preset(
            {"beta_warmup": 200},
            TrainingConfig(steps=600, batch_size=32, learning_rate=2e-3, warmup=50),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "reference": Preset(
            {},
            TrainingConfig(
                steps=15_000, batch_size=32, learning_rate=2e-3, warmup=200, ema=0.999, precision="bfloat16"
            ),
            "les poids livrés : un quart d'heure d'un cœur récent",
        ),
    },
    "vqvae": {
        "mini": Preset(
            {"channels": (32, 48, 64), "codes": 256, "blocks": 1},
            TrainingConfig(steps=600, batch_size=32, learning_rate=3e-3, warmup=50),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "reference": Preset(
            {},
            TrainingConfig(
                steps=18_000, batch_size=32, learning_rate=2e-3, warmup=200, ema=0.999, precision="bfloat16"
            ),
            "les poids livrés : une demi-heure d'un cœur récent",
        ),
    },
    "dvae": {
        "mini": Preset(
            {"codes": 256, "kl_steps": 100, "anneal_steps": 300, "usage_weight": 0.5, "min_log_scale": -2.5},
            TrainingConfig(steps=400, batch_size=32, learning_rate=2e-3, warmup=50),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "reference": Preset(
            {"anneal_steps": 4000, "usage_weight": 0.5, "min_log_scale": -2.5},
            TrainingConfig(
                steps=5000, batch_size=32, learning_rate=2e-3, warmup=100, ema=0.999, precision="bfloat16"
            ),
            "les poids livrés : vingt minutes d'un cœur récent",
        ),
    },
    "vqgan": {
        "mini": Preset(
            {"discriminator_start": 150, "adversarial": 0.2},
            TrainingConfig(steps=250, batch_size=16, learning_rate=2e-3, warmup=50, betas=(0.5, 0.9)),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "reference": Preset(
            {"discriminator_start": 4000, "discriminator_lead": 500, "adversarial": 0.2},
            TrainingConfig(
                steps=8000,
                batch_size=16,
                learning_rate=2e-3,
                warmup=200,
                betas=(0.5, 0.9),
                ema=0.999,
                precision="bfloat16",
            ),
            "les poids livrés : une demi-heure d'un cœur récent",
        ),
    },
    "dalle": {
        "mini": Preset(
            {"width": 128, "layers": 3, "heads": 4},
            TrainingConfig(steps=200, batch_size=32, learning_rate=3e-3, warmup=30),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "socle": Preset(
            {},
            TrainingConfig(
                steps=7_000, batch_size=64, learning_rate=1.5e-3, warmup=300, ema=0.999, precision="bfloat16"
            ),
            "le premier modèle du livre, sur des légendes quelconques, dont part « reference »",
        ),
        "reference": Preset(
            {"text_length": 20, "text_weight": 0.125},
            DRAWING_TRAINING,
            "par imitation : une bonne heure de deux cœurs récents",
        ),
        "recompense": Preset(
            {"text_length": 20, "text_weight": 0.125},
            REWARDED_TRAINING,
            "les poids livrés : « reference », puis une heure et demie à apprendre de ses propres dessins",
        ),
        "emojis": Preset(
            {"text_length": 12, "text_weight": 0.125, "width": 192},
            replace(DRAWING_TRAINING, steps=1200, learning_rate=2e-3, evaluate_every=300),
            "les poids livrés d’« emojis » : un quart d’heure de deux cœurs récents",
        ),
    },
    "dalle_mini": {
        "mini": Preset(
            {"width": 128, "layers": 2, "decoder_layers": 2},
            TrainingConfig(steps=200, batch_size=32, learning_rate=3e-3, warmup=30),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "reference": Preset(
            {"layers": 2, "decoder_layers": 3, "text_length": 20},
            DRAWING_TRAINING,
            "les poids livrés : une bonne heure de deux cœurs récents",
        ),
        "recompense": Preset(
            {"layers": 2, "decoder_layers": 3, "text_length": 20},
            REWARDED_TRAINING,
            "« reference », puis une heure et demie à apprendre de ses propres dessins",
        ),
    },
    "clip": {
        "mini": Preset(
            {"tower": "resnet", "image_layers": 1, "text_layers": 2},
            TrainingConfig(steps=150, batch_size=64, learning_rate=1e-3, warmup=30),
            "une minute d'un cœur : assez pour voir apprendre",
        ),
        "reference": Preset(
            {"tower": "resnet", "image_layers": 1, "text_layers": 2, "dropout": 0.1},
            TrainingConfig(
                steps=2000,
                batch_size=128,
                learning_rate=1e-3,
                warmup=50,
                weight_decay=0.1,
                ema=0.99,
                precision="bfloat16",
                save_every=100,
                evaluate_every=200,
            ),
            "les poids livrés : un quart d'heure d'un cœur récent",
        ),
    },
}


def preset(model: str, name: str) -> Preset:
    """Préréglage d'un modèle.

    Raises:
        MinidalleError: modèle ou préréglage inconnu.
    """
    for what, key, table in (("modèle", model, PRESETS), ("préréglage", name, PRESETS.get(model, {}))):
        if key not in table:
            raise MinidalleError(f"« {key} » : {what} inconnu ; choisir parmi {', '.join(table)}.")
    return PRESETS[model][name]


# --- auto-encodeurs -------------------------------------------------------------------------------


def build(model: str, options: dict, seed: int = 0, size: int = 64) -> nn.Module:
    """Auto-encodeur neuf, prêt à apprendre, poids initiaux tirés de `seed`.

    Args:
        model: nom d'un auto-encodeur du livre.
        options: champs de sa configuration.
        size: côté des images, pour ceux dont le code est un vecteur ; les autres s'en passent.
    """
    cls = model_class(model)
    sized = {"size": size} if "size" in cls.Config.__dataclass_fields__ else {}
    return ready(_seeded(lambda: cls(cls.Config(**sized | options)), seed))


def ready(model: nn.Module) -> nn.Module:
    """Donne à un VQGAN l'œil dont sa perte a besoin, et qui ne fait pas partie de ses poids."""
    if hasattr(model, "features") and model.features is None:
        from minidalle.evaluation import perceptual

        model.features = perceptual.Features.load()
    return model


def image_batches(source: Source) -> Batches:
    """Lots (images,) pour les auto-encodeurs."""
    return lambda rng, n: (to_tensor(source.batch(rng, n)[0]),)


def measure_images(source: Source, n: int = 256, seed: int = 1) -> Callable[[nn.Module], Metrics]:
    """Mesure un auto-encodeur sur n images fixes.

    « psnr » est en décibels, moyen ; s'il rend des jetons, « codes » compte ceux qu'il emploie et
    « test_perplexity » est leur nombre effectif, sur l'ensemble des images.
    """
    images, _ = source.batch(np.random.default_rng(seed), n)

    def measure(model: nn.Module) -> Metrics:
        codes = encode(model, images)
        metrics = {"psnr": float(psnr(images, decode(model, codes)).mean())}
        if not codes.is_floating_point():
            shares = torch.bincount(codes.flatten()) / codes.numel()
            entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
            metrics |= {"codes": int((shares > 0).sum()), "test_perplexity": float(entropy.exp())}
        return metrics

    return measure


def encode(model: nn.Module, images: np.ndarray) -> Tensor:
    """Images uint8 (B, S, S, 3) → codes (B, …), par paquets pour ménager la mémoire."""
    return torch.cat([model.encode(part) for part in to_tensor(images).split(64)])


def decode(model: nn.Module, codes: Tensor) -> np.ndarray:
    """Codes (B, …) → images uint8 (B, S, S, 3), par paquets."""
    return np.concatenate([to_pixels(model.decode(part)) for part in codes.split(64)])


def reconstruct(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Ce qui reste d'images uint8 (B, S, S, 3) une fois encodées puis décodées."""
    return decode(model, encode(model, images))


# --- transformeur ---------------------------------------------------------------------------------


def build_tokenizer(source: Source, captions: int = 20_000, vocabulary: int | None = None) -> Tokenizer:
    """Segmenteur appris sur des légendes de la source.

    Args:
        vocabulary: nombre de jetons, au plus ; sinon 512, qui suffisent aux scènes, ou 4096 ailleurs.
    """
    vocab_size = vocabulary or (512 if _only_scenes(source) else 4096)
    rng = np.random.default_rng(0)
    texts = (text for _ in range(captions // 500) for text in source.captions(rng, 500))
    return Tokenizer.train(texts, vocab_size)


def _only_scenes(source: Source) -> bool:
    if isinstance(source, Mixture):
        return all(map(_only_scenes, source.sources))
    return isinstance(source, Scenes)


# Ce que disent les légendes d'un générateur : la couleur, toujours ; le reste, souvent.
DRAWING_CAPTION = {
    "colour": 1.0,
    "texture": 0.6,
    "size": 0.4,
    "background": 0.3,
    "omission": 0.1,
    "phrasing": 0.3,
}


def drawing_source(size: int = 64, split: str = "train", *, tinted: float = 0.25) -> Mixture:
    """Ce qu'apprend un générateur : des scènes quelconques, et surtout ce qui s'apprend mal.

    Sur huit exemples : quatre couples, situés six fois sur dix quand ils peuvent l'être ; un objet seul ; des
    objets tous pareils, une fois en nombre quelconque, une fois trois ou quatre ; une scène quelconque.

    Args:
        size, split: voir `Scenes`.
        tinted: part des scènes aux teintes sans nom. Sans elles, le modèle apprend qu'un carré n'est jamais
            orange ; avec elles, qu'il peut prendre n'importe quelle couleur.
    """

    def drawn(*, situated: float = 0.5, **sampling: object) -> Scenes:
        return Scenes(split, size, DRAWING_CAPTION | {"spatial": situated}, sampling, tinted)

    couple = drawn(situated=0.6, count=2)
    alike = [drawn(identical=1.0), Mixture([drawn(identical=1.0, count=n) for n in (3, 4)])]
    return Mixture([drawn(), drawn(count=1), couple, couple, couple, couple, *alike])


def build_generator(
    model: str, options: dict, tokenizer: Tokenizer, vqvae: nn.Module, size: int, seed: int = 0
) -> nn.Module:
    """Générateur neuf, « dalle » ou « dalle_mini », accordé au segmenteur, aux jetons et au côté des images.

    Raises:
        MinidalleError: nom d'un autre modèle.
    """
    if model not in GENERATORS:
        raise MinidalleError(f"« {model} » n'est pas un générateur : choisir parmi {', '.join(GENERATORS)}.")
    side = size // vqvae.config.factor
    shared = {
        "text_vocabulary": len(tokenizer),
        "image_vocabulary": vqvae.config.codes,
        "grid": (side, side),
    }
    cls = model_class(model)
    return _seeded(lambda: cls(cls.Config(**shared | options)), seed)


@torch.no_grad()
def transplant(
    old: nn.Module, old_vqvae: nn.Module, new: nn.Module, new_vqvae: nn.Module, n: int = 3840, seed: int = 0
) -> None:
    """Greffe sur `new` ce que `old` sait, quand les jetons d'image changent de sens.

    Le même corps d'images est mis en jetons par les deux segmenteurs. Un nouveau jeton hérite de la moyenne des
    anciens, pesée par ce qu'ils ont d'images en commun ; les textes et les blocs passent tels quels. Deux
    réseaux de mêmes tailles, sauf `text_length`, qui peut raccourcir.

    Args:
        n: nombre de scènes encodées par les deux.
    """
    images, _ = Scenes(None).batch(np.random.default_rng(seed), n)
    codes = new_vqvae.config.codes
    common = torch.zeros(codes, old_vqvae.config.codes)
    places = (encode(new_vqvae, images).flatten(), encode(old_vqvae, images).flatten())
    common.index_put_(places, torch.ones(len(places[0])), accumulate=True)
    used = common.sum(1, keepdim=True) > 0
    share = common / common.sum(1, keepdim=True).clamp(1)

    def inherit(table: Tensor) -> Tensor:
        return torch.where(used, share @ table, table.mean(0))

    state = new.state_dict()
    for name, tensor in old.state_dict().items():
        if name == "image_embedding.weight":  # le dernier est le jeton de départ
            tensor = torch.cat([inherit(tensor[:-1]), tensor[-1:]])
        elif name == "head.weight":
            tensor = inherit(tensor)
        elif name in ("text_position.weight", "padding.weight"):
            tensor = tensor[: new.config.text_length]
        state[name] = tensor
    new.load_state_dict(state)


@torch.no_grad()
def lend_tables(old: nn.Module, new: nn.Module) -> None:
    """Recopie sur `new` les tables de mots et de jetons d'image et la tête de `old` : mêmes vocabulaires, même largeur.

    Les deux peuvent être d'architectures différentes : ce sont les mots qu'on se prête, non les idées.
    """
    for name in ("text_embedding", "image_embedding", "head"):
        getattr(new, name).weight.copy_(getattr(old, name).weight)


def token_batches(
    source: Source, tokenizer: Tokenizer, vqvae: nn.Module, text_length: int, caption_dropout: float = 0.1
) -> Batches:
    """Lots (texte, jetons d'image) pour le transformeur ; l'image est encodée au vol.

    Args:
        caption_dropout: part des légendes remplacées par le vide ; le modèle apprend ainsi à dessiner
            sans consigne, ce que demande le guidage sans classifieur (Ho et Salimans, 2022).
    """

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        images, captions = source.batch(rng, n)
        kept = rng.random(n) >= caption_dropout
        ids = [tokenizer.encode(c, text_length).ids if k else [] for c, k in zip(captions, kept, strict=True)]
        return pad(ids, text_length), encode(vqvae, images)

    return batch


def measure_dalle(
    source: Source, tokenizer: Tokenizer, vqvae: nn.Module, text_length: int, n: int = 256, seed: int = 1
) -> Callable[[nn.Module], Metrics]:
    """Mesure un transformeur sur n couples fixes.

    « test_loss » est en nats par jeton. « delta » est l'écart, en nats par image, entre la
    log-vraisemblance négative sous une légende prise au voisin et sous la bonne : nul pour un modèle
    qui ne lit pas, il grandit à mesure que la légende compte.
    """
    batches = token_batches(source, tokenizer, vqvae, text_length, caption_dropout=0)
    text, image = batches(np.random.default_rng(seed), n)

    @torch.no_grad()
    def nats(transformer: nn.Module, text: Tensor) -> Tensor:
        parts = zip(text.split(64), image.split(64), strict=True)
        return torch.cat([transformer.nats(*part) for part in parts])

    def measure(transformer: nn.Module) -> Metrics:
        right, wrong = nats(transformer, text), nats(transformer, text.roll(1, 0))
        length = transformer.config.image_length
        return {"test_loss": float(right.mean()) / length, "delta": float((wrong - right).mean())}

    return measure


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


# --- CLIP -----------------------------------------------------------------------------------------

# Des légendes plus complètes qu'ailleurs : deux scènes d'un même lot en auraient trop souvent la même.
CLIP_CAPTION = {"colour": 0.9, "texture": 0.7, "size": 0.6, "background": 0.6, "omission": 0.1}
COMPLETE = {"colour": 1.0, "texture": 1.0, "size": 1.0, "background": 1.0, "omission": 0.0}


def clip_source(size: int, split: str = "train", *, situated: bool = False) -> Mixture:
    """Ce qu'apprend CLIP : pour moitié des scènes, pour un quart des objets seuls, pour un quart des émojis.

    Args:
        size, split: voir `Scenes`.
        situated: les scènes ont deux objets, et leur légende les situe chaque fois qu'elle le peut.
    """
    emphasis = {"spatial": 1.0} if situated else {}
    drawn = Scenes(split, size, CLIP_CAPTION | emphasis, {"count": 2} if situated else {})
    alone = Scenes(split, size, CLIP_CAPTION, {"count": 1})
    return Mixture([drawn, drawn, alone, Emojis(split, size, shift=6)])


def build_clip(options: dict, tokenizer: Tokenizer, size: int, seed: int = 0) -> CLIP:
    """CLIP neuf, accordé au segmenteur et au côté `size` des images."""
    shared = {"vocabulary": len(tokenizer), "size": size}
    return _seeded(lambda: CLIP(CLIPConfig(**shared | options)), seed)


def clip_batches(source: Source, tokenizer: Tokenizer, length: int, opposites: float = 0.0) -> Batches:
    """Lots (images, légendes, légendes fausses) pour CLIP.

    Args:
        length: jetons d'une légende, au plus ; la fin des plus longues est coupée.
        opposites: part des légendes qui situent un objet dont l'opposée (`scenes.opposite`) entre dans le lot.
    """

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor, Tensor]:
        images, captions = source.batch(rng, n)
        kept = rng.random(n) < opposites
        turned = [scenes.opposite(caption) for caption, keep in zip(captions, kept, strict=True) if keep]
        ids = [tokenizer.encode(text, length).ids for text in [*captions, *filter(None, turned)]]
        texts = pad(ids, length)
        return to_tensor(images), texts[:n], texts[n:]

    return batch


@torch.no_grad()
def embed_images(clip: CLIP, images: np.ndarray) -> Tensor:
    """Images uint8 (B, S, S, 3) → vecteurs (B, d) de norme 1, par paquets pour ménager la mémoire."""
    parts = (images[i : i + 64] for i in range(0, len(images), 64))
    return torch.cat([clip.encode_image(to_tensor(part)) for part in parts])


@torch.no_grad()
def embed_texts(clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Textes → vecteurs (B, d) de norme 1 ; la fin des trop longs est coupée.

    Raises:
        MinidalleError: texte vide.
    """
    length = clip.config.length
    ids = pad([tokenizer.encode(text, length).ids for text in texts], length)
    return torch.cat([clip.encode_text(part) for part in ids.split(256)])


def examine_clip(tokenizer: Tokenizer, size: int = 64, n: int = 256, seed: int = 1) -> Callable[[CLIP], dict]:
    """Prépare l'examen d'un CLIP, le même à chaque appel, sur la part « test » des scènes et des émojis.

    Returns:
        Une fonction qui rend des tableaux de booléens, une réponse juste ou fausse par question :
        « recall » : parmi les légendes complètes de n scènes, celle de l'image est la plus proche ;
        « shape », « colour » : une forme seule, d'une couleur jamais vue sur elle, parmi les 64 « un carré bleu » ;
        « order » : de deux objets, « A à gauche de B » l'emporte sur « B à gauche de A » (une chance sur deux) ;
        « emoji » : parmi les noms des émojis jamais vus, celui de l'image est le plus proche.
    """
    rng = np.random.default_rng(seed)
    images, captions = Scenes("test", size, caption=COMPLETE).batch(rng, n)
    emojis = Emojis("test", size)
    looks = [(kind, colour) for kind in scenes.SHAPES for colour in scenes.COLOURS]
    prompts = [scenes.describe(scenes.Object(*look)) for look in looks]
    alone = [scenes.sample_scene(rng, "test", count=1) for _ in range(n)]
    situated = [_situated(rng) for _ in range(n)]

    def examine(clip: CLIP) -> dict[str, np.ndarray]:
        def nearest(images: Sequence[np.ndarray], texts: Sequence[str]) -> list[int]:
            scores = embed_images(clip, np.stack(images)) @ embed_texts(clip, tokenizer, texts).T
            return scores.argmax(1).tolist()

        found = [captions[i] == text for i, text in zip(nearest(images, captions), captions, strict=True)]
        guesses = [looks[i] for i in nearest([scenes.render(s, size) for s in alone], prompts)]
        truths = [(s.objects[0].kind, s.objects[0].colour) for s in alone]
        right = np.array(guesses) == np.array(truths)
        views = embed_images(clip, np.stack([scenes.render(scene, size) for scene, _, _ in situated]))
        true, false = (embed_texts(clip, tokenizer, [row[i] for row in situated]) for i in (1, 2))
        return {
            "recall": np.array(found),
            "shape": right[:, 0],
            "colour": right[:, 1],
            "order": ((views * (true - false)).sum(1) > 0).numpy(),
            "emoji": np.array(nearest(emojis.images, emojis.names)) == np.arange(len(emojis.names)),
        }

    return examine


def measure_clip(
    tokenizer: Tokenizer, size: int = 64, n: int = 256, seed: int = 1
) -> Callable[[CLIP], Metrics]:
    """Parts de réponses justes à `examine_clip`, de 0 à 1."""
    examine = examine_clip(tokenizer, size, n, seed)
    return lambda clip: {name: float(answers.mean()) for name, answers in examine(clip).items()}


def measure_recall(
    source: Source, tokenizer: Tokenizer, n: int = 256, seed: int = 1
) -> Callable[[CLIP], Metrics]:
    """Mesure un CLIP sur n couples fixes : « recall », part des images dont la légende est la plus proche."""
    images, captions = source.batch(np.random.default_rng(seed), n)

    def measure(clip: CLIP) -> Metrics:
        nearest = (embed_images(clip, images) @ embed_texts(clip, tokenizer, captions).T).argmax(1).tolist()
        found = [captions[i] == text for i, text in zip(nearest, captions, strict=True)]
        return {"recall": float(np.mean(found))}

    return measure


def _situated(rng: np.random.Generator) -> tuple[scenes.Scene, str, str]:
    """Scène de deux objets différents, l'un nettement d'un côté de l'autre ; sa légende, et celle de l'échange."""
    while True:
        scene = scenes.sample_scene(rng, "test", count=2)
        a, b = scene.objects
        place = scenes.relation(a, b)
        if place and (a.kind, a.colour) != (b.kind, b.colour):
            return scene, scenes.situate(a, place, b), scenes.situate(b, place, a)


# --- traduction -----------------------------------------------------------------------------------


def encode_pairs(
    pairs: Sequence[Pair], source_vocabulary: Vocabulary, target_vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """Paires → jetons (B, S) et (B, T), complétés par des 0.

    La source est « mots, <fin> » ; la cible, « <debut>, mots, <fin> », que le modèle décale d'un cran.

    Raises:
        MinidalleError: aucune paire.
    """
    stop, start = target_vocabulary.stop_id, target_vocabulary.start_id
    sources = [[*source_vocabulary.encode(pair.source), source_vocabulary.stop_id] for pair in pairs]
    targets = [[start, *target_vocabulary.encode(pair.target), stop] for pair in pairs]
    return _fitted(sources), _fitted(targets)


def pair_batches(
    pairs: Sequence[Pair], source_vocabulary: Vocabulary, target_vocabulary: Vocabulary
) -> Batches:
    """Lots (source, cible) de paires tirées au hasard, pour un traducteur ; voir `encode_pairs`."""
    source, target = encode_pairs(pairs, source_vocabulary, target_vocabulary)
    sources, targets = ((part != 0).sum(1).numpy() for part in (source, target))
    lengths = sources * target.shape[1] + targets

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        # Des longueurs voisines font peu de remplissage ; chaque paire reste aussi probable.
        order = rng.permutation(len(pairs))
        order = order[lengths[order].argsort(kind="stable")]
        picks = torch.from_numpy(order[(rng.integers(len(pairs)) + np.arange(n)) % len(pairs)])
        return tuple(part[:, : int((part != 0).sum(1).max())] for part in (source[picks], target[picks]))

    return batch


def translate(
    model: nn.Module,
    texts: Sequence[str],
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    *,
    length: int = 40,
    write: Callable[..., Tensor] = greedy,
) -> list[str]:
    """Traductions de textes, d'au plus `length` mots ; `write` est `sampling.greedy` ou l'imite.

    Raises:
        MinidalleError: aucun texte.
    """
    sources = [[*source_vocabulary.encode(text), source_vocabulary.stop_id] for text in texts]
    written = write(model, _fitted(sources), length=length, stop=target_vocabulary.stop_id)
    return [target_vocabulary.decode(row) for row in written.tolist()]


def measure_translation(
    pairs: Sequence[Pair], source_vocabulary: Vocabulary, target_vocabulary: Vocabulary
) -> Callable[[nn.Module], Metrics]:
    """Mesure un traducteur sur des paires fixes, écrites au plus probable.

    « test_loss » est en nats par jeton, « exact » et « chrf » sont de 0 à 100 (voir
    `minidalle.evaluation.translation`).
    """
    from minidalle.evaluation import translation  # scipy.stats et sacrebleu ne servent qu'ici

    source, target = encode_pairs(pairs, source_vocabulary, target_vocabulary)
    texts, references = [pair.source for pair in pairs], [pair.target for pair in pairs]
    groups = [pair.family for pair in pairs]

    @torch.no_grad()
    def measure(model: nn.Module) -> Metrics:
        written = translate(model, texts, source_vocabulary, target_vocabulary)
        scores = translation.evaluate(written, references, groups)
        loss = float(model.loss(source, target)["loss"])
        return {"test_loss": loss, "exact": scores["exact"].value, "chrf": scores["chrf"].value}

    return measure


def _fitted(rows: list[list[int]]) -> Tensor:
    if not rows:
        raise MinidalleError("Aucun texte : en donner au moins un.")
    return pad(rows, max(map(len, rows)))
