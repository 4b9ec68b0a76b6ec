"""The surrogate of agnet: encodings, and Gaussian processes against their formulas."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.stats import kendalltau

from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.protocols import Predictor
from hwnas.evaluators.measured import LatencyModel
from hwnas.evaluators.surrogate import SurrogateEvaluator
from hwnas.predictors.compression import Compression
from hwnas.predictors.costs import KnownCosts
from hwnas.predictors.encoding import BLOCKS, Encoder, structure
from hwnas.predictors.gp import Distances, GaussianProcess, Head, Kernel, ranking_loss
from hwnas.predictors.latency import LatencyPredictor
from hwnas.spaces.codes import every, sample
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.toy import ToyEvaluator, ToySpace

SPACE = NasBench201()
PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))  # code positions of the four paths through a cell


def cells(n: int, seed: int = 0) -> list[Architecture]:
    return list(dict.fromkeys(sample(SPACE, n, rng=np.random.default_rng(seed))))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(SPACE)


class TestEncoding:
    def test_blocks_stand_side_by_side_with_equal_spread(self, encoder: Encoder) -> None:
        features = encoder(cells(800, seed=3))
        parts = [encoder.part(block) for block in BLOCKS]
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
        assert parts[-1].stop == features.shape[1]
        spreads = [2 * features[:, part].var(axis=0).sum() for part in parts]
        assert spreads == pytest.approx([1.0] * len(BLOCKS), rel=0.1)
        assert np.abs(features.mean(axis=0)).max() < 0.1

    def test_different_codes_have_different_encodings(self, encoder: Encoder) -> None:
        features = encoder(cells(500))
        assert len(np.unique(features, axis=0)) == len(features)

    def test_paths_of_a_cell_are_those_of_its_list_of_paths(self) -> None:
        names = ["input", "output", "none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
        number = {name: i for i, name in enumerate(names)}
        architectures = cells(300)
        live, shape = structure([SPACE.to_graph(a) for a in architectures], number, 8)
        for architecture, indicators, row in zip(architectures, live.reshape(-1, 8, 7), shape, strict=True):
            code = architecture.code
            open_ = [path for path in PATHS if all(code[p] != 0 for p in path)]
            convs = [sum(code[p] in (2, 3) for p in path) for path in open_]
            assert row[-3:].tolist() == [len(open_), max(convs, default=-1), min(convs, default=-1)]
            alive = {p for path in open_ for p in path}
            pruned = SPACE.pruned(architecture).code
            assert alive == {p for p in range(6) if pruned[p] != 0}
            assert [int(indicators[p + 1].argmax()) - 2 if p in alive else 0 for p in range(6)] == list(pruned)
            assert row[2:7].tolist() == [sum(code[p] == op for p in alive) for op in range(5)]

    def test_dead_operations_change_only_the_code(self, encoder: Encoder) -> None:
        dead, other = (Architecture("nb201", (2, 0, op, 3, 4, 0)) for op in (1, 3))  # 2<-1 leads nowhere
        a, b = encoder([dead, other])
        assert not np.allclose(a[encoder.part("code")], b[encoder.part("code")])
        for block in ("live", "shape"):
            assert np.array_equal(a[encoder.part(block)], b[encoder.part(block)])

    def test_graphs_of_different_size_are_padded(self) -> None:
        number = {"input": 0, "output": 1, "conv": 2}
        short = ArchGraph(("input", "conv", "output"), ((0, 1), (1, 2)))
        long = ArchGraph(("input", "conv", "conv", "output"), ((0, 1), (0, 3), (1, 2), (2, 3)))
        apart = ArchGraph(("input", "output"), ())
        _, shape = structure([short, long, apart], number, 4)
        assert shape.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0], [0, 0, 0, 0, -1, -1]]

    def test_order_and_company_do_not_matter(self, encoder: Encoder) -> None:
        few = cells(20)
        again = Encoder(SPACE)(few[::-1])[::-1]
        assert np.array_equal(encoder(few), again)
        assert encoder([]).shape == (0, again.shape[1])

    def test_thousands_of_new_cells_take_a_fraction_of_a_second(self) -> None:
        fresh, many = Encoder(SPACE), cells(4000, seed=9)
        start = time.process_time()
        fresh(many)
        assert time.process_time() - start < 1.5  # about 0.2 on an idle core


def kernel_matrix(process: GaussianProcess, a: list[Architecture], b: list[Architecture]) -> np.ndarray:
    """Prior covariances of the first head by the formula of the module, entry by entry."""
    encoder, theta = process.kernel.encoder, np.exp(process.heads[0].theta)
    parts = [encoder.part(block) for block in ("code", "shape")]
    x, y = encoder(a).astype(float), encoder(b).astype(float)
    result = np.empty((len(x), len(y)))
    for (i, u), (j, v) in itertools.product(enumerate(x), enumerate(y)):
        near = [theta[g] * np.exp(-((u[p] - v[p]) ** 2).sum() / theta[2 + g]) for g, p in enumerate(parts)]
        result[i, j] = sum(near) + theta[4] * (u @ v) / len(BLOCKS)
    return result


def smooth(encoder: Encoder, architectures: list[Architecture], seed: int = 0) -> np.ndarray:
    """Planted losses: two smooth functions of the features, the second with other units."""
    x = encoder(architectures)
    w = np.random.default_rng(seed).standard_normal((x.shape[1], 2))
    return np.column_stack((20 + 5 * np.tanh(x @ w[:, 0]), 0.01 + 0.003 * (x @ w[:, 1])))


class TestGaussianProcess:
    def fitted(self, encoder: Encoder, n: int = 40) -> tuple[GaussianProcess, list[Architecture], np.ndarray]:
        known = cells(n)
        losses = smooth(encoder, known)
        process = GaussianProcess(encoder)
        process.fit(known, losses, rng=np.random.default_rng(0))
        return process, known, losses

    def test_it_is_a_predictor(self, encoder: Encoder) -> None:
        assert isinstance(GaussianProcess(encoder), Predictor)

    def test_posterior_is_the_closed_form(self, encoder: Encoder) -> None:
        process, known, losses = self.fitted(encoder)
        new = cells(25, seed=7)
        centre, scale = losses[:, 0].mean(), losses[:, 0].std()
        noise = np.exp(process.heads[0].theta[-1])
        gram = kernel_matrix(process, known, known) + (noise + 1e-6) * np.eye(len(known))
        cross = kernel_matrix(process, new, known)
        mean = cross @ np.linalg.solve(gram, (losses[:, 0] - centre) / scale) * scale + centre
        own = np.diag(kernel_matrix(process, new, new))
        variance = (own - np.diag(cross @ np.linalg.solve(gram, cross.T)) + noise) * scale**2
        guess = process.predict(new)
        assert guess.mean[:, 0] == pytest.approx(mean, abs=2e-3 * scale)
        assert guess.std is not None
        assert guess.std[:, 0] ** 2 == pytest.approx(variance, rel=0.02)

    def test_believing_is_conditioning_on_the_mean(self, encoder: Encoder) -> None:
        process, known, losses = self.fitted(encoder)
        new = cells(25, seed=7)
        posterior = process.posterior(new)
        mean = posterior.mean.copy()
        for row in (3, 11):
            posterior.believe(row)
        assert np.array_equal(posterior.mean, mean)
        both = [*known, new[3], new[11]]
        noise = np.exp(process.heads[0].theta[-1])
        gram = kernel_matrix(process, both, both) + noise * np.eye(len(both))
        cross = kernel_matrix(process, new, both)
        left = np.diag(kernel_matrix(process, new, new) - cross @ np.linalg.solve(gram, cross.T)) + noise
        assert posterior.variance[:, 0] == pytest.approx(left * losses[:, 0].std() ** 2, rel=0.03)

    def test_rounding_that_a_kernel_does_not_survive_is_met_with_more_noise(self, encoder: Encoder) -> None:
        """Large linear weights, no noise: in single precision the kernel matrix of 150 cells is indefinite."""
        process = GaussianProcess(encoder)
        known = cells(150)
        losses = smooth(encoder, known)
        blocks = process.kernel.size()
        theta = np.concatenate((np.full(blocks, -8.0), np.full(blocks, 1.0), [8.0, -15.0]))
        process.set_hyper_parameters({"heads": [theta] * losses.shape[1], "success": theta})
        process.condition(known, losses)
        guess = process.predict(cells(25, seed=7))
        assert guess.std is not None
        assert np.isfinite(guess.mean).all()
        assert (guess.std > 0).all()
        assert kendalltau(process.predict(known).mean[:, 0], losses[:, 0]).statistic > 0.8

    def test_leaving_one_out_is_refitting_without_it(self, encoder: Encoder) -> None:
        process, known, losses = self.fitted(encoder)
        predicted, deviations, targets = process.leave_one_out()[0]
        assert targets == pytest.approx(losses[:, 0])
        gram = kernel_matrix(process, known, known) + np.exp(process.heads[0].theta[-1]) * np.eye(len(known))
        centre = losses[:, 0].mean()
        for i in (0, 17):
            rest = np.delete(np.arange(len(known)), i)
            own = gram[i, rest] @ np.linalg.solve(gram[np.ix_(rest, rest)], losses[rest, 0] - centre) + centre
            assert predicted[i] == pytest.approx(own, abs=0.01 * losses[:, 0].std())
            left = gram[i, i] - gram[i, rest] @ np.linalg.solve(gram[np.ix_(rest, rest)], gram[rest, i])
            assert deviations[i] == pytest.approx(np.sqrt(left) * losses[:, 0].std(), rel=0.02)

    @pytest.mark.parametrize("costs", [False, True])
    @pytest.mark.parametrize("ranking", [0.0, 0.7])
    def test_gradients_are_those_of_differences(self, encoder: Encoder, ranking: float, costs: bool) -> None:
        known = cells(15)
        kernel = Kernel(encoder, ("code", "shape"))
        kernel.costs = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"]) if costs else None
        rows = kernel.features(known)
        single = kernel.distances(rows, rows)
        distances = Distances(*(tuple(part.astype(float) for part in kind) for kind in (single.blocks, single.linear)))
        y = smooth(encoder, known)[:, 0]
        y = (y - y.mean()) / y.std()
        head = Head(2, ranking, costs=costs)
        for seed in range(3):
            theta = head.theta + 0.5 * np.random.default_rng(seed).standard_normal(len(head.theta))
            error = check_grad(
                lambda t: head._objective(t, distances, y)[0],
                lambda t: head._objective(t, distances, y)[1],
                theta,
                epsilon=1e-6,
            )
            assert error < 1e-3 * np.abs(head._objective(theta, distances, y)[1]).max()

    def test_intervals_hold_what_they_promise(self, encoder: Encoder) -> None:
        """On a function of the prior's kind with noise, normalised errors are standard normal."""
        known, new = cells(150), [a for a in cells(200, seed=5) if a not in set(cells(150))]
        rng, z = np.random.default_rng(1), []
        for seed in range(3):
            values = smooth(encoder, [*known, *new], seed)[:, :1]
            values += 0.1 * values.std() * rng.standard_normal(values.shape)
            process = GaussianProcess(encoder, iterations=20)
            process.fit(known, values[: len(known)], rng=rng)
            guess = process.predict(new)
            assert guess.std is not None
            z.append((values[len(known) :, 0] - guess.mean[:, 0]) / guess.std[:, 0])
        every_z = np.concatenate(z)
        assert 0.7 < every_z.std() < 1.3
        assert 0.88 < (np.abs(every_z) < 1.96).mean() <= 0.99

    def test_it_ranks_an_unseen_half_of_the_toy_space(self) -> None:
        toy, truth = ToySpace(), ToyEvaluator()
        architectures = list(every(toy))
        errors = np.array([[truth.truth(a, "val_error_pct")] for a in architectures])
        rows = np.random.default_rng(0).permutation(len(architectures))
        process = GaussianProcess(Encoder(toy))
        process.fit([architectures[i] for i in rows[:40]], errors[rows[:40]], rng=np.random.default_rng(0))
        guess = process.predict([architectures[i] for i in rows[40:]]).mean[:, 0]
        assert kendalltau(guess, errors[rows[40:], 0]).statistic > 0.75

    def test_failures_are_learned_and_other_losses_kept(self, encoder: Encoder) -> None:
        known = cells(120)
        losses = smooth(encoder, known)
        fails = np.array([a.code[3] == 3 for a in known])
        whole = GaussianProcess(encoder)
        whole.fit(known, losses, rng=np.random.default_rng(0))
        losses[fails, 1] = np.nan
        process = GaussianProcess(encoder)
        process.fit(known, losses, rng=np.random.default_rng(0))
        new = cells(300, seed=4)
        success = process.posterior(new).success
        failing = np.array([a.code[3] == 3 for a in new])
        assert success[failing].mean() < 0.35 < 0.8 < success[~failing].mean()
        assert process.predict(new).mean[:, 0] == pytest.approx(whole.predict(new).mean[:, 0])
        assert whole.posterior(new).success.tolist() == [1.0] * len(new)

    def test_units_do_not_matter(self, encoder: Encoder) -> None:
        process, known, losses = self.fitted(encoder)
        scaled = GaussianProcess(encoder)
        scaled.fit(known, losses * 1e3 + 7, rng=np.random.default_rng(0))
        new = cells(10, seed=2)
        assert scaled.predict(new).mean == pytest.approx(process.predict(new).mean * 1e3 + 7, rel=1e-3)

    def test_hyper_parameters_are_all_there_is_to_save(self, encoder: Encoder) -> None:
        process, known, losses = self.fitted(encoder)
        restored = GaussianProcess(encoder)
        restored.set_hyper_parameters(process.hyper_parameters())
        restored.condition(known, losses)
        new = cells(10, seed=2)
        assert np.array_equal(restored.predict(new).mean, process.predict(new).mean)

    def test_a_column_without_values_is_refused(self, encoder: Encoder) -> None:
        with pytest.raises(ValueError, match="at least 2 values; got 0"):
            GaussianProcess(encoder).fit(cells(5), np.full((5, 1), np.nan), rng=np.random.default_rng(0))

    def test_equal_values_are_no_division_by_zero(self, encoder: Encoder) -> None:
        process = GaussianProcess(encoder)
        process.fit(cells(10), np.full((len(cells(10)), 1), 3.0), rng=np.random.default_rng(0))
        assert process.predict(cells(5, seed=1)).mean == pytest.approx(3.0)


def test_ranking_loss_counts_wrong_pairs_and_has_the_right_gradient() -> None:
    truth = np.array([0.0, 1.0, 2.0, 2.0])
    right, _ = ranking_loss(truth, truth)
    wrong, _ = ranking_loss(-truth, truth)
    assert right < 0.05 < 1.0 < wrong
    at = np.array([0.3, 0.1, 0.2, 0.9])
    _, gradient = ranking_loss(at, truth)
    shift = 1e-6 * np.eye(4)
    differences = [(ranking_loss(at + d, truth)[0] - ranking_loss(at - d, truth)[0]) / 2e-6 for d in shift]
    assert gradient == pytest.approx(differences, abs=1e-6)


class TestKnownCosts:
    def test_the_device_itself_is_never_asked(self) -> None:
        known = KnownCosts.of(SPACE, "cifar10", without=["edgegpu", None])
        assert sorted(known.devices) == ["edgetpu", "eyeriss", "fpga", "pixel3", "raspi4"]

    def test_counts_are_known_where_no_device_is(self, tmp_path: Path) -> None:
        for space, known in (
            (ToySpace(), KnownCosts.of(ToySpace(), ToySpace().datasets[0], without=[])),
            (SPACE, KnownCosts.of(SPACE, "cifar10", without=[], folder=tmp_path)),
        ):
            assert known.devices == ()
            some = sample(space, 40, rng=np.random.default_rng(0))
            macs = [space.complexity(a, space.datasets[0])["macs_m"] for a in some]
            assert np.corrcoef(known(some)[:, 1], macs)[0, 1] == pytest.approx(1.0, abs=1e-5)

    def test_two_uniform_cells_are_one_apart(self) -> None:
        known = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"])
        assert 2 * known(cells(800, seed=3)).var(axis=0).sum() == pytest.approx(1.0, rel=0.15)

    def test_order_and_company_do_not_matter(self) -> None:
        """Else a resumed search, which has predicted nothing yet, would go another way."""
        known = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"])
        again = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"])
        many = cells(700)
        alone = np.concatenate([again([a]) for a in many[:40]])
        assert np.array_equal(known(many)[:40], alone)
        assert np.array_equal(known(many[::-1])[::-1][:40], alone)
        assert known([]).shape == (0, 7)

    def test_features_are_the_surrogates_answers(self) -> None:
        known = KnownCosts.of(SPACE, "ImageNet16-120", without=["raspi4", "edgetpu", "pixel3", "eyeriss", "fpga"])
        assert known.devices == ("edgegpu",)
        some = cells(50)
        context = [("latency_ms", "edgegpu")]
        told = [row.value for row in SurrogateEvaluator(SPACE, "ImageNet16-120").evaluate(some, context)]
        assert np.corrcoef(known(some)[:, 2], told)[0, 1] == pytest.approx(1.0, abs=1e-5)

    def test_a_cost_of_a_known_kind_needs_few_measurements(self, encoder: Encoder) -> None:
        """A device whose latency is a sum of others' is known after ten measurements, and not without them."""
        known = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"])
        some, new = cells(10), cells(300, seed=5)
        weights = np.array([0.0, 1.0, 1.0, 2.0, 0.5, 1.0, 3.0])
        wanted = 4 + known(new) @ weights
        taus = []
        for lent in (False, True):
            process = GaussianProcess(encoder)
            if lent:
                process.lend(known, [1])
            losses = np.column_stack((smooth(encoder, some)[:, 0], 4 + known(some) @ weights))
            process.fit(some, losses, rng=np.random.default_rng(0))
            taus.append(kendalltau(process.predict(new).mean[:, 1], wanted).statistic)
        assert taus[1] > 0.9 > taus[0] + 0.1

    def test_errors_do_not_feel_them(self, encoder: Encoder) -> None:
        known = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"])
        some, losses = cells(30), smooth(encoder, cells(30))
        plain, lent = GaussianProcess(encoder), GaussianProcess(encoder)
        lent.lend(known, [1])
        for process in (plain, lent):
            process.fit(some, losses, rng=np.random.default_rng(0))
        new = cells(50, seed=4)
        assert np.array_equal(plain.predict(new).mean[:, 0], lent.predict(new).mean[:, 0])
        assert not np.allclose(plain.predict(new).mean[:, 1], lent.predict(new).mean[:, 1])

    def test_hyper_parameters_come_back(self, encoder: Encoder) -> None:
        known = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"])
        some, losses = cells(30), smooth(encoder, cells(30))
        first, second = GaussianProcess(encoder), GaussianProcess(encoder)
        first.lend(known, [1])
        first.fit(some, losses, rng=np.random.default_rng(0))
        second.set_hyper_parameters(first.hyper_parameters())
        second.lend(known, [1])
        second.condition(some, losses)
        new = cells(50, seed=4)
        assert np.array_equal(first.predict(new).mean, second.predict(new).mean)


class TestCompression:
    @given(
        st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=40),
        st.floats(0, 1),
        st.lists(st.floats(-1e4, 1e4, allow_nan=False), min_size=2, max_size=20),
    )
    def test_order_is_kept_and_the_good_part_as_it_is(
        self, known: list[float], quantile: float, values: list[float]
    ) -> None:
        compress = Compression.of(np.array(known), quantile)
        ordered = np.sort(values)
        shown = compress(ordered)
        assert (np.diff(shown) >= 0).all()
        good = ordered <= compress.pivot
        assert np.array_equal(shown[good], ordered[good])
        assert (shown <= ordered + 1e-9).all()

    def test_the_formula(self) -> None:
        compress = Compression.of(np.array([8.0, 9.0, 10.0, 90.0, np.nan, 10.0]), 0.5)
        assert (compress.pivot, compress.scale) == (10.0, 2.0)
        assert compress(np.array([9.5, 90.0, np.nan])) == pytest.approx([9.5, 10 + 2 * np.log(41), np.nan], nan_ok=True)

    @pytest.mark.parametrize("losses", [[], [np.nan], [3.0], [3.0, 3.0]])
    def test_little_to_go_by(self, losses: list[float]) -> None:
        compress = Compression.of(np.array(losses), 0.5)
        assert compress(np.array([3.0])) == pytest.approx([3.0])
        assert np.isfinite(compress(np.array([1e6])))

    def test_one_leaves_everything_as_it_is(self) -> None:
        assert Compression.of(np.array([1.0, 2.0]), 1.0)(np.array([5.0, 1e6])).tolist() == [5.0, 1e6]

    def test_processes_rank_the_good_ones_better(self, encoder: Encoder) -> None:
        """What it is for: planted errors with a tail a hundred times longer than the differences that count."""
        some, new = cells(60), cells(400, seed=6)
        truth = smooth(encoder, [*some, *new])[:, 0]
        tailed = truth + 80.0 * (truth > np.quantile(truth, 0.8))
        good = tailed[60:] < np.quantile(tailed, 0.5)
        taus = []
        for quantile in (1.0, 0.5):
            process = GaussianProcess(encoder)
            losses = Compression.of(tailed[:60], quantile)(tailed[:60])
            process.fit(some, losses[:, None], rng=np.random.default_rng(0))
            taus.append(kendalltau(process.predict(new).mean[good, 0], tailed[60:][good]).statistic)
        assert taus[1] > taus[0] + 0.1


class TestLatencyPredictor:
    """A device that is half a sum of known ones and half its own, measured with 2 % noise."""

    def truth(self, architectures: list[Architecture]) -> np.ndarray:
        known = KnownCosts.of(SPACE, "cifar10", without=["edgegpu"])(architectures)
        return 5 + known @ np.array([0.5, 0.0, 0.4, 0.0, 0.3, 0.2, 0.4]) + 0.1 * np.tanh(known[:, 1] * known[:, 3])

    def fitted(self, n: int, seed: int = 0) -> tuple[LatencyPredictor, list[Architecture], np.ndarray]:
        measured = cells(n, seed=seed)
        rng = np.random.default_rng(seed)
        values = self.truth(measured) * (1 + 0.01 * rng.standard_normal(len(measured)))
        predictor = LatencyPredictor(SPACE, "cifar10", "edgegpu")
        predictor.fit(measured, values, 0.02 * values)
        new = [a for a in cells(300, seed=99) if a not in measured]
        return predictor, new, self.truth(new) * (1 + 0.01 * rng.standard_normal(len(new)))

    def test_it_is_a_latency_model_that_ranks_after_ten_measurements(self) -> None:
        predictor, new, truth = self.fitted(10)
        model: LatencyModel = predictor
        value, low, high = model.interval(new)
        assert value.shape == low.shape == high.shape == (len(new),)
        assert ((low <= value) & (value <= high) & (low >= 0)).all()
        assert kendalltau(value, truth).statistic > 0.8

    def test_intervals_hold_what_they_promise(self) -> None:
        inside = []
        for seed in range(6):
            predictor, new, truth = self.fitted(30, seed)
            _, low, high = predictor.interval(new)
            inside.append(np.mean((low <= truth) & (truth <= high)))
        assert np.mean(inside) > 0.9

    def test_more_measurements_make_them_narrower_and_never_narrower_than_measurements(self) -> None:
        widths = []
        for n in (10, 60):
            predictor, new, _ = self.fitted(n)
            value, low, high = predictor.interval(new)
            widths.append(float(np.median(high - low)))
            assert ((high - value) >= 0.99 * 0.02 * 4).all()
        assert widths[1] < widths[0]
