import json
from pathlib import Path

import pytest

from jaxptft.data.cache import MANIFEST, cache_folder, fingerprint, publish, read_manifest


def fill(folder: Path) -> dict[str, int]:
    (folder / "deep").mkdir()
    (folder / "deep/a.bin").write_bytes(b"abc")
    return {"version": 1}


def test_cache_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("JAXPTFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/jaxptft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/jaxptft"


def test_fingerprint_sees_the_boundaries():
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint(["a"]) == fingerprint([b"a"])
    assert fingerprint([]) != fingerprint([""])


def test_published_folder_is_sound(tmp_path):
    publish(tmp_path / "out", fill)
    manifest = read_manifest(tmp_path / "out", {"version": 1})
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest == {"version": 1, "files": {"deep/a.bin": [3, sha]}}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_manifest(tmp_path / "out", {"version": 2}) is None
    assert read_manifest(tmp_path / "none", {}) is None


@pytest.mark.parametrize("damage", ["changed", "longer", "gone", "manifest", "manifest kind"])
def test_damage_is_seen_and_replaced(tmp_path, damage):
    final = tmp_path / "out"
    publish(final, fill)
    path = final / "deep/a.bin"
    if damage == "changed":
        path.write_bytes(b"abd")
    elif damage == "longer":
        path.write_bytes(b"abcd")
    elif damage == "gone":
        path.unlink()
    else:
        (final / MANIFEST).write_text("{" if damage == "manifest" else json.dumps([1]))
    assert read_manifest(final, {"version": 1}) is None
    publish(final, fill)
    assert read_manifest(final, {"version": 1}) is not None
    assert path.read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_first_of_two_wins(tmp_path):
    final = tmp_path / "out"

    def slow(folder: Path) -> dict[str, int]:
        publish(final, fill)  # another process is done in the meantime
        (final / "mark").touch()
        return fill(folder)

    publish(final, slow)
    assert (final / "mark").exists()


def test_a_failure_leaves_nothing(tmp_path):
    def fails(folder: Path) -> dict[str, int]:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path / "out", fails)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_taken_is_an_error(tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    publish(tmp_path / "out", fill)  # what is in the way is not sound, and goes
    assert read_manifest(tmp_path / "out", {"version": 1}) is not None
