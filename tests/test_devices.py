"""Device files: read strictly, those of hwnas and the user's; what is available without importing anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hwnas import devices, resources
from hwnas.core.metrics import METRICS
from hwnas.devices import availability, device_names, load_device, no_source, read_device
from hwnas.errors import InvalidSetting, TablesNotFound, UnknownName
from hwnas.tables.schema import DEVICES

GOOD = """
name = "mybox"
title = "My box"
kind = "cpu"
runtimes = ["ort-cpu"]
precisions = ["fp32"]
metrics = ["latency_ms"]
measured_how = "With a stopwatch."
host = "local"
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HWNAS_DEVICES", str(tmp_path))
    return tmp_path


def write(folder: Path, text: str, name: str = "mybox") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_ten_devices_come_with_hwnas(mine: Path) -> None:
    found = {device.name: device for device in map(load_device, device_names())}
    assert {name for name, device in found.items() if device.host == "table"} == set(DEVICES)
    assert {name for name, device in found.items() if device.host == "local"} == {"cpu", "gpu", "tensorrt", "openvino"}
    for device in found.values():
        assert device.title != device.name
        assert device.measured_how.endswith(".")
        assert device.batch == 1
        assert all(METRICS[metric].per_device for metric in device.metrics)


def test_device_files_promise_what_the_tables_hold() -> None:
    for name, metrics in DEVICES.items():
        assert load_device(name).metrics == metrics


def test_the_real_names_of_the_benchmark() -> None:
    # Li et al., ICLR 2021, and dev/proj_edgegpu/EdgeGPU_Benchmark.py in their repository
    edgegpu = load_device("edgegpu")
    assert edgegpu.title == "NVIDIA Jetson TX2"
    assert (edgegpu.runtimes, edgegpu.precisions) == (("tensorrt",), ("fp32",))
    assert load_device("edgetpu").precisions == ("int8",)
    assert "Not measured" in load_device("eyeriss").measured_how


def test_unknown_device_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no device 'edgpu'.*Did you mean.*'edgegpu'"):
        load_device("edgpu")


def test_a_users_device_from_the_folder_and_by_path(mine: Path, tmp_path: Path) -> None:
    path = write(mine, GOOD)
    assert "mybox" in device_names()
    device = load_device("mybox")
    assert (device.title, device.runtimes, device.memory_mib) == ("My box", ("ort-cpu",), None)
    assert device.origin == str(path)
    assert load_device(path) == load_device(str(path)) == device


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(UnknownName, match=r"no device file 'nowhere/box.toml'"):
        load_device("nowhere/box.toml")


def test_names_of_published_devices_are_reserved(mine: Path) -> None:
    path = write(mine, GOOD.replace("mybox", "edgegpu"), "edgegpu")
    with pytest.raises(InvalidSetting, match="comes with hwnas"):
        read_device(path)
    assert load_device("edgegpu").title == "NVIDIA Jetson TX2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + 'runtime = "ort-cpu"\n', "no key 'runtime'.*Known: name, .*Did you mean 'runtimes'"),
        (GOOD.replace('title = "My box"', ""), "the key 'title' .* is missing"),
        (GOOD.replace('["ort-cpu"]', '"ort-cpu"'), "'runtimes' wants a list of texts, got 'ort-cpu'"),
        (GOOD.replace('["ort-cpu"]', "[]"), "'runtimes' wants at least one"),
        (
            GOOD.replace("ort-cpu", "ort-cqu"),
            "'runtimes' holds 'ort-cqu'; known: .*ort:PROVIDER.*Did you mean 'ort-cpu'",
        ),
        (GOOD.replace('"fp32"', '"fp31"'), "'precisions' holds 'fp31'; known: fp32"),
        (GOOD.replace('"latency_ms"', '"latency"'), "'metrics' holds 'latency'; known: .*latency_ms"),
        (GOOD.replace('"cpu"', '"toaster"'), "no kind 'toaster'. Known: asic"),
        (GOOD + "batch = 0\n", "'batch' wants a whole number above 0, got 0"),
        (GOOD + "batch = true\n", "'batch' wants a whole number above 0, got True"),
        (GOOD + "memory_mib = nan\n", "'memory_mib' wants a number above 0"),
        (GOOD.replace('"mybox"', '"other"'), "'name' is 'other'; it must equal the file's name 'mybox'"),
        (GOOD.replace('"local"', '"board.lan"'), "'host' wants .*ssh:ADDRESS.*got 'board.lan'"),
        (GOOD + "options = 3\n", "'options' wants a table"),
        (GOOD + "threads = 0\n", "'threads' wants a whole number above 0"),
        ("name = ", "not a TOML file"),
        ("[name]\n", "the key 'title'"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_key(mine: Path, text: str, message: str) -> None:
    write(mine, text)
    with pytest.raises(InvalidSetting, match=f"(?s)mybox.toml.*{message}"):
        load_device("mybox")
    assert load_device("fpga").kind == "fpga"  # a bad file of the user's stands in nobody else's way


def test_a_simulated_device_stands_alone(mine: Path) -> None:
    device = read_device(write(mine, GOOD.replace('"ort-cpu"', '"fake"')))
    assert availability(device) == (True, "measured here with fake")
    with pytest.raises(InvalidSetting, match="simulates a device, so it stands alone"):
        read_device(write(mine, GOOD.replace('"ort-cpu"', '"tensorrt", "fake"')))


def test_every_shipped_file_is_found_by_its_name() -> None:
    assert {path.stem for path in resources.folder("devices").glob("*.toml")} <= set(device_names())


def test_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    edgegpu, cpu, openvino = load_device("edgegpu"), load_device("cpu"), load_device("openvino")
    assert availability(edgegpu)[0]
    assert availability(edgegpu, {"edgegpu"}) == (True, "answered by a table or surrogate")
    assert availability(edgegpu, set()) == (False, "no table or surrogate for device edgegpu")
    monkeypatch.setattr(devices, "_installed", lambda module: False)
    assert availability(openvino) == (
        False,
        "openvino: package 'openvino' is not installed: pip install 'hwnas[openvino]'",
    )
    monkeypatch.setattr(devices, "_installed", lambda module: True)
    assert availability(cpu) == (True, "measured here with ort-cpu")


def test_a_gpu_needs_a_driver_and_the_right_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_installed", lambda module: True)
    monkeypatch.setattr(devices.optional, "version", lambda name: {"torch": "2.9.0+cpu"}.get(name))
    monkeypatch.setattr(devices, "_nvidia_driver", lambda: False)
    available, reason = availability(load_device("gpu"))
    assert not available
    assert "onnxruntime-gpu" in reason
    assert "for CPUs only" in reason
    monkeypatch.setattr(devices.optional, "version", lambda name: "2.9.0")
    assert devices.lacks("torch-cuda") == "no NVIDIA driver found"
    monkeypatch.setattr(devices, "_nvidia_driver", lambda: True)
    assert devices.lacks("torch-cuda") == ""
    assert "no runtime of this version" in devices.lacks("abacus")


def test_looking_for_drivers_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "exists", refuse)
    assert devices._nvidia_driver() is False


def test_a_device_elsewhere_is_said_to_be_elsewhere(mine: Path) -> None:
    write(mine, GOOD.replace('"local"', '"ssh:pi@board.lan"'))
    device = load_device("mybox")
    available, reason = availability(device)
    assert (available, device.measurable) == (True, True)
    assert "ssh:pi@board.lan" in reason
    assert "hwnas doctor --device mybox" in reason


def test_how_a_device_is_run_can_be_set(mine: Path) -> None:
    write(mine, GOOD + 'threads = 4\noptions = { "session.x" = "1", n = 2, on = true }\n')
    device = load_device("mybox")
    assert (device.threads, dict(device.options)) == (4, {"session.x": "1", "n": 2, "on": True})


def test_saved_measurements_are_a_device(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_PROFILES", str(tmp_path / "saved"))
    (tmp_path / "saved" / "mybox").mkdir(parents=True)
    write(tmp_path / "saved" / "mybox", GOOD.replace('"local"', '"profile"'))
    assert "mybox" in device_names()
    device = load_device("mybox")
    assert not device.measurable
    assert availability(device)[0]


def test_searching_where_nothing_answers_says_what_to_do() -> None:
    error = no_source(load_device("raspi4"), "latency_ms")
    assert isinstance(error, TablesNotFound)
    assert "no table or surrogate for latency on device raspi4" in str(error)
    assert "hwnas tables fetch hw-nas-bench" in str(error)


def test_what_was_never_published_is_not_advised_to_be_looked_up() -> None:
    told = str(no_source(load_device("raspi4"), "energy_mj"))
    assert "no energy of device raspi4 was ever published; there is latency" in told
    assert "Devices with energy: edgegpu, eyeriss, fpga" in told
    assert "fetch" not in told


def test_availability_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom hwnas.devices import availability, device_names, load_device\n"
        "for name in device_names(): availability(load_device(name))\n"
        "heavy = {'torch', 'onnxruntime', 'tensorrt', 'openvino', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
