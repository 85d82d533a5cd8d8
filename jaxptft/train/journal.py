"""The run's log: one JSON object a line, each of a step, and nothing in it that a second run would not repeat.

Times go to a file of their own, so that the log of a run that was killed and resumed equals, byte for byte, the log of
one that was not.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Appends lines to a JSONL file; `rewind` drops the lines after a step."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, **entries: Any) -> None:
        """Append `{"step": step, ...}`; NaN and infinities are refused, since JSON has none."""
        line = json.dumps({"step": step, **entries}, allow_nan=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def rewind(self, step: int) -> None:
        """Drop every line of a later step, and a last line that was cut short."""
        self._keep(lambda entry: entry["step"] <= step)

    def forget(self, step: int, kind: str) -> None:
        """Drop the lines of one kind at one step."""
        self._keep(lambda entry: (entry["step"], entry.get("kind")) != (step, kind))

    def read(self) -> list[dict[str, Any]]:
        """Every whole line, oldest first; ValueError, naming the line, when one is damaged."""
        return [entry for _, entry in self._entries()]

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        kept = [line for line, entry in self._entries() if wanted(entry)]
        temporary = self.path.with_suffix(".rewound")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def _entries(self) -> list[tuple[str, dict[str, Any]]]:
        # Bytes, since the last line may end within a character.
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                entries.append((line.decode(), json.loads(line)))
                entries[-1][1]["step"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is no journal entry ({error}); mend or delete it"
                ) from error
        return entries
