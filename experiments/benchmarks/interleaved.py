"""Workers measured in turns, each run a fresh process, and what the rounds come to.

A worker reads one JSON request on stdin and answers with one line of JSON, in which `seconds` and `cpu_seconds` stand
for some amount of work (`tokens`, `sentences`). Contention flatters one side or the other: so rounds interleave the
workers in rotating order, ratios are taken within a round, and CPU seconds stand beside wall-clock ones.
"""

import argparse
import json
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peers

from jaxptft.recipes import runtime

SHAPES = ((2048, 2048, 2048), (1024, 384, 1536), (512, 384, 384))
Answers = dict[str, list[dict]]
SMOKE = Path("runs/benchmarks/smoke")


def parser(description: str | None, result: str, *, rounds: int = 3) -> argparse.ArgumentParser:
    """The flags that every script has; `parse` fills in `out`, by default `result` among the results."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--smoke", action="store_true", help="tiny sizes, one round: only whether it runs")
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, help=f"the record (default: results/{result}; of a smoke run {SMOKE})")
    made.set_defaults(result=result)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags as given, but that a smoke run is one round and leaves the results alone."""
    found = made.parse_args()
    found.rounds = 1 if found.smoke else found.rounds
    found.out = found.out or (SMOKE if found.smoke else peers.RESULTS) / found.result
    return found


def as_it_runs(name: str) -> dict[str, str]:
    """The environment of a worker: the library's has the large pages that its command line takes."""
    return large_pages(name) if name.startswith("ours") else {}


def large_pages(name: str) -> dict[str, str]:
    """The environment of a worker with large pages: torch's keeps its heaps, one a thread."""
    ours = runtime.LARGE_PAGES
    theirs = ":".join(part for part in ours.split(":") if "arena_max" not in part)
    return {"GLIBC_TUNABLES": ours if name.startswith("ours") else theirs}


def answer(ours: Callable[[dict], dict], theirs: Callable[[dict], dict]) -> None:
    """What a worker process does: the request read, a side's threads bounded, its answer written.

    Workers whose name starts with `ours` are of the library, the others of torch. To the library's, torch is as good as
    not installed: it needs none, but transformers, of which it takes the tokenizers, would import it. And garbage is
    collected as seldom as by the command line.
    """
    request = json.load(sys.stdin)
    if request["worker"].startswith("ours"):
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
        runtime.collect_seldom()
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["threads"]])
        found = ours(request) | {"versions": peers.versions("jax", "jaxlib", "flax", "optax", "numpy")}
    else:
        import torch

        torch.set_num_threads(request["threads"])
        found = theirs(request) | {"versions": peers.versions("torch", "transformers", "numpy")}
    print(json.dumps(found))


def tried(part: Callable[[], Any]) -> Any:
    """What `part` returns; where it fails, {"error": its last line}, so that the parts after it are still measured."""
    try:
        return part()
    except Exception as error:
        traceback.print_exc()
        return {"error": (str(error).strip() or repr(error)).splitlines()[-1][:500]}


def goal(wanted: str, found: float | None, *, least: float | None = None, most: float | None = None) -> dict:
    """A goal and how far it is met: `found` must be at least `least`, or at most `most`."""
    met = None
    if found is not None:
        met = found >= least if least is not None else found <= most if most is not None else None
    return {"wanted": wanted, "found": found, "met": met}


def line(
    what: str,
    unit: str,
    *,
    p0: float | None = None,
    p1: float | None = None,
    ours: float | None = None,
    limit: float | None = None,
    goals: Sequence[dict] = (),
) -> dict:
    """A line of the table that table.py renders; `limit` is what the machine allows at most (or at least)."""
    return {"what": what, "unit": unit, "p0": p0, "p1": p1, "ours": ours, "limit": limit, "goals": list(goals)}


def rounds(names: Sequence[str], number: int, ask: Callable[[str, int], dict], *, amount: str) -> Answers:
    """`ask(name, round)` of every worker in every round; the order rotates. The load before each run is kept."""
    answers: Answers = {name: [] for name in names}
    for index in range(number):
        turn = index % len(names)
        for name in [*names[turn:], *names[:turn]]:
            load = os.getloadavg()[0]
            found = ask(name, index) | {"load_average_before": load}
            answers[name].append(found)
            print(f"round {index} {name}: {found[amount] / found['seconds']:.1f} {amount}/s", flush=True)
    return answers


def matmul_rates(threads: int, shapes: Sequence[Sequence[int]] = SHAPES) -> dict[str, dict[str, float]]:
    """GFLOP/s of each side's own matmul, a fresh process each; taken before and after the rounds."""
    request = {"mode": "matmul", "shapes": shapes, "threads": threads}
    return {side: peers.ask({**request, "worker": name})["gflops"] for side, name in (("jax", "ours"), ("torch", "p0"))}


def summary(answers: Answers, *, amount: str) -> dict[str, dict[str, float]]:
    """Medians and bests of each worker."""
    table = {}
    for name, found in answers.items():
        speed = [answer[amount] / answer["seconds"] for answer in found]
        table[name] = {
            f"{amount}_per_second_median": statistics.median(speed),
            f"{amount}_per_second_best": max(speed),
            f"cpu_seconds_per_1000_{amount}": statistics.median(
                1000 * answer["cpu_seconds"] / answer[amount] for answer in found
            ),
            "peak_rss_mb": max(answer["peak_rss_mb"] for answer in found),
        }
    return table


def ratios(answers: Answers, pairs: Sequence[tuple[str, str]], *, amount: str) -> dict[str, dict[str, float]]:
    """Of each pair the first over the second: the median of the rounds' own ratios, best over best, CPU seconds."""
    speed = {name: [a[amount] / a["seconds"] for a in found] for name, found in answers.items()}
    cpu = {name: [a["cpu_seconds"] / a[amount] for a in found] for name, found in answers.items()}
    return {
        f"{a}/{b}": {
            "paired_median": statistics.median(x / y for x, y in zip(speed[a], speed[b], strict=True)),
            "best_over_best": max(speed[a]) / max(speed[b]),
            "cpu_seconds_saved": statistics.median(y / x for x, y in zip(cpu[a], cpu[b], strict=True)),
        }
        for a, b in pairs
        if answers.get(a) and answers.get(b)
    }


def write(path: Path, answers: Answers, body: Mapping[str, Any]) -> None:
    """The record of a benchmark: its command, machine, versions, all rounds, and `body`; printed in part."""
    versions = {k: v for found in answers.values() if found for k, v in found[-1].get("versions", {}).items()}
    for entry in body.get("table", []):
        shown = ", ".join(f"{key} {entry[key]:.4g}" for key in ("p0", "p1", "ours", "limit") if entry[key] is not None)
        print(f"{entry['what']} ({entry['unit']}): {shown}")
        for one in entry["goals"]:
            print(f"  {one['wanted']}: " + ("not measured" if one["found"] is None else f"{one['found']:.4g}"))
    for title in ("workers", "ratios"):
        for name, line in body.get(title, {}).items():
            print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in line.items()))
    command = "python experiments/benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    head = {"command": command, "machine": peers.machine(), "versions": versions}
    peers.write_json(path, {**head, **body, "rounds": answers})
    print(path)
