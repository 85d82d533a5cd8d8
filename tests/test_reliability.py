"""The fast lane of every reliability script: each fault on few trials, all of which must be survived."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "experiments" / "reliability").glob("*.py"))
FROM_TESTS = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # eight devices, and programs quick to compile


@pytest.mark.slow
@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.stem != "trials"], ids=lambda path: path.stem)
def test_every_trial_of_the_fast_lane_is_survived(script, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in FROM_TESTS}
    command = [sys.executable, str(script), "--lane", "fast", "--out", str(tmp_path / "record.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert rows
    assert all(row["survived"] == row["trials"] > 0 for row in rows.values()), rows
