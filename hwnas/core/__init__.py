"""Facts, state and arithmetic of a search: immutable values and pure functions; no torch, no files."""
