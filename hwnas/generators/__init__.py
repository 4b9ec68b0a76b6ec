"""Generators: one file a method; they learn from a `SearchState` and propose what to measure next."""
