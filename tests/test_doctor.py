"""`hwnas doctor` and `hwnas devices`: what is here, what is missing, and the line that helps; nothing raises."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from commands import cli

from hwnas import doctor, listing, optional, resources
from hwnas.devices import lacks, load_device
from hwnas.locking import lock_file
from hwnas.profiling import host, probing
from hwnas.profiling.profiler import Profiler, calibration_file, write_calibration
from hwnas.profiling.protocol import protocol


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "PROFILES", "DEVICES", "LOCKS"):
        monkeypatch.setenv(f"HWNAS_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    monkeypatch.chdir(tmp_path)


def found(findings: list[doctor.Finding], area: str, name: str) -> doctor.Finding:
    return next(f for f in findings if (f.area, f.name) == (area, name))


def test_a_machine_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("doctor", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"]
    by_name = {(f["area"], f["name"]): f for f in told["findings"]}
    assert by_name["packages", "torch"]["told"] == optional.version("torch")
    assert by_name["runtimes", "ort-cpu"]["state"] == "ok"
    assert by_name["devices", "cpu"]["state"] == "note"
    assert by_name["devices", "cpu"]["fix"] == "hwnas calibrate --device cpu"
    assert by_name["data", "tables"]["fix"] == "hwnas tables fetch hw-nas-bench"
    assert by_name["folders", "cache"]["state"] == "ok"
    assert {"python", "packages", "extras", "runtimes", "devices", "data", "folders", "machine"} <= {
        f["area"] for f in told["findings"]
    }
    assert not Path("runs").exists()
    assert cli("doctor") == 0
    assert "hwnas works here." in capsys.readouterr().out


def test_a_package_that_is_missing_is_broken_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = optional.version
    monkeypatch.setattr(optional, "version", lambda name: None if name == "pymoo" else real(name))
    findings = doctor.examine()
    assert found(findings, "packages", "pymoo") == doctor.Finding(
        "packages", "pymoo", doctor.BROKEN, "not installed", "pip install pymoo"
    )
    assert not doctor.healthy(findings)
    assert cli("doctor") == 1
    assert "does not work here" in capsys.readouterr().out


def test_a_package_that_another_one_brings_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime-gpu": "1.31"}
    monkeypatch.setattr(optional, "version", versions.get)
    assert doctor._version("onnxruntime") == "1.31"
    assert doctor._version("onnx") is None


def test_two_packages_of_one_module_are_told_of_and_the_gpu_line_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"onnxruntime": "1.32", "onnxruntime-gpu": "1.31"}
    monkeypatch.setattr(optional, "version", there.get)
    both = next(f for f in doctor._packages() if f.name == "onnxruntime-gpu")
    assert (both.state, both.fix) == (doctor.NOTE, optional.ONE_ONNXRUNTIME)
    del there["onnxruntime-gpu"]
    assert not [f for f in doctor._packages() if f.name == "onnxruntime-gpu"]
    line = f"pip install 'hwnas[gpu]' && {optional.ONE_ONNXRUNTIME}"
    assert found(list(doctor._extras()), "extras", "gpu").fix == line
    assert lacks("ort-cuda").endswith(line)


def test_requirements_are_sorted_by_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=1.26", "openvino>=2024.4; extra == 'openvino'", 'pytest>=8; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert doctor._requirements() == {"": ["numpy"], "openvino": ["openvino"], "dev": ["pytest"]}


def test_what_cannot_be_looked_at_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def ill() -> dict[str, str]:
        raise RuntimeError("no /proc today")

    monkeypatch.setattr(host, "facts", ill)
    told = [f for f in doctor.examine() if "no /proc today" in f.told]
    assert told
    assert all(f.state == doctor.NOTE for f in told)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HWNAS_PROFILES", str(tmp_path / "file" / "below"))
    told = found(doctor.examine(), "folders", "saved profiles")
    assert told.state == doctor.NOTE
    assert "is no folder" in told.told
    assert told.fix == "name another folder with HWNAS_PROFILES"


def test_a_device_file_that_is_wrong_stands_in_nobody_elses_way(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "bad.toml").write_text("name = ")
    findings = doctor.examine()
    assert "not a TOML file" in found(findings, "devices", "bad").told
    assert found(findings, "devices", "cpu").state == doctor.NOTE
    assert doctor.healthy(findings)


def test_who_holds_a_device_is_told(tmp_path: Path) -> None:
    lock = lock_file(tmp_path / "locks", "local")
    lock.acquire()
    try:
        told = found(doctor.examine(), "locks", "local")
        assert told.state == doctor.NOTE
        assert "process" in told.told
    finally:
        lock.release()
    assert found(doctor.examine(), "locks", "local").told == "free"
    assert found(doctor.examine(), "locks", "folder").told == str(tmp_path / "locks")


def test_calibrated_or_not_and_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    with Profiler(load_device("cpu")) as profiler:
        path = calibration_file(profiler.fingerprint, profiler.config)
        write_calibration(profiler.fingerprint, profiler.config, 0.0323, 5, 8, protocol("default"))
    assert cli("devices", "--json") == 0
    cpu = next(row for row in json.loads(capsys.readouterr().out) if row["name"] == "cpu")
    assert (cpu["noise_floor"], cpu["calibrated"], cpu["runtime"]) == (0.0323, True, "ort-cpu")
    assert cpu["versions"] == {"onnxruntime": optional.version("onnxruntime")}
    assert cpu["sources"]["latency_ms"] == "measured"
    assert found(doctor.examine(), "devices", "cpu").state == doctor.OK
    path.write_text("not JSON")
    assert cli("devices", "--json") == 0
    cpu = next(row for row in json.loads(capsys.readouterr().out) if row["name"] == "cpu")
    assert not cpu["available"]
    assert "hwnas calibrate" in cpu["reason"]


def test_a_device_file_that_is_wrong_hides_no_other_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DEVICES", str(tmp_path))
    (tmp_path / "bad.toml").write_text('name = "bad"\nthreads = "two"\n')
    rows = {row["name"]: row for row in listing.devices()}
    assert rows["cpu"]["available"]
    assert not rows["bad"]["available"]
    assert "bad.toml" in rows["bad"]["reason"]
    assert rows["bad"].keys() <= rows["cpu"].keys()
    listing.devices_table(list(rows.values()))


def test_a_provider_that_onnx_runtime_lacks_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DEVICES", str(tmp_path))
    text = (resources.folder("devices") / "cpu.toml").read_text()
    (tmp_path / "npu.toml").write_text(
        text.replace('name = "cpu"', 'name = "npu"').replace("ort-cpu", "ort:NoProvider")
    )
    (found,) = [f for f in doctor.examine() if (f.area, f.name) == ("runtimes", "ort:NoProvider")]
    assert (found.state, "no NoProvider" in found.told) == (doctor.MISSING, True)


def test_devices_say_why_they_are_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    rows = listing.devices()
    told = {row["name"]: row for row in rows}
    assert told["edgegpu"]["sources"] == {"latency_ms": "surrogate", "energy_mj": "surrogate"}
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(listing.devices_table(rows))
    shown = console.export_text()
    console.file.close()
    assert "2.5% assumed" in shown
    for row in rows:
        if not row["available"]:
            assert f"{row['name']} is not available now: {row['reason']}"[:60] in shown


def test_a_worker_that_does_not_start_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    nowhere = replace(load_device("cpu"), name="board", host="ssh:nobody@nowhere.invalid")
    monkeypatch.setenv("PATH", "")  # no ssh either
    (told,) = probing.probe_devices([nowhere, load_device("edgegpu")]).values()
    assert told.reason
    assert told.to_json()["noise_floor"] is None


def test_limits_are_words_or_absent() -> None:
    for name, told in host.limits().items():
        assert name
        assert told
    assert host._quota("150000 100000") == "1.5 CPUs"
    assert host._quota("max 100000") == ""
    assert host._gib(str(3 * 2**29)) == "1.5 GiB"
    assert host._gib("max") == ""
