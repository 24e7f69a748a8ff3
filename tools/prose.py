"""Relit la prose : `python -m tools.prose` (« make lint »).

Trois règles, dont les exceptions sont dans tests/ :
- un nombre mesuré vient d'une cellule (`{glue:text}`) ou d'une citation du même paragraphe ;
- un entier qui n'en vient pas se lit aussi dans une cellule, une formule ou un fichier inclus de la page ;
- un concept se dit d'un seul terme, et la typographie est celle de tests/forbidden_terms.tsv.
Le texte est lu comme MyST le lit, donc sans le code, les formules, les rôles ni les options des directives.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "tests" / "prose_allowed.txt"
FORBIDDEN = ROOT / "tests" / "forbidden_terms.tsv"
# Un nombre à décimales, ou un entier suivi d'une unité de mesure ; la prose des résultats n'en contient pas.
NUMBER = re.compile(r"\d+[.,]\d+(?:[.,]\d+)*|\d+\s?(?:%|dB\b)")
# Un entier de deux chiffres au moins : « 16 384 », non le 16 de « 16,5 », ni celui de « 64×64 » ou d'un nom.
INTEGER = re.compile(r"(?<![\w.,×/-])(?:[1-9]\d?\d?(?:[ \u202f\u00a0]\d{3})+|[1-9]\d+)(?![\w×/-]|[.,]\d)")
MONTH = "janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|décembre"
DATE = re.compile(rf"(?:\d+ )?(?:{MONTH}) \d{{4}}|\b(?:19|20)\d\d\b")
# Dans un fichier source ou une formule, ce qui peut séparer les milliers : 16_384, 16\,384, 16 384.
THOUSANDS = re.compile(r"(?<=\d)(?:_|\\,|[ \u202f\u00a0])(?=\d{3}(?!\d))")
# Ce qu'une page montre sans l'affirmer : ses cellules, ses formules, les noms et les valeurs qu'elle cite.
SHOWN = re.compile(r"^```\{(?:code-cell|math)\}.*?^```|\$[^$]+\$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r"\{literalinclude\} (\S+)")
# À la place de ce qui n'est pas de la prose, pour que « `x` ; » ne devienne pas « ; ».
HOLE = "\ufffc"
# Directives dont le corps n'est pas de la prose.
CODE = re.compile(r"^\{?(?:code|literalinclude|math|raw|bibliography|toctree|mermaid|include)")


@dataclass(frozen=True)
class Block:
    """Un paragraphe, un titre, un tableau entier ou une légende."""

    line: int
    text: str  # prose, les passages en italique compris
    plain: str  # la même sans l'italique, où un terme étranger est permis
    cited: bool  # contient une citation


@dataclass(frozen=True)
class Fault:
    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@cache
def _parser() -> MarkdownIt:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    extensions = set(config["parse"]["myst_enable_extensions"])
    return create_md_parser(MdParserConfig(enable_extensions=extensions), RendererHTML)


def blocks(source: str, first_line: int = 1) -> Iterator[Block]:
    """Blocs de prose de `source`, directives ouvertes."""
    table: list[Token] | None = None
    for token in _parser().parse(source):
        line = first_line + (token.map[0] if token.map else 0)
        if token.type == "table_open":
            table, table_line = [], line
        elif token.type == "table_close":
            yield _block(table_line, table or [])
            table = None
        elif token.type == "inline":
            if table is None:
                yield _block(line, [token])
            else:
                table.append(token)
        elif token.type in ("fence", "colon_fence"):
            yield from _directive(token, line)


def _block(line: int, inlines: list[Token]) -> Block:
    text, plain, cited, emphasis = "", "", False, 0
    for token in [child for inline in inlines for child in [*(inline.children or []), None]]:
        if token is None:
            piece = "\n"  # fin d'une cellule de tableau
        elif token.type in ("em_open", "em_close"):
            emphasis += 1 if token.type == "em_open" else -1
            continue
        elif token.type in ("softbreak", "hardbreak"):
            piece = " "
        elif token.type in ("text", "image"):
            piece = token.content
        elif token.nesting:
            continue
        else:
            cited = cited or (token.type == "myst_role" and token.meta.get("name", "").startswith("cite"))
            piece = HOLE
        text += piece
        plain += HOLE if emphasis else piece
    return Block(line, text.strip(), plain.strip(), cited)


def _directive(token: Token, line: int) -> Iterator[Block]:
    """Prose d'une directive : son titre et son corps, ou la légende d'une cellule."""
    name = token.info.strip()
    options, body, offset = _split_options(token.content)
    if name.startswith("{code-cell}"):
        for key, value in _walk(options):
            if key in ("caption", "alt"):
                yield from blocks(str(value), line)
    elif name.startswith("{") and not CODE.match(name):
        directive, _, title = name.partition("}")
        if "alt" in options:
            yield from blocks(str(options["alt"]), line)
        # L'argument de ces directives est un nom de fichier ou une étiquette.
        if not re.match(r"\{(?:figure|image|solution|glue|card-link|button|index|eval)", directive):
            yield from blocks(title.strip(), line)
        inside = list(blocks(body, line + 1 + offset))
        if "table" in directive:  # une citation vaut pour tout le tableau
            inside = [replace(block, cited=any(b.cited for b in inside)) for block in inside]
        yield from inside


def _split_options(content: str) -> tuple[dict, str, int]:
    """Options YAML ou `:clé: valeur` du début d'une directive, son corps, le nombre de lignes sautées."""
    if content.startswith("---\n") and (end := content.find("\n---", 3)) > 0:
        head, body = content[4:end], content[end + 4 :].partition("\n")[2]
        return yaml.safe_load(head) or {}, body, head.count("\n") + 3
    lines = content.split("\n")
    count = next((i for i, text in enumerate(lines) if not re.match(r":[\w-]+:", text)), len(lines))
    pairs = (text[1:].split(":", 1) for text in lines[:count])
    return {key: value.strip() for key, value in pairs}, "\n".join(lines[count:]), count


def _walk(options: dict) -> Iterator[tuple[str, object]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _walk(value)
        else:
            yield key, value


def allowed(path: Path = ALLOWED) -> dict[str, str]:
    """Passages permis et leur raison : une ligne « passage<tabulation>raison »."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return dict(line.split("\t", 1) for line in lines)


def bare_numbers(source: str, permitted: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """(ligne, nombre, bloc) de chaque nombre qui ne vient ni d'une cellule ni d'une citation."""
    for block in blocks(source):
        text = block.text
        for passage in permitted:
            text = text.replace(passage, " " * len(passage))
        if not block.cited:
            for found in NUMBER.finditer(text):
                yield block.line, found[0], block.text


def shown_integers(page: Path) -> set[str]:
    """Entiers que la page montre hors de sa prose, et ceux des fichiers qu'elle inclut."""
    source = page.read_text(encoding="utf-8")
    texts = SHOWN.findall(source)
    texts += [(page.parent / name).read_text(encoding="utf-8") for name in INCLUDED.findall(source)]
    return set(re.findall(r"\d+", THOUSANDS.sub("", "\n".join(texts))))


def unseen_integers(source: str, shown: set[str], permitted: dict[str, str]) -> Iterator[tuple[int, str]]:
    """(ligne, entier) de chaque entier affirmé sans citation et que la page ne montre nulle part ; une date passe."""
    for block in blocks(source):
        text = DATE.sub("", block.text)
        for passage in permitted:
            text = text.replace(passage, "")
        if not block.cited:
            for found in INTEGER.finditer(text):
                if re.sub(r"\D", "", found[0]) not in shown:
                    yield block.line, found[0]


def forbidden() -> list[tuple[re.Pattern, str]]:
    lines = [line for line in FORBIDDEN.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [(re.compile(pattern), advice) for pattern, advice in (line.split("\t", 1) for line in lines)]


def bad_terms(source: str) -> Iterator[tuple[int, str, str]]:
    """(ligne, faute, ce qu'il faut écrire) de chaque terme ou signe à éviter."""
    for block in blocks(source):
        for pattern, advice in forbidden():
            for found in pattern.finditer(block.plain):
                yield block.line, found[0], advice


def chapters() -> list[Path]:
    return sorted((ROOT / "chapters").rglob("*.md"))


def faults() -> Iterator[Fault]:
    permitted = allowed()
    for path in chapters():
        source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        for line, number, _ in bare_numbers(source, permitted):
            yield Fault(name, line, f"le nombre « {number} » ne vient ni d'une cellule ni d'une citation")
        for line, number in unseen_integers(source, shown_integers(path), permitted):
            message = f"l'entier « {number} » n'est ni dans une cellule ou une formule de la page, ni cité"
            yield Fault(name, line, message)
    for path in [*chapters(), *sorted(ROOT.glob("*.md")), *sorted((ROOT / "minidalle").rglob("*.md"))]:
        for line, term, advice in bad_terms(path.read_text(encoding="utf-8")):
            yield Fault(path.relative_to(ROOT), line, f"« {term} » : {advice}")


if __name__ == "__main__":
    found = [str(fault) for fault in faults()]
    sys.exit("\n".join(found) if found else None)
