"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Progress of one run: its loss, examples a second over the last few steps, and the time left.

    Args:
        name: what stands before the bar.
        steps: how many there are in all.
        unit: what an example is called.
        every: seconds between two plain lines where the output is not a terminal.
        by_example: a step is an example, and not a batch of them.
    """

    def __init__(self, name: str, steps: int, *, unit: str = "rows", every: float = 10.0, by_example: bool = False):
        self.name, self.steps, self.unit, self.every, self.by_example = name, steps, unit, every, by_example
        self.console = Console(stderr=True)
        self._recent: deque[tuple[float, int]] = deque(maxlen=50)
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._printed = 0.0

    def __enter__(self) -> "Progress":
        self._recent.append((time.perf_counter(), 0))
        self._printed = time.perf_counter()
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TextColumn("{task.fields[rate]:.0f} {task.fields[unit]}/s", markup=False),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bars.add_task(self.name, total=self.steps, loss="", rate=0.0, unit=self.unit)
            self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, step: int, loss: float | None, examples: int) -> None:
        """Show that `step` is done, with its loss (None: there is none) and how many examples it held."""
        now = time.perf_counter()
        self._recent.append((now, examples))
        rate = self.rate()
        shown = "" if loss is None else f"loss {loss:.4f}"
        if self._bars is not None:
            self._bars.update(self._task, completed=step, loss=shown, rate=rate)
        elif now - self._printed >= self.every or step == self.steps:
            self._printed = now
            steps_a_second = rate if self.by_example else (len(self._recent) - 1) / max(now - self._recent[0][0], 1e-9)
            left = (self.steps - step) / max(steps_a_second, 1e-9)
            place = f"{step}/{self.steps}" if self.by_example else f"step {step}/{self.steps}"
            print(
                f"{self.name}: {place}  {shown}  {rate:.0f} {self.unit}/s  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def rate(self) -> float:
        """Examples a second over the last steps."""
        first, last = self._recent[0][0], self._recent[-1][0]
        return sum(count for _, count in list(self._recent)[1:]) / max(last - first, 1e-9)
