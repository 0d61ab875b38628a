"""What Megatron-Core lacks: ponder blocks, attention with weighted keys, layers, optimizer, host support."""
