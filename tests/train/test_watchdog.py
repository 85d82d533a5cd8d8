"""A run that does not move is ended, and one that does is left alone."""

import subprocess
import sys
import time

import pytest

from jaxptft import train
from jaxptft.train.watchdog import STUCK

STUCK_RUN = """
import time
from jaxptft import train
flag = train.StopFlag()
with flag, train.Watchdog(flag, limit=0.5):
    for step in range(20):
        flag.at(f"at step {step}")
        flag.raise_if_set()
        time.sleep(0.1)
    print("stuck", flush=True)
    time.sleep(600)
"""


def test_a_process_that_is_stuck_is_ended_and_says_where():
    with subprocess.Popen(
        [sys.executable, "-c", STUCK_RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "stuck\n"
        began = time.monotonic()
        _, told = started.communicate(timeout=60)
    assert started.returncode == STUCK
    assert time.monotonic() - began < 10
    assert "process 0 (" in told
    assert "at step 19, has not moved for 0.5 seconds; continue with --resume" in told
    assert "time.sleep(600)" in told or "<string>" in told  # where each thread is


def test_outside_it_nothing_watches():
    flag = train.StopFlag()
    with train.Watchdog(flag, limit=0.3):
        bool(flag)
    time.sleep(0.6)


@pytest.mark.parametrize("limit", [0, -1.0])
def test_a_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match="expected seconds, more than 0"):
        train.Watchdog(train.StopFlag(), limit=limit)
