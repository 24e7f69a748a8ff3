"""Vérifie l'orthographe de la prose : `python -m tools.spelling` (« make lint »).

La prose est celle que lit `tools.prose` ; le dictionnaire français de hunspell la juge, augmenté de
tests/mots.txt. Un passage en italique peut être anglais : ses mots sont justes dans l'une des deux langues.
Sans hunspell, rien n'est vérifié, et c'est dit.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools import prose

WORDS = prose.ROOT / "tests" / "mots.txt"
FRENCH, ENGLISH = "fr_FR", "en_US"
# Un mot, ses élisions et ses traits d'union compris.
WORD = re.compile(r"\w+(?:[.'’‑-]\w+)*")
# Ce qui n'en est pas un : un nombre, un nom de fichier, un identifiant.
NAME = re.compile(r"[\d._]")
# Un renvoi affiche son titre, que `tools.prose` ne lit pas.
REFERENCE = re.compile(r"\{(?:term|ref|doc|numref)\}`([^`<]+?)\s*<[^`]+>`|\{term\}`([^`<]+)`")


def missing() -> str:
    """Ce qu'il faut installer pour que l'orthographe soit vérifiée, en une phrase ; vide s'il ne manque rien."""
    if shutil.which("hunspell"):
        command = ["hunspell", "-l", "-d"]
        found = [
            subprocess.run([*command, name], input=b"", capture_output=True) for name in (FRENCH, ENGLISH)
        ]
        if not any(done.returncode for done in found):
            return ""
    return "Orthographe non vérifiée : sudo apt-get install hunspell hunspell-fr hunspell-en-us"


def words(text: str) -> Iterator[str]:
    """Mots de `text`, apostrophes et traits d'union ordinaires."""
    for word in WORD.findall(text):
        if not NAME.search(word):
            yield word.replace("’", "'").replace("‑", "-")


def unknown(candidates: Iterable[str], dictionaries: str) -> set[str]:
    """Ceux de `candidates` qu'aucun des dictionnaires, séparés par une virgule, ne connaît."""
    command = ["hunspell", "-i", "utf-8", "-d", dictionaries, "-l", "-w"]
    text = "\n".join(sorted(candidates))
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=True)
    return set(done.stdout.split())


def listed(path: Path = WORDS) -> list[str]:
    """Mots du projet que hunspell ignore, un par ligne ; une majuscule au début reste permise."""
    return path.read_text(encoding="utf-8").split()


def pages() -> dict[Path, str]:
    """Texte des pages vérifiées, par chemin."""
    paths = [*prose.chapters(), prose.ROOT / "README.md"]
    return {path.relative_to(prose.ROOT): path.read_text(encoding="utf-8") for path in paths}


def faults(sources: dict[Path, str], permitted: Iterable[str]) -> Iterator[prose.Fault]:
    """Mots de `sources` que ni hunspell ni la liste `permitted` ne connaissent, dans l'ordre des pages."""
    both = f"{FRENCH},{ENGLISH}"
    # `plain` n'a pas l'italique, `text` l'a.
    spots = [
        (path, block.line, word, dictionaries)
        for path, source in sources.items()
        for block in prose.blocks(REFERENCE.sub(lambda found: found[1] or found[2], source))
        for text, dictionaries in ((block.plain, FRENCH), (block.text, both))
        for word in words(text)
    ]
    strangers = {}
    for dictionaries in (FRENCH, both):
        read = {word for *_, word, known in spots if known == dictionaries}
        # « l'ACP » est jugé entier, pour « aujourd'hui », puis par morceaux.
        strangers[dictionaries] = unknown(
            read | {part for word in read for part in parts(word)}, dictionaries
        )
    right, seen = set(permitted), set()
    for path, line, word, dictionaries in spots:
        if word not in strangers[dictionaries]:
            continue
        for part in parts(word):
            if part in strangers[dictionaries] and not {part, uncapitalised(part)} & right:
                fault = prose.Fault(path, locate(part, sources[path], line), part)
                if fault not in seen:
                    seen.add(fault)
                    yield fault


def parts(word: str) -> list[str]:
    return re.split("['-]", word)


def uncapitalised(word: str) -> str:
    return word[0].lower() + word[1:]


def locate(word: str, source: str, first: int) -> int:
    """Ligne de `word` à partir de `first`, celle de son paragraphe ; `first` s'il y est coupé par du balisage."""
    lines = source.splitlines()
    whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    return next((n for n in range(first, len(lines) + 1) if whole.search(lines[n - 1])), first)


def main() -> int:
    if advice := missing():
        print(advice, file=sys.stderr)
        return 0
    found = [str(fault) for fault in faults(pages(), listed())]
    if found:
        print(*found, f"\n{len(found)} mot(s) à corriger, ou à ajouter à tests/mots.txt.", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
