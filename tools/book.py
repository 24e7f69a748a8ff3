"""Construit le livre : `python -m tools.book {html,pdf,notebooks,nbval,links}`, à lancer à la racine du projet.

html       _build/html/index.html, chapitres exécutés ; une alerte ou une cellule en erreur le fait échouer
pdf        _build/latex/minidalle.pdf, par xelatex
notebooks  _build/notebooks/*.ipynb, sans sorties, en Markdown ordinaire, pour Jupyter, Colab ou VS Code
nbval      _build/nbval/*.ipynb, avec les sorties de la dernière construction, textes et figures, pour pytest --nbval
links      suit chaque lien vers le dehors, par le réseau ; un lien mort le fait échouer
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BUILD = Path("_build")
CACHE = BUILD / ".jupyter_cache"
CHAPTERS = Path("chapters")
OVERFLOW = 10.0  # points ; un mot ou une figure qui dépasse de moins se voit à peine
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}

# Ce que xelatex demande : un fichier témoin de chaque paquet Debian, cherché par kpsewhich puis fontconfig.
PDF_PACKAGES = {
    "texlive-xetex": "xelatex",
    "texlive-lang-french": "french.ldf",
    "texlive-latex-extra": "titlesec.sty",
    "texlive-latex-recommended": "booktabs.sty",
    "texlive-fonts-recommended": "pzdr.tfm",
    "latexmk": "latexmk",
    "lmodern": "lmroman10-regular.otf",
    "tex-gyre": "ec-qplr.tfm",
    "fonts-texgyre": "texgyrepagella-regular.otf",
    "fonts-texgyre-math": "texgyrepagella-math.otf",
    "fonts-dejavu-core": "DejaVuSansMono.ttf",
    "fonts-symbola": "Symbola_hint.ttf",
    "fonts-lohit-deva": "Lohit-Devanagari.ttf",
}


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Une construction à la fois : deux cibles lancées par `make -j` partagent le même cache."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fingerprint() -> str:
    """Empreinte de ce dont les sorties dépendent en plus du code des cellules."""
    digest = hashlib.sha256(sys.version.encode())
    sources = (p for p in Path("minidalle").rglob("*") if p.is_file() and p.suffix != ".pyc")
    for path in [Path("requirements.txt"), *sorted(sources)]:
        digest.update(f"{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    for name in sorted(os.environ):
        if name.startswith("MINIDALLE_") and name != "MINIDALLE_CACHE":
            digest.update(f"{name}={os.environ[name]}\0".encode())
    return digest.hexdigest()


def refresh_cache() -> None:
    """Vide le cache d'exécution, dont la clé n'est que le code des cellules, si le reste a changé."""
    stamp, current = CACHE / "empreinte.txt", fingerprint()
    if not stamp.exists() or stamp.read_text() != current:
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        stamp.write_text(current)
    refresh_readers()


def refresh_readers() -> None:
    """Oublie l'exécution des chapitres qui lisent la prose du livre (`book_text`), si elle a changé."""
    from jupyter_cache import get_cache

    from minidalle.data.texts import book_text

    stamp, current = CACHE / "prose.txt", hashlib.sha256(book_text(CHAPTERS).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == current:
        return
    cache = get_cache(CACHE)
    for _, notebook in chapters():
        if any("book_text" in cell.source for cell in notebook.cells if cell.cell_type == "code"):
            with contextlib.suppress(KeyError):  # jamais exécuté
                cache.remove_cache(cache.match_cache_notebook(notebook).pk)
    stamp.write_text(current)


def kernel_environment() -> dict[str, str]:
    """Environnement des noyaux : sans les réglages personnels d'IPython, ni l'alerte d'ipykernel sur TCP."""
    folder = (BUILD / ".ipython").absolute()
    profile = folder / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 'ERROR'\n")
    return os.environ | {"IPYTHONDIR": str(folder)}


def execute_ahead(workers: int = 2) -> None:
    """Exécute, deux à la fois, les chapitres que le cache n'a pas : Jupyter Book les ferait un à un.

    Un chapitre qui échoue n'entre pas dans le cache : Jupyter Book le refera, et dira pourquoi.
    """
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from jupyter_cache.executors.utils import single_nb_execution

    cache, stale = get_cache(CACHE), []
    for path, notebook in chapters():
        if any(cell.cell_type == "code" for cell in notebook.cells):
            try:
                cache.match_cache_notebook(notebook)
            except KeyError:
                stale.append((path, notebook))
    os.environ |= kernel_environment()
    options = {"allow_errors": False, "timeout": 180, "meta_override": True}
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        running = {
            pool.submit(single_nb_execution, notebook, cwd=str(path.parent.absolute()), **options): (
                path,
                notebook,
            )
            for path, notebook in stale
        }
        for future in concurrent.futures.as_completed(running):
            (path, notebook), result = running[future], future.result()
            print(f"{path} : {'échec' if result.err else 'exécuté'} en {result.time:.0f} s", flush=True)
            if not result.err:
                data = {"execution_seconds": result.time}
                bundle = CacheBundleIn(notebook, str(path.absolute()), data=data)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


UNBUILT = "Le livre n'est pas construit : voir les messages « WARNING » et « ERROR » ci-dessus."


def build(output: Path, *builder: str, complaint: str = UNBUILT) -> None:
    """Lance Jupyter Book ; `--all` relit toutes les pages, sinon une faute ancienne resterait tue."""
    shutil.rmtree(output, ignore_errors=True)
    refresh_cache()
    execute_ahead()
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "--all", "-W", "-n", "--keep-going"]
    if subprocess.run([*command, "--builder", *builder, "."], env=kernel_environment()).returncode:
        sys.exit(f"\n{complaint}")


def html() -> None:
    with lock():
        build(BUILD / "html", "html")
    print(f"\nLe livre est construit : {BUILD / 'html' / 'index.html'}")


def links() -> None:
    with lock():
        complaint = (
            "Des liens ne mènent nulle part, ou le réseau manque : voir les lignes « broken » ci-dessus."
        )
        build(BUILD / "linkcheck", "custom", "--custom-builder", "linkcheck", complaint=complaint)
    print(f"\nTous les liens mènent quelque part : {BUILD / 'linkcheck' / 'output.txt'}")


def missing_packages() -> list[str]:
    """Paquets Debian dont le fichier témoin n'est pas trouvé."""
    if not (shutil.which("kpsewhich") and shutil.which("fc-list")):
        return list(PDF_PACKAGES)
    fonts = subprocess.run(["fc-list", ":", "file"], capture_output=True, text=True).stdout

    def present(witness: str) -> bool:
        known = subprocess.run(["kpsewhich", witness], capture_output=True).returncode == 0
        return known or f"/{witness}:" in fonts or shutil.which(witness) is not None

    return [package for package, witness in PDF_PACKAGES.items() if not present(witness)]


def log_faults(log: str) -> list[str]:
    """Ce que le journal de xelatex dit de grave : un signe absent, un débordement visible, un renvoi mort."""
    faults = []
    if lost := sorted(set(re.findall(r"Missing character: There is no (\S+)", log))):
        faults.append(f"signes absents des polices, à ajouter dans _latex/minidalle.sty : {' '.join(lost)}")
    for points, place in re.findall(r"Overfull \\.box \(([\d.]+)pt too (?:wide|high)\) (.*)", log):
        if float(points) > OVERFLOW:
            faults.append(f"débordement de {points} pt, {place}")
    # Une figure plus haute que la page, un renvoi sans cible, une étiquette double.
    return faults + re.findall(r"LaTeX Warning: ((?:Float too large|There were) .*)", log)


def pdf() -> None:
    if packages := missing_packages():
        sys.exit(
            "Il manque des paquets du système pour le PDF ; les installer par :\n"
            f"  sudo apt-get install --no-install-recommends {' '.join(packages)}"
        )
    output = BUILD / "latex"
    with lock():
        build(output, "pdflatex")
        log = (output / "minidalle.log").read_text(encoding="utf-8", errors="replace")
    if faults := log_faults(log):
        sys.exit("\nLe PDF n'est pas présentable :\n" + "\n".join(f"- {fault}" for fault in faults))
    print(f"\nLe PDF est construit : {output / 'minidalle.pdf'}")


def chapters() -> Iterator[tuple[Path, "NotebookNode"]]:  # noqa: F821
    """Chaque page et son carnet."""
    import jupytext

    for path in sorted(CHAPTERS.rglob("*.md")):
        # fmt est nécessaire : sans lui, une page sans en-tête réclame pandoc.
        yield path, jupytext.read(path, fmt="md:myst")


def write_notebook(folder: Path, path: Path, notebook) -> None:
    import nbformat

    target = folder / path.relative_to(CHAPTERS).with_suffix(".ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook.metadata["kernelspec"] = KERNEL
    nbformat.write(notebook, target)


def notebooks() -> None:
    from jupyter_cache import get_cache

    from _ext.notebooks import Catalogue, glued, plain

    folder, cache = BUILD / "notebooks", get_cache(CACHE)
    with lock():
        shutil.rmtree(folder, ignore_errors=True)
        catalogue, values = Catalogue(Path()), {}
        pages = list(chapters())
        for _, notebook in pages:
            with contextlib.suppress(KeyError):  # pas encore exécuté : la prose garde les noms de ses nombres
                values |= glued(cache.get_cache_bundle(cache.match_cache_notebook(notebook).pk).nb)
        for path, notebook in pages:
            name = path.with_suffix("").as_posix()
            write_notebook(folder, path, plain(notebook, name, catalogue, values))
    print(f"Les chapitres sont en carnets dans {folder}")


def comparable_outputs(cell) -> list:
    """Sorties que nbval compare : le texte et les dessins, sans leur double en PDF ni la sortie d'erreur."""
    kept = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name != "stdout":
            continue
        if "data" in output:
            kinds = (kind for kind in output.data if kind != "application/pdf")
            output.data = {kind: output.data[kind] for kind in kinds}
        kept.append(output)
    return kept


def nbval() -> None:
    from jupyter_cache import get_cache

    folder, cache = BUILD / "nbval", get_cache(CACHE)
    with lock():
        shutil.rmtree(folder, ignore_errors=True)
        for path, notebook in chapters():
            cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
            if not cells:
                continue
            try:
                done = cache.get_cache_bundle(cache.match_cache_notebook(notebook).pk).nb
            except KeyError:
                sys.exit(f"{path} n'a pas été exécuté depuis son dernier changement : lancer « make book ».")
            executed = [cell for cell in done.cells if cell.cell_type == "code"]
            for number, (cell, source) in enumerate(zip(cells, executed, strict=True), 1):
                # Sans numéro d'exécution, nbval lance la cellule mais ne compare rien.
                cell.execution_count, cell.outputs = number, comparable_outputs(source)
            write_notebook(folder, path, notebook)


if __name__ == "__main__":
    {"html": html, "pdf": pdf, "notebooks": notebooks, "nbval": nbval, "links": links}[sys.argv[1]]()
