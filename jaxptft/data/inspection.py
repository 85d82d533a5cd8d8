"""A split read once and kept as hashes, and what splits have in common: duplicates, leaks, contradicting labels.

Of each row there remain some 50 bytes, whatever the length of its text. Two texts are the same when they agree but for
case, width of characters, spacing, and punctuation at their ends.
"""

import hashlib
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from jaxptft.data.columns import Columns
from jaxptft.data.readers import Source
from jaxptft.data.tables import checked_rows, settle_columns
from jaxptft.data.targets import Number, Target
from jaxptft.data.validate import Report, Tally

CHUNK = 1000  # rows measured at a time
_ENDS = " .,;!?…\"'“”‘’«»。，；！？"

Hashes = UInt64[np.ndarray, " rows"]
Lengths = Callable[[list[str], "list[str] | None"], Sequence[int]]


@dataclass(frozen=True)
class Scan:
    """What is kept of a split's sound rows, in their order; `report` says how many were not."""

    source: str
    report: Report
    rows: Int[np.ndarray, " rows"]  # where each stands in the source
    exact: Hashes  # of the text, or the pair
    same: Hashes  # of what it comes to without case, spacing and the like
    either: Hashes  # as `same`, of a pair in either order
    single: UInt64[np.ndarray, "rows texts"]  # as `same`, of each text alone
    labels: Hashes | None  # one value for each label, or set of labels
    names: Counter[str]  # how many rows have each label; of numbers, none
    unlabelled: int  # rows of label sets without a label
    numbers: Float[np.ndarray, " rows"] | None
    lengths: Int[np.ndarray, " rows"]
    short: int  # rows with a text of hardly any letters

    def __len__(self) -> int:
        return len(self.rows)


def normalised(text: str) -> str:
    """The text in one case, width and spacing, without punctuation at its ends; as it is where that leaves nothing.

    >>> normalised("  A  Fine film! "), normalised("!?")
    ('a fine film', '!?')
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.strip(_ENDS) or plain


def words_of(texts: list[str], pairs: list[str] | None) -> list[int]:
    """How many words, as spaces part them, each text or pair has."""
    counts = [len(text.split()) for text in texts]
    return counts if pairs is None else [n + len(pair.split()) for n, pair in zip(counts, pairs, strict=True)]


def scan(
    source: Source,
    *,
    columns: Columns | None,
    target: Target,
    labelled: bool = True,
    lengths: Lengths = words_of,
    shortest: int = 3,
) -> Scan:
    """Read a source once.

    Args:
      lengths: how long each text (or pair) of some rows is.
      shortest: a text with fewer letters and digits counts as short.

    Raises:
      ValueError: no row can be read, or a column is not there.
    """
    settled, label_columns = settle_columns(source, columns, labelled, target)
    tally = Tally(source.name, "skip")
    hashes = {name: array("Q") for name in ("exact", "same", "either", "single", "labels")}
    rows, numbers, sizes = array("q"), array("d"), array("q")
    names: Counter[str] = Counter()
    short = unlabelled = 0
    texts: list[str] = []
    pairs: list[str] = []

    def measure() -> None:
        sizes.extend(lengths(texts, pairs if settled.pair else None))
        texts.clear()
        pairs.clear()

    for row in checked_rows(source, settled, label_columns, target, tally):
        parts = [row.text] if row.pair is None else [row.text, row.pair]
        plain = [normalised(part) for part in parts]
        rows.append(row.number)
        for name, values in (("exact", parts), ("same", plain), ("either", sorted(plain))):
            hashes[name].append(_hash(values))
        hashes["single"].extend(_hash([part]) for part in plain)
        short += any(sum(map(str.isalnum, part)) < shortest for part in parts)
        if row.labels:
            label: Any = row.labels if target.columns else row.labels[0]
            if isinstance(target, Number):
                numbers.append(label)
                hashes["labels"].append(_hash([repr(label + 0.0)]))
            else:
                present = _names(label, target)
                unlabelled += not present
                names.update(present)
                hashes["labels"].append(_hash(sorted(present)))
        texts.append(row.text)
        pairs += parts[1:]
        if len(texts) == CHUNK:
            measure()
    measure()
    if not rows:
        raise ValueError(f"{source.name}: every row was refused; {tally.report()}")
    found = {name: np.frombuffer(values, np.uint64) for name, values in hashes.items() if len(values)}
    return Scan(
        source=source.name,
        report=tally.report(),
        rows=np.frombuffer(rows, np.int64),
        exact=found["exact"],
        same=found["same"],
        either=found["either"],
        single=found["single"].reshape(len(rows), -1),
        labels=found.get("labels"),
        names=names,
        unlabelled=unlabelled,
        numbers=np.frombuffer(numbers, np.float64) if numbers else None,
        lengths=np.frombuffer(sizes, np.int64),
        short=short,
    )


def _names(label: Any, target: Target) -> tuple[str, ...]:
    if target.columns:
        return tuple(name for name, flag in zip(target.columns, label, strict=True) if flag)
    return (label,) if isinstance(label, str) else label


def _hash(parts: Iterable[str]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def repeated(hashes: Hashes) -> Bool[np.ndarray, " rows"]:
    """Which rows are the same as an earlier one.

    >>> repeated(np.array([7, 5, 7, 7], np.uint64)).tolist()
    [False, False, True, True]
    """
    flags = np.ones(len(hashes), bool)
    flags[np.unique(hashes, return_index=True)[1]] = False
    return flags


def leaked(earlier: Scan, later: Scan) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Which rows of the later split are in the earlier one (a pair in either order), and which have a text of it."""
    return np.isin(later.either, earlier.either), np.any(np.isin(later.single, earlier.single), axis=1)


def contradictions(scans: Sequence[Scan]) -> list[Int[np.ndarray, " group"]]:
    """The groups of rows that have one text (or pair) and more than one label; rows count through all scans in turn."""
    labelled = [(scan.same, scan.labels) for scan in scans if scan.labels is not None]
    places = np.concatenate(
        [
            start + np.arange(len(scan))
            for scan, start in zip(scans, np.cumsum([0, *map(len, scans)]), strict=False)
            if scan.labels is not None
        ]
        or [np.zeros(0, np.int64)]
    )
    if not labelled:
        return []
    same, labels = (np.concatenate(parts) for parts in zip(*labelled, strict=True))
    order = np.lexsort((places, labels, same))
    same, labels, places = same[order], labels[order], places[order]
    starts = np.flatnonzero(np.concatenate([[True], same[1:] != same[:-1]]))
    ends = np.append(starts[1:], len(same))
    odd = labels[starts] != labels[ends - 1]  # sorted by label: the first and last differ where any two do
    return [np.sort(places[start:end]) for start, end in zip(starts[odd], ends[odd], strict=True)]


def texts_at(source: Source, columns: Columns | None, wanted: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """The text, or pair, in some rows of a source, which is read again up to the last of them."""
    left = set(wanted)
    settled, _ = settle_columns(source, columns, False, Number())
    names = [name for name in (settled.text, settled.pair) if name]
    found: dict[int, tuple[str, ...]] = {}
    for number, values in source.rows(names) if left else ():
        if number in left and isinstance(values, list):
            found[number] = tuple(
                value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values
            )
            left.remove(number)
            if not left:
                break
    return found
