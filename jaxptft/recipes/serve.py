"""Serve a fine-tuned model over HTTP: rows in, what `jaxptft predict` says of them out."""

from collections.abc import Callable
from typing import Any, Literal

import tyro
from pydantic import Field, model_validator

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Settled


class Config(Settings):
    """Answer rows over HTTP: jaxptft serve MODEL. POST {"text": "..."}, {"image": base64} or {"rows": [...]}"""

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face or converted folder, a quantized model, an exported program, or a hub's name"""
    host: str = "127.0.0.1"
    """where to listen; 0.0.0.0 for all networks, which anyone may then ask"""
    port: int = Field(default=8000, ge=0, le=65535)
    """0: a free one, which is printed"""
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    """numbers of rows that are computed at once, ascending: each is compiled for each length; more on an accelerator"""
    lengths: tuple[int, ...] = ()
    """numbers of tokens that rows are padded to, ascending (default: 16, 32, 48, 64, 96 and so forth)"""
    wait_ms: float = Field(default=2.0, ge=0, le=10_000)
    """how long a batch waits for more rows"""
    queue_rows: int = Field(default=512, ge=1)
    """rows that may wait; 429 beyond"""
    max_rows: int = Field(default=64, ge=1)
    """rows of a request"""
    max_bytes: int | None = Field(default=None, ge=100)
    """bytes of a request's body (default: 1 million of texts, 16 million of images)"""
    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """seconds after which a request gets 504"""
    grace_s: float = Field(default=30.0, gt=0, le=3600)
    """seconds in which requests are still answered after SIGTERM or Ctrl-C"""
    too_long: Literal["cut", "refuse"] = "cut"
    """texts longer than the model reads: cut, and said so in the answer, or refused"""
    max_length: int | None = Field(default=None, ge=3)
    """tokens of a text at most (default: as in the model's run, or what the model takes)"""
    settled: Settled = Settled()
    allow_bin: bool = False
    family: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        for name in ("batch_sizes", "lengths"):
            values = getattr(self, name)
            if any(one >= two for one, two in zip((0, *values), values, strict=False)):
                raise ValueError(f"{name} is {values}; give positive numbers in ascending order")
        if not self.batch_sizes:
            raise ValueError("batch_sizes is empty; give one number at least")
        if self.max_rows > self.queue_rows:
            raise ValueError(f"max_rows is {self.max_rows} and queue_rows {self.queue_rows}; give room for one request")
        return self


def run(config: Config, *, say: Callable[[str], None] = print) -> int:
    """Serve until SIGTERM or Ctrl-C, answer what waits, and return 0.

    Raises ValueError where a package is absent, or the model's task is not served, OSError where the port is taken, and
    RuntimeError where the model cannot be compiled.
    """
    _require_packages()
    import gc

    from jaxptft.recipes.serving.server import Listening, Served

    with Listening(config.host, config.port) as listening:
        served = Served(config, request_of(config))
        gc.set_threshold(700, 10, 10)  # as often as Python does by itself: each batch leaves arrays in cycles
        listening.serve(served, say=say)
    counts = served.batcher.counts
    say(f"{counts.rows} rows of {counts.requests} requests answered")
    return 0


def _require_packages() -> None:
    for name in ("fastapi", "uvicorn"):
        try:
            __import__(name)
        except ImportError:
            raise ValueError(f"serve needs the package {name}; pip install 'jaxptft[serve]'") from None


def request_of(config: Config) -> Any:
    """The values of `predict` that say how rows are answered."""
    from pathlib import Path

    from jaxptft.recipes import predict

    values: dict[str, Any] = {"model": config.model, "max_length": config.max_length, "settled": config.settled}
    return predict.Config(**values, data="the request", out=Path("unused"))
