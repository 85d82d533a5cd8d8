"""Starting several processes as one: which command, which devices, and what becomes of all when one ends."""

import signal
import subprocess
import sys
import time

import pytest

from jaxptft.recipes import launch

CHILD = "import os, signal, sys, time; index = os.environ['JAXPTFT_PROCESS']; {}"


@pytest.fixture
def launched(monkeypatch, capfd):
    """A function: what each process does, as Python, and how many -> exit status and what was said."""

    def run(does, processes=2):
        config = launch.Config(command=("finetune",), processes=processes)
        inner = subprocess.Popen

        def start(command, **options):
            return inner([sys.executable, "-c", CHILD.format(does)], **options)

        monkeypatch.setattr(launch.subprocess, "Popen", start)
        status = launch.run(config, say=lambda told: None)
        return status, capfd.readouterr()

    return run


def test_all_well_is_zero_and_each_process_knows_its_place(launched):
    does = "print(os.environ['JAXPTFT_PROCESSES'], index, flush=True); print('from', index, file=sys.stderr)"
    status, told = launched(does, 3)
    assert status == 0
    assert told.out == "3 0\n"  # what the others print is dropped
    assert sorted(told.err.splitlines()) == ["[1] from 1", "[2] from 2", "from 0"]


@pytest.mark.parametrize(
    ("does", "status", "how"),
    [("sys.exit(7)", 7, "ended with status 7"), ("os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL")],
)
def test_one_that_ends_badly_ends_the_others_and_is_named(launched, monkeypatch, does, status, how):
    monkeypatch.setattr(launch, "_GRACE", 0.5)
    began = time.monotonic()
    found, told = launched(f"exec('if index == \"1\": {does}'); time.sleep(600)")
    assert found == status
    assert time.monotonic() - began < 60
    assert "jaxptft: process 1 (pid " in told.err
    assert f"{how}; ending the others" in told.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_once(launched, number):
    does = "import threading; came = []; [signal.signal(n, lambda n, f: came.append(n)) for n in (2, 15)]; "
    does += f"threading.Timer(1, lambda: index == '0' and os.kill(os.getppid(), {int(number)})).start(); "
    does += "time.sleep(1.5); time.sleep(1); print(came, file=sys.stderr); sys.exit(128 + came[0])"
    status, told = launched(does)
    assert status == 128 + number
    assert set(told.err.splitlines()) == {f"[1] [{int(number)}]", f"[{int(number)}]"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "there is no command; give one of pretrain, pretrain images, finetune, distill behind --"),
        (["--", "embed", "--model", "x"], "'embed' does not train in several processes; give one of pretrain"),
        (["--processes", "0", "--", "finetune"], "processes is 0: Input should be greater than or equal to 1"),
        (["--prcesses", "2", "--", "finetune"], "unknown flag --prcesses; did you mean 'processes'"),
    ],
)
def test_what_cannot_be_launched_is_refused(refused, flags, expected):
    assert expected in refused("launch", *flags)


@pytest.mark.parametrize(
    ("visible", "each", "expected"),
    [("0,1,2,3", None, ["0,1", "2,3"]), ("4,5,6", None, ["4", "5"]), ("0,1,2,3", 1, ["0", "1"])],
)
def test_each_process_sees_its_own_gpus(monkeypatch, visible, each, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = launch.Config(command=("finetune",), processes=2, devices_per_process=each)
    found = [launch._devices(config, index)["CUDA_VISIBLE_DEVICES"] for index in range(2)]
    assert found == expected


def test_too_few_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ValueError, match="2 processes do not find 1 GPUs each among 1"):
        launch._devices(launch.Config(command=("finetune",), processes=2), 0)


def test_without_a_cluster_there_is_one_line(process, tmp_path):
    started = process("launch", "--cluster", "--", "pretrain", "images", "--data", "sklearn:digits", "--out", tmp_path)
    told = started.communicate(timeout=120)
    assert started.returncode == 2, told
    assert "JAXPTFT_CLUSTER is set, but no cluster is found here" in told[1].splitlines()[-1]
