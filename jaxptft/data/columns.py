"""Which column holds the text, which its pair, which the label: said by the user, or told from the columns' names."""

from collections.abc import Sequence
from dataclasses import dataclass

TEXT = (
    "text", "sentence", "sentence1", "text1", "text_a", "premise", "question", "question1", "review", "content",
    "document", "tweet", "comment", "utterance",
)  # fmt: skip
PAIR = ("text_pair", "sentence2", "text2", "text_b", "hypothesis", "question2", "passage")
LABEL = ("label", "labels", "class", "target", "category", "sentiment", "gold_label", "topic")
# Two names of which each alone would be the text (QNLI).
TOGETHER = (("question", "sentence"),)


@dataclass(frozen=True)
class Columns:
    """Names of columns. None: tell it from the names found. "": the file has none, whatever its columns are called.

    `id` is never guessed: it names a column whose values are kept beside the rows, for predictions.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    id: str | None = None


def infer_columns(
    found: Sequence[str], source: str, *, chosen: Columns | None = None, labelled: bool = True
) -> Columns:
    """Settle every name of `chosen` against the columns found in `source`.

    Args:
      labelled: whether a label column is needed; if not, the result has none.

    Returns:
      Columns in which None means that there is none.

    Raises:
      ValueError: a chosen column is absent, or none or several could be meant; names the source and the columns found.
    """
    chosen = chosen or Columns()
    listing = f"columns found: {', '.join(map(repr, found)) or 'none'}"
    repeated = sorted({name for name in found if list(found).count(name) > 1})
    if repeated:
        raise ValueError(f"{source}: column {repeated[0]!r} appears twice; {listing}")
    for role, name in (("text", chosen.text), ("pair", chosen.pair), ("label", chosen.label), ("id", chosen.id)):
        if name and name not in found:
            raise ValueError(f"{source}: there is no column {name!r} for the {role}; {listing}")

    # A column that the user gave one role is not a candidate for another.
    taken = {name for name in (chosen.text, chosen.pair, chosen.label, chosen.id) if name}

    def candidates(names: Sequence[str]) -> list[str]:
        return [name for name in found if name.strip().lower() in names and name not in taken]

    def one(role: str, name: str | None, options: list[str], needed: bool) -> str | None:
        if name is not None:
            if not name and needed:
                raise ValueError(f"{source}: the {role} needs a column; {listing}")
            return name or None
        if len(options) > 1:
            raise ValueError(
                f"{source}: several columns could be the {role} ({', '.join(map(repr, options))}); choose one; "
                f"{listing}"
            )
        if not options and needed:
            raise ValueError(f"{source}: no column could be the {role}; choose one; {listing}")
        return options[0] if options else None

    texts, pairs = candidates(TEXT), candidates(PAIR)
    if chosen.text is None and chosen.pair is None and not pairs:
        for first, second in TOGETHER:
            if {name.strip().lower() for name in texts} == {first, second}:
                texts.sort(key=lambda name: name.strip().lower() != first)
                texts, pairs = texts[:1], texts[1:]
    text = one("text", chosen.text, texts, True)
    pair = one("pair", chosen.pair, pairs, False)
    label = one("label", chosen.label, candidates(LABEL), True) if labelled else None
    return Columns(text=text, pair=pair, label=label, id=chosen.id or None)
