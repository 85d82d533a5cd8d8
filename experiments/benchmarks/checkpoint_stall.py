"""How many steps a checkpoint costs a run of pre-training.

    python experiments/benchmarks/checkpoint_stall.py             # results/checkpoint_stall_cpu.json
    python experiments/benchmarks/checkpoint_stall.py --smoke

Masked language modelling, 4 layers of width 256, 16 rows of 128 tokens, through the recipe's loop: once with a
checkpoint every 16 steps and once without. The stall is what the steps take longer for them, divided by the number of
checkpoints and by the time of a step: both from the run's own clock, the first steps, which compile, left out. `p0` is
the torch loop with the model and the optimizer written by torch.save at the same steps.
"""

import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import peers
import workload

ROWS, WORK, WARM = 16, Path("runs/benchmarks/checkpoint_stall"), 4
SIDES = {"ours": ("ours_saving", "ours_not"), "p0": ("p0_saving", "p0_not")}


def ours(request: dict) -> dict:
    """The pretrain recipe's own loop on the words of the prepared rows."""
    from jaxptft.recipes import pretrain

    folder, out = Path(request["folder"]), Path(request["folder"]) / request["worker"]
    steps = request["steps"]
    saving = request["worker"].endswith("saving")
    config = pretrain.Config(
        corpus=(str(folder / "corpus.txt"),),
        documents="line",
        model=str(folder / "model"),
        out=out,
        max_length=request["length"],
        length_buckets=1,
        rows="documents",
        batch_size=ROWS,
        steps=steps,
        learning_rate=workload.LEARNING_RATE,
        evaluate_every=steps,
        eval_rows=ROWS,
        checkpoint_every=request["every"] if saving else steps,
        log_every=1,
        overwrite=out.exists(),
    )
    pretrain.run(config, say=lambda line: None)
    lines = [json.loads(line) for line in (out / "speed.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    return measured(request, [line["seconds"] for line in lines])


def theirs(request: dict) -> dict:
    import torch

    folder = Path(request["folder"])
    step: Any = workload.torch_training(folder / "model", np.load(folder / "rows.npy"), batch=ROWS)
    saving, seconds = request["worker"].endswith("saving"), []
    for number in range(request["steps"]):
        began = time.perf_counter()
        step().item()
        if saving and (number + 1) % request["every"] == 0 and number + 1 < request["steps"]:
            state = {"model": step.model.state_dict(), "optimizer": step.optimizer.state_dict()}
            torch.save(state, folder / "checkpoint.pt")
        seconds.append(time.perf_counter() - began)
    return measured(request, seconds)


def measured(request: dict, seconds: list[float]) -> dict:
    kept = seconds[WARM:]
    return {
        "steps": len(kept),
        "seconds": sum(kept),
        "cpu_seconds": peers.cpu_seconds(),
        "peak_rss_mb": peers.peak_rss_mb(),
        "each": seconds,
    }


def stall(saving: list[float], without: list[float], saves: int) -> float:
    """Steps that a save costs: the seconds of the steps of a run with saves over those of one without, a save and a
    mean step (of several in one dispatch the last alone takes any time)."""
    return (sum(saving) - sum(without)) / saves / statistics.fmean(without)


def main() -> None:
    made = interleaved.parser(__doc__, "checkpoint_stall_cpu.json")
    made.add_argument("--steps", type=int, default=64)
    arguments = interleaved.parse(made)
    size = workload.SMOKE if arguments.smoke else workload.MINI
    steps = 16 if arguments.smoke else arguments.steps
    every, work = steps // 4, WORK / ("smoke" if arguments.smoke else "mini")
    workload.prepare(work, size)
    rows = np.load(work / "rows.npy")[:, 1:-1]
    text = "\n".join(" ".join(f"w{token}" for token in row) for row in rows)
    (work / "corpus.txt").write_text(text + "\n")

    def ask(name: str) -> dict:
        request = {"worker": name, "mode": "time", "folder": str(work), "steps": steps, "every": every}
        request |= {"length": size.length, "threads": arguments.threads}
        return peers.ask(request, script=Path(__file__), environment=interleaved.as_it_runs(name))

    names = [name for pair in SIDES.values() for name in pair]
    answers = interleaved.rounds(names, arguments.rounds, lambda name, _: ask(name), amount="steps")
    stalls = {
        side: [
            stall(one["each"][WARM:], other["each"][WARM:], 3)  # at three places, and once the last step is done
            for one, other in zip(answers[saving], answers[without], strict=True)
        ]
        for side, (saving, without) in SIDES.items()
    }
    median = {side: statistics.median(values) for side, values in stalls.items()}
    goals = [interleaved.goal("<= 2 steps a checkpoint", median["ours"], most=2.0)]
    line = interleaved.line("checkpoint stall", "steps", **median, limit=0.0, goals=goals)
    body = {"table": [line], "stalls": stalls, "workers": interleaved.summary(answers, amount="steps")}
    interleaved.write(arguments.out, answers, body)


if __name__ == "__main__":
    interleaved.answer(ours, theirs) if sys.argv[1:] == ["worker"] else main()
