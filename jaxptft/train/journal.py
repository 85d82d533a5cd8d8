"""The run's log: one JSON object a line, each of a step, and nothing in it that a second run would not repeat.

Times go to a file of their own, so that the log of a run that was killed and resumed equals, byte for byte, the log of
one that was not.
"""

import json
from pathlib import Path
from typing import Any


class Journal:
    """Appends lines to a JSONL file; `rewind` forgets the lines after a step."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, **entries: Any) -> None:
        """Append `{"step": step, ...}`; NaN and infinities are refused, since JSON has none."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **entries}, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop every line of a later step, and a last line that was cut short."""
        kept = [line for line in self._whole_lines() if json.loads(line)["step"] <= step]
        temporary = self.path.with_suffix(".rewound")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def read(self) -> list[dict[str, Any]]:
        """Every whole line, oldest first."""
        return [json.loads(line) for line in self._whole_lines()]

    def _whole_lines(self) -> list[str]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return text.split("\n")[:-1]
