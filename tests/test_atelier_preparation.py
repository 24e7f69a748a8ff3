"""Ce que la construction du livre dépose pour l'atelier : scripts recollables, moteur vérifié, absence dite."""

import base64
import gzip
import io
import json
import re
import tarfile

import numpy as np
import pytest

from _ext import atelier
from minidalle.errors import MinidalleError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Un cache vide, et aucun npm."""
    monkeypatch.setenv("MINIDALLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(atelier.shutil, "which", lambda name: None)
    return tmp_path / "cache"


def archive(**files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{atelier.ENGINE[name]}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def fake_npm(folder, content):
    """Un npm qui dépose toujours la même archive, là où on la lui demande."""
    (folder / "paquet.tgz").write_bytes(content)
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\ncp "{folder}/paquet.tgz" "$4"\n')
    npm.chmod(0o755)
    return str(npm)


def test_pieces_make_the_parcel_again():
    parcel = np.random.default_rng(0).bytes(2 * atelier.PIECE + 1000)  # incompressible : trois morceaux
    pieces = atelier._pieces("colis", parcel)
    assert list(pieces) == ["colis-1.js", "colis-2.js", "colis-3.js"]
    told = [re.fullmatch(r'atelier\.receive\("colis","(.*)"\);\n', p.decode())[1] for p in pieces.values()]
    assert gzip.decompress(base64.b64decode("".join(told))) == parcel


def test_an_engine_in_the_cache_needs_no_npm(cache):
    files = {name: name.encode() for name in atelier.ENGINE}
    cache.mkdir()
    (cache / f"onnxruntime-web-{atelier.VERSION}.tgz").write_bytes(archive(**files))
    assert atelier.engine() == files


def test_npm_fetches_the_engine_once(cache, tmp_path, monkeypatch):
    content = archive(**dict.fromkeys(atelier.ENGINE, b"x"))
    npm = fake_npm(tmp_path, content)
    monkeypatch.setattr(atelier.shutil, "which", lambda name: npm)
    with pytest.raises(MinidalleError, match="un autre onnxruntime-web@"):
        atelier.engine()
    assert not list(cache.rglob("*.tgz"))
    digest = atelier.hashlib.sha512(content).digest()
    monkeypatch.setattr(atelier, "SHA512", base64.b64encode(digest).decode())
    assert atelier.engine()["moteur"] == b"x"
    monkeypatch.setattr(atelier.shutil, "which", lambda name: None)
    assert atelier.engine()["moteur"] == b"x"


def test_a_failing_npm_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(atelier.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(MinidalleError, match="n'a pas pu télécharger"):
        atelier.engine()


def test_without_an_engine_the_page_says_why():
    files = atelier.scripts()
    assert list(files) == ["reglages.js"]
    told = re.fullmatch(r"atelier\.prepare\((.*)\);\n", files["reglages.js"].decode())[1]
    assert json.loads(told)["missing"] == "la commande npm n'est pas installée"
