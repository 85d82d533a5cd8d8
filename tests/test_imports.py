"""The rooms import downward only, and importing one costs no more than it needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxptft

PACKAGE = Path(jaxptft.__file__).parent
ROOMS = ("losses", "models", "augment", "data", "optim", "objectives", "convert", "train", "export", "recipes")
ALLOWED = {
    "losses": set(),
    "models": set(),
    "augment": set(),
    "data": set(),
    "optim": set(),
    "objectives": {"losses"},
    "convert": {"models"},
    "train": {"objectives", "optim"},
    "export": {"models", "train"},
    "recipes": set(ROOMS) - {"recipes"},
    "cli": {"recipes"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole path"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("jaxptft.")}
    return found & set(ROOMS)


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_below_it(path):
    room = room_of(path)
    assert imports_of(path) - {room} <= ALLOWED[room]


def test_only_one_module_knows_orbax_and_only_models_know_linen():
    knows_orbax = {p for p in SOURCES if "orbax" in {name.split(".")[0] for name in _top_level_names(p)}}
    knows_linen = {p for p in SOURCES if "flax.linen" in _top_level_names(p)}
    assert knows_orbax == {PACKAGE / "train" / "checkpoint.py"}
    assert {room_of(path) for path in knows_linen} == {"models"}


def _top_level_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_losses_pull_in_nothing_but_jax_optax_and_jaxtyping():
    wanted = "import jax, optax, numpy.typing; from jaxtyping import Array, Float, PyTree; PyTree[Float[Array, 'a']]"
    beyond = modules_after("import jaxptft.losses") - modules_after(wanted)
    assert beyond == {"jaxptft"}


def test_importing_the_package_or_the_command_line_pulls_in_no_framework():
    heavy = {"jax", "flax", "torch", "transformers", "datasets", "orbax", "sklearn", "matplotlib"}
    assert not modules_after("import jaxptft, jaxptft.cli") & heavy


def test_no_room_needs_torch():
    rooms = [room for room in ALLOWED if (PACKAGE / room).is_dir()]
    assert "torch" not in modules_after("; ".join(f"import jaxptft.{room}" for room in rooms))


def test_an_unknown_room_is_an_error_that_names_the_rooms():
    with pytest.raises(
        AttributeError, match="no attribute 'lossess'; its rooms are augment, convert, data, export, losses"
    ):
        jaxptft.lossess  # noqa: B018
