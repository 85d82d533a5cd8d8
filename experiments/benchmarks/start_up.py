"""From the start of a process to the end of its first training step: BERT-base, masked language modelling, 8 x 128.

    python experiments/benchmarks/start_up.py             # results/start_up_cpu.json
    python experiments/benchmarks/start_up.py --smoke

`ours_cold` has nothing compiled, `ours_warm` what an earlier process left in the cache that every recipe keeps; `p0` is
transformers + torch, eager; `p1_cold` and `p1_warm` the same under torch.compile, without and with what inductor left
on disk. The clock starts before the process does: imports, loading the weights, compiling, and one step all count.
"""

import shutil
import sys
import time
from pathlib import Path

import interleaved
import numpy as np
import peers
import workload

ROWS, WORK = 8, Path("runs/benchmarks/start_up")
COLD = ("ours_cold", "p1_cold")
CACHES = {"ours": "JAX_COMPILATION_CACHE_DIR", "p1": "TORCHINDUCTOR_CACHE_DIR"}


def first_step(request: dict) -> dict:
    """Ours: the first step, its programs kept as recipes keep them."""
    rows = np.load(Path(request["folder"]) / "rows.npy")
    model = Path(request["folder"]) / "model"
    if request["mode"] == "check":
        return {"loss": workload.our_loss(model, rows[:ROWS])}
    from jaxptft.recipes.runtime import keep_compiled_programs

    keep_compiled_programs()
    loss = workload.Training(model, rows, batch=ROWS).run(1, first=0)[0]
    return _measured(request, float(loss))


def torch_first_step(request: dict) -> dict:
    """Torch's, eager or compiled."""
    rows = np.load(Path(request["folder"]) / "rows.npy")
    model = Path(request["folder"]) / "model"
    if request["mode"] == "check":
        return {"loss": workload.torch_loss(model, rows[:ROWS])}
    compiled = request["worker"].startswith("p1")
    step = workload.torch_training(model, rows, batch=ROWS, compiled=compiled, gathered=compiled)
    return _measured(request, step().item())


def _measured(request: dict, loss: float) -> dict:
    return {
        "starts": 1,
        "seconds": time.time() - request["sent"],
        "cpu_seconds": peers.cpu_seconds(),
        "peak_rss_mb": peers.peak_rss_mb(),
        "loss": loss,
    }


def main() -> None:
    arguments = interleaved.parse(interleaved.parser(__doc__, "start_up_cpu.json"))
    work = WORK / ("smoke" if arguments.smoke else "base")
    workload.prepare(work, workload.SMOKE if arguments.smoke else workload.BASE, rows=64)

    def ask(name: str, *, mode: str = "time") -> dict:
        side = name.split("_")[0]
        cache = (work / f"cache-{name}").absolute()
        if name in COLD:
            shutil.rmtree(cache, ignore_errors=True)
        environment = {CACHES[side]: str(cache)} if side in CACHES else {}
        request = {"worker": name, "mode": mode, "folder": str(work), "threads": arguments.threads}
        return peers.ask(request, script=Path(__file__), environment=environment | interleaved.as_it_runs(name))

    found = workload.check({name: ask(name, mode="check")["loss"] for name in ("p0", "ours_warm")})
    names, skipped = ["p0", "ours_cold", "ours_warm"], {}
    ask("ours_warm")  # which fills its cache
    compiles = interleaved.tried(lambda: ask("p1_warm"))
    if "error" in compiles:
        skipped["p1"] = compiles["error"]  # no C++ compiler, for instance
    else:
        names += ["p1_cold", "p1_warm"]
    answers = interleaved.rounds(names, arguments.rounds, lambda name, _: ask(name), amount="starts")
    pairs = [("ours_warm", "p0"), ("ours_warm", "p1_warm"), ("ours_warm", "p1_cold"), ("ours_cold", "p1_cold")]
    ratios = interleaved.ratios(answers, pairs, amount="starts")
    workers = interleaved.summary(answers, amount="starts")
    seconds = {name: 1 / values["starts_per_second_median"] for name, values in workers.items()}
    share = {pair: 1 / values["paired_median"] for pair, values in ratios.items()}
    goals = [
        interleaved.goal("warm <= 0.5x HF eager", share["ours_warm/p0"], most=0.5),
        interleaved.goal("warm <= 0.2x torch.compile, warm", share.get("ours_warm/p1_warm"), most=0.2),
    ]
    line = interleaved.line(
        "start to first step",
        "seconds",
        p0=seconds["p0"],
        p1=seconds.get("p1_warm"),
        ours=seconds["ours_warm"],
        goals=goals,
    )
    body = {"table": [line], "check": found, "skipped": skipped, "seconds": seconds, "workers": workers}
    interleaved.write(arguments.out, answers, body | {"ratios": ratios})


if __name__ == "__main__":
    interleaved.answer(first_step, torch_first_step) if sys.argv[1:] == ["worker"] else main()
