"""Ce que montre un lien vers une page : titre, description et image, pour les moteurs et les messageries.

La description vient des objectifs du chapitre, sinon de son premier paragraphe ; l'image, de sa première
figure, que les messageries ne lisent qu'en PNG. Les adresses sont locales tant que `html_baseurl` est vide.
"""

import html
import io
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin

import matplotlib
import resvg_py
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

LENGTH = 200  # au-delà, les moteurs coupent
CARD, MARGIN = (1200, 630), 40  # les proportions que demandent les messageries, en pixels
CITATION = re.compile(r"\s?\[[^][]*\d{4}[a-z]?\]")
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


def describe(document: nodes.document) -> str:
    """Objectifs du chapitre, ou premier paragraphe, en `LENGTH` signes au plus ; vide s'il n'y en a pas."""
    texts = [CITATION.sub("", " ".join(node.astext().split())) for node in document.findall(_is_prose)]
    for text in texts:
        if text.startswith("Objectifs"):
            aims = re.split(r"\s;\s", text.partition(":")[2].strip())
            return _join([aim for aim in aims if "\\" not in aim])  # sans formule
    return _shorten(next((text for text in texts if len(text) > 60 and "\\" not in text), ""))


def _is_prose(node: nodes.Node) -> bool:
    return isinstance(node, nodes.paragraph) and not isinstance(node.parent, nodes.figure | nodes.citation)


def _join(aims: list[str]) -> str:
    """Autant d'objectifs, dans l'ordre, qu'il en tient ; toujours le premier."""
    text = aims[0] if aims else ""
    for aim in aims[1:]:
        if len(text) + len(aim) + 4 > LENGTH:
            break
        text += f"\u202f; {aim}"
    text = _shorten(text.rstrip("."))
    return text[:1].upper() + text[1:] + ("" if text.endswith("…") else ".")


def _shorten(text: str) -> str:
    """Coupe à la fin d'une phrase si l'on peut, sinon d'un mot."""
    if len(text) <= LENGTH:
        return text
    if (stop := text.rfind(". ", 60, LENGTH)) > 0:
        return text[: stop + 1]
    return text[: LENGTH - 1].rsplit(None, 1)[0].rstrip(" ,;:(«") + "…"


def first_figure(app: Sphinx, document: nodes.document) -> tuple[Path, str] | None:
    """Fichier et texte alternatif de la première figure vectorielle du document."""
    sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}
    for image in document.findall(nodes.image):  # déjà écrites : leur adresse est celle de la copie
        source = sources.get(PurePosixPath(image["uri"]).name)
        if source and source.suffix == ".svg":
            return source, image.get("alt", "")
    return None


def draw_card(figure: Path, target: Path) -> None:
    """Pose la figure au milieu d'une carte blanche."""
    png = resvg_py.svg_to_bytes(svg_path=str(figure), width=CARD[0], dpi=96, font_dirs=[str(FONTS)])
    with Image.open(io.BytesIO(bytes(png))) as picture:
        picture.thumbnail([side - 2 * MARGIN for side in CARD])
        card = Image.new("RGB", CARD, "white")
        place = [(side - length) // 2 for side, length in zip(CARD, picture.size, strict=True)]
        card.paste(picture, tuple(place), picture.convert("RGBA"))
    target.parent.mkdir(parents=True, exist_ok=True)
    card.quantize(64).save(target, optimize=True)


def add_metadata(app: Sphinx, pagename: str, template: str, context: dict, doctree: nodes.document) -> None:
    """Ajoute les balises à l'en-tête de la page ; les pages engendrées (index, recherche) n'en ont pas besoin."""
    if doctree is None or app.builder.format != "html":
        return
    home = pagename == app.config.root_doc
    title = app.env.titles[pagename].astext()
    description = describe(doctree) or f"{title}, dans «\u00a0{app.config.html_title}\u00a0»."
    tags = {
        "og:type": "website" if home else "article",
        "og:site_name": app.config.html_title,
        "og:locale": "fr_FR",
        "og:title": title,
        "og:description": description,
    }
    if base := app.config.html_baseurl:
        tags["og:url"] = urljoin(base, app.builder.get_target_uri(pagename))
    figure = first_figure(app, doctree)
    card = _card(pagename if figure else app.config.root_doc)  # sans figure, celle de l'accueil
    if figure:
        draw_card(figure[0], Path(app.outdir, card))
    here = app.builder.get_target_uri(pagename)
    tags |= {
        "og:image": urljoin(base, card) if base else relative_uri(here, card),
        "og:image:width": str(CARD[0]),
        "og:image:height": str(CARD[1]),
        "og:image:alt": " ".join(figure[1].split()) if figure else app.config.html_title,
        "twitter:card": "summary_large_image",
    }
    lines = [_tag("name", "description", description)]
    lines += [
        _tag("name" if key.startswith("twitter") else "property", key, value) for key, value in tags.items()
    ]
    context["metatags"] = "\n".join([context.get("metatags", ""), *lines])


def _card(pagename: str) -> str:
    return f"_images/partage-{pagename.removeprefix('chapters/').replace('/', '-')}.png"


def _tag(kind: str, name: str, content: str) -> str:
    return f'<meta {kind}="{name}" content="{html.escape(content)}" />'


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", add_metadata)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
