"""The experiment on digits, of a size that fits here: features learnt without labels beat those that are not learnt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "self_supervision.py"
OBJECTIVES = ("simclr", "autoencoder")
FROM_TESTS = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # eight devices, and programs quick to compile


def learn(out: Path) -> str:
    """One seed, a third of the steps."""
    flags = ["--data", "digits", "--seeds", "1", "--steps", "200", "--only", *OBJECTIVES, "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name not in FROM_TESTS}
    done = subprocess.run([sys.executable, str(SCRIPT), *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_learnt_features_of_digits_are_read_better_than_random_ones(tmp_path):
    """The standard error over 360 test images is .018, but both classifiers judge the same ones."""
    told = learn(tmp_path)
    found = {name: json.loads((tmp_path / f"digits/{name}-0/judged.json").read_text()) for name in OBJECTIVES}
    for name, scores in found.items():
        (learnt,), (random,) = scores["linear, model"], scores["linear, random"]
        assert learnt > random + 0.01, name
    assert found["simclr"]["linear, pixels"][0] > 0.85
    table = [line for line in told.splitlines() if line.startswith("|")]
    assert len(table) == 5  # heading, rule, two objectives, pixels
    assert [line for line in learn(tmp_path).splitlines() if line.startswith("|")] == table  # nothing is done twice
