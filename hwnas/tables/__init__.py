"""Benchmark tables: finding, checking, importing and downloading them."""
