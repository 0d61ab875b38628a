import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.yaml_text import parse_yaml, render_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("12", 12),
        ("1_000", 1000),
        ("010", "010"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("", None),
        ("~", None),
        ("2026-01-01", "2026-01-01"),
        ("'12'", "12"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text)

    assert parsed == value
    assert type(parsed) is type(value)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="'lr' is given twice"):
        parse_yaml("optimizer:\n  lr: 1\n  lr: 2\n")


def test_objects_are_not_built_from_yaml() -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_lists_stay_on_one_line() -> None:
    assert render_yaml({"ramp": [0, 40]}) == "ramp: [0, 40]\n"


@given(
    st.dictionaries(
        st.text("abc_", min_size=1),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False),
            st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
            st.lists(st.integers()),
        ),
    )
)
def test_what_is_written_reads_back_equal(values: dict[str, object]) -> None:
    read = parse_yaml(render_yaml(values))

    assert read == values
    assert all(type(read[key]) is type(value) for key, value in values.items())
    assert all(not isinstance(value, float) or not math.isnan(value) for value in read.values())
