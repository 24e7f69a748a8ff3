"""Le paquet construit : il emporte ses poids et ses résultats, et marche loin du dépôt."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[1]
DATA = ("weights/*.safetensors", "weights/*.md", "results/*.json", "evaluation/results/*.csv")
DATA += ("evaluation/*.toml", "evaluation/*.html", "**/*.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out, source = tmp_path_factory.mktemp("roue"), tmp_path_factory.mktemp("source")
    # Une copie : « build/ », à côté du projet, garderait des modules effacés depuis.
    shutil.copytree(ROOT / "minidalle", source / "minidalle", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True, capture_output=True)
    (built,) = out.glob("minidalle-*.whl")
    return built


def test_the_wheel_carries_all_that_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("minidalle/")}
    package = ROOT / "minidalle"
    expected = {f"minidalle/{p.relative_to(package).as_posix()}" for g in DATA for p in package.glob(g)}
    assert expected == packed
    assert wheel.stat().st_size < 40e6


def test_an_installed_wheel_draws_away_from_the_repository(wheel, tmp_path):
    home = tmp_path / "paquets"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(home)}
    told = "import minidalle; print(minidalle.__file__)"
    where = subprocess.run(
        [sys.executable, "-P", "-c", told], cwd=tmp_path, env=environment, check=True, capture_output=True
    ).stdout.decode()
    assert where.strip() == str(home / "minidalle" / "__init__.py"), "ce n'est pas le paquet installé"
    draw = ["-m", "minidalle", "generate", "un carré bleu", "-o", "carre.png", "--seed", "1"]
    subprocess.run([sys.executable, *draw], cwd=tmp_path, env=environment, check=True, capture_output=True)
    with Image.open(tmp_path / "carre.png") as drawing:
        assert drawing.width == drawing.height >= 64
