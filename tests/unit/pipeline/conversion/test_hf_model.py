"""The exported code computes in transformers what this program computes, for every method and backbone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.model.config import Architecture
from megatron_ext.ponder.config import Method, Reading, RouterForm
from pipeline.conversion.certificate import Certificate
from pipeline.conversion.model_code import shipped_code
from pipeline.conversion.to_hf import ExportOptions, to_hf
from tests.support.hf_models import use_module_cache
from tests.support.ponder_models import AUTHORS
from tests.support.pondering_exports import (
    NUM_NEW,
    NUM_THOUGHTS,
    SETTLED,
    Expected,
    forward_tokens,
    some_prompts,
    write_checkpoint,
)
from tests.support.ranks import run_alone

transformers = pytest.importorskip("transformers")

EXACT = 1e-10
Model = (
    tuple[Method, Architecture, bool]
    | tuple[Method, Architecture, bool, RouterForm]
    | tuple[Method, Architecture, bool, RouterForm, Reading]
)
METHODS = tuple(method for method in Method if method is not Method.VANILLA)
MODELS: list[Model] = [
    *((method, architecture, False) for method in METHODS for architecture in Architecture),
    (Method.PAUSE, Architecture.LLAMA, True),
    (Method.PONDERLM, Architecture.GPT_NEOX, True),
    (Method.PONDERLM3, Architecture.LLAMA, False, AUTHORS["form"]),
    (Method.PONDERLM3, Architecture.GPT_NEOX, False, RouterForm(pre_pass=True, router_damping=0.5)),
    (Method.PONDERLM3, Architecture.LLAMA, False, RouterForm(), Reading.LAST_STEP),
]


PONDERLM3: Model = (Method.PONDERLM3, Architecture.LLAMA, False)
OUR_PACKAGES = ("pipeline", "megatron_ext", "data_prep", "cluster", "megatron")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An exported model.

    Attributes:
        checkpoint, folder: what was exported, and whereto.
        expected: what is to come out.
        certificate: of the export.
        exact, narrow: as transformers loads it, in float64 and in float32.
    """

    checkpoint: Path
    folder: Path
    expected: Expected
    certificate: Certificate
    exact: Any
    narrow: Any


def load(folder: Path, **settings: Any) -> Any:
    loader = transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder, trust_remote_code=True, **settings).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[Model, tuple[Path, Expected]]:
    """Checkpoints of all models, written in one process group."""
    return run_alone(_write_all, tmp_path_factory.mktemp("native"))


def _write_all(directory: Path) -> dict[Model, tuple[Path, Expected]]:
    return {model: write_checkpoint(directory / str(number), *model) for number, model in enumerate(MODELS)}


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: "-".join(map(str, model)))
def exported(
    request: Any, written: dict[Model, tuple[Path, Expected]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    checkpoint, expected = written[request.param]
    directory = tmp_path_factory.mktemp("export")
    folder = directory / "exported"
    certificate = to_hf(checkpoint, folder, ExportOptions(needs_tokenizer=False))
    with pytest.MonkeyPatch.context() as environment:
        use_module_cache(environment, directory / "code")
        yield Exported(
            checkpoint=checkpoint,
            folder=folder,
            expected=expected,
            certificate=certificate,
            exact=load(folder, dtype=torch.float64, prefill_tolerance=SETTLED),
            narrow=load(folder, prefill_tolerance=0.0),
        )


def padded(sequences: list[list[int]], *, left: bool = True, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [B, longest]."""
    longest = max(map(len, sequences))
    rows, masks = [], []
    for sequence in sequences:
        padding = [pad] * (longest - len(sequence))
        mask = [0] * len(padding), [1] * len(sequence)
        rows.append([*padding, *sequence] if left else [*sequence, *padding])
        masks.append([*mask[0], *mask[1]] if left else [*mask[1], *mask[0]])
    return torch.tensor(rows), torch.tensor(masks)


def generate(model: Any, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> Any:
    settings = {"max_new_tokens": NUM_NEW, "do_sample": False, "pad_token_id": 0, **settings}
    return model.generate(
        ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings
    )


def test_generate_gives_the_tokens_and_logits_of_our_own_decoder(exported: Exported) -> None:
    expected, (ids, mask) = exported.expected, padded(some_prompts())

    for model, relative in ((exported.exact, 2e-6), (exported.narrow, 1e-5)):
        output = generate(model, ids, mask)

        assert torch.equal(output.sequences[:, ids.shape[1] :], expected.continuations)
        # generate itself rounds logits to float32.
        logits = torch.stack(output.logits, dim=1)
        scale = float(expected.step_logits.square().mean().sqrt())
        torch.testing.assert_close(logits.double(), expected.step_logits, rtol=0, atol=relative * scale)
        cache = output.past_key_values
        assert [row[row_mask].tolist() for row, row_mask in _prompt_steps(cache.steps, mask)] == (
            expected.prompt_steps
        )
        assert torch.equal(cache.steps[:, ids.shape[1] :], expected.new_steps)
        assert cache.num_rows.tolist() == expected.num_rows


def _prompt_steps(steps: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(steps[:, : mask.shape[1]], mask.bool(), strict=True)


def test_cached_decoding_is_exact_in_float64(exported: Exported) -> None:
    model, expected, (ids, mask) = exported.exact, exported.expected, padded(some_prompts())
    output = model(ids, attention_mask=mask, use_cache=True)

    found = [output.logits[:, -1]]
    for column in expected.continuations[:, :-1].T:
        # A mask is only needed where there is padding.
        output = model(column.unsqueeze(1), past_key_values=output.past_key_values)
        found.append(output.logits[:, -1])

    torch.testing.assert_close(torch.stack(found, dim=1), expected.step_logits, rtol=0, atol=EXACT)


def test_a_sequence_generates_alone_what_it_does_in_a_batch(exported: Exported) -> None:
    for prompt, continuation in zip(some_prompts(), exported.expected.continuations, strict=True):
        output = generate(exported.narrow, torch.tensor([prompt]))

        assert torch.equal(output.sequences[0, len(prompt) :], continuation)


def test_the_forward_gives_logits_loss_steps_and_gradients_of_training(exported: Exported) -> None:
    model, expected, tokens = exported.exact, exported.expected, forward_tokens()

    output = model(tokens, labels=tokens)

    torch.testing.assert_close(output.logits, expected.forward, rtol=0, atol=EXACT)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=EXACT)
    assert expected.steps is None or torch.equal(output.steps, expected.steps)
    model.zero_grad()
    output.loss.backward()
    found = dict(model.named_parameters())
    assert set(found) == set(expected.gradients)
    for name, gradient in expected.gradients.items():
        own = torch.zeros_like(found[name]) if found[name].grad is None else found[name].grad
        torch.testing.assert_close(own, gradient, rtol=0, atol=EXACT)


@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_changes_no_logits(exported: Exported, left: bool) -> None:
    model = exported.exact
    prompts = some_prompts()

    with torch.no_grad():
        ids, mask = padded(prompts, left=left)
        together = model(ids, attention_mask=mask).logits
        alone = [model(torch.tensor([prompt])).logits[0] for prompt in prompts]

    for logits, row_mask, expected in zip(together, mask.bool(), alone, strict=True):
        torch.testing.assert_close(logits[row_mask], expected, rtol=0, atol=EXACT)


def test_another_vocabulary_is_refused_before_anything_changes(exported: Exported) -> None:
    model = exported.narrow
    embeddings = model.get_input_embeddings()
    sizes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    rows = len(embeddings.weight)
    for size in (rows + 20, 1):
        with pytest.raises(NotImplementedError, match=str(rows)):
            model.resize_token_embeddings(size)
    with pytest.raises(NotImplementedError):
        model.set_input_embeddings(embeddings)
    assert model.get_input_embeddings() is embeddings
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == sizes
    assert model.resize_token_embeddings(rows) is embeddings
    assert model.resize_token_embeddings() is embeddings


def test_a_text_may_be_continued_by_several_tokens_at_once(exported: Exported) -> None:
    model, expected = exported.exact, exported.expected
    ids, mask = padded(some_prompts())
    read = model(ids, attention_mask=mask, use_cache=True)
    new = expected.continuations[:, :-1]

    output = model(new, past_key_values=read.past_key_values)

    torch.testing.assert_close(output.logits, expected.step_logits[:, 1:], rtol=0, atol=EXACT)
    assert read.past_key_values.num_rows.tolist() == expected.num_rows


def test_the_export_certifies_itself_and_brings_its_code(exported: Exported) -> None:
    logits = exported.certificate.logits
    assert logits.is_within_tolerance
    assert logits.max_error is not None
    assert logits.logit_rms is not None
    assert logits.max_error < 1e-5 * logits.logit_rms
    for name, source in shipped_code().items():
        assert (exported.folder / name).read_text(encoding="utf-8") == source
        assert name in exported.certificate.written_files
    assert type(exported.narrow).__module__.startswith("transformers_modules.")


@pytest.fixture(scope="module")
def one(written: dict[Model, tuple[Path, Expected]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported PonderLM-3."""
    folder = tmp_path_factory.mktemp("one") / "exported"
    to_hf(written[PONDERLM3][0], folder, ExportOptions(needs_tokenizer=False, shard_bytes=20_000))
    return folder


@pytest.fixture(scope="module")
def model(one: Path) -> Any:
    """The same, by our own module."""
    from pipeline.conversion.hf_model.modeling_megaponder import MegaPonderForCausalLM

    return MegaPonderForCausalLM.from_pretrained(one).eval()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_beams": 2}, "beam_search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted_generation"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"past_key_values": transformers.DynamicCache()}, "PonderCache"),
    ],
)
def test_ways_to_generate_that_do_not_fit_are_refused(
    model: Any, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        generate(model, torch.tensor([[1, 2, 3]]), **settings)


def test_prompts_with_padding_behind_them_and_another_batch_are_refused(model: Any) -> None:
    ids, mask = padded(some_prompts(), left=False)
    with pytest.raises(ValueError, match="padding_side"):
        generate(model, ids, mask)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"\(1\).*4"):
        model(ids[:1], past_key_values=cache)


def test_steps_are_limited_by_settings_of_a_loaded_model(one: Path) -> None:
    from pipeline.conversion.hf_model.modeling_megaponder import MegaPonderForCausalLM

    model = MegaPonderForCausalLM.from_pretrained(one, pruning_threshold=0.0).double().eval()
    ids = torch.tensor([[1, 2, 3]])
    whole = model(ids, use_cache=True)
    assert set(whole.steps.flatten().tolist()) == {NUM_THOUGHTS}

    model.config.num_latent_thoughts = 1
    limited = model(ids, use_cache=True)
    assert set(limited.steps.flatten().tolist()) == {1}
    # Equal outputs for all steps from 1 on are one output with their joint share.
    output = model.ponder["router"][2]
    with torch.no_grad():
        output.weight[1:], output.bias[1:] = output.weight[1].clone(), output.bias[1].clone()
        folded = model(ids, use_cache=True)
        output.weight = torch.nn.Parameter(output.weight[:2])
        output.bias = torch.nn.Parameter(output.bias[:2] + torch.tensor([1.0, NUM_THOUGHTS]).log())
        small = model(ids, use_cache=True)
    torch.testing.assert_close(folded.logits, small.logits, rtol=0, atol=1e-6)


def test_sampling_and_several_continuations_work(model: Any) -> None:
    settings = {"do_sample": True, "temperature": 0.7, "num_return_sequences": 3}

    output = generate(model, torch.tensor([[1, 2, 3]]), **settings)

    assert output.sequences.shape == (3, 3 + NUM_NEW)
    assert output.past_key_values.steps.shape == (3, 3 + NUM_NEW - 1)


def test_without_a_cache_every_token_comes_from_a_forward_of_training(model: Any) -> None:
    ids = torch.tensor([some_prompts()[0]])

    output = generate(model, ids, max_new_tokens=2, use_cache=False)

    assert output.past_key_values is None
    expected = [model(output.sequences[:, : ids.shape[1] + new]).logits[0, -1] for new in range(2)]
    torch.testing.assert_close(torch.cat(output.logits), torch.stack(expected), rtol=0, atol=1e-5)


def test_bfloat16_weights_stay_close(one: Path, model: Any) -> None:
    narrow = type(model).from_pretrained(one, dtype=torch.bfloat16, pruning_threshold=0.0)
    wide = type(model).from_pretrained(one, pruning_threshold=0.0)
    ids, mask = padded(some_prompts())

    found = narrow(ids, attention_mask=mask, use_cache=True).logits[:, -1]
    expected = wide(ids, attention_mask=mask, use_cache=True).logits[:, -1]

    assert found.dtype == torch.bfloat16
    difference = (found.float() - expected).square().mean().sqrt()
    assert difference < 0.1 * expected.square().mean().sqrt()


@pytest.mark.parametrize("mixture", ["hidden", "softmax"])
def test_a_forward_in_mixed_precision_stays_close_and_has_gradients(
    one: Path, model: Any, mixture: str
) -> None:
    model = type(model).from_pretrained(one, mixture=mixture)
    tokens = forward_tokens()
    expected = model(tokens, labels=tokens).loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, labels=tokens).loss
    loss.backward()

    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_the_folder_works_where_this_program_is_not_loaded(one: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(one)!r}, trust_remote_code=True)
print(model.generate(max_new_tokens=3, do_sample=False, bos_token_id=1, pad_token_id=0).tolist())
print([name for name in sys.modules if name.partition('.')[0] in {OUR_PACKAGES!r}])
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "code"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    finished = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    generated, loaded = map(json.loads, finished.stdout.splitlines())
    assert len(generated[0]) == 4
    assert loaded == []
