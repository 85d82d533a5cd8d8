"""How tags mark entities among words: IOB1, IOB2 and IOBES (also called BIOES), read strictly, and turned into another.

    scheme   one entity of one word   of three words         two of one type that touch
    IOB1     I-X                      I-X I-X I-X            I-X I-X B-X I-X
    IOB2     B-X                      B-X I-X I-X            B-X I-X B-X I-X
    IOBES    S-X                      B-X I-X E-X            B-X E-X B-X E-X

Tags that fit no entity of the scheme are part of none: in IOB2 an I- that goes on with nothing; in IOBES what no E-
closes; in IOB1 a B- that no entity of its type stands before, though an I- after it opens one. These are seqeval's
strict rules. `lenient_spans` has the rules of conlleval, and of seqeval unless told otherwise, which make an entity of
any run of tags of one type.

Source: Ramshaw and Marcus, 1995, arXiv:cmp-lg/9505040; Tjong Kim Sang and Veenstra, 1999, arXiv:cs/9907006, section 2.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

Scheme = Literal["IOB1", "IOB2", "IOBES"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
PREFIXES: dict[Scheme, str] = {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES"}
OUTSIDE = "O"
UNNAMED = "_"  # the type of tags that are a prefix alone


class Span(NamedTuple):
    """An entity: its type, its first word, and the word after its last one."""

    type: str
    start: int
    end: int


def split_tag(tag: str) -> tuple[str, str]:
    """`B-PER` -> ("B", "PER"), `B` -> ("B", "_"), `O` -> ("O", "").

    Raises ValueError at any other tag.
    """
    prefix, dash, kind = tag.partition("-")
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if len(prefix) == 1 and prefix in "BIES" and bool(dash) == bool(kind):
        return prefix, kind or UNNAMED
    raise ValueError(f"tag {tag!r} is no entity's; expected O, or B-, I-, E- or S- and a type")


def join_tag(prefix: str, kind: str) -> str:
    """The tag of which `split_tag` makes these."""
    return prefix if kind == UNNAMED else f"{prefix}-{kind}"


def spans(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """The entities of a sentence, in order; equal to seqeval's with mode="strict".

    >>> spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"], "IOB2")
    [Span(type='PER', start=0, end=2), Span(type='LOC', start=4, end=5)]
    """
    parts = [split_tag(tag) for tag in tags]
    for prefix, kind in parts:
        if prefix != OUTSIDE and prefix not in PREFIXES[scheme]:
            raise ValueError(f"tag {join_tag(prefix, kind)!r} is not of {scheme}")
    if scheme == "IOB1":
        return _iob1_spans(parts)
    found = []
    at = 0
    while at < len(parts):
        prefix, kind = parts[at]
        end = at + 1
        whole = prefix == "S"
        if prefix == "B":
            while end < len(parts) and parts[end] == ("I", kind):
                end += 1
            whole = scheme == "IOB2" or (end < len(parts) and parts[end] == ("E", kind))
            end += scheme == "IOBES" and whole
        if whole:
            found.append(Span(kind, at, end))
        at = end
    return found


def _iob1_spans(parts: list[tuple[str, str]]) -> list[Span]:
    found = []
    before = (OUTSIDE, "")
    at = 0
    while at < len(parts):
        prefix, kind = parts[at]
        end = at + 1
        if prefix == "I":
            opens = before[0] != "I" or before[1] != kind
        else:
            opens = prefix == "B" and before[0] != OUTSIDE and before[1] == kind
        if opens:
            while end < len(parts) and parts[end] == ("I", kind):
                end += 1
            # A B- that stands before the B- of another type has no end by seqeval's table.
            if parts[end - 1][0] == "I" or end == len(parts) or parts[end][0] != "B" or parts[end][1] == kind:
                found.append(Span(kind, at, end))
        before = parts[end - 1]
        at = end
    return found


def lenient_spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence by the rules of conlleval; equal to seqeval's where no mode is asked for.

    >>> lenient_spans(["I-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [Span(type='PER', start=0, end=2), Span(type='LOC', start=3, end=4), Span(type='LOC', start=4, end=5)]
    """
    found = []
    start = 0
    last, last_kind = OUTSIDE, ""
    for at, (prefix, kind) in enumerate([*map(split_tag, tags), (OUTSIDE, "")]):
        changes = kind != last_kind
        if last in "ES" or (last in "BI" and prefix in "BSO") or (last != OUTSIDE and changes):
            found.append(Span(last_kind, start, at))
        if prefix in "BS" or (last in "ESO" and prefix in "EI") or (prefix != OUTSIDE and changes):
            start = at
        last, last_kind = prefix, kind
    return found


def span_tags(found: Iterable[Span], words: int, scheme: Scheme) -> list[str]:
    """The tags of a sentence of so many words with these entities, which are in order and do not overlap."""
    tags = [OUTSIDE] * words
    before: Span | None = None
    for span in found:
        kind, start, end = span
        touches = before is not None and before.type == kind and before.end == start
        first = "I" if scheme == "IOB1" and not touches else "B"
        tags[start:end] = [join_tag(first, kind), *[join_tag("I", kind)] * (end - start - 1)]
        if scheme == "IOBES":
            tags[end - 1] = join_tag("S" if end - start == 1 else "E", kind)
        before = span
    return tags


def convert_tags(tags: Sequence[str], scheme: Scheme, to: Scheme) -> list[str]:
    """Tags of one scheme in another; those that are part of no entity become O.

    >>> convert_tags(["I-PER", "I-PER", "B-PER", "O"], "IOB1", "IOBES")
    ['B-PER', 'E-PER', 'S-PER', 'O']
    """
    return span_tags(spans(tags, scheme), len(tags), to)


def loose_tags(tags: Sequence[str], scheme: Scheme) -> list[int]:
    """The words whose tags are part of no entity, though they are not O."""
    inside = {word for span in spans(tags, scheme) for word in range(span.start, span.end)}
    return [word for word, tag in enumerate(tags) if tag != OUTSIDE and word not in inside]


def detect_scheme(
    sentences: Sequence[Sequence[str]],
    *,
    prefer: Scheme | None = None,
    place: Callable[[int], str] = "sentence {}".format,
) -> Scheme:
    """The scheme in which every tag is part of an entity: `prefer` if it is one, or else IOB2 or IOB1.

    Tags with E- or S- are IOBES, whatever else they are. ValueError where the others are neither IOB1 nor IOB2; it
    says why by the `place` of two sentences, which are counted from 0.
    """
    if any(tag[0] in "ES" for tags in sentences for tag in tags):
        return "IOBES"
    wrong: dict[Scheme, int] = {}
    candidates: list[Scheme] = [*([] if prefer is None else [prefer]), "IOB2", "IOB1"]
    for scheme in candidates:
        first = next((row for row, tags in enumerate(sentences) if convert_tags(tags, scheme, scheme) != [*tags]), None)
        if first is None:
            return scheme
        wrong[scheme] = first
    first, second = wrong["IOB2"], wrong["IOB1"]
    raise ValueError(
        f"its tags are of no one scheme: {place(first)} is not IOB2 ({_shown(sentences[first])}), and {place(second)} "
        f"is not IOB1 ({_shown(sentences[second])}); correct them, or say which scheme they shall be read as"
    )


def _shown(tags: Sequence[str]) -> str:
    text = " ".join(tags)
    return text if len(text) <= 60 else text[:57] + "..."


def scheme_of_names(names: Iterable[str]) -> Scheme | None:
    """The scheme that a model's outputs are of: IOBES, or IOB2; None where they are not tags of entities."""
    prefixes = set()
    for name in names:
        try:
            prefixes.add(split_tag(name)[0])
        except ValueError:
            return None
    if OUTSIDE not in prefixes or len(prefixes) == 1:
        return None
    return "IOBES" if prefixes & {"E", "S"} else "IOB2"


def all_tags(types: Iterable[str], scheme: Scheme) -> tuple[str, ...]:
    """Every tag that the scheme has for these types: O, then those of each type in alphabetical order."""
    return (OUTSIDE, *(join_tag(prefix, kind) for kind in sorted(set(types)) for prefix in PREFIXES[scheme]))
