"""Stores: append-only memories of a run."""
