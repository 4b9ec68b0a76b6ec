"""The house itself: layers, start-up, packaging."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hwnas

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "torch_geometric",
    "onnxruntime",
    "onnx",
    "pymoo",
    "moocore",
    "plotly",
    "matplotlib",
    "pandas",
    "scipy",
)


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_layers_hold() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([script, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "what", ["import hwnas", "import hwnas.cli", "import hwnas; hwnas.search, hwnas.export_module"]
)
def test_import_loads_no_framework(what: str) -> None:
    heavy = _python(f"import sys\n{what}\nprint([m for m in {HEAVY!r} if m in sys.modules])")
    assert heavy.strip() == "[]"


def test_help_loads_no_framework() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom hwnas.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert _python(code).strip() == "[]"


def test_version_is_one_number() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == hwnas.__version__
    assert f"## {hwnas.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_are_those_that_the_readme_names_and_reserved_ones_say_so() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    readme = (ROOT / "README.md").read_text()
    listed = re.search(r"# extras: (.*)", readme)
    assert listed is not None
    reserved = set(re.findall(r"extra `([\w-]+)` is reserved", readme))
    assert set(listed.group(1).split(", ")) == extras - reserved
    assert reserved <= extras
    for name in reserved:  # as soon as code uses it, the README must not say otherwise
        use = re.compile(rf"^\s*(import|from) {name}\b|load\(\"{name}\b", flags=re.M)
        assert not [path for path in (ROOT / "hwnas").rglob("*.py") if use.search(path.read_text())], name


def test_public_names_resolve() -> None:
    for name in hwnas.__all__:
        assert getattr(hwnas, name) is not None
    assert set(dir(hwnas)) == set(hwnas.__all__)  # what a notebook completes


@pytest.mark.slow
def test_wheel_holds_data_and_no_top_level_cli(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert "hwnas/_data/devices/edgegpu.toml" in names
    assert any(name.startswith("hwnas/_data/profiles/") and name.endswith(".onnx") for name in names)
    assert not [name for name in names if not name.startswith(("hwnas/", "hwnas-"))]


# somebody's home, the superuser's, a container's working folder; not the same words inside an address or a longer path
_MACHINE_PATH = re.compile(rb"(?<![\w.~-])/(?:(?:home|Users)/[\w.-]+|root|work)/|\b[A-Za-z]:[\\/]+Users[\\/]")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (["'", "home", "ann", "runs'"], True),
        (["", "Users", "ann", "runs"], True),
        (["see ", "root", ".cache"], True),
        (["(", "work", "main)"], True),
        (["C:", "Users", "ann"], True),
        (["https:", "", "example.org", "home", "ann", "x"], False),
        (["docs", "work", "x"], False),
        (["", "opt", "hwnas", "bin"], False),
    ],
)
def test_a_machine_path_is_told_from_other_paths(parts: list[str], found: bool) -> None:
    assert bool(_MACHINE_PATH.search("/".join(parts).encode())) == found
    assert bool(_MACHINE_PATH.search("\\".join(parts).encode())) == (parts[0] == "C:")


def test_repository_holds_no_machine_path() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing tells which files belong to the repository")
    told = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    files = [ROOT / name for name in told.split("\0") if (ROOT / name).is_file()]
    assert Path(__file__).resolve() in files
    for file in files:
        content = file.read_bytes()  # models and pictures may hold paths, too
        held = _MACHINE_PATH.search(content)
        assert held is None, f"{file.relative_to(ROOT)}: {held and held.group()!r}"
        # where this checkout lies, unless that is too short to say anything
        assert len(ROOT.parts) < 3 or f"{ROOT}/".encode() not in content, file.relative_to(ROOT)


def _anchors(text: str) -> set[str]:
    """Anchors that a page's headings get: lower case, words joined by dashes, other signs dropped."""
    headings = re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in _anchors(file.read_text()), f"{page} links to {target}"
