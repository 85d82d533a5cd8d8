"""How many trials of a fault were survived, and a record of it.

A script of this folder has one function a row of the table in experiments/LOG.md, and ends with `main`:

    python experiments/reliability/inputs.py --lane fast            # what CI runs: seconds
    python experiments/reliability/inputs.py --lane full            # the figures: minutes to hours
    python experiments/reliability/inputs.py --only config_fuzz     # one row

It prints a table, writes results/SCRIPT_LANE.json, and exits with 1 where a trial was not survived.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHOWN = 20  # failures of a row that are recorded word for word


class Trials:
    """Counts the trials of one row: each is survived, or its failure is told.

    `facts` are further figures of the row, JSON-able.
    """

    def __init__(self) -> None:
        self.trials = 0
        self.failures: list[str] = []
        self.facts: dict[str, Any] = {}

    def survived(self, *, of: str | None = None) -> None:
        """One more trial went well; `of` names its kind, which are counted apart."""
        self.trials += 1
        if of is not None:
            kinds = self.facts.setdefault("kinds", {})
            kinds[of] = kinds.get(of, 0) + 1

    def failed(self, what: str) -> None:
        """One more trial did not; `what` says which, and what came instead."""
        self.trials += 1
        self.failures.append(" ".join(what.split())[:500])

    def check(self, holds: bool, what: str, *, of: str | None = None) -> None:
        """One more trial, which went well if `holds`."""
        if holds:
            self.survived(of=of)
        else:
            self.failed(what)


Row = Callable[[Trials, str], None]  # with the lane, "fast" or "full"


def main(rows: Mapping[str, Row], *, script: str) -> int:
    """Run rows by the command line, print and record what came out; 1 where a trial was not survived."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--lane", choices=("fast", "full"), default="fast")
    parser.add_argument("--only", nargs="+", choices=sorted(rows), default=list(rows), metavar="ROW")
    parser.add_argument("--out", type=Path, help="the record (default: results/SCRIPT_LANE.json)")
    flags = parser.parse_args()
    out = flags.out or RESULTS / f"{Path(script).stem}_{flags.lane}.json"
    found = _recorded(out)
    failed = False
    for name in flags.only:
        trials, began = Trials(), time.monotonic()
        rows[name](trials, flags.lane)
        if not trials.trials:
            trials.failed("no trial was made")
        seconds = time.monotonic() - began
        survived = trials.trials - len(trials.failures)
        print(f"{name}: {survived} of {trials.trials} survived, {seconds:.0f} s", flush=True)
        for failure in trials.failures[:SHOWN]:
            print(f"  {failure}", flush=True)
        failed |= bool(trials.failures)
        found[name] = {
            "trials": trials.trials,
            "survived": survived,
            "failures": trials.failures[:SHOWN],
            "seconds": round(seconds, 1),
            **trials.facts,
        }
        record = {
            "command": f"python experiments/reliability/{Path(script).name} --lane {flags.lane}",
            "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
            "versions": {package: version(package) for package in ("jax", "flax", "optax", "orbax-checkpoint")},
            "rows": {name: found[name] for name in rows if name in found},
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(failed)


def _recorded(out: Path) -> dict[str, Any]:
    """Rows that another call has recorded stay."""
    return json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else {}
