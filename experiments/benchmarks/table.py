"""The table of all benchmarks: goal, the two peers, ours, the machine's limit, from what the scripts wrote.

    python experiments/benchmarks/table.py   # results/TABLE.md and results/table.png

Every record under results/ that has a "table" gives its lines; each names its goals and how far they are met. P0 is
transformers + torch as people run it, P1 the strongest honest torch setup.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers

HEAD = """# Measured beside transformers + torch

P0 is transformers + torch as people run it, P1 the strongest honest torch setup; each script's first lines say what is
meant, each record's `command` how it was made. Medians of rounds in which the workers take turns, each a fresh process.
"""


def records(folder: Path) -> list[tuple[str, dict]]:
    """The records that have lines for the table, by file name; ValueError naming a file that is no JSON."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON ({error}); run its script again") from None
        if isinstance(record, dict) and record.get("table"):
            found.append((path.name, record))
    return found


def number(value: float | None) -> str:
    """Three digits, or all those of a large integer; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def mark(goal: dict) -> str:
    """A goal in a cell: what is wanted, what was found, whether that is enough."""
    if goal["found"] is None:
        return f"{goal['wanted']}: not measured"
    said = {True: "met", False: "**missed**", None: ""}[goal["met"]]
    return f"{goal['wanted']}: {number(goal['found'])} {said}".rstrip()


def render(found: Sequence[tuple[str, dict]]) -> str:
    """The table in Markdown: a block for each machine."""
    text, machines = [HEAD], {}
    for name, record in found:
        machine = record.get("machine", {})
        where = machine.get("gpu") or f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores"
        machines.setdefault(where, []).append((name, record))
    for where, entries in machines.items():
        text += [f"\n## {where}\n", "| what | unit | P0 | P1 | ours | limit | goals | record |"]
        text.append("|---|---|---:|---:|---:|---:|---|---|")
        for name, record in entries:
            for line in record["table"]:
                values = " | ".join(number(line[key]) for key in ("p0", "p1", "ours", "limit"))
                goals = "; ".join(mark(goal) for goal in line["goals"])
                text.append(f"| {line['what']} | {line['unit']} | {values} | {goals} | [{name}]({name}) |")
    return "\n".join(text) + "\n"


def better(line: dict[str, Any], peer: str) -> float | None:
    """How many times better ours is than a peer: of a rate ours over it, of a time or a size the inverse.

    None where either is not there, or not positive: a difference of times may be.
    """
    if not min(line["ours"] or 0, line[peer] or 0) > 0:
        return None
    ratio = line["ours"] / line[peer]
    return ratio if line["unit"].endswith("/s") else 1 / ratio


def plot(found: Sequence[tuple[str, dict]], path: Path) -> None:
    """One bar a line and peer: how many times better ours is (see `better`), on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    lines = [line for _, record in found for line in record["table"] if better(line, "p0") or better(line, "p1")]
    figure = Figure(figsize=(7, 1 + 0.5 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for shift, peer, colour in ((-0.2, "p0", "tab:orange"), (0.2, "p1", "tab:blue")):
        bars = [(place + shift, better(line, peer)) for place, line in enumerate(lines)]
        bars = [(place, value) for place, value in bars if value is not None]
        places, values = [place for place, _ in bars], [value for _, value in bars]
        widths = [value - 1 for value in values]
        drawn = axes.barh(places, widths, 0.38, left=1, color=colour, label=f"beside {peer.upper()}")
        axes.bar_label(drawn, labels=[f"{value:.2g}" for value in values], padding=2, fontsize=8)
    axes.set(xscale="log", xlabel="times better")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(lines)), [line["what"] for line in lines])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=peers.RESULTS)
    folder = parser.parse_args().results
    found = records(folder)
    if not found:
        raise SystemExit(f"{folder}: no record has a table; run the other scripts first (make bench runs all)")
    text = render(found)
    (folder / "TABLE.md").write_text(text)
    plot(found, folder / "table.png")
    print(text + f"\n{folder / 'TABLE.md'}, {folder / 'table.png'}")


if __name__ == "__main__":
    main()
