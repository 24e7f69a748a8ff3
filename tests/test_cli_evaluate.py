"""`minidalle evaluate` et `minidalle rate` : ce qu'ils écrivent, et ce qu'ils disent quand ils ne peuvent pas."""

import csv
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from minidalle import cli
from minidalle.data.captioned import CaptionedImages
from minidalle.evaluation import rating_page, statistics

HEADER = "image,legende,evaluateur,note"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Dix fois moins de tirages : l'intervalle est plus grossier, le test plus court.
    monkeypatch.setattr(statistics, "bootstrap", partial(statistics.bootstrap, resamples=200))


def run(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], prog_name="minidalle")


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*args):
    """Le message d'une commande qui doit échouer : une phrase et le code 2."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    message = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"Erreur : [^a-zé].*\.", message)
    return message


def write(name="notes.csv", lines=(), header=HEADER):
    Path(name).write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return name


def table(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def crossed(raters=("Ana", "Bob"), images=12, clip=True):
    """Trois légendes par image, notées à un degré près, et un score de CLIP qui s'en approche."""
    rng = np.random.default_rng(0)
    lines = []
    for image in range(images):
        for caption, truth in enumerate((0, 2, 4)):
            score = f",{truth / 4 + rng.normal(0, 0.2):.4f}" if clip else ""
            lines += [
                f"{image}.png,légende {caption},{rater},{np.clip(truth + rng.integers(-1, 2), 0, 4)}{score}"
                for rater in raters
            ]
    return lines


WITH_CLIP = f"{HEADER},clip"


# --- evaluate ratings -----------------------------------------------------------------------------


def test_ratings_tells_agreement_and_comparison_and_writes_them():
    out = succeed("evaluate", "ratings", write(lines=crossed(), header=WITH_CLIP), "--out", "etude")
    assert "Légendes : 36 ; images : 12." in out and re.search(r"\n  Ana : 36 notes, moyenne \d,\d\d\n", out)
    estimate = r"(-?\d,\d{3}) \[(-?\d,\d{3}) ; (-?\d,\d{3})\]\n"
    for name in (
        "comme des rangs, ce qu'elles sont",
        "comme des quantités",
        "Spearman (rangs)",
        "τ-b de Kendall",
    ):
        value, low, high = (
            float(x.replace(",", ".")) for x in re.search(re.escape(name) + ".*? : " + estimate, out).groups()
        )
        assert 0 < low < value < high <= 1
    assert re.search(r"rangées pareil : \d+ sur \d+(?: \(\d+ écartés\))?, soit " + estimate, out)
    assert out.splitlines()[-3:] == ["etude/moyennes.csv", "etude/notes.svg", "etude/humains-clip.svg"]
    for name in ("notes", "humains-clip"):
        svg = Path(f"etude/{name}.svg").read_text(encoding="utf-8")
        assert "<svg" in svg and "note" in svg
    rows = table("etude/moyennes.csv")
    assert len(rows) == 36 and all(row["notes"] == "2" and row["clip"] for row in rows)
    given = [row for row in table("notes.csv") if row["image"] == "3.png"]
    for row in rows[9:12]:
        mean = np.mean([float(r["note"]) for r in given if r["legende"] == row["legende"]])
        assert float(row["moyenne"]) == mean


def test_ratings_without_clip_writes_no_comparison_and_says_what_is_missing():
    lines = crossed(clip=False)
    out = succeed("evaluate", "ratings", write(lines=lines[:-1]), "--out", "etude")
    assert "CLIP" not in out and "Bob : 35 notes" in out and "; 1 manquent" in out
    assert sorted(path.name for path in Path("etude").iterdir()) == ["moyennes.csv", "notes.svg"]
    assert succeed("evaluate", "ratings", "notes.csv") == out.partition("etude/")[0]
    assert not Path("moyennes.csv").exists()


def test_several_files_make_one_study():
    lines = crossed(clip=False)
    together = succeed("evaluate", "ratings", write(lines=lines))
    write("a.csv", [line for line in lines if ",Ana," in line])
    write("b.csv", [line for line in lines if ",Bob," in line])
    assert succeed("evaluate", "ratings", "a.csv", "b.csv") == together


def test_what_is_undefined_is_said_in_words():
    one = succeed("evaluate", "ratings", write(lines=crossed(("Ana",)), header=WITH_CLIP))
    assert one.count("indéfini. L'accord des juges veut au moins deux juges") == 2
    assert "corrélation de Spearman (rangs) : 0," in one
    lines = [re.sub(r",\d,", ",2,", line) for line in crossed()]
    flat = succeed("evaluate", "ratings", write(lines=lines, header=WITH_CLIP), "--out", "etude")
    assert flat.count("indéfini. L'accord des juges n'a pas de sens quand toutes les notes sont égales.") == 2
    assert (
        flat.count("indéfini. Il n'y a pas de corrélation quand, d'un côté, toutes les notes sont égales.")
        == 3
    )
    assert "indéfini. Aucune paire à comparer" in flat and "nan" not in flat.lower()
    single = succeed("evaluate", "ratings", write(lines=["a,x,Ana,3,0.5"], header=WITH_CLIP), "--out", "seul")
    assert "nan" not in single.lower() and single.count("indéfini.") == 10


def test_continuous_grades_and_odd_names_are_drawn():
    lines = [f"{i},x,{who},{i / 7:.3f}" for i in range(9) for who in ("$x", "_Zoé", "a_b^c")]
    succeed("evaluate", "ratings", write(lines=lines), "--out", "etude")
    svg = Path("etude/notes.svg").read_text(encoding="utf-8")
    assert "juge $x" in svg and "juge _Zoé" in svg and "juge a_b^c" in svg


@pytest.mark.parametrize(
    ("lines", "header", "expected"),
    [
        ([], HEADER, "aucune note"),
        (["a,x,Ana,"], HEADER, "ligne 2 : « note » manque"),
        (["a,x,Ana,bien"], HEADER, "« bien » n'est pas un nombre"),
        (["a,x,Ana,1"], "image,legende,evaluateur,points", "pas de colonne « note »"),
        (["a,x,Ana,1,0.2", "b,x,Ana,1,"], WITH_CLIP, "CLIP n'a pas noté « x » (b)"),
    ],
)
def test_faulty_ratings(lines, header, expected):
    assert expected in fail("evaluate", "ratings", write(lines=lines, header=header), "--out", "etude")
    assert not Path("etude").exists()


def test_absent_ratings():
    assert "« absent.csv » est illisible (rien à cet endroit)" in fail("evaluate", "ratings", "absent.csv")
    assert "manque « FICHIER.csv… »" in fail("evaluate", "ratings")


# --- rate -----------------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    folder = Path("images")
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("un mouton\nun carré\n", encoding="utf-8")
    return folder


@pytest.fixture
def served(monkeypatch):
    """Ce que `rate` aurait servi, sans le servir : Ctrl-C aussitôt."""
    calls = []

    def application(images, items, answers, rater):
        calls.append((items, answers, rater))
        return "application"

    def serve(app, port, ready):
        calls[-1] += (port,)
        ready("http://127.0.0.1:1/")
        calls[-1][1]._file.close()  # ce que fait la fin du processus
        raise KeyboardInterrupt

    monkeypatch.setattr(rating_page, "application", application)
    monkeypatch.setattr(rating_page, "serve", serve)
    return calls


def test_rate_serves_every_pair_in_an_order_of_the_rater_s_own(pictures, served):
    assert succeed("rate", pictures, "--rater", " Ana ", "--no-browser").splitlines() == [
        "8 paires à noter sur http://127.0.0.1:1/ ; Ctrl-C pour arrêter.",
        "Notes enregistrées dans « notes.csv ».",
    ]
    options = ["--no-browser", "--seed", 1, "-n", 2, "--port", 0, "--out", "b/n.csv"]
    succeed("rate", pictures, "--rater", "Bob", *options)
    (ana, _, name, port), (bob, answers, _, other_port) = served
    assert (name, port, other_port, answers.path) == ("Ana", 8421, 0, Path("b/n.csv"))
    pairs = rating_page.choose(CaptionedImages.open(pictures))
    assert ana == rating_page.order(pairs, "Ana", 0) and sorted(ana) == sorted(pairs)
    assert len(bob) == 4 and len({item.image for item in bob}) == 2
    assert Path("notes.csv").read_text() == f"{HEADER}\n"


def test_rate_opens_a_browser_and_reports_a_torn_line(pictures, served, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    Path("notes.csv").write_text(f'{HEADER}\n0.png,un mouton,Ana,3\n0.png,"un')
    result = run("rate", pictures, "--rater", "Ana")
    assert result.stderr == 'Attention : ligne interrompue, retirée de « notes.csv » : 0.png,"un\n'
    assert opened == ["http://127.0.0.1:1/"] and len(served[0][1].grades) == 1


def test_rate_exports_the_last_grades(pictures):
    write(lines=["0.png,un mouton,Ana,3", "0.png,un mouton,Bob,1", "0.png,un mouton,Ana,0"])
    assert succeed("rate", pictures, "--export", "propre.csv") == "propre.csv\n"
    assert Path("propre.csv").read_text() == f"{HEADER}\n0.png,un mouton,Ana,0\n0.png,un mouton,Bob,1\n"


def test_rate_refuses_what_is_impossible(pictures, served):
    for args in ([], ["--rater", ""], ["--rater", "  "]):
        assert "Qui note ? Ajouter --rater NOM." in fail("rate", pictures, *args)
    assert "« rien »" in fail("rate", "rien", "--rater", "Ana")
    assert "« -n ENTIER » veut un nombre positif" in fail("rate", pictures, "--rater", "Ana", "-n", 0)
    assert "illisible" in fail("rate", pictures, "--export", "x.csv")
    Path("poeme.txt").write_text("rien\n")
    assert "n'est pas un fichier de notes" in fail("rate", pictures, "--rater", "Ana", "--out", "poeme.txt")
    (pictures / "2.png").write_bytes(b"")
    assert "2.png" in fail("rate", pictures, "--rater", "Ana")
    assert served == [] and not Path("notes.csv").exists()


def test_two_processes_cannot_share_a_file(pictures):
    held = rating_page.Answers(Path("notes.csv"))
    assert "« notes.csv » sert déjà à une autre page" in fail(
        "rate", pictures, "--rater", "Bob", "--no-browser"
    )
    held._file.close()


def test_help_loads_nothing_heavy():
    code = "import sys, minidalle.cli; print({'bottle', 'scipy', 'numpy', 'matplotlib', 'torch'} & set(sys.modules))"
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "set()\n"
