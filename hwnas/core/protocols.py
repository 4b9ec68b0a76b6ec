"""The seams of hwnas, and why each method exists.

Protocols and not base classes: an implementation needs to import nothing from here, inherits no behaviour, and
a user's own space or generator is as good as ours once it passes the suite in `hwnas.testing`. Before a protocol
grows, ask whether the new method could be a function outside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement
from hwnas.core.state import SearchState
from hwnas.core.stopping import Outlook

if TYPE_CHECKING:
    import onnx
    from torch import nn

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A guess, never a fact.

    Attributes:
        mean: `n x m`, in the units of the losses the predictor was fitted to.
        std: `n x m` standard deviation of the same, or None where the predictor has no notion of it.
    """

    mean: Floats
    std: Floats | None = None


@runtime_checkable
class SearchSpace(Protocol):
    """Codes for evolution and tables, graphs for graph networks, modules for training, ONNX for devices."""

    name: str
    choices: tuple[int, ...]  # number of alternatives at each position of a code
    datasets: tuple[str, ...]  # data sets that its networks can be built for

    def validate(self, architecture: Architecture) -> None:
        """Raise InvalidArchitecture, naming position and reason, unless it belongs to this space."""

    def canonical(self, architecture: Architecture) -> Architecture:
        """One representative for each class of architectures that compute the same function."""

    def to_graph(self, architecture: Architecture) -> ArchGraph:
        """Operations on nodes; same number of nodes for the whole space or fewer."""

    def from_graph(self, graph: ArchGraph) -> Architecture:
        """Inverse of `to_graph`. Raises InvalidArchitecture for graphs outside the space."""

    def format(self, architecture: Architecture) -> str:
        """The space's own public notation (NB201: the official string): the identity in files."""

    def parse(self, text: str) -> Architecture:
        """Inverse of `format`; also accepts a key. Raises InvalidArchitecture."""

    def complexity(self, architecture: Architecture, dataset: str) -> Mapping[str, float]:
        """Numbers counted from the whole network, operations that reach no output included: "params_m", "macs_m"."""

    def input_shape(self, dataset: str) -> tuple[int, int, int]:
        """Channels, height, width."""

    def build(self, architecture: Architecture, dataset: str) -> nn.Module:
        """The torch network, freshly initialised (torch is imported here)."""

    def to_onnx(
        self,
        architecture: Architecture,
        dataset: str,
        *,
        seed: int = 0,
        batch: int = 1,
        verbatim: bool = False,
    ) -> onnx.ModelProto:
        """The network as an ONNX model without going through torch's exporters. `verbatim` keeps dead edges."""


@runtime_checkable
class Generator(Protocol):
    """Learns from everything measured and proposes what to measure next.

    It holds settings and weights; what the search knows is in the `SearchState`. A state may have several fronts
    (`goals`); its order, weights and front say what is good on any of them. Optional method:
    `pretrain(space, *, budget: float, rng) -> Ledger`, run once before the first step, on unlabelled architectures
    (labels it sees are entries of the ledger it returns). Optional attribute: `drawn: Ledger`, what the last `propose`
    generated and rejected.
    """

    name: str

    def batch_size(self, state: SearchState) -> int:
        """How many architectures it would like to have evaluated in the next step (>= 1)."""

    def propose(self, state: SearchState, n: int, *, rng: np.random.Generator) -> Sequence[Architecture]:
        """Up to `n` valid, distinct architectures that are not in `state.seen`, best first. Changes nothing that
        `update` would not bring back after `load_state_dict`. Works with an empty archive."""

    def update(self, state: SearchState, *, rng: np.random.Generator) -> None:
        """Learn from the archive; failures (nan) are part of it. Called once after every step."""

    def state_dict(self) -> dict[str, Any]:
        """Everything learned: nested dicts and lists of numbers, strings, None and numpy arrays; no pickles."""

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""


@runtime_checkable
class Foreseeing(Generator, Protocol):
    """A generator that can say what going on would bring: what a search needs that may stop before its queries are
    spent."""

    @property
    def foresees(self) -> bool:
        """Whether it can, with its settings."""

    def outlook(self, state: SearchState, *, rng: np.random.Generator) -> Outlook | None:
        """What it expects after a step and its `update`, with several fronts of each (`Outlook.of`); None where it
        cannot tell yet. Asking changes nothing that it will propose or learn."""


@runtime_checkable
class Predictor(Protocol):
    """Guesses losses of architectures that were not measured."""

    def fit(self, architectures: Sequence[Architecture], losses: Floats, *, rng: np.random.Generator) -> None:
        """Learn from `n` architectures and `n x m` losses; rows or entries with nan are ignored there."""

    def predict(self, architectures: Sequence[Architecture]) -> Prediction:
        """Mean and, where known, standard deviation."""


@runtime_checkable
class Evaluator(Protocol):
    """Answers some metrics: a table, a surrogate, a training run, a wrapped profiler.

    The loop asks `context` which evaluator answers a metric, then `evaluate`; both name metric and device the
    same way, so that an answer can be found in the store before it is paid again.

    Optional methods, for evaluators that time networks. `contexts(metric, device) -> Sequence[Context]`: all contexts
    that its answers may have, where some are measured and others predicted. `join(store)`: learn what the run already
    has, and from now on note in its store what a continued run has to know. `close()`: release the device.
    """

    name: str

    def context(self, metric: str, device: str | None) -> Context | None:
        """The context that its answers will have, or None if it does not answer this metric on this device."""

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterable[Measurement]:
        """One measurement for each architecture and wanted (metric, device); a failure is a row with a status.
        Rows may be yielded one by one, so that a slow measurement is stored before the next begins."""


class Store(Protocol):
    """Append-only memory of a run. What `append` returned from is never lost."""

    def append(self, rows: Sequence[Measurement]) -> None:
        """Add facts, durably."""

    def find(self, architecture: Architecture, metric: str, context: Context) -> Measurement | None:
        """An earlier fact with exactly this context, or None."""

    def rows(self) -> Sequence[Measurement]:
        """All facts in the order in which they came."""

    def commit_step(self, state: SearchState, generator: Mapping[str, Any], ledger: Ledger) -> None:
        """Mark a step as done: which architectures it told, what was expected then, the generator's state, the ledger;
        atomically."""

    def last_step(self) -> tuple[int, list[list[str]], Mapping[str, Any], Ledger] | None:
        """What `commit_step` stored last: step, architecture keys of each step in order, generator state, ledger."""

    def note(self, topic: str, entry: Mapping[str, Any]) -> None:
        """Add something beside the measurements that a continued run has to know, durably; plain JSON values."""

    def notes(self, topic: str) -> Sequence[Mapping[str, Any]]:
        """All notes of a topic in the order in which they came."""

    def outlooks(self) -> tuple[Outlook | None, ...]:
        """What was expected after each committed step."""

    def close(self) -> None:
        """Release the file."""
