"""Where files are kept between runs, and how a folder appears there whole or not at all.

Several processes may want the same folder at once. Each fills a temporary folder of its own and renames it into
place: the first one wins, the others find it there and throw theirs away. A reader never sees half a folder.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
RENAMES = 5  # tries at taking the place of an unsound folder that other processes replace too


def cache_folder() -> Path:
    """The user's cache folder for jaxptft: `$JAXPTFT_CACHE`, or `jaxptft` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    own = os.environ.get("JAXPTFT_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "jaxptft"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[bytes | str]) -> str:
    """SHA-256 of a sequence of parts, each preceded by its length, so that moving a boundary changes it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def read_manifest(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any] | None:
    """The folder's manifest if it holds `expected` and every file listed has its recorded size and hash, else None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if any(manifest[key] != value for key, value in expected.items()):
            return None
        for name, (size, sha256) in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != size or file_sha256(path) != sha256:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock that this file stands for; whoever else wants it waits. The system frees it when a holder dies.

    Raises OSError if the file cannot be made. Where the system has no such locks (Windows, some network drives) nothing
    is held, and processes at once do the same work twice.
    """
    with path.open("wb") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def publish(final: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Make the folder `final` appear atomically, replacing one that is not sound.

    Args:
      fill: writes the files into the empty folder it is given, and returns what the manifest says besides their sizes
        and hashes. If it raises, nothing is left behind.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        facts = dict(fill(fresh))
        files = {
            path.relative_to(fresh).as_posix(): (path.stat().st_size, file_sha256(path))
            for path in sorted(fresh.rglob("*"))
            if path.is_file()
        }
        (fresh / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1), encoding="utf-8")
        for attempt in range(RENAMES):
            try:
                fresh.rename(final)
                return
            except OSError:
                if read_manifest(final, facts) is not None:
                    return  # another process was quicker, and its folder is sound
                if attempt == RENAMES - 1:
                    raise
                with contextlib.suppress(FileNotFoundError):
                    final.rename(Path(scratch) / f"unsound-{attempt}")
