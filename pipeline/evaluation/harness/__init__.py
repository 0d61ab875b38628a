"""lm-evaluation-harness on native checkpoints; the only part that imports `lm_eval` (the extra `eval`)."""
