"""Workers measured in turns, each run a fresh process, and what the rounds come to.

A worker reads one JSON request on stdin and answers with one line of JSON, in which `seconds` and `cpu_seconds` stand
for some amount of work (`tokens`, `sentences`). Contention flatters one side or the other: so rounds interleave the
workers in rotating order, ratios are taken within a round, and CPU seconds stand beside wall-clock ones.
"""

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peers

LARGE_PAGES = (  # as the command line's: large pages, and no returning of memory between steps
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2147483648:glibc.malloc.trim_threshold=4294967296"
)
SHAPES = ((2048, 2048, 2048), (1024, 384, 1536), (512, 384, 384))
Answers = dict[str, list[dict]]


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
    versions = {key: value for found in answers.values() for key, value in found[-1].get("versions", {}).items()}
    for title in ("workers", "ratios"):
        for name, line in body.get(title, {}).items():
            print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in line.items()))
    command = "python experiments/benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    head = {"command": command, "machine": peers.machine(), "versions": versions}
    peers.write_json(path, {**head, **body, "rounds": answers})
    print(path)
