"""From raw text to token shards; independent of training."""
