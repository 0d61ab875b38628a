"""The oracle against every golden vector that records a left-to-right computation."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.ponder.config import Method, Mixture, PonderConfig, Residual
from megatron_ext.ponder.reference.backbone import Backbone
from megatron_ext.ponder.reference.method import TokenResult
from megatron_ext.ponder.reference.sequential import SequentialOracle
from tests.support.golden.case import GoldenCase, read_cases

EXACT = 1e-9
BACKBONES = ["llama", "neox"]
# Their training forward needs no sweeps, so that it is the left-to-right computation itself. By golden names.
FORWARD_METHODS = ["vanilla", "loop", "pause", "ponderlm", "ponderlm1", "adaponderlm"]


@pytest.fixture(scope="module")
def cases(golden_folder: Path) -> list[GoldenCase]:
    return read_cases(golden_folder)


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    with torch.no_grad():
        yield


def chosen(cases: Sequence[GoldenCase], kind: str, method: str, backbone: str) -> list[GoldenCase]:
    """The cases of one golden method; there must be some."""
    wanted = {"kind": kind, "method": method, "arch": backbone}
    found = [case for case in cases if wanted.items() <= case.facts.items()]
    assert found, f"the folder of golden vectors must hold a case of {wanted}"
    return found


def ponder_settings(case: GoldenCase) -> PonderConfig:
    """The settings that reproduce a case, departures of the published code included."""
    name, is_neox, flags = case.facts["method"], case.facts["arch"] == "neox", case.flags
    mixture = Mixture.HIDDEN
    if name in ("ponderlm1", "adaponderlm") or (name == "ponderlm" and not is_neox):
        mixture = Mixture.SOFTMAX
    elif name != "ponderlm" and flags.get("interpolation"):
        mixture = Mixture.TOP_K if flags.get("interpolation_use_topk") else Mixture.SOFTMAX
    is_always_scaled = name == "loop" or (name == "pause" and not is_neox)
    is_never_scaled = name == "ponderlm" and is_neox
    return PonderConfig(
        method=case.method,
        num_latent_thoughts=case.facts["K"] or 0,
        scale_embeds=is_always_scaled or (flags["scale_embeds"] and not is_never_scaled),
        mixture=mixture,
        softmax_temperature=flags.get("softmax_temperature", 1.0),
        residual=Residual.FROM_EMBEDDING if name == "ponderlm" and not is_neox else Residual.ACCUMULATE,
        multiply_embedding=flags.get("mutiply_pondering_steps", False),
        pause_token_id=flags.get("pause_token_id"),
        pruning_threshold=flags.get("tau", 1e-4),
        form=case.form,
    )


def backbone_of(case: GoldenCase) -> Backbone:
    settings, is_neox = case.backbone, case.facts["arch"] == "neox"
    heads = settings["num_attention_heads"]
    head_size = settings["hidden_size"] // heads
    return Backbone(
        is_neox=is_neox,
        weights={name: weight.double() for name, weight in case.weights().items()},
        num_layers=settings["num_hidden_layers"],
        num_heads=heads,
        num_key_value_heads=settings.get("num_key_value_heads", heads),
        rotary_size=int(settings["rotary_pct"] * head_size) if is_neox else head_size,
        rotary_base=settings["rotary_emb_base" if is_neox else "rope_theta"],
        norm_epsilon=settings["layer_norm_eps" if is_neox else "rms_norm_eps"],
    )


def consume(case: GoldenCase, tokens: Tensor) -> list[TokenResult]:
    """Let the oracle read one document from position 0."""
    oracle = SequentialOracle(backbone_of(case), ponder_settings(case))
    return [oracle.consume(token, position) for position, token in enumerate(tokens.tolist())]


def documents(case: GoldenCase) -> list[tuple[int, Tensor]]:
    """Yield every document as its row of the batch and its positions there."""
    ids = case.tensors["inputs/input_ids"]
    real = case.tensors.get("inputs/attention_mask", torch.ones_like(ids)).bool()
    document_ids = case.tensors.get("inputs/document_ids", torch.zeros_like(ids))
    return [
        (row, (real[row] & (document_ids[row] == document)).nonzero().flatten())
        for row in range(len(ids))
        for document in document_ids[row].unique()
    ]


def assert_recorded(case: GoldenCase, name: str, found: Tensor, *index: Tensor | int | slice) -> None:
    """Compare with what a case records, the wide values where there are some."""
    is_wide = f"outputs_f64/{name}" in case.tensors
    expected = case.tensors[f"outputs_f64/{name}" if is_wide else f"outputs/{name}"][index].double()
    tolerance = EXACT if is_wide else case.tolerance(f"outputs/{name}", double=False)
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tolerance, msg=lambda text: f"{case.name}, {name}: {text}"
    )


def recorded_loss(case: GoldenCase, logits: Tensor) -> Tensor:
    """Mean cross-entropy, [B, L, V] against labels that stand at the place of their own token."""
    labels = case.tensors["inputs/labels"][:, 1:]
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", FORWARD_METHODS)
def test_a_forward_without_sweeps_is_the_oracle(
    cases: Sequence[GoldenCase], method: str, backbone: str
) -> None:
    for case in chosen(cases, "forward", method, backbone):
        # Padding stays 0; it has no labels.
        logits = torch.zeros_like(case.tensors["outputs/logits"], dtype=torch.float64)
        for row, places in documents(case):
            results = consume(case, case.tensors["inputs/input_ids"][row, places])
            logits[row, places] = torch.stack([result.logits for result in results])
            assert_recorded(case, "logits", logits[row, places], row, places)
            if case.method is Method.ADAPONDERLM:
                assert_gates_are_recorded(case, results, row, places)
        assert_recorded(case, "loss", recorded_loss(case, logits))


def assert_gates_are_recorded(
    case: GoldenCase, results: Sequence[TokenResult], row: int, places: Tensor
) -> None:
    steps = [result.steps for result in results]
    assert steps == case.tensors["outputs/active_iterations"][row, places].tolist(), case.name
    for result, place in zip(results, places, strict=True):
        assert_recorded(case, "gate_logits", result.gate_logits, row, place, slice(len(result.gate_logits)))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tokens_that_the_sweeps_make_exact_are_those_of_the_oracle(
    cases: Sequence[GoldenCase], backbone: str
) -> None:
    for case in chosen(cases, "forward", "ours", backbone):
        num_thoughts, num_sweeps = case.facts["K"], case.facts["J"]
        ids = case.tensors["inputs/input_ids"]
        num_exact = 1 + num_sweeps // num_thoughts if num_thoughts else ids.shape[1]

        results = consume(case, ids[0, :num_exact])

        logits = torch.stack([result.logits for result in results])
        assert_recorded(case, "logits", logits, 0, slice(num_exact))
        if num_thoughts:
            # As recorded: thoughts first, then tokens.
            thoughts = torch.stack([result.thoughts for result in results], dim=1)
            last = f"thoughts/after_pass_{num_thoughts + num_sweeps - 1:02d}"
            assert_recorded(case, last, thoughts, slice(None), 0, slice(num_exact))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_fixed_point_of_the_sweeps_is_the_oracle(cases: Sequence[GoldenCase], backbone: str) -> None:
    for case in chosen(cases, "decode", "ours", backbone):
        prompt, generated = case.tensors["inputs/prompt_ids"], case.tensors["outputs/generated_ids"]

        results = consume(case, torch.cat([prompt[0], generated[0]]))

        logits = torch.stack([result.logits for result in results])
        assert_recorded(case, "parallel_logits_converged", logits, 0)
        num_prompt = prompt.shape[1]
        if case.facts["use_cache"] and case.facts["J"] >= case.facts["K"] * (num_prompt - 1):
            assert_recorded(case, "step_logits", logits[num_prompt - 1 : -1], 0)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["ponderlm3", "adaponderlm"])
def test_decoding_with_halting_is_the_oracle(cases: Sequence[GoldenCase], method: str, backbone: str) -> None:
    for case in chosen(cases, "decode", method, backbone):
        for row, prompt in enumerate(case.tensors["inputs/prompt_ids"]):
            generated = case.tensors["outputs/generated_ids"][row]

            results = consume(case, torch.cat([prompt, generated[:-1]]))

            logits = torch.stack([result.logits for result in results[len(prompt) - 1 :]])
            assert_recorded(case, "step_logits", logits, row)
            assert logits.argmax(dim=1).tolist() == generated.tolist(), case.name
            steps = "token_steps" if method == "ponderlm3" else "token_active_iterations"
            assert [result.steps for result in results] == case.tensors[f"outputs/{steps}"][row].tolist()
            assert [result.rows for result in results] == case.tensors["outputs/token_rows"][row].tolist()
            if method == "adaponderlm":
                assert_asked_gates_are_recorded(case, results, row)


def assert_asked_gates_are_recorded(case: GoldenCase, results: Sequence[TokenResult], row: int) -> None:
    num_asked = case.tensors["outputs/gate_computed"][row].sum(dim=1).tolist()
    assert [len(result.gate_logits) for result in results] == num_asked, case.name
    for place, result in enumerate(results):
        assert_recorded(case, "gate_logits", result.gate_logits, row, place, slice(len(result.gate_logits)))
