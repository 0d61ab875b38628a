"""The keys of a ``config.json``, each read once; keys that nobody reads are reported as unknown."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.errors import as_written

CLASSES = {"gpt_neox": "GPTNeoXForCausalLM", "llama": "LlamaForCausalLM"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Without influence on what the weights compute: names, generation, past training.
_BOOKKEEPING = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        # Where transformers read a GGUF file.
        "_model_name_or_path",
        # Of classifiers.
        "classifier_dropout",
        "id2label",
        "label2id",
        "problem_type",
        # Chunking does not change what an MLP computes.
        "chunk_size_feed_forward",
        "dtype",
        "initializer_range",
        "is_decoder",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        # Which id stands for unknown text is a matter of the tokenizer.
        "unk_token_id",
        "use_cache",
    }
)


class ConfigKeys:
    """The keys of one config.json.

    Attributes:
        problems: what is wrong with the keys read so far.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = {key: value for key, value in values.items() if key not in _BOOKKEEPING}
        self.problems: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        """Return a value of any type."""
        return self._left.pop(key, default)

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1; the key is required if there is no default."""
        return int(self._number(key, default, kinds=(int,), what="a whole number of at least 1"))

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a number above 0; the key is required if there is no default."""
        return float(self._number(key, default, kinds=(int, float), what="a number above 0"))

    def switch(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.problems.append(f"{key}: must be true or false, but is {as_written(value)}")
        return bool(value)

    def expect(self, key: str, expected: Any, *, why: str) -> None:
        """Report a problem unless the key is absent or has the only supported value."""
        value = self.take(key, expected)
        if value != expected:
            self.problems.append(f"{key}: must be {as_written(expected)}, but is {as_written(value)}; {why}")

    def report_others(self) -> None:
        """Report every key that was not read."""
        self.problems += [
            f"{key}: is unknown (value {as_written(value)}); if it does not affect what the weights compute, "
            f"pass --ignore {key} (in a run, init_from.ignore)"
            for key, value in sorted(self._left.items())
        ]

    def _number(self, key: str, default: Any, *, kinds: tuple[type, ...], what: str) -> Any:
        value = self.take(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or type(value) not in kinds
            or value <= 0
        ):
            found = "is absent" if value is None else f"is {as_written(value)}"
            self.problems.append(f"{key}: must be {what}, but {found}")
            return 1
        return value
