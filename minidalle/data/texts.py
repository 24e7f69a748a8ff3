"""Du texte, lu caractère par caractère : la prose de ce livre ou un fichier du lecteur.

Un modèle de langue apprend sur un morceau, se règle sur un autre et se juge sur un troisième ; `NGram` est
le modèle sans réseau auquel on le compare.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import minidalle
from minidalle.errors import MinidalleError, reason

# Pages dont la prose sert de corpus. La liste est fermée : un texte qui change à chaque chapitre ajouté
# changerait aussi tous les nombres mesurés sur lui.
CORPUS = ("index.md", "demarrage.md", "comprimer/*.md", "annexes/elbo.md")
UNKNOWN = "\ufffd"

# --- lire -----------------------------------------------------------------------------------------


def read_text(path: Path | str) -> str:
    """Contenu d'un fichier texte en UTF-8, fins de ligne ramenées à « \\n ».

    Raises:
        MinidalleError: fichier absent, illisible, vide, ou d'un autre encodage.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MinidalleError(
            f"Impossible de lire « {path} » ({reason(error)}) : donner un fichier texte."
        ) from error
    except UnicodeDecodeError as error:
        raise MinidalleError(
            f"« {path} » n'est pas en UTF-8 (octet {error.start}) : le convertir, par exemple "
            "par « iconv -f latin1 -t utf-8 »."
        ) from error
    if not text.strip():
        raise MinidalleError(f"« {path} » est vide : donner un fichier qui contient du texte.")
    return text


def book_text(chapters: Path | str | None = None) -> str:
    """La prose des chapitres de `CORPUS` : un paragraphe par ligne, sans code, équation ni directive.

    Args:
        chapters: dossier des chapitres ; celui qui est à côté du paquet s'il n'est pas donné.

    Raises:
        MinidalleError: chapitres introuvables.
    """
    folder = Path(chapters or Path(minidalle.__file__).parents[1] / "chapters")
    pages = [path for pattern in CORPUS for path in sorted(folder.glob(pattern))]
    if not pages:
        raise MinidalleError(
            f"Aucun chapitre dans « {folder} » : cloner le projet entier, ou lire un autre texte par read_text."
        )
    return "".join(prose(read_text(page)) for page in pages)


def prose(markdown: str) -> str:
    """Ce qu'une page MyST donne à lire, un paragraphe par ligne.

    Les formules `$…$` et le `code` en ligne restent ; un nombre collé par une cellule devient « … ».
    """
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.S)  # l'en-tête
    text = re.sub(r"^(`{3,}).*?\n\1[ ]*$", "", text, flags=re.M | re.S)  # cellules, exercices (leurs bornes)
    text = re.sub(r"^\$\$.*?\$\$.*?$", "", text, flags=re.M | re.S)  # équations
    text = re.sub(r"^:{3,}(?:\{[\w-]+\})?|^:[\w-]+:.*|^\(.*\)=$|^[|<%].*|^#+ |^> ", "", text, flags=re.M)
    text = re.sub(r"\s*\{cite\}`[^`]*`", "", text)
    text = re.sub(r"\{([\w:-]+)\}`([^`]*)`", _role, text)
    text = text.replace("*", "").replace("’", "'")
    paragraphs = re.split(r"\n\s*\n|\n(?=- |\d+\. )", text)
    lines = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return "".join(f"{line}\n" for line in lines if line)


def _role(found: re.Match) -> str:
    kind, content = found.groups()
    term = content.partition(" <")[0]  # le mot affiché, sans l'entrée du glossaire
    shown = {"doc": content, "numref": "figure", "eq": "(…)", "sup": content, "term": term}
    return shown.get(kind, "…")


def split(text: str, block: int = 2000) -> tuple[str, str, str]:
    """Entraînement, validation et test : 8, 1 et 1 dixièmes du texte.

    Le texte est coupé en blocs de `block` caractères environ, à la fin d'une ligne ; sur dix blocs de
    suite, un va à la validation et un au test. Chaque sujet du texte est donc dans les trois parts.
    """
    parts, position = ([], [], []), 0
    for line in text.splitlines(keepends=True):
        parts[{4: 1, 9: 2}.get(position // block % 10, 0)].append(line)
        position += len(line)
    train, validation, test = ("".join(part) for part in parts)
    if not test:
        raise MinidalleError(f"Texte de {len(text)} caractères, trop court pour être partagé en trois.")
    return train, validation, test


# --- des caractères aux jetons --------------------------------------------------------------------


class Characters:
    """Les caractères d'un texte, numérotés à partir de 1 ; 0 tient lieu de tous les autres.

    Args:
        text: texte dont on prend l'alphabet ; `symbols` redonne le même.
    """

    def __init__(self, text: str) -> None:
        self.symbols = "".join(sorted(set(text) - {UNKNOWN}))
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols, 1)}
        if not self.symbols:
            raise MinidalleError("Un alphabet veut au moins un caractère : le texte est vide.")

    def __len__(self) -> int:
        return len(self.symbols) + 1

    def encode(self, text: str) -> Tensor:
        """Texte de n caractères → (n,), int64 ; un caractère hors de l'alphabet devient 0."""
        return torch.tensor([self._ids.get(symbol, 0) for symbol in text], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """(n,) → texte ; 0 s'écrit « � ».

        Raises:
            MinidalleError: numéro hors de l'alphabet.
        """
        ids = tokens.tolist()
        if ids and not 0 <= min(ids) <= max(ids) < len(self):
            raise MinidalleError(f"Jeton hors de l'alphabet : donner des numéros de 0 à {len(self) - 1}.")
        return "".join((UNKNOWN + self.symbols)[i] for i in ids)


def crops(tokens: Tensor, length: int) -> Callable[[np.random.Generator, int], tuple[Tensor]]:
    """Lots pour `minidalle.training.train` : extraits de `length` + 1 jetons pris au hasard.

    Args:
        tokens: (n,), int64.
        length: nombre de prédictions par extrait.

    Raises:
        MinidalleError: moins de `length` + 1 jetons.
    """
    if not 1 <= length < len(tokens):
        raise MinidalleError(f"{len(tokens)} jetons ne donnent pas d'extraits de {length} + 1 jetons.")
    windows = tokens.unfold(0, length + 1, 1)  # une vue, sans copie

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor]:
        return (windows[torch.from_numpy(rng.integers(len(windows), size=n))],)

    return batch


# --- prédire en comptant --------------------------------------------------------------------------


class NGram:
    """Prédit un caractère d'après les `order` précédents, en comptant (Witten et Bell, 1991).

    À l'ordre k, après un contexte vu n fois et suivi de u caractères différents, la probabilité est

        p_k(x) = (compte(x) + u · p_{k−1}(x)) / (n + u),

    où p_{k−1} oublie le caractère le plus ancien ; tout en bas, la loi uniforme sur l'alphabet. Un
    contexte aux suites variées se fie donc davantage au contexte plus court.

    Args:
        text: ce que l'on compte.
        order: nombre de caractères du plus long contexte.
        size: taille de l'alphabet, pour la loi uniforme.
    """

    def __init__(self, text: str, order: int, size: int) -> None:
        if order < 0 or size < 1:
            raise MinidalleError("Un n-gramme veut un ordre positif et un alphabet non vide.")
        self.order, self.size = order, size
        self.counts: defaultdict[str, Counter] = defaultdict(Counter)
        for i, symbol in enumerate(text):
            for start in range(max(0, i - order), i + 1):
                self.counts[text[start:i]][symbol] += 1
        self.totals = {context: counter.total() for context, counter in self.counts.items()}

    def probability(self, context: str, symbol: str) -> float:
        """Probabilité de `symbol` après `context`, dont on ne regarde que la fin."""
        context = context[-self.order :] if self.order else ""
        p = 1 / self.size
        for start in range(len(context), -1, -1):
            counter = self.counts.get(context[start:])
            if counter is None:  # jamais vu, donc les plus longs non plus
                break
            kinds = len(counter)
            p = (counter[symbol] + kinds * p) / (self.totals[context[start:]] + kinds)
        return p

    def bits(self, text: str) -> np.ndarray:
        """Ce que coûte chaque caractère de `text` sachant les précédents, en bits : (n,)."""
        past = range(len(text))
        return np.array(
            [-math.log2(self.probability(text[max(0, i - self.order) : i], text[i])) for i in past]
        )
