"""Sentences a second of fine-tuning MiniLM on movie-review sentences: the library against transformers + torch.

    python experiments/benchmarks/finetune.py                          # all layers
    python experiments/benchmarks/finetune.py --row top                # layers 4, 5, pooler, head + L2
    python experiments/benchmarks/finetune.py --rounds 1 --steps 5    # a smoke run

Workers, each run a fresh process that gets one JSON request on stdin and answers with one line of JSON: `ours` and
`ours-packed` (jax_worker.py: one sentence a row, and several, which `jaxptft finetune` chooses by itself; both with
large pages, as it has them), `p0` and `p1` (torch_worker.py: as people run it, and the best honest torch setup, whose
options, large pages among them, are chosen by a trial that is recorded). All start from one folder, tokenize
before the clock runs, and pass over the same sentences of one round, each in batches of its own making; collation and
the optimizer are inside the clock, dropout is on, fp32. Rounds interleave the workers in rotating order. Before
anything is timed, all must give the same first losses on the same batches with dropout 0 (1e-4 relative) and falling
losses after.

Model FLOPs count the matrix products of real tokens, padding not included. For a sentence of n tokens, width w,
inner width f and c classes, one layer's forward pass is 2 n (4 w^2 + 2 w f) + 4 n^2 w, the head's 2 w^2 + 2 w c;
backward costs twice the forward of what is trained (embeddings: none). MFU = model FLOPs a second / the best fp32 rate
that either side's own matmul reaches on this machine, measured by the same script.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import interleaved
import numpy as np
import parity
import peers
from peers import EAGER

HERE = Path(__file__).parent
PAIRS = [
    *((ours, peer) for ours in ("ours", "ours-packed") for peer in ("p0", "p1")),
    ("p1", "p0"),
    ("ours-packed", "ours"),
]
TRIALS = [
    EAGER,
    {**EAGER, "optimizer": "foreach"},
    {**EAGER, "attention": "eager"},
    {**EAGER, "attention": "eager", "large_pages": True},
    {**EAGER, "compile": "dynamic"},
    {**EAGER, "compile": "static", "multiple": 8},
]


def ask(request: dict) -> dict:
    """A worker's answer; with large pages where its options ask for them, and for ours."""
    large = request["worker"].startswith("ours") or request["options"].get("large_pages")
    return peers.ask(request, environment=interleaved.large_pages(request["worker"]) if large else {})


def sentence_flops(n: int, frozen_layers: int, *, layers=6, width=384, inner=1536, classes=2) -> float:
    """Model FLOPs of one sentence of n tokens, forward and backward (see the module's docstring)."""
    layer = 2 * n * (4 * width**2 + 2 * width * inner) + 4 * n**2 * width
    head = 2 * width**2 + 2 * width * classes
    return frozen_layers * layer + 3 * ((layers - frozen_layers) * layer + head)


def compare_losses(base: dict, rows: list[int], names: list[str], batches: int, options: dict) -> dict:
    """First losses of all workers on the same batches, dropout 0; three passes, of which the first is compared."""
    size = base["batch"]
    once = [rows[i * size : (i + 1) * size] for i in range(batches)]
    request = {**base, "mode": "check", "batches": once * 3, "total": 6 * batches, "warmup": batches // 2}
    losses = {
        name: ask({**request, "worker": name, "options": options if name == "p1" else EAGER})["losses"]
        for name in names
    }
    reference = np.asarray(losses[names[0]])
    report = {}
    for name, values in losses.items():
        found = np.asarray(values)
        apart = np.abs(found - reference) / np.abs(reference)
        report[name] = {
            "first_losses": found[:batches].tolist(),
            "largest_relative_difference": float(apart[:batches].max()),
            "mean_of_passes": found.reshape(3, -1).mean(axis=1).tolist(),
        }
        print(
            f"check {name}: against {names[0]} {report[name]['largest_relative_difference']:.2e}, "
            f"mean loss of the passes {np.round(report[name]['mean_of_passes'], 4).tolist()}"
        )
        if report[name]["largest_relative_difference"] > 1e-4:
            raise SystemExit(f"{name} does not compute what {names[0]} computes: not timed")
        if batches >= 20 and found.reshape(3, -1)[2].mean() >= found.reshape(3, -1)[0].mean():
            raise SystemExit(f"{name}: the loss does not fall over three passes: not timed")
    return report


def trial(base: dict, rows: list[int]) -> list[dict]:
    """Sentences a second of every p1 candidate on the same sentences, each twice and interleaved; fastest first."""
    found = [{"options": options, "sentences_per_second": []} for options in TRIALS]
    for _ in range(2):
        for entry in found:
            try:
                answer = ask({**base, "worker": "p1", "mode": "time", "rows": rows, "options": entry["options"]})
                entry["sentences_per_second"].append(answer["sentences"] / answer["seconds"])
                entry["seconds_to_first_step"] = answer["seconds_to_first_step"]
            except RuntimeError as error:
                entry["error"] = str(error).strip().splitlines()[-1]
            print("trial", json.dumps(entry), flush=True)
    return sorted(found, key=lambda entry: -max(entry["sentences_per_second"], default=0.0))


def summary(answers: dict[str, list[dict]], flops: list[float], rate: float) -> dict:
    """Medians and bests over rounds of each worker; a round's entries stand at equal positions."""
    table = {}
    for name, rounds in answers.items():
        speed = [answer["sentences"] / answer["seconds"] for answer in rounds]
        table[name] = {
            "sentences_per_second_median": statistics.median(speed),
            "sentences_per_second_best": max(speed),
            "cpu_seconds_per_1000_sentences": statistics.median(
                1000 * answer["cpu_seconds"] / answer["sentences"] for answer in rounds
            ),
            "peak_rss_mb": max(answer["peak_rss_mb"] for answer in rounds),
            "seconds_to_first_step_median": statistics.median(answer["seconds_to_first_step"] for answer in rounds),
            "padding_share": statistics.median(
                1 - answer["real_tokens"] / answer["padded_tokens"] for answer in rounds
            ),
            "model_flops_utilisation_median": statistics.median(
                work / answer["seconds"] / rate for work, answer in zip(flops, rounds, strict=True)
            ),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=parity.WORK, help="folder of `parity.py prepare`; made if not there"
    )
    parser.add_argument("--row", choices=tuple(parity.ROWS), default="all")
    parser.add_argument(
        "--workers", default="p0,p1,ours,ours-packed", help="comma-separated; the first is the reference of the check"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="timed steps a run")
    parser.add_argument("--warm-steps", type=int, default=5)
    parser.add_argument("--check-batches", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--p1", type=json.loads, help="options of p1 as JSON, instead of the trial")
    parser.add_argument(
        "--out", type=Path, help="results file (default: results/finetune_cpu.json, _top for the top row)"
    )
    arguments = parser.parse_args()
    names = arguments.workers.split(",")
    if not (arguments.work / "data" / "train.csv").exists():
        parity.prepare(arguments.work)
    texts, _ = peers.read_rows(arguments.work / "data" / "train.csv")
    lengths = [len(row) for row in peers.encode(arguments.work / "init-0", texts)]
    base = {
        "init": str(arguments.work / "init-0"),
        "data": str(arguments.work / "data" / "train.csv"),
        "plan": parity.ROWS[arguments.row],
        "threads": arguments.threads,
        "batch": peers.BATCH,
        "warm_steps": arguments.warm_steps,
        "seed": 0,
        "options": EAGER,
    }
    order = np.random.default_rng(7).permutation(len(texts)).tolist()
    pool = arguments.steps * peers.BATCH

    trials = []
    if "p1" in names and arguments.p1 is None:
        trials = trial(base, order[:pool])
    options = arguments.p1 or (trials[0]["options"] if trials else EAGER)
    check = compare_losses(base, order, names, arguments.check_batches, options)
    rates = [interleaved.matmul_rates(arguments.threads)]

    answers: dict[str, list[dict]] = {name: [] for name in names}
    flops, load = [], []
    for number in range(arguments.rounds):
        rows = np.random.default_rng(100 + number).permutation(len(texts))[:pool].tolist()
        flops.append(sum(sentence_flops(lengths[row], base["plan"]["frozen_layers"]) for row in rows))
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            load.append(os.getloadavg()[0])
            request = {**base, "worker": name, "mode": "time", "rows": rows, "seed": number}
            answers[name].append(ask({**request, "options": options if name == "p1" else EAGER}))
            done = answers[name][-1]
            print(f"round {number} {name}: {done['sentences'] / done['seconds']:.1f} sentences/s", flush=True)

    rates.append(interleaved.matmul_rates(arguments.threads))
    rate = 1e9 * max(value for once in rates for found in once.values() for value in found.values())
    table, ratio = summary(answers, flops, rate), interleaved.ratios(answers, PAIRS, amount="sentences")
    for name, line in table.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in line.items()))
    for pair, line in ratio.items():
        print(f"{pair}: " + ", ".join(f"{key} {value:.3f}" for key, value in line.items()))
    ours = "ours-packed" if "ours-packed" in table else "ours"
    wanted = [(name, least) for name, least in (("p0", 2.5), ("p1", 1.5)) if f"{ours}/{name}" in ratio]
    goals = [
        interleaved.goal(f">= {least}x {name.upper()}", ratio[f"{ours}/{name}"]["paired_median"], least=least)
        for name, least in wanted
    ]
    columns = {"p0": "p0", "p1": "p1", "ours": ours}
    speed = {column: table[name]["sentences_per_second_median"] for column, name in columns.items() if name in table}
    used = table[ours]["model_flops_utilisation_median"] if ours in table else None
    limit = speed["ours"] / used if used else None
    what = "fine-tuning on short sentences" + ("" if arguments.row == "all" else ", top layers")
    line = interleaved.line(what, "sentences/s", **speed, limit=limit, goals=goals)
    suffix = "" if arguments.row == "all" else f"_{arguments.row}"
    out = arguments.out or HERE / "results" / f"finetune_cpu{suffix}.json"
    peers.write_json(
        out,
        {
            "table": [line],
            "command": "python " + " ".join(sys.argv),
            "machine": peers.machine(),
            "versions": {key: value for rounds in answers.values() for key, value in rounds[-1]["versions"].items()},
            "row": arguments.row,
            "plan": base["plan"],
            "threads": arguments.threads,
            "load_average_before_runs": load,
            "p1_options": options,
            "p1_trials": trials,
            "check": check,
            "matmul_gflops_before_and_after": rates,
            "workers": table,
            "ratios": ratio,
            "rounds": answers,
        },
    )
    print(out)


if __name__ == "__main__":
    main()
