import io

import pytest
from rich.console import Console

from jaxptft import train


def test_plain_lines_on_stderr_where_there_is_no_terminal(capfd):
    with train.Progress("sentiment", 3, every=0.0) as progress:
        for step, loss in ((1, 0.75), (2, 0.5), (3, float("nan"))):
            progress.update(step, loss, 16)
        progress.note("sentiment: step 3  accuracy 0.9 [bold] :warning: [/x]")
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 4
    for line, (step, loss) in zip(lines, [(1, "0.7500"), (2, "0.5000"), (3, "nan")], strict=False):
        assert line.startswith(f"sentiment: step {step}/3  loss {loss}  ")
        assert " rows/s  " in line
        assert line.endswith(" s left")
    assert lines[2].endswith("  0 s left")
    assert lines[3] == "sentiment: step 3  accuracy 0.9 [bold] :warning: [/x]"
    assert "\x1b" not in err
    assert "\r" not in err


def test_plain_lines_come_rarely_but_the_last_step_always_shows(capfd):
    with train.Progress("run", 500, every=3600.0) as progress:
        for step in range(1, 501):
            progress.update(step, 1.0, 1)
    assert [line.split()[2] for line in capfd.readouterr().err.splitlines()] == ["500/500"]


def test_a_long_note_is_one_line(capfd):
    with train.Progress("run", 1) as progress:
        progress.note("x" * 500)
    assert capfd.readouterr().err == "x" * 500 + "\n"


def test_rate_and_time_left_are_those_of_the_last_steps(capfd, monkeypatch):
    """By hand: 8 examples every 2 seconds; 3 of 5 steps done, so 4 seconds are left."""
    now = iter([0.0, 0.0, 2.0, 4.0, 6.0])
    monkeypatch.setattr("jaxptft.train.progress.time.perf_counter", lambda: next(now))
    with train.Progress("run", 5, unit="pairs", every=5.0) as progress:
        for step in (1, 2, 3):
            progress.update(step, 1.0, 8)
    assert progress.rate() == pytest.approx(4.0)
    assert capfd.readouterr().err == "run: step 3/5  loss 1.0000  4 pairs/s  4 s left\n"


def test_a_bar_on_a_terminal_shows_the_same(capfd):
    screen = io.StringIO()
    progress = train.Progress("[/name] :100:", 4, unit="[rows]")
    progress.console = Console(file=screen, force_terminal=True, width=150)
    with progress:
        progress.update(4, 0.125, 10)
        progress.note("a note [/b]")
    shown = screen.getvalue()
    for part in ("[/name] :100:", "4/4", "loss 0.1250", "[rows]/s", "a note [/b]"):
        assert part in shown
    assert "\x1b[?25h" in shown  # the cursor is given back
    assert capfd.readouterr() == ("", "")
