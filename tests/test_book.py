"""La construction du livre échoue quand il le faut, et son cache ne ment pas."""

import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools.book import log_faults
from tools.check import NBVAL

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[1]
HEADER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n"
CELL = "```{code-cell} python3\n%s\n```\n"
INDEX = "# Un livre d'essai\n\nRien.\n"
READ = "from pathlib import Path\nprint(Path('../minidalle/value.py').read_text())"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Ne rien écrire : le test lit la sortie de Sphinx."""


class Book:
    """Un livre d'une page exécutée, bâti avec les réglages du vrai."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("_config.yml", "favicon.svg", "references.bib", "requirements.txt"):
            shutil.copy(ROOT / name, folder)
        for name in ("_ext", "_static", "_latex"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.write("_toc.yml", self.toc("essai"))
        self.write("chapters/index.md", INDEX)
        self.write("minidalle/value.py", "ancienne valeur")

    @staticmethod
    def toc(*pages: str) -> str:
        files = ", ".join(f"{{file: chapters/{page}}}" for page in pages)
        return f"format: jb-book\nroot: chapters/index\nchapters: [{files}]\n"

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def page(self, *cells: str) -> None:
        self.write("chapters/essai.md", HEADER + "# Un essai\n\n" + "\n".join(CELL % cell for cell in cells))

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
        return done.returncode, done.stdout

    def build(self, target: str = "html") -> tuple[int, str]:
        return self.run("-m", "tools.book", target)

    def html(self) -> str:
        return (self.folder / "_build/html/chapters/essai.html").read_text(encoding="utf-8")


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def test_a_failing_cell_fails_every_build(book: Book) -> None:
    """Par défaut, jupyter-book rend 0 ; avec son cache, il rend 1 puis 0."""
    book.page("x = 1", "1 / 0")
    for _ in range(2):
        status, output = book.build()
        assert status != 0
        assert "essai.md : la cellule de code n° 2 échoue" in output
        assert "ZeroDivisionError" in output


def test_chapters_are_executed_once_and_ahead_of_the_build(book: Book) -> None:
    book.page("print(6 * 7)")
    code, said = book.build()
    assert code == 0, said
    assert "chapters/essai.md : exécuté" in said and "Executing notebook" not in said
    assert "42" in book.html()
    code, said = book.build()
    assert code == 0 and "exécuté en" not in said
    book.page("1 / 0")
    code, said = book.build()
    assert code and "chapters/essai.md : échec" in said and "ZeroDivisionError" in said


def test_outputs_follow_the_library(book: Book) -> None:
    """La clé de jupyter-cache est le code des cellules : la bibliothèque peut changer sans lui."""
    book.page(READ)
    assert book.build()[0] == 0
    assert "ancienne valeur" in book.html()
    book.write("minidalle/value.py", "nouvelle valeur")
    status, output = book.build()
    assert (status, "nouvelle valeur" in book.html()) == (0, True), output
    status, output = book.build()
    assert status == 0
    assert "Using cached notebook" in output


def test_outputs_follow_the_prose_they_read(book: Book) -> None:
    """Un chapitre qui lit le texte des autres est refait quand il change, et lui seul."""
    book.write("_toc.yml", book.toc("essai", "autre"))
    book.page("from minidalle.data.texts import book_text\nprint(book_text('.'))")
    book.write("chapters/autre.md", HEADER + "# Autre\n\n" + CELL % "1")
    assert book.build()[0] == 0
    assert "\nRien.\n" in book.html()
    book.write("chapters/index.md", INDEX + "\nUn paragraphe de plus.\n")
    status, output = book.build()
    assert (status, "\nRien.\nUn paragraphe de plus.\n" in book.html()) == (0, True), output
    assert output.count("exécuté en") == 1  # le seul chapitre qui lit la prose
    assert book.build()[1].count("Using cached notebook") == 2


def test_an_unreproducible_output_fails(book: Book) -> None:
    """nbval refait chaque cellule et compare : un nombre, une courbe tirés sans graine ne passent pas."""
    imports = "import random\nimport matplotlib\nfrom matplotlib import pyplot as plt\n"
    imports += "from matplotlib_inline.backend_inline import set_matplotlib_formats\n"
    style = "set_matplotlib_formats('svg', 'pdf')\nmatplotlib.rcParams['svg.hashsalt'] = 'essai'\nprint(1)"
    curves = ("_ = plt.plot([1, 2])", "_ = plt.plot([random.random()] * 2)")
    book.page(imports + style, "print(random.random())", *curves)
    assert book.build()[0] == 0
    assert book.build("nbval")[0] == 0
    status, output = book.run("-m", "pytest", *NBVAL)
    assert status == 1
    assert "essai.ipynb::Cell 1" in output
    assert "essai.ipynb::Cell 3" in output
    assert "figure de " in output
    assert "2 failed, 2 passed" in output


def test_a_dead_reference_fails(book: Book) -> None:
    book.page("x = 1")
    book.write("chapters/index.md", INDEX + "\nVoir {ref}`absent`.\n")
    status, output = book.build()
    assert status != 0
    assert "absent" in output


def test_a_dead_link_to_the_outside_is_named(book: Book) -> None:
    """« make links » suit les liens : une adresse qui répond passe, une adresse morte est nommée."""
    site = book.folder / "site"
    site.mkdir()
    (site / "vivante.html").write_text("<title>Oui</title>", encoding="utf-8")
    handler = partial(QuietHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        book.page("x = 1")
        book.write(
            "chapters/index.md", f"{INDEX}\n[Oui]({address}/vivante.html) [Non]({address}/morte.html)\n"
        )
        status, output = book.build("links")
        server.shutdown()
    assert status != 0
    broken = [line for line in output.splitlines() if "broken " in line and address in line]
    assert ["morte.html" in line for line in broken] == [True]
    assert "ne mènent nulle part" in output
    assert not (book.folder / "_build/html").exists()  # le livre construit n'est pas touché


def test_notebooks_need_nothing_else(book: Book) -> None:
    import nbformat

    book.page("x = 1")
    assert book.build("notebooks")[0] == 0
    notebook = nbformat.read(book.folder / "_build/notebooks/essai.ipynb", as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code"] == ["x = 1"]
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    nbformat.validate(notebook)


def test_pdf_names_the_missing_packages(book: Book) -> None:
    """Avant d'exécuter quoi que ce soit."""
    book.page("x = 1")
    status, output = book.run("-m", "tools.book", "pdf", PATH="")
    assert status != 0
    assert "sudo apt-get install --no-install-recommends texlive-xetex" in output
    assert not (book.folder / "_build").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Missing character: There is no 🐑 in font texgyrepagella!", "🐑"),
        (
            r"Overfull \hbox (41.30208pt too wide) detected at line 12398",
            "41.30208 pt, detected at line 12398",
        ),
        (r"Overfull \vbox (10.5pt too high) has occurred while \output is active []", "10.5 pt"),
        ("LaTeX Warning: Float too large for page by 35.2pt on input line 1250.", "line 1250"),
        ("LaTeX Warning: There were undefined references.", "undefined references"),
        ("LaTeX Warning: There were multiply-defined labels.", "multiply-defined"),
    ],
)
def test_pdf_is_refused_when_its_log_tells_a_fault(line: str, told: str) -> None:
    (fault,) = log_faults(f"[12]\n{line}\n []\n\n[13]\n")
    assert told in fault


def test_pdf_allows_what_nobody_sees() -> None:
    log = r"Overfull \hbox (7.2pt too wide) in paragraph at lines 5--6\nUnderfull \vbox (badness 10000)"
    assert log_faults(log + "\nLaTeX Warning: Label(s) may have changed.\n") == []
