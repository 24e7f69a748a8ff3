"""Les fichiers d'une étude : son dossier tenu par un seul processus, sa table, ses bandes de dessins."""

import contextlib
import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image

from minidalle.errors import MinidalleError, reason
from minidalle.files import atomic_write

MANIFEST, TABLE, PACKETS, OPPOSITES = "study.json", "table.csv", "paquets", "contraires"
RESULTS = Path(__file__).parent / "results"  # les études livrées
REDONE = ("seed", "prompt", "contrast", "image")  # ce que `plan` refait : un résumé s'en passe


class Row(NamedTuple):
    """Une ligne de la table : un dessin, et ce qu'il vaut.

    Un verdict que personne n'a rendu vaut None, et s'écrit vide : ni vrai, ni faux.

    Attributes:
        category, held_out, index, attempt, seed, prompt: ce qui était demandé ; voir `Item`.
        contrast: la demande contraire.
        place: relation demandée, ou vide.
        asked: nombre d'objets demandés du premier nom.
        present, objects, right, alone, swapped: voir `Verdict`.
        place_read, count, left: ce qui est lu ; voir `Verdict`.
        contrast_right, other_right: le dessin accomplit la demande contraire, une autre demande : le hasard mesuré.
        image: où est le dessin : « paquets/00003.png#12 » est le douzième (à partir de 0) de cette bande.
    """

    category: str
    held_out: bool
    index: int
    attempt: int
    seed: int
    prompt: str
    contrast: str
    place: str
    asked: int
    present: bool | None
    objects: bool | None
    right: bool | None
    alone: bool | None
    swapped: bool | None
    place_read: str
    count: int | None
    left: float | None
    contrast_right: bool | None
    other_right: bool | None
    image: str


# --- le dossier -----------------------------------------------------------------------------------


@contextlib.contextmanager
def folder(out: Path, about: Mapping[str, object], resume: bool) -> Iterator[None]:
    """Tient seul le dossier d'une étude, et y écrit `about` ou vérifie que c'est bien elle."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise MinidalleError(
            f"Impossible d'écrire dans « {out} » ({reason(error)}) : changer --out."
        ) from error
    try:
        # Le système lève ce verrou si le processus meurt.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _claim(out, json.loads(json.dumps(about)), resume)
        yield
    except BlockingIOError as error:
        raise MinidalleError(
            f"« {out} » sert déjà à une autre étude : l'attendre, ou changer --out."
        ) from error
    finally:
        os.close(lock)


def _claim(out: Path, about: dict, resume: bool) -> None:
    path = out / MANIFEST
    if not path.exists():
        if strangers := [entry.name for entry in out.iterdir() if not entry.name.startswith(f".{MANIFEST}.")]:
            raise MinidalleError(f"« {out} » contient déjà « {min(strangers)} » : choisir un dossier neuf.")
        with atomic_write(path, "w") as file:
            json.dump(about, file, ensure_ascii=False, indent=1)
            file.write("\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in {**before, **about} if before.get(key) != about.get(key)]
    except (ValueError, TypeError, AttributeError) as error:
        raise MinidalleError(f"« {path} » est abîmé : choisir un dossier neuf.") from error
    if changed:
        told = " ; ".join(f"{key} : {before.get(key)} alors, {about.get(key)} maintenant" for key in changed)
        raise MinidalleError(
            f"« {out} » contient une autre étude ({told}) : changer --out, ou redonner ses réglages."
        )
    if not resume:
        raise MinidalleError(
            f"« {out} » contient déjà cette étude : la continuer avec --resume, ou changer --out."
        )
    for path in out.rglob(".*"):
        path.unlink()  # ce qu'une coupure nette a laissé à moitié écrit


# --- la table et les dessins ----------------------------------------------------------------------


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Écrit la table en CSV, atomiquement ; 0 et 1 pour faux et vrai."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows([int(value) if isinstance(value, bool) else value for value in row] for row in rows)
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


def read_table(path: Path) -> list[Row]:
    """Relit une table.

    Raises:
        MinidalleError: fichier absent, illisible, ou qui n'est pas une table d'étude.
    """
    types = [_kind(kind) for kind in Row.__annotations__.values()]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        if tuple(header) != Row._fields:
            raise ValueError
        return [Row(*(kind(text) for kind, text in zip(types, line, strict=True))) for line in lines]
    except OSError as error:
        raise MinidalleError(f"« {path} » est illisible ({reason(error)}) : vérifier le chemin.") from error
    except ValueError as error:
        raise MinidalleError(f"« {path} » n'est pas une table d'étude entière : la refaire.") from error


def write_summary(path: Path, rows: Sequence[Row], about: Mapping[str, object]) -> None:
    """Écrit ce qu'une étude a mesuré, sans ce que `plan` sait refaire ; la première ligne dit ce qu'elle était.

    Args:
        about: manifeste de l'étude (`study.json`), avec la commande qui l'a faite et l'empreinte des poids.
    """
    text = io.StringIO()
    text.write(f"# {json.dumps(about, ensure_ascii=False)}\n")
    kept = [name for name in Row._fields if name not in REDONE]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kept)
    for row in rows:
        values = (getattr(row, name) for name in kept)
        writer.writerow(int(value) if isinstance(value, bool) else value for value in values)
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


def read_summary(name: str, folder: Path = RESULTS) -> tuple[dict, list[Row]]:
    """Une étude livrée avec le paquet : ce qu'elle était, et ses lignes, où seul manque ce que `plan` refait.

    Args:
        name: celui d'un fichier de `folder`, sans son extension.

    Raises:
        MinidalleError: aucune étude de ce nom, ou fichier abîmé.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.csv")))
        raise MinidalleError(f"Aucune étude livrée ne s'appelle « {name} » : choisir parmi {known}.")
    try:
        first, header, *lines = path.read_text(encoding="utf-8").splitlines()
        return json.loads(first.removeprefix("# ")), _summary_rows(header.split(","), lines)
    except (ValueError, KeyError) as error:
        raise MinidalleError(f"« {path} » est abîmé : réinstaller minidalle.") from error


def _summary_rows(kept: Sequence[str], lines: Sequence[str]) -> list[Row]:
    blank = Row("", False, 0, 0, 0, "", "", "", 0, *[False] * 5, "", 0, 0.0, False, False, "")
    kinds = [_kind(Row.__annotations__[name]) for name in kept]
    return [
        blank._replace(**{name: kind(text) for name, kind, text in zip(kept, kinds, line, strict=True)})
        for line in csv.reader(lines)
    ]


def _kind(kind: type):
    """De quoi relire une valeur de ce type ; vide ne vaut None que si le type l'admet."""
    if inner := get_args(kind):
        value = _kind(inner[0])
        return lambda text: value(text) if text else None
    return (lambda text: bool(int(text))) if kind is bool else kind


def write_strip(path: Path, images: Sequence[np.ndarray]) -> None:
    """Images (S, S, 3) en une bande, l'une sous l'autre."""
    with atomic_write(path) as file:
        Image.fromarray(np.concatenate(images)).save(file, "PNG")


def read_strip(path: Path) -> np.ndarray:
    """Les images d'une bande, uint8 (N, S, S, 3)."""
    with Image.open(path, formats=["PNG"]) as strip:
        pixels = np.asarray(strip.convert("RGB"))
    return pixels.reshape(-1, pixels.shape[1], *pixels.shape[1:])
