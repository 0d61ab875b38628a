"""The keys of a ``config.json``: each is asked for once, and what nobody asked for is unknown."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.errors import as_written

CLASSES = {"gpt_neox": "GPTNeoXForCausalLM", "llama": "LlamaForCausalLM"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Say nothing about what the weights compute: names, generation, the training that is over.
_BOOKKEEPING = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        # Of classifiers.
        "classifier_dropout",
        "id2label",
        "label2id",
        "problem_type",
        # In pieces or at once, an MLP computes the same.
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
        "use_cache",
    }
)


class ConfigKeys:
    """The keys of one config.json.

    Attributes:
        problems: what is wrong with those asked for so far.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = {key: value for key, value in values.items() if key not in _BOOKKEEPING}
        self.problems: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        """Return a value, whatever it is."""
        return self._left.pop(key, default)

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1; without a default it must be there."""
        return int(self._number(key, default, kinds=(int,), what="a whole number of at least 1"))

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a number above 0; without a default it must be there."""
        return float(self._number(key, default, kinds=(int, float), what="a number above 0"))

    def switch(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.problems.append(f"{key}: must be true or false, but is {as_written(value)}")
        return bool(value)

    def expect(self, key: str, expected: Any, *, why: str) -> None:
        """Note a problem unless a key has the one value that is supported, or is absent."""
        value = self.take(key, expected)
        if value != expected:
            self.problems.append(f"{key}: must be {as_written(expected)}, but is {as_written(value)}; {why}")

    def refuse_others(self) -> None:
        """Note every key that nobody asked for."""
        self.problems += [
            f"{key}: is unknown (value {as_written(value)}); if it means nothing for the weights, say "
            f"--ignore {key} (in a run, init_from.ignore)"
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
