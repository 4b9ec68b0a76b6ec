"""A batch takes no more memory than there is: estimates, what is free, and batches that are bounded by it."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.comparison import time_models
from hwnas.core.device import Device
from hwnas.core.measurement import Status
from hwnas.onnx_facts import model_facts
from hwnas.profiling import host
from hwnas.profiling.bench import Bench, Candidate
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.references import write_references
from hwnas.profiling.room import MIB, Need, Room, footprint, least_need
from hwnas.profiling.worker.runtimes.registry import backend
from hwnas.report import timings
from hwnas.testing.profiling import DirectTransport, SessionConfig, write_relu

BRIEF = Protocol(rounds=4, most_rounds=4, resamples=50, within=0.9)
FEW = {"truth.*": 1.0, "seed": 1}


def candidates(folder: Path, count: int, *, weights_mib: float, activation_mib: float = 0.0) -> list[Candidate]:
    """Networks that claim so much memory; the simulated device needs none."""
    facts = {"weights_bytes": int(weights_mib * MIB), "activation_bytes": int(activation_mib * MIB)}
    return [Candidate(f"net-{i}", write_relu(folder / f"net-{i}.onnx"), facts=facts) for i in range(count)]


def write_attention(path: Path, *, heads: int, tokens: int) -> Path:
    """Scaled scores of queries and keys, their softmax, and what it makes of the values."""
    queries, keys, values, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, heads, *shape))
        for name, shape in {"q": (tokens, 64), "k": (64, tokens), "v": (tokens, 64), "y": (tokens, 64)}.items()
    )
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["y"]),
    ]
    scale = numpy_helper.from_array(np.array(0.125, dtype=np.float32), "scale")
    graph = helper.make_graph(nodes, "attention", [queries, keys, values], [result], [scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def bench(
    folder: Path,
    *,
    free_mib: float | None = None,
    total_mib: float | None = None,
    granted_mib: float | None = None,
    protocol: Protocol = BRIEF,
    options: dict[str, Any] = FEW,
    **settings: Any,
) -> Bench:
    told = {"free_mib": free_mib, "total_mib": total_mib}
    options = options | {name: value for name, value in told.items() if value is not None}
    transport = DirectTransport()
    references = {"reference": write_relu(folder / "reference.onnx")}
    config = SessionConfig("fake", options=options)
    return Bench(
        transport, config, protocol, references=references, granted_mib=granted_mib, clock=transport.clock, **settings
    )


def sizes(bench: Bench, asked: list[Candidate]) -> list[int]:
    """Candidates in the batch of each; every network has a figure."""
    with closing(bench):
        records = list(bench.measure(asked))
    assert [record.subject.id for record in records] == [candidate.id for candidate in asked]
    assert {record.status for record in records} == {Status.OK}
    orders = [record.sampling.order_hash for record in records if record.sampling is not None]
    return [orders.count(order) for order in dict.fromkeys(orders)]


class TestBatches:
    # of 100 MiB weights each, a network is said to take 220 MiB; the reference takes 20
    def test_a_quarter_of_free_memory_bounds_them(self, tmp_path: Path) -> None:
        made = bench(tmp_path, free_mib=4 * (20 + 3 * 220 + 1))
        assert sizes(made, candidates(tmp_path, 7, weights_mib=100)) == [3, 3, 1]
        assert "fewer than 32 networks" in made.squeezed
        assert "2,724 MiB" in made.squeezed

    def test_activations_count_as_weights_do(self, tmp_path: Path) -> None:
        made = bench(tmp_path, free_mib=4 * (20 + 2 * 220 + 1))
        assert sizes(made, candidates(tmp_path, 4, weights_mib=50, activation_mib=50)) == [2, 2]

    def test_what_a_device_file_grants_bounds_them_too(self, tmp_path: Path) -> None:
        made = bench(tmp_path, free_mib=1e6, granted_mib=500)
        assert sizes(made, candidates(tmp_path, 4, weights_mib=100)) == [2, 2]
        assert "500 MiB that the device file grants" in made.squeezed

    @pytest.mark.parametrize("free_mib", [None, 1e6])
    def test_enough_memory_bounds_nothing(self, tmp_path: Path, free_mib: float | None) -> None:
        made = bench(tmp_path, free_mib=free_mib)
        assert sizes(made, candidates(tmp_path, 7, weights_mib=100)) == [7]
        assert made.squeezed == ""

    def test_a_network_that_is_too_large_is_tried_alone(self, tmp_path: Path) -> None:
        made = bench(tmp_path, free_mib=100)
        assert sizes(made, candidates(tmp_path, 3, weights_mib=100)) == [1, 1, 1]
        assert made.retests is None  # an earlier network beside it would need room as well

    def test_earlier_networks_are_measured_again_where_there_is_room(self, tmp_path: Path) -> None:
        made = bench(tmp_path, free_mib=4 * (20 + 3 * 220 + 1))
        assert sizes(made, candidates(tmp_path, 4, weights_mib=100)) == [3, 1]
        assert made.retests is not None
        assert made.retests.pairs == 2

    def test_a_worker_that_knows_no_such_question_bounds_nothing(self, tmp_path: Path) -> None:
        made = bench(tmp_path, free_mib=None)
        made._config = SessionConfig("fake", options=FEW | {"free_mib": "much"})
        assert made._ask_room() == Room()
        made.close()


class TestWhatCannotFit:
    def needing(
        self, folder: Path, name: str, weights_mib: float, io_mib: float | None = 0.0, activation_mib: float = 0.0
    ) -> Candidate:
        facts: dict[str, Any] = {"weights_bytes": int(weights_mib * MIB)}
        facts["activation_bytes"] = int(activation_mib * MIB)
        facts["io_bytes"] = None if io_mib is None else int(io_mib * MIB)
        return Candidate(name, write_relu(folder / f"{name}.onnx"), facts=facts)

    @pytest.mark.parametrize(
        ("memory", "told"),
        [
            ({"granted_mib": 500}, "the device file grants 500 MiB; raise its memory_mib, or"),
            ({"total_mib": 500, "free_mib": 1e6}, "there are 500 MiB where it would run; choose a smaller"),
            # to raise what is granted would not help
            ({"granted_mib": 400, "total_mib": 500}, "there are 500 MiB where it would run; choose a smaller"),
            ({"granted_mib": 500, "total_mib": 1e6}, "the device file grants 500 MiB; raise its memory_mib, or"),
        ],
    )
    def test_it_is_out_of_memory_unloaded_and_the_others_are_measured(
        self, tmp_path: Path, memory: dict[str, float], told: str
    ) -> None:
        # loading any of those would be the end of the worker
        made = bench(tmp_path, options=FEW | {"fault.large*": "crash"}, **memory)
        asked = [
            self.needing(tmp_path, "large-1", 300, 250),
            self.needing(tmp_path, "small-1", 1),
            self.needing(tmp_path, "large-2", 501),
            self.needing(tmp_path, "small-2", 1),
            self.needing(tmp_path, "large-3", 0, 501),
        ]
        with closing(made):
            records = list(made.measure(asked))
        assert [r.subject.id for r in records] == [c.id for c in asked]
        for record in records:
            if record.subject.id.startswith("small"):
                assert record.status is Status.OK
                assert record.sampling is not None
                assert record.sampling.batch_size == 3  # the reference as well
            else:
                assert (record.status, record.sampling, record.retries) == (Status.OUT_OF_MEMORY, None, 0)
                assert told in record.message
        assert records[0].message.startswith(
            "it needs at least 550 MiB (weights 300 MiB, inputs and outputs 250 MiB), "
        )
        assert len({r.sampling.order_hash for r in records if r.sampling}) == 1

    def test_it_takes_no_place_in_a_batch(self, tmp_path: Path) -> None:
        """Nor does it end one, and progress counts it."""
        told: list[tuple[float, int]] = []
        protocol = replace(BRIEF, batch=2)
        made = bench(
            tmp_path, total_mib=500, protocol=protocol, on_progress=lambda done, total, text: told.append((done, total))
        )
        names = ["s1", "L1", "L2", "s2", "L3", "s3", "L4"]
        asked = [self.needing(tmp_path, name, 600 if name[0] == "L" else 1) for name in names]
        batches: list[list[str]] = []
        made._on_batch = lambda news: batches.append([record["subject"]["id"] for record in news["records"]])
        with closing(made):
            records = list(made.measure(asked))
        assert batches == [["s1", "L1", "L2", "s2", "L3"], ["s3", "L4"]]
        assert [record.status.has_value for record in records] == [name[0] == "s" for name in names]
        assert told[-1] == (7, 7)
        assert all(a <= b for (a, _), (b, _) in pairwise(told))

    def test_where_all_are_too_large_nothing_is_measured(self, tmp_path: Path) -> None:
        made = bench(tmp_path, total_mib=500)
        with closing(made):
            records = list(made.measure([self.needing(tmp_path, f"net-{i}", 600) for i in range(3)]))
        assert {record.status for record in records} == {Status.OUT_OF_MEMORY}
        assert made.levels == {}

    def test_what_may_fit_or_cannot_be_counted_is_tried(self, tmp_path: Path) -> None:
        """An estimate that is on the safe side refuses nothing."""
        made = bench(tmp_path, total_mib=500, granted_mib=500)
        asked = [
            self.needing(tmp_path, "just", 250, 250),
            self.needing(tmp_path, "unknown", 500, None),
            # runtimes fuse operators and work in place: how much of these is ever there is not known
            self.needing(tmp_path, "activations", 1, 1, activation_mib=1e6),
            Candidate("no-facts", write_relu(tmp_path / "no-facts.onnx")),
        ]
        assert sum(sizes(made, asked)) == 4

    def test_activations_that_runtimes_fuse_are_tried(self, tmp_path: Path) -> None:
        """Attention keeps no scores where it is fused: far less than half of what lives at once, by the file."""
        facts = model_facts(write_attention(tmp_path / "attention.onnx", heads=8, tokens=4096))
        assert facts.activation_bytes is not None
        assert facts.activation_bytes > 1000 * MIB
        made = bench(tmp_path, total_mib=300, granted_mib=300)
        asked = [Candidate("attention", write_relu(tmp_path / "relu.onnx"), facts=facts.to_json())]
        assert sizes(made, asked) == [1]

    @pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64",
        reason="OpenVINO fuses it for x86, and only Linux tells in KiB what a process has had at most",
    )
    def test_openvino_fuses_attention(self, tmp_path: Path) -> None:
        """Why activations refuse nothing: a real runtime runs it in less than half of their sum."""
        pytest.importorskip("openvino")
        path = write_attention(tmp_path / "attention.onnx", heads=8, tokens=2048)
        script = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from hwnas.profiling.backend import SessionConfig\n"
            "from hwnas.profiling.worker.runtimes.registry import backend\n"
            "small, large = (backend('openvino').load(Path(p), SessionConfig('openvino')) for p in sys.argv[1:])\n"
            "small.run()\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "large.run()\n"
            "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))\n"
        )
        small = write_attention(tmp_path / "small.onnx", heads=1, tokens=16)
        told = subprocess.run([sys.executable, "-c", script, small, path], check=True, capture_output=True, text=True)
        assert int(told.stdout) < (model_facts(path).activation_bytes or 0) / 4

    def test_fewer_bits_need_less(self) -> None:
        facts = {"weights_bytes": 400 * MIB, "io_bytes": 100 * MIB, "activation_bytes": 10**12}
        needs = [least_need(facts, precision) for precision in ("fp32", "fp16", "int8")]
        assert [need.bytes // MIB for need in needs if need] == [500, 250, 125]

    def test_facts_of_earlier_versions_tell_of_weights_alone(self) -> None:
        assert least_need({"weights_bytes": 4 * MIB, "activation_bytes": 1000 * MIB}, "fp32") == Need(4 * MIB, 0)

    def test_tiny_sizes_are_told_in_words(self) -> None:
        told = "600 MiB (weights below 0.1 MiB, inputs and outputs 600 MiB)"
        assert str(Need(4, 600 * MIB)) == told

    def test_a_worker_of_an_older_version_tells_no_total(self, tmp_path: Path) -> None:
        class Older(DirectTransport):
            def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
                reply = super().call(request, timeout=timeout)
                reply.pop("total_bytes", None)
                return reply

        options = FEW | {"free_mib": 1e6, "total_mib": 10}
        transport = Older()
        references = {"reference": write_relu(tmp_path / "reference.onnx")}
        made = Bench(
            transport, SessionConfig("fake", options=options), BRIEF, references=references, clock=transport.clock
        )
        assert made._ask_room() == Room(int(1e6 * MIB))
        assert sizes(made, [self.needing(tmp_path, "net", 600)]) == [1]

    @pytest.mark.parametrize("runtime", ["ort-cpu", "torch-cpu", "openvino"])
    def test_a_model_larger_than_the_machine_is_never_loaded(self, tmp_path: Path, runtime: str) -> None:
        """Any runtime, as `hwnas profile` runs it: a row with a status, and figures for the others."""
        big = 2 * (host.total_bytes() or 0) // 4 // 1024
        if not big or not backend(runtime).probe().available:
            pytest.skip("memory unknown, or no such runtime")
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("n", 1024)) for n in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, tmp_path / "large.onnx")
        write_relu(tmp_path / "small.onnx")
        device = Device("box", "a box", "cpu", (runtime,), ("fp32",), ("latency_ms",), "timed", host="local")
        found = time_models(
            [tmp_path / "large.onnx", tmp_path / "small.onnx"], [device], BRIEF, shapes={"x": (big, 1024)}, cached=False
        )
        large, small = found.timings
        assert large.record.status is Status.OUT_OF_MEMORY
        assert "it needs at least" in large.record.message
        assert small.record.status.has_value
        assert not found.complete
        assert not any("was run with" in line for line in timings.notes(found))
        assert any("where it would run" in line for line in timings.failures(found))


def test_models_of_two_batches_are_not_said_to_be_interleaved(tmp_path: Path) -> None:
    """`hwnas profile` with files that are too large for one batch."""
    paths = []
    for i in range(3):
        weights = numpy_helper.from_array(np.ones((256, 256), dtype=np.float32), "w")  # a quarter of a MiB
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 256)) for n in ("x", "y")]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        graph = helper.make_graph(nodes, f"g{i}", values[:1], values[1:], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, tmp_path / f"m{i}.onnx")
        paths.append(tmp_path / f"m{i}.onnx")
    references = write_references(tmp_path / "references").values()
    needed = sum(footprint(path, {}) for path in references)
    needed += sum(footprint(path, model_facts(path).to_json()) for path in paths[:2])
    options = FEW | {"free_mib": 4 * (needed / MIB + 1)}
    known = (("fake",), ("fp32",), ("latency_ms",))
    device = Device("dry", "a dry run", "cpu", *known, "simulated", host="local", options=options)
    found = time_models(paths, [device], BRIEF, cached=False, transport=DirectTransport)
    told = {(p.first.model, p.second.model): p.interleaved for p in found.pairs}
    assert told == {("m0.onnx", "m1.onnx"): True, ("m0.onnx", "m2.onnx"): False, ("m1.onnx", "m2.onnx"): False}
    assert "want of memory" in found.devices["dry"]["squeezed"]


class TestEstimates:
    def network(self, path: Path, batch: int | str = 2) -> Path:
        """Two convolutions of 4 channels on 8 x 8 images and their sum: three maps of 256 numbers alive at once."""
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, 4, 8, 8)) for name in ("x", "y")]
        weights = [numpy_helper.from_array(np.ones((4, 4, 1, 1), dtype=np.float32), name) for name in ("v", "w")]
        nodes = [
            helper.make_node("Conv", ["x", "v"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),  # a dies
            helper.make_node("Conv", ["x", "w"], ["c"]),  # x, b and c
            helper.make_node("Add", ["b", "c"], ["y"]),  # b, c and y
        ]
        graph = helper.make_graph(nodes, "test", values[:1], values[1:], weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        return path

    def test_live_activations_are_counted_from_the_file(self, tmp_path: Path) -> None:
        assert model_facts(self.network(tmp_path / "a.onnx")).activation_bytes == 3 * 2 * 4 * 64 * 4

    def test_inputs_and_outputs_are_counted_from_the_file(self, tmp_path: Path) -> None:
        path = self.network(tmp_path / "a.onnx")
        assert model_facts(path).io_bytes == 2 * 2 * 4 * 64 * 4
        model = onnx.load(path)
        # neither an input that is a weight nor a view of an input has a place of its own
        model.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, (4, 4, 1, 1)))
        model.graph.node.append(helper.make_node("Flatten", ["x"], ["flat"]))
        model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, (2, 256)))
        onnx.save(model, path)
        assert model_facts(path).io_bytes == 2 * 2 * 4 * 64 * 4

    def test_a_dynamic_shape_is_told_or_not_known(self, tmp_path: Path) -> None:
        path = self.network(tmp_path / "a.onnx", "n")
        assert model_facts(path).activation_bytes is None
        assert model_facts(path, {"x": (5, 4, 8, 8)}).activation_bytes == 3 * 5 * 4 * 64 * 4

    def test_what_is_not_known_is_taken_from_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.onnx"
        path.write_bytes(b"x" * 5 * MIB)
        assert footprint(path, {}) == (20 + 4 * 5) * MIB
        assert footprint(path, {"weights_bytes": 3 * MIB}) == (20 + 4 * 3) * MIB
        assert footprint(path, {"weights_bytes": 3 * MIB, "activation_bytes": MIB}) == (20 + 6 + 2) * MIB


class TestFreeMemory:
    @pytest.fixture
    def machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(host, "_PROC", tmp_path / "proc")
        monkeypatch.setattr(host, "_SYS", tmp_path / "sys")
        self.write(tmp_path / "proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable:    1000000 kB\n")
        return tmp_path

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def test_what_the_system_has_left(self, machine: Path) -> None:
        assert host.free_bytes() == 1_000_000 * 1024
        assert host.total_bytes() == 2_000_000 * 1024

    def test_nothing_is_told_where_nothing_is_known(self, machine: Path) -> None:
        (machine / "proc/meminfo").unlink()
        assert host.free_bytes() is None
        assert host.total_bytes() is None

    def test_the_limit_of_a_group_and_its_parents(self, machine: Path) -> None:
        self.write(machine / "proc/self/cgroup", "0::/box/inner\n")
        group = machine / "sys/fs/cgroup"
        for name, most, used in (("box", "500000000", "300000000"), ("box/inner", "max", "100000000")):
            self.write(group / name / "memory.max", most)
            self.write(group / name / "memory.current", used)
        self.write(group / "box/memory.stat", "anon 7\ninactive_file 50000000\nactive_file 9\n")
        assert host.free_bytes() == 250_000_000
        assert host.total_bytes() == 500_000_000

    def test_a_container_sees_its_own_group_as_the_root(self, machine: Path) -> None:
        self.write(machine / "proc/self/cgroup", "4:memory:/docker/1234\n3:cpu:/\n")
        group = machine / "sys/fs/cgroup/memory"
        self.write(group / "memory.limit_in_bytes", "400000000")
        self.write(group / "memory.usage_in_bytes", "500000000")
        assert host.free_bytes() == 0
        assert host.total_bytes() == 400_000_000

    def test_a_gpu_tells_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "_run", lambda command: "1234 MiB, 8192 MiB\n")
        assert host.free_gpu_bytes() == 1234 * MIB
        assert host.total_gpu_bytes() == 8192 * MIB
        monkeypatch.setattr(host, "_run", lambda command: None)
        assert host.free_gpu_bytes() is None
        assert host.total_gpu_bytes() is None
