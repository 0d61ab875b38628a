"""``README.md`` of an exported pondering model: what it is, how to use it, its training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from megatron_ext.ponder.config import Method
from pipeline.checkpoint.state import TrainState
from pipeline.config.schema import RunConfig
from pipeline.conversion.hf_ponder_config import settings_of_method
from pipeline.conversion.run_settings import NO_DATA
from pipeline.evaluation.results import EVALUATION_FILE, EvaluationResult, load_evaluation
from pipeline.shared.errors import ConversionError

CARD_NAME = "README.md"
_TEMPLATE = "model_card.md.j2"
_BACKBONES = {"gpt_neox": "GPT-NeoX", "llama": "Llama"}
Row = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """The data of a model card.

    Attributes:
        config: the run, with the vocabulary.
        state: its progress.
        evaluation: of this checkpoint, or None.
        num_parameters: of the exported model.
        dtype: of its weights, as torch names it.
        tokenizer_file: name of the tokenizer's file in the folder, or None.
    """

    config: RunConfig
    state: TrainState
    evaluation: EvaluationResult | None
    num_parameters: int
    dtype: str
    tokenizer_file: str | None


def find_evaluation(
    checkpoint: Path, given: Path | None, iteration: int, *, results: Path | None = None
) -> EvaluationResult | None:
    """Return the evaluation of a checkpoint.

    Args:
        checkpoint: its ``iter_`` folder.
        given: a file named by the user; None looks for the one of the run, which is ignored if it belongs to
            another checkpoint.
        iteration: of the checkpoint.
        results: folder of the results about the checkpoint; None is that of a run.
    Raises:
        ConversionError: the given file belongs to another checkpoint.
    """
    file = given or (results or checkpoint.parent.parent) / EVALUATION_FILE
    if given is None and not file.is_file():
        return None
    evaluation = load_evaluation(file)
    if evaluation.iteration == iteration:
        return evaluation
    if given is None:
        return None
    raise ConversionError(
        f"{file} must be an evaluation of iteration {iteration}, but is one of {evaluation.iteration}; make "
        f"one with megaponder eval {checkpoint.parent} --iteration {iteration}"
    )


def render_model_card(facts: CardFacts) -> str:
    """Return the text of a card."""
    config, ponder = facts.config, facts.config.ponder
    steps = ponder.num_latent_thoughts
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(
        name=config.name,
        method=ponder.method.value,
        backbone=_BACKBONES[config.model.architecture],
        description=ponder.method.facts.description.format(steps=steps, more=steps + 1),
        dtype=facts.dtype,
        tokenizer_file=facts.tokenizer_file,
        sweeps=ponder.num_jacobi_iterations if ponder.method.has_sweeps else None,
        halts=ponder.method.halts,
        threshold=ponder.pruning_threshold,
        model_rows=_model_rows(facts),
        training_rows=_training_rows(config, facts.state),
        evaluation_rows=[] if facts.evaluation is None else _evaluation_rows(facts.evaluation),
        table=_table,
    )


def _table(rows: Sequence[Row]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _model_rows(facts: CardFacts) -> list[Row]:
    model, ponder = facts.config.model, facts.config.ponder
    return [
        ("method", _method(ponder.method)),
        *((f"`{name}`", f"{getattr(ponder, name)}") for name in settings_of_method(ponder.method)),
        ("parameters", f"{facts.num_parameters:,}"),
        ("layers", f"{model.num_layers}"),
        ("hidden size", f"{model.hidden_size}"),
        ("heads", f"{model.num_attention_heads}, with {model.num_query_groups} key/value heads"),
        ("vocabulary", f"{model.vocab_size:,}"),
        ("longest text", f"{model.max_position_embeddings:,} tokens"),
    ]


def _method(method: Method) -> str:
    facts = method.facts
    return f"`{method.value}`: {facts.title}" + (f" ({facts.source})" if facts.source else "")


def _training_rows(config: RunConfig, state: TrainState) -> list[Row]:
    if state.iteration == 0:
        return []
    training, optimizer = config.training, config.optimizer
    tokens = state.consumed_tokens or state.consumed_samples * training.seq_length
    rows = [
        ("data", _data(config)),
        ("tokens", f"{tokens:,}"),
        ("iterations", f"{state.iteration:,}, of {training.global_batch_size:,} sequences each"),
        ("sequence length", f"{training.seq_length:,}"),
        ("precision", training.precision),
        *([("optimizer", "Muon on the matrices of the layers, AdamW")] if optimizer.name == "muon" else []),
        ("learning rate", f"{optimizer.lr:g} to {optimizer.min_lr:g}, {optimizer.lr_decay_style}"),
        ("weight decay", f"{optimizer.weight_decay:g}"),
        ("seed", f"{config.seed}"),
    ]
    if config.ponder.method.halts:
        rows.append(("weight of the halting penalty", f"{config.ponder.penalty_weight:g}"))
    if state.averaged_iterations:
        rows.append(("weights", f"mean of the iterations {', '.join(map(str, state.averaged_iterations))}"))
    return rows


def _data(config: RunConfig) -> str:
    """Names of the sources, without their local paths."""
    if config.data.sources is not None:
        return ", ".join(f"{source.name} ({source.weight:g})" for source in config.data.sources)
    path = config.data.path
    return "not recorded" if path is None or str(path) == NO_DATA else path.name


def _evaluation_rows(evaluation: EvaluationResult) -> list[Row]:
    rows = [
        ("text", f"{evaluation.split}, {evaluation.num_tokens:,} tokens"),
        ("loss", f"{evaluation.loss:.4f} nats per token (perplexity {evaluation.perplexity:.2f})"),
    ]
    total = sum(evaluation.steps_count)
    if total:
        mean = sum(step * count for step, count in enumerate(evaluation.steps_count)) / total
        shares = ", ".join(
            f"{step}: {count / total:.1%}" for step, count in enumerate(evaluation.steps_count)
        )
        rows += [
            ("mean extra steps of a token", f"{mean:.2f} of {evaluation.num_latent_thoughts}"),
            ("tokens by their steps", shares),
        ]
    return rows
