"""What `jaxptft serve` does under load: answers, latency, overload and memory, on loopback.

    python experiments/benchmarks/serving.py             # the demo's model; results/serving_cpu.json
    python experiments/benchmarks/serving.py --smoke     # a tiny random model, few requests

Clients are threads of this process, each with one connection that is kept, which sends its next request when the last
is answered; they share the cores with the server. A request is one film review. Every answer is compared with that of
`jaxptft predict`: it is wrong where the label is another, or a probability is off by more than 1e-5 (predict tells six
digits, and the last bits of a float depend on the shape of its batch). In the overload the queue holds as many rows as
there are clients in the other part, and eight times as many clients ask: every request must be answered, by 200 or
429. Memory is the server's resident set, at nine moments.
"""

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import export_parity
import interleaved
import numpy as np
import peers

from jaxptft import data
from jaxptft.recipes import demo, predict

RESULT, RUN, CLIENTS, REQUESTS, EARLY = "serving_cpu.json", Path("runs/demo/all-layers"), 64, 40_000, 1_000
TOLERANCE = 1e-5
Reply = tuple[int, int, float, Any]  # which row, status, seconds, answer


class Served:
    """A server process that is ready."""

    def __init__(self, model: Path, *flags: str):
        command = [sys.executable, "-m", "jaxptft.cli", "serve", str(model), "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port, self.said = 0, ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"at http://127\.0\.0\.1:(\d+);", line):
                self.port = int(found[1])
            if line.startswith("ready: "):
                self.said = line.strip()
                return
        raise RuntimeError(f"the server left with status {self.process.wait()}")

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1)


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[Served]:
    """A server, which SIGTERM stops with status 0."""
    found = Served(model, *flags)
    try:
        yield found
        found.process.terminate()
        if status := found.process.wait(60):
            raise RuntimeError(f"the server left with status {status} after SIGTERM")
    finally:
        found.process.kill()
        found.process.wait()


def load(
    port: int,
    texts: Sequence[str],
    *,
    clients: int,
    requests: int,
    every: int = 0,
    watch: Callable[[int], None] = lambda number: None,
) -> tuple[list[Reply], float]:
    """So many requests by so many clients: their replies, and the seconds that all of them took.

    `watch` is called with how many were sent, at each multiple of `every`.
    """
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    lock, started, replies = threading.Lock(), threading.Barrier(clients + 1), []
    numbers = iter(range(requests))

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.connect()
        own: list[Reply] = []
        started.wait()
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            if every and number and number % every == 0:
                watch(number)
            row = number % len(bodies)
            begun = time.perf_counter()
            connection.request("POST", "/predict", bodies[row], {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = reply.read()
            own.append((row, reply.status, time.perf_counter() - begun, json.loads(content)))
        connection.close()
        with lock:
            replies.extend(own)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    started.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return replies, time.perf_counter() - begun


def wrong(answer: dict[str, Any], expected: dict[str, Any]) -> tuple[bool, float]:
    """Whether an answer is, and by how much its probabilities are off."""
    off = max(abs(answer["probabilities"][name] - value) for name, value in expected["probabilities"].items())
    return answer["label"] != expected["label"] or off > TOLERANCE, off


def told(replies: Sequence[Reply], seconds: float, expected: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statuses, latencies of those answered by 200, and how many of these are wrong."""
    good = [(row, took, answer) for row, status, took, answer in replies if status == 200]
    took = np.array([time for _, time, _ in good]) * 1000
    judged = [wrong(answer, expected[row]) for row, _, answer in good]
    return {
        "requests": len(replies),
        "statuses": {str(status): count for status, count in sorted(Counter(one[1] for one in replies).items())},
        "seconds": round(seconds, 2),
        "answers_per_second": round(len(good) / seconds, 1),
        "p50_ms": round(float(np.percentile(took, 50)), 2),
        "p99_ms": round(float(np.percentile(took, 99)), 2),
        "longest_ms": round(max(took_s for _, _, took_s, _ in replies) * 1000, 1),
        "wrong": sum(is_wrong for is_wrong, _ in judged),
        "max_difference": max(off for _, off in judged),
    }


def measure(model: Path, table: data.Table, source: Path, *, clients: int, requests: int, early: int) -> dict[str, Any]:
    """Every part; the table's rows are those of `source`."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "predictions.jsonl"
        begun = time.perf_counter()
        predict.run(predict.Config(model=str(model), data=str(source), out=out))
        offline = time.perf_counter() - begun
        expected = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = {"rows": len(table), "offline_predict_seconds": round(offline, 1)}
    with serving(model) as server:
        print(server.said)
        found["ready"], memory = server.said, {"ready_mb": server.resident_mb()}
        found["one_client"] = told(*load(server.port, table.texts, clients=1, requests=min(500, early)), expected)
        print("one client:", found["one_client"])
        load(server.port, table.texts, clients=clients, requests=early)
        memory[f"after_{early}_mb"] = server.resident_mb()

        def watch(number: int) -> None:
            memory[f"after_{early + number}_mb"] = server.resident_mb()

        every, more = max(1, requests // 8), requests - early
        replies = load(server.port, table.texts, clients=clients, requests=more, every=every, watch=watch)
        memory[f"after_{requests}_mb"] = server.resident_mb()
        found[f"{clients}_clients"] = told(*replies, expected)
        print(f"{clients} clients:", found[f"{clients}_clients"])
        found["memory"] = memory
        print("memory:", memory)
    with serving(model, "--queue-rows", str(clients), "--max-rows", "1") as server:
        many = load(server.port, table.texts, clients=8 * clients, requests=5 * early)
        found["overload"] = {"clients": 8 * clients, "queue_rows": clients, **told(*many, expected)}
        print("overload:", found["overload"])
    return found


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--smoke", action="store_true", help="a tiny random model: only whether it runs")
    made.add_argument("--run", type=Path, default=RUN, help=f"a fine-tuned model of sentences (default: {RUN})")
    made.add_argument("--requests", type=int, default=REQUESTS)
    made.add_argument("--out", type=Path, help=f"the record (default: results/{RESULT})")
    asked = made.parse_args()
    busy = [round(load, 2) for load in os.getloadavg()]
    out = asked.out or (interleaved.SMOKE if asked.smoke else peers.RESULTS) / RESULT
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if asked.smoke:
            model, source = export_parity.tiny(work)
            table = data.read_table(str(source), labelled=False)
            found = measure(model, table, source, clients=8, requests=400, early=100)
        else:
            model, table = asked.run, demo.read_splits(demo.Config())["test"]
            source = demo.write_csv(work / "film-reviews.csv", table)
            found = measure(model, table, source, clients=CLIENTS, requests=asked.requests, early=EARLY)
    record = {
        "command": "python experiments/benchmarks/" + " ".join([Path(__file__).name, *sys.argv[1:]]),
        "machine": peers.machine(),
        "versions": peers.versions("jax", "flax", "numpy", "fastapi", "uvicorn"),
        "load_before": busy,  # of 1, 5 and 15 minutes: what else ran on the cores
        "model": "a tiny random model" if asked.smoke else str(RUN),
        "serving": found,
    }
    peers.write_json(out, record)
    print(f"written to {out}")
    parts = [part for part in found.values() if isinstance(part, dict) and "wrong" in part]
    lost = [
        part for part in parts if sum(part["statuses"].get(status, 0) for status in ("200", "429")) < part["requests"]
    ]
    if lost or any(part["wrong"] for part in parts):
        sys.exit("some requests were not answered, or answered wrongly")


if __name__ == "__main__":
    main()
