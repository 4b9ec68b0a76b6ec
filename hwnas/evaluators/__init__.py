"""Evaluators: where measurements come from (tables, surrogates, counting)."""
