"""A server on a free loopback port, in a thread of this process, and short ways to ask it."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from jaxptft.recipes import serve
from jaxptft.recipes.serving.server import Listening, Served
from jaxptft.recipes.settings import build


def ask(port, path, body=None, *, headers=(), timeout=60) -> SimpleNamespace:
    """The status, headers and content of an answer, what JSON means; a body that is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, content, {"Content-Type": "application/json", **dict(headers)})
        reply = connection.getresponse()
        content = reply.read()
        is_json = reply.headers.get_content_type() == "application/json"
        return SimpleNamespace(
            status=reply.status, headers=reply.headers, content=json.loads(content) if is_json else content.decode()
        )
    finally:
        connection.close()


@contextmanager
def running(model, quickly, *, wait=True, answer=None, **values):
    """A server; `answer` stands in for the model's answers, given them as a function, where there is one."""
    config = build(serve.Config, {"model": str(model), "port": 0, **values})
    said: list[str] = []
    with quickly():
        served = Served(config, serve.request_of(config))
        if answer is not None:
            real = served.batcher._answer
            served.batcher._answer = lambda rows: answer(rows, real)
        with Listening(config.host, config.port) as listening:
            thread = threading.Thread(target=listening.serve, args=(served,), kwargs={"say": said.append})
            thread.start()
            found = SimpleNamespace(port=listening.port, served=served, said=said, stop=listening.stop, thread=thread)
            found.ask = lambda path, body=None, **options: ask(listening.port, path, body, **options)
            try:
                while wait and thread.is_alive() and found.ask("/healthz").status != 200:
                    time.sleep(0.02)
                yield found
            finally:
                listening.stop()
                thread.join(60)
                assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving(quickly):
    """A function: (model, **values of serve) -> a context in which a server runs."""
    return lambda model, **values: running(model, quickly, **values)


@pytest.fixture(scope="session")
def of_loopback():
    """`ask`, of this file."""
    return ask


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """A ViT that torch drew, for images of 16 x 16 in colour."""
    import torch
    import transformers

    labels = {0: "cat", 1: "dog", 2: "owl"}
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(
        **sizes, image_size=16, patch_size=8, id2label=labels, label2id={name: key for key, name in labels.items()}
    )
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("models") / "vit"
    model.save_pretrained(folder)
    return folder
