"""Served answers are those of `jaxptft predict`; what cannot be answered is refused, and stopping loses nothing."""

import http.client
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from jaxptft.recipes import export, quantize, serve
from jaxptft.recipes.serving.answers import Answerer
from jaxptft.recipes.serving.server import Listening, Served
from jaxptft.recipes.settings import build

DIGITS = 3e-6  # six digits are told, and the last bits of a float depend on the shape of the batch


@pytest.fixture(scope="module")
def server(serving, finished):
    """The finished run, on texts of 16 tokens at most."""
    with serving(finished.out, batch_sizes=(1, 16), lengths=(8,), max_rows=8, max_bytes=4000) as found:
        yield found


@pytest.fixture
def offline(command, tmp_path):
    """A function: (model, rows, flags) -> what `jaxptft predict` says of them, without their places."""

    def run(model, rows, *flags):
        source, out = tmp_path / "rows.jsonl", tmp_path / "p.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        told = command("predict", model, "--data", source, "--out", out, "--overwrite", *flags)
        assert told.status == 0, told.err
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return [{name: value for name, value in line.items() if name != "row"} for line in found]

    return run


def assert_same(found, expected):
    """Equal but for the last of six digits."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=DIGITS)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def until(condition):
    """Wait, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def texts(count, seed=0):
    words = np.random.default_rng(seed)
    return [" ".join(words.choice(["good", "bad", "film", "the", "so"], words.integers(1, 20))) for _ in range(count)]


def test_64_clients_at_once_get_what_predict_says(server, finished, offline):
    rows = [{"text": text} for text in texts(192)]
    expected = offline(finished.out, rows)
    compiled = len(server.served.answerer.shapes)

    def client(number):
        found = {}
        for place in range(number, len(rows), 64):
            size = place % 3  # one row alone, or a list of one or two
            if size == 0:
                found[place] = server.ask("/predict", rows[place])
            else:
                found[place] = server.ask("/predict", {"rows": [rows[place]] * size})
        return found

    with ThreadPoolExecutor(64) as pool:
        replies = {place: reply for part in pool.map(client, range(64)) for place, reply in part.items()}
    assert len(replies) == len(rows)
    for place, reply in replies.items():
        assert reply.status == 200, reply.content
        answers = reply.content["predictions"] if place % 3 else [reply.content]
        for answer in answers:
            assert answer.pop("truncated") == (len(rows[place]["text"].split()) > 14)
            assert_same(answer, expected[place])
    assert len(server.served.answerer.shapes) == compiled  # nothing was left to compile
    counts = server.served.batcher.counts
    assert counts.batches < counts.requests  # several shared a batch


def test_everything_is_compiled_before_it_is_ready_and_told(server, finished):
    about = server.ask("/metadata").content
    smallest = jax.device_count()  # a row for each device at least
    assert about["shapes"] == [[size, length] for size in (smallest, 16) for length in (8, 16)]
    assert (about["task"], about["labels"], about["max_length"]) == ("classification", ["neg", "pos"], 16)
    assert about["limits"] == {"max_bytes": 4000, "max_rows": 8, "timeout": 30.0, "too_long": "cut"}
    assert len(about["fingerprint"]) == 64
    assert server.ask("/healthz").content == {"status": "ready"}
    assert server.said[0] == f"serving {finished.out} (classification) at http://127.0.0.1:{server.port}; Ctrl-C stops"
    assert re.fullmatch(r"ready: 4 shapes compiled in [\d.]+ s", server.said[1])


def test_what_cannot_be_answered_is_refused_and_the_next_is_answered(server):
    for body, status, message in (
        ({"txt": "a"}, 422, "unknown field txt; did you mean 'text'?"),
        ({"rows": [{"text": "a"}] * 9}, 422, "rows has 9 rows; expected 1 to 8"),
        ({"rows": [{"text": "a"}, {"text": ""}]}, 422, "rows.1.text is empty"),
        (b"{", 400, "the body is not JSON"),
        ({"text": "a " * 2001}, 413, "the body has more than 4000 bytes"),
    ):
        reply = server.ask("/predict", body)
        assert (reply.status, list(reply.content)) == (status, ["detail"])
        assert message in reply.content["detail"]
    reply = server.ask("/predict", b"text=a", headers={"Content-Type": "application/x-www-form-urlencoded"}.items())
    assert reply.status == 415
    assert "expected application/json" in reply.content["detail"]
    assert server.ask("/predict").status == 405
    assert server.ask("/nowhere").content == {"detail": "Not Found"}
    assert server.ask("/predict", {"text": "so good"}).status == 200


def test_a_body_in_pieces_is_bounded_too(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    pieces = (b'{"text": "' if number == 0 else b"a" * 500 for number in range(20))
    connection.request("POST", "/predict", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    reply = connection.getresponse()
    assert reply.status == 413
    assert "more than 4000 bytes" in json.loads(reply.read())["detail"]
    connection.close()
    pieces = iter([b'{"text": ', b'"so bad"}'])
    connection.request("POST", "/predict", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    assert json.loads(connection.getresponse().read())["label"] == "neg"
    connection.close()


def test_the_interface_is_described_and_its_pages_load_nothing_from_elsewhere(server):
    told = server.ask("/openapi.json").content
    assert set(told["paths"]) == {"/predict", "/healthz", "/metadata"}
    row, several = told["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert row["required"] == ["text"]
    assert several["properties"]["rows"]["maxItems"] == 8
    assert {"200", "413", "422", "429", "503", "504"} <= set(told["paths"]["/predict"]["post"]["responses"])
    for path in ("/", "/docs"):
        page = server.ask(path)
        assert page.status == 200
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert not re.search(r"https?:|@import|src=", page.content)


def test_long_texts_are_refused_where_that_is_asked_for(serving, finished):
    with serving(finished.out, batch_sizes=(1,), lengths=(16,), too_long="refuse") as found:
        reply = found.ask("/predict", {"rows": [{"text": "so good"}, {"text": "good " * 15}]})
        assert reply.status == 422
        assert reply.content["detail"].startswith("rows.1 is longer than the model reads")
        assert found.ask("/predict", {"text": "so good"}).content["truncated"] is False


class Held:
    """Answers that come when `open` is set; a text of "fail" fails."""

    def __init__(self):
        self.open, self.entered = threading.Event(), threading.Event()

    def __call__(self, rows, real):
        self.entered.set()
        if any(row["text"] == "fail" for row in rows):
            raise FloatingPointError("the model gives NaN")
        assert self.open.wait(60)
        return real(rows)


def test_under_overload_every_request_is_answered_at_once_or_later(serving, finished):
    held = Held()
    with serving(finished.out, batch_sizes=(1,), lengths=(16,), queue_rows=4, max_rows=2, answer=held) as found:
        with ThreadPoolExecutor(32) as pool:
            first = pool.submit(found.ask, "/predict", {"text": "so good"})
            assert held.entered.wait(60)
            replies = [pool.submit(found.ask, "/predict", {"text": "so good"}) for _ in range(20)]
            until(lambda: sum(reply.done() for reply in replies) == 16)  # all but those that the queue holds
            refused = [reply.result() for reply in replies if reply.done()]
            held.open.set()
            statuses = [reply.result(60).status for reply in replies]
            assert first.result(60).status == 200
        assert (statuses.count(200), statuses.count(429)) == (4, 16)
        assert {(reply.status, reply.headers["Retry-After"]) for reply in refused} == {(429, "1")}
        assert found.ask("/predict", {"text": "so good"}).status == 200


def test_a_failing_batch_is_500_to_its_own_requests_and_a_late_answer_504(serving, finished):
    held = Held()
    with serving(finished.out, batch_sizes=(1,), lengths=(16,), timeout_s=0.3, answer=held) as found:
        reply = found.ask("/predict", {"text": "fail"})
        assert (reply.status, reply.content["detail"]) == (
            500,
            "the request failed (FloatingPointError); the server's log has more",
        )
        reply = found.ask("/predict", {"text": "so good"})
        assert (reply.status, reply.content["detail"]) == (504, "no answer within 0.3 seconds")
        with socket.create_connection(("127.0.0.1", found.port), timeout=60) as slow:  # a body that never comes
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        held.open.set()
        assert found.ask("/predict", {"text": "so good"}).content["label"] == "pos"


def test_until_everything_is_compiled_it_says_503(serving, finished, monkeypatch):
    may, real = threading.Event(), Answerer.compile

    def compile(answerer, stopped):
        assert may.wait(60)
        real(answerer, stopped)

    monkeypatch.setattr(Answerer, "compile", compile)
    with serving(finished.out, batch_sizes=(1,), lengths=(16,), wait=False) as found:
        reply = found.ask("/healthz")
        assert (reply.status, reply.content) == (503, {"status": "compiling"})
        reply = found.ask("/predict", {"text": "so good"})
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert found.ask("/metadata").content["shapes"] == []
        may.set()
        until(lambda: found.ask("/healthz").status == 200)
        assert found.ask("/predict", {"text": "so good"}).content["label"] == "pos"


HEADS = {
    "token_classification": ("BertForTokenClassification", [{"text": "good, bad film"}, {"tokens": ["bad", "so"]}]),
    "question_answering": (
        "BertForQuestionAnswering",
        [{"question": "was it good", "context": "the film was so good and the book was very very bad it was"}] * 2,
    ),
    "multiple_choice": (
        "BertForMultipleChoice",
        [{"question": "so good", "choices": ["bad", "good film"]}, {"question": "bad", "choices": ["a", "so", "the"]}],
    ),
    "multi_label": ("BertForSequenceClassification", [{"text": "so good"}, {"text": "bad", "text_pair": "the film"}]),
    "regression": ("BertForSequenceClassification", [{"text": "so good"}, {"text": "bad " * 40}]),
}


@pytest.mark.parametrize("task", HEADS)
def test_other_tasks_answer_as_predict_does(task, serving, make_model, offline, tmp_path):
    architecture, rows = HEADS[task]
    labels = {0: "O", 1: "B-X", 2: "I-X"}
    changes = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if task == "multi_label":
        changes["problem_type"] = "multi_label_classification"
    if task == "regression":
        changes = {"num_labels": 1, "problem_type": "regression"}
    if task in ("question_answering", "multiple_choice"):
        changes = {}
    model = make_model(tmp_path / "model", architecture, **changes)
    with serving(model, batch_sizes=(1,), lengths=(20,)) as found:
        compiled = found.served.answerer.shapes
        assert len(compiled) == (3 if task == "multiple_choice" else 1)
        reply = found.ask("/predict", {"rows": rows})
        assert reply.status == 200, reply.content
        for row, answer in zip(rows, reply.content["predictions"], strict=True):
            assert answer.pop("truncated") == (len(row.get("text", "")) > 100)
            assert_same(answer, offline(model, [row])[0])
        assert found.served.answerer.shapes == compiled


@pytest.mark.parametrize("kind", ["stablehlo", "flax", "int8"])
def test_exports_and_quantized_models_are_served(kind, serving, finished, offline, quickly, tmp_path, files):
    out = tmp_path / kind
    with quickly():
        if kind == "int8":
            values = {"model": str(finished.out), "out": out, "mode": "weights", "calls": 1}
            quantize.run(quantize.Config(**values), say=lambda _: None)
        else:
            export.run(export.Config(model=str(finished.out), format=kind, out=out), say=lambda _: None)
    rows = [{"text": "so good"}, {"text": "the bad film"}]
    with serving(out, batch_sizes=(2,), lengths=(16,)) as found:
        answers = found.ask("/predict", {"rows": rows}).content["predictions"]
        assert len(found.ask("/metadata").content["fingerprint"]) == 64
    assert_same([{name: answer[name] for name in ("label", "probabilities")} for answer in answers], offline(out, rows))


def test_what_is_not_served_is_refused_in_one_line(refused, finished, encoder, resnet, tmp_path):
    assert "has no head of a task" in refused("serve", encoder, "--port", "0")
    assert "port is 70000" in refused("serve", finished.out, "--port", "70000")
    assert "batch_sizes is (4, 1)" in refused("serve", finished.out, "--batch-sizes", "4", "1")
    assert "max_rows is 9 and queue_rows 8" in refused("serve", finished.out, "--max-rows", "9", "--queue-rows", "8")
    told = refused("serve", finished.out, "--port", "0", "--lengths", "8", "17")
    assert "lengths has 17, and the model reads 16 tokens at most" in told
    told = refused("serve", finished.out, "--port", "0", "--settled.threshold", "0.5")
    assert "settled.threshold is 0.5, and classification has no use for it" in told
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused("serve", finished.out, "--port", port)
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use); choose another --port" in told
    assert "host 'no host' is not known" in refused("serve", finished.out, "--host", "no host")


def test_an_absent_package_is_named(refused, finished, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    told = refused("serve", finished.out, "--port", "0")
    assert told == "serve needs the package fastapi; pip install 'jaxptft[serve]'"


def test_what_is_told_to_stop_before_it_serves_does_not_serve(finished, quickly):
    config, said = build(serve.Config, {"model": str(finished.out), "port": 0}), []
    with quickly(), Listening(config.host, config.port) as listening:
        listening.stop()
        listening.serve(Served(config, serve.request_of(config)), say=said.append)
    assert not [line for line in said if line.startswith("ready")]


def test_a_model_that_cannot_be_compiled_ends_the_server(finished, quickly, monkeypatch):
    def fail(*arguments):
        raise ValueError("no memory")

    monkeypatch.setattr("jaxptft.recipes.serving.answers.Answerer.compile", fail)
    config = build(serve.Config, {"model": str(finished.out), "port": 0})
    with quickly(), pytest.raises(RuntimeError, match="cannot be asked: no memory"):
        serve.run(config, say=lambda _: None)


def test_sigterm_answers_what_came_before_it_and_exits_with_0(process, finished, of_loopback, tmp_path):
    # A batch waits two seconds for more rows: the signal comes while one waits.
    flags = ("--port", "0", "--batch-sizes", "1", "2", "--lengths", "16", "--wait-ms", "2000")
    running = process("serve", finished.out, *flags)
    try:
        port = None
        for line in running.stdout:
            if found := re.search(r"at http://127\.0\.0\.1:(\d+); Ctrl-C stops", line):
                port = int(found[1])
            if line.startswith("ready: "):
                break
        assert port is not None
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(of_loopback, port, "/predict", {"text": "so good"})
            until(lambda: of_loopback(port, "/metadata").content["waiting"] == 1)
            running.send_signal(signal.SIGTERM)
            assert reply.result(60).content["label"] == "pos"
        assert running.wait(60) == 0
        assert "1 rows of 1 requests answered" in running.stdout.read()
        with pytest.raises(ConnectionError):
            of_loopback(port, "/healthz")
    finally:
        if running.poll() is None:
            running.kill()
        running.close()


def test_sigterm_while_it_compiles_exits_with_0_too(process, finished):
    running = process("serve", finished.out, "--port", "0")
    try:
        assert running.stdout.readline().startswith("serving ")
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert running.stdout.read().splitlines()[-1] == "0 rows of 0 requests answered"
    finally:
        if running.poll() is None:
            running.kill()
        running.close()
