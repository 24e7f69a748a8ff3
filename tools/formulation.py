"""Ce que change la façon de demander : `python -m tools.formulation` (une dizaine de minutes d'un cœur).

Les mesures de `scenes` et d'`emojis`, rangées dans `minidalle/results/formulation.json` dès que chacune est finie ;
interrompu, l'outil reprend à la première qui manque :

- « variantes » : les mêmes demandes, dites autrement (`minidalle.evaluation.formulation`), et avec d'autres graines ;
- « tirage » : la phrase simple, à d'autres températures, top-k, top-p et guidages ;
- « negation » : un objet ou une couleur nommés pour être exclus ;
- « inconnus » : une couleur, un objet que rien n'a appris à dire ;
- « familles » : un petit DALL·E apprend trois formes de neuf couleurs, sauf trois émojis qu'on lui demande ensuite ;
- « imitation » : les places dites de quatre façons, par `scenes` avant la récompense, si ses poids sont dans `runs/` ;
- « emojis » : ce que dessine `emojis` d'un nom appris ou réservé, et l'image apprise la plus proche.

Verdicts : un caractère par demande, dans l'ordre de `formulation.mixed` ; « 1 » juste, « 0 » faux, « . » sans objet.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minidalle import recipes
from minidalle.checkpoints import find_weights, load_model
from minidalle.data import openmoji, scenes
from minidalle.data.scenes import COLOURS, HELD_OUT_COLOURS, SHAPES
from minidalle.data.sources import Emojis
from minidalle.evaluation.formulation import FROZEN, VARIANTS, mixed, rewrite
from minidalle.evaluation.oracle import Reading, read
from minidalle.evaluation.perceptual import Features
from minidalle.evaluation.requests import Request, judge, requests
from minidalle.files import atomic_write
from minidalle.generation import TextToImage, pad, to_tensor
from minidalle.text import Tokenizer
from minidalle.training import TrainingConfig, train
from tools.command import launch

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "formulation.json"
BEFORE = Path("runs") / "scenes-imitation" / "scenes-imitation.safetensors"
SEED, REDRAWN = 0, 10**6
ADVISED = {"guidance": 1.5, "top_p": 0.95}  # choisis sur les combinaisons vues (`tools/dessiner.py`)
WHOLE = (
    "simple",
    *FROZEN,
    "autre graine",
)  # sur toutes les demandes ; le reste, exploratoire, sur une de deux
SWEEP = {
    "temperature": (0.5, 1.5),
    "top_k": (1,),
    "top_p": (1.0,),
    "guidance": (1.0, 3.0),
}
DENIALS = {
    "simple": "{}",
    "sans objet": "{} sans {noun}",
    "pas d'objet": "{}, pas {of_noun}",
    "avec objet": "{} avec {article} {noun}",
    "sans couleur": "{} sans {colour}",
}
NEW_COLOURS = ("fuchsia", "turquoise", "marron", "beige")
# Appris, puis réservés (d'office parmi les mesurés), puis de pure invention : chaque mot en est connu.
SHOWN = ("cœur vert", "carré bleu", "livre vert", "disque violet")
INVENTED = ("livre rouge", "disque rose", "cœur carré", "mouton vert")
FAMILIES = ("cœur", "carré", "disque")
HUES = ("rouge", "orange", "jaune", "vert", "bleu", "violet", "marron", "noir", "blanc")
TRIES = 4
NEW_KINDS = ("une girafe", "un hexagone", "un vélo", "un nuage")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=100, help="demandes par catégorie")
    options = parser.parse_args()
    about = {
        "commande": f"python -m tools.formulation -n {options.n}",
        "graine": SEED,
        "reglages": ADVISED,
        "sha256": {name: _sha(name) for name in ("scenes", "emojis")},
    }
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if {key: known.get(key) for key in about} != about:
        known = about  # d'autres poids, un autre nombre : tout est à refaire
    painter = TextToImage.load("scenes")
    asked = mixed(np.random.default_rng(SEED), options.n)
    for part, tasks in (
        ("variantes", _variants(painter, asked)),
        ("tirage", _settings(painter, asked)),
        ("negation", _denials(painter, options.n)),
        ("inconnus", _strangers(painter, options.n // 3)),
        ("emojis", {"dessins": _emojis}),
        ("familles", {str(fold): lambda fold=fold: _families(fold) for fold in range(3)}),
        ("imitation", {"places": lambda: _places(asked)} if BEFORE.exists() else {}),
    ):
        done = known.setdefault(part, {})
        for name, task in tqdm(tasks.items(), desc=part):
            if name not in done:
                done[name] = task()
                with atomic_write(RESULT, "w") as file:
                    json.dump(known, file, ensure_ascii=False, indent=1)
                    file.write("\n")
    return 0


def look(painter: TextToImage, prompts: list[str], seeds: Iterable[int], **setting) -> list[Reading]:
    """Ce que lit l'oracle d'un dessin de chaque demande."""
    drawings = painter.draw_many(prompts, list(seeds), **ADVISED | setting)
    return read([drawing.images[0] for drawing in drawings])


def marks(values: Iterable[bool]) -> str:
    return "".join("01"[bool(value)] for value in values)


def _variants(painter: TextToImage, asked: list[Request]) -> dict[str, Callable[[], dict]]:
    def measure(name: str) -> dict:
        told = [rewrite(r, name) for r in asked] if name in VARIANTS else asked
        first = REDRAWN if name == "autre graine" else 0
        step = 1 if name in WHOLE else 2
        rows = [i for i, r in enumerate(told) if r and i % step == 0]
        prompts = [told[i].prompt for i in rows]
        readings = look(painter, prompts, [first + i for i in rows])
        verdicts = ["."] * len(asked)
        for i, reading in zip(rows, readings, strict=True):
            verdicts[i] = marks([judge(reading, asked[i]).right])
        read_as = [painter.read([prompt]) for prompt in prompts]
        same = sum(
            torch.equal(a[0], painter.read([asked[i].prompt])[0]) for a, i in zip(read_as, rows, strict=True)
        )
        return {
            "justes": "".join(verdicts),
            "inconnus": sum(len(unknown) for _, unknown, _ in read_as),
            "coupes": sum(len(dropped) for *_, dropped in read_as),
            "memes_jetons": same,
        }

    return {name: lambda name=name: measure(name) for name in dict.fromkeys([*WHOLE, *VARIANTS])}


def _places(asked: list[Request]) -> dict:
    """Demandes qui situent : justes, objets là, et relation inverse de la demande."""
    painter, rows = TextToImage.load(BEFORE), [i for i, r in enumerate(asked) if r.place]
    counts = {"sha256": _sha(BEFORE), "n": len(rows)}
    for name in ("simple", "est", "ordre", "paraphrase"):
        told = [rewrite(asked[i], name) if name in VARIANTS else asked[i] for i in rows]
        readings = look(painter, [r.prompt for r in told], rows)
        verdicts = [judge(*pair) for pair in zip(readings, told, strict=True)]
        turned = (
            v.objects and v.place == scenes.INVERSE[r.place] for v, r in zip(verdicts, told, strict=True)
        )
        counts[name] = {
            "justes": sum(v.right for v in verdicts),
            "objets": sum(v.objects for v in verdicts),
            "inverse": sum(turned),
        }
    return counts


def _settings(painter: TextToImage, asked: list[Request]) -> dict[str, Callable[[], dict]]:
    half = asked[::2]

    def measure(key: str, value: float) -> dict:
        readings = look(painter, [r.prompt for r in half], range(0, len(asked), 2), **{key: value})
        return {
            "justes": ".".join(marks([judge(*pair).right]) for pair in zip(readings, half, strict=True)) + "."
        }

    return {
        f"{key} {value:g}": lambda key=key, value=value: measure(key, value)
        for key, values in SWEEP.items()
        for value in values
    }


def excluded(asked: list[Request], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Pour chaque demande d'un objet coloré : une autre forme, une autre couleur."""
    pairs = []
    for r in asked:
        (wish,) = r.wishes
        kinds = [kind for kind in SHAPES if kind != wish.kind]
        colours = [c for c in COLOURS if c not in (wish.colour, HELD_OUT_COLOURS[wish.kind])]
        pairs.append((kinds[rng.integers(len(kinds))], colours[rng.integers(len(colours))]))
    return pairs


def _denials(painter: TextToImage, n: int) -> dict[str, Callable[[], dict]]:
    rng = np.random.default_rng(SEED + 1)
    asked = requests(rng, "couleur", n, held_out=False, size=0.0, background=0.0)
    banned = excluded(asked, rng)

    def measure(sentence: str) -> dict:
        prompts = []
        for r, (kind, colour) in zip(asked, banned, strict=True):
            words = {
                "noun": kind,
                "of_noun": scenes.join_to("de", kind),
                "article": "une" if SHAPES[kind].gender == "f" else "un",
                "colour": colour,
            }
            prompts.append(sentence.format(r.prompt, **words))
        readings = look(painter, prompts, range(n))
        return {
            "exemple": prompts[0],
            "justes": marks(judge(*pair).right for pair in zip(readings, asked, strict=True)),
            "forme": marks(
                any(o.kind == k for o in x.objects) for x, (k, _) in zip(readings, banned, strict=True)
            ),
            "couleur": marks(
                any(o.colour == c for o in x.objects) for x, (_, c) in zip(readings, banned, strict=True)
            ),
        }

    return {name: lambda text=text: measure(text) for name, text in DENIALS.items()}


def _strangers(painter: TextToImage, n: int) -> dict[str, Callable[[], dict]]:
    def colour(word: str) -> dict:
        kinds = [[*SHAPES][i % len(SHAPES)] for i in range(n)]
        readings = look(
            painter, [f"{scenes.indefinite((k, None, None, None))} {word}" for k in kinds], range(n)
        )
        own = [[o for o in x.objects if o.kind == k] for x, k in zip(readings, kinds, strict=True)]
        seen = Counter(group[0].colour for group in own if group)
        return {"n": n, "forme": sum(map(bool, own)), "lu": dict(seen.most_common())}

    def kind(phrase: str) -> dict:
        readings = look(painter, [phrase] * n, range(n))
        seen = Counter(x.objects[0].kind for x in readings if x.objects)
        return {"n": n, "vide": sum(not x.objects for x in readings), "lu": dict(seen.most_common())}

    tasks = {"une forme sans couleur": lambda: colour("")}
    tasks |= {word: lambda word=word: colour(word) for word in NEW_COLOURS}
    return tasks | {phrase: lambda phrase=phrase: kind(phrase) for phrase in NEW_KINDS}


def _emojis() -> dict:
    """Distances perceptuelles, entre images passées par l'auto-encodeur, comme le sont les dessins."""
    painter = TextToImage.load("emojis")
    learned, hidden = Emojis("train"), Emojis("test")
    readable = [i for i, name in enumerate(hidden.names) if not painter.tokenizer.encode(name).unknown]
    some = np.random.default_rng(SEED).choice(len(learned.names), len(readable), replace=False)
    album = embed(recipes.reconstruct(painter.vqvae, learned.images))
    between = distances(album, album)
    np.fill_diagonal(between, np.inf)
    known = [*map(learned.names.index, SHOWN), *(i for i in some if learned.names[i] not in SHOWN)]
    names = [*(learned.names[i] for i in known), *(hidden.names[i] for i in readable)]
    truths = embed(
        recipes.reconstruct(painter.vqvae, np.concatenate([learned.images[known], hidden.images[readable]]))
    )
    drawings = painter.draw_many([*names, *INVENTED], [SEED] * (len(names) + len(INVENTED)))
    drawn = embed(np.concatenate([d.images for d in drawings]))
    apart = distances(drawn, album)
    truth = np.square(drawn[: len(names)] - truths).sum(1)
    rows = [
        {
            "nom": drawing.prompt,
            "sorte": "appris" if i < len(known) else "réservé" if i < len(names) else "inventé",
            "proche": learned.names[int(apart[i].argmin())],
            "distance": round(float(apart[i].min()), 4),
            "verite": round(float(truth[i]), 4) if i < len(names) else None,
        }
        for i, drawing in enumerate(drawings)
    ]
    spread = np.percentile(between.min(1), [5, 25, 50, 75, 95])
    return {"voisins": [round(float(x), 4) for x in spread], "lignes": rows}


def _families(fold: int) -> dict:
    """Trois émojis réservés : chaque couleur est apprise sur deux formes au moins, chaque forme en huit couleurs."""
    vqvae, _ = load_model(find_weights("vqvae"), "vqvae")
    names = [f"{family} {hue}" for family in FAMILIES for hue in HUES]
    images = np.stack([openmoji.on_background(openmoji.render(name, 64)) for name in names])
    codes, length = recipes.encode(vqvae, images), 4
    held = [len(HUES) * i + (3 + 3 * fold + i) % len(HUES) for i in range(len(FAMILIES))]
    kept = [i for i in range(len(names)) if i not in held]
    tokenizer = Tokenizer.train([names[i] for i in kept], 200)
    sizes = {"text_length": length, "text_weight": 0.125, "width": 96, "layers": 3}
    network = recipes.build_generator("dalle", sizes, tokenizer, vqvae, 64, seed=fold)
    texts = pad([tokenizer.encode(name, length).ids for name in names], length)

    def batches(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        picks = torch.tensor(kept)[torch.from_numpy(rng.integers(len(kept), size=n))]
        told = torch.from_numpy(rng.random(n) >= 0.08)
        return texts[picks] * told[:, None], codes[picks]

    training = TrainingConfig(
        steps=300, batch_size=24, learning_rate=2e-3, warmup=30, precision="bfloat16", seed=fold
    )
    train(network, batches, training, label=f"familles, tour {fold + 1}")
    drawings = TextToImage(tokenizer, network, vqvae).draw_many(names, [SEED] * len(names), TRIES)
    album = embed(recipes.decode(vqvae, codes))
    between = distances(album, album) + np.diag([np.inf] * len(names))
    rows = []
    for i, drawing in enumerate(drawings):
        apart = distances(embed(drawing.images), album)
        for j in range(TRIES):
            near = min(kept, key=lambda k: apart[j, k])
            row = {"nom": names[i], "appris": i in kept, "proche": names[near]}
            row |= {"distance": round(float(apart[j, near]), 4), "verite": round(float(apart[j, i]), 4)}
            if i in held:
                row["jetons"] = " ".join(map(str, drawing.tokens[j].flatten().tolist()))
            rows.append(row)
    return {"voisins": round(float(np.percentile(between.min(1), 25)), 4), "lignes": rows}


def embed(images: np.ndarray) -> np.ndarray:
    """uint8 (n, S, S, 3) → (n, D) : le carré d'une distance euclidienne y est la distance perceptuelle."""
    eye, parts = Features.load(), []
    with torch.no_grad():
        for part in to_tensor(images).split(64):
            stages = [torch.nn.functional.normalize(m, dim=1) / (m[0, 0].numel() ** 0.5) for m in eye(part)]
            parts.append(torch.cat([m.flatten(1) for m in stages], 1) / len(stages) ** 0.5)
    return torch.cat(parts).numpy()


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return squares.clip(0)


def _sha(name: str | Path) -> str:
    return hashlib.sha256(find_weights(name).read_bytes()).hexdigest()


if __name__ == "__main__":
    launch(main)
