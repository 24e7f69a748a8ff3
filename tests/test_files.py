"""Écriture atomique."""

import pytest

from minidalle.errors import MinidalleError
from minidalle.files import atomic_write


def test_replaces_the_whole_content_and_creates_folders(tmp_path):
    path = tmp_path / "nouveau" / "a.txt"
    for content in ("un texte plus long", "court"):
        with atomic_write(path, "w") as file:
            file.write(content)
        assert path.read_text(encoding="utf-8") == content
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"ancien")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"nouveau")
        raise error
    assert path.read_bytes() == b"ancien"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_content_is_invisible_until_the_end(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"


def test_same_permissions_as_an_ordinary_file(tmp_path):
    (tmp_path / "ordinaire").write_bytes(b"")
    with atomic_write(tmp_path / "atomique") as file:
        file.write(b"")
    assert (tmp_path / "atomique").stat().st_mode == (tmp_path / "ordinaire").stat().st_mode


def test_impossible_folder_is_a_clear_error(tmp_path):
    (tmp_path / "fichier").write_bytes(b"")
    message = "fichier/a.txt.*choisir un autre dossier"
    with pytest.raises(MinidalleError, match=message), atomic_write(tmp_path / "fichier" / "a.txt"):
        pass


def test_full_disk_is_a_clear_error_and_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"ancien")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MinidalleError, match="libérer de la place"), atomic_write(path) as file:
        file.write(b"nouveau")
    assert path.read_bytes() == b"ancien"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
