"""From token shards to batches: a pure function of seed and consumed samples."""
