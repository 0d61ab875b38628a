"""Raw text to token shards. Knows nothing of training."""
