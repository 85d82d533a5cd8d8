"""The SHA-256 of every file of an export, in a file that `sha256sum --check` reads too."""

from pathlib import Path

from jaxptft.export.runner import SUMS, digest


def write_sums(folder: Path) -> None:
    """Write the sums of all files that are in the folder now; `runner.verify` checks them."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{digest(folder / name)}  {name}\n" for name in files), encoding="utf-8")
