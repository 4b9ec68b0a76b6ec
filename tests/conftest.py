"""Fixtures that several test files share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two threads are far slower under load
# tests that run side by side would wait for each other's turn on this machine: every process has locks of its own
os.environ["HWNAS_LOCKS"] = tempfile.mkdtemp(prefix="hwnas-locks-")
atexit.register(shutil.rmtree, os.environ["HWNAS_LOCKS"], ignore_errors=True)


@pytest.fixture(scope="session")
def tables_dir() -> Path:
    """The folder of benchmark tables that `HWNAS_TABLES` names; without it the test is skipped."""
    folder = os.environ.get("HWNAS_TABLES")
    if not folder:
        pytest.skip("needs the benchmark tables: set HWNAS_TABLES to a folder of Parquet files")
    path = Path(folder)
    if not (path / "nb201_accuracy.parquet").is_file():
        pytest.fail(f"HWNAS_TABLES={folder} holds no nb201_accuracy.parquet")
    return path
