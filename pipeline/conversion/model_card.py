"""``README.md`` of an exported model: what it is, how to use it, its training, evaluation and versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from megatron_ext.ponder.config import Method
from pipeline.checkpoint.state import TrainState
from pipeline.config.schema import RunConfig
from pipeline.conversion.hf_ponder_config import settings_of_method
from pipeline.conversion.run_settings import NO_DATA
from pipeline.evaluation.results import EVALUATION_FILE, EvaluationResult, load_evaluation
from pipeline.evaluation.tasks import TASKS_FILE, TaskReport, load_task_report
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
        tasks: scores of this checkpoint on public tasks, or None.
        license: identifier of the Hugging Face hub, or None.
        base_model: name on the hub of the model that the training started from, or None.
    """

    config: RunConfig
    state: TrainState
    evaluation: EvaluationResult | None
    num_parameters: int
    dtype: str
    tokenizer_file: str | None
    tasks: TaskReport | None = None
    license: str | None = None
    base_model: str | None = None


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


def find_tasks(results: Path, iteration: int) -> TaskReport | None:
    """Return the scores on tasks in a folder of results; None if there are none of this iteration."""
    file = results / TASKS_FILE
    report = load_task_report(file) if file.is_file() else None
    return report if report is not None and report.iteration == iteration else None


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
        front_matter=_front_matter(facts),
        name=config.name,
        ponders=ponder.method.facts.ponders,
        paper=_paper(ponder.method),
        version_rows=_version_rows(),
        backbone=_BACKBONES[config.model.architecture],
        description=ponder.method.facts.description.format(steps=steps, more=steps + 1),
        dtype=facts.dtype,
        tokenizer_file=facts.tokenizer_file,
        sweeps=ponder.num_jacobi_iterations if ponder.method.has_sweeps else None,
        halts=ponder.method.halts,
        threshold=ponder.pruning_threshold,
        model_rows=_model_rows(facts),
        training_rows=_training_rows(config, facts.state),
        evaluation_rows=[
            *([] if facts.evaluation is None else _evaluation_rows(facts.evaluation)),
            *([] if facts.tasks is None else _task_rows(facts.tasks)),
        ],
        table=_table,
    )


def _front_matter(facts: CardFacts) -> str:
    """Return what the hub reads: YAML between the two lines at the beginning of a card."""
    method = facts.config.ponder.method
    paper = _paper(method)
    tags = [] if paper is None else [paper[0].replace("arXiv ", "arxiv:")]
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": facts.license,
        "base_model": facts.base_model,
        "tags": ["megaponder", method.value, *tags],
        "model-index": _model_index(facts),
    }
    known = {name: value for name, value in values.items() if value is not None}
    text: str = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    return text.strip()


def _model_index(facts: CardFacts) -> list[dict[str, Any]] | None:
    results = [*_heldout_results(facts.evaluation), *_task_results(facts.tasks)]
    return [{"name": facts.config.name, "results": results}] if results else None


def _heldout_results(evaluation: EvaluationResult | None) -> list[dict[str, Any]]:
    if evaluation is None:
        return []
    metrics = [("perplexity", evaluation.perplexity), ("loss", evaluation.loss)]
    return [_result("held-out text", evaluation.split, metrics)]


def _task_results(tasks: TaskReport | None) -> list[dict[str, Any]]:
    return [
        _result(score.task, score.task, [(_plain(name), value) for name, value in score.metrics.items()])
        for score in (() if tasks is None else tasks.tasks)
    ]


def _result(name: str, kind: str, metrics: Sequence[tuple[str, float]]) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": name, "type": kind},
        "metrics": [{"type": metric, "value": round(value, 6)} for metric, value in metrics],
    }


def _version_rows() -> list[Row]:
    """Return the versions that exported the model; transformers may not be installed."""
    names = ["megaponder", "torch", *(["transformers"] if find_spec("transformers") else [])]
    return [(name, version(name)) for name in names]


def _paper(method: Method) -> tuple[str, str] | None:
    """Return the number and the address of the method's paper; None if it has none."""
    source = method.facts.source
    if source is None or not source.startswith("arXiv "):
        return None
    return source, f"https://arxiv.org/abs/{source.removeprefix('arXiv ')}"


def _plain(metric: str) -> str:
    """Return the name of a metric without the filter of the harness that does nothing."""
    return metric.removesuffix(",none")


def _task_rows(tasks: TaskReport) -> list[Row]:
    asked = "" if tasks.limit is None else f", at most {tasks.limit} questions"
    return [
        (
            f"{score.task}, {score.num_fewshot} shots{asked}",
            ", ".join(f"{_plain(name)} {value:.4f}" for name, value in score.metrics.items()),
        )
        for score in tasks.tasks
    ]


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
