"""The cache of measurements: keys, ranks, concurrent processes, damaged files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwnas.errors import DataError
from hwnas.profiling.backend import SessionConfig
from hwnas.profiling.cache import ResultCache, result_key

CONFIG = SessionConfig("ort-cpu", threads=1, options={"a": 1, "b": 2})


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResultCache]:
    made = ResultCache(tmp_path / "deep" / "cache.sqlite")
    yield made
    made.close()


def test_a_key_changes_with_all_that_makes_two_figures_incomparable() -> None:
    plain = result_key("g", CONFIG, "f")
    assert plain == result_key("g", dataclasses.replace(CONFIG, options={"b": 2, "a": 1}), "f")
    others = [
        result_key("h", CONFIG, "f"),
        result_key("g", CONFIG, "e"),
        *(
            result_key("g", dataclasses.replace(CONFIG, **change), "f")
            for change in (
                {"runtime": "openvino"},
                {"threads": 2},
                {"spinning": True},
                {"precision": "fp16"},
                {"cpus": (0,)},
                {"options": {"a": 1}},
                {"shapes": {"x": (1, 3, 32, 32)}},
            )
        ),
    ]
    assert len({plain, *others}) == len(others) + 1


def test_where_files_are_kept_is_not_part_of_a_key() -> None:
    moved = dataclasses.replace(CONFIG, cache="/elsewhere", memory_limit_mib=100.0, session="another")
    assert result_key("g", moved, "f") == result_key("g", CONFIG, "f")


def test_a_careful_record_is_found_by_a_hasty_question_but_not_the_other_way(cache: ResultCache) -> None:
    cache.put([("k", 1, {"latency_ms": 2.0})])
    assert cache.get("k", rank=0) == cache.get("k", rank=1) == {"latency_ms": 2.0}
    assert cache.get("k", rank=2) is None
    assert cache.get("other", rank=0) is None


def test_better_protocols_overwrite_worse_ones_and_never_the_reverse(cache: ResultCache) -> None:
    cache.put([("k", 1, {"n": 1})])
    cache.put([("k", 0, {"n": 0})])
    assert cache.get("k", rank=0) == {"n": 1}
    cache.put([("k", 1, {"n": 2}), ("k", 2, {"n": 3})])
    assert cache.get("k", rank=0) == {"n": 3}


def test_a_batch_is_kept_as_a_whole_or_not_at_all(cache: ResultCache) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        cache.put([("a", 1, {"n": 1}), ("b", 1, {"n": float("nan")})])
    assert cache.get("a", rank=0) is None


def test_two_processes_write_to_one_cache(cache: ResultCache) -> None:
    program = (
        "import sys; from pathlib import Path; from hwnas.profiling.cache import ResultCache\n"
        "cache = ResultCache(Path(sys.argv[1]))\n"
        "for i in range(200): cache.put([(f'{sys.argv[2]}{i}', 1, {'n': i})])\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program, str(cache.path), name]) for name in "ab"]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert all(cache.get(f"{name}{i}", rank=1) == {"n": i} for name in "ab" for i in range(200))


def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(DataError, match=r"cache\.sqlite cannot be used.*--no-cache"):
        ResultCache(path)
