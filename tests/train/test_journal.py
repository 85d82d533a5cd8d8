import pytest

from jaxptft import train


@pytest.fixture
def journal(tmp_path):
    return train.Journal(tmp_path / "made" / "metrics.jsonl")


def test_what_is_written_is_read(journal):
    assert journal.read() == []
    journal.write(1, kind="train", loss=0.1 + 0.2)
    journal.write(2, kind="evaluation", note="Größe \u2028\n 世界", values=[1, None])
    assert journal.read() == [
        {"step": 1, "kind": "train", "loss": 0.1 + 0.2},
        {"step": 2, "kind": "evaluation", "note": "Größe \u2028\n 世界", "values": [1, None]},
    ]
    assert journal.path.read_bytes().startswith(b'{"step": 1, "kind": "train", "loss": 0.30000000000000004}\n')


def test_json_has_no_nan(journal):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.write(1, loss=value)
    assert not journal.path.exists()


def test_rewinding_drops_later_lines_and_nothing_else(journal):
    journal.rewind(3)  # of a run that has not logged yet
    assert journal.read() == []
    for step in (2, 4, 4, 6):
        journal.write(step, note="ü" * step)
    before = journal.path.read_bytes().splitlines(keepends=True)
    journal.rewind(9)
    assert journal.path.read_bytes() == b"".join(before)
    journal.rewind(4)
    assert journal.path.read_bytes() == b"".join(before[:3])
    journal.rewind(1)
    assert journal.path.read_bytes() == b""
    assert [path.name for path in journal.path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_last_line_that_was_cut_short_is_dropped_wherever_it_was_cut(journal, cut):
    journal.write(1, kind="a")
    whole = journal.path.read_bytes()
    line = '{"step": 2, "kind": "größe"}\n'.encode()  # 30 bytes; a cut may fall within a character
    assert cut < len(line)
    journal.path.write_bytes(whole + line[:cut])
    assert journal.read() == [{"step": 1, "kind": "a"}]
    journal.rewind(5)
    assert journal.path.read_bytes() == whole
    journal.write(2, kind="b")
    assert [entry["step"] for entry in journal.read()] == [1, 2]


def test_forgetting_drops_one_kind_at_one_step(journal):
    for step, kind in [(1, "train"), (1, "evaluation"), (2, "train"), (2, "evaluation")]:
        journal.write(step, kind=kind)
    journal.forget(2, "evaluation")
    assert [(entry["step"], entry["kind"]) for entry in journal.read()] == [
        (1, "train"),
        (1, "evaluation"),
        (2, "train"),
    ]


@pytest.mark.parametrize("damaged", [b"\x00\x00", b'{"step": 1', b"[]", b"{}", b"3", b"\xff", b""])
def test_a_damaged_line_is_named(journal, damaged):
    journal.write(1)
    journal.path.write_bytes(journal.path.read_bytes() + damaged + b"\n")
    before = journal.path.read_bytes()
    for read in (journal.read, lambda: journal.rewind(5)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no journal entry .*; mend or delete it"):
            read()
    assert journal.path.read_bytes() == before
