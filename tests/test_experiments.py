"""Every experiment is importable, and says how it is run and what came out."""

import importlib.util
from pathlib import Path

import pytest

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_imports_without_running_and_records_its_command_and_result(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"python experiments/{path.name}" in module.__doc__
    assert "Result:" in module.__doc__
    assert "not recorded" not in module.__doc__
