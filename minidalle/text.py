"""Du texte français aux numéros de jetons, et retour.

Le découpage en sous-mots est un BPE (Sennrich et coll., 2016) de la bibliothèque `tokenizers` ; autour,
ce que le français demande : apostrophes et espaces typographiques ramenés à une seule forme, élisions
séparées (« d'un » donne « d' » et « un », donc le même « un » qu'ailleurs), accents et « œ » gardés.

Rien n'est perdu en silence : `Encoding` énumère les mots inconnus et ceux que la longueur a coupés.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from minidalle.errors import MinidalleError, reason
from minidalle.files import atomic_write

SPECIAL_TOKENS = ("<pad>", "<unk>", "<debut>")

# Chaque mot commence par ce signe : un BPE ne fusionne jamais deux mots, et le décodage sait les séparer.
_START = "▁"
_WORD = re.compile(
    r"(?:[cdjlmnst]|(?:jus|lors|puis|quoi|quel)?qu)'"  # élision : l', qu', jusqu'
    r"|\w+(?:'\w+)*"  # mot, apostrophe intérieure comprise : aujourd'hui, presqu'île
    r"|[^\w\s]"  # signe de ponctuation, seul
)
# Espaces que le décodage retire : après une apostrophe, autour d'un trait d'union, avant « , », etc.
_GLUED = re.compile(r"(?<=['(-]) | (?=[-,.…)])")


def normalize(text: str) -> str:
    """Forme unique d'un texte : NFC, minuscules, « ’ » en « ' », espaces (insécables comprises) en une seule.

    Accents et « œ » sont gardés. Appliquée deux fois, la fonction ne change plus rien.
    """
    # Un octet illisible de la ligne de commande arrive en demi-codet isolé, que `tokenizers` refuse.
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    # Le signe de début de mot est réservé : dans un texte, il devient le tiret bas qui lui ressemble.
    text = re.sub("[’ʼ]", "'", text).replace(_START, "_")
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """Mots, élisions et signes de ponctuation d'un texte, une fois normalisé, dans l'ordre."""
    return _WORD.findall(normalize(text))


@dataclass(frozen=True, slots=True)
class Encoding:
    """Résultat de `Tokenizer.encode`.

    Attributes:
        ids: numéros des jetons, de 1 à V − 1, sans bourrage ni jeton de début.
        unknown: mots encodés mais absents du corpus d'apprentissage, chacun une fois.
        dropped: mots de la fin, non encodés faute de place.
    """

    ids: list[int]
    unknown: list[str]
    dropped: list[str]


class Tokenizer:
    """Vocabulaire de sous-mots appris sur un corpus.

    Les trois premiers numéros sont réservés : 0 pour le bourrage, 1 pour un caractère inconnu, 2 pour
    le début de séquence. `len(tokenizer)` est la taille V du vocabulaire, réservés compris.
    """

    pad_id = SPECIAL_TOKENS.index("<pad>")
    unknown_id = SPECIAL_TOKENS.index("<unk>")
    start_id = SPECIAL_TOKENS.index("<debut>")

    def __init__(self, bpe: BPETokenizer, known: Iterable[str]) -> None:
        """Assemble un BPE entraîné et les mots de son corpus ; voir plutôt `train`, `load` et `from_json`."""
        self._bpe = bpe
        self._known = frozenset(known)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Apprend un vocabulaire.

        Args:
            texts: corpus, parcouru une fois.
            vocab_size: taille maximale V ; le vocabulaire est plus petit si le corpus ne suffit pas.

        Raises:
            MinidalleError: corpus sans mot, ou V trop petit pour les seuls caractères du corpus.
        """
        known = set()

        def marked() -> Iterator[list[str]]:
            for text in texts:
                found = words(text)
                known.update(found)
                yield [_START + word for word in found]

        bpe = BPETokenizer(BPE(unk_token="<unk>", fuse_unk=True))
        trainer = BpeTrainer(
            vocab_size=max(0, vocab_size), special_tokens=list(SPECIAL_TOKENS), show_progress=False
        )
        bpe.train_from_iterator(marked(), trainer)
        if not known:
            raise MinidalleError("Le corpus du vocabulaire ne contient aucun mot : donner des légendes.")
        if bpe.get_vocab_size() > vocab_size:
            raise MinidalleError(
                f"Un vocabulaire de {vocab_size} jetons ne contient pas tous les caractères du corpus : "
                f"en demander au moins {bpe.get_vocab_size()}."
            )
        return cls(bpe, known)

    def __len__(self) -> int:
        return self._bpe.get_vocab_size()

    def encode(self, text: str, max_length: int | None = None) -> Encoding:
        """Encode un texte, normalisé au passage.

        Un mot qui ne tient pas entier dans `max_length` est coupé entier, avec tous ceux qui suivent.

        Args:
            text: texte quelconque.
            max_length: nombre maximal de jetons, au moins 1 ; None pour ne rien couper.

        Raises:
            MinidalleError: `max_length` inférieur à 1.
        """
        if max_length is not None and max_length < 1:
            raise MinidalleError(f"Longueur de texte impossible ({max_length}) : au moins 1 jeton.")
        kept, dropped = words(text), []
        encoded = self._bpe.encode([_START + word for word in kept], is_pretokenized=True)
        ids = encoded.ids
        if max_length is not None and len(ids) > max_length:
            first = encoded.word_ids[max_length]  # mot du premier jeton de trop
            ids = ids[: encoded.word_ids.index(first)]
            kept, dropped = kept[:first], kept[first:]
        unknown = [word for word in dict.fromkeys(kept) if word not in self._known]
        return Encoding(ids, unknown, dropped)

    def decode(self, ids: Iterable[int]) -> str:
        """Texte d'une suite de numéros ; bourrage et début de séquence sont omis, l'inconnu reste « <unk> ».

        Pour des mots connus, `decode(encode(x).ids)` rend `normalize(x)`, aux espaces près autour de la
        ponctuation.

        Raises:
            MinidalleError: numéro hors du vocabulaire.
        """
        tokens = []
        for token_id in map(int, ids):
            if not 0 <= token_id < len(self):
                raise MinidalleError(
                    f"Jeton {token_id} hors du vocabulaire (0 à {len(self) - 1}) : vérifier le modèle."
                )
            if token_id not in (self.pad_id, self.start_id):
                tokens.append(self._bpe.id_to_token(token_id))
        return _GLUED.sub("", "".join(tokens).replace(_START, " ").strip())

    def to_json(self) -> str:
        """Vocabulaire complet en JSON ; `from_json` le relit, octet pour octet le même."""
        content = {"known": sorted(self._known), "bpe": json.loads(self._bpe.to_str())}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Relit `to_json`.

        Raises:
            MinidalleError: ce texte n'est pas un vocabulaire de minidalle.
        """
        try:
            content = json.loads(text)
            bpe = BPETokenizer.from_str(json.dumps(content["bpe"]))
            known = content["known"]
            valid = all(bpe.token_to_id(token) == i for i, token in enumerate(SPECIAL_TOKENS))
            valid = valid and isinstance(known, list) and all(isinstance(word, str) for word in known)
        except Exception as error:  # `tokenizers` lève des Exception nues
            raise MinidalleError("Ce vocabulaire est illisible : le refaire avec Tokenizer.train.") from error
        if not valid:
            raise MinidalleError("Ce vocabulaire n'est pas de minidalle : le refaire avec Tokenizer.train.")
        return cls(bpe, known)

    def save(self, path: Path | str) -> None:
        """Écrit le vocabulaire dans un fichier JSON, atomiquement."""
        with atomic_write(path, "w") as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Relit un fichier écrit par `save`.

        Raises:
            MinidalleError: fichier absent, illisible ou étranger ; le message le nomme.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise MinidalleError(
                f"Vocabulaire « {path} » illisible ({reason(error)}) : vérifier le chemin."
            ) from error
        except ValueError as error:  # dont MinidalleError et un fichier qui n'est pas de l'UTF-8
            raise MinidalleError(f"« {path} » n'est pas un vocabulaire de minidalle : le refaire.") from error


# --- le segmenteur des modèles publiés ------------------------------------------------------------

_BYTES_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_SPACE = "Ġ"  # l'espace qui précède un mot, dans l'alphabet d'octets de GPT-2
_ASCII = str.maketrans({"œ": "oe", "æ": "ae", "ß": "ss", "ø": "o", "ł": "l", "’": "'", "‘": "'", "ʼ": "'"})


def normalize_ascii(text: str) -> str:
    """Texte tel que l'ont lu les DALL·E mini publiés : ASCII, minuscules, émojis dits en anglais.

    Les accents tombent (« été » donne « ete »), ce que faisait dalle-mini ; min-dalle, lui, ôte la lettre
    entière. Une lettre sans équivalent disparaît.
    """
    if not text.isascii():
        from emoji import demojize  # lourd, et presque toujours inutile

        text = unicodedata.normalize("NFKD", demojize(text, delimiters=("", "")).lower().translate(_ASCII))
    return " ".join(text.lower().encode("ascii", "ignore").decode().split())


class ByteTokenizer:
    """Segmenteur des DALL·E mini publiés : un BPE d'octets, comme ceux de RoBERTa et de BART.

    Même interface que `Tokenizer`, mais une suite commence par `<s>` et finit par `</s>`, même vide, et le
    remplissage est le jeton 1.
    """

    start_id, pad_id, end_id, unknown_id = range(4)

    def __init__(self, bpe: BPETokenizer) -> None:
        """Voir plutôt `from_files` et `from_json`."""
        self._bpe = bpe
        self._bpe.decoder = decoders.ByteLevel()

    @classmethod
    def from_files(cls, vocab: Path | str, merges: Path | str) -> "ByteTokenizer":
        """Assemble les fichiers publiés `vocab.json` et `merges.txt`.

        Raises:
            MinidalleError: fichiers absents, illisibles ou qui ne vont pas ensemble.
        """
        try:
            numbers = json.loads(Path(vocab).read_text(encoding="utf-8"))
            lines = Path(merges).read_text(encoding="utf-8").splitlines()
            pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
            bpe = BPETokenizer(BPE(numbers, pairs, unk_token="<unk>"))
        except OSError as error:
            raise MinidalleError(
                f"« {error.filename} » est illisible ({reason(error)}) : vérifier le chemin."
            ) from error
        except Exception as error:  # `tokenizers` lève des Exception nues
            raise MinidalleError(
                f"« {vocab} » et « {merges} » ne font pas un vocabulaire : les télécharger à nouveau."
            ) from error
        return cls._checked(bpe)

    @classmethod
    def _checked(cls, bpe: BPETokenizer) -> "ByteTokenizer":
        numbers = bpe.get_vocab()
        special = all(numbers.get(token) == i for i, token in enumerate(_BYTES_SPECIAL))
        if not special or sorted(numbers.values()) != list(range(len(numbers))):
            raise MinidalleError(
                "Ce vocabulaire n'est pas celui d'un DALL·E mini : ses jetons se numérotent sans trou, "
                f"{', '.join(_BYTES_SPECIAL)} d'abord."
            )
        return cls(bpe)

    def __len__(self) -> int:
        return self._bpe.get_vocab_size()

    def encode(self, text: str, max_length: int | None = None) -> Encoding:
        """Encode un texte, passé par `normalize_ascii`, entre `<s>` et `</s>`.

        Un mot qui ne tient pas entier dans `max_length` est coupé entier, avec tous ceux qui suivent. Sont
        inconnus les mots qui contiennent une lettre sans équivalent ASCII ou un signe hors du vocabulaire.

        Args:
            text: texte quelconque, en anglais pour être compris.
            max_length: nombre maximal de jetons, `<s>` et `</s>` compris, au moins 2 ; None pour ne rien couper.

        Raises:
            MinidalleError: `max_length` inférieur à 2.
        """
        if max_length is not None and max_length < 2:
            raise MinidalleError(f"Longueur de texte impossible ({max_length}) : au moins 2 jetons.")
        ids, unknown, given = [], [], text.split()
        for i, word in enumerate(given):
            found = [_SPACE + part for part in normalize_ascii(word).split()]
            pieces = self._bpe.encode(found, is_pretokenized=True).ids
            if max_length is not None and len(ids) + len(pieces) > max_length - 2:
                return Encoding(self._closed(ids), list(dict.fromkeys(unknown)), given[i:])
            if self.unknown_id in pieces or _loses_letters(word):
                unknown.append(word)
            ids += pieces
        return Encoding(self._closed(ids), list(dict.fromkeys(unknown)), [])

    def _closed(self, ids: list[int]) -> list[int]:
        return [self.start_id, *ids, self.end_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Texte d'une suite de numéros, sans début, fin ni remplissage.

        Raises:
            MinidalleError: numéro hors du vocabulaire.
        """
        kept = [int(token) for token in ids if token not in (self.start_id, self.pad_id, self.end_id)]
        if kept and not 0 <= min(kept) <= max(kept) < len(self):
            raise MinidalleError(f"Jeton hors du vocabulaire (0 à {len(self) - 1}) : vérifier le modèle.")
        return self._bpe.decode(kept, skip_special_tokens=False).strip()

    def to_json(self) -> str:
        """Vocabulaire complet en JSON ; `from_json` le relit, octet pour octet le même."""
        return json.dumps({"bytes": json.loads(self._bpe.to_str())}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ByteTokenizer":
        """Relit `to_json`.

        Raises:
            MinidalleError: ce texte n'est pas un vocabulaire d'octets de minidalle.
        """
        try:
            bpe = BPETokenizer.from_str(json.dumps(json.loads(text)["bytes"]))
        except Exception as error:  # `tokenizers` lève des Exception nues
            raise MinidalleError("Ce vocabulaire est illisible : refaire l'import du modèle.") from error
        return cls._checked(bpe)


def _loses_letters(word: str) -> bool:
    """Vrai s'il reste des lettres sans équivalent ASCII une fois les accents tombés."""
    plain = unicodedata.normalize("NFKD", word.lower().translate(_ASCII))
    return any(character.isalpha() and not character.isascii() for character in plain)


def load_tokenizer(text: str) -> Tokenizer | ByteTokenizer:
    """Le segmenteur écrit par l'un des deux `to_json`.

    Raises:
        MinidalleError: ce texte n'est pas un vocabulaire de minidalle.
    """
    # La clé « bytes » vient en tête : inutile de lire deux mégaoctets de JSON pour choisir.
    return (ByteTokenizer if text.lstrip().startswith('{"bytes"') else Tokenizer).from_json(text)
