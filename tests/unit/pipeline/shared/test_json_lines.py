import pytest

from pipeline.shared.json_lines import parse_json_lines


def test_every_line_is_an_object() -> None:
    assert list(parse_json_lines('{"a": 1}\n{"b": 2}\n', place="file")) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("damaged", ['{"a": ', "3", "", "\ufffd"])
def test_a_damaged_last_line_is_skipped(damaged: str) -> None:
    assert list(parse_json_lines('{"a": 1}\n' + damaged, place="file")) == [{"a": 1}]


@pytest.mark.parametrize("damaged", ['{"a": ', "3"])
def test_an_earlier_damaged_line_is_an_error_that_names_it_or_is_skipped(damaged: str) -> None:
    text = f'{{"a": 1}}\n{damaged}\n{{"b": 2}}\n'
    with pytest.raises(ValueError, match="file:2 "):
        list(parse_json_lines(text, place="file"))
    assert list(parse_json_lines(text)) == [{"a": 1}, {"b": 2}]
