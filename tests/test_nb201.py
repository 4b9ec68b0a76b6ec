"""NAS-Bench-201: official strings, indices, classes and costs; torch and ONNX networks."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hwnas.core.architecture import Architecture
from hwnas.errors import InvalidArchitecture
from hwnas.nn.calibrate import calibrate
from hwnas.seeding import torch_seeded
from hwnas.spaces import codes, nb201_onnx
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.spaces import SpaceSuite, alike, difference, run_onnx, run_torch

SPACE = NasBench201()


def cell(*code: int) -> Architecture:
    return Architecture("nb201", code)


NOTHING = cell(0, 0, 0, 0, 0, 0)
# the benchmark's authors assert these in the program that numbered the cells
# (AutoDL-Projects, exps/NATS-Bench/tss-collect.py, traverse_net)
OFFICIAL = {
    0: "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
    9: "|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|",
    123: "|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|",
}


class TestNasBench201(SpaceSuite):
    samples = 5

    @pytest.fixture
    def space(self):
        return SPACE

    def onnx_of(self, space, module, dataset):
        return nb201_onnx.from_module(module, space.input_shape(dataset)[1])


@pytest.fixture(scope="module")
def official(tables_dir):
    """The official table, with one architecture per row."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tables_dir / "nb201_accuracy.parquet").to_pydict()
    return table, [SPACE.parse(text) for text in table["arch"]]


class TestNotation:
    @pytest.mark.parametrize(("index", "text"), OFFICIAL.items())
    def test_official_numbering(self, index, text):
        assert SPACE.format(SPACE.from_index(index)) == text
        assert SPACE.index_of(SPACE.parse(text)) == index

    def test_numbering_is_one_to_one(self):
        indices = {SPACE.index_of(architecture) for architecture in codes.every(SPACE)}
        assert indices == set(range(15_625))
        assert all(SPACE.index_of(SPACE.from_index(index)) == index for index in range(0, 15_625, 97))

    @pytest.mark.parametrize("index", [-1, 15_625])
    def test_an_index_outside_is_refused(self, index):
        with pytest.raises(InvalidArchitecture, match=rf"15624, got {index}"):
            SPACE.from_index(index)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (OFFICIAL[0].replace("nor_conv_1x1", "conv_5x5", 1), "edge 2<-0 must be one of .*'conv_5x5'"),
            (OFFICIAL[0].replace("~2", "~1"), "reads"),
            (OFFICIAL[0].replace("+", "|", 1), "reads"),
            (OFFICIAL[0][:-30], "reads"),
            (OFFICIAL[0] + "none~3|", "reads"),
            (OFFICIAL[0].replace("|+|", "|\n+|"), "reads"),
            ("nb201:0.1.2.3.4.5", r"position 5 \(edge 3<-2\).*0..4, got 5"),
            ("nb201:0.1.2", "6 positions.*has 3"),
            ("nb101:0.1.2.3.4.4", "nb101"),
            ("foo", r"'\|op~0\|.*\(the official string\) or 'nb201:.*' \(a key\); got 'foo'"),
            ("nb201:a.b", "key reads 'space:0.1.2', got 'nb201:a.b'"),
        ],
    )
    def test_a_damaged_string_is_refused(self, text, message):
        with pytest.raises(InvalidArchitecture, match=message):
            SPACE.parse(text)

    def test_graph_is_that_of_operations_on_nodes(self):
        graph = SPACE.to_graph(cell(3, 0, 1, 2, 4, 1))
        assert graph.ops == (
            "input",
            "nor_conv_3x3",
            "none",
            "skip_connect",
            "nor_conv_1x1",
            "avg_pool_3x3",
            "skip_connect",
            "output",
        )
        assert SPACE.from_graph(graph) == cell(3, 0, 1, 2, 4, 1)


class TestClasses:
    def test_there_are_6466(self):
        """The benchmark's README: 6,466 unique topologies when isomorphism, none and skip are considered."""
        assert len({SPACE.canonical(architecture) for architecture in codes.every(SPACE)}) == 6466

    def test_the_representative_has_the_fewest_parameters(self):
        # the convolution on 2<-1 follows a node that is zero
        assert SPACE.canonical(cell(0, 0, 3, 1, 0, 0)) == cell(0, 0, 0, 1, 0, 0)
        for architecture in codes.sample(SPACE, 300, rng=np.random.default_rng(0)):
            mine, best = (
                SPACE.complexity(a, "cifar10")["params_m"] for a in (architecture, SPACE.canonical(architecture))
            )
            assert best <= mine

    def test_they_are_the_official_ones(self, official):
        table, architectures = official
        first: dict[Architecture, int] = {}
        found = [first.setdefault(SPACE.canonical(a), index) for index, a in enumerate(architectures)]
        assert found == table["isomorph_index"]


class TestPruned:
    @pytest.mark.parametrize(
        ("code", "live"),
        [
            ((3, 3, 3, 3, 3, 3), (3, 3, 3, 3, 3, 3)),
            ((0, 0, 3, 0, 2, 0), (0, 0, 0, 0, 0, 0)),  # nothing leaves the input
            ((3, 3, 3, 0, 0, 0), (0, 0, 0, 0, 0, 0)),  # nothing enters the output
            ((3, 0, 3, 1, 0, 0), (0, 0, 0, 1, 0, 0)),  # a branch that ends in node 2
            ((0, 2, 3, 0, 3, 1), (0, 2, 0, 0, 0, 1)),  # node 1 is zero
            ((1, 0, 4, 0, 0, 2), (1, 0, 4, 0, 0, 2)),
        ],
    )
    def test_examples(self, code, live):
        assert SPACE.pruned(cell(*code)) == cell(*live)

    def test_agrees_with_the_graph_of_nodes(self):
        """Against a second definition: an operation is live if it lies on a path in the graph without `none`."""
        for architecture in codes.sample(SPACE, 400, rng=np.random.default_rng(0)):
            graph = SPACE.to_graph(architecture)
            edges = tuple((s, t) for s, t in graph.edges if graph.ops[s] != "none" and graph.ops[t] != "none")
            alive = type(graph)(graph.ops, edges).live()[1:-1]
            expected = tuple(op if keep else 0 for op, keep in zip(architecture.code, alive, strict=True))
            assert SPACE.pruned(architecture).code == expected


class TestComplexity:
    # Smallest and largest as EvoXBench (problem C10MOP5) and MO-HPOBench list them from the benchmark's API; the
    # first is what the API answers for index 0 (`get_cost_info`).
    @pytest.mark.parametrize(
        ("code", "dataset", "params", "macs"),
        [
            ((4, 2, 1, 2, 1, 1), "cifar10", 0.129306, 15.64737),
            ((0, 0, 0, 0, 0, 0), "cifar10", 0.073306, 7.78305),
            ((3, 3, 3, 3, 3, 3), "cifar10", 1.531546, 220.11969),
            ((0, 0, 0, 0, 0, 0), "cifar100", 0.079156, 7.7889),
            ((3, 3, 3, 3, 3, 3), "cifar100", 1.537396, 220.12554),
            ((0, 0, 0, 0, 0, 0), "ImageNet16-120", 0.080456, 1.9534),
            ((3, 3, 3, 3, 3, 3), "ImageNet16-120", 1.538696, 55.03756),
        ],
    )
    def test_published_figures(self, code, dataset, params, macs):
        numbers = SPACE.complexity(cell(*code), dataset)
        assert numbers["params_m"] == pytest.approx(params, abs=1e-9)
        assert numbers["macs_m"] == pytest.approx(macs, abs=1e-9)

    @pytest.mark.parametrize(
        ("dataset", "short"), [("cifar10", "c10"), ("cifar100", "c100"), ("ImageNet16-120", "in16")]
    )
    def test_all_cells_have_the_official_figures(self, official, dataset, short):
        table, architectures = official
        numbers = [SPACE.complexity(architecture, dataset) for architecture in architectures]
        assert np.allclose([n["params_m"] for n in numbers], table[f"params_{short}_M"], rtol=0, atol=1e-9)
        assert np.allclose([n["macs_m"] for n in numbers], table[f"flops_{short}_M"], rtol=0, atol=1e-9)

    @pytest.mark.parametrize("dataset", SPACE.datasets)
    def test_the_built_network_has_them_too(self, dataset):
        """Multiply-accumulates counted by hooks, independently of the formula; dead edges run as well."""
        for architecture in [NOTHING, cell(0, 2, 3, 0, 3, 1), *codes.sample(SPACE, 4, rng=np.random.default_rng(5))]:
            module = SPACE.build(architecture, dataset)
            counted = self.count_macs(module, SPACE.input_shape(dataset))
            numbers = SPACE.complexity(architecture, dataset)
            assert sum(p.numel() for p in module.parameters()) == round(numbers["params_m"] * 1e6)
            assert counted + module.head.bias.numel() == round(numbers["macs_m"] * 1e6)

    @staticmethod
    def count_macs(module, shape) -> int:
        total = 0

        def add(layer, inputs, output):
            nonlocal total
            pixels = output[0, 0].numel() if output.ndim == 4 else 1
            total += layer.weight.numel() * pixels

        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.register_forward_hook(add)
        run_torch(module, np.zeros((1, *shape), dtype=np.float32))
        return total


def calibrated(architecture: Architecture, dataset: str, seed: int = 0):
    rng = np.random.default_rng(seed)
    with torch_seeded(rng):
        module = SPACE.build(architecture, dataset)
    # eight images set the statistics of one channel from 512 pixels or more: enough, and quick
    return calibrate(module, SPACE.input_shape(dataset), rng=rng, batch=8)


def images(dataset: str, batch: int = 2):
    return np.random.default_rng(9).standard_normal((batch, *SPACE.input_shape(dataset)), dtype=np.float32)


EDGE_CASES = {
    "all none": NOTHING,
    "nothing reaches the output": cell(0, 0, 3, 0, 2, 0),
    "convolutions before a cut": cell(3, 3, 3, 0, 0, 0),
    "all skip": cell(1, 1, 1, 1, 1, 1),
    "only pools": cell(4, 4, 4, 4, 4, 4),
    "all 3x3": cell(3, 3, 3, 3, 3, 3),
    "a convolution behind a zero node": cell(0, 2, 3, 0, 3, 1),
    "one edge": cell(0, 0, 0, 3, 0, 0),
}


class TestOnnx:
    @pytest.mark.parametrize("name", EDGE_CASES)
    def test_edge_cases_equal_torch(self, name):
        self.check(EDGE_CASES[name], "cifar10")

    @pytest.mark.parametrize("dataset", SPACE.datasets)
    def test_random_cells_equal_torch(self, dataset):
        for architecture in codes.sample(SPACE, 8, rng=np.random.default_rng(len(dataset))):
            self.check(architecture, dataset)

    @pytest.mark.slow
    @pytest.mark.parametrize("dataset", SPACE.datasets)
    def test_many_random_cells_equal_torch(self, dataset):
        for architecture in codes.sample(SPACE, 70, rng=np.random.default_rng(77)):
            self.check(architecture, dataset)

    def check(self, architecture, dataset):
        import onnx

        module = calibrated(architecture, dataset)
        expected = run_torch(module, images(dataset))
        for verbatim in (False, True):
            model = nb201_onnx.from_module(module, SPACE.input_shape(dataset)[1], batch=2, verbatim=verbatim)
            onnx.checker.check_model(model, full_check=True)
            assert difference(run_onnx(model, images(dataset)), expected) < 1e-4, (architecture, verbatim)
        if SPACE.pruned(architecture) != NOTHING:  # otherwise the comparison proves nothing
            assert difference(expected[:1], expected[1:]) > 1e-2, architecture

    @pytest.mark.parametrize("name", ["a convolution behind a zero node", "nothing reaches the output", "all skip"])
    def test_trained_shifts_behind_dead_edges_are_kept(self, name):
        """Training may give the norm behind a zero node any shift; its constant then reaches the output."""
        module = calibrated(EDGE_CASES[name], "ImageNet16-120")
        with torch.no_grad(), torch_seeded(np.random.default_rng(3)):
            for layer in module.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.bias.normal_()
                    layer.weight.uniform_(0.5, 1.5)
        pictures = images("ImageNet16-120")
        model = nb201_onnx.from_module(module, 16, batch=2)
        assert difference(run_onnx(model, pictures), run_torch(module, pictures)) < 1e-4

    def test_dead_edges_are_left_out_unless_verbatim(self):
        architecture = cell(3, 0, 3, 1, 0, 0)  # two convolutions that end in node 2
        short, long = (SPACE.to_onnx(architecture, "cifar10", verbatim=verbatim) for verbatim in (False, True))
        kinds = [[node.op_type for node in model.graph.node] for model in (short, long)]
        assert kinds[0].count("Conv") == 1 + 2 * 3
        assert kinds[1].count("Conv") == 1 + 2 * 3 + 15 * 2
        assert "Mul" not in kinds[0]
        assert kinds[1].count("Mul") == 15 * 3
        used = {name for node in short.graph.node for name in node.input}
        assert {constant.name for constant in short.graph.initializer} <= used

    def test_format_is_what_older_runtimes_read(self):
        model = SPACE.to_onnx(cell(3, 1, 2, 4, 0, 3), "cifar100", batch=4)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        assert model.ir_version == 10
        shapes = [
            [d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (model.graph.input[0], model.graph.output[0])
        ]
        assert shapes == [[4, 3, 32, 32], [4, 100]]

    @pytest.mark.parametrize("name", ["all skip", "only pools", "all 3x3", "one edge"])
    def test_random_weights_keep_activations_alive(self, name):
        """In half precision too: nothing near its largest number, and the logits depend on the image."""
        import onnx

        model = SPACE.to_onnx(EDGE_CASES[name], "cifar10", seed=1, batch=2)
        for node in list(model.graph.node):
            if node.op_type in ("Conv", "Add"):
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        logits, *inner = session.run(None, {"input": images("cifar10")})
        sizes = [float(np.sqrt((value**2).mean())) for value in inner]
        assert min(sizes) > 1e-2
        assert max(float(np.abs(value).max()) for value in inner) < 65_504 / 4
        assert 0.01 < np.abs(logits).max() < 100
        assert difference(logits[:1], logits[1:]) > 1e-2

    def test_building_loads_no_torch(self):
        """Processes that measure start in a fraction of a second."""
        program = (
            "import sys\n"
            "from hwnas.spaces.nb201 import NasBench201\n"
            "space = NasBench201()\n"
            "space.to_onnx(space.from_index(0), 'cifar10').SerializeToString()\n"
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

    def test_building_is_quick(self):
        SPACE.to_onnx(NOTHING, "cifar10")  # imports
        some = codes.sample(SPACE, 20, rng=np.random.default_rng(0))
        begin = time.process_time()
        for architecture in some:
            SPACE.to_onnx(architecture, "cifar10").SerializeToString()
        assert (time.process_time() - begin) / len(some) < 0.05


class TestCalibration:
    def test_it_revives_an_untrained_network_and_leaves_weights_alone(self):
        # a fresh network in evaluation mode: the logits are little more than the classifier's bias
        with torch_seeded(np.random.default_rng(0)):
            module = SPACE.build(cell(3, 0, 3, 0, 0, 3), "ImageNet16-120").eval()
        before = {name: value.clone() for name, value in module.named_parameters()}
        pictures = images("ImageNet16-120")
        faint = run_torch(module, pictures)
        calibrate(module, (3, 16, 16), rng=np.random.default_rng(0), batch=8)
        vivid = run_torch(module, pictures)
        assert np.abs(faint[0] - faint[1]).max() < 1e-3
        assert np.abs(vivid[0] - vivid[1]).max() > 1e-2
        assert not module.training
        assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
        assert all(n.momentum == 0.1 for n in module.modules() if isinstance(n, torch.nn.BatchNorm2d))


@pytest.mark.slow
def test_whole_classes_compute_one_function():
    rng = np.random.default_rng(4)
    moved = [a for a in codes.sample(SPACE, 400, rng=rng) if SPACE.canonical(a) != a][:60]
    for architecture in moved:
        own, other = (
            run_torch(alike(SPACE.build(a, "ImageNet16-120")), images("ImageNet16-120"))
            for a in (architecture, SPACE.canonical(architecture))
        )
        assert difference(own, other) < 1e-3, architecture
