"""Names that came with a file, for a message: each on one line, and none longer than one."""

from collections.abc import Sequence
from reprlib import repr as shown

LONGEST = 200  # characters; names of published models have some 80


def is_plain(name: str) -> bool:
    """Whether a name can stand in a message as it is."""
    return 0 < len(name) <= LONGEST and name.isprintable()


def spelt(name: str) -> str:
    """The name; quoted, escaped and shortened where it is not plain."""
    return name if is_plain(name) else shown(name)


def reason(error: BaseException) -> str:
    """What an error of another library says, on one line and not without end: some quote the file they were given."""
    said = " ".join(str(error).split())
    return said if len(said) <= LONGEST else said[: LONGEST - 3] + "..."


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first twelve of many."""
    return ", ".join(map(spelt, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
