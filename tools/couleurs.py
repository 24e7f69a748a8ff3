"""Range ce que le chapitre « Couleurs » relit : `python -m tools.couleurs` (deux minutes d'un cœur libre).

Les dessins sont ceux de l'étude (`python -m tools.etude scenes`, à faire d'abord), catégories « couleur » et
« paire » : ce qu'on y voit au lieu de ce qui était demandé, et la teinte exacte des formes. S'y ajoutent,
exploratoires, les paires doublement réservées (« une croix bleue et un losange rouge ») et leurs échangées, de mêmes
graines.
"""

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

from minidalle.checkpoints import find_weights
from minidalle.data.scenes import HELD_OUT_COLOURS
from minidalle.errors import MinidalleError
from minidalle.evaluation.colours import object_colour, outcome
from minidalle.evaluation.oracle import Reading, read
from minidalle.evaluation.phrases import Phrase, Wish
from minidalle.evaluation.requests import Request
from minidalle.evaluation.study import Item, plan
from minidalle.evaluation.study_files import MANIFEST, PACKETS, read_strip, read_table
from minidalle.files import atomic_write
from minidalle.generation import TextToImage
from tools.command import launch

ROOT = Path(__file__).parents[1]
STUDY, RESULT = ROOT / "runs" / "etude" / "scenes", ROOT / "minidalle" / "results" / "couleurs.json"
CATEGORIES, MODEL, SEEDS = ("couleur", "paire"), "scenes", 10


def drawn(items: list[Item]) -> list:
    """Les dessins de l'étude, dans l'ordre de `items`."""
    found = {}
    for path in sorted((STUDY / PACKETS).glob("*.csv")):
        rows = read_table(path)
        if any(row.category in CATEGORIES for row in rows):
            strip = read_strip(path.with_suffix(".png"))
            found |= {(row.prompt, row.seed): image for row, image in zip(rows, strip, strict=True)}
    try:
        return [found[item.request.prompt, item.seed] for item in items]
    except KeyError as error:
        raise MinidalleError("Étude inachevée : lancer d'abord « python -m tools.etude scenes ».") from error


def instead(reading: Reading, wish: Wish) -> str:
    """L'objet dessiné à la place : celui de la forme demandée, sinon de sa couleur, sinon le plus net."""
    ranked = sorted(reading.objects, key=lambda o: (o.kind != wish.kind, o.colour != wish.colour))
    return " ".join(filter(None, (ranked[0].kind, ranked[0].colour))) if ranked else "rien"


def singles(items: list[Item], images: list, readings: list[Reading]) -> dict:
    """Par demande « forme couleur » : ses issues, ce qui est dessiné à la place, la teinte des formes demandées."""
    found = defaultdict(lambda: {"issues": Counter(), "lus": Counter(), "teintes": []})
    for item, image, reading in zip(items, images, readings, strict=True):
        (wish,) = item.request.wishes
        entry, end = found[f"{wish.kind} {wish.colour}"], outcome(reading, item.request)
        entry["issues"][end] += 1
        entry["lus"][instead(reading, wish)] += 1
        if end == "juste":
            o = next(o for o in reading.objects if wish.met_by(o))
            entry["teintes"].append(object_colour(image, o).tolist())
    return dict(sorted(found.items()))


def pairs(items: list[Item], readings: list[Reading]) -> dict:
    """Issues des paires, par nombre de leurs couples forme–couleur qui sont réservés."""
    found = defaultdict(Counter)
    for item, reading in zip(items, readings, strict=True):
        reserved = sum(HELD_OUT_COLOURS[wish.kind] == wish.colour for wish in item.request.wishes)
        found[reserved][outcome(reading, item.request)] += 1
    return dict(sorted(found.items()))


def doubles(painter: TextToImage, settings: dict) -> list[dict]:
    """Deux couples réservés à la fois, et la même phrase, couleurs échangées, dont les deux couples sont permis."""
    found = []
    for a, b in itertools.permutations(HELD_OUT_COLOURS, 2):
        entry = {}
        for name, hues in (("reservee", (a, b)), ("permise", (b, a))):
            wishes = tuple(Wish(kind, HELD_OUT_COLOURS[hue]) for kind, hue in zip((a, b), hues, strict=True))
            asked = Request(Phrase(wishes).text, wishes, None, "paire", name == "reservee")
            images = [
                d.images[0] for d in painter.draw_many([asked.prompt] * SEEDS, range(SEEDS), **settings)
            ]
            entry[name] = asked.prompt, Counter(outcome(x, asked) for x in read(images))
        found.append(entry)
        print(*entry.values(), flush=True)
    return found


def main(_: list[str]) -> int:
    """Relit les dessins de l'étude, dessine les paires doublement réservées, et range le tout."""
    about = json.loads((STUDY / MANIFEST).read_text(encoding="utf-8"))
    painter = TextToImage.load(MODEL)
    settings = {"guidance": painter.guidance, "top_p": 0.95}
    items = plan(1000, categories=CATEGORIES)
    images = drawn(items)
    readings = read(images)
    report = {
        "commande": "python -m tools.couleurs",
        "etude": about,
        "sha256": hashlib.sha256(find_weights(MODEL).read_bytes()).hexdigest(),
        "reglages": settings,
        "graines": SEEDS,
        "couleur": {},
        "paire": {},
    }
    for name, held_out in (("reservees", True), ("vues", False)):
        for category, gather in (
            ("couleur", singles),
            ("paire", lambda items, _, readings: pairs(items, readings)),
        ):
            rows = [
                i
                for i, item in enumerate(items)
                if (item.request.category, item.request.held_out) == (category, held_out)
            ]
            report[category][name] = gather(*([x[i] for i in rows] for x in (items, images, readings)))
    report["doubles"] = doubles(painter, settings)
    with atomic_write(RESULT, "w") as file:
        json.dump(report, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    return 0


if __name__ == "__main__":
    launch(main, [])
