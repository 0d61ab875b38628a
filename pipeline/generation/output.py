"""Generated texts as JSON lines."""

import json
from typing import Any

from pipeline.generation.texts import GeneratedText


def json_line(text: GeneratedText) -> str:
    """Bring a text into one line of JSON, without the line's end."""
    added = [token for token in text.tokens if not token.is_prompt]
    content: dict[str, Any] = {
        "number": text.number,
        "prompt": text.prompt,
        "continuation": text.continuation,
        "ending": text.ending,
        "num_prompt_tokens": len(text.tokens) - len(added),
        "num_tokens": len(added),
        "mean_steps": text.mean_steps,
        "pieces": [token.piece for token in text.tokens],
        "steps": [token.steps for token in text.tokens],
        "nll": [token.nll for token in text.tokens],
    }
    return json.dumps(content, ensure_ascii=False)
