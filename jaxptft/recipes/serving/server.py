"""A model opened, a batcher before it, and the process that listens until it is told to stop."""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from jaxptft import __version__
from jaxptft.recipes import predict
from jaxptft.recipes.exported import open_any
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.model_source import served_fingerprint
from jaxptft.recipes.runtime import keep_compiled_programs
from jaxptft.recipes.serving.answers import Answerer
from jaxptft.recipes.serving.app import Limits, make_app
from jaxptft.recipes.serving.batcher import Batcher
from jaxptft.recipes.serving.images import ImageAnswerer
from jaxptft.recipes.tasks.options import refuse_unused

if TYPE_CHECKING:
    from jaxptft.recipes.serve import Config

Say = Callable[[str], None]
TOGETHER = 4
"""How many of the largest batches are taken at once: among more rows more are of one length. Of film reviews of 27
tokens, 16 at a time cost 2.1 tokens for each that they have, and 64 at a time 1.6, or 1.4 with lengths such as 48."""
TEXT_BYTES, IMAGE_BYTES = 1_000_000, 16_000_000
"""Of a request's body, where `max_bytes` does not say."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Served:
    """A model ready to be asked: `answerer` for rows, `batcher` before it, and what `/metadata` tells."""

    def __init__(self, config: "Config", request: predict.Config):
        keep_compiled_programs()
        opened = open_any(config.model, family=config.family, allow_bin=config.allow_bin)
        refuse_unused(request, opened.task)
        self.config = config
        self.answerer = _answerer(opened, request, config)
        enough = self.answerer.sizes[-1]
        wait = config.wait_ms / 1000
        self.batcher = Batcher(self.answerer, most=TOGETHER * enough, room=config.queue_rows, wait=wait, enough=enough)
        self._facts = _facts(opened, self.answerer)

    def about(self) -> Mapping[str, Any]:
        """The model, what is compiled, what was done so far, and how many rows wait."""
        now = {"shapes": self.answerer.shapes, "served": vars(self.batcher.counts), "waiting": self.batcher.waiting}
        return {**self._facts, **now}


def _answerer(opened: Opened, request: predict.Config, config: "Config") -> Answerer | ImageAnswerer:
    if opened.preprocessing is None:
        return Answerer(opened, request, sizes=config.batch_sizes, lengths=config.lengths)
    if config.lengths:
        raise ValueError(f"lengths is {config.lengths}, and {opened.source} reads images; leave it out")
    return ImageAnswerer(opened, sizes=config.batch_sizes)


def _facts(opened: Opened, answerer: Answerer | ImageAnswerer) -> dict[str, Any]:
    import jax

    return {
        "task": opened.task,
        "labels": list(opened.names) or None,
        "model": opened.source,
        "fingerprint": served_fingerprint(opened),
        "max_length": answerer.longest,
        "batch_sizes": answerer.sizes,
        "lengths": answerer.lengths,
        "versions": {"jaxptft": __version__, "jax": jax.__version__},
        "devices": [str(device) for device in jax.devices()],
    }


class _Server(uvicorn.Server):
    """uvicorn's, which leaves with status 0 after a signal that it has obeyed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Listening:
    """A socket that is bound, its address, and the server on it; OSError where the address is taken or none."""

    def __init__(self, host: str, port: int):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise OSError(f"host {host!r} is not known ({error.strerror}); give an address of this machine") from None
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(address)
            self._socket.listen(1024)  # who comes before the model is read waits
        except OSError as error:
            self._socket.close()
            raise OSError(f"cannot listen on {host} port {port} ({error.strerror}); choose another --port") from None
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._server: _Server | None = None
        self._stopping = False

    def __enter__(self) -> "Listening":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def serve(self, served: Served, *, say: Say) -> None:
        """Compile, answer, and return when told to stop; RuntimeError where the model cannot be compiled."""
        config, failure = served.config, []
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

        def prepare() -> bool:
            begun = time.monotonic()
            say(f"serving {config.model} ({served.answerer.task}) at {self.url}; Ctrl-C stops")
            try:
                served.answerer.compile(lambda: served.batcher.closing or server.should_exit)
            except Exception as error:
                failure.append(error)
                server.should_exit = True
            if server.should_exit:
                return False
            say(f"ready: {len(served.answerer.shapes)} shapes compiled in {time.monotonic() - begun:.1f} s")
            return True

        answerer = served.answerer
        most = config.max_bytes or (IMAGE_BYTES if isinstance(answerer, ImageAnswerer) else TEXT_BYTES)
        limits = Limits(most, config.max_rows, config.timeout_s, config.too_long)
        app = make_app(
            answerer.task,
            served.batcher,
            limits,
            served.about,
            prepare_rows=answerer.prepare if isinstance(answerer, ImageAnswerer) else None,
            prepare=prepare,
            grace=config.grace_s,
        )
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(config.grace_s)),
            server_header=False,
        )
        self._server = server = _Server(settings)
        server.should_exit = self._stopping
        server.run(sockets=[self._socket])
        if failure:
            raise RuntimeError(f"{config.model} cannot be asked: {failure[0]}") from failure[0]

    def stop(self) -> None:
        """Tell the server, from any thread, to stop as a signal does; before `serve`, that it shall not begin."""
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True
