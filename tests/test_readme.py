"""What the README says can be typed, can be typed."""

import re
from pathlib import Path

import pytest

from jaxptft.recipes import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_losses_example_runs():
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    names: dict = {}
    exec(example, names)
    assert names["per_example"].shape == (2,)
    assert names["per_example"][1] == 0  # the ignored label
    assert float(names["penalty"]) == 0  # nothing has moved


def test_every_command_in_it_exists():
    written = re.findall(r"^jaxptft ([\w-]+(?: (?:import|export|inspect|change|train|check))?)", README, re.MULTILINE)
    assert len(written) >= 9
    assert set(written) <= set(COMMANDS)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([\w./-]+)\)", README))
def test_every_file_it_points_to_exists(path):
    assert (Path(__file__).parents[1] / path).exists()
