import pytest

from pipeline.commands.spellings import current_spelling


@pytest.mark.parametrize(
    ("earlier", "current"),
    [
        ("eval RUN --output a.json", "eval RUN --json a.json"),
        ("eval --output-json=a.json RUN", "eval --json=a.json RUN"),
        ("verify RUN -o a.json", "verify RUN --json a.json"),
        ("compare A B --anew", "compare A B --reevaluate"),
        ("rehearse --world-size 8", "rehearse --gpus 8"),
        (
            "convert from-hf --set a.b=1 HF --output X --set=c=2 --method vanilla",
            "convert from-hf HF --output X --method vanilla a.b=1 c=2",
        ),
        # Elsewhere these are other options, or arguments.
        ("generate RUN --output a.json", "generate RUN --output a.json"),
        ("convert to-hf RUN --set a", "convert to-hf RUN --set a"),
        ("eval RUN -- --output", "eval RUN -- --output"),
        ("", ""),
    ],
)
def test_earlier_spellings_become_current_ones(earlier: str, current: str) -> None:
    assert current_spelling(earlier.split()) == current.split()
    assert current_spelling(current.split()) == current.split()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("jobs list --json", "jobs list --json -"),
        ("jobs status --json my-run", "jobs status --json - my-run"),
        ("jobs status my-run --json status.json", "jobs status my-run --json status.json"),
        ("checkpoint list --json --tensors x", "checkpoint list --json - --tensors x"),
        ("checkpoint list RUN --json -", "checkpoint list RUN --json -"),
        ("plan --json --config run.yaml", "plan --json - --config run.yaml"),
        ("plan --json values", "plan --json values"),
    ],
)
def test_json_without_a_file_goes_to_standard_output(typed: str, meant: str) -> None:
    assert current_spelling(typed.split()) == meant.split()
