"""Dernières retouches : restes d'anglais, défauts du thème, poids du site, annexes du PDF."""

import re
import unicodedata
from pathlib import Path

from sphinx.application import Sphinx

REPAIRED = ("**/*.html", "_static/togglebutton.js", "_static/scripts/sphinx-book-theme.js")
REPAIRS = {
    'title="Toggle primary sidebar"': 'title="Sommaire" aria-label="Afficher ou masquer le sommaire"',
    'title="Toggle secondary sidebar"': 'title="Plan de la page" aria-label="Afficher ou masquer le plan"',
    'aria-label="Toggle hidden content"': 'aria-label="Afficher ou masquer le contenu"',
    'aria-label="Version warning"': 'aria-label="Avertissement de version"',
    'aria-label="Main"': 'aria-label="Sommaire"',
    # Une liste ne contient que des éléments de liste ; ce rôle-là est abandonné par la norme.
    'role="doc-biblioentry"': 'role="listitem"',
    # Le thème suppose un plan de la page dès qu'il y a une note de marge : erreur JavaScript sinon.
    '("div.bd-sidebar-secondary").classList': '("div.bd-sidebar-secondary")?.classList',
}
# Refusé par Chromium quand la page est ouverte depuis un dossier ; la feuille de style charge ces polices.
FONT_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\n?')
# Les icônes viennent de la police ; ce script, 1,5 Mo sur chaque page, les redessine.
ICON_SCRIPT = re.compile(r'<script src="[^"]*/fontawesome/[^"]*/js/all\.min\.js[^"]*"></script>\n?')
# L'accueil est chapters/index.html, mais c'est index.html que l'on ouvre.
REDIRECTION = """<!DOCTYPE html>
<html lang="fr">
<head><meta charset="utf-8"><title>{title}</title><meta http-equiv="refresh" content="0; url={home}"></head>
<body><p><a href="{home}">{title}</a></p></body>
</html>
"""
# sphinx-mathjax-offline copie MathJax en entier : 24 Mo, dont 2 servent.
MATHJAX_KEPT = re.compile(
    r"tex-chtml\.js|output/chtml/fonts/woff-v2/|input/tex/extensions/|a11y/assistive-mml\.js"
)
# Une entrée d'index, accolades emboîtées comprises.
INDEX_ENTRY = re.compile(r"\\index\{((?:[^{}]|\{(?:[^{}]|\{\})*\})*)\}")
INDEX_GROUP = re.compile(rf"((?:{INDEX_ENTRY.pattern})+\\ignorespaces *\n)(\\sphinxAtStartPar\n)")
# L'index du site est une page du sommaire ; celui du PDF est imprimé par \printindex.
INDEX_PAGE = re.compile(
    r"\\sphinxstepscope\s+\\chapter\{Index\}\s+(?:\\label\{\\detokenize\{genindex:[^}]*\}\})+"
)


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        finish_html(Path(app.outdir), f"{app.config.root_doc}.html", app.config.html_title)
    elif exception is None and app.builder.format == "latex":
        finish_latex(Path(app.outdir))


def finish_html(out: Path, home: str, title: str) -> None:
    for file in [file for pattern in REPAIRED for file in out.glob(pattern)]:
        text = ICON_SCRIPT.sub("", FONT_PRELOAD.sub("", file.read_text(encoding="utf-8")))
        for wrong, right in REPAIRS.items():
            text = text.replace(wrong, right)
        file.write_text(text, encoding="utf-8")
    (out / "index.html").write_text(REDIRECTION.format(home=home, title=title), encoding="utf-8")
    for script in out.glob("_static/vendor/fontawesome/*/js/all.min.js"):
        script.unlink()
    mathjax = out / "_static" / "mathjax"
    for file in mathjax.rglob("*"):
        if file.is_file() and not MATHJAX_KEPT.match(file.relative_to(mathjax).as_posix()):
            file.unlink()


def finish_latex(out: Path) -> None:
    for file in out.glob("*.tex"):
        text = file.read_text(encoding="utf-8")
        text = text.replace(r"\part{Annexes}", r"\appendix\part{Annexes}")
        text = INDEX_ENTRY.sub(_index_entry, INDEX_PAGE.sub("", text))
        file.write_text(tidy_latex(text), encoding="utf-8")


def tidy_latex(text: str) -> str:
    """Ce que Sphinx laisse de travers, et que l'on voit sur le papier."""
    # Une entrée d'index suit son paragraphe à la page suivante ; devant lui, elle restait sur la page d'avant.
    text = INDEX_GROUP.sub(r"\3\1", text)
    # Une case vide n'a pas de paragraphe, qui prendrait une ligne ; un code n'a pas de lignes vides à la fin.
    text = re.sub(r"\\sphinxAtStartPar\n\n(?=&|\\\\)", "", text)
    return re.sub(r"\n{2,}(?=\\end\{sphinxVerbatim\})", "\n", text)


def _index_entry(found: re.Match) -> str:
    """La même entrée, triée sans ses accents : makeindex range par octets, « é » après « z »."""
    key, _, shown = found[1].replace(r"\sphinxhyphen{}", "-").partition("@")
    plain = unicodedata.normalize("NFD", key.lower().replace("œ", "oe").replace("’", " "))
    return rf"\index{{{plain.encode('ascii', 'ignore').decode()}@{shown}}}"


def setup(app: Sphinx) -> dict:
    app.connect("build-finished", finish, priority=900)  # après la copie de MathJax
    return {"parallel_read_safe": True, "parallel_write_safe": True}
