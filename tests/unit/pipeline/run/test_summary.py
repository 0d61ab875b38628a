import pytest
from rich.console import Console

from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account, max_sweeps, mean_step, step_kinds
from pipeline.run.summary import render_summary, run_summary, summary_rows
from tests.unit.pipeline.config.settings import valid_settings


def config(**ponder: object) -> RunConfig:
    settings = valid_settings()
    settings["ponder"] |= ponder
    settings["parallel"] = {"tensor": 2}
    return RunConfig(**settings)


def rows_of(config: RunConfig) -> dict[str, str]:
    return dict(summary_rows(run_summary(config, 500, parameters_per_rank=(80_000, 80_000), device="cpu")))


def test_summary_describes_the_run() -> None:
    rows = rows_of(config())
    assert rows["method"] == "ponderlm3 on llama"
    assert rows["extra steps"] == "K = 2 latent thoughts, Jacobi sweeps J = 2"
    assert rows["passes"] == "5 through 2 layers per training forward"
    assert rows["rows per token"] == "training 12, inference 1 to 3, by steps taken"
    assert rows["effective depth"] == "6 layers"
    assert rows["parameters per rank"] == "80,000"
    assert rows["parallel layout"] == "tensor 2 x pipeline 1 x data 1 on 2 ranks"
    assert rows["device"] == "cpu, fp32, recompute none"
    assert rows["data"] == "512 tokens per iteration x 100 iterations = 51.2 k tokens"


@pytest.mark.parametrize(
    ("method", "steps", "passes", "rows"),
    [
        ("loop", "K = 2 trips through the layers", "3", "training 3, inference 3"),
        ("pause", "K = 2 pause tokens", "1", "training 3, inference 3"),
        ("ponderlm", "K = 2 iterations", "3", "training 3, inference 3"),
        ("ponderlm2", "K = 2 latent thoughts, Jacobi sweeps J = 2", "5", "training 12, inference 3"),
        ("adaponderlm", "K = 2 iterations", "3", "training 3, inference 1 to 3, by steps taken"),
        ("adaptive_latent_cot", "K = 2 latent steps", "3", "training 3, inference 1 to 3, by steps taken"),
    ],
)
def test_summary_describes_each_method(method: str, steps: str, passes: str, rows: str) -> None:
    found = rows_of(config(method=method))
    assert found["extra steps"] == steps
    assert found["passes"] == f"{passes} through 2 layers per training forward"
    assert found["rows per token"] == rows


def test_a_model_without_steps_has_none() -> None:
    assert rows_of(config(method="vanilla", num_latent_thoughts=0))["extra steps"] == "none"


def test_layers_are_shown_by_stage_where_there_are_several() -> None:
    settings = valid_settings()
    settings["model"]["num_layers"] = 5
    settings["parallel"] = {"pipeline": 2}
    assert rows_of(RunConfig(**settings))["parallel layout"] == (
        "tensor 1 x pipeline 2 x data 1 on 2 ranks, 3 + 2 layers on the pipeline stages"
    )


def test_counts_that_differ_are_shown_by_rank() -> None:
    summary = run_summary(config(method="ponderlm2"), 500, parameters_per_rank=(1, 2), device="cpu")
    assert dict(summary_rows(summary))["parameters per rank"] == "1, 2"


def mean_training_sweeps(run: RunConfig) -> float:
    return sum(kind.share * kind.num_jacobi_iterations for kind in step_kinds(run))


def test_drawn_sweeps_are_averaged_and_bounded() -> None:
    drawn = config(random_jacobi_iterations=(2, 5))
    assert mean_training_sweeps(drawn) == 3.5
    assert max_sweeps(drawn.ponder) == 5
    assert "J = 2 to 5, drawn per step (2 in evaluation)" in rows_of(drawn)["extra steps"]
    fixed = config(num_jacobi_iterations=4)
    assert (mean_training_sweeps(fixed), max_sweeps(fixed.ponder)) == (4, 4)


def test_planned_sweeps_are_averaged_over_the_run_and_bounded() -> None:
    # 20 iterations with none, 30 with one, 50 with six; what starts after the last of 100 never does.
    planned = config(jacobi_schedule=((0, 0), (20, 1), (50, 6), (400, 9)))
    assert mean_training_sweeps(planned) == pytest.approx((30 * 1 + 50 * 6) / 100)
    assert max_sweeps(planned.ponder) == 9
    assert "J = 0 from iteration 0, 1 from iteration 20" in rows_of(planned)["extra steps"]


def test_drawn_thoughts_cost_the_mean() -> None:
    drawn, account = config(random_latent_thoughts=(0, 2)), flops_account(config(), 500)

    found = mean_step(drawn, account)

    each = [account.limited_to(steps).training_flops(2).model for steps in range(3)]
    assert found.flops.model == pytest.approx(sum(each) / 3)
    assert each == sorted(set(each))
    assert found.num_passes == pytest.approx((1 + 4 + 5) / 3)
    assert found.rows_per_token == pytest.approx((1 + (1 + 3 * 2) + (1 + 2 + 3 * 3)) / 3)
    assert "K = 0 to 2, drawn per step (2 in evaluation)" in rows_of(drawn)["extra steps"]


def test_scheduled_thoughts_cost_what_their_iterations_cost() -> None:
    # 20 iterations without thoughts, 30 with one and one sweep, 50 with one and two sweeps.
    planned = config(thoughts_schedule=((0, 0), (20, 1)), jacobi_schedule=((0, 1), (50, 2)))

    kinds = step_kinds(planned)

    assert [(kind.share, kind.num_latent_thoughts) for kind in kinds] == [(0.2, 0), (0.8, 1)]
    assert kinds[1].num_jacobi_iterations == pytest.approx((30 * 1 + 50 * 2) / 80)


def test_a_limited_model_keeps_its_weights() -> None:
    account = flops_account(config(), 500)

    limited = account.limited_to(1)

    assert account.limited_to(2) is account
    assert limited.parameters() == account.parameters()
    assert limited.training_flops(2).decider < account.training_flops(2).decider, "fewer passes"
    assert limited.limited_to(0).limited_to(2).training_flops(2) == account.training_flops(2)


def test_the_account_uses_the_padded_vocabulary() -> None:
    account = flops_account(config(), 500)
    assert (account.shape.vocab_size, account.shape.padded_vocab_size) == (500, 512)


def test_the_account_has_the_mixtures_of_the_method() -> None:
    account = flops_account(config(method="ponderlm", mixture="top_k"), 500)
    assert (account.method, account.mixture) == ("ponderlm", "top_k")


def test_the_table_shows_every_row() -> None:
    summary = run_summary(config(), 500, parameters_per_rank=(80_000, 80_000), device="cpu")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_summary(summary))
    text = captured.get()
    assert all(name in text for name, _ in summary_rows(summary))
