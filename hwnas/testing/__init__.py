"""Conformance suites that every implementation of a seam passes, shipped for users' own implementations."""
