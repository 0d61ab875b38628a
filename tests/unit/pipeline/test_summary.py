import pytest
from rich.console import Console

from pipeline.config.schema import RunConfig
from pipeline.run_account import flops_account, max_sweeps, mean_training_sweeps, run_summary
from pipeline.summary import metric, render_summary, summary_rows
from tests.unit.pipeline.config.settings import valid_settings


def config(**ponder: object) -> RunConfig:
    settings = valid_settings()
    settings["ponder"] |= ponder
    settings["parallel"] = {"tensor": 2}
    return RunConfig(**settings)


def test_summary_says_what_is_trained() -> None:
    summary = run_summary(config(), 500, parameters_per_rank=(80_000, 80_000), device="cpu")
    rows = dict(summary_rows(summary))
    assert rows["method"] == "ponderlm3 on llama"
    assert rows["passes"] == "5 through 2 layers per training forward"
    assert rows["rows per token"] == "training 12, inference 1 to 3, by steps taken"
    assert rows["effective depth"] == "6 layers"
    assert rows["parameters per rank"] == "80,000"
    assert rows["layout"] == "tensor 2 x pipeline 1 x data 1 on 2 ranks"
    assert rows["device"] == "cpu, fp32, recompute none"
    assert rows["data"] == "512 tokens per iteration x 100 iterations = 51.2 k tokens"


def test_a_method_that_does_not_halt_has_one_inference_figure() -> None:
    summary = run_summary(config(method="ponderlm2"), 500, parameters_per_rank=(1, 2), device="cpu")
    rows = dict(summary_rows(summary))
    assert rows["rows per token"] == "training 12, inference 3"
    assert rows["parameters per rank"] == "1, 2"


def test_drawn_sweeps_are_averaged_and_bounded() -> None:
    drawn = config(random_jacobi_iterations=(2, 5)).ponder
    assert mean_training_sweeps(drawn) == 3.5
    assert max_sweeps(drawn) == 5
    assert max_sweeps(config(num_jacobi_iterations=4).ponder) == 4


def test_the_account_uses_the_padded_vocabulary() -> None:
    account = flops_account(config(), 500)
    assert (account.shape.vocab_size, account.shape.padded_vocab_size) == (500, 512)


def test_the_table_shows_every_row() -> None:
    summary = run_summary(config(), 500, parameters_per_rank=(80_000, 80_000), device="cpu")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_summary(summary))
    text = captured.get()
    assert all(name in text for name, _ in summary_rows(summary))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1234, "1.23 k"), (51_200, "51.2 k"), (2.5e6, "2.50 M"), (7.13e11, "713 G")],
)
def test_numbers_are_written_with_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert metric(value) == text
