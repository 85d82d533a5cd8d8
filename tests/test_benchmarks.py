"""The parts of the benchmarks that are not measurements: what they read, count and render."""

import importlib
import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

FOLDER = Path(__file__).parents[1] / "experiments" / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "interleaved.parse(" in path.read_text()]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if str(FOLDER) in str(getattr(module, "__file__", ""))]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_without_running_and_names_its_command(path, script):
    assert f"python experiments/benchmarks/{path.name}" in script(path.stem).__doc__


def record(**changes):
    line = {"what": "steps", "unit": "tokens/s", "p0": 10.0, "p1": None, "ours": 45_000.0, "limit": 0.0123}
    line |= {"goals": [{"wanted": ">= 4x", "found": 4.5, "met": True}, {"wanted": "<= 2", "found": 3.0, "met": False}]}
    return {"machine": {"cpu": "a processor", "cores": 2}, "table": [line | changes]}


def test_the_table_has_a_line_a_measurement_and_says_which_goals_are_missed(script, tmp_path):
    table = script("table")
    unmeasured = record(what="devices", goals=[{"wanted": "0 gathers", "found": None, "met": None}])
    (tmp_path / "a.json").write_text(json.dumps(record()))
    (tmp_path / "b.json").write_text(json.dumps(unmeasured))
    (tmp_path / "other.json").write_text(json.dumps([1]))  # a record of another kind
    text = table.render(table.records(tmp_path))
    assert (
        "| steps | tokens/s | 10 | - | 45,000 | 0.0123 | >= 4x: 4.5 met; <= 2: 3 **missed** | [a.json](a.json) |"
        in text
    )
    assert "0 gathers: not measured" in text
    assert text.count("## a processor, 2 cores") == 1


def test_a_machine_with_a_gpu_has_a_table_of_its_own(script):
    gpu = record() | {"machine": {"gpu": "a GPU"}}
    text = script("table").render([("a.json", record()), ("b.json", gpu)])
    assert text.index("## a processor") < text.index("[a.json]") < text.index("## a GPU") < text.index("[b.json]")


def test_a_damaged_record_is_named(script, tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: is not JSON"):
        script("table").records(tmp_path)


def test_a_rate_is_better_when_higher_and_a_time_when_lower(script):
    better = script("table").better
    assert better({"unit": "tokens/s", "ours": 30.0, "p0": 10.0}, "p0") == pytest.approx(3.0)
    assert better({"unit": "seconds", "ours": 2.0, "p0": 10.0}, "p0") == pytest.approx(5.0)
    assert better({"unit": "seconds", "ours": 2.0, "p0": None}, "p0") is None
    assert better({"unit": "steps", "ours": -0.1, "p0": 2.0}, "p0") is None


def test_the_plot_is_a_picture(script, tmp_path):
    script("table").plot([("a.json", record(p1=20.0))], tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_a_goal_is_met_at_its_bound(script):
    goal = script("interleaved").goal
    assert goal("", 2.0, least=2.0)["met"]
    assert goal("", 2.0, most=2.0)["met"]
    assert not goal("", 1.9, least=2.0)["met"]
    assert goal("", None, least=2.0)["met"] is None


def test_a_part_that_fails_leaves_its_error(script, capsys):
    def part():
        raise RuntimeError("two lines\nthe last")

    assert script("interleaved").tried(part) == {"error": "the last"}
    assert script("interleaved").tried(lambda: {"value": 1}) == {"value": 1}


def test_collectives_of_a_compiled_program_are_counted_with_their_bytes(script):
    # By hand: a sum over sharded rows is one all-reduce of its [3, 5] float32 result; replicating [8, 6] is one gather.
    devices = script("devices")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x, y = jnp.ones((8, 3, 5)), jnp.ones((8, 6))
    summed = jax.jit(lambda x: x.sum(0), in_shardings=rows, out_shardings=whole).lower(x).compile().as_text()
    gathered = jax.jit(lambda y: y * 2, in_shardings=rows, out_shardings=whole).lower(y).compile().as_text()
    found = devices.collectives(summed)
    assert found["all-reduce"] == [3 * 5 * 4]
    assert found["all-gather"] == []
    assert devices.collectives(gathered)["all-gather"] == [8 * 6 * 4]


def test_collectives_that_are_tuples_or_asynchronous_are_read(script):
    text = """
      %a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(f32[2,3] %x, bf16[4] %y), channel_id=1
      %b = f32[100]{0} all-reduce-start(f32[100] %z), channel_id=2
      %c = f32[100]{0} all-reduce-done(f32[100] %b)
      %d = f32[] all-reduce(f32[] %w)
    """
    devices = script("devices")
    assert devices.collectives(text)["all-reduce"] == [2 * 3 * 4 + 4 * 2, 400, 4]
    facts = devices.facts(text.replace("f32[100]", "f32[1000]"), 8000)
    assert (facts["gradient_all_reduces"], facts["scalar_all_reduces"]) == (1, 2)
    assert facts["reduced_over_trainable"] == pytest.approx(0.5)


def test_a_stall_is_in_steps(script):
    # Four steps of one second, one of which takes three more for a save: three steps.
    assert script("checkpoint_stall").stall([1.0, 4.0, 1.0, 1.0], [1.0] * 4, 1) == pytest.approx(3.0)


def test_the_largest_batch_within_a_bound(script):
    largest = script("memory").largest_within
    assert largest({4: 10.0, 8: 20.0, 16: 40.0}, 20.0) == 8
    assert largest({4: 10.0}, 5.0) == 0


def test_the_flops_of_a_step_are_those_of_its_matrix_products(script):
    # Counted by XLA: the products alone of a forward pass of one layer, a head on every token, no gather (rate 1).
    workload = script("workload")
    size = workload.Size(layers=1, width=8, heads=1, vocab=50, length=4)
    width, length, vocab = size.width, size.length, size.vocab

    def forward(x, square, up, down, table):
        q, k, v = (x @ square for _ in range(3))
        x = (q @ k.T) @ v @ square
        x = (x @ up) @ down
        return (x @ square) @ table

    shapes = ((length, width), (width, width), (width, 4 * width), (4 * width, width), (width, vocab))
    products = jax.make_jaxpr(forward)(*(np.zeros(shape, np.float32) for shape in shapes))
    found = sum(
        2 * np.prod(equation.outvars[0].aval.shape) * equation.invars[0].aval.shape[-1]
        for equation in products.eqns
        if equation.primitive.name == "dot_general"
    )
    head = 2 * (width**2 + width * vocab) * length
    expected = 3 * (found - head + workload.RATE * head)
    assert size.step_flops(1) == pytest.approx(expected)


@pytest.fixture
def gpu(script, tmp_path, monkeypatch):
    """The script for a GPU with a report of its own, and its steps on what a function of worker and round answers."""
    gpu = script("gpu")
    monkeypatch.setattr(gpu.workload, "prepare", lambda *_, **__: None)

    def steps(answer, loss=lambda name: 2.0):
        asked = []

        def ask(name, mode, **_):
            if mode == "check":
                return {"loss": loss(name)}
            asked.append(name)
            found = {"cpu_seconds": 1.0, "peak_rss_mb": 1.0, "peak_device_mb": 1.0, "losses": [2.0, 1.0]}
            return {"tokens": 100, "seconds": answer(name, asked.count(name)), **found}

        return gpu.Steps(ask, label="128", size=gpu.workload.SMOKE, tokens=64, steps=4)

    return SimpleNamespace(script=gpu, report=gpu.Report(tmp_path / "gpu.json"), steps=steps)


def test_a_worker_of_the_gpu_that_fails_later_keeps_what_it_gave(gpu):
    def answer(name, number):
        if name == "p1_compiled" or (name, number) == ("p0", 2):
            raise subprocess.TimeoutExpired("worker", 1.0)
        return {"p0": 10.0, "p1": 8.0, "ours": 2.0, "ours_free": 1.0}[name] * number

    steps = gpu.steps(answer)
    steps.first()
    steps.round()
    # By hand: the medians of 10 and nothing, of 12.5 and 6.25, and of 50 and 25 tokens a second.
    line = steps.line(rate=None)
    assert (line["p0"], line["p1"], line["ours"], line["limit"]) == (10.0, 9.375, 37.5, None)
    assert [goal["found"] for goal in line["goals"]] == [3.75, 4.0, None]
    assert list(steps.told(None)["failed"]) == ["p1_compiled"]
    flops = steps.size.step_flops(steps.batch) / (steps.batch * steps.size.length)
    assert steps.told(100 * flops)["model_flops_utilisation"]["ours"] == pytest.approx(0.375)


def test_sides_that_compute_different_things_end_their_part_alone(gpu, capsys):
    steps = gpu.steps(lambda name, number: 1.0, loss=lambda name: 3.0 if name == "ours" else 2.0)
    found = gpu.report.part("step_128", lambda: steps.first() or {})
    assert "do not compute the same" in found["error"]
    assert not steps.answers
    gpu.report.part("vmap", lambda: {"runs": {}})
    assert list(json.loads(gpu.report.path.read_text())["parts"]) == ["step_128", "vmap"]


def test_a_part_that_is_not_asked_for_is_left_out(gpu, tmp_path):
    report = gpu.script.Report(tmp_path / "other.json", only=["vmap"])
    assert report.part("dropout", lambda: pytest.fail("it ran")) == {}
    assert not report.path.exists()


@pytest.mark.parametrize(
    ("worker", "seen", "budget", "expected"),
    [
        ("p0", "cpu", 100.0, "needs a GPU: torch sees none here"),
        ("ours", "cpu", 5.0, "no time was left for it"),
    ],
)
def test_what_cannot_be_measured_on_a_gpu_says_why(gpu, tmp_path, worker, seen, budget, expected):
    report = gpu.script.Report(tmp_path / "gpu.json", budget=budget)
    ask = gpu.script.Asker(report, {"threads": 1}, seen={"ours": "gpu", "p0": seen})
    assert expected in report.part("matmul", lambda: ask(worker, "matmul"))["error"]


def test_lines_of_the_gpu_take_the_largest_number_of_runs_and_go_without_what_is_missing(gpu):
    runs = {"1": {"over_one": 1.0}, "4": {"over_one": 5.0}, "16": {"error": "out of memory"}}
    assert gpu.script.many_line(runs)["ours"] is None
    assert gpu.script.many_line(runs | {"16": {"over_one": 4.5}})["goals"][0]["met"]
    held = gpu.script.memory_line({"p0": 10.0, "ours": 5.0, "ours_twice": 11.0})
    assert [goal["met"] for goal in held["goals"]] == [True, False]
    started = gpu.script.start_up_line({"p0": 10.0, "ours": 4.0})
    assert [goal["found"] for goal in started["goals"]] == [0.4, None]


def test_attention_is_tried_by_implementation_and_compared(script):
    """On CPU there is no cuDNN, which says so; XLA's is what the others are held against."""
    found = script("gpu_parts").attention({"lengths": [16], "tokens": 32, "heads": 2})["by_implementation"]
    assert found["xla packed, 16"]["off"] == 0.0
    assert found["dropout packed, 16"]["milliseconds"] > 0
    assert "cuDNN" in found["cudnn, 16"]["error"]


def test_a_worker_that_takes_too_long_is_ended_with_its_helpers(script, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import subprocess, sys, pathlib, time\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(helper.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        script("peers").ask({"threads": 1, "worker": "slow", "mode": "time"}, script=slow, timeout=5)
    with suppress(ProcessLookupError):  # killed, it may take the kernel a moment to end it
        helper = os.pidfd_open(int((tmp_path / "pid").read_text()))
        assert select.select([helper], [], [], 30)[0], "the worker's helper lives on"


def test_a_worker_that_fails_says_why(script, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('what is wrong')")
    with pytest.raises(RuntimeError, match=r"worker broken, mode time, exit 1:(.|\n)*what is wrong"):
        script("peers").ask({"threads": 1, "worker": "broken", "mode": "time"}, script=broken)


def test_served_answers_are_judged_one_by_one(script):
    serving = script("serving")
    sure = {"label": "pos", "probabilities": {"neg": 0.25, "pos": 0.75}}
    near = {"label": "pos", "probabilities": {"neg": 0.250001, "pos": 0.749999}}
    off = {"label": "pos", "probabilities": {"neg": 0.2501, "pos": 0.7499}}
    other = {"label": "neg", "probabilities": {"neg": 0.25, "pos": 0.75}}
    replies = [(0, 200, 0.1, near), (1, 200, 0.3, off), (1, 200, 0.2, other), (0, 429, 0.9, {"detail": "later"})]
    found = serving.told(replies, 2.0, [sure, sure])
    assert found["statuses"] == {"200": 3, "429": 1}
    assert (found["wrong"], found["answers_per_second"]) == (2, 1.5)
    assert (found["p50_ms"], found["longest_ms"]) == (200.0, 900.0)  # latencies of answers; of all
    assert found["max_difference"] == pytest.approx(1e-4)
