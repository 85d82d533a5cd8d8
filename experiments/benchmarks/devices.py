"""Eight simulated devices against one at fixed total work, and what the compiled step has them exchange.

    python experiments/benchmarks/devices.py             # results/devices_cpu.json
    python experiments/benchmarks/devices.py --smoke

Masked-language-modelling steps on rows of 128 tokens, 4 layers of width 256, dropout 0. `ours_1` has one device,
`ours_8` eight of the same cores as runs have them, `ours_pmap` eight under the library's pmap adapter. All must come to
the same losses. Of the compiled step of eight, collectives are counted and their bytes added up: one copy of the
gradient should be reduced once, beside scalars, and nothing be gathered.

The table's line is of 128 rows, sixteen a device. Every device updates its own copy of the parameters, as devices that
have cores of their own do at once; simulated ones share the cores, and take eight times as long for it as one does. The
fewer rows, the more of the step this is: workers named `_16` have 16 rows in all, and show it.
"""

import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import interleaved
import numpy as np
import peers
import workload

WORK = Path("runs/benchmarks/devices")
NAMES = ("ours_1", "ours_8", "ours_pmap")
ROWS, FEW = 128, 16
WARM = 2  # steps that are not timed
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


def collectives(hlo: str) -> dict[str, list[int]]:
    """Bytes of the result of each collective of a compiled program's text, by kind, in order.

    An asynchronous pair counts where it is done.
    """
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for shapes, kind in re.findall(rf" = (\(.*?\)|\S+) ({'|'.join(KINDS)})(?:-done)?\(", hlo):
        parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        sizes = [BYTES[dtype] * math.prod(int(axis) for axis in axes.split(",") if axis) for dtype, axes in parts]
        found[kind].append(sum(sizes))
    return found


def facts(hlo: str, trainable_bytes: int) -> dict[str, Any]:
    """Counts by kind, and how the bytes reduced compare with those that train; scalar reductions stand apart."""
    found = collectives(hlo)
    scalars = [size for size in found["all-reduce"] if size <= 1024]
    large = [size for size in found["all-reduce"] if size > 1024]
    return {
        "counts": {kind: len(sizes) for kind, sizes in found.items()},
        "gradient_all_reduces": len(large),
        "scalar_all_reduces": len(scalars),
        "bytes_reduced": sum(large),
        "trainable_bytes": trainable_bytes,
        "reduced_over_trainable": sum(large) / trainable_bytes,
    }


def ours(request: dict) -> dict:
    import jax

    from jaxptft import train

    folder, devices = Path(request["folder"]), request["devices"]
    rows = np.load(folder / "rows.npy")
    quiet: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
    training = workload.Training(folder / "model", rows, batch=request["rows"], devices=devices, **quiet)
    if request["worker"].startswith("ours_pmap"):
        plain = train.make_step(training.objective, training.optimizer, trainable=training.trainable, axis_name="data")
        mapped: Any = train.pmap_step(plain, axis_name="data")
        state, constants = jax.device_get((training.state, training.constants))

        def dispatch(first: int) -> Any:
            nonlocal state
            state, metrics = mapped(state, constants, training.batch_at(first))
            return metrics["loss"].total
    else:
        dispatch = training.dispatch
    losses = [float(dispatch(number)) for number in range(WARM)]
    wall, cpu = time.perf_counter(), peers.cpu_seconds()
    # Awaited one by one: many steps in flight over more devices than cores end the process.
    losses += [float(dispatch(WARM + number)) for number in range(request["steps"])]
    wall, cpu = time.perf_counter() - wall, peers.cpu_seconds() - cpu
    found = {"facts": None}
    if request["worker"] == "ours_8":
        hlo = training.step.lower(training.state, training.constants, training.placed(0)).compile().as_text()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state.params))
        found = {"facts": facts(hlo, size)}
    return found | {
        "tokens": request["rows"] * rows.shape[1] * request["steps"],
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_mb": peers.peak_rss_mb(),
        "losses": losses,
    }


def main() -> None:
    made = interleaved.parser(__doc__, "devices_cpu.json")
    made.add_argument("--steps", type=int, default=4, help="of 128 rows that are timed; of 16 it is twice as many")
    arguments = interleaved.parse(made)
    work = WORK / ("smoke" if arguments.smoke else "mini")
    workload.prepare(work, workload.SMOKE if arguments.smoke else workload.MINI)
    few = {name: f"{name}_{FEW}" for name in NAMES}

    def ask(name: str) -> dict:
        devices, small = 1 if name.startswith("ours_1") else 8, name in few.values()
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        request = {"worker": name, "mode": "time", "folder": str(work), "devices": devices}
        request |= {"rows": FEW if small else ROWS, "steps": arguments.steps * (2 if small else 1)}
        return peers.ask(request | {"threads": arguments.threads}, script=Path(__file__), environment=flags)

    names = [*NAMES, *few.values()]
    answers = interleaved.rounds(names, arguments.rounds, lambda name, _: ask(name), amount="tokens")
    losses = {name: np.asarray(found[0]["losses"]) for name, found in answers.items()}
    one = {name: losses[few["ours_1"] if name in few.values() else "ours_1"] for name in names}
    apart = {name: float(np.max(np.abs(losses[name] / one[name] - 1))) for name in names}
    print(f"losses, relative to those of one device: {apart}")
    if max(apart.values()) > 1e-4:
        raise SystemExit("one device and eight do not compute the same")
    pairs = [("ours_8", "ours_1"), ("ours_8", "ours_pmap"), ("ours_pmap", "ours_1")]
    pairs += [(few[a], few[b]) for a, b in pairs]
    ratios = interleaved.ratios(answers, pairs, amount="tokens")
    workers, hlo = interleaved.summary(answers, amount="tokens"), answers["ours_8"][0]["facts"]
    goals = [
        interleaved.goal(">= 0.95 of one device", ratios["ours_8/ours_1"]["paired_median"], least=0.95),
        interleaved.goal("1 gradient all-reduce", hlo["gradient_all_reduces"], most=1),
        interleaved.goal("0 all-gathers", hlo["counts"]["all-gather"], most=0),
        interleaved.goal("bytes reduced / trainable bytes = 1", hlo["reduced_over_trainable"], most=1.01),
    ]
    rate = {name: values["tokens_per_second_median"] for name, values in workers.items()}
    line = interleaved.line(
        f"8 simulated devices, {ROWS} rows (P0: pmap; limit: one device)",
        "tokens/s",
        p0=rate["ours_pmap"],
        ours=rate["ours_8"],
        limit=rate["ours_1"],
        goals=goals,
    )
    body = {"table": [line], "losses_apart": apart, "hlo": hlo, "workers": workers, "ratios": ratios}
    interleaved.write(arguments.out, answers, body)


if __name__ == "__main__":
    interleaved.answer(ours, ours) if sys.argv[1:] == ["worker"] else main()
