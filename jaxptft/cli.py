"""The command line: one sub-command a recipe, its flags made from the recipe's Config.

`--config run.yaml` gives values, flags override them, and dots reach into groups (`--optimizer.weight-decay 0.1`). A
mistake is one line on standard error and exit status 2; JAXPTFT_TRACEBACK=1 shows where it came from.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxptft import __version__
from jaxptft.recipes import COMMANDS, Command
from jaxptft.recipes.runtime import collect_seldom, take_large_pages

_TRAINING = ("finetune", "pretrain", "pretrain images", "distill", "glue", "sweep", "demo")
_MISTAKES = (ValueError, OSError, FloatingPointError, RuntimeError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (`sys.argv` by default) and return its exit status."""
    own = arguments is None  # the process is this command line's
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"jaxptft {__version__}")
        return 0
    pair = " ".join(arguments[:2])
    words = 2 if pair in COMMANDS else 1
    if words == 1 and arguments[0] not in COMMANDS and any(name.startswith(f"{arguments[0]} ") for name in COMMANDS):
        words = 2
    name, flags = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        from jaxptft.recipes.settings import nearest

        if words == 2 and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
            print(_overview(f"{arguments[0]} "))
            return 0
        return _complain(f"there is no command {name!r}{nearest(name, list(COMMANDS))}; see jaxptft --help")
    if own and name in _TRAINING and not {"-h", "--help"} & set(flags):
        take_large_pages()
    if own:
        collect_seldom()
    try:
        return _run(COMMANDS[name], name, flags)
    except _MISTAKES as error:
        if os.environ.get("JAXPTFT_TRACEBACK"):
            raise
        return _complain(" ".join(str(error).split()) or type(error).__name__)
    except SystemExit as leaving:  # tyro's, after --help
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
        hint = "; continue with --resume" if name in _TRAINING and name != "demo" else ""
        print(f"jaxptft: {error}{hint}", file=sys.stderr)
        return error.exit_code  # pyright: ignore[reportAttributeAccessIssue]


def _run(command: Command, name: str, flags: list[str]) -> int:
    """The exit status: what the command returns where that is a number, else 0."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a log file shows each line when it is said
    # transformers advises everyone without PyTorch to install it; here that is as intended.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    module = importlib.import_module(command.module)
    config = _parse(getattr(module, command.config), name, flags)
    result = getattr(module, command.run)(config)
    return result if isinstance(result, int) else 0


def _parse(kind: Any, name: str, flags: list[str]) -> Any:
    import tyro

    from jaxptft.recipes.settings import build, keys, nearest, one_line, read_yaml, shown

    known = keys(kind)
    behind: dict[str, Any] = {}
    if "command" in known and "--" in flags:  # another command line
        place = flags.index("--")
        behind, flags = {"command": tuple(flags[place + 1 :])}, flags[:place]
    path, flags = _take(flags, "--config")
    if path is None and "--resume" in flags and "resume" in known:
        out, _ = _take(flags, "--out")
        if out and not (Path(out) / "config.yaml").is_file():
            raise FileNotFoundError(f"{out} holds no run to resume; leave out --resume to start one")
        path = str(Path(out) / "config.yaml") if out else None
    values = (read_yaml(path) if path else {}) | behind
    for given, other in (("--steps", "epochs"), ("--epochs", "steps")):  # one length in place of the other
        if any(flag.split("=")[0] == given for flag in flags):
            values.pop(other, None)
    for flag in flags:
        if match := re.match(r"--([\w.][\w.-]*)|-([A-Za-z][\w.-]*)", flag):
            plain = (match[1] or match[2]).replace("-", "_")
            word = re.sub(r"(^|\.)no_(?=\w+$)", r"\1", plain)  # --group.no-flag turns it off
            if word not in known and plain not in known and word not in ("h", "help"):
                suggestion = nearest(word, known).replace("_", "-")
                given = flag.split("=")[0]
                given = given if given.isprintable() and len(given) <= 80 else shown(given)
                raise ValueError(f"unknown flag {given}{suggestion}; see jaxptft {name} --help")

    # Values of the file are checked alone first, so that a mistake in it is told apart from one in a flag.
    if values:
        required = {key: field for key, field in kind.model_fields.items() if field.is_required()}
        given = {key: str(tyro.MISSING) for key in required if key not in values}
        checked = build(kind, {**given, **values}, source=str(path or "the command line"))
        default = checked.model_copy(update=dict.fromkeys(given, tyro.MISSING))
    else:
        default = None
    absent = [flag for flag in _needed_flags(kind, values) if not any(given.split("=")[0] == flag for given in flags)]
    if absent and not {"-h", "--help"} & set(flags):
        raise ValueError(f"{', '.join(absent)} must be given; see jaxptft {name} --help")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            parsed = tyro.cli(
                kind, prog=f"jaxptft {name}", args=flags, default=default, config=(tyro.conf.ConsolidateSubcommandArgs,)
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        said = one_line(_plain(told.getvalue(), kind))
        if place := _complained_of(said, flags):
            said += f"{'' if flags[place].strip() else ' ' + repr(flags[place])}, after {_last_flag(flags[:place])}"
        raise ValueError(f"{said}; see jaxptft {name} --help") from None
    return build(kind, parsed.model_dump(), source="the command line")


def _complained_of(said: str, flags: list[str]) -> int:
    """The place of the word that a complaint without a flag is about; 0 where it is not known."""
    if stray := re.search(r"Unrecognized options: ([^\s,]+)", said):
        words = [place for place, flag in enumerate(flags) if flag == stray[1]]
        words = words or [place for place, flag in enumerate(flags) if len(flag) > 60 and flag.startswith(stray[1])]
    elif said.endswith("Unrecognized options:"):
        words = [place for place, flag in enumerate(flags) if not flag.strip()]
    elif "--" not in said:  # a long word, which the box has broken
        squeezed = "".join(said.split())
        words = [place for place, flag in enumerate(flags) if len(flag) > 60 and "".join(flag.split())[:40] in squeezed]
    else:
        return 0
    return next((place for place in words if _last_flag(flags[:place])), 0)


def _last_flag(flags: list[str]) -> str:
    return next((flag.split("=")[0] for flag in reversed(flags) if flag.startswith("--")), "")


def _needed_flags(kind: type, values: dict[str, Any]) -> list[str]:
    """The flags that must be given since `values` lack them; what is told by its position is not among them."""
    positional = _positional(kind)
    needed = [key for key, field in kind.model_fields.items() if field.is_required() and key not in values]
    return [f"--{key.replace('_', '-')}" for key in needed if key not in positional]


def _positional(kind: Any) -> list[str]:
    return [
        key for key, field in kind.model_fields.items() if any("Positional" in repr(mark) for mark in field.metadata)
    ]


def _take(flags: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of a flag, and the flags without it."""
    for index, flag in enumerate(flags):
        if flag == name:
            if index + 1 == len(flags) or flags[index + 1].startswith("--"):
                raise ValueError(f"{name} needs a value")
            return flags[index + 1], flags[:index] + flags[index + 2 :]
        if flag.startswith(f"{name}="):
            return flag.removeprefix(f"{name}="), flags[:index] + flags[index + 1 :]
    return None, flags


def _plain(boxed: str, kind: Any) -> str:
    """The words in tyro's box, on one line, and those of pydantic in them without their frame."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    if "Required options" in words:
        return f"{', '.join(_positional(kind)).upper()} must be given"
    # The box is drawn with +, - and | where the terminal knows no better.
    lines = (line.strip(" │|") for line in words.splitlines() if not re.match(r"[╭╰+]", line))
    kept = [line for line in lines if line.strip("─-") and not line.startswith("For full helptext")]
    told = " ".join(" ".join(kept).split()).partition(" Argument helptext")[0]
    validation = r"Error parsing (\S+): \d+ validation errors? for \w+ (.*?) \[type=\w+, input_value=(.*?), input_type="
    if found := re.search(validation, told):
        group, problem, value = found.groups()
        if problem.startswith("Value error, "):
            return problem.removeprefix("Value error, ")
        key, _, message = problem.partition(" ")
        prefix = f"{group}." if group in kind.model_fields else ""
        return f"--{(prefix + key).replace('_', '-')} is {value}: {message.removeprefix('Value error, ')}"
    return told or "the command line cannot be read"


def _complain(message: str) -> int:
    print(f"jaxptft: error: {message}", file=sys.stderr)
    return 2


def _overview(prefix: str = "") -> str:
    shown = {name: command for name, command in COMMANDS.items() if name.startswith(prefix)}
    width = max(len(name) for name in shown)
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in shown.items()]
    return "\n".join(
        [
            "usage: jaxptft COMMAND [--flags]",
            "",
            "Pre-train, adapt, fine-tune, compress and ship models in JAX.",
            "",
            *lines,
            "",
            "jaxptft COMMAND --help shows a command's flags; --config FILE reads them from YAML.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
