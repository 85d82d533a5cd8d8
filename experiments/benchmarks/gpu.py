"""What a GPU gives: one script of under ten minutes.

    python experiments/benchmarks/gpu.py                       # results/gpu.json
    python experiments/benchmarks/gpu.py --only step_512 vmap  # these parts alone
    python experiments/benchmarks/gpu.py --smoke               # tiny sizes, on whatever device there is

Each part is processes of its own and guarded, so that one that fails leaves its error and the others their figures; the
record is written after each, and what ten minutes have no room for says so. Further rounds of the steps come last.
BERT-base, bf16 over fp32 parameters, dropout .1, AdamW.

- matmul: the best bf16 rate of either side's product, which MFU is a share of.
- step_128, step_512: masked language modelling on rows of this length, the same number of tokens a step. `p0` is
  transformers + torch under autocast as people run it, `p1` and `p1_compiled` project only the masked positions and
  read ahead in four processes, `ours` has eight steps a dispatch, `ours_free` no dropout of attention either.
- attention: forward and backward of attention alone, by implementation, and how far gradients are off; packed means
  eight segments a row.
- together: 1, 8 and 32 steps a dispatch, 32 rows. vmap: 1, 4 and 16 tiny runs as one program.
- dropout: one mask drawn by threefry, by XLA's generator (rbg), and by the library's mixer.
- memory: the most that the steps on rows of 128 held on the device, and ours with twice the rows.
- start_up: from before a process starts to the end of its first step; `ours` and `p1_compiled` find compiled what an
  earlier process left.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gpu_parts
import interleaved
import peers
import workload

WORK, LIMIT = Path("runs/benchmarks/gpu"), 120  # seconds that a process may take
BUDGET, SHORTEST = 570, 10  # seconds of all, and those that no process can do with less
TOKENS = 2**15  # a step
SMALL = workload.Size(2, 128, 2, 30522, 64)
WORKERS, CHECKED = ("p0", "p1", "p1_compiled", "ours", "ours_free"), ("p0", "p1", "ours")
LENGTHS = {"step_128": 128, "step_512": 512}
PARTS = ("matmul", *LENGTHS, "attention", "together", "vmap", "dropout", "memory", "start_up")
NO_GPU = "needs a GPU: torch sees none here"


class Report:
    """The record, written after each part, and the time that is left for further ones."""

    def __init__(self, path: Path, *, only: list[str] | None = None, budget: float = BUDGET):
        self.path, self.only, self._until = path, only or list(PARTS), time.perf_counter() + budget
        self._began = time.perf_counter()
        self.body: dict[str, Any] = {"table": [], "machine": peers.machine(), "parts": {}}
        self.answers: interleaved.Answers = {}

    @property
    def left(self) -> float:
        return self._until - time.perf_counter()

    def part(self, name: str, run: Callable[[], dict]) -> dict:
        """What `run` came to, or {"error": ...}, kept under its name; {} where the part is not asked for."""
        if name not in self.only:
            return {}
        began = time.perf_counter()
        found = interleaved.tried(lambda: _refusing(run))
        self.body["parts"][name] = found | {"part_seconds": time.perf_counter() - began}
        print(name, json.dumps(found), flush=True)
        self.write()
        return found

    def write(self, *, told: bool = False) -> None:
        self.body["seconds"] = time.perf_counter() - self._began
        with contextlib.nullcontext() if told else contextlib.redirect_stdout(io.StringIO()):
            interleaved.write(self.path, self.answers, self.body)


def _refusing(run: Callable[[], dict]) -> dict:
    """A check that does not hold ends a script; here it ends a part."""
    try:
        return run()
    except SystemExit as error:
        raise RuntimeError(str(error)) from None


class Asker:
    """Workers, each a fresh process, with what all of them are told."""

    def __init__(self, report: Report, told: Mapping[str, Any], *, seen: Mapping[str, str]):
        self._report, self._told, self._seen = report, told, seen

    def __call__(self, name: str, mode: str, *, environment: Mapping[str, str] | None = None, **more: Any) -> dict:
        if not name.startswith("ours") and self._seen["ours"] != self._seen["p0"]:
            raise RuntimeError(NO_GPU)
        if self._report.left < SHORTEST:
            raise RuntimeError("no time was left for it")
        told = {"JAX_COMPILATION_CACHE_DIR": str((WORK / "cache").absolute())}
        told |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if mode == "check" else {}
        request = {"worker": name, "mode": mode, **self._told, **more}
        limit = min(LIMIT, self._report.left)
        return peers.ask(request, script=Path(__file__), environment=told | dict(environment or {}), timeout=limit)


class Steps:
    """The training step at one length: a check, rounds, a line of the table."""

    def __init__(self, ask: Callable[..., dict], *, label: str, size: workload.Size, tokens: int, steps: int):
        self.ask, self.label, self.size, self.batch = ask, label, size, max(2, tokens // size.length)
        self.folder = WORK / f"{'base' if size.width == workload.BASE.width else 'smoke'}-{size.length}"
        self.options = {"folder": str(self.folder), "batch": self.batch, "steps": steps, "together": min(8, steps // 2)}
        self.answers: interleaved.Answers = {}
        self.failed: dict[str, str] = {}
        self.checked: Mapping[str, Any] = {}

    def prepare(self) -> None:
        workload.prepare(self.folder, self.size, rows=64 * self.batch)

    def first(self) -> None:
        """The check, which ends the part where two sides compute different things, and a round."""
        self.prepare()
        found = {name: interleaved.tried(lambda name=name: self.ask(name, "check", **self.options)) for name in CHECKED}
        losses = {name: one["loss"] for name, one in found.items() if "loss" in one}
        self.checked = workload.check(losses, within=1e-3) if losses else {}
        self.failed = {
            name: found[name.split("_")[0]]["error"] for name in WORKERS if "error" in found[name.split("_")[0]]
        }
        self.round()

    def round(self) -> None:
        """One more answer of every worker that has not failed yet; whose turn it is first rotates."""
        turn = max((len(found) for found in self.answers.values()), default=0) % len(WORKERS)
        for name in (*WORKERS[turn:], *WORKERS[:turn]):
            if name in self.failed:
                continue
            found = interleaved.tried(lambda name=name: self.ask(name, "time", **self.options))
            if "error" not in found:
                self.answers.setdefault(name, []).append(found)
            elif name not in self.answers:
                self.failed[name] = found["error"]

    def speeds(self) -> dict[str, float]:
        found = interleaved.summary(self.answers, amount="tokens")
        return {name: values["tokens_per_second_median"] for name, values in found.items()}

    def told(self, rate: float | None) -> dict:
        flops = self.size.step_flops(self.batch) / (self.batch * self.size.length)
        return {
            "check": self.checked,
            "batch": self.batch,
            "failed": self.failed,
            "workers": interleaved.summary(self.answers, amount="tokens"),
            "losses": {name: found[0]["losses"] for name, found in self.answers.items()},
            "peak_device_mb": {name: found[0]["peak_device_mb"] for name, found in self.answers.items()},
            "model_flops_utilisation": {name: value * flops / rate for name, value in self.speeds().items()}
            if rate
            else {},
        }

    def line(self, rate: float | None) -> dict:
        speed, used = self.speeds(), self.told(rate)["model_flops_utilisation"]
        own, p0 = speed.get("ours"), speed.get("p0")
        p1 = max((speed[name] for name in ("p1", "p1_compiled") if name in speed), default=None)
        goals = [
            interleaved.goal(">= 2.5x P0", over(own, p0), least=2.5),
            interleaved.goal(">= 1.3x P1", over(own, p1), least=1.3),
            interleaved.goal("MFU >= 50 %", used.get("ours"), least=0.5),
        ]
        limit = rate * self.batch * self.size.length / self.size.step_flops(self.batch) if rate else None
        values = {"p0": p0, "p1": p1, "ours": own, "limit": limit}
        return interleaved.line(f"MLM step, BERT-base, {self.label}", "tokens/s", **values, goals=goals)


def over(ours: float | None, other: float | None) -> float | None:
    """`ours / other` where there are both."""
    return ours / other if ours and other else None


def memory(steps: Steps) -> dict:
    """Of the steps that were taken, and of ours on twice the rows."""
    found = steps.told(None)["peak_device_mb"] | {}
    twice = interleaved.tried(lambda: steps.ask("ours", "time", **(steps.options | {"batch": 2 * steps.batch})))
    found["ours_twice"] = twice.get("peak_device_mb")
    failed = {"ours_twice": twice["error"]} if "error" in twice else {}
    if not any(found.values()):
        failed["peak_device_mb"] = "needs a GPU: the device keeps no statistics of its memory"
    return {"peak_device_mb": found, "failed": failed}


def memory_line(found: Mapping[str, float | None]) -> dict:
    own, p0 = found.get("ours"), found.get("p0")
    goals = [
        interleaved.goal("<= 0.6x P0", over(own, p0), most=0.6),
        interleaved.goal("twice the batch in what P0 takes", over(found.get("ours_twice"), p0), most=1.0),
    ]
    values = {"p0": p0, "p1": found.get("p1"), "ours": own}
    return interleaved.line("peak memory, MLM step, BERT-base", "MB", **values, goals=goals)


def start_up(steps: Steps) -> dict:
    """Of ours first with nothing compiled, which fills the cache that the second finds; torch's keeps its own."""
    cache, options = (WORK / "cache-start").absolute(), steps.options
    shutil.rmtree(cache, ignore_errors=True)
    ours = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    runs = [("ours_cold", "ours", ours), ("ours", "ours", ours), ("p0", "p0", {})]
    runs += [("p1_first", "p1_compiled", {}), ("p1_compiled", "p1_compiled", {})]
    found = {
        label: interleaved.tried(lambda name=name, own=own: steps.ask(name, "start", environment=own, **options))
        for label, name, own in runs
    }
    seconds = {label: one["seconds"] for label, one in found.items() if "seconds" in one}
    return {"seconds": seconds, "failed": {label: one["error"] for label, one in found.items() if "error" in one}}


def start_up_line(seconds: Mapping[str, float]) -> dict:
    own, p0, p1 = (seconds.get(name) for name in ("ours", "p0", "p1_compiled"))
    goals = [
        interleaved.goal("warm <= 0.5x HF eager", over(own, p0), most=0.5),
        interleaved.goal("warm <= 0.2x torch.compile, warm", over(own, p1), most=0.2),
    ]
    return interleaved.line("start to first step", "seconds", p0=p0, p1=p1, ours=own, goals=goals)


def many_line(found: Mapping[str, Mapping[str, float]]) -> dict:
    most = found[max(found, key=int)].get("over_one") if found else None
    goals = [interleaved.goal(">= 4x sequential at N = 16", most, least=4.0)]
    return interleaved.line("many runs as one program", "runs", ours=most, goals=goals)


def main() -> None:
    made = interleaved.parser(__doc__, "gpu.json", rounds=2)
    made.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    made.set_defaults(threads=min(8, os.cpu_count() or 1))
    arguments = interleaved.parse(made)
    smoke = arguments.smoke
    quick = [part for part in PARTS if part != "step_512"]  # of a smoke run, where it shows nothing new
    report = Report(arguments.out, only=arguments.only or (quick if smoke else None), budget=1800 if smoke else BUDGET)
    seen = {}
    for name in ("ours", "p0"):
        told = {"worker": name, "mode": "device", "threads": arguments.threads}
        found = interleaved.tried(lambda told=told: peers.ask(told, script=Path(__file__), timeout=LIMIT))
        report.body[f"device_{name}"], seen[name] = found, found.get("platform", "none")
    if seen["ours"] != "gpu" and not smoke:
        raise SystemExit(f"JAX sees no GPU here but {seen['ours']}; --smoke runs on any device")
    if seen["ours"] == "gpu":
        report.body["machine"]["gpu"] = report.body["device_ours"]["device"]

    tokens, steps = (64, 4) if smoke else (TOKENS, 48)
    lengths = dict(zip(LENGTHS, (16, 32), strict=True)) if smoke else LENGTHS
    told = {"threads": arguments.threads, "device": "cuda" if seen["p0"] == "gpu" else "cpu", "tokens": tokens}
    told |= {"matmul": 64 if smoke else 8192, "heads": 2 if smoke else 12, "lengths": list(lengths.values())}
    ask, kind = Asker(report, told, seen=seen), workload.SMOKE if smoke else workload.BASE

    def rates() -> dict:
        return {name: interleaved.tried(lambda name=name: ask(name, "matmul")) for name in ("ours", "p0")}

    found = report.part("matmul", rates)
    rate = max((one["flops_per_second"] for one in found.values() if "flops_per_second" in one), default=None)
    room = {"tokens": tokens, "steps": steps}
    taken = {
        part: Steps(ask, label=part.removeprefix("step_"), size=kind._replace(length=length), **room)
        for part, length in lengths.items()
    }

    def taken_once(one: Steps) -> dict:
        one.first()
        return one.told(rate)

    for part in taken:
        report.part(part, lambda part=part: taken_once(taken[part]))
        _note(report, taken, rate)
    short = taken["step_128"]

    def together() -> dict:
        short.prepare()
        options: dict[str, Any] = {**short.options, "batch": 32, "steps": 2 * steps}
        found = {}
        for number in (1, 2) if smoke else (1, 8, 32):
            chosen: dict[str, Any] = options | {"together": number}
            answer = interleaved.tried(lambda chosen=chosen: ask("ours", "time", **chosen))
            rated = {"tokens_per_second": answer["tokens"] / answer["seconds"]} if "tokens" in answer else answer
            found[str(number)] = rated
        return {"steps_a_dispatch": found}

    def many() -> dict:
        folder = WORK / ("smoke" if smoke else "small")
        workload.prepare(folder, workload.SMOKE if smoke else SMALL)
        return ask("ours", "vmap", folder=str(folder), batch=32, steps=steps, runs=[1, 2] if smoke else [1, 4, 16])

    def started() -> dict:
        short.prepare()
        return start_up(short)

    def held() -> dict:
        short.prepare()
        return memory(short)

    report.part("attention", lambda: ask("ours", "attention"))
    report.part("together", together)
    lines = {
        "vmap": many_line(report.part("vmap", many).get("runs", {})),
        "memory": memory_line({}),
        "start_up": start_up_line({}),
    }
    report.part("dropout", lambda: ask("ours", "dropout"))
    lines["memory"] = memory_line(report.part("memory", held).get("peak_device_mb", {}))
    lines["start_up"] = start_up_line(report.part("start_up", started).get("seconds", {}))
    for _ in range(arguments.rounds - 1):
        for part, one in taken.items():
            if part in report.body["parts"] and report.left > 2 * LIMIT:
                one.round()
                report.body["parts"][part] |= one.told(rate)
    _note(report, taken, rate)
    report.body["table"] += [line for part, line in lines.items() if part in report.only]
    report.write(told=True)


def _note(report: Report, taken: Mapping[str, Steps], rate: float | None) -> None:
    """The lines and answers of the steps into the record."""
    measured = {part: one for part, one in taken.items() if one.answers}
    report.body["table"] = [one.line(rate) for one in measured.values()]
    for part, one in measured.items():
        report.answers |= {f"{name}_{part}": found for name, found in one.answers.items()}
    report.write()


def answered(parts: Mapping[str, Callable[[dict], dict]]) -> Callable[[dict], dict]:
    return lambda request: parts[request["mode"]](request)


if __name__ == "__main__":
    worker = sys.argv[1:] == ["worker"]
    interleaved.answer(answered(gpu_parts.OURS), answered(gpu_parts.THEIRS)) if worker else main()
