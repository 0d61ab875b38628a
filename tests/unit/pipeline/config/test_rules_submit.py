from typing import Any

import pytest

from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

FOUR_RANKS = {"parallel__data": 4, "training__micro_batch_size": 2}
BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({**FOUR_RANKS, "submit": {"target": "slurm", "nodes": 3}}, "submit.nodes", "3"),
    (
        {**FOUR_RANKS, "submit": {"target": "slurm", "nodes": 2, "gpus_per_node": 4}},
        "submit.gpus_per_node",
        "4",
    ),
    ({**FOUR_RANKS, "submit": {"nodes": 2}}, "submit.nodes", "2"),
    ({"submit": {"chain": 2}}, "submit.chain", "2 with target local, no wall_time"),
    ({"submit": {"target": "slurm", "chain": 2}}, "submit.chain", "2 with target slurm, no wall_time"),
    (
        {"submit": {"target": "slurm", "wall_time": "0:05:00", "signal_lead_seconds": 300}},
        "submit.signal_lead_seconds",
        "300",
    ),
]


@pytest.mark.parametrize(("changes", "path", "value"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting(changes: dict[str, Any], path: str, value: str) -> None:
    (problem,) = problems_of(**changes)
    assert (problem.path, problem.value) == (path, value)


@pytest.mark.parametrize(
    "submit",
    [
        {},
        {"target": "slurm", "nodes": 2, "gpus_per_node": 2},
        {"target": "ray", "nodes": 4},
        {"target": "slurm", "chain": 5, "wall_time": "1-00:00:00"},
    ],
)
def test_what_fits_is_accepted(submit: dict[str, Any]) -> None:
    build_config(changed_settings(**FOUR_RANKS, submit=submit))


@pytest.mark.parametrize("name", ["A=1; touch F; B", "A B", "", "1A", "RANK", "job_folder", "A-B", "A\n"])
def test_variables_have_names_that_a_script_can_hold(name: str) -> None:
    (problem,) = problems_of(submit__environment={name: "1"})
    assert problem.path == "submit.environment"
    assert repr(name) in problem.value


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("submit__partition", "a\n#SBATCH --account=b"),
        ("submit__partition", 'a"b'),
        ("submit__account", "a#b"),
        ("submit__qos", "a\\b"),
        ("submit__constraint", "a\x1bb"),
        ("submit__options", ["--exclusive\r--wrap=x"]),
        ("submit__setup", ["true\ntouch F"]),
        ("submit__environment", {"A": "\0"}),
        ("submit__python", "py\tthon"),
        ("output_dir", "runs/a\nb"),
        ("checkpoint__directory", "runs/a\x7fb"),
        ("data__path", "runs/a\rb"),
        ("workflow", [{"command": "train", "submit": {"partition": "a\ntouch F"}}]),
        ("workflow", [{"command": "train", "submit": {"qos": "a b"}}]),
        ("workflow", [{"command": "train"}, {"command": "export", "output": "a\nb"}]),
    ],
)
def test_text_that_ends_a_line_of_a_script_is_refused(setting: str, value: object) -> None:
    assert len(problems_of(**{setting: value})) == 1


def test_values_of_variables_and_lines_of_a_shell_may_hold_what_can_be_quoted() -> None:
    values = {"A": "two\nlines\t'q' \"w\" $HOME", "B": ""}
    config = build_config(changed_settings(submit__environment=values, submit__setup=["\tmodule load x"]))
    assert config.submit.environment == values
