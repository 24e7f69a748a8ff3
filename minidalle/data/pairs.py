"""Textes et leurs traductions : noms d'émojis en anglais et en français, ou fichier de paires du lecteur.

Une paire porte une *famille* : les paires d'une famille se ressemblent trop pour que l'on apprenne les unes
et que l'on soit jugé sur les autres. Pour les émojis, c'est le nom sans la couleur de peau ; pour un
fichier, la phrase de départ sans sa ponctuation, qui y est souvent traduite plusieurs fois.

Les textes sont sous forme canonique (`canonical`) : minuscules, une seule sorte d'apostrophe et d'espace.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import WordLevel

from minidalle.errors import MinidalleError, reason
from minidalle.text import normalize

SPECIAL_TOKENS = ("<pad>", "<unk>", "<debut>", "<fin>")
MAX_CHARACTERS = 1000  # au-delà, une « phrase » est un paragraphe ou un fichier d'un autre format

# Comme `minidalle.text.words`, et les signes qui se combinent aux lettres (\p{M}) avec elles : sans eux, les
# voyelles du marathi seraient de la ponctuation.
_WORDS = pre_tokenizers.Split(
    Regex(
        r"(?:[cdjlmnst]|(?:jus|lors|puis|quoi|quel)?qu)'"
        r"|[\p{L}\p{M}\p{N}_\x{200C}\x{200D}]+(?:'[\p{L}\p{M}\p{N}_]+)*"
        r"|[^\p{L}\p{M}\p{N}_\s]"
    ),
    "removed",
    invert=True,
)
_GLUED = re.compile(r"(?<=['(-]) | (?=[-,.…)!?])")
_TONE = re.compile(r" ?(?:medium-dark|medium-light|medium|dark|light) skin tone")


class Pair(NamedTuple):
    """Un texte, sa traduction, et ce qui rassemble les paires à ne pas séparer."""

    source: str
    target: str
    family: str


class Split(NamedTuple):
    """Ce que rend `split` : trois suites de paires sans famille commune."""

    train: tuple[Pair, ...]
    composed: tuple[Pair, ...]  # mots tous vus à l'entraînement, dans les deux langues, jamais réunis ainsi
    fresh: tuple[Pair, ...]  # familles tirées au hasard, mots inconnus compris


def words(text: str) -> list[str]:
    """Mots, élisions et signes de ponctuation d'un texte, une fois normalisé, dans l'ordre."""
    return [word for word, _ in _WORDS.pre_tokenize_str(normalize(text))]


def join(found: Iterable[str]) -> str:
    """Texte de mots séparés par `words`."""
    return _GLUED.sub("", " ".join(found))


def canonical(text: str) -> str:
    """Forme sous laquelle un texte est appris et jugé ; appliquée deux fois, elle ne change plus rien."""
    return join(words(text))


@functools.cache
def emoji_names() -> tuple[Pair, ...]:
    """Noms anglais et français des émojis, tels que les donne le CLDR d'Unicode.

    Returns:
        Près de quatre mille paires, dans l'ordre des noms anglais.
    """
    import emoji

    emoji.config.load_language("fr")
    found = {}
    for entry in emoji.EMOJI_DATA.values():
        if entry["status"] == emoji.STATUS["fully_qualified"] and {"en", "fr"} <= entry.keys():
            source, target = (canonical(entry[code].strip(":").replace("_", " ")) for code in ("en", "fr"))
            found[source] = Pair(source, target, _TONE.sub("", source).strip())
    return tuple(found[source] for source in sorted(found))


def read_pairs(path: Path | str, limit: int | None = None) -> tuple[Pair, ...]:
    """Paires d'un fichier au format d'Anki : une par ligne, séparées par une tabulation.

    Les colonnes suivantes (l'attribution, dans les fichiers de Tatoeba) et les lignes vides sont ignorées ;
    une paire répétée n'est gardée qu'une fois.

    Args:
        path: fichier texte en UTF-8.
        limit: nombre maximal de lignes lues ; None pour toutes.

    Raises:
        MinidalleError: fichier absent ou vide ; ligne sans tabulation, à texte vide ou trop long, ou qui
            n'est pas en UTF-8. Le message donne le numéro de la ligne.
    """
    found = {}
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and number > limit:
                    break
                pair = _parse(line, f"« {path} », ligne {number}", first=number == 1)
                if pair:
                    found[pair.source, pair.target] = pair
    except OSError as error:
        raise MinidalleError(f"« {path} » est illisible ({reason(error)}) : vérifier le chemin.") from error
    if not found:
        raise MinidalleError(
            f"« {path} » ne contient aucune paire : une par ligne, texte, tabulation, texte."
        )
    return tuple(found.values())


def _parse(line: bytes, where: str, *, first: bool) -> Pair | None:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise MinidalleError(f"{where} : ce n'est pas de l'UTF-8, enregistrer le fichier ainsi.") from error
    if not text.strip():
        return None
    columns = text.split("\t")[:2]
    if len(columns) < 2:
        raise MinidalleError(f"{where} : il faut deux textes séparés par une tabulation, il n'y en a qu'un.")
    if max(map(len, columns)) > MAX_CHARACTERS:
        raise MinidalleError(f"{where} : un texte dépasse {MAX_CHARACTERS} caractères, le couper.")
    source, target = map(canonical, columns)
    if not (source and target):
        raise MinidalleError(f"{where} : un des deux textes est vide, le compléter ou retirer la ligne.")
    return Pair(source, target, " ".join(w for w in words(source) if w[0].isalnum()) or source)


def split(pairs: Sequence[Pair], seed: int = 0, share: float = 0.1, seen: int = 2) -> Split:
    """Met de côté deux jeux de test, par familles entières.

    Args:
        pairs: paires.
        seed: graine du tirage des familles.
        share: part des familles visée pour chacun des deux tests.
        seen: chaque mot de `composed` reste dans au moins `seen` familles d'entraînement.

    Raises:
        MinidalleError: part hors de ]0, 1/2[, ou trop peu de paires pour remplir les trois jeux.
    """
    if not 0 < share < 0.5 or seen < 1:
        raise MinidalleError(f"Part {share} et {seen} emploi(s) : une part de ]0, 1/2[ et au moins 1 emploi.")
    families: dict[str, list[Pair]] = {}
    for pair in pairs:
        families.setdefault(pair.family, []).append(pair)
    names = sorted(families)
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    size = round(share * len(names))
    fresh, rest = names[:size], names[size:]
    contents = {
        name: {(i, w) for pair in families[name] for i in (0, 1) for w in words(pair[i])} for name in rest
    }
    left = Counter(word for name in rest for word in contents[name])  # familles où reste chaque mot
    composed = []
    for name in rest:
        if len(composed) < size and all(left[word] > seen for word in contents[name]):
            composed.append(name)
            left.subtract(contents[name])
    train = set(rest) - set(composed)
    parts = [
        [pair for pair in pairs if pair.family in chosen] for chosen in (train, set(composed), set(fresh))
    ]
    if not all(parts):
        raise MinidalleError(f"{len(pairs)} paire(s) : trop peu pour un entraînement et deux tests.")
    return Split(*map(tuple, parts))


def messages(pairs: Sequence[Pair], names: int, n: int, seed: int = 0) -> tuple[Pair, ...]:
    """n messages de `names` textes tirés au hasard et séparés par des virgules, d'une famille chacun.

    C'est ce que dit un lecteur d'écran devant plusieurs émojis à la suite.

    Raises:
        MinidalleError: rien à tirer, ou aucun texte demandé.
    """
    if not pairs or names < 1:
        raise MinidalleError(f"Message de {names} texte(s) parmi {len(pairs)} : il en faut au moins un.")
    found = []
    for picks in np.random.default_rng(seed).integers(len(pairs), size=(n, names)):
        source, target = (", ".join(pairs[i][side] for i in picks) for side in (0, 1))
        found.append(Pair(source, target, source))
    return tuple(found)


class Vocabulary:
    """Vocabulaire d'une langue : un numéro par mot (segmenteur `WordLevel` de `tokenizers`).

    Les quatre premiers numéros sont réservés : 0 pour le remplissage, 1 pour un mot inconnu, 2 pour le
    début, 3 pour la fin. `len(vocabulary)` les compte.

    Args:
        texts: textes dont les mots sont retenus, les plus fréquents d'abord.
        least: nombre d'emplois sous lequel un mot est tenu pour inconnu.
    """

    pad_id, unknown_id, start_id, stop_id = range(4)

    def __init__(self, texts: Iterable[str], least: int = 1) -> None:
        counts = Counter(word for text in texts for word in words(text))
        kept = sorted((w for w, n in counts.items() if n >= least), key=lambda w: (-counts[w], w))
        if not kept:
            raise MinidalleError("Aucun mot à retenir : donner des textes, ou baisser « least ».")
        numbers = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *kept])}
        self._tokenizer = WordTokenizer(WordLevel(numbers, unk_token="<unk>"))

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __contains__(self, word: str) -> bool:
        return self._tokenizer.token_to_id(word) is not None

    def encode(self, text: str) -> list[int]:
        """Numéros des mots d'un texte, sans début ni fin."""
        return self._tokenizer.encode(words(text), is_pretokenized=True).ids

    def words(self, ids: Iterable[int]) -> list[str]:
        """Mots d'une suite de numéros, jusqu'à la fin exclue ; remplissage et début sont omis.

        Raises:
            MinidalleError: numéro hors du vocabulaire.
        """
        found = []
        for i in map(int, ids):
            if not 0 <= i < len(self):
                raise MinidalleError(f"Jeton {i} hors du vocabulaire (0 à {len(self) - 1}).")
            if i == self.stop_id:
                break
            if i not in (self.pad_id, self.start_id):
                found.append(self._tokenizer.id_to_token(i))
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Texte d'une suite de numéros ; pour des mots connus, `decode(encode(x))` est `canonical(x)`."""
        return join(self.words(ids))
