"""Figures from samples, on simulated devices whose latencies are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.measurement import Status
from hwnas.profiling import bench, statistics
from hwnas.profiling.bench import Candidate
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import Record
from hwnas.testing.profiling import simulated_bench, write_relu

TRUTH = {f"net-{i}": 0.4 * 1.3**i for i in range(10)}  # ms
REFERENCES = {"ref-a": 0.5, "ref-b": 2.0, "ref-c": 5.0}
BUSY = {"slow": 1.4, "slow_s": 0.7, "fast_s": 1.0, "tail": 0.03, "drift": 0.02, "jitter": 0.01}
QUIET = {"jitter": 0.01}
CAREFUL = Protocol(rounds=30, most_rounds=40, resamples=200)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {name: write_relu(folder / f"{name}.onnx") for name in (*TRUTH, *REFERENCES)}


def sweep(
    files: dict[str, Path],
    name: str,
    options: dict[str, Any],
    *,
    truth: dict[str, float] | None = None,
    protocol: Protocol = CAREFUL,
    sigma: float = 0.0,
) -> Iterator[Record]:
    """Records of one session (or several, by protocol) in which the networks take the times of `truth`."""
    truth = truth or TRUTH
    told = {f"truth.{net}": latency for net, latency in {**truth, **REFERENCES}.items()}
    with closing(
        simulated_bench(
            options={"seed": 1, **told, **options},
            name=name,
            protocol=protocol,
            references={net: files[net] for net in REFERENCES},
            sigma=sigma,
        )
    ) as bench:
        yield from bench.measure([Candidate(net, files[net]) for net in truth])


@pytest.mark.parametrize("options", [QUIET, BUSY], ids=["quiet", "busy"])
def test_figures_are_the_latency_of_the_fast_mode(files: dict[str, Path], options: dict[str, float]) -> None:
    errors = [
        math.log(record.latency.value / TRUTH[record.subject.id])
        for session in "abc"
        for record in sweep(files, session, options)
        if record.latency is not None
    ]
    assert len(errors) == 3 * len(TRUTH)
    assert abs(np.mean(errors)) < 0.02
    assert np.max(np.abs(errors)) < 0.06


def test_plain_medians_are_not(files: dict[str, Path]) -> None:
    """The reason for the estimator: on the same samples the median is off by the slow mode."""
    latencies = [record.latency for record in sweep(files, "a", {**BUSY, "slow_s": 2.0})]
    off = [abs(math.log(told.spread.median / TRUTH[net])) for net, told in zip(TRUTH, latencies, strict=True) if told]
    ours = [abs(math.log(told.value / TRUTH[net])) for net, told in zip(TRUTH, latencies, strict=True) if told]
    assert np.mean(off) > 3 * np.mean(ours)


def test_ranks_survive_a_busy_machine(files: dict[str, Path]) -> None:
    from scipy.stats import kendalltau

    close = {net: 1.0 + 0.05 * i for i, net in enumerate(TRUTH)}
    values = [r.latency.value for r in sweep(files, "a", BUSY, truth=close) if r.latency]
    assert kendalltau(values, list(close.values())).statistic >= 0.9


def figures(files: dict[str, Path], sessions: int, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Log latencies and half widths within the session, `sessions x networks` both."""
    told = [
        [(math.log(r.latency.value), r.latency.half_within) for r in sweep(files, f"s{number}", options) if r.latency]
        for number in range(sessions)
    ]
    values, halves = np.moveaxis(np.array(told), 2, 0)
    return values, halves


def test_intervals_cover_the_truth_as_often_as_they_say(files: dict[str, Path]) -> None:
    told = [
        (record.latency.low, record.latency.high, TRUTH[record.subject.id])
        for number in range(20)
        for record in sweep(files, f"s{number}", {**BUSY, "session": 0.03}, sigma=0.03)
        if record.latency is not None
    ]
    assert np.mean([low <= truth <= high for low, high, truth in told]) >= 0.9
    # and not by being wide
    assert np.median([math.log(high / low) / 2 for low, high, _ in told]) < 1.96 * 0.03 + 0.02


def test_intervals_cover_what_another_session_finds(files: dict[str, Path]) -> None:
    """With the spread that a calibration in five sessions finds."""
    values, halves = figures(files, 15, {**BUSY, "session": 0.02})
    sigma = statistics.session_sigma(values[:5], halves[:5])
    half = statistics.with_session(halves[5:], sigma)
    first, second = np.triu_indices(10, 1)
    inside = np.abs(values[5:][first] - values[5:][second]) <= np.hypot(half[first], half[second])
    assert inside.mean() >= 0.9


def test_the_spread_between_sessions_is_recovered(files: dict[str, Path]) -> None:
    assert statistics.session_sigma(*figures(files, 12, {"session": 0.03})) == pytest.approx(0.03, rel=0.25)
    # a quiet simulation repeats exactly; no calibration promises that of a machine, or less than is assumed without one
    assert statistics.LEAST_SIGMA == bench.DEFAULT_SIGMA
    assert statistics.session_sigma(*figures(files, 4, QUIET)) == statistics.LEAST_SIGMA


@pytest.mark.parametrize("options", [{"level": 0.1, "session": 0.02}, {"session": 0.1}, {"session": 0.02}], ids=str)
def test_intervals_hold_the_truth_whatever_processes_differ_by(files: dict[str, Path], options: dict[str, Any]) -> None:
    """Of figures, by the whole interval, and of their ratios, by what is each network's own; of latency and CPU time.

    Processes may differ for all networks alike (`level`) or for each (`session`); 2 % are known.
    """
    protocol = Protocol(rounds=10, most_rounds=10, resamples=50, processes=3)
    own, figures, ratios = [], [], []
    truth = np.log(list(TRUTH.values()))
    first, second = np.triu_indices(len(TRUTH), 1)
    for number in range(24):
        told = [r.latency for r in sweep(files, f"l{number}", options, protocol=protocol, sigma=0.02)]
        latency = [(x.value, x.high, x.own_half) for x in told if x is not None]
        cpu = [(x.cpu_time, x.cpu_high, x.cpu_own_half) for x in told if x is not None]
        for value, high, apart in (np.array(column, dtype=float).T for column in (latency, cpu)):
            off, half = np.log(value) - truth, np.log(high / value)
            figures.append(np.abs(off) <= half)
            ratios.append(np.abs(off[first] - off[second]) <= np.hypot(apart[first], apart[second]))
            own.append(apart / half)
    for kind in (0, 1):
        assert np.mean(figures[kind::2]) >= 0.9
        assert np.mean(ratios[kind::2]) >= 0.93
    # a pace that all share is no part of a comparison; what each has of its own is
    assert np.median(own) < 0.5 if "level" in options else np.median(own) > 0.55


def test_processes_at_one_moment_do_not_show_how_a_machine_changes(files: dict[str, Path]) -> None:
    """The noise floor stands for minutes: three processes within seconds do not average it out of a figure."""
    told = [r.latency for r in sweep(files, "n", QUIET, protocol=Protocol(processes=3), sigma=0.03) if r.latency]
    for latency in told:
        assert latency.half >= 1.96 * 0.03
        assert latency.apart == pytest.approx(math.hypot(1.96 * 0.03 / math.sqrt(3), latency.half_within), rel=0.2)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(1, 12), st.floats(0.001, 0.1), st.integers(0, 10**6))
def test_doubts_of_several_processes(s: int, n: int, sigma: float, seed: int) -> None:
    table = np.random.default_rng(seed).normal(0, sigma, (s, n))
    own = statistics.own_doubt(table, 0, sigma)
    shared = statistics.shared_doubt(table)
    assert own >= sigma / math.sqrt(s) * (1 - 1e-12)
    assert statistics.whole_doubt(own, shared, sigma) >= max(sigma, own, shared)
    # a pace for all is no network's own, and what one has of its own is no pace for all
    paced = table + np.linspace(-1, 1, s)[:, None]
    assert statistics.own_doubt(paced, 0, sigma) == pytest.approx(own)
    assert statistics.shared_doubt(paced) > shared or n == 1
    assert statistics.own_doubt(table[:1], 0, sigma) == sigma
    assert statistics.shared_doubt(table[:1]) == 0


def test_several_processes_average_what_differs_between_them(files: dict[str, Path]) -> None:
    def errors(processes: int) -> float:
        protocol = Protocol(rounds=10, most_rounds=10, resamples=50, processes=processes)
        told = [
            math.log(r.latency.value / TRUTH[r.subject.id])
            for number in range(8)
            for r in sweep(files, f"p{number}", {"session": 0.05}, protocol=protocol, sigma=0.05)
            if r.latency
        ]
        return float(np.std(told))

    assert errors(4) == pytest.approx(errors(1) / 2, rel=0.3)


def test_two_modes_are_flagged_and_a_quiet_machine_is_not(files: dict[str, Path]) -> None:
    # whether this very machine is busy is another matter
    assert not any({"bimodal", "drift", "preempted"} & {*record.flags} for record in sweep(files, "a", QUIET))
    # so rarely fast that a minimum and a typical figure differ
    lonely = {"slow": 1.6, "slow_s": 5.0, "fast_s": 0.02}
    assert any("preempted" in record.flags for record in sweep(files, "a", lonely))


@pytest.mark.parametrize("troubled", [None, 0, 3, 5])
def test_trouble_in_any_process_is_flagged(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, troubled: int | None
) -> None:
    """Three processes tell the machine's state before and after their rounds."""
    asked = count()

    def state(self: bench.Bench) -> dict[str, Any]:
        trouble = next(asked) == troubled
        return {"psi_avg10": 90.0 if trouble else 0.0, "throttle_reasons": "0x40" if trouble else "0x0"}

    monkeypatch.setattr(bench.Bench, "_state", state)
    protocol = Protocol(rounds=4, most_rounds=4, resamples=20, processes=3)
    for record in sweep(files, "a", QUIET, protocol=protocol):
        assert ({"busy", "throttled"} <= {*record.flags}) == (troubled is not None)


def test_a_network_that_is_slow_for_itself_is_bimodal() -> None:
    rng = np.random.default_rng(0)
    visits = np.log(np.outer(np.ones(6), np.ones(30))) + 0.005 * rng.standard_normal((6, 30))
    visits[2, rng.permutation(30)[:25]] += 0.4  # its own trouble, not that of the round
    found = statistics.estimate(visits, resamples=100, rng=rng)
    off = np.abs(found.minimum - found.polished) > statistics.BIMODAL
    assert off.tolist() == [False, False, True, False, False, False]


def test_a_change_of_level_between_batches_is_corrected_and_flagged(files: dict[str, Path]) -> None:
    """All of the later batch is slower by a factor that the references show."""
    truth = {net: 1.0 + i for i, net in enumerate(TRUTH)}
    protocol = Protocol(rounds=20, most_rounds=20, batch=5, resamples=50, retests=0)
    records = list(sweep(files, "a", {"drift": 6.0, "jitter": 0.005}, truth=truth, protocol=protocol))
    later = records[5:]
    assert all(r.latency is not None and r.latency.level > 0.1 for r in later)
    ratios = [r.latency.value / truth[r.subject.id] for r in records if r.latency]
    assert max(ratios) / min(ratios) < 1.1
    assert all("drift" in r.flags for r in later)
    assert not any("drift" in r.flags for r in records[:5])


def test_wide_intervals_are_said_to_be_unconverged(files: dict[str, Path]) -> None:
    protocol = Protocol(rounds=5, most_rounds=5, within=0.001, resamples=100)
    records = list(sweep(files, "a", {"jitter": 0.2}, protocol=protocol))
    assert {r.status for r in records} == {Status.UNCONVERGED}
    assert all("wanted 0.1%" in r.message for r in records)


def test_measuring_ends_when_intervals_are_narrow(files: dict[str, Path]) -> None:
    protocol = Protocol(rounds=10, most_rounds=200, resamples=100, budget_s=1000.0)
    easy = list(sweep(files, "a", {"jitter": 0.001}, protocol=protocol))
    hard = list(sweep(files, "a", {"jitter": 0.5, "tail": 0.3}, protocol=protocol))
    assert {r.sampling.rounds for r in easy if r.sampling} == {10}
    assert np.mean([r.sampling.rounds for r in hard if r.sampling]) > 15


def test_a_batch_ends_at_its_time_limit(files: dict[str, Path]) -> None:
    protocol = Protocol(rounds=5, most_rounds=5000, step=5, within=1e-6, resamples=20, budget_s=0.5)
    records = list(sweep(files, "a", {"jitter": 0.3}, protocol=protocol))
    assert all(r.sampling is not None and r.sampling.rounds < 200 for r in records)
    assert {r.status for r in records} == {Status.UNCONVERGED}


# -- the pure functions ----------------------------------------------------------------------------------------------


def test_a_perfect_table_has_perfect_figures() -> None:
    nets, rounds = np.log([1.0, 2.0, 4.0]), np.array([0.0, 0.3, 0.0, 0.1, 0.0])
    found = statistics.estimate(nets[:, None] + rounds, resamples=50, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found.value, nets, atol=1e-12)
    np.testing.assert_allclose(found.rounds, rounds, atol=1e-12)
    assert np.all(found.half < 1e-9)


def test_missing_visits_are_allowed_but_not_all_of_a_network() -> None:
    rng = np.random.default_rng(0)
    visits = np.log(np.array([[1.0], [2.0], [4.0]])) + 0.01 * rng.standard_normal((3, 20))
    visits[1, 5:] = np.nan
    found = statistics.estimate(visits, resamples=50, rng=rng)
    np.testing.assert_allclose(np.exp(found.value), [1, 2, 4], rtol=0.03)
    assert np.all(found.low <= found.value)
    assert np.all(found.value <= found.high)
    assert not np.isnan(found.draws).any()
    visits[1] = np.nan
    with pytest.raises(ValueError, match="at least one visit"):
        statistics.estimate(visits, resamples=50, rng=rng)


def test_one_round_tells_no_interval() -> None:
    found = statistics.estimate(np.log([[1.0], [2.0]]), resamples=50, rng=np.random.default_rng(0))
    assert np.all(np.isinf(found.half))
    np.testing.assert_allclose(np.exp(found.value), [1, 2])


def test_spread_of_known_samples() -> None:
    samples = np.concatenate([np.arange(1.0, 100.0), [1.0, 250.0, 160.0]])
    told = statistics.spread(samples)
    assert (told.minimum, told.samples) == (1.0, 102)
    assert told.median == np.median(samples)
    assert told.p90 == np.quantile(samples, 0.9)
    assert told.p99 is None
    # quartiles 25.25 and 76.75 (numpy's): fences at 1.5 and 3 times their distance of about 50
    assert (told.low, told.high, told.mild, told.severe) == (0, 2, 1, 1)
    assert statistics.spread(np.ones(662)).p99 == 1.0
    assert statistics.spread(np.ones(662)).iqr == 0.0


def test_comparisons_find_what_differs_and_call_a_tie_a_tie() -> None:
    rng = np.random.default_rng(0)
    draws = 0.01 * rng.standard_normal((2000, 2))
    tie = statistics.compare(draws[:, 0], draws[:, 1], 0.02, rng=rng)
    assert tie.tie
    assert 0.3 < tie.chance < 0.7
    assert tie.ratio == pytest.approx(1.0, abs=0.01)
    faster = statistics.compare(draws[:, 0] + math.log(0.8), draws[:, 1], 0.02, rng=rng)
    assert not faster.tie
    assert faster.chance > 0.999
    assert faster.low < 0.8 < faster.high < 1
    again = statistics.compare(draws[:, 1], draws[:, 0] + math.log(0.8), 0.02, rng=rng)
    assert again.ratio == pytest.approx(1 / faster.ratio, rel=1e-6)
    # the width is that of independent normal parts: sqrt(2 * (0.01^2 + 0.02^2))
    assert math.log(tie.high / tie.low) / 2 == pytest.approx(1.96 * math.sqrt(2 * 5e-4), rel=0.1)


def test_what_is_shared_by_two_networks_does_not_blur_their_comparison() -> None:
    rng = np.random.default_rng(0)
    common = 0.2 * rng.standard_normal(2000)
    told = statistics.compare(common + math.log(1.05), common, 0.0, rng=rng)
    assert told.ratio == pytest.approx(1.05)
    assert not told.tie


def test_the_references_alone_find_a_level_like_a_batchs(files: dict[str, Path]) -> None:
    """On a machine that flips every second or so they would be through in one mode; they take as long as a batch."""
    truth = {f"truth.{net}": latency for net, latency in REFERENCES.items()}
    for name in ("a", "b", "c", "d", "e", "f"):
        told: list[str] = []
        alone = simulated_bench(
            options={"seed": 1, **truth, "slow": 1.4, "slow_s": 1.0, "fast_s": 1.0, "jitter": 0.01},
            name=name,
            protocol=CAREFUL,
            references={net: files[net] for net in REFERENCES},
            on_progress=lambda done, total, text, told=told: told.append(text),  # type: ignore[misc]
        )
        began = alone._clock()
        level = alone.find_level()
        assert abs(np.mean([math.log(level[net] / latency) for net, latency in REFERENCES.items()])) < 0.03
        assert 3.9 < alone._clock() - began < 8
        assert told[-1].startswith("round 30 of at most 40")  # as many visits count as in a batch
        alone.close()


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_references_alone_take_so_long_by_the_wall_clock_whatever_the_devices_own_says(
    files: dict[str, Path], share: float
) -> None:
    with closing(
        simulated_bench(
            options={"seed": 1, "device_share": share, **{f"truth.{net}": x for net, x in REFERENCES.items()}},
            protocol=CAREFUL,
            references={net: files[net] for net in REFERENCES},
        )
    ) as bench:
        began = bench._clock()
        bench.find_level()
        assert 3.9 < bench._clock() - began < 8


def test_retests() -> None:
    assert statistics.retests([], [], []) is None
    two = statistics.retests([1.0, 2.0], [1.1, 2.0], [(0.01, 0.01), (0.01, 0.01)])
    assert two is not None
    assert two.tau is None
    assert two.relative == pytest.approx(0.05)
    assert two.covered == 0.5
    many = statistics.retests([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [(0.01, 0.01)] * 3)
    assert many is not None
    assert (many.tau, many.relative, many.covered) == (1.0, 0.0, 1.0)


def test_retests_tell_the_spread_of_one_figure() -> None:
    rng = np.random.default_rng(0)
    first, second = 0.04 * rng.standard_normal((2, 4000))
    assert statistics.retest_sigma(first, second) == pytest.approx(0.04, rel=0.1)


def test_few_retests_claim_little() -> None:
    """The bound from three pairs is nearly always above the truth, and so is that from many."""
    rng = np.random.default_rng(0)
    for pairs, share in ((3, 0.75), (24, 0.75)):
        bounds = [statistics.retest_sigma(*0.04 * rng.standard_normal((2, pairs))) for _ in range(400)]
        assert np.mean(np.array(bounds) > 0.04) > share


def test_the_joint_half_width() -> None:
    assert float(statistics.with_session(0.03, 0.0)) == pytest.approx(0.03)
    assert float(statistics.with_session(0.03, 0.02)) == pytest.approx(math.hypot(0.03, 1.96 * 0.02))


def test_a_calibration_does_not_claim_less_than_it_can_tell() -> None:
    def found(sessions: int, networks: int, half: float) -> float:
        shape = (sessions, networks)
        return statistics.session_sigma(np.zeros(shape), np.full(shape, half))

    assert found(3, 4, 0.08) == pytest.approx(0.08 / 1.96 * 0.5**0.5)
    assert found(3, 4, 0.02) < found(3, 4, 0.08)  # careful sessions tell more,
    assert found(9, 16, 0.08) < found(3, 4, 0.08)  # and so do many
