"""Writes ONNX graphs node by node: milliseconds, where torch's exporters take seconds.

Every search space emits its networks through this one class, so opset, IR version, names and the static batch are
decided once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

OPSET = 18  # what runtimes of the last years read; newer defaults are refused by older ones
IR_VERSION = 10
INPUT = "input"
OUTPUT = "output"

Array = NDArray[np.float32]


class OnnxWriter:
    """A graph under construction. Methods add a node and return the name of its value.

    Args:
        share: Whether a node without weights that exists already, on the same input, is used again.
    """

    def __init__(self, *, share: bool = True) -> None:
        import onnx  # half a second that a table look-up must not pay

        self._onnx = onnx
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._share = share
        self._known: dict[tuple[object, ...], str] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """An initialiser; a name is written once."""
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Any operator with one output.

        Args:
            kind: As ONNX calls it, at opset 18.
            inputs: Values that it reads.
            name: Its name, given once; made up if not given.
            attributes: As ONNX calls them.
        """
        name = name or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def shared(self, kind: str, x: str, **attributes: Any) -> str:
        """An operator without weights, which is written once for each value if nodes are shared."""
        key = (kind, x, repr(attributes))
        if not self._share or key not in self._known:
            self._known[key] = self.node(kind, [x], **attributes)
        return self._known[key]

    def conv(
        self, x: str, name: str, weight: Array, bias: Array, *, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> str:
        """Convolution with `weight` (`out x in/groups x k x k`) and `bias` (`out`)."""
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        kernel = list(weight.shape[2:])
        return self.node(
            "Conv", inputs, name, kernel_shape=kernel, strides=[stride] * 2, pads=[padding] * 4, group=groups
        )

    def norm(self, x: str, name: str, scale: Array, shift: Array, mean: Array, variance: Array, eps: float) -> str:
        """Batch norm in evaluation mode, for where no convolution precedes that it could be folded into."""
        parts = {"scale": scale, "shift": shift, "mean": mean, "variance": variance}
        inputs = [x, *(self.constant(f"{name}.{part}", value) for part, value in parts.items())]
        return self.node("BatchNormalization", inputs, name, epsilon=eps)

    def relu(self, x: str) -> str:
        return self.shared("Relu", x)

    def average_pool(self, x: str, kernel: int, *, stride: int = 1, padding: int = 0) -> str:
        """Average over the pixels that exist: padding does not count."""
        return self.shared(
            "AveragePool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4, count_include_pad=0
        )

    def times(self, x: str, factor: float) -> str:
        """Elementwise product with a number."""
        number = self.constant(f"number_{factor:g}", np.array(factor, dtype=np.float32))
        return self.node("Mul", [x, number])

    def add(self, values: Sequence[str]) -> str:
        """The sum of one or more values, as a chain of two-argument additions."""
        total, *rest = values
        for value in rest:
            total = self.node("Add", [total, value])
        return total

    def global_average(self, x: str) -> str:
        """`b x c x h x w` to `b x c`."""
        return self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)

    def linear(self, x: str, name: str, weight: Array, bias: Array) -> str:
        """`b x in` to `b x out`, with `weight` of `out x in`."""
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node("Gemm", inputs, name, transB=1)

    def model(
        self,
        name: str,
        result: str,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        *,
        exporter: str = "direct",
    ) -> onnx.ModelProto:
        """The finished model: value `input` to value `output`, both float32 with static shapes.

        Nodes and constants that do not reach `result` are left out.

        Args:
            name: Of the graph.
            result: The value to give.
            input_shape, output_shape: With batch first.
            exporter: How the graph came to be, for the model's metadata (`hwnas.exporter`).
        """
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        nodes, used = self._live(result)
        nodes[-1].output[0] = OUTPUT
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(INPUT, kind, list(input_shape))],
            [helper.make_tensor_value_info(OUTPUT, kind, list(output_shape))],
            [constant for constant_name, constant in self._constants.items() if constant_name in used],
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="hwnas")
        model.metadata_props.add(key="hwnas.exporter", value=exporter)
        return model

    def _live(self, result: str) -> tuple[list[onnx.NodeProto], set[str]]:
        """Nodes that `result` needs, in order (the one that makes it last), and the values that they read."""
        needed, kept = {result}, []
        for node in reversed(self._nodes):  # in the order of writing, which is topological
            if node.output[0] in needed:
                needed.update(node.input)
                kept.append(node)
        if not kept or kept[0].output[0] != result:
            raise ValueError(f"no node makes the value {result!r}")
        return kept[::-1], needed
