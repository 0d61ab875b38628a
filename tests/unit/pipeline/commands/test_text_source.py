from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from data_prep.inputs.documents import KNOWN_SUFFIXES, TextFiles
from data_prep.manifest import ReadSettings
from pipeline import cli
from pipeline.commands.text_source import choose_source
from pipeline.shared.exit_codes import ExitCode

DEFAULTS: dict[str, Any] = {"suffixes": None, "text_field": "text", "lines": False, "python_stdlib": False}


def test_files_are_read_as_the_arguments_say() -> None:
    source = choose_source(["corpus"], **(DEFAULTS | {"suffixes": [".txt"], "lines": True}))

    assert isinstance(source, TextFiles)
    assert (source.inputs, source.suffixes) == (("corpus",), (".txt",))
    assert source.reading == ReadSettings(text_field="text", lines=True)


def test_all_known_formats_are_read_by_default() -> None:
    source = choose_source(["corpus"], **DEFAULTS)

    assert isinstance(source, TextFiles)
    assert source.suffixes == tuple(KNOWN_SUFFIXES)


@pytest.mark.parametrize(("inputs", "python_stdlib"), [(None, False), ([], False), (["corpus"], True)])
def test_exactly_one_source_must_be_given(inputs: list[str] | None, python_stdlib: bool) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        choose_source(inputs, **(DEFAULTS | {"python_stdlib": python_stdlib}))

    assert caught.value.param_hint == "SOURCE"


def test_a_wrong_number_of_sources_is_a_usage_error(tmp_path: Path) -> None:
    arguments = ["data", "prepare", "--tokenizer", "t.model", "--output", str(tmp_path)]

    assert CliRunner().invoke(cli.app, arguments).exit_code == ExitCode.USAGE
    assert CliRunner().invoke(cli.app, [*arguments, ".", "--python-stdlib"]).exit_code == ExitCode.USAGE
