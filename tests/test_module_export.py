"""Torch modules of users as ONNX files: which exporter, the same outputs, and clear failures."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Branches, FBNetLike, Loops, Pair, ResNetLike, Unknown, Various
from torch import nn
from torch.nn import functional as F

import hwnas
from hwnas.conversion import module as exporting
from hwnas.conversion.to_onnx import CannotLower, to_onnx
from hwnas.conversion.to_torch import to_torch
from hwnas.errors import ExportFailed, UnknownName
from hwnas.nn.calibrate import calibrate
from hwnas.seeding import torch_seeded
from hwnas.spaces import codes
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.spaces import difference, often, run_onnx, run_torch

SPACE = NasBench201()
BIG, SMALL = (1, 3, 64, 64), (1, 3, 16, 16)
WHOLE = [(FBNetLike, BIG), (ResNetLike, BIG), (Various, (2, 3, 16, 16))]


def make(network):
    with torch_seeded(np.random.default_rng(0)):
        return network()


def images(shape, seed=5):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def facts(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


class TestWholeNetworks:
    @pytest.mark.parametrize(("network", "shape"), WHOLE)
    def test_fx_equals_torch(self, network, shape, tmp_path):
        module = make(network)
        if shape is BIG:
            calibrate(module, shape[1:], rng=np.random.default_rng(0), batch=4)
        done = hwnas.export_module(module, torch.zeros(shape), tmp_path / "model.onnx")
        assert (done.exporter, dict(done.failed), done.checked_on) == ("fx", {}, "given")
        assert done.difference < 1e-4
        assert difference(run_onnx(onnx.load(done.path), images(shape)), run_torch(module, images(shape))) < 1e-4

    @pytest.mark.parametrize(("network", "shape"), WHOLE)
    def test_legacy_equals_torch_and_fx(self, network, shape, tmp_path):
        """Two exporters that share no code agree."""
        module = make(network)
        done = hwnas.export_module(module, torch.zeros(shape), tmp_path / "legacy.onnx", exporters=["legacy"])
        assert done.exporter == "legacy"
        fx = run_onnx(to_onnx(module, torch.zeros(shape)), images(shape))
        assert difference(run_onnx(onnx.load(done.path), images(shape)), fx) < 1e-4

    @pytest.mark.parametrize(("network", "shape"), WHOLE)
    def test_there_and_back(self, network, shape):
        module = make(network).eval()
        again = to_torch(to_onnx(module, torch.zeros(shape)))
        with torch.no_grad():
            (found,) = again(torch.from_numpy(images(shape)))
        assert difference(found.numpy(), run_torch(module, images(shape))) < 1e-4

    def test_norms_are_folded(self):
        model = to_onnx(make(FBNetLike), torch.zeros(BIG))
        kinds = {node.op_type for node in model.graph.node}
        assert "BatchNormalization" not in kinds
        assert {"Conv", "HardSwish", "HardSigmoid", "Clip", "GlobalAveragePool"} <= kinds

    def test_the_module_is_left_as_it_was(self, tmp_path):
        module = make(FBNetLike).train()
        module.head.eval()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        hwnas.export_module(module, torch.zeros(BIG), tmp_path / "model.onnx")
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert module.training
        assert not module.head.training

    @pytest.mark.slow
    def test_many_random_cells(self, tmp_path):
        for architecture in codes.sample(SPACE, 200, rng=np.random.default_rng(6)):
            with torch_seeded(np.random.default_rng(0)):
                module = SPACE.build(architecture, "ImageNet16-120")
            calibrate(module, (3, 16, 16), rng=np.random.default_rng(1), batch=8)
            done = hwnas.export_module(module, torch.zeros(1, 3, 16, 16), tmp_path / "cell.onnx", exporters=["fx"])
            assert done.difference < 1e-4, architecture
            assert done.checked_on == "given" or SPACE.pruned(architecture).code == (0,) * 6

    @pytest.mark.slow
    @pytest.mark.parametrize(("network", "shape"), [*WHOLE, (Loops, SMALL)])
    def test_dynamo_equals_torch(self, network, shape, tmp_path):
        pytest.importorskip("onnxscript")
        done = hwnas.export_module(make(network), torch.zeros(shape), tmp_path / "model.onnx", exporters=["dynamo"])
        assert done.exporter == "dynamo"


class Untrained(nn.Module):
    """Deep, with norms that were never trained: in evaluation mode nothing of the input arrives at its end."""

    def __init__(self):
        super().__init__()
        layers = [layer for _ in range(8) for layer in (nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))]
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 4)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=1e-2)

    def forward(self, x):
        return self.head(self.layers(x))


class TestChecking:
    def test_outputs_that_say_nothing_are_not_what_is_compared(self, tmp_path):
        module = make(Untrained).eval()
        first, second = run_torch(module, images(SMALL, 1)), run_torch(module, images(SMALL, 2))
        assert difference(first, second) < 1e-3
        done = hwnas.export_module(module, torch.zeros(SMALL), tmp_path / "model.onnx")
        assert done.checked_on == "calibrated"
        # the file has the module's own weights all the same
        assert difference(run_onnx(onnx.load(done.path), images(SMALL)), run_torch(module, images(SMALL))) < 1e-4

    def test_a_head_of_zeros_hides_nothing(self, tmp_path, monkeypatch):
        module = make(Loops)
        nn.init.zeros_(module.head.weight)
        nn.init.zeros_(module.head.bias)
        done = hwnas.export_module(module, torch.zeros(SMALL), tmp_path / "model.onnx")
        assert done.checked_on == "calibrated"
        assert not run_onnx(onnx.load(done.path), images(SMALL)).any()  # the file has the module's own weights

    def test_a_constant_is_called_one(self, tmp_path):
        done = hwnas.export_module(Function(lambda x: torch.zeros_like(x) * x), torch.ones(2, 3), tmp_path / "m.onnx")
        assert done.checked_on == "constant"

    def test_an_exporter_that_is_wrong_has_no_say(self, tmp_path, monkeypatch):
        honest = exporting._EXPORT["fx"]

        def wrong(module, given):
            model = honest(module, given)
            weight = model.graph.initializer[0]
            changed = onnx.numpy_helper.to_array(weight) * 1.01
            weight.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weight.name))
            return model

        monkeypatch.setattr(exporting, "_EXPORT", {**exporting._EXPORT, "fx": wrong})
        done = hwnas.export_module(make(ResNetLike), torch.zeros(BIG), tmp_path / "model.onnx")
        assert done.exporter == "legacy"
        assert "differ" in done.failed["fx"]

    def test_in_place_changes_that_are_read_later_are_noticed(self, tmp_path):
        class Later(nn.Module):
            def forward(self, x):
                y = x * 2
                y.relu_()
                return y + 1

        done = hwnas.export_module(Later(), torch.ones(2, 4), tmp_path / "model.onnx")
        assert done.exporter == "legacy"
        assert "differ" in done.failed["fx"]
        assert difference(run_onnx(onnx.load(done.path), images((2, 4))), run_torch(Later(), images((2, 4)))) < 1e-4

    def test_parts_that_insist_on_single_precision(self, tmp_path):
        class Single(nn.Module):
            def __init__(self):
                super().__init__()
                self.mix = nn.Linear(4, 4)

            def forward(self, x):
                return self.mix(x) + F.linear(x, torch.eye(4))

        done = hwnas.export_module(make(Single), torch.ones(2, 4), tmp_path / "model.onnx")
        assert (done.exporter, done.checked_on) == ("fx", "given")
        assert done.difference < 1e-5

    def test_control_flow_by_shape_falls_back(self, tmp_path):
        done = hwnas.export_module(make(Loops), torch.zeros(SMALL), tmp_path / "model.onnx")
        assert done.exporter == "legacy"
        assert "control flow" in done.failed["fx"]
        assert facts(done.path)["hwnas.exporter"] == "legacy"

    def test_control_flow_by_data_is_refused(self, tmp_path):
        path = tmp_path / "model.onnx"
        with pytest.raises(ExportFailed, match=r"Branches.*fx: .*control flow.*legacy: its outputs differ"):
            hwnas.export_module(Branches(), torch.ones(2, 3), path, exporters=["fx", "legacy"])
        assert not path.exists()

    def test_unknown_operator_is_named(self, tmp_path):
        with pytest.raises(ExportFailed, match=r"fx: special_bessel_j0.*not covered; legacy: .*bessel_j0"):
            hwnas.export_module(Unknown(), torch.ones(1, 4), tmp_path / "model.onnx", exporters=["fx", "legacy"])

    def test_failures_leave_an_earlier_file_alone(self, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(b"earlier")
        with pytest.raises(ExportFailed):
            hwnas.export_module(Unknown(), torch.ones(1, 4), path, exporters=["fx"])
        assert path.read_bytes() == b"earlier"

    def test_dynamo_without_its_package_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setattr(exporting, "version", lambda name: None)
        with pytest.raises(ExportFailed, match=r"pip install 'hwnas\[export\]'"):
            hwnas.export_module(Unknown(), torch.ones(1, 4), tmp_path / "model.onnx", exporters=["dynamo"])

    def test_an_example_that_does_not_fit(self, tmp_path):
        with pytest.raises(ExportFailed, match=r"ResNetLike does not run on .*\(1, 4, 8, 8\).*channels"):
            hwnas.export_module(make(ResNetLike), torch.zeros(1, 4, 8, 8), tmp_path / "model.onnx")

    def test_unknown_exporter(self, tmp_path):
        with pytest.raises(UnknownName, match="'fx'"):
            hwnas.export_module(Unknown(), torch.ones(1, 4), tmp_path / "model.onnx", exporters=["fz"])

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ExportFailed, match="cannot be written"):
            hwnas.export_module(nn.ReLU(), torch.ones(1, 4), tmp_path / "file" / "model.onnx")


class TestTheFile:
    def test_metadata_tell_how_it_was_made_and_checked(self, tmp_path):
        done = hwnas.export_module(make(ResNetLike), torch.zeros(BIG), tmp_path / "model.onnx")
        told = facts(done.path)
        assert told["hwnas.exporter"] == "fx"
        assert told["hwnas.exporter_version"] == hwnas.__version__
        assert json.loads(told["hwnas.verified"])["max_rel_diff"] == done.difference
        assert (done.opset, done.bytes) == (18, done.path.stat().st_size)
        assert (done.inputs, done.outputs) == ({"input": BIG}, {"output": (1, 10)})

    def test_several_inputs_and_outputs(self, tmp_path):
        done = hwnas.export_module(Pair(), (torch.ones(2, 3), torch.ones(2, 3)), tmp_path / "model.onnx")
        assert done.exporter == "legacy"
        assert list(done.inputs) == ["input0", "input1"]
        assert list(done.outputs) == ["output0", "output1"]

    def test_spaces_tell_that_they_wrote_it_themselves(self):
        model = SPACE.to_onnx(SPACE.from_index(0), "cifar10")
        assert {entry.key: entry.value for entry in model.metadata_props}["hwnas.exporter"] == "direct"


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


LAYERS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=(0, 1), dilation=(1, 2), groups=2),
    nn.Conv2d(4, 6, (1, 5), padding="same", bias=False),
    nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.BatchNorm2d(4, affine=False),
    nn.GroupNorm(2, 4, affine=False),
    nn.LayerNorm((6, 8)),
    nn.Linear(8, 3, bias=False),
    nn.PReLU(),
    nn.LeakyReLU(0.2),
    nn.ELU(0.7),
    nn.Hardtanh(-0.5, 0.5),
    nn.Softplus(),
    nn.Mish(),
    nn.Softmax(dim=1),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(2, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, 1),
    nn.AdaptiveAvgPool2d((3, 2)),
    nn.AdaptiveMaxPool2d(1),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.Upsample(size=(12, 24), mode="nearest"),
    nn.PixelShuffle(2),
    nn.ChannelShuffle(2),
    nn.ZeroPad2d((1, 2, 0, 1)),
    nn.ReflectionPad2d(1),
    nn.Unflatten(1, (2, 2)),
]
FUNCTIONS = {
    "scalars": lambda x: 1 - x / 2 + 3 * x,
    "alpha": lambda x: torch.add(x, x, alpha=0.5) - torch.sub(x, x, alpha=3),
    "mean of all": lambda x: x.mean(),
    "mean of some": lambda x: x.mean((1, -1), keepdim=True),
    "pixels": lambda x: x.mean([2, 3]),
    "amax": lambda x: x.amax(dim=-1),
    "pow": lambda x: (x**2 + x.abs()) ** 0.5,
    "clamp": lambda x: x.clamp(min=0.2) + x.clamp(max=0.1),
    "filled": lambda x: torch.zeros_like(x) + torch.ones_like(x) * x,
    "index": lambda x: x[:, 1],
    "last": lambda x: x[..., -1],
    "slices": lambda x: x[:, 1:3, ::2, -3:],
    "new axis": lambda x: x[:, None, 2],
    "split": lambda x: torch.cat(torch.split(x, [1, 3], dim=1)[::-1], dim=1),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) + x,
    "shape": lambda x: x.view(x.size(0), -1) * (x.shape[1] // 2),
    "swap": lambda x: x.permute([0, 3, 1, 2]).transpose(-1, 1),
    "linear": lambda x: F.linear(x, torch.ones(2, 8), torch.ones(2)),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "layer norm": lambda x: F.layer_norm(x, (8,), eps=1e-3),
    "silu": lambda x: F.silu(x) + F.hardswish(x) + F.relu6(x) + F.hardsigmoid(x),
    "interpolate": lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", align_corners=False),
    "pad": lambda x: F.pad(x, (1, 1, 2, 0), mode="replicate"),
}
SHAPE = (2, 4, 6, 8)


@st.composite
def a_layer(draw, shape):
    """A layer that takes images of `shape`, and the shape that it gives."""
    _, channels, h, w = shape
    sizes = st.tuples(st.integers(1, min(3, h)), st.integers(1, min(3, w)))
    steps, twice = st.tuples(st.integers(1, 2), st.integers(1, 2)), st.integers(1, 2)
    kernel, stride = draw(sizes), draw(steps)
    pads = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    ceil = draw(st.booleans())
    after = 4 * draw(twice)
    kinds = [
        lambda: nn.Conv2d(channels, after, kernel, stride, pads, groups=draw(st.sampled_from([1, 2, 4]))),
        lambda: nn.Conv2d(channels, after, kernel, 1, pads, bias=False),
        lambda: nn.ConvTranspose2d(channels, after, kernel, stride, 0),
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.MaxPool2d(kernel, stride, pads, ceil_mode=ceil),
        lambda: nn.AvgPool2d(kernel, stride, pads, count_include_pad=draw(st.booleans())),
        lambda: nn.AdaptiveAvgPool2d(1),
        lambda: draw(st.sampled_from([nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Hardsigmoid]))(),
        lambda: nn.PReLU(channels),
        lambda: nn.GroupNorm(2, channels),
        lambda: nn.ChannelShuffle(2),
        lambda: nn.Upsample(scale_factor=2, mode=draw(st.sampled_from(["nearest", "bilinear"]))),
    ]
    layer = draw(st.sampled_from(kinds))()
    with torch.no_grad():
        return layer, tuple(layer.eval()(torch.zeros(shape)).shape)


class TestLowering:
    @pytest.mark.parametrize("layer", LAYERS, ids=str)
    def test_layers(self, layer):
        self.check(layer)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_functions(self, name):
        self.check(Function(FUNCTIONS[name]))

    def check(self, module):
        model = to_onnx(module, torch.zeros(SHAPE))
        onnx.checker.check_model(model, full_check=True)
        for seed in range(2):
            wanted = run_torch(module, images(SHAPE, seed))
            found = run_onnx(model, images(SHAPE, seed))
            assert found.shape == wanted.shape
            assert difference(found, wanted) < 1e-5

    def test_layers_that_are_called_twice(self):
        class Shared(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(4, 4, 3, padding=1)
                self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

            def forward(self, x):
                once = self.norms[0](self.conv(x))
                return self.conv(self.conv(once)) + self.norms[1](self.conv(once))

        module = make(Shared)
        calibrate(module, SHAPE[1:], rng=np.random.default_rng(0), batch=4)
        model = to_onnx(module, torch.zeros(SHAPE))
        assert difference(run_onnx(model, images(SHAPE)), run_torch(module, images(SHAPE))) < 1e-5
        assert len(model.graph.initializer) == 2 * 3  # plain, and folded with each norm

    @often
    @given(st.data())
    def test_random_stacks(self, data):
        """Layers with settings of all kinds, one after the other, there and back."""
        layers, shape = [], (1, 4, 9, 12)
        for _ in range(data.draw(st.integers(1, 5))):
            layer, shape = data.draw(a_layer(shape))
            layers.append(layer)
        with torch_seeded(np.random.default_rng(0)):
            module = nn.Sequential(*layers).eval()
            for layer in module:
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.normal_(layer.weight, std=0.3)
        start = (1, 4, 9, 12)
        model = to_onnx(module, torch.zeros(start))
        wanted = run_torch(module, images(start))
        assert difference(run_onnx(model, images(start)), wanted) < 1e-4
        with torch.no_grad():
            assert difference(to_torch(model)(torch.from_numpy(images(start)))[0].numpy(), wanted) < 1e-4

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda x: x * x.sum().item(), "item.*may depend on the data"),
            (lambda x: x + torch.equal(x, x * 2), "equal.*may depend on the data"),
            (lambda x: (x > 0) * x, "bool"),
            (lambda x: x[torch.tensor([0, 1])], "tensor or list"),
            (lambda x: torch.fft.fft(x).real, "fft"),
            (lambda x: torch.ones(3), "does not depend"),
            (lambda x: (x, x), "one tensor"),
            (lambda x: F.interpolate(x, scale_factor=1.3), "fraction"),
            (lambda x: F.adaptive_avg_pool2d(x, 5), "uneven"),
        ],
    )
    def test_what_is_not_covered_is_said(self, function, message):
        with pytest.raises(CannotLower, match=message):
            to_onnx(Function(function), torch.zeros(SHAPE))

    def test_a_layer_that_gives_more_than_tensors(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.MultiheadAttention(8, 2)

            def forward(self, x):
                return x + self.layer(x, x, x, need_weights=False)[0]

        with pytest.raises(CannotLower, match=r"layer.*gives a tuple that may depend on the data$"):
            to_onnx(Attention(), torch.zeros(2, 4, 8))

    def test_a_layer_of_ones_own_that_looks_like_another(self):
        """A subclass may compute anything: its own forward counts, not its base's."""

        class Twice(nn.ReLU):
            def forward(self, x):
                return 2 * super().forward(x)

        module = nn.Sequential(nn.ReLU(), Twice())
        try:
            model = to_onnx(module, torch.zeros(SHAPE))
        except CannotLower:
            return
        assert difference(run_onnx(model, images(SHAPE)), run_torch(module, images(SHAPE))) < 1e-5
