"""La prose du livre tient ses règles, et le contrôle voit les fautes qu'il doit voir."""

import re
from pathlib import Path

import pytest

from tools import prose


def numbers(source: str, permitted: dict[str, str] | None = None) -> list[str]:
    return [number for _, number, _ in prose.bare_numbers(source, permitted or {})]


def terms(source: str) -> list[str]:
    return [term for _, term, _ in prose.bad_terms(source)]


def test_the_book_follows_the_rules() -> None:
    assert [str(fault) for fault in prose.faults()] == []


def test_every_permission_is_used_and_justified() -> None:
    sources = [path.read_text(encoding="utf-8") for path in prose.chapters()]
    book = "\n".join(block.text for source in sources for block in prose.blocks(source))
    for passage, reason in prose.allowed().items():
        assert len(reason) > 10, f"« {passage} » : donner la raison"
        assert prose.NUMBER.search(passage) or prose.INTEGER.search(passage), (
            f"« {passage} » ne contient aucun nombre à permettre"
        )
        assert passage in book, f"« {passage} » n'est plus dans le livre : retirer la permission"


def test_every_reference_is_cited_and_every_citation_resolves() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in prose.chapters())
    cited = {key.strip() for keys in re.findall(r"\{cite[\w:]*\}`([^`]+)`", text) for key in keys.split(",")}
    entries = re.findall(r"^@\w+\{([^,]+),", (prose.ROOT / "references.bib").read_text("utf-8"), re.MULTILINE)
    assert sorted(cited) == sorted(entries)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Le PSNR vaut 27,7 dB.", ["27,7"]),
        ("Le PSNR vaut 28 dB, soit 95 % du maximum.", ["28 dB", "95 %"]),
        ("Le PSNR vaut 27.7.", ["27.7"]),
        ("```{note}\nEn tout, 0,25.\n```", ["0,25"]),
        ("```{admonition} Environ 3,5 fois\n:class: tip\nRien.\n```", ["3,5"]),
        (":::{note}\n:class: tip\n\nEn tout, 0,25.\n:::", ["0,25"]),
        ("::::{grid}\n:::{grid-item-card} Titre\nSoit 1,5.\n:::\n::::", ["1,5"]),
        ("| a | b |\n|---|---|\n| x | 0,4 |", ["0,4"]),
        ("- un\n- deux, à 0,4 près", ["0,4"]),
        ("# Un titre à 12 %", ["12 %"]),
        ("Une note[^1].\n\n[^1]: Soit 0,4.", ["0,4"]),
        (
            "```{code-cell} python3\n---\nmystnb:\n  figure:\n    caption: Soit 0,4.\n---\nx = 0.5\n```",
            ["0,4"],
        ),
        ("Vrai ailleurs {cite}`a`.\n\nMais ici 0,4.", ["0,4"]),
    ],
)
def test_a_bare_number_is_seen(source: str, expected: list[str]) -> None:
    assert numbers(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "Le PSNR vaut {glue:text}`psnr` dB.",
        "Le code `x = 0.25` et la formule $0{,}25$.",
        "$$ x = 0.25 $$",
        "```python\nx = 0.25\n```",
        "```{code-cell} python3\n:tags: [hide-input]\nx = 0.25\n```",
        "```{figure} image.svg\n:width: 12.5%\n:name: fig-a\nUne légende.\n```",
        "Ils obtiennent 27,10 % {cite}`gokhale2022visor`.",
        "| a | b |\n|---|---|\n| x {cite}`a` | 0,4 |",
        "```{list-table}\n* - 0,4\n  - {cite}`a`\n```",
        "Un lien vers [la page](https://exemple.fr/2.5/x).",
        "Il y a 16 384 codes en 8 couleurs, dans deux images de 64×64.",
        "% une note de 0,4 pour les auteurs",
    ],
)
def test_a_sourced_number_is_left_alone(source: str) -> None:
    assert numbers(source) == []


def unseen(page: Path, source: str, permitted: dict[str, str] | None = None) -> list[str]:
    page.write_text(source, encoding="utf-8")
    found = prose.unseen_integers(source, prose.shown_integers(page), permitted or {})
    return [number for _, number in found]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Il y a 16 384 codes.", ["16 384"]),
        ("Il y a 512 codes, soit 9 bits.", ["512"]),
        ("Ils étaient 12.", ["12"]),
        ("De 10 à 20, non 30.", ["10", "20", "30"]),
        ("| a | b |\n|---|---|\n| 16 | 384 |", ["16", "384"]),
        ("Vrai ailleurs {cite}`a` : 12.\n\nMais ici 13.", ["13"]),
        ("```{code-cell} python3\nx = 5120\n```\nIl y a 512 codes.", ["512"]),
        ("Une année n'excuse rien : en 2024, 25 fois.", ["25"]),
        ("Un nombre de chapitre n'est pas le 7 avril, mais 31 l'est.", ["31"]),
    ],
)
def test_an_integer_nobody_sees_is_a_fault(tmp_path: Path, source: str, expected: list[str]) -> None:
    assert unseen(tmp_path / "page.md", source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "```{code-cell} python3\nx = 16_384\n```\nIl y a 16 384 codes.",
        "Avec $K = 16\\,384$, il y a 16 384 codes.",
        "Avec `codes=512`, il y a 512 codes.",
        "```{math}\n2^{9} = 512\n```\nIl y a 512 codes.",
        "Il y a {glue:text}`codes` codes et 9 bits.",
        "Ils en ont 512 {cite}`a`.",
        "Le 7 août 2026, puis en 2027 ; deux images de 64×64, VGG-16, et 0,25 ou 12.5.",
        "La table entière cite.\n\n```{list-table}\n* - 512\n  - {cite}`a`\n```",
        "```{literalinclude} code.py\n```\nIl y a 777 codes.",
    ],
)
def test_an_integer_of_the_page_is_left_alone(tmp_path: Path, source: str) -> None:
    (tmp_path / "code.py").write_text("SIZE = 777", encoding="utf-8")
    assert unseen(tmp_path / "page.md", source) == []


def test_a_permitted_integer_is_permitted_once(tmp_path: Path) -> None:
    permitted = {"parmi 1024": "la taille du dictionnaire"}
    assert unseen(tmp_path / "page.md", "Un jeton parmi 1024, non 1024.", permitted) == ["1024"]


def test_a_permission_covers_its_passage_only() -> None:
    permitted = {"Python 3.11": "version minimale"}
    assert numbers("Il faut Python 3.11.", permitted) == []
    assert numbers("Il faut Python 3.12, ou 3.11.", permitted) == ["3.12", "3.11"]


def test_the_line_of_a_fault_is_given() -> None:
    source = "# Titre\n\nRien.\n\n```{note}\n:class: tip\nSoit 0,4.\n```\n"
    assert [line for line, _, _ in prose.bare_numbers(source, {})] == [7]


@pytest.mark.parametrize(
    "source",
    [
        "Un embedding de mots.",
        "Le DALL-E de 2021.",
        "Un coup d'oeil.",
        "La 2ème fois.",
        "Vraiment?",
        "Le code `x`; puis rien.",
        "Ainsi: rien.",
        "Dites «oui».",
        'Dites "oui".',
        "Il y a 1.024 codes.",
        "A retenir.",
        "Et...",
    ],
)
def test_a_forbidden_term_is_seen(source: str) -> None:
    assert terms(source)


@pytest.mark.parametrize(
    "source",
    [
        "Un plongement (*embedding*) et `embedding`.",
        "DALL·E et DALL·E mini ; vraiment ? Ainsi : « oui ».",
        "```python\nbatch = tokens[0]; print(batch)\n```",
        "À retenir : il est 12:30 et `x` : rien.",
    ],
)
def test_a_right_term_is_left_alone(source: str) -> None:
    assert terms(source) == []


def test_each_pattern_says_what_to_write() -> None:
    for pattern, advice in prose.forbidden():
        assert advice.strip(), pattern
        assert not re.search(pattern, ""), pattern
