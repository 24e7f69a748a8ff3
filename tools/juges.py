"""Des images à juger de ses yeux : `python -m tools.juges DOSSIER`, puis, une fois notées, `… DOSSIER NOTES.csv`.

La première commande écrit dans DOSSIER douze images et quatre légendes pour chacune, que « minidalle rate DOSSIER »
fait noter, et, dans DOSSIER/classement, une planche de dessins à ranger, dont `RANKS` garde le rang. La seconde met
images, notes et rangs dans `minidalle/results/juges.json`, que relit le chapitre « CLIP comme juge ». Les dessins y
sont en jetons : tirés sur une autre machine, ils pourraient différer de ceux que l'on a vus.

Ceux du fichier livré furent dessinés et notés par une version antérieure ; quand le dictionnaire d'images a changé,
ils ont été décodés par l'ancien et réencodés par le nouveau (30,6 dB). Relancer cette commande en dessine d'autres,
dont les rangs de `RANKS` ne diraient rien.
"""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from minidalle import plots
from minidalle.checkpoints import find_weights
from minidalle.data import scenes
from minidalle.evaluation.ratings import read_ratings
from minidalle.files import atomic_write
from minidalle.generation import Drawing, TextToImage
from tools.command import launch

RESULT = Path(__file__).parents[1] / "minidalle" / "results" / "juges.json"
SEED, EACH = 31, 6  # graine des scènes et des dessins ; images de chaque sorte
# Rangs de huit dessins d'une description, du meilleur (1) au pire (8), donnés avant tout calcul de CLIP.
RANKS = {
    "un mouton à gauche d'un carré bleu": [3, 8, 5, 7, 4, 2, 6, 1],
    "une grande étoile jaune rayée au-dessus de deux cercles rouges": [8, 7, 6, 2, 5, 1, 4, 3],
}


def main(folder: Path, notes: Path | None = None) -> int:
    """Écrit les images à juger, ou range ce que l'on en a jugé."""
    painter = TextToImage.load()
    subjects = _subjects(painter)
    drawings = {text: painter.draw(text, 8, SEED) for text in RANKS}
    if notes is None:
        for subject, image in subjects:
            path = folder / subject["image"]
            with atomic_write(path) as file:
                Image.fromarray(image).save(file, "PNG")
            with atomic_write(path.with_suffix(".txt"), "w") as file:
                file.write("\n".join(subject["legendes"].values()) + "\n")
        rows = np.concatenate([drawing.images for drawing in drawings.values()])
        figure = plots.show_images(rows, [*map(str, range(1, 9))] * len(drawings), side=1.6)
        with atomic_write(folder / "classement" / "planche.png") as file:
            figure.savefig(file, facecolor="white")
        return 0
    read_ratings(notes)  # lève, si ce n'est pas un fichier de notes
    report = {
        "graine": SEED,
        "oeil": hashlib.sha256(find_weights("vqvae").read_bytes()).hexdigest(),
        "images": [subject for subject, _ in subjects],
        "notes": notes.read_text(encoding="utf-8").splitlines(),
        "classement": [
            {"description": text, "rangs": RANKS[text], "jetons": _tokens(drawing)}
            for text, drawing in drawings.items()
        ],
    }
    with atomic_write(RESULT, "w") as file:
        json.dump(report, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return 0


def _subjects(painter: TextToImage) -> list[tuple[dict, np.ndarray]]:
    """Images à noter et leurs légendes, mêlées."""
    rng, made = np.random.default_rng(SEED), []
    for i in range(2 * EACH):
        scene, place = _situated(rng)
        a, b = scene.objects
        colour = sorted(set(scenes.COLOURS) - {a.colour, b.colour})[rng.integers(6)]
        captions = {
            "vraie": scenes.situate(a, place, b),
            "retournée": scenes.situate(a, scenes.INVERSE[place], b),
            "couleur": scenes.situate(scenes.Object(a.kind, colour), place, b),
        }
        if i < EACH:
            made.append(({"scene": asdict(scene), "legendes": captions}, scenes.render(scene, 64)))
        else:
            drawing = painter.draw(captions["vraie"], seed=SEED + i)
            made.append(({"jetons": _tokens(drawing)[0], "legendes": captions}, drawing.images[0]))
    for (subject, _), (other, _) in zip(made, [*made[1:], made[0]], strict=True):
        subject["legendes"]["ailleurs"] = other["legendes"]["vraie"]
    mixed = [made[i] for i in rng.permutation(len(made))]
    return [({"image": f"image-{i:02}.png"} | subject, image) for i, (subject, image) in enumerate(mixed, 1)]


def _situated(rng: np.random.Generator) -> tuple[scenes.Scene, str]:
    """Scène de deux objets réservée au test, dont le premier est une forme, et leur relation."""
    while True:
        scene = scenes.sample_scene(rng, "test", count=2)
        a, b = scene.objects
        place = scenes.relation(a, b)
        if place and a.colour and (a.kind, a.colour) != (b.kind, b.colour):
            return scene, place


def _tokens(drawing: Drawing) -> list[str]:
    """Jetons de chaque dessin, ligne après ligne."""
    return [" ".join(map(str, grid.flatten().tolist())) for grid in drawing.tokens]


if __name__ == "__main__":
    launch(main, *map(Path, sys.argv[1:3]))
