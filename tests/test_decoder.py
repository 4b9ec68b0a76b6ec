"""The graph decoder: sizes, equality with a plain per-graph transcription of the paper, likelihoods, sampling."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwnas.core.graph import ArchGraph
from hwnas.errors import InvalidArchitecture
from hwnas.nn.decoder import PAPER, DecoderConfig, GraphDecoder, Rules, reconstruction_loss, sample_logits
from hwnas.nn.graphs import (
    GraphBatch,
    adjacency_from_bits,
    edge_bits,
    edge_pairs,
    from_dense,
    from_ragged,
    to_dense,
    to_ragged,
)

TINY = DecoderConfig(nodes=4, types=4)
NB201_EDGES = ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 6), (3, 6), (4, 7), (5, 7), (6, 7))


def torch_rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoder(config: DecoderConfig, seed: int = 0, scale: float = 2.0) -> GraphDecoder:
    """Double precision and larger weights, so that differences between graphs are far above rounding."""
    made = GraphDecoder(config, generator=torch_rng(seed)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
    return made


def latents(count: int, seed: int = 1) -> Tensor:
    return torch.randn((count, 32), generator=torch_rng(seed), dtype=torch.float64)


def nb201_rules() -> Rules:
    adjacency = torch.zeros((8, 8), dtype=torch.bool)
    adjacency[tuple(torch.tensor(NB201_EDGES).T)] = True
    types = torch.zeros((8, 7), dtype=torch.bool)
    types[0, 1] = types[7, 0] = True
    types[1:7, 2:] = True
    return Rules.fixed(adjacency, types)


# -- the paper's decoder, one graph and one node at a time ---------------------------------------------------------


class Plain:
    """A transcription for one graph with python lists, from the equations alone; `feed` replaces logits by choices."""

    def __init__(self, model: GraphDecoder) -> None:
        self.model = model

    def dense(self, name: str, *inputs: Tensor) -> Tensor:
        layer = getattr(self.model, name)
        return torch.cat(inputs) @ layer.weight + layer.bias

    def embed(self, x: Tensor) -> Tensor:
        return self.dense("type_2", self.dense("type_1", x).relu())

    def messages(self, states: list[Tensor], edges: list[tuple[int, int]]) -> list[Tensor]:
        model, d = self.model, self.model.config.width // 2
        halves = [[h[:d] for h in states], [h[d:] for h in states]]
        for direction in (0, 1):
            cell = torch.nn.GRUCell(2 * d, d).double()
            for layer in range(model.config.layers):
                with torch.no_grad():
                    cell.weight_ih.copy_(model.gru_in.weight[layer, direction].T)
                    cell.bias_ih.copy_(model.gru_in.bias[layer, direction, 0])
                    cell.weight_hh.copy_(model.gru_state.weight[layer, direction].T)
                    cell.bias_hh.copy_(model.gru_state.bias[layer, direction, 0])
                old, new = halves[direction], []
                for i in range(len(states)):
                    total = torch.zeros(2 * d, dtype=torch.float64)
                    for source, target in edges:
                        near, far = (target, source) if direction == 0 else (source, target)
                        if near == i:
                            pair = torch.cat((old[far], old[i]))
                            total = total + pair @ model.message.weight[layer, direction]
                            total = total + model.message.bias[layer, direction, 0]
                    new.append(cell(total[None], old[i][None])[0])
                halves[direction] = new
        return [torch.cat(pair) for pair in zip(*halves, strict=True)]

    def graph_vector(self, states: list[Tensor], copy: int, gated: bool) -> Tensor:
        model = self.model
        total = torch.zeros(model.config.width, dtype=torch.float64)
        for h in states:
            gate = torch.sigmoid(h @ model.gate.weight[:, copy] + model.gate.bias[copy]) if gated else 1.0
            total = total + gate * (h @ model.pool.weight[copy] + model.pool.bias[copy, 0])
        return total

    def decode(self, z: Tensor, feed: tuple[list[int], set[tuple[int, int]]] | None = None) -> tuple[Tensor, Tensor]:
        config = self.model.config
        one_hot = torch.eye(config.types, dtype=torch.float64)
        silent = config.silent_nodes if feed is None else 1
        states = [self.dense("start_2", self.dense("start_1", self.embed(one_hot[1]), z).relu())]
        edges: list[tuple[int, int]] = []
        node_logits, edge_logits = [20 * one_hot[1]], []
        constant = list(config.constant_edges)
        for n in range(1, config.nodes):
            read = states[-1:]
            if n > silent:
                read = states = self.messages(states, edges)
            graph = [self.graph_vector(read, copy, gated=n > silent) for copy in (0, 1)]
            logits = self.dense("node_2", self.dense("node_1", graph[0], z).relu())
            node_logits.append(logits)
            type_in = self.embed(logits if feed is None else one_hot[feed[0][n]])
            new = self.dense("init_2", self.dense("init_1", type_in, graph[1], z).relu())
            for u in range(n):
                if feed is None and constant:
                    edge_logits.append(torch.tensor(constant.pop(0), dtype=torch.float64))
                else:
                    hidden = self.dense("edge_1", states[u], new, graph[0], z).relu()
                    edge_logits.append(self.dense("edge_2", hidden)[0])
                if (edge_logits[-1] > 0.5) if feed is None else (u, n) in feed[1]:
                    edges.append((u, n))
            states = [*states, new]
        return torch.stack(node_logits), torch.stack(edge_logits)


@pytest.mark.parametrize(("space", "count"), [("nb101", 42_344), ("nb201", 42_474), ("nb301", 56_558), ("nlp", 42_604)])
def test_as_many_parameters_as_in_the_paper(space: str, count: int) -> None:
    model = GraphDecoder(PAPER[space], generator=torch_rng())
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("space", ["nb101", "nb201", "nb301"])
@torch.no_grad()
def test_equals_the_transcription_of_the_paper(space: str) -> None:
    model, z = decoder(PAPER[space], seed=5), latents(6)
    nodes, edges = model(z)
    assert (edges[:, 3:] > 0.5).any()
    assert (edges[:, 3:] < 0.5).any()
    for i in range(len(z)):
        plain_nodes, plain_edges = Plain(model).decode(z[i])
        torch.testing.assert_close(nodes[i], plain_nodes)
        torch.testing.assert_close(edges[i], plain_edges)


@torch.no_grad()
def test_likelihood_equals_the_transcription() -> None:
    config = DecoderConfig(nodes=6, types=5)
    model, z = decoder(config), latents(12)
    graphs = model.sample(z, generator=torch_rng(3))
    assert len(set(graphs.sizes().tolist())) > 1
    likelihood = model.log_likelihood(z, graphs)
    for i, size in enumerate(graphs.sizes().tolist()):
        chosen = {(s, t) for s, t in graphs.adjacency[i].nonzero().tolist()}
        nodes, edges = Plain(model).decode(z[i], (graphs.types[i].tolist(), chosen))
        expected = sum(nodes[t].log_softmax(0)[graphs.types[i, t]] for t in range(1, min(size, config.nodes - 1)))
        for logit, s, t in zip(edges, *edge_pairs(config.nodes), strict=True):
            if t < size:
                probability = logit.sigmoid()
                expected += torch.log(probability if (int(s), int(t)) in chosen else 1 - probability)
        torch.testing.assert_close(likelihood[i], expected)


@pytest.mark.parametrize("space", list(PAPER))
@torch.no_grad()
def test_a_graph_does_not_depend_on_its_batch(space: str) -> None:
    # weights not enlarged: 26 steps of them amplify even the rounding of doubles
    model, z = decoder(PAPER[space], scale=1.0), latents(9)
    together = model(z)
    graphs = sample_logits(*together, generator=torch_rng(2))
    likelihood = model.log_likelihood(z, graphs)
    for i in (0, 4, 8):
        alone = model(z[i : i + 1])
        torch.testing.assert_close(alone[0][0], together[0][i])
        torch.testing.assert_close(alone[1][0], together[1][i])
        row = torch.tensor([i])
        torch.testing.assert_close(model.log_likelihood(z[row], graphs.select(row))[0], likelihood[i])


# -- likelihood and sampling ---------------------------------------------------------------------------------------


def all_graphs(config: DecoderConfig) -> GraphBatch:
    """Every graph that `Rules.free` admits, in padded form."""
    types, matrices = [], []
    for size in range(2, config.nodes + 1):
        for inner in itertools.product(range(1, config.types), repeat=size - 2):
            for bits in itertools.product((False, True), repeat=size * (size - 1) // 2):
                types.append([1, *inner] + [0] * (config.nodes - size + 1))
                matrices.append(bits + (False,) * (config.edges - len(bits)))
    return GraphBatch(torch.tensor(types), adjacency_from_bits(torch.tensor(matrices), config.nodes))


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_probabilities_of_all_graphs_sum_to_one(seed: int) -> None:
    model, graphs = decoder(TINY, seed), all_graphs(TINY)
    z = latents(1, seed).expand(len(graphs), -1)
    assert model.log_likelihood(z, graphs).exp().sum().item() == pytest.approx(1, abs=1e-9)


@torch.no_grad()
def test_sampling_follows_the_likelihood() -> None:
    model, graphs, draws = decoder(TINY), all_graphs(TINY), 40_000
    z = latents(1)
    probability = model.log_likelihood(z.expand(len(graphs), -1), graphs).exp()
    drawn = model.sample(z.expand(draws, -1), generator=torch_rng(5))
    index = {(tuple(t), tuple(b)): i for i, (t, b) in enumerate(_keys(graphs))}
    counts = torch.zeros(len(graphs), dtype=torch.float64)
    for types, bits in _keys(drawn):
        counts[index[tuple(types), tuple(bits)]] += 1  # a graph that cannot exist would fail here
    often = probability * draws > 20
    z_score = (counts - probability * draws)[often] / (probability * draws * (1 - probability))[often].sqrt()
    assert often.sum() > 30
    assert z_score.abs().max() < 5
    assert 0.7 < z_score.square().mean() < 1.4


def _keys(batch: GraphBatch) -> list[tuple[list[int], list[bool]]]:
    return list(zip(batch.types.tolist(), edge_bits(batch.adjacency).tolist(), strict=True))


def test_learns_what_independent_parts_cannot_express() -> None:
    """Two inner nodes of equal type, either type as often: independent nodes reach a likelihood of 1/4 at most."""
    model = GraphDecoder(TINY, generator=torch_rng())
    edges = ((0, 1), (0, 2), (1, 3), (2, 3))
    equal = [ArchGraph(("input", kind, kind, "output"), edges) for kind in "ab"] * 8
    graphs = to_dense(equal, VOCABULARY, 4)
    rules = Rules.fixed(graphs.adjacency[0], Rules.free(TINY).types)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    draws = torch_rng(1)
    for _ in range(80):
        z = torch.randn((16, 32), generator=draws)  # fresh z: the latent says nothing about the graph
        optimiser.zero_grad()
        loss = -model.log_likelihood(z, graphs, rules).mean()
        loss.backward()
        optimiser.step()
    assert 0.4 < (-loss).exp().item() < 0.55


@torch.no_grad()
def test_rules_hold_and_keep_a_distribution() -> None:
    model, rules = decoder(PAPER["nb201"]), nb201_rules()
    cells = torch.cartesian_prod(*[torch.arange(2, 7)] * 6)
    types = torch.cat((torch.ones(len(cells), 1).long(), cells, torch.zeros(len(cells), 1).long()), dim=1)
    matrix = adjacency_from_bits(rules.edges == 1, 8)
    graphs = GraphBatch(types, matrix.expand(len(cells), -1, -1))
    log_p = model.log_likelihood(latents(1).expand(len(cells), -1), graphs, rules)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)  # all 15,625 cells, nothing else
    drawn = model.sample(latents(2_000), rules, generator=torch_rng())
    assert (drawn.adjacency == matrix).all()
    assert (drawn.types[:, 0] == 1).all()
    assert (drawn.types[:, -1] == 0).all()
    assert drawn.types[:, 1:7].min() == 2
    logits = sample_logits(*model(latents(500)), rules, generator=torch_rng())
    assert (logits.adjacency == matrix).all()
    assert logits.types[:, 1:7].min() == 2


@torch.no_grad()
def test_partly_known_edges() -> None:
    model, graphs = decoder(TINY), all_graphs(TINY)
    rules = Rules.free(TINY)
    rules.edges[0], rules.edges[4] = 1, 0  # 0->1 always, 1->3 never
    z = latents(1).expand(len(graphs), -1)
    log_p = model.log_likelihood(z, graphs, rules)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    breaks = ~graphs.adjacency[:, 0, 1] | graphs.adjacency[:, 1, 3]
    assert (log_p[breaks] == -math.inf).all()
    assert log_p[~breaks].isfinite().all()
    drawn = model.sample(latents(500), rules, generator=torch_rng())
    assert drawn.adjacency[:, 0, 1].all()
    assert not drawn.adjacency[:, 1, 3].any()
    assert drawn.adjacency[:, 0, 2].any()


@torch.no_grad()
def test_what_the_rules_forbid_has_probability_zero() -> None:
    model, rules = decoder(PAPER["nb201"]), nb201_rules()
    good = model.sample(latents(3), rules, generator=torch_rng())
    types, adjacency = good.types.clone(), good.adjacency.clone()
    types[1, 3] = 1
    adjacency[2, 0, 3] = True
    log_p = model.log_likelihood(latents(3), GraphBatch(types, adjacency), rules)
    assert log_p.isfinite().tolist() == [True, False, False]


def test_rules_that_admit_nothing_are_refused() -> None:
    types = torch.ones((4, 4), dtype=torch.bool)
    types[2] = False
    with pytest.raises(ValueError, match="position 2"):
        Rules(types, torch.full((6,), -1, dtype=torch.int8))


def test_same_generator_same_graphs_and_global_state_is_left_alone() -> None:
    model = GraphDecoder(PAPER["nb101"], generator=torch_rng())
    z = torch.randn((50, 32), generator=torch_rng())
    before = torch.random.get_rng_state()
    a, b = (model.sample(z, generator=torch_rng(7)) for _ in range(2))
    c, d = (sample_logits(*model(z), generator=torch_rng(7)) for _ in range(2))
    assert (a.types == b.types).all()
    assert (a.adjacency == b.adjacency).all()
    assert (c.types == d.types).all()
    assert (c.adjacency == d.adjacency).all()
    assert (torch.random.get_rng_state() == before).all()


@torch.no_grad()
def test_independent_sampling_follows_the_logits() -> None:
    nodes, edges = decoder(TINY)(latents(1))
    drawn = sample_logits(nodes.expand(20_000, -1, -1), edges.expand(20_000, -1), generator=torch_rng())
    share = torch.bincount(drawn.types[:, 1], minlength=4) / 20_000
    torch.testing.assert_close(share.double(), nodes[0, 1].softmax(0), atol=0.015, rtol=0)
    long = drawn.sizes() == 4
    share = edge_bits(drawn.adjacency)[long].double().mean(0)
    torch.testing.assert_close(share, edges[0].sigmoid(), atol=0.03, rtol=0)
    assert not (drawn.adjacency.any(1) & (torch.arange(4) >= drawn.sizes()[:, None])).any()


# -- gradients and losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", [False, True])
def test_gradients_are_right(feedback: bool) -> None:
    """Against finite differences along random directions (the hard edges are locally constant)."""
    config = DecoderConfig(nodes=5, types=4)
    model, z = decoder(config), latents(4).requires_grad_()
    graphs = model.sample(z.detach(), generator=torch_rng(1))

    def value() -> Tensor:
        if feedback:
            return model.log_likelihood(z, graphs).sum()
        return reconstruction_loss(*model(z), graphs).sum()

    leaves = [z, *model.parameters()]
    gradients = torch.autograd.grad(value(), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        step = torch.randn(leaf.shape, generator=torch_rng(2), dtype=torch.float64)
        ends = []
        for size in (1e-6, -1e-6):
            with torch.no_grad():
                leaf.add_(size * step)
                ends.append(value().item())
                leaf.sub_(size * step)
        assert (gradient * step).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)
        assert gradient.abs().max() > 0


def test_known_edges_leave_the_edge_network_untrained() -> None:
    model, rules = decoder(PAPER["nb201"]), nb201_rules()
    graphs = model.sample(latents(5), rules, generator=torch_rng())
    model.log_likelihood(latents(5), graphs, rules).mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert "edge_2.weight" in without
    assert touched >= {"node_2.weight", "message.weight", "gru_in.weight", "type_1.weight", "init_1.weight"}


def test_training_on_one_graph_makes_it_likely() -> None:
    model = GraphDecoder(TINY, generator=torch_rng())
    graph = to_dense([ArchGraph(("input", "a", "b", "output"), ((0, 1), (0, 2), (1, 3), (2, 3)))] * 16, VOCABULARY, 4)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    z = torch.randn((16, 32), generator=torch_rng())
    for _ in range(60):
        optimiser.zero_grad()
        loss = -model.log_likelihood(z, graph).mean()
        loss.backward()
        optimiser.step()
    assert loss.exp().item() < 1.5


def test_loss_by_hand() -> None:
    """Two nodes, three types, one edge: cross-entropies of chosen probabilities."""
    nodes = torch.tensor([[[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]], [[0.1, 0.8, 0.1], [0.25, 0.5, 0.25]]]).log()
    edges = torch.tensor([[0.9], [0.4]]).logit()
    adjacency = torch.tensor([[[0, 1], [0, 0]], [[0, 0], [0, 0]]]).bool()
    graphs = GraphBatch(torch.tensor([[1, 0], [1, 0]]), adjacency)
    losses = reconstruction_loss(nodes, edges, graphs)
    first = -(math.log(0.7) + math.log(0.5)) / 2 - math.log(0.9)
    second = -(math.log(0.8) + math.log(0.25)) / 2 - math.log(0.6)
    assert losses.tolist() == pytest.approx([first, second])
    weights = torch.tensor([2.0, 0.5])
    assert (weights * losses).mean().item() == pytest.approx((2 * first + 0.5 * second) / 2)
    heavy = reconstruction_loss(nodes, edges, graphs, node_weight=2.0, edge_weight=0.0)
    assert heavy.tolist() == pytest.approx([-(math.log(0.7) + math.log(0.5)), -(math.log(0.8) + math.log(0.25))])


# -- conversions ---------------------------------------------------------------------------------------------------

VOCABULARY = ("output", "input", "a", "b")


@st.composite
def arch_graphs(draw: st.DrawFn) -> ArchGraph:
    n = draw(st.integers(2, 6))
    inner = draw(st.lists(st.sampled_from(("a", "b")), min_size=n - 2, max_size=n - 2))
    pairs = [(s, t) for t in range(n) for s in range(t)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True))
    return ArchGraph(("input", *inner, "output"), tuple(sorted(edges)))


@settings(max_examples=40, deadline=None)
@given(st.lists(arch_graphs(), max_size=4))
def test_conversions_are_inverse(graphs: list[ArchGraph]) -> None:
    batch = to_dense(graphs, VOCABULARY, 6)
    assert from_dense(batch, VOCABULARY) == graphs
    assert batch.sizes().tolist() == [graph.n for graph in graphs]
    bits = edge_bits(batch.adjacency)
    assert (adjacency_from_bits(bits, 6) == batch.adjacency).all()
    if graphs:
        back = from_ragged(*to_ragged(batch), nodes=6)
        assert (back.types == batch.types).all()
        assert (back.adjacency == batch.adjacency).all()


def test_ragged_form_is_torch_geometrics() -> None:
    from torch_geometric.data import Batch, Data

    graphs = [
        ArchGraph(("input", "output"), ((0, 1),)),
        ArchGraph(("input", "b", "a", "output"), ((0, 1), (0, 2), (1, 3), (2, 3))),
    ]
    number = {name: i for i, name in enumerate(VOCABULARY)}
    reference = Batch.from_data_list(
        [
            Data(x=torch.tensor([number[op] for op in g.ops]), edge_index=torch.from_numpy(g.edge_index()))
            for g in graphs
        ]
    )
    types, edge_index, batch = to_ragged(to_dense(graphs, VOCABULARY, 5))
    assert types.tolist() == reference.x.tolist()
    assert edge_index.tolist() == reference.edge_index.tolist()
    assert batch.tolist() == reference.batch.tolist()


def test_edge_order_is_by_target() -> None:
    sources, targets = edge_pairs(4)
    assert list(zip(sources.tolist(), targets.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 2),
        (0, 3),
        (1, 3),
        (2, 3),
    ]


def test_conversion_errors_name_the_graph() -> None:
    with pytest.raises(InvalidArchitecture, match="graph 1 has 3"):
        to_dense([ArchGraph(("input", "output"), ()), ArchGraph(("input", "a", "output"), ())], VOCABULARY, 2)
    with pytest.raises(InvalidArchitecture, match="'conv'"):
        to_dense([ArchGraph(("input", "conv", "output"), ())], VOCABULARY, 4)
