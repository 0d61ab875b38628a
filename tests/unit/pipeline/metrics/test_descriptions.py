import pytest

from pipeline.metrics import names
from pipeline.metrics.descriptions import DESCRIPTIONS, description_of

# Not curves: folders, text, the points of a sweep.
NO_CURVES = {names.TENSORBOARD_FOLDER, names.PROFILE_FOLDER, names.DATA_HASH, names.EVAL_SWEEP}


def test_every_metric_is_described() -> None:
    curves = {tag for name, tag in vars(names).items() if name.isupper() and isinstance(tag, str)}
    assert curves - NO_CURVES == set(DESCRIPTIONS)


@pytest.mark.parametrize(
    ("tag", "family"),
    [
        ("lm loss", "lm loss"),
        ("lm loss vs samples", "lm loss"),
        ("lm loss validation", "lm loss validation"),
        ("lm loss validation ppl vs samples", "lm loss validation ppl"),
        ("ponder/gate/iteration_0", "ponder/gate"),
        ("ponder/jacobi-residual/sweep_12", "ponder/jacobi-residual"),
        ("ponder/halt-fraction/step_2 validation", "ponder/halt-fraction"),
        ("ponder/eval-ppl-vs-tau/tau_1e-05", "ponder/eval-ppl-vs-tau"),
        ("data/tokens/step_1", "data/tokens"),
        ("data/tokens/my books", "data/tokens"),
    ],
)
def test_the_description_of_a_curve_is_that_of_its_family(tag: str, family: str) -> None:
    assert description_of(tag).endswith(DESCRIPTIONS[family])


def test_an_unknown_tag_has_none() -> None:
    assert description_of("other") == ""
