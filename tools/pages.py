"""Contrôle des pages construites : anglais oublié, textes alternatifs, liens morts, requêtes externes.

Chaque fonction rend la liste des fautes, en clair ; vide, la page est bonne.
"""

import gzip
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Comment, Tag

# Mots de l'interface de Sphinx et de ses thèmes, et mots-outils qui ne sont pas aussi des mots français.
ENGLISH = re.compile(
    r"\b(?:the|of|and|to|(?<!CC )by|with|from|this|that|is|are|you|your|not|it"
    r"|back|built|click|close|contents|copied|created|definition|download|edit|example|exercise|expand"
    r"|full ?screen|hide|home|last updated|lemma|modified|next|open|previous|print|proof|remark|repository"
    r"|run time|search|see also|show|skip|suggest|theme|theorem|tip|toggle|updated|warning|written)\b|^main$",
    re.IGNORECASE,
)
ATTRIBUTES = ("alt", "aria-label", "aria-description", "placeholder", "title", "data-toggle-hint")
# Ce qui a le droit d'être en anglais : code, formules, titres des œuvres citées, passages balisés.
EXEMPT = 'script, style, code, pre, .math, mjx-container, .citation, dl.citation, [lang="en"], em, svg'
IMAGE_NAME = re.compile(r"\.(?:png|svg|jpe?g|gif|webp)\b|^_images/", re.IGNORECASE)
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "embed": "src"}
CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")
CDN = re.compile(r"https?://[\w.-]*(?:cdn|unpkg|jsdelivr|googleapis|gstatic)[\w.-]*[^\s\"'`)]*")


@cache
def parse(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def pages(root: Path) -> list[Path]:
    """Pages du livre, sans les gabarits que les thèmes déposent dans `_static`."""
    return sorted(p for p in root.rglob("*.html") if "_static" not in p.parts)


def english_words(soup: BeautifulSoup) -> list[str]:
    """Textes et attributs visibles où reste un mot anglais."""
    faults = []
    for text in soup.find_all(string=True):
        if isinstance(text, Comment) or not text.strip() or _exempt(text.parent):
            continue
        if found := ENGLISH.search(text):
            faults.append(f"« {found[0]} » dans « {' '.join(text.split())[:80]} »")
    for tag in soup.find_all(True):
        for name in ATTRIBUTES:
            # L'infobulle d'une citation est la référence elle-même.
            quoted = name == "title" and "/bibliographie.html#" in f"/{tag.get('href')}"
            if (value := tag.get(name)) and not (quoted or _exempt(tag)) and (found := ENGLISH.search(value)):
                faults.append(f"« {found[0]} » dans l'attribut {name}=« {value} »")
    return faults


def _exempt(tag: Tag | None) -> bool:
    return tag is not None and tag.css.closest(EXEMPT) is not None


def poor_alternatives(soup: BeautifulSoup) -> list[str]:
    """Images dont le texte alternatif manque, n'est qu'un nom de fichier ou répète la légende."""
    faults = []
    for image in soup.find_all("img"):
        alt, name = (image.get("alt") or "").strip(), image.get("src", "?")[-60:]
        figure = image.find_parent("figure")
        caption = figure.select_one("figcaption .caption-text") if figure else None
        if not alt:
            faults.append(f"{name} : sans texte alternatif")
        elif IMAGE_NAME.search(alt):
            faults.append(f"{name} : le texte alternatif est un nom de fichier, « {alt} »")
        elif len(alt) < 15:
            faults.append(f"{name} : le texte alternatif ne décrit rien, « {alt} »")
        elif caption and _words(alt) == _words(caption.get_text()):
            faults.append(f"{name} : le texte alternatif répète la légende")
    return faults


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def dead_links(root: Path, page: Path) -> list[str]:
    """Liens internes vers un fichier ou une ancre qui n'existent pas."""
    faults = []
    for tag in parse(page).find_all(True):
        for name in ("href", "src", "data"):
            value = tag.get(name)
            if not value or (name == "data" and tag.name != "object"):
                continue
            url = urlsplit(value)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if target.is_dir():
                target /= "index.html"
            if not target.is_relative_to(root.resolve()) or not target.is_file():
                faults.append(f"{value} : pas de tel fichier")
            elif url.fragment and target.suffix == ".html" and unquote(url.fragment) not in _anchors(target):
                faults.append(f"{value} : pas de telle ancre")
    return faults


@cache
def _anchors(page: Path) -> set[str]:
    soup = parse(page)
    return {tag["id"] for tag in soup.find_all(id=True)} | {tag["name"] for tag in soup.select("a[name]")}


def external_requests(root: Path, page: Path) -> list[str]:
    """Adresses externes que le navigateur irait chercher : scripts, images, polices, feuilles de style."""
    soup, faults = parse(page), []
    for tag in soup.find_all([*LOADING, "link", "object"]):
        value = tag.get(LOADING.get(tag.name, "data" if tag.name == "object" else "href")) or ""
        if tag.name == "link" and not {"stylesheet", "preload", "icon", "prefetch", "modulepreload"} & set(
            tag.get("rel") or []
        ):
            continue
        if urlsplit(value).netloc:
            faults.append(value)
        elif tag.name == "link" and value.split("?")[0].endswith(".css"):
            sheet = (page.parent / unquote(urlsplit(value).path)).resolve()
            faults += CSS_URL.findall(sheet.read_text(encoding="utf-8", errors="replace"))
    for tag in soup.find_all(["script", "style"]):
        faults += CSS_URL.findall(tag.string or "") + CDN.findall(tag.string or "")
    return faults


def weight(addresses: Iterable[str]) -> int:
    """Octets qu'un serveur enverrait pour ces fichiers locaux, comprimés comme tout serveur sait le faire."""
    paths = {unquote(urlsplit(address).path) for address in addresses if address.startswith("file:")}
    contents = [Path(path).read_bytes() for path in paths]
    return sum(min(len(content), len(gzip.compress(content, 6))) for content in contents)
