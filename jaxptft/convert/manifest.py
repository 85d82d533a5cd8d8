"""The account of a conversion: which tensor went where, and which did not."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One tensor of a source; `flax_path` is empty where it became no parameter."""

    hf_name: str
    flax_path: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What became of every tensor of a checkpoint.

    heads: the heads taken, by their keys in the parameters; classes: how many they tell apart, None where that is not
    free. used: became parameters. kept: known buffers and copies of parameters, written back on export. unused: no
    parameter (the heads of other tasks, and what was allowed by pattern), written back only when the same kind of model
    is exported. missing: what the table has and the source lacks. tied: names whose values equal another's by design.
    problems: why an import would be refused, one line each; empty for whatever was imported.
    """

    family: str
    heads: tuple[str, ...] = ()
    classes: int | None = None
    used: tuple[Entry, ...] = ()
    kept: tuple[Entry, ...] = ()
    unused: tuple[Entry, ...] = ()
    missing: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and strings, ready for JSON."""
        entries = {
            name: [{**entry._asdict(), "shape": list(entry.shape)} for entry in getattr(self, name)]
            for name in ("used", "kept", "unused")
        }
        return {
            **asdict(self),
            **entries,
            "heads": list(self.heads),
            "missing": list(self.missing),
            "tied": dict(self.tied),
            "problems": list(self.problems),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Manifest":
        """The inverse of `to_dict`."""
        entries = {
            name: tuple(Entry(**{**entry, "shape": tuple(entry["shape"])}) for entry in value[name])
            for name in ("used", "kept", "unused")
        }
        return cls(
            family=value["family"],
            heads=tuple(value["heads"]),
            classes=value["classes"],
            missing=tuple(value["missing"]),
            tied=tuple(value["tied"].items()),
            problems=tuple(value["problems"]),
            **entries,
        )

    def __str__(self) -> str:
        heads = ", ".join(self.heads) or "none"
        over = f" over {self.classes} classes" if self.classes else ""
        lines = [f"family {self.family}, heads {heads}{over}"]
        for title, entries in (("used", self.used), ("kept", self.kept), ("unused", self.unused)):
            lines.append(f"{title}: {len(entries)}")
            for entry in entries:
                shape = "x".join(map(str, entry.shape)) or "scalar"
                arrow = f" -> {entry.flax_path}" if entry.flax_path else ""
                lines.append(f"  {entry.hf_name} [{entry.dtype} {shape}]{arrow}")
        lines.append(f"missing: {len(self.missing)}")
        lines += [f"  {name}" for name in self.missing]
        lines.append(f"tied: {len(self.tied)}")
        lines += [f"  {name} = {other}" for name, other in self.tied]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines)
