"""L'outil des mutants, sur un projet jouet : tués, survivants et invalides ne se confondent pas."""

import contextlib
import difflib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole
TOOL = Path(__file__).resolve().parent.parent / "tools/mutants.py"

DOUBLE = "def double(x):\n    return 2 * x\n\n\ndef unused(x):\n    return x\n"
TEST_DOUBLE = (
    "from minidalle.models.double import double\n\n\ndef test_double():\n    assert double(3) == 6\n"
)

TEST_WEIGHTS = """
from pathlib import Path
import minidalle

def test_weights_are_read_through_a_link():
    weights = Path(minidalle.__file__).parent / "weights/w.safetensors"
    assert weights.is_symlink() and weights.read_text() == "poids"
"""


def patch(header: str, old: str, new: str, module: str = "minidalle/models/double.py", source=DOUBLE) -> str:
    """Un diff unifié qui remplace une ligne de `source`, avec son en-tête."""
    assert source.count(f"{old}\n") == 1
    lines = [text.splitlines(keepends=True) for text in (source, source.replace(f"{old}\n", f"{new}\n"))]
    return header + "".join(difflib.unified_diff(*lines, f"a/{module}", f"b/{module}"))


RIGHT = "    return 2 * x"
KILLED = patch("# Triple au lieu de doubler.\n", RIGHT, "    return 3 * x")
CRASHES = patch("# Une variable oubliée.\n", RIGHT, "    return 2 * y")
SURVIVES = patch("# Change une fonction sans test.\n", "    return x", "    return -x")
HANGS = patch("# Ne rend jamais la main.\n", RIGHT, "    __import__('subprocess').run(['sleep', '60'])")
ANNOUNCED = HANGS.replace("main.\n", "main.\n# Délai : c'est le bogue même.\n")
STALE = patch("# Le code a changé depuis.\n", RIGHT, "    return x", source=DOUBLE.replace("unused", "old"))
SYNTAX = patch("# Ne s'importe plus.\n", RIGHT, "    return 2 *")
RENAMED = patch("# Les tests ne trouvent plus la fonction.\n", "def double(x):", "def triple(x):")
ANONYMOUS = KILLED.removeprefix("# Triple au lieu de doubler.\n")
ELSEWHERE = KILLED.replace("minidalle/models/double.py", "tests/models/test_double.py")


@pytest.fixture
def project(tmp_path):
    """Écrit un projet jouet nommé lui aussi `minidalle`, que l'installation de l'autre ne doit pas cacher."""
    root = tmp_path / "projet"

    def write(files: dict[str, str], **patches: str) -> Path:
        files = {"pyproject.toml": "[tool.pytest.ini_options]\n", "minidalle/__init__.py": ""} | files
        files |= {f"tests/mutants/{name}.patch": text for name, text in patches.items()}
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return root

    return write


MODEL = {"minidalle/models/double.py": DOUBLE, "tests/models/test_double.py": TEST_DOUBLE}


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"TMPDIR": str(root.parent)}
    command = [sys.executable, str(TOOL), "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def verdicts(output: str) -> dict[str, str]:
    """Nom → ligne du tableau final."""
    lines = output.split("─\n", 1)[1].split("\n\n")[0].splitlines()
    return {line.split()[0]: line for line in lines}


def left_running(root: Path) -> list[str]:
    """Processus encore à l'œuvre dans les copies, qui sont à côté du projet."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            folder = str((process / "cwd").readlink())
            left += [f"{process.name} dans {folder}"] if folder.startswith(str(root.parent)) else []
    return left


def fingerprint(root: Path) -> str:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def test_all_killed(project):
    files = MODEL | {
        "minidalle/weights/w.safetensors": "poids",
        "tests/models/test_double.py": TEST_DOUBLE + TEST_WEIGHTS,
    }
    root = project(files, triple=KILLED, variable=CRASHES, quadruple=KILLED.replace("3 *", "4 *"))
    before = fingerprint(root)
    done = run(root)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = verdicts(done.stdout)
    assert "tué" in lines["triple"] and "models/test_double.py::test_double" in lines["triple"]
    assert "tué" in lines["variable"]
    assert "3 mutant(s) tué(s) sur 3." in done.stdout
    assert fingerprint(root) == before
    assert [path.name for path in root.parent.iterdir()] == ["projet"], "les copies doivent être effacées"


def test_bad_mutants_are_told_apart(project):
    root = project(
        MODEL,
        triple=KILLED,
        survit=SURVIVES,
        perime=STALE,
        syntaxe=SYNTAX,
        renomme=RENAMED,
        anonyme=ANONYMOUS,
        ailleurs=ELSEWHERE,
    )
    done = run(root)
    assert done.returncode == 1
    lines = verdicts(done.stdout)
    assert "tué" in lines["triple"]
    assert "SURVIVANT" in lines["survit"] and "1 tests passent" in lines["survit"]
    assert "INVALIDE" in lines["perime"] and "patch failed" in lines["perime"]
    assert "ne s'applique plus à minidalle/models/double.py" in lines["perime"]
    assert "INVALIDE" in lines["syntaxe"] and "SyntaxError" in lines["syntaxe"]
    assert "INVALIDE" in lines["renomme"] and "collecte" in lines["renomme"]
    assert "INVALIDE" in lines["anonyme"] and "en tête" in lines["anonyme"]
    assert "INVALIDE" in lines["ailleurs"] and "un seul module" in lines["ailleurs"]
    assert "survit : Change une fonction sans test." in done.stdout
    assert "1 mutant(s) tué(s) sur 7." in done.stdout


def test_a_timeout_counts_only_if_announced(project):
    root = project(MODEL, boucle=HANGS, attend=ANNOUNCED)
    done = run(root, "--timeout", "1", "boucle", "attend")
    assert done.returncode == 1
    lines = verdicts(done.stdout)
    assert "DÉLAI" in lines["boucle"] and "délai" in lines["attend"]
    assert "1 mutant(s) tué(s) sur 2." in done.stdout
    assert left_running(root) == []


def test_tests_must_pass_and_run_without_mutant(project):
    skipped = "import pytest\npytest.skip(allow_module_level=True)\n"
    root = project(
        {
            "minidalle/a.py": DOUBLE,
            "tests/test_a.py": TEST_DOUBLE.replace("models.double", "a").replace("6", "7"),
            "minidalle/b.py": DOUBLE,
            "tests/test_b.py": skipped,
            "minidalle/c.py": DOUBLE,
        },
        **{name: patch("# Triple.\n", RIGHT, "    return 3 * x", f"minidalle/{name}.py") for name in "abc"},
    )
    done = run(root)
    assert done.returncode == 1
    assert "tests/test_a.py : ÉCHOUENT" in done.stdout and "assert 6 == 7" in done.stdout
    for name in "abc":
        assert f"INVALIDE  0,0 s  sans mutant, tests/test_{name}.py ne passe" in verdicts(done.stdout)[name]
    assert "aucun test n'a été joué" in done.stdout
    assert "le module n'a pas de tests : écrire tests/test_c.py" in done.stdout


def test_each_model_needs_three_mutants(project, monkeypatch):
    files = MODEL | {
        "minidalle/models/__init__.py": "",
        "minidalle/models/nu.py": "",
        "minidalle/texte.py": "",
    }
    root = project(files, triple=KILLED)
    done = run(root, "--module", "models/double")
    assert done.returncode == 1
    assert "1 mutant(s) tué(s) sur 1." in done.stdout
    assert "minidalle/models/double.py : 1 mutant(s), il en faut au moins 3" in done.stdout
    assert "nu.py" not in done.stdout

    monkeypatch.syspath_prepend(TOOL.parent)
    mutants = importlib.import_module("mutants")
    everything = [mutants.read_mutant(path) for path in (root / "tests/mutants").iterdir()]
    shortage = mutants.missing_mutants(root, everything, None)
    assert [line.split(" : ")[0] for line in shortage] == [
        "minidalle/models/double.py",
        "minidalle/models/nu.py",
    ]


def test_list_and_bad_requests(project):
    root = project(MODEL, triple=KILLED, survit=SURVIVES)
    done = run(root, "--list", "--module", "minidalle.models.double")
    assert done.returncode == 0 and "Triple au lieu de doubler." in done.stdout and "survit" in done.stdout
    for arguments, words in (["rien"], "« rien »"), (["--module", "models/vae"], "« models/vae »"):
        done = run(root, *arguments)
        assert done.returncode == 2
        assert words in done.stderr and "Traceback" not in done.stderr


def test_refuses_a_package_that_is_not_the_copy(tmp_path, project):
    root = project(MODEL)
    (tmp_path / "vide").mkdir()
    subprocess.run(
        [sys.executable, "-P", str(TOOL), "--interne", "minidalle/models/double.py", "20"],
        cwd=tmp_path / "vide",
        env=os.environ | {"PYTHONPATH": str(root)},
        check=True,
        timeout=60,
    )
    report = json.loads((tmp_path / "vide/rapport.json").read_text(encoding="utf-8"))
    assert any("pas la copie" in error for error in report["errors"])
    assert report["passed"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing(project, number):
    root = project(MODEL, attend=HANGS)
    environment = os.environ | {"TMPDIR": str(root.parent)}
    command = [sys.executable, str(TOOL), "--root", str(root), "attend"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    while "Avec mutant" not in (line := process.stdout.readline()):
        assert line, "l'outil s'est arrêté avant les mutants"
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert left_running(root) == []
    assert errors.strip() == "Interrompu : l'arbre de travail est intact, les copies sont effacées."
    assert [path.name for path in root.parent.iterdir()] == ["projet"]


def test_every_mutant_of_the_project_still_applies(tmp_path):
    """Un diff que le module a dépassé ne garde plus rien."""
    shutil.copytree(
        TOOL.parents[1] / "minidalle", tmp_path / "minidalle", ignore=lambda folder, names: {"weights"}
    )
    free = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    free["GIT_CEILING_DIRECTORIES"] = str(tmp_path.parent)
    stale = [
        path.name
        for path in sorted((TOOL.parents[1] / "tests/mutants").glob("*.patch"))
        if subprocess.run(
            ["git", "apply", "--check", path], cwd=tmp_path, env=free, capture_output=True
        ).returncode
    ]
    assert not stale
