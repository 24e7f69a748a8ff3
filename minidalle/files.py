"""Écrire un fichier en entier ou pas du tout."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from minidalle.errors import MinidalleError, reason


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO]:
    """Ouvre un fichier temporaire voisin de `path`, renommé en `path` si le bloc réussit.

    Un lecteur voit l'ancien contenu ou le nouveau, jamais un mélange ; si le bloc lève une
    exception, `path` garde son ancien contenu et rien ne traîne à côté.

    Args:
        path: destination ; les dossiers manquants sont créés.
        mode: "wb" (octets) ou "w" (texte UTF-8).

    Raises:
        MinidalleError: dossier interdit en écriture, chemin impossible, disque plein.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise MinidalleError(
            f"Impossible d'écrire « {path} » ({reason(error)}) : choisir un autre dossier."
        ) from error
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp crée en 0600 : rendre au fichier les droits qu'un simple open() lui aurait donnés.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except OSError as error:
        _remove(temporary)
        raise MinidalleError(
            f"L'écriture de « {path} » a échoué ({reason(error)}) : libérer de la place ou changer de dossier."
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
