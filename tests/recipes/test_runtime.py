import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxptft.recipes import runtime

SCRIPT = """
from jaxptft.recipes.runtime import take_large_pages
print("begun")
take_large_pages()
import os, sys
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


@pytest.mark.skipif(not runtime._has_glibc(), reason="another C library")
@pytest.mark.parametrize(
    ("changes", "starts", "told"),
    [
        ({}, 2, "glibc.malloc.hugetlb=1"),
        ({"JAXPTFT_LARGE_PAGES": "0"}, 1, "None"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, 1, "glibc.malloc.arena_max=2"),
    ],
)
def test_a_process_starts_anew_with_large_pages_once(changes, starts, told):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | changes
    if any((Path("/dev") / name).exists() for name in runtime._ACCELERATORS):
        starts, told = 1, changes.get("GLIBC_TUNABLES", "None")
    command = [sys.executable, "-c", SCRIPT, "--flag", "a b"]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[:-1] == ["begun"] * starts
    assert lines[-1].startswith(told)
    assert lines[-1].endswith("['--flag', 'a b']")


def test_where_there_is_an_accelerator_nothing_starts_anew(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(runtime, "_ACCELERATORS", ("null",))
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it did"))
    runtime.take_large_pages()
