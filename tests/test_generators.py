"""Baseline generators: the shared suite, and what is particular to each."""

from __future__ import annotations

from hwnas.core.protocols import Generator, SearchSpace
from hwnas.generators.eda import MarginalEDA
from hwnas.generators.evolution import RegularizedEvolution
from hwnas.generators.random import RandomSearch
from hwnas.testing.generators import GeneratorSuite


class TestRandomSearch(GeneratorSuite):
    learns = False

    def make(self, space: SearchSpace) -> Generator:
        return RandomSearch(space)


class TestRegularizedEvolution(GeneratorSuite):
    def make(self, space: SearchSpace) -> Generator:
        return RegularizedEvolution(space, population=10, sample=4)


class TestMarginalEDA(GeneratorSuite):
    def make(self, space: SearchSpace) -> Generator:
        return MarginalEDA(space)
