"""What is wrong with a data set before a model learns it: duplicates, leaks, contradictions, balance, lengths."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from jaxptft.recipes.settings import Settings, nearest
from jaxptft.recipes.tasks.settings import Columns, MultiLabel

if TYPE_CHECKING:
    from jaxptft.data.inspection import Scan
    from jaxptft.data.readers import Source

KINDS = ("bad_rows", "duplicates", "leaks", "contradictions", "absent_labels", "short_texts", "truncated")


class Config(Settings):
    """Look a data set over: jaxptft data check --train train.csv --eval dev.csv --test test.csv --model DIR"""

    train: str
    """rows to learn from, as `finetune --train` takes them; of several splits, all are looked at"""
    eval: str | None = None
    test: str | None = None
    """labels that are withheld (-1) or absent are no mistake here"""
    task: Literal["classification", "regression", "multi_label"] = "classification"
    """what the labels are: a class, a number, or any number of labels"""
    columns: Columns = Columns()
    labels: MultiLabel = MultiLabel()
    model: str | None = None
    """count lengths in its tokens, against what it takes; without, and without --tokenizer, in words"""
    tokenizer: str | None = None
    """a folder with a tokenizer, in place of a model"""
    max_length: int | None = Field(default=None, ge=3)
    """the limit, in tokens (default: what the model or tokenizer takes)"""
    shortest: int = Field(default=3, ge=1)
    """a text with fewer letters and digits counts as short"""
    examples: int = Field(default=3, ge=0)
    """how many of each finding are shown"""
    out: Path | None = None
    """a JSON file for the findings"""
    fail_on: str = ""
    """findings that end with an error, separated by commas: bad_rows, duplicates, leaks, contradictions, absent_labels,
    short_texts, truncated"""
    overwrite: bool = False
    """replace --out if it exists"""

    @field_validator("fail_on")
    @classmethod
    def _known(cls, value: str) -> str:
        for kind in filter(None, value.split(",")):
            if kind not in KINDS:
                raise ValueError(f"there is no finding {kind!r}{nearest(kind, list(KINDS))}; known: {', '.join(KINDS)}")
        return value


def run(config: Config, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Say what was found, in tables, and return it as what `out` holds.

    Raises ValueError, after all was said, where there is something of a kind that `fail_on` names; and
    FileExistsError, FileNotFoundError or ValueError for what cannot be read or written.
    """
    from jaxptft import data
    from jaxptft.data import inspection
    from jaxptft.data.sources import open_source
    from jaxptft.recipes.data_check_tables import show

    if config.out is not None and config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another --out, or pass --overwrite")
    columns = data.Columns(config.columns.text, config.columns.pair, config.columns.label)
    lengths, unit, limit = _measure(config)
    sources = {name: open_source(source, split) for name, (source, split) in _splits(config).items()}
    scans = {
        name: _scan(source, config, columns=columns, lengths=lengths, lenient=name == "test")
        for name, source in sources.items()
    }
    found: dict[str, Any] = {
        "unit": unit,
        "limit": limit,
        "splits": {name: _split_facts(scan, limit) for name, scan in scans.items()},
        "leaks": _leaks(scans),
        "absent_labels": _absent(scans),
        "contradictions": _contradictions(scans, config.examples),
        "examples": {},
    }
    shown = _examples(scans, found["contradictions"]["groups"], config.examples)
    texts = {
        name: inspection.texts_at(
            source, columns, {row for rows in shown.values() for split, row in rows if split == name}
        )
        for name, source in sources.items()
    }
    found["examples"] = {
        kind: [{"split": split, "row": row, "texts": list(texts[split].get(row, ()))} for split, row in rows]
        for kind, rows in shown.items()
    }
    found["counts"] = _counts(found)
    show(found, say)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [kind for kind in config.fail_on.split(",") if kind and found["counts"][kind]]
    if failed:
        said = ", ".join(f"{kind} ({found['counts'][kind]})" for kind in failed)
        raise ValueError(f"the data has {said}, which fail_on names; mend the data, or leave these out of fail_on")
    return found


def _splits(config: Config) -> dict[str, tuple[str, str | None]]:
    """The source and, where it has several, the split behind train, eval and test."""
    from jaxptft import data

    held = data.split_names(config.train)
    several = len(held) > 1
    found: dict[str, tuple[str, str | None]] = {"train": (config.train, "train" if several else None)}
    if config.eval is not None:
        found["eval"] = (config.eval, data.pick_split(config.eval))
    elif several and (chosen := data.choose_evaluation_split(held)):
        found["eval"] = (config.train, chosen)
    if config.test is not None:
        found["test"] = (config.test, data.pick_split(config.test, "test"))
    elif several and "test" in held:
        found["test"] = (config.train, "test")
    return found


def _measure(config: Config) -> tuple[Any, str, int | None]:
    """How long texts are, in which unit, and how long they may be."""
    from jaxptft import data
    from jaxptft.data.inspection import words_of

    if config.model is None and config.tokenizer is None:
        if config.max_length is not None:
            raise ValueError("max_length is in tokens; give --model or --tokenizer to count them")
        return words_of, "words", None
    if config.model is not None and config.tokenizer is not None:
        raise ValueError("both model and tokenizer are given; give one")
    limits = [config.max_length] if config.max_length is not None else []
    if config.model is not None:
        from jaxptft.recipes.model_source import open_model

        folder, checkpoint = open_model(config.model, heads=())
        limits.append(checkpoint.config.max_length)
    else:
        folder = Path(str(config.tokenizer))
    tokenizer = data.load_tokenizer(folder)
    limits += [tokenizer.model_max_length] if tokenizer.model_max_length < 10**9 else []  # more is transformers' "none"

    def tokens_of(texts: list[str], pairs: list[str] | None) -> list[int]:
        inputs: list[Any] = texts if pairs is None else list(zip(texts, pairs, strict=True))
        return [len(encoding.ids) for encoding in tokenizer.backend_tokenizer.encode_batch_fast(inputs)]

    return tokens_of, "tokens", min(limits) if limits else None


def _scan(source: "Source", config: Config, *, columns: Any, lengths: Any, lenient: bool) -> "Scan":
    """Read a split; where `lenient`, without labels if it has none."""
    from jaxptft import data
    from jaxptft.data.inspection import scan

    targets = {
        "classification": data.OneClass(),
        "regression": data.Number(),
        "multi_label": data.LabelSet(config.labels.columns, config.labels.delimiter),
    }
    options: dict[str, Any] = {"columns": columns, "target": targets[config.task], "lengths": lengths}
    try:
        return scan(source, shortest=config.shortest, **options)
    except ValueError:
        if not lenient:
            raise
        try:
            unlabelled = scan(source, shortest=config.shortest, labelled=False, **options)
        except ValueError:
            unlabelled = None
        if unlabelled is None:
            raise
        return unlabelled


def _split_facts(scan: "Scan", limit: int | None) -> dict[str, Any]:
    import numpy as np

    from jaxptft.data.inspection import repeated

    quantiles = np.quantile(scan.lengths, [0.5, 0.9, 0.99], method="lower").tolist()
    edges = [0, *(2**power for power in range(3, 13)), np.inf]
    facts: dict[str, Any] = {
        "source": scan.source,
        "rows": len(scan),
        "bad_rows": scan.report.by_reason,
        "duplicates": int(repeated(scan.exact).sum()),
        "near_duplicates": int(repeated(scan.same).sum()),
        "short_texts": scan.short,
        "labels": None if scan.labels is None else dict(sorted(scan.names.items())),
        "without_labels": scan.unlabelled,
        "lengths": {
            **dict(zip(("median", "90%", "99%"), quantiles, strict=True)),
            "longest": int(scan.lengths.max()),
            # Up to 8, up to 16, ...; the last bin is open.
            "histogram": np.histogram(scan.lengths - 0.5, edges)[0].tolist(),
        },
        "truncated": None if limit is None else int((scan.lengths > limit).sum()),
    }
    if scan.numbers is not None:
        values = scan.numbers
        facts["labels"] = None
        facts["numbers"] = {
            "smallest": float(values.min()),
            "median": float(np.median(values)),
            "mean": float(values.mean()),
            "largest": float(values.max()),
            "deviation": float(values.std()),
        }
    return facts


def _leaks(scans: Mapping[str, "Scan"]) -> dict[str, dict[str, int]]:
    from jaxptft.data.inspection import leaked

    found, names = {}, list(scans)
    for place, later in enumerate(names):
        for earlier in names[:place]:
            whole, part = leaked(scans[earlier], scans[later])
            found[f"{earlier} in {later}"] = {"rows": int(whole.sum()), "rows_with_a_text": int(part.sum())}
    return found


def _absent(scans: Mapping[str, "Scan"]) -> dict[str, dict[str, list[str]]]:
    """For each labelled split but train: labels it lacks, and labels that train lacks."""
    known = set(scans["train"].names)
    return {
        name: {"absent": sorted(known - set(scan.names)), "unknown": sorted(set(scan.names) - known)}
        for name, scan in scans.items()
        if name != "train" and scan.labels is not None
    }


def _contradictions(scans: Mapping[str, "Scan"], most: int) -> dict[str, Any]:
    """How many texts have more than one label, in how many rows, and where the first few are."""
    import numpy as np

    from jaxptft.data.inspection import contradictions

    groups = contradictions(list(scans.values()))
    owners = [(name, row) for name, scan in scans.items() for row in scan.rows.tolist()] if groups and most else []
    return {
        "texts": len(groups),
        "rows": int(np.sum([len(group) for group in groups], dtype=np.int64)),
        "groups": [[owners[place] for place in group[:2].tolist()] for group in groups[:most]] if owners else [],
    }


def _examples(scans: Mapping[str, "Scan"], groups: list[Any], most: int) -> dict[str, list[tuple[str, int]]]:
    """Some rows of each finding, by their split and row."""
    from jaxptft.data.inspection import leaked, repeated

    found: dict[str, list[tuple[str, int]]] = {"duplicates": [], "leaks": [], "contradictions": []}
    names = list(scans)
    for place, (name, scan) in enumerate(scans.items()):
        found["duplicates"] += [(name, row) for row in scan.rows[repeated(scan.same)][:most].tolist()]
        for earlier in names[:place]:
            rows = scan.rows[leaked(scans[earlier], scan)[0]][:most].tolist()
            found["leaks"] += [(name, row) for row in rows if (name, row) not in found["leaks"]]
    found["contradictions"] = [tuple(entry) for group in groups for entry in group]
    return {kind: rows[: most if kind != "contradictions" else 2 * most] for kind, rows in found.items()}


def _counts(found: Mapping[str, Any]) -> dict[str, int]:
    """How many there are of each kind that `fail_on` may name."""
    splits = found["splits"].values()
    total: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    for facts in splits:
        total["bad_rows"] += sum(facts["bad_rows"].values())
        total["duplicates"] += facts["near_duplicates"]
        total["short_texts"] += facts["short_texts"]
        total["truncated"] += facts["truncated"] or 0
    total["leaks"] = sum(leak["rows"] for leak in found["leaks"].values())
    total["contradictions"] = found["contradictions"]["texts"]
    total["absent_labels"] = sum(len(names) for kinds in found["absent_labels"].values() for names in kinds.values())
    return dict(total)
