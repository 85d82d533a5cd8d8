"""Four fine-tunings of other learning rates: as one program, against one after another.

    python experiments/benchmarks/many_runs.py             # results/many_runs_cpu.json
    python experiments/benchmarks/many_runs.py --smoke

`ours_together` is `jaxptft sweep --vectorized`, whose runs share one program (on CPU one compiled step called run after
run, elsewhere side by side by vmap); `ours_alone` the same sweep without. MiniLM on film-review sentences, batches of
32; a fresh process each, with what earlier ones compiled in its cache, and each run's evaluations and checkpoints as a
sweep has them. Both must come to the same losses, to 1e-4. The steps' own rate is what each run records of its speed,
but for the first fifth.
"""

import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import parity
import peers

NAMES, RATES, WORK = ("ours_alone", "ours_together"), "5e-5,1e-4,2e-4,4e-4", Path("runs/benchmarks/many_runs")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sweep(request: dict) -> dict:
    """One sweep in this process: its time, the steps' own rate, how much was compiled, and what its runs came to."""
    import jax
    import yaml

    from jaxptft.recipes import sweep as recipe
    from jaxptft.recipes.runtime import keep_compiled_programs

    compiled: list[float] = []

    def note(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":  # read from the cache, or compiled
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    keep_compiled_programs()
    out = Path(request["out"])
    shutil.rmtree(out, ignore_errors=True)
    config = recipe.Config(
        base=Path(request["base"]),
        search={"learning_rate": RATES},
        out=out,
        trials=request["trials"],
        sampler="random",
        vectorized=request["worker"] == "ours_together",
        halving=0,
        reruns=1,
    )
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    recipe.run(config, say=lambda told: None)
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    each = {}
    for folder in [*sorted((out / "trials").iterdir()), *sorted((out / "best").iterdir())]:
        speeds = lines(folder / "speed.jsonl")[1:]
        each[folder.name] = {
            "learning_rate": yaml.safe_load((folder / "config.yaml").read_text())["learning_rate"],
            "steps_per_second": sum(line["steps"] for line in speeds) / sum(line["seconds"] for line in speeds),
            "losses": [line["loss"] for line in lines(folder / "metrics.jsonl") if line["kind"] == "train"],
        }
    return {
        "fine_tunings": len(each),
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_mb": peers.peak_rss_mb(),
        "programs": len(compiled),
        "programs_seconds": sum(compiled),
        "each": each,
    }


def apart(answers: interleaved.Answers) -> float:
    """The largest relative difference of a loss; SystemExit where the runs are not the same."""
    found = 0.0
    for alone, together in zip(*(answers[name] for name in NAMES), strict=True):
        for name, run in alone["each"].items():
            other = together["each"][name]
            if other["learning_rate"] != run["learning_rate"]:
                raise SystemExit(f"run {name} has rate {other['learning_rate']} together, {run['learning_rate']} alone")
            found = max(found, float(np.abs(np.divide(other["losses"], run["losses"]) - 1).max()))
    if found > 1e-4:
        raise SystemExit(f"the losses of the runs together are {found:.1e} from those alone")
    return found


def main() -> None:
    made = interleaved.parser(__doc__, "many_runs_cpu.json")
    made.add_argument("--steps", type=int, default=60, help="of each run")
    made.add_argument("--trials", type=int, default=4, help="runs of a sweep, before its best is run again")
    arguments = interleaved.parse(made)
    steps = 20 if arguments.smoke else arguments.steps
    if not (parity.WORK / "init-0").exists():
        parity.prepare(parity.WORK)
    WORK.mkdir(parents=True, exist_ok=True)
    base = WORK / "base.yaml"
    rows = (parity.WORK / "data" / "train.csv").read_text().splitlines(keepends=True)
    (WORK / "train.csv").write_text("".join(rows[: 641 if arguments.smoke else 3201]))
    (WORK / "eval.csv").write_text("".join([rows[0], *rows[-200:]]))
    values = {"model": parity.WORK / "init-0", "train": WORK / "train.csv", "eval": WORK / "eval.csv"}
    told = "".join(f"{name}: {path.absolute()}\n" for name, path in values.items())
    base.write_text(f"{told}steps: {steps}\nbatch_size: {peers.BATCH}\nlog_every: {steps // 5}\n")

    def ask(name: str, _: int, trials: int = 2 if arguments.smoke else arguments.trials) -> dict:
        cache = {"JAX_COMPILATION_CACHE_DIR": str((WORK / f"cache-{name}").absolute())}
        request = {"worker": name, "mode": "time", "threads": arguments.threads, "base": str(base)}
        request |= {"out": str(WORK / name), "trials": trials}
        return peers.ask(request, script=Path(__file__), environment=cache | interleaved.as_it_runs(name))

    for name in NAMES:  # which fills its cache
        ask(name, 0, trials=1)
    answers = interleaved.rounds(NAMES, arguments.rounds, ask, amount="fine_tunings")
    difference = apart(answers)
    rate = {
        name: statistics.median(run["steps_per_second"] for answer in found for run in answer["each"].values())
        for name, found in answers.items()
    }
    programs = {name: [answer["programs"] for answer in found] for name, found in answers.items()}
    ratios = interleaved.ratios(answers, [("ours_together", "ours_alone")], amount="fine_tunings")
    goals = [
        interleaved.goal(
            ">= 0.95x of the steps one after another", rate["ours_together"] / rate["ours_alone"], least=0.95
        ),
        interleaved.goal("whole sweeps, against alone", ratios["ours_together/ours_alone"]["paired_median"]),
    ]
    line = interleaved.line("runs of one program", "steps/s of each", ours=rate["ours_together"], goals=goals)
    body = {"table": [line], "steps_per_second": rate, "programs": programs, "largest_relative_difference": difference}
    body |= {"workers": interleaved.summary(answers, amount="fine_tunings"), "ratios": ratios}
    interleaved.write(arguments.out, answers, body)


def worker() -> None:
    """Not as of other scripts, where torch seems not to be installed: the metrics' libraries look at it themselves."""
    request = json.load(sys.stdin)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["threads"]])
    print(json.dumps(sweep(request) | {"versions": peers.versions("jax", "jaxlib", "flax", "optax", "numpy")}))


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
