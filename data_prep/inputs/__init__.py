"""Where text comes from, and reading it."""
