"""One process of the other side of `python -m tests.bench compare-reference`: transformers, published code.

It runs as a file in the environment of that code, where nothing of this program is installed, on Python 3.9
or later. It reads a task, JSON in the file that the first argument names, and prints what it measured as
JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Files of this folder are no modules for what is imported here.
    sys.path = [
        entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent
    ]

import torch

# A training step, which returns its loss.
Step = Callable[[], float]
# Does a task, and returns what it measured.
Action = Callable[[dict[str, Any]], dict[str, Any]]


def answer(actions: dict[str, Action]) -> None:
    """Do what the task in the first argument's file asks for, and print the result."""
    # Libraries may print; what the parent reads has a file descriptor of its own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(do(task, actions)), file=answers, flush=True)


def do(task: dict[str, Any], actions: dict[str, Action]) -> dict[str, Any]:
    """Return the result of a task, or of each of several tasks, with versions and the process's peak."""
    torch.set_num_threads(task["threads"])
    if task["action"] == "each":
        result: dict[str, Any] = {"results": [actions[one["action"]](one) for one in task["tasks"]]}
    else:
        result = actions[task["action"]](task)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**result, "peak_bytes": peak_bytes, "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of what was imported."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if "transformers" in sys.modules:
        found["transformers"] = str(sys.modules["transformers"].__version__)
    return found


def measure_steps(step: Step, num_steps: int) -> dict[str, Any]:
    """Run training steps; return the loss, the seconds and the CPU seconds of each."""
    figures: dict[str, list[float]] = {"losses": [], "seconds": [], "cpu_seconds": []}
    for _ in range(num_steps):
        started, used = time.perf_counter(), time.process_time()
        figures["losses"].append(step())
        figures["seconds"].append(time.perf_counter() - started)
        figures["cpu_seconds"].append(time.process_time() - used)
    return figures


def measure_texts(decode: Callable[[], tuple[list[list[int]], list[float]]], repeats: int) -> dict[str, Any]:
    """Decode the same texts several times.

    Args:
        decode: returns the new tokens of each text, and the time at which each column of them was known.
        repeats: how often.
    Returns:
        The new tokens, and of each repetition the seconds until the first ones, the seconds of each further
        one, and the CPU seconds of all.
    """
    figures: dict[str, list[float]] = {"prompt_seconds": [], "token_seconds": [], "cpu_seconds": []}
    texts: list[list[int]] = []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        texts, times = decode()
        figures["prompt_seconds"].append(times[0] - started)
        figures["token_seconds"].append((times[-1] - times[0]) / max(len(times) - 1, 1))
        figures["cpu_seconds"].append(time.process_time() - used)
    return {"tokens": texts, **figures}


def build_network(task: dict[str, Any]) -> Any:
    """Build the model of a task with its weights, in its precision."""
    import transformers

    names = {
        "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"),
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
    }
    config_name, model_name = names[task["architecture"]]
    file = task["model_file"]
    source = transformers if file is None else load_module(file)
    network = getattr(source, model_name)(getattr(transformers, config_name)(**task["config"]))
    tensors = torch.load(task["weights"], weights_only=True)["weights"]
    # Newer versions of transformers call the head of GPT-NeoX so.
    if "embed_out.weight" in tensors and "lm_head.weight" in network.state_dict():
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    network.load_state_dict(tensors, strict=True)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[task["precision"]]
    for parameter in network.parameters():
        # Not the buffers: rotary frequencies stay in float32, as they do where transformers loads a model.
        parameter.data = parameter.data.to(dtype)
    return network


def load_module(file: str) -> Any:
    """Import one file of the published code, without the package around it."""
    spec = importlib.util.spec_from_file_location("published_" + Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train(task: dict[str, Any]) -> dict[str, Any]:
    """Train on one batch, with AdamW as transformers' Trainer has it and weight decay on matrices."""
    import transformers

    network = build_network(task).train()
    options = dict(task["optimizer"])
    clip_grad, decay = options.pop("clip_grad"), options.pop("weight_decay")
    parameters = list(network.parameters())
    groups = [
        {"params": [each for each in parameters if each.dim() > 1], "weight_decay": decay},
        {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
    ]
    is_fused = int(transformers.__version__.partition(".")[0]) >= 5
    optimizer = torch.optim.AdamW(groups, fused=is_fused, **options)
    tokens = torch.load(task["weights"], weights_only=True)["tokens"][:, : task["num_tokens"] + 1]

    def step() -> float:
        output = network(input_ids=tokens[:, :-1], use_cache=False)
        logits = output.logits.flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        value: float = loss.item()
        return value

    return measure_steps(step, task["num_steps"])


@torch.no_grad()
def decode(task: dict[str, Any]) -> dict[str, Any]:
    """Continue prompts greedily with a cache."""
    network = build_network(task).eval()
    prompts = torch.load(task["weights"], weights_only=True)["prompts"][: task["batch_size"]]
    num_tokens = task["new_tokens"] + 1

    def generate() -> tuple[list[list[int]], list[float]]:
        texts, times = generate_greedily(network, prompts, num_tokens)
        return texts[:, prompts.shape[1] :].tolist(), times

    return measure_texts(generate, task["num_steps"])


def generate_greedily(
    network: Any, prompts: torch.Tensor, num_tokens: int, wait: Callable[[], None] = lambda: None
) -> tuple[torch.Tensor, list[float]]:
    """Return prompts and new tokens, [B, P + T], and the time at which the logits of each were computed.

    Args:
        network: of transformers, in evaluation mode.
        prompts: [B, P].
        num_tokens: T.
        wait: synchronizes with the device before the clock is read.
    """
    from transformers import LogitsProcessorList

    times: list[float] = []

    def note(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        wait()
        times.append(time.perf_counter())
        return logits

    texts = network.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([note]),
    )
    return texts, times


ACTIONS: dict[str, Action] = {"train": train, "decode": decode}

if __name__ == "__main__":
    answer(ACTIONS)
