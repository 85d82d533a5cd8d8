"""Peak resident memory of training by masked language modelling, and the largest batch within a bound.

    python experiments/benchmarks/memory.py             # results/memory_cpu.json
    python experiments/benchmarks/memory.py --smoke

A fresh process for each batch size of each side takes two steps of BERT-base on rows of 128 tokens and reports the
most memory it ever held, imports and weights included. `ours` finds its programs compiled by an earlier process, as a
second run does; `ours_remat` too, and has `--scan-layers --remat full`; `ours_compiling` has the compiler in it. `p0`
is transformers + torch as people run it, `p1` projects only the masked positions to the vocabulary. The bound is what
p0 takes at the middle one of the batch sizes (of two the first); larger ones are for `ours_remat` alone.
"""

import sys
import time
from pathlib import Path

import interleaved
import numpy as np
import peers
import workload

WORK, STEPS = Path("runs/benchmarks/memory"), 2
NAMES = ("p0", "p1", "ours", "ours_remat", "ours_compiling")
REMAT = {"scan_layers": True, "remat": "full"}


def ours(request: dict) -> dict:
    folder = Path(request["folder"])
    rows = np.load(folder / "rows.npy")
    if request["mode"] == "check":
        return {"loss": workload.our_loss(folder / "model", rows[:4])}
    from jaxptft.recipes.runtime import keep_compiled_programs

    if request["worker"] != "ours_compiling":
        keep_compiled_programs()
    options = REMAT if request["worker"] == "ours_remat" else {}
    training = workload.Training(folder / "model", rows, batch=request["batch"], **options)
    began = time.perf_counter()
    losses = training.run(STEPS, first=0)
    return measured(request, losses, time.perf_counter() - began)


def theirs(request: dict) -> dict:
    folder, gathered = Path(request["folder"]), request["worker"] == "p1"
    rows = np.load(folder / "rows.npy")
    if request["mode"] == "check":
        return {"loss": workload.torch_loss(folder / "model", rows[:4], gathered=gathered)}
    step = workload.torch_training(folder / "model", rows, batch=request["batch"], gathered=gathered)
    began = time.perf_counter()
    losses = np.asarray([step().item() for _ in range(STEPS)])
    return measured(request, losses, time.perf_counter() - began)


def measured(request: dict, losses: np.ndarray, seconds: float) -> dict:
    return {
        "tokens": STEPS * request["batch"] * request["length"],
        "seconds": seconds,
        "cpu_seconds": peers.cpu_seconds(),
        "peak_rss_mb": peers.peak_rss_mb(),
        "batch": request["batch"],
        "last_loss": float(losses[-1]),
    }


def largest_within(peaks: dict[int, float], bound: float) -> int:
    """The largest batch whose peak is within the bound; 0 where none is."""
    return max((batch for batch, peak in peaks.items() if peak <= bound), default=0)


def main() -> None:
    made = interleaved.parser(__doc__, "memory_cpu.json", rounds=1)
    made.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    arguments = interleaved.parse(made)
    size = workload.SMOKE if arguments.smoke else workload.BASE
    sizes = sorted(arguments.batches if not arguments.smoke else [4, 8, 16])
    work = WORK / ("smoke" if arguments.smoke else "base")
    workload.prepare(work, size, rows=max(64, max(sizes)))
    cache = {"JAX_COMPILATION_CACHE_DIR": str((work / "cache").absolute())}

    def ask(name: str, batch: int, *, mode: str = "time") -> dict:
        request = {"worker": name, "mode": mode, "folder": str(work), "batch": batch, "length": size.length}
        environment = cache if name in ("ours", "ours_remat") else {}
        return peers.ask(
            request | {"threads": arguments.threads},
            script=Path(__file__),
            environment=environment | interleaved.as_it_runs(name),
        )

    found = workload.check({name: ask(name, 4, mode="check")["loss"] for name in ("p0", "p1", "ours")})
    peaks: dict[str, dict[int, float]] = {name: {} for name in NAMES}
    answers: interleaved.Answers = {name: [] for name in NAMES}
    middle = sizes[(len(sizes) - 1) // 2]
    for batch in sizes:
        names = NAMES if batch <= middle else ("ours_remat",)
        for name in ("ours", "ours_remat"):
            if name in names:
                ask(name, batch)  # which fills the cache
        once = interleaved.rounds(names, arguments.rounds, lambda name, _, b=batch: ask(name, b), amount="tokens")
        for name, rounds in once.items():
            answers[name] += rounds
            peaks[name][batch] = float(np.median([answer["peak_rss_mb"] for answer in rounds]))
    bound = peaks["p0"][middle]
    batches = {name: largest_within(found, bound) for name, found in peaks.items()}
    goals = [
        interleaved.goal("peak <= 0.6x P0", peaks["ours"][middle] / bound, most=0.6),
        interleaved.goal("2x the batch of P0 within its memory, with remat", batches["ours_remat"] / middle, least=2.0),
    ]
    values = {name: peaks[name][middle] for name in ("p0", "p1", "ours")}
    # Weights, gradient and two moments, which nothing that trains with AdamW in fp32 does without.
    limit = 4 * 4 * _parameters(work / "model") / 2**20
    line = interleaved.line(f"peak memory, batch {middle}", "MiB", **values, limit=limit, goals=goals)
    body = {"table": [line], "check": found, "peak_rss_mb": peaks, "bound_mb": bound, "largest_batch": batches}
    interleaved.write(arguments.out, answers, body)


def _parameters(model: Path) -> int:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


if __name__ == "__main__":
    interleaved.answer(ours, theirs) if sys.argv[1:] == ["worker"] else main()
