"""The findings of `data check` as tables."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from jaxptft.data.validate import shown
from jaxptft.recipes.text_table import table

_MOST_LABELS = 40  # rows of the table of labels


def show(found: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Say the findings: splits, labels, lengths, what splits share, and examples."""
    splits: Mapping[str, Any] = found["splits"]
    for name, facts in splits.items():
        say(f"{name}: {facts['source']}")
    say(table("rows", list(splits), _row_lines(splits, found["limit"])))
    if lines := _label_lines(splits):
        say(table("labels", list(splits), lines))
    if lines := _number_lines(splits):
        say(table("numbers", list(splits), lines))
    over = f" (*: all longer than {found['limit']})" if found["limit"] is not None else ""
    say(table(f"length in {found['unit']}{over}", list(splits), _length_lines(splits, found["limit"])))
    if found["leaks"]:
        lines = [
            (between, [f"{leak['rows']:,}", f"{leak['rows_with_a_text']:,}"])
            for between, leak in found["leaks"].items()
        ]
        say(table("shared between splits", ["rows", "rows with a text of it"], lines))
    for name, kinds in found["absent_labels"].items():
        for kind, said in (("absent", f"labels that {name} lacks"), ("unknown", f"labels of {name} that train lacks")):
            if kinds[kind]:
                say(f"{said}: {', '.join(kinds[kind])}")
    odd = found["contradictions"]
    if odd["texts"]:
        say(f"contradictions: {odd['texts']:,} texts have more than one label, in {odd['rows']:,} rows")
    for kind, rows in found["examples"].items():
        for example in rows:
            texts = " | ".join(map(shown, example["texts"]))
            say(f"{kind}: {example['split']}, row {example['row']}: {texts}")


def _share(count: int | None, total: int) -> str:
    return "" if count is None else f"{count:,} ({count / total:.1%})" if count else "0"


def _row_lines(splits: Mapping[str, Any], limit: int | None) -> list[tuple[str, list[str]]]:
    kinds = {
        "exact duplicates": "duplicates",
        "duplicates but for case, spacing, ends": "near_duplicates",
        "short texts": "short_texts",
    }
    lines = [("sound rows", [f"{facts['rows']:,}" for facts in splits.values()])]
    for reason in sorted({reason for facts in splits.values() for reason in facts["bad_rows"]}):
        lines.append((f"bad: {reason}", [f"{facts['bad_rows'].get(reason, 0):,}" for facts in splits.values()]))
    for said, key in kinds.items():
        lines.append((said, [_share(facts[key], facts["rows"]) for facts in splits.values()]))
    if limit is not None:
        cells = [_share(facts["truncated"], facts["rows"]) for facts in splits.values()]
        lines.append((f"longer than {limit}", cells))
    return lines


def _label_lines(splits: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    labelled = [facts["labels"] or {} for facts in splits.values()]
    total = sum((Counter(labels) for labels in labelled), Counter())
    names = sorted(total, key=lambda name: (-total[name], name))
    rows = [facts["rows"] for facts in splits.values()]
    lines = [
        (name, [_share(labels.get(name, 0), total) for labels, total in zip(labelled, rows, strict=True)])
        for name in names[:_MOST_LABELS]
    ]
    if len(names) > _MOST_LABELS:
        lines.append((f"and {len(names) - _MOST_LABELS} more", [""] * len(splits)))
    if any(facts["without_labels"] for facts in splits.values()):
        cells = [_share(facts["without_labels"], facts["rows"]) for facts in splits.values()]
        lines.append(("(no label)", cells))
    return lines


def _number_lines(splits: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    numbered = [facts.get("numbers") or {} for facts in splits.values()]
    names = next((list(numbers) for numbers in numbered if numbers), [])
    return [(name, [f"{numbers[name]:.4g}" if numbers else "" for numbers in numbered]) for name in names]


def _length_lines(splits: Mapping[str, Any], limit: int | None) -> list[tuple[str, list[str]]]:
    lengths = [facts["lengths"] for facts in splits.values()]
    rows = [facts["rows"] for facts in splits.values()]
    lines = [(name, [f"{each[name]:,}" for each in lengths]) for name in ("median", "90%", "99%", "longest")]
    histograms = [each["histogram"] for each in lengths]
    used = max(place for counts in histograms for place, count in enumerate(counts) if count)
    largest = max(count / total for counts, total in zip(histograms, rows, strict=True) for count in counts)
    for place in range(used + 1):
        low = 1 if place == 0 else 2 ** (place + 2) + 1
        name = f"{low}-{2 ** (place + 3)}" if place < len(histograms[0]) - 1 else f"{low} or more"
        past = " *" if limit is not None and low > limit else ""
        cells = []
        for counts, total in zip(histograms, rows, strict=True):
            share = counts[place] / total
            cells.append(f"{'#' * round(12 * share / largest)} {share:.1%}" if counts[place] else "")
        lines.append((name + past, cells))
    return lines
