"""Defaults of `ponder` by method and form."""

from typing import Any

import pytest

from megatron_ext.ponder.config import Method, RouterForm
from pipeline.config.ponder_section import PonderSection

# What the research code of PonderLM-3's authors runs, as settings.
AUTHORS = {
    "num_jacobi_iterations": 10,
    "random_jacobi_iterations": (4, 6),
    "router": "linear",
    "router_start": "random",
    "mask_in_training": "hard",
    "attention_scale_extra": 8,
    "pre_pass": True,
    "router_damping": 0.1,
    "undamped_sweeps": 1,
    "readout_from": "last_sweep",
    "penalty": "accuracy_bottom",
    "penalty_ramp": (1000, 4000),
}


def settings(**given: Any) -> dict[str, Any]:
    return PonderSection(method=Method.PONDERLM3, **given).model_dump()


def test_the_form_of_the_authors_changes_these_defaults_and_no_others() -> None:
    usual, authors = settings(), settings(form="authors")

    assert {name: authors[name] for name in AUTHORS} == AUTHORS
    differing = {name for name in usual if usual[name] != authors[name]}
    assert differing == AUTHORS.keys() - {"undamped_sweeps"} | {"form"}


def test_without_a_form_the_router_is_this_projects() -> None:
    assert PonderSection(method=Method.PONDERLM3).router_form == RouterForm()


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, value in settings().items() if name in AUTHORS and value is not None],
)
def test_a_setting_that_is_given_counts_in_every_form(name: str, value: Any) -> None:
    assert settings(form="authors", **{name: value})[name] == value


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ({"num_latent_thoughts": 1}, (2, 4)),
        ({"num_latent_thoughts": 0}, None),
        ({"jacobi_schedule": [[0, 2]]}, None),
        ({"random_jacobi_iterations": [5, 5]}, (5, 5)),
    ],
)
def test_the_authors_draw_from_one_sweep_more_than_there_are_thoughts(
    given: dict[str, Any], drawn: tuple[int, int] | None
) -> None:
    assert settings(form="authors", **given)["random_jacobi_iterations"] == drawn


@pytest.mark.parametrize(("form", "share"), [("megaponder", 0.0), ("authors", 1.0)])
def test_damping_is_a_share_above_zero(form: str, share: float) -> None:
    if share > 0:
        settings(form=form, router_damping=share)
        return
    with pytest.raises(ValueError, match="router_damping"):
        settings(form=form, router_damping=share)
