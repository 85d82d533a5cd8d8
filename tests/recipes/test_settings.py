import math
from typing import Literal

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import field_validator

from jaxptft.recipes import settings
from jaxptft.recipes.finetune import Config


class Inner(settings.Settings):
    rate: float = 0.1


class Outer(settings.Settings):
    count: int = 3
    name: str = "x"
    switch: bool = False
    maybe: int | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()


class Complaining(settings.Settings, validate_default=False):
    odd: int = 0

    @field_validator("odd")
    @classmethod
    def _refused(cls, value: int) -> int:
        raise ValueError("two\nlines")


def test_values_survive_yaml(tmp_path):
    config = settings.build(Outer, {"count": 7, "inner": {"rate": 0.5}, "name": "héé: [x]"})
    (tmp_path / "c.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert settings.build(Outer, settings.read_yaml(tmp_path / "c.yaml")) == config


def test_an_empty_file_sets_nothing(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert settings.build(Outer, settings.read_yaml(tmp_path / "c.yaml")) == Outer()


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Outer().count = 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"cuont": 1}, r"^there: unknown key 'cuont'; did you mean 'count'\?$"),
        ({"zzzzzz": 1}, "^there: unknown key 'zzzzzz'$"),
        ({"inner": {"raet": 1}}, r"^there: unknown key 'inner\.raet'; did you mean 'inner\.rate'\?$"),
        ({"count": "many"}, "^there: 'count' is 'many': Input should be a valid integer"),
        ({"count": True}, "^there: 'count' is True: Input should be a number$"),
        ({"maybe": False}, "^there: 'maybe' is False: Input should be a number$"),
        ({"inner": {"rate": True}}, r"^there: 'inner\.rate' is True: Input should be a number$"),
        ({"count": 1.5}, "^there: 'count' is 1.5: Input should be a valid integer"),
        ({"inner": {"rate": math.nan}}, r"^there: 'inner\.rate' is nan: Input should be a finite number$"),
        ({"inner": {"rate": math.inf}}, r"^there: 'inner\.rate' is inf: Input should be a finite number$"),
        ({"name": 3}, "^there: 'name' is 3: Input should be a valid string$"),
        ({"kind": "c"}, "^there: 'kind' is 'c': Input should be 'a' or 'b'$"),
        ({"inner": None}, "^there: 'inner' is None: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_key(values, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        settings.build(Outer, values, source="there")
    assert "\n" not in str(raised.value)


def test_what_is_wrong_is_said_briefly_however_long_it_is():
    with pytest.raises(ValueError, match=r"^there: 'count' is 'x{76}\.\.\.: Input should be a valid integer"):
        settings.build(Outer, {"count": "x" * 10_000}, source="there")
    with pytest.raises(ValueError, match=r"^there: unknown key 'x{76}\.\.\.$"):
        settings.build(Outer, {"x" * 10_000: 1}, source="there")
    with pytest.raises(ValueError, match=r"^there: 'odd' is 1: two lines$"):
        settings.build(Complaining, {"odd": 1}, source="there")


def test_a_misspelt_key_is_told_before_the_required_one_that_it_was_to_be():
    with pytest.raises(ValueError, match=r"^there: unknown key 'trian'; did you mean 'train'\?$"):
        settings.build(Config, {"model": "m", "trian": "t", "out": "o"}, source="there")


@pytest.mark.parametrize(
    "word, known, expected",
    [
        ("to_pk", ["top_p", "top_k"], "top_k"),  # by the letters in common, top_p is as near
        ("di", ["id", "dropout"], "id"),  # half of whose letters, in order, are those of the word
        ("re8ume", ["resume", "rerun"], "resume"),
        ("b3", ["b1", "seed"], "b1"),
        ("optimizer.1b", ["optimizer.b2", "optimizer.b1"], "optimizer.b1"),
        ("learning", ["learning_rate", "seed"], "learning_rate"),
    ],
)
def test_one_slip_away_is_nearest(word, known, expected):
    assert settings.nearest(word, known) == f"; did you mean {expected!r}?"


def test_a_required_key_is_named():
    with pytest.raises(ValueError, match=r"^there: 'train' is required$"):
        settings.build(Config, {"model": "m", "out": "o"}, source="there")


def test_a_boolean_is_still_a_boolean():
    assert settings.build(Outer, {"switch": True}).switch is True


def test_a_number_written_as_yaml_writes_none_is_read():
    # YAML 1.1 reads 5e-5, which has no dot, as text.
    assert settings.build(Inner, {"rate": "5e-5"}).rate == 5e-5


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"- 1\n", "holds a list; expected a mapping of keys to values"),
        (b"just words", "holds a str; expected a mapping"),
        (b"1: 2\n", "the key 1 is a int; expected a name"),
        (b"a: [", "is not YAML: "),
        (b"a: \xff\n", "is not YAML: 'utf-8' codec can't decode"),
        (b"a: 2020-13-45\n", "is not YAML: month must be in 1..12"),
        (b"a: !!bool maybe\n", "is not YAML: 'maybe'"),
        (b"[" * 5000, "is not YAML: "),
        (b"a: !!python/object/apply:os.getcwd []\n", "is not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_by_its_name(content, expected, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.yaml:? ") as raised:
        settings.read_yaml(tmp_path / "c.yaml")
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"c\.yaml"):
        settings.read_yaml(tmp_path / "c.yaml")


def test_keys_are_dotted_paths():
    assert settings.keys(Outer) == ["count", "name", "switch", "maybe", "kind", "inner", "inner.rate"]


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(["none", "backbone", "linear", "jit", "balanced", "5e-5", "1", "inf", "nan"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=6), st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)
known = st.sampled_from([key for key in settings.keys(Config) if "." not in key])
near = st.sampled_from(["lerning_rate", "step", "Model", "", "optimizer.warmup", "x\ny"])
groups = st.fixed_dictionaries(
    {},
    optional={
        "optimizer": st.dictionaries(st.sampled_from(["warmup", "b1", "eps", "multipliers", "wramup"]), anything),
        "columns": st.dictionaries(st.sampled_from(["text", "label", "txt"]), anything),
    },
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.dictionaries(st.one_of(known, near), anything, max_size=4), groups)
def test_any_values_make_a_config_or_one_line_that_names_a_key(values, grouped):
    given_values = {"model": "m", "train": "t", "out": "o", **values, **grouped}
    try:
        config = settings.build(Config, given_values, source="there")
    except ValueError as error:
        told = error
    else:
        assert settings.build(Config, config.model_dump(mode="json")) == config
        return
    message = str(told)
    assert type(told) is ValueError
    assert message.startswith("there: ")
    assert "\n" not in message
    assert any(repr(key)[1:-1] in message for key in given_values) or "give one" in message
