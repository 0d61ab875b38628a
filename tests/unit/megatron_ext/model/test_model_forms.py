"""Every setting of the form of PonderLM-3, alone and together, against plain passes row by row."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.config import (
    Mixture,
    Penalty,
    ReadoutFrom,
    RouterForm,
    RouterKind,
    TrainingMask,
)
from megatron_ext.ponder.reference.training import TrainingForward, TrainingResult
from megatron_ext.weights import whole_tensors
from tests.support.ponder_models import (
    AUTHORS,
    batch_of,
    decode_one_by_one,
    gradients_of,
    halting_tokens,
    observed,
    oracle_backbone,
    oracle_results,
    tiny_model,
)

WEIGHT = 0.3
FORMS: dict[str, dict[str, Any]] = {
    "authors": AUTHORS,
    "delta loss": {**AUTHORS, "penalty": Penalty.DELTA_LOSS},
    "ce loss": {**AUTHORS, "penalty": Penalty.CE_LOSS},
    "mixture": {**AUTHORS, "mixture": Mixture.SOFTMAX},
    "two undamped": {"form": replace(AUTHORS["form"], undamped_sweeps=2)},
    "never undamped": {"form": replace(AUTHORS["form"], undamped_sweeps=0)},
    "router": {"form": RouterForm(router=RouterKind.LINEAR)},
    "mask": {"form": RouterForm(mask_in_training=TrainingMask.HARD)},
    "scale": {"form": RouterForm(attention_scale_extra=8)},
    "pre-pass": {"form": RouterForm(pre_pass=True)},
    "damping": {"form": RouterForm(router_damping=0.3)},
    "readout": {"form": RouterForm(readout_from=ReadoutFrom.LAST_SWEEP)},
    "accuracy": {"penalty": Penalty.ACCURACY_BOTTOM},
    "bottom k": {"penalty": Penalty.BOTTOM_K},
}


def predicted_labels(model: PonderModel, num_sweeps: int) -> torch.Tensor:
    """Labels, [1, S], of which some are what the model predicts, and one is absent."""
    batch = batch_of(halting_tokens(7))
    with torch.no_grad():
        _, seen = observed(model, batch, num_jacobi_iterations=num_sweeps)
    labels = torch.where(batch.labels == IGNORED_LABEL, 3, batch.labels)
    likely = seen["logits"].argmax(dim=-1).transpose(0, 1)
    labels[0, ::2] = likely[0, ::2]
    labels[0, 3] = IGNORED_LABEL
    return labels


def plain(model: PonderModel, labels: torch.Tensor, num_sweeps: int) -> tuple[TrainingResult, dict[str, Any]]:
    """The result row by row, and the weights it was computed with, which gradients reach."""
    backbone = oracle_backbone(model)
    for weight in backbone.weights.values():
        weight.requires_grad_()
    given = [None if label == IGNORED_LABEL else label for label in labels[0].tolist()]
    forward = TrainingForward(backbone, model.config.ponder)
    tokens = halting_tokens(7)[0].tolist()
    return forward.run(tokens, given, num_sweeps=num_sweeps), dict(backbone.weights)


@pytest.mark.parametrize(
    ("name", "architecture", "num_thoughts", "num_sweeps"),
    [
        *((name, "llama", 2, 2) for name in FORMS),
        ("two undamped", "llama", 1, 4),
        *((name, "gpt_neox", 3, 0) for name in ("authors", "pre-pass", "readout")),
    ],
)
def test_a_training_forward_is_the_plain_one(
    groups: ParallelGroups, name: str, architecture: str, num_thoughts: int, num_sweeps: int
) -> None:
    model = tiny_model(
        groups, "ponderlm3", architecture, num_latent_thoughts=num_thoughts, ponder=FORMS[name]
    )
    labels = predicted_labels(model, num_sweeps)
    batch = replace(batch_of(halting_tokens(7)), labels=labels)

    output, seen = observed(model, batch, num_jacobi_iterations=num_sweeps)
    expected, weights = plain(model, labels, num_sweeps)

    logits = torch.stack(expected.logits)
    torch.testing.assert_close(seen["logits"][:, 0, : logits.shape[1]], logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(seen["s"][..., 0], torch.stack(expected.shares), rtol=0, atol=1e-11)
    assert output.penalty is not None
    torch.testing.assert_close(output.penalty, expected.penalty, rtol=1e-9, atol=1e-12)
    has_label = labels[0] != IGNORED_LABEL
    loss = torch.nn.functional.cross_entropy(logits[has_label], labels[0, has_label])
    (loss + WEIGHT * expected.penalty).backward()
    gradients = gradients_of(model, batch, num_jacobi_iterations=num_sweeps, penalty_weight=WEIGHT)
    by_parameter = {parameter: gradients[name] for name, parameter in model.named_parameters()}
    for key, gradient in whole_tensors(model, by_parameter.__getitem__).items():
        wanted = weights[key].grad
        assert wanted is not None, key
        difference = (gradient - wanted).abs().max()
        assert difference <= 1e-9 * max(float(wanted.abs().max()), 1e-3), key


def test_the_pre_pass_is_the_first_pass_of_the_build_up(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "ponderlm3", ponder=AUTHORS)
    labels = torch.full((1, 7), IGNORED_LABEL)

    expected, _ = plain(model, torch.where(labels == IGNORED_LABEL, 3, labels), 2)

    assert expected.num_passes == model.ponder.plan(2).num_passes + 1


@pytest.mark.parametrize("architecture", Architecture)
def test_decoding_is_the_oracle(groups: ParallelGroups, architecture: Architecture) -> None:
    model = tiny_model(groups, "ponderlm3", architecture, ponder=AUTHORS)
    tokens = halting_tokens(7)[0].tolist()

    logits, steps, decoder = decode_one_by_one(model, tokens)

    expected = oracle_results(model, tokens)
    torch.testing.assert_close(logits, torch.stack([result.logits for result in expected]), rtol=0, atol=1e-9)
    assert steps == [result.steps for result in expected]
    assert len(set(steps)) > 1
    assert decoder.store.num_rows == [sum(result.rows for result in expected)]


@pytest.mark.parametrize("prune", [False, True])
def test_without_damping_the_sweeps_reach_what_decoding_computes(groups: ParallelGroups, prune: bool) -> None:
    model = tiny_model(groups, "ponderlm3", ponder={**AUTHORS, "pruning_threshold": 1e-3})
    tokens, seen = halting_tokens(7), {}

    with torch.no_grad():
        model(
            batch_of(tokens),
            num_jacobi_iterations=12,
            prune=prune,
            damped=False,
            observe=lambda name, value: seen.update({name: value.clone()}),
        )

    decoded, _, _ = decode_one_by_one(model, tokens[0].tolist())
    error = (seen["logits"][:, 0, : decoded.shape[1]] - decoded).abs().max()
    # The readout of training is whole; what decoding drops of it is below tau.
    assert error <= (1e-9 if prune else 1e-1)
