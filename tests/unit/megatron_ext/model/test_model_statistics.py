"""The sums that a forward reports, against a plain computation from observed intermediate results."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_ext.model.micro_batch import ModelOutput
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.config import Method, Penalty
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    each_method,
    halting_tokens,
    observed,
    random_tokens,
    tiny_model,
)

NUM_THOUGHTS, SWEEPS, MAX_SWEEPS, TAU = 2, 2, 4, 0.01
BATCH = batch_of(
    torch.cat([random_tokens(1, 9), halting_tokens()]),
    torch.tensor([[0] * 4 + [1] * 5, [0] * 6 + [PADDING_DOCUMENT] * 3]),
)
SWEEPING, HALTING = ("ponderlm2", "ponderlm3"), ("ponderlm3", "adaponderlm", "adaptive_latent_cot")
PLACES = [(token, row) for row in range(2) for token in range(9)]
REAL = [(token, row) for token, row in PLACES if BATCH.document_ids[row, token] >= 0]


def run(groups: ParallelGroups, method: str, **ponder: object) -> tuple[ModelOutput, dict[str, Tensor]]:
    settings = {"max_jacobi_iterations": MAX_SWEEPS, "pruning_threshold": TAU, **ponder}
    return observed(tiny_model(groups, method, ponder=settings), BATCH, num_jacobi_iterations=SWEEPS)


def plain_nll(logits: Tensor, token: int, row: int) -> float:
    label = int(BATCH.labels[row, token])
    if label == IGNORED_LABEL:
        return 0.0
    scores = logits[token, row, :VOCAB_SIZE].tolist()
    return math.log(sum(math.exp(score) for score in scores)) - scores[label]


@each_method
def test_tokens_and_losses(groups: ParallelGroups, method: Method) -> None:
    output, seen = run(groups, method)

    losses = {place: plain_nll(seen["logits"], *place) for place in PLACES}
    for (token, row), loss in losses.items():
        assert output.token_losses[token, row].item() == pytest.approx(loss, abs=1e-10)
    assert output.statistics["real_tokens"].tolist() == [15]
    assert output.statistics["labelled_tokens"].tolist() == [12]
    assert output.statistics["nll"].item() == pytest.approx(sum(losses.values()))


@each_method
@pytest.mark.parametrize("num_thoughts", [0, NUM_THOUGHTS])
def test_every_forward_has_the_same_names_and_sizes(
    groups: ParallelGroups, method: Method, num_thoughts: int
) -> None:
    expected = {"real_tokens": 1, "labelled_tokens": 1, "nll": 1}
    if method in SWEEPING:
        expected |= dict.fromkeys(("residual_change", "residual_norm"), MAX_SWEEPS)
    if method in HALTING and (num_thoughts or method == "ponderlm3"):
        expected |= dict.fromkeys(("steps_count", "nll_by_steps", "labelled_by_steps"), num_thoughts + 1)
        expected |= {"penalty": 1}
        own = {
            "ponderlm3": {"tail_mass": num_thoughts + 1, "router_entropy": 1},
            "adaptive_latent_cot": {"continue_probability": num_thoughts},
        }
        expected |= own.get(method, {"gate_mean": num_thoughts})
    if method == "ponderlm3":
        expected |= {"measured_tokens": 1, "step_nll": num_thoughts + 1, "one_more_nll": 1}
        expected |= {"thought_rows": 1, "thought_rows_run": 1}
    settings = {"max_jacobi_iterations": MAX_SWEEPS}
    model = tiny_model(groups, method, num_latent_thoughts=num_thoughts, ponder=settings)

    for sweeps in (0, MAX_SWEEPS):
        output, _ = observed(model, BATCH, num_jacobi_iterations=sweeps)

        assert {name: value.numel() for name, value in output.statistics.items()} == expected
        assert not any(value.requires_grad for value in output.statistics.values())
    assert model.statistics_layout() == expected


@pytest.mark.parametrize("method", SWEEPING)
def test_residuals_compare_thoughts_before_and_after_each_sweep(groups: ParallelGroups, method: str) -> None:
    output, seen = run(groups, method)

    change, norm = [0.0] * MAX_SWEEPS, [0.0] * MAX_SWEEPS
    for sweep in range(SWEEPS):
        # The first sweep is pass K.
        old, new = (seen[f"thoughts/after_pass_{NUM_THOUGHTS + sweep - back:02d}"] for back in (1, 0))
        for token, row in REAL:
            change[sweep] += float((new[token, :, row] - old[token, :, row]).square().sum())
            norm[sweep] += float(old[token, :, row].square().sum())
    assert output.statistics["residual_change"].tolist() == pytest.approx(change)
    assert output.statistics["residual_norm"].tolist() == pytest.approx(norm)
    assert change[0] > change[1] > 0.0


@pytest.mark.parametrize("kind", [Penalty.EXPECTED_STEPS, Penalty.BOTTOM_K])
def test_the_routers_decisions_are_counted_over_real_tokens(groups: ParallelGroups, kind: Penalty) -> None:
    output, seen = run(groups, "ponderlm3", penalty=kind)
    logits = seen["router_logits"]

    counts, masses = [0] * 3, [0.0] * 3
    entropy, logs, expected = 0.0, [], 0.0
    for token, row in REAL:
        scores = [math.exp(score) for score in logits[token, row].tolist()]
        s = [score / sum(scores) for score in scores]
        w = [1.0, s[1] + s[2], s[2]]
        counts[max(k for k in range(3) if w[k] >= TAU)] += 1
        masses = [total + mass for total, mass in zip(masses, w, strict=True)]
        entropy -= sum(share * math.log(share) for share in s)
        logs += [math.log(max(mass, 1e-9)) for mass in w[1:]]
        expected += (w[1] + w[2]) / 2
    smallest = sorted(logs)[: int(0.25 * len(logs))]
    penalty = expected / 15 if kind is Penalty.EXPECTED_STEPS else sum(smallest) / len(smallest)

    statistics = output.statistics
    assert all(count > 0 for count in counts), "every number of steps must occur"
    assert statistics["steps_count"].tolist() == counts
    assert statistics["tail_mass"].tolist() == pytest.approx(masses)
    assert statistics["router_entropy"].item() == pytest.approx(entropy)
    assert output.penalty is not None
    assert output.penalty.item() == pytest.approx(penalty)
    assert statistics["penalty"].item() == pytest.approx(15 * penalty)


def test_an_adaptive_penalty_counts_accuracies_and_shares(groups: ParallelGroups) -> None:
    model = tiny_model(
        groups, "ponderlm3", ponder={"pruning_threshold": TAU, "penalty": Penalty.ACCURACY_BOTTOM}
    )
    with torch.no_grad():
        # Sharp predictions, so that the penalty has a share to find.
        model.output_layer.weight.mul_(30)
        likely = observed(model, BATCH)[1]["logits"].argmax(dim=-1).transpose(0, 1)
    # Every other label is what the model predicts.
    chosen = torch.arange(9).expand_as(likely) % 2 == 0
    labels = torch.where((BATCH.labels != IGNORED_LABEL) & chosen, likely, BATCH.labels)

    output, seen = observed(model, replace(BATCH, labels=labels))

    slots = seen["last_hidden"].unflatten(0, (9, 3))
    head = model.output_layer.weight[:VOCAB_SIZE]
    sums = [0.0] * 3
    for token, row in REAL:
        label = int(labels[row, token])
        if label == IGNORED_LABEL:
            continue
        for steps in range(3):
            mixed = sum(seen["s"][token, k, row] * slots[token, k, row] for k in range(steps + 1))
            chances = torch.softmax(head @ mixed, dim=0)
            sums[steps] += float(chances[label]) if int(chances.argmax()) == label else 0.0
    assert min(sums) > 0
    levels = [total / 12 for total in sums[:2]]
    shares = [levels[0], max(levels[1] - levels[0], 0.0)]
    masses = [sorted(float(seen["tail_mass"][token, k, row]) for token, row in REAL) for k in (1, 2)]
    counts = [max(1, int(15 * share)) for share in shares]
    expected = sum(sum(values[:count]) / count for values, count in zip(masses, counts, strict=True))
    assert counts != [1, 1]
    assert output.statistics["accuracy"].tolist() == pytest.approx(sums)
    assert output.statistics["penalised_share"].tolist() == pytest.approx([15 * share for share in shares])
    assert output.penalty is not None
    assert output.penalty.item() == pytest.approx(expected)
    assert output.statistics["penalty"].item() == pytest.approx(15 * expected)


def test_the_gates_decisions_are_counted_over_real_tokens(groups: ParallelGroups) -> None:
    output, seen = run(groups, "adaponderlm")

    counts, gates, logits = [0] * 3, [0.0] * 2, []
    for token, row in REAL:
        values = [1 / (1 + math.exp(-logit)) for logit in seen["gate_logits"][token, row].tolist()]
        closed = [index for index, value in enumerate(values) if value < TAU]
        counts[min(closed, default=2)] += 1
        gates = [total + value for total, value in zip(gates, values, strict=True)]
        # A closed gate counts as one at tau.
        logits += [
            max(logit, math.log(TAU / (1 - TAU))) for logit in seen["gate_logits"][token, row].tolist()
        ]
    smallest = sorted(logits)[: int(0.25 * len(logits))]

    statistics = output.statistics
    assert all(count > 0 for count in counts), "every number of steps must occur"
    assert statistics["steps_count"].tolist() == counts
    assert statistics["gate_mean"].tolist() == pytest.approx(gates)
    assert output.penalty is not None
    assert output.penalty.item() == pytest.approx(sum(smallest) / len(smallest))
    assert statistics["penalty"].item() == pytest.approx(15 * output.penalty.item())


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_the_routers_questions_are_counted_over_the_steps_that_run(
    groups: ParallelGroups, exponent: float
) -> None:
    tau = 0.35
    output, seen = run(groups, "adaptive_latent_cot", pruning_threshold=tau, penalty_exponent=exponent)
    head = tiny_model(groups, "adaptive_latent_cot").output_layer.weight[:VOCAB_SIZE].detach()

    counts, goes_on, penalty = [0] * 3, [0.0] * 2, 0.0
    for token, row in REAL:
        steps, reach = 0, 1.0
        for step, logit in enumerate(seen["continue_logits"][token, row].tolist()):
            gate = 1 / (1 + math.exp(-logit))
            goes_on[step] += gate
            label = int(BATCH.labels[row, token])
            if label != IGNORED_LABEL:
                logits = seen[f"hidden/step_{step:02d}"][token, row] @ head.T
                penalty += torch.softmax(logits, dim=0)[label].item() ** exponent * gate
            reach *= gate
            if reach < tau:
                break
            steps += 1
        counts[steps] += 1

    statistics = output.statistics
    assert all(count > 0 for count in counts), "every number of steps must occur"
    assert statistics["steps_count"].tolist() == counts
    assert statistics["continue_probability"].tolist() == pytest.approx(goes_on)
    assert output.penalty is not None
    assert output.penalty.item() == pytest.approx(penalty / 15)
    assert statistics["penalty"].item() == pytest.approx(penalty)


@pytest.mark.parametrize("method", HALTING)
def test_losses_by_steps(groups: ParallelGroups, method: str) -> None:
    output, seen = run(groups, method)

    assert output.steps is not None
    nll, labelled = [0.0] * 3, [0] * 3
    for token, row in PLACES:
        steps = int(output.steps[token, row])
        nll[steps] += plain_nll(seen["logits"], token, row)
        labelled[steps] += int(BATCH.labels[row, token] != IGNORED_LABEL)
    assert output.statistics["nll_by_steps"].tolist() == pytest.approx(nll)
    assert output.statistics["labelled_by_steps"].tolist() == labelled


def test_the_mask_of_a_pass_comes_from_the_pass_before(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "ponderlm3")
    first_hidden: list[Tensor] = []
    model.final_norm.register_forward_hook(
        lambda module, inputs, output: first_hidden.append(output.detach())
    )

    _, seen = observed(model, BATCH, num_jacobi_iterations=SWEEPS)

    slots = [1, 2, 3, 3, 3]
    # The last thought is not read in sweeps.
    read = [1, 2, 2, 2, 3]
    assert len(first_hidden) == len(slots)
    assert "log_w/pass_00" not in seen
    for index in range(1, 5):
        previous = first_hidden[index - 1][:: read[index - 1]]
        distribution = torch.softmax(model.ponder.route(previous), dim=-1)
        masses = torch.stack(
            [torch.ones_like(distribution[..., 0])] + [distribution[..., k:].sum(-1) for k in (1, 2)]
        )
        # [K + 1, S, B] -> [S, n, B]
        expected = masses.clamp_min(1e-9).log().transpose(0, 1)[:, : slots[index]]
        torch.testing.assert_close(seen[f"log_w/pass_{index:02d}"], expected, rtol=1e-9, atol=1e-9)
    own = torch.softmax(model.ponder.route(first_hidden[-1][::3]), dim=-1)
    torch.testing.assert_close(seen["s"].transpose(1, 2), own)
