import os
import signal
import subprocess
import sys
import threading

import pytest

from jaxptft.train import StopFlag, Stopped

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_sets_the_flag_and_the_old_handlers_come_back(signum):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopFlag() as stop:
        assert not stop
        stop.raise_if_set()
        os.kill(os.getpid(), signum)
        assert stop
        assert stop.signum == signum
        with pytest.raises(Stopped, match=f"stopped by {signum.name}") as caught:
            stop.raise_if_set()
        assert caught.value.exit_code == 128 + signum
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_who_listened_for_signals_before_still_hears_them():
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    try:
        with StopFlag():
            os.kill(os.getpid(), signal.SIGTERM)
            assert os.read(read, 1) == bytes([signal.SIGTERM])
        assert signal.set_wakeup_fd(before) == write
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


def test_nothing_is_left_running():
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    for _ in range(3):
        with StopFlag():
            (thread,) = [each for each in threading.enumerate() if each.name == "stop-flag"]
        thread.join(timeout=30)
        assert not thread.is_alive()
    if files:
        assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208


def test_handlers_come_back_after_an_error_too():
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(KeyError), StopFlag():
        raise KeyError
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_stop_can_be_asked_for_without_a_signal():
    stop = StopFlag()
    stop.request(signal.SIGINT)
    with pytest.raises(Stopped, match="SIGINT"):
        stop.raise_if_set()
    assert Stopped(signal.SIGTERM).exit_code == 143


def test_outside_the_main_thread_the_flag_works_without_signals():
    results = []

    def work():
        before = signal.getsignal(signal.SIGTERM)
        with StopFlag() as stop:
            results.append(bool(stop))
            stop.request()
            results.append(bool(stop))
        results.append(signal.getsignal(signal.SIGTERM) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False, True, True]


IN_PYTHON = """
import time
from jaxptft.train.stop import StopFlag
try:
    with StopFlag() as stop:
        print("ready", flush=True)
        while not stop:
            time.sleep(0.01)
        print("set", flush=True)
        time.sleep(60)
finally:
    print("never", flush=True)
"""

# One long call into compiled code: Python's own handlers do not run before it returns.
IN_COMPILED_CODE = """
import jax, jax.numpy as jnp
from jaxptft.train.stop import StopFlag
forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, jnp.sin, x))
compiled = forever.lower(1.0).compile()
with StopFlag():
    print("ready", flush=True)
    print("set", flush=True)
    compiled(1.0).block_until_ready()
"""


def child(script):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)


WITH_WORKERS = """
import multiprocessing, time
from jaxptft.train.stop import StopFlag
with StopFlag() as stop:
    workers = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.terminate()
    print([worker.join(30) or worker.exitcode for worker in workers], bool(stop))
"""


def test_signals_of_forked_workers_are_their_own():
    process = child(WITH_WORKERS)
    assert process.communicate(timeout=120)[0] == "[-15, -15, -15] False\n"
    assert process.returncode == 0


@pytest.mark.parametrize("script", [IN_PYTHON, IN_COMPILED_CODE], ids=["python", "compiled"])
@pytest.mark.parametrize("signum", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(script, signum):
    process = child(script)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.stdout.readline() == "set\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # the first alone ends nothing, and two that come together may be taken for one
        process.send_signal(signum)
        assert process.wait(timeout=30) == 128 + signum
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("polled", [False, True])
def test_what_does_not_return_after_the_first_signal_is_left_unless_the_flag_was_seen(polled):
    script = IN_COMPILED_CODE.replace("with StopFlag():", "from jaxptft.train import stop\nwith StopFlag() as flag:")
    script = script.replace('print("set"', 'stop.GRACE = 1.0\n    print("set"')
    if polled:  # someone knows, and may be saving
        script = script.replace("    compiled(", "    import time\n    while not flag: pass\n    time.sleep(3)\n    #")
    process = child(script)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "set\n"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == (0 if polled else 143)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_moves_are_counted_and_others_may_decide():
    flag = StopFlag()
    asked = []
    flag.agree(lambda own: asked.append(own) or (15 if len(asked) == 3 else None))
    assert not flag
    flag.request(signal.SIGINT)
    flag.raise_if_set()  # it came here, and the others are not there yet
    with pytest.raises(Stopped) as caught:
        flag.raise_if_set()
    assert (asked, caught.value.exit_code, flag.moves) == ([None, signal.SIGINT, signal.SIGINT], 143, 3)
