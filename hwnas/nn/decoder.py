"""AG-Net's graph decoder in dense batched form.

Lukasik, Jung, Keuper, "Learning Where To Look - Generative NAS is Surprisingly Efficient", ECCV 2022
(arXiv 2203.08734); structure and sizes follow github.com/jovitalukasik/AG-Net. Nodes are appended one by one:
messages along edges and reversed edges, a gated sum as graph vector, logits of the next node's type, its state,
and logits of its incoming edges.

Differences in form, not in function: adjacency products are batched matrix products; both directions are one
product; linear maps that follow each other without a non-linearity are multiplied once per call, not once per
node and step. Every graph sees only its own graph vector, latent and edges.

Two ways to use the same weights:

- `GraphDecoder.forward(z)`: the paper's. Logits are a deterministic function of z; the raw type logits and the
  edges whose logit exceeds 0.5 go into the next step; nodes and edges are sampled afterwards, independently.
- `GraphDecoder.log_likelihood(z, graphs)` and `.sample(z)`: the drawn (or given) types and edges go into the next
  step, so that the parts of a graph depend on each other and every graph has a likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwnas.nn.graphs import INPUT, OUTPUT, GraphBatch, adjacency_from_bits, edge_bits, edge_pairs

HARD_EDGE_LOGIT = 0.5  # the paper's code thresholds the logit, not the probability


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder.

    Attributes:
        nodes: N, nodes of the largest graph.
        types: K, node types; type 0 is "output", type 1 "input".
        layers: Message passing layers per step.
        width: Width of node states and of the graph vector; even.
        latent: Width of z.
        constant_edges: Logits of the first edges in `edge_pairs` order that `forward` does not learn.
        silent_nodes: Number of leading steps of `forward` without message passing.
    """

    nodes: int
    types: int
    layers: int = 2
    width: int = 32
    latent: int = 32
    constant_edges: tuple[float, ...] = (20.0,)
    silent_nodes: int = 1

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.types < 2 or self.layers < 1 or self.width < 2 or self.width % 2 or self.latent < 1:
            raise ValueError(f"a decoder wants >= 2 nodes and types, >= 1 layer, an even width; got {self}")
        if self.silent_nodes not in (1, 2) or len(self.constant_edges) != (1, 3)[self.silent_nodes - 1]:
            raise ValueError(f"1 silent node goes with 1 constant edge, 2 with 3; got {self}")

    @property
    def edges(self) -> int:
        """Number of possible edges, N(N-1)/2."""
        return self.nodes * (self.nodes - 1) // 2


PAPER = {
    "nb101": DecoderConfig(nodes=7, types=5),
    "nb201": DecoderConfig(nodes=8, types=7),
    "nb301": DecoderConfig(nodes=11, types=11, layers=4, constant_edges=(-1.0, 1.0, -1.0), silent_nodes=2),
    "nlp": DecoderConfig(nodes=26, types=9),
}
"""The paper's four search spaces: 42,344, 42,474, 56,558 and 42,604 parameters."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a graph may be: validity by construction.

    Attributes:
        types: `N x K` booleans, admitted types per position.
        edges: `N(N-1)/2` int8 in `edge_pairs` order: 1 always there, 0 never there, -1 free. Edges into the
            padding behind a graph's output do not exist whatever is said here.
    """

    types: Tensor
    edges: Tensor

    def __post_init__(self) -> None:
        nodes = self.types.shape[0]
        if self.edges.shape != (nodes * (nodes - 1) // 2,):
            raise ValueError(f"rules for {nodes} nodes want {nodes * (nodes - 1) // 2} edges; got {self.edges.shape}")
        if not self.types.any(dim=1).all():
            empty = int((~self.types.any(dim=1)).nonzero()[0])
            raise ValueError(f"rules admit at least one type at every position; position {empty} has none")

    @classmethod
    def free(cls, config: DecoderConfig) -> Rules:
        """Only what every graph needs: the first node is the input, the last position an output."""
        types = torch.ones((config.nodes, config.types), dtype=torch.bool)
        types[0], types[-1] = False, False
        types[0, INPUT] = types[-1, OUTPUT] = True
        return cls(types, torch.full((config.edges,), -1, dtype=torch.int8))

    @classmethod
    def fixed(cls, adjacency: Tensor, types: Tensor) -> Rules:
        """Every edge known (`N x N` booleans), as in NAS-Bench-201; types `N x K` as above."""
        return cls(types.bool(), edge_bits(adjacency.bool()).to(torch.int8))

    @property
    def all_edges_known(self) -> bool:
        return bool((self.edges >= 0).all())


class _Folded(NamedTuple):
    """Weights of one call, multiplied together where no non-linearity stands between (w width, d = w/2)."""

    gates: tuple[Tensor, ...]  # each layer 2 x (3d + 1) x 4d, see _GatedLayer
    gates_bias: tuple[Tensor, ...]  # each layer 2 x 1 x 4d
    graph: Tensor  # (2w + 2) x 5w: gated sums to the node (w), edge (2w) and initialisation (2w) networks
    z_part: Tensor  # B x 5w: what z and the biases add there
    type_in: Tensor  # w x 2w: hidden layer of the type embedding to initialisation
    edge_view: Tensor  # w x 2w: present node to edge network
    edge_new: Tensor  # w x 2w: new node to edge network
    first: Tensor  # B x w: state of node 0


class _Context(NamedTuple):
    """What the graph vector, z and the biases give to the three networks."""

    node: Tensor  # B x w
    edge: Tensor  # B x 2w
    init: Tensor  # B x 2w


class _GatedLayer(torch.autograd.Function):
    """One message passing layer in both directions: summed linear messages, then a GRU cell.

    Written as one function because a training step on 16 small graphs is bound by the number of operations.

    Shapes: h `2 x B x n x d`, adjacency `2B x n x n`, degree `2 x B x n x 1`, weight `2 x (3d+1) x 4d`,
    bias `2 x 1 x 4d`; result as h. Columns of the weight: reset, update, candidate from the messages, candidate
    from the state; rows: sum of neighbours, degree times own state, own state, degree.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, adjacency: Tensor, degree: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        _, b, n, d = h.shape
        near = torch.bmm(adjacency, h.reshape(2 * b, n, d)).view(2, b, n, d)
        seen = torch.cat((near, degree * h, h, degree), dim=3).view(2, b * n, 3 * d + 1)
        raw = torch.baddbmm(bias, seen, weight).view(2, b, n, 4 * d)
        gate = raw[..., : 2 * d].sigmoid()
        reset, update = gate[..., :d], gate[..., d:]
        from_state = raw[..., 3 * d :]
        # tanh(x) = 2 sigmoid(2x) - 1: torch's sigmoid is vectorised and four times as fast on CPUs
        candidate = torch.addcmul(raw[..., 2 * d : 3 * d], reset, from_state).mul_(2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(h, adjacency, degree, weight, seen, gate, from_state, candidate)
        return torch.lerp(candidate, h, update)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, adjacency, degree, weight, seen, gate, from_state, candidate = ctx.saved_tensors
        (grad,) = grads
        _, b, n, d = h.shape
        reset, update = gate[..., :d], gate[..., d:]
        kept = grad * update
        d_raw = torch.empty((2, b, n, 4 * d), dtype=h.dtype)
        d_inner = d_raw[..., 2 * d : 3 * d]
        torch.mul(grad - kept, 1 - candidate * candidate, out=d_inner)
        torch.mul(d_inner, reset, out=d_raw[..., 3 * d :])
        torch.mul(d_inner, from_state, out=d_raw[..., :d])
        torch.mul(grad, h - candidate, out=d_raw[..., d : 2 * d])
        d_raw[..., : 2 * d].mul_(gate - gate * gate)
        flat = d_raw.view(2, b * n, 4 * d)
        d_weight = torch.bmm(seen.transpose(1, 2), flat)
        d_seen = torch.bmm(flat, weight.transpose(1, 2)).view(2, b, n, 3 * d + 1)
        d_near = d_seen[..., :d].reshape(2 * b, n, d)
        kept += torch.bmm(adjacency.transpose(1, 2), d_near).view(2, b, n, d)
        kept.addcmul_(d_seen[..., d : 2 * d], degree).add_(d_seen[..., 2 * d : 3 * d])
        return kept, None, None, d_weight, flat.sum(1, keepdim=True)


class _Dense(nn.Module):
    """A linear map whose weight is stored `fan_in x fan_out`, with leading dimensions for stacked copies."""

    def __init__(self, *shape: int, fan_in: int | None = None, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(shape[-2] if fan_in is None else fan_in)
        bias_shape = shape[-1:] if len(shape) == 2 else (*shape[:-2], 1, shape[-1])
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(bias_shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight) + self.bias if x.dim() > 2 else torch.addmm(self.bias, x, self.weight)

    if TYPE_CHECKING:
        __call__ = forward


class GraphDecoder(nn.Module):
    """Latent vectors to graphs.

    Args:
        config: Sizes; `PAPER["nb201"]` and others are the paper's.
        generator: Draws the initial weights (uniform in +-1/sqrt(fan in), torch's default for these layers).
    """

    def __init__(self, config: DecoderConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        w, z, layers, d = config.width, config.latent, config.layers, config.width // 2
        g = generator
        self.type_1 = _Dense(config.types, w, generator=g)
        self.type_2 = _Dense(w, w, generator=g)
        self.start_1 = _Dense(w + z, 2 * w, generator=g)  # rows: type, z
        self.start_2 = _Dense(2 * w, w, generator=g)
        # directions (along edges, against them) are stacked behind layers; rows: neighbour's state, own state
        self.message = _Dense(layers, 2, w, w, generator=g)
        self.gru_in = _Dense(layers, 2, w, 3 * d, fan_in=d, generator=g)  # columns: reset, update, candidate
        self.gru_state = _Dense(layers, 2, d, 3 * d, generator=g)
        self.gate = _Dense(w, 2, generator=g)  # one for the graph vector, one for its copy for initialisation
        self.pool = _Dense(2, w, w, generator=g)
        self.node_1 = _Dense(w + z, w, generator=g)  # rows: graph vector, z
        self.node_2 = _Dense(w, config.types, generator=g)
        self.init_1 = _Dense(2 * w + z, 2 * w, generator=g)  # rows: type, graph vector, z
        self.init_2 = _Dense(2 * w, w, generator=g)
        self.edge_1 = _Dense(3 * w + z, 2 * w, generator=g)  # rows: present node, new node, graph vector, z
        self.edge_2 = _Dense(2 * w, 1, generator=g)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as in the paper: a deterministic function of z.

        Args:
            z: `B x latent`.

        Returns:
            Node type logits `B x N x K` (the first node's are 20 for "input", 0 else) and edge logits
            `B x N(N-1)/2` in `edge_pairs` order.
        """
        config, count = self.config, len(z)
        folded = self._fold(z)
        h = _halves(folded.first)
        start = z.new_zeros((count, config.types))
        start[:, INPUT] = 20.0
        constant = z.new_tensor(config.constant_edges).expand(count, -1)
        both = z.new_zeros((2, count, config.nodes, config.nodes))
        nodes, edges = [start], []
        for n in range(1, config.nodes):
            silent = n <= config.silent_nodes
            if not silent:
                h = _pass_messages(h, both, folded)
            context, view = self._read(h, folded, silent=silent, edges=not silent)
            logits = self.node_2(context.node.relu())
            new = self._new_state(context, torch.mm(self.type_1(logits).relu(), folded.type_in))
            row = constant[:, _into(n)] if view is None else self._edge_logits(view, context, new, folded)
            nodes.append(logits)
            edges.append(row)
            if n + 1 < config.nodes:
                _write(both, n, row > HARD_EDGE_LOGIT)
                h = torch.cat((h, _halves(new)), dim=2)
        return torch.stack(nodes, dim=1), torch.cat(edges, dim=1)

    def log_likelihood(self, z: Tensor, graphs: GraphBatch, rules: Rules | None = None) -> Tensor:
        """Log probability of each graph given its z when drawn parts are fed back (teacher forcing).

        Args:
            z: `B x latent`.
            graphs: `B` graphs, padded with "output" and without edges into the padding.
            rules: Admitted types and known edges (these have probability 1); default `Rules.free`.

        Returns:
            `B` natural logarithms; -inf for a graph that breaks the rules. Over all graphs that the rules admit,
            the probabilities sum to one. Padding behind a graph's first output counts nothing.
        """
        config = self.config
        rules = Rules.free(config) if rules is None else rules
        want_edges = not rules.all_edges_known
        folded = self._fold(z)
        h = _halves(folded.first)
        both = torch.stack((graphs.adjacency.mT, graphs.adjacency)).to(z.dtype)
        type_parts = self._type_table(folded)[graphs.types.T]  # N x B x 2w
        contexts, views, states = [], [], []
        for n in range(1, config.nodes):
            if n > 1:
                h = _pass_messages(h, both, folded)
            context, view = self._read(h, folded, silent=n == 1, edges=want_edges)
            contexts.append(context)
            if n + 1 < config.nodes or want_edges:
                states.append(self._new_state(context, type_parts[n]))
                views.append(view)
            if n + 1 < config.nodes:
                h = torch.cat((h, _halves(states[-1])), dim=2)
        # nothing of a step waits for its logits, so all steps' logits are one product
        alive = _alive(graphs.types)
        node_logits = self.node_2(torch.stack([c.node for c in contexts], dim=1).relu())
        node_logits = node_logits.masked_fill(~rules.types[1:], -math.inf)
        chosen = node_logits.log_softmax(dim=2).gather(2, graphs.types[:, 1:, None]).squeeze(2)
        total = torch.where(alive[:, 1:], chosen, 0.0).sum(dim=1)

        _, targets = edge_pairs(config.nodes)
        bits, counted = edge_bits(graphs.adjacency), alive[:, targets]
        wrong = torch.where(counted, (rules.edges >= 0) & (bits != (rules.edges == 1)), bits).any(dim=1)
        if want_edges:
            new_part = torch.matmul(torch.stack(states, dim=1), folded.edge_new)
            by_target = torch.stack([c.edge for c in contexts], dim=1) + new_part
            hidden = torch.cat([v for v in views if v is not None], dim=1) + by_target[:, targets - 1]
            logits = self.edge_2(hidden.relu()).squeeze(2)
            each = F.logsigmoid(torch.where(bits, logits, -logits))
            total = total + torch.where(counted & (rules.edges < 0), each, 0.0).sum(dim=1)
        return total.masked_fill(wrong, -math.inf)

    @torch.no_grad()
    def sample(self, z: Tensor, rules: Rules | None = None, *, generator: torch.Generator) -> GraphBatch:
        """One graph for each z, drawn part by part from the distribution of `log_likelihood`.

        Args:
            z: `B x latent`.
            rules: Admitted types and known edges; default `Rules.free`.
            generator: Draws types and edges.
        """
        config, count = self.config, len(z)
        rules = Rules.free(config) if rules is None else rules
        folded = self._fold(z)
        h = _halves(folded.first)
        table = self._type_table(folded)
        # all noise in two calls: Gumbel for types, logistic thresholds for edges
        noise = _gumbel((count, config.nodes, config.types), z.dtype, generator)
        noise.masked_fill_(~rules.types, -math.inf)
        threshold = _logistic((count, config.edges), z.dtype, generator)
        types = torch.full((count, config.nodes), OUTPUT, dtype=torch.int64)
        types[:, 0] = INPUT
        both = z.new_zeros((2, count, config.nodes, config.nodes))
        alive = torch.ones((count, 1), dtype=torch.bool)
        for n in range(1, config.nodes):
            known = rules.edges[_into(n)]
            if n > 1:
                h = _pass_messages(h, both, folded)
            context, view = self._read(h, folded, silent=n == 1, edges=bool((known < 0).any()))
            drawn = (self.node_2(context.node.relu()) + noise[:, n]).argmax(dim=1)
            types[:, n] = torch.where(alive[:, 0], drawn, OUTPUT)
            new = self._new_state(context, table[types[:, n]])
            row = (known == 1).expand(count, n)
            if view is not None:
                free = self._edge_logits(view, context, new, folded) > threshold[:, _into(n)]
                row = torch.where(known < 0, free, row)
            _write(both, n, row & alive)
            alive = alive & (types[:, n, None] != OUTPUT)
            h = torch.cat((h, _halves(new)), dim=2)
        return GraphBatch(types, both[1] > 0)

    def _fold(self, z: Tensor) -> _Folded:
        w, d, latent = self.config.width, self.config.width // 2, self.config.latent
        into = torch.matmul(torch.cat((self.message.weight, self.message.bias), dim=2), self.gru_in.weight)
        near, own, degree = torch.split(F.pad(into, [0, d]), [d, d, 1], dim=2)
        state = _candidate_last(self.gru_state.weight, d)
        bias = F.pad(self.gru_in.bias, (0, d)) + _candidate_last(self.gru_state.bias, d)
        view, edge_new, edge_graph, edge_z = torch.split(self.edge_1.weight, [w, w, w, latent])
        node_graph, node_z = torch.split(self.node_1.weight, [w, latent])
        init_type, init_graph, init_z = torch.split(self.init_1.weight, [w, w, latent])
        start_type, start_z = torch.split(self.start_1.weight, [w, latent])
        pool = torch.cat((self.pool.weight, self.pool.bias), dim=1)
        learned = torch.mm(pool[0], torch.cat((node_graph, edge_graph), dim=1))
        copied = torch.mm(pool[1], init_graph)
        init_bias = torch.addmv(self.init_1.bias, init_type.T, self.type_2.bias)
        z_bias = torch.cat((self.node_1.bias, self.edge_1.bias, init_bias))
        source = self.type_2((self.type_1.weight[INPUT] + self.type_1.bias).relu()[None])
        first = torch.addmm(torch.addmm(self.start_1.bias, source, start_type), z, start_z)
        return _Folded(
            torch.cat((near, own, state, degree), dim=2).unbind(0),
            bias.unbind(0),
            torch.cat((F.pad(learned, (0, 2 * w)), F.pad(copied, (3 * w, 0)))),
            torch.addmm(z_bias, z, torch.cat((node_z, edge_z, init_z), dim=1)),
            torch.mm(self.type_2.weight, init_type),
            view,
            edge_new,
            self.start_2(first.relu()),
        )

    def _read(self, h: Tensor, folded: _Folded, *, silent: bool, edges: bool) -> tuple[_Context, Tensor | None]:
        """Graph vector, as it enters the networks, and the edge network's view `B x n x 2w` of present nodes."""
        _, count, n, d = h.shape
        w = 2 * d
        flat = h.permute(1, 2, 0, 3).reshape(count, n, w)
        if silent:  # the paper leaves out the gate, and all but the newest node
            last = F.pad(flat[:, -1], (0, 1), value=1.0)
            sums = torch.cat((last, last), dim=1)
        else:
            gates = self.gate(flat).sigmoid()
            sums = torch.bmm(gates.mT, F.pad(flat, (0, 1), value=1.0)).view(count, 2 * w + 2)
        context = _Context(*torch.split(torch.addmm(folded.z_part, sums, folded.graph), [w, 2 * w, 2 * w], dim=1))
        return context, torch.matmul(flat, folded.edge_view) if edges else None

    def _new_state(self, context: _Context, type_part: Tensor) -> Tensor:
        return self.init_2((context.init + type_part).relu())

    def _edge_logits(self, view: Tensor, context: _Context, new: Tensor, folded: _Folded) -> Tensor:
        shared = torch.addmm(context.edge, new, folded.edge_new)
        return self.edge_2((view + shared[:, None, :]).relu()).squeeze(2)

    def _type_table(self, folded: _Folded) -> Tensor:
        """`K x 2w`: what each type adds to the initialisation network."""
        return torch.mm((self.type_1.weight + self.type_1.bias).relu(), folded.type_in)


def sample_logits(
    node_logits: Tensor, edge_logits: Tensor, rules: Rules | None = None, *, generator: torch.Generator
) -> GraphBatch:
    """Graphs from the logits of `GraphDecoder.forward`: every node and every edge drawn independently.

    The graph ends at its first output; edges into what lies behind are dropped, as in the paper.

    Args:
        node_logits: `B x N x K`.
        edge_logits: `B x N(N-1)/2`.
        rules: Admitted types and known edges. By default only what the paper does: the last node is an output.
        generator: Draws.
    """
    count, nodes, kinds = node_logits.shape
    rules = Rules.free(DecoderConfig(nodes, kinds)) if rules is None else rules
    noise = _gumbel((count, nodes, kinds), node_logits.dtype, generator).masked_fill_(~rules.types, -math.inf)
    types = (node_logits.detach() + noise).argmax(dim=2)
    bits = edge_logits.detach() > _logistic((count, edge_logits.shape[1]), edge_logits.dtype, generator)
    bits = torch.where(rules.edges < 0, bits, rules.edges == 1)
    alive = _alive(types)
    return GraphBatch(
        torch.where(alive, types, OUTPUT), adjacency_from_bits(bits & alive[:, edge_pairs(nodes)[1]], nodes)
    )


def reconstruction_loss(
    node_logits: Tensor, edge_logits: Tensor, graphs: GraphBatch, *, node_weight: float = 1.0, edge_weight: float = 1.0
) -> Tensor:
    """The paper's loss, one number for each graph; weigh and average it outside.

    node_weight * mean cross-entropy over all N nodes (padding included)
    + edge_weight * mean binary cross-entropy over all N(N-1)/2 edges.

    Args:
        node_logits: `B x N x K`.
        edge_logits: `B x N(N-1)/2`.
        graphs: `B` targets.
        node_weight: 1 in the paper, 2 on NAS-Bench-301.
        edge_weight: 1 in the paper, also on NAS-Bench-301 (2 * 0.5).

    Returns:
        `B` losses.
    """
    nodes = F.cross_entropy(node_logits.transpose(1, 2), graphs.types, reduction="none").mean(dim=1)
    bits = edge_bits(graphs.adjacency).to(edge_logits.dtype)
    edges = F.binary_cross_entropy_with_logits(edge_logits, bits, reduction="none").mean(dim=1)
    return node_weight * nodes + edge_weight * edges


def _candidate_last(columns: Tensor, d: int) -> Tensor:
    """Reset, update, candidate (`... x 3d`) to reset, update, 0, candidate: the state's candidate part stands alone."""
    gates, candidate = torch.split(columns, [2 * d, d], dim=-1)
    return torch.cat((gates, torch.zeros_like(candidate), candidate), dim=-1)


def _into(n: int) -> slice:
    """Where the edges into node n stand in `edge_pairs` order."""
    return slice(n * (n - 1) // 2, n * (n + 1) // 2)


def _halves(state: Tensor) -> Tensor:
    """`B x w` to `2 x B x 1 x w/2`: the halves that follow edges and reversed edges."""
    return state.view(len(state), 2, -1).transpose(0, 1).unsqueeze(2)


def _write(both: Tensor, n: int, row: Tensor) -> None:
    """Set the edges into node n (`B x n`) in the matrices of incoming (0) and outgoing (1) edges."""
    both[0, :, n, :n] = row
    both[1, :, :n, n] = row


def _pass_messages(h: Tensor, both: Tensor, folded: _Folded) -> Tensor:
    """All layers on the nodes that h (`2 x B x n x d`) already has."""
    _, count, n, _ = h.shape
    # a copy: later steps write into `both` while backward still needs this step's edges
    adjacency = both[:, :, :n, :n].clone(memory_format=torch.contiguous_format)
    degree = adjacency.sum(dim=3, keepdim=True)
    adjacency = adjacency.view(2 * count, n, n)
    for weight, bias in zip(folded.gates, folded.gates_bias, strict=True):
        h = _GatedLayer.apply(h, adjacency, degree, weight, bias)  # type: ignore[no-untyped-call]
    return h


def _alive(types: Tensor) -> Tensor:
    """`B x N`: true up to and including the first output of each graph."""
    is_output = (types == OUTPUT).int()
    return is_output.cumsum(dim=1) - is_output == 0


def _gumbel(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=dtype).exponential_(generator=generator).log_().neg_()


def _logistic(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=dtype, generator=generator).logit_(eps=1e-7)
