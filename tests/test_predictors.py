"""The surrogate of agnet: encodings, and Gaussian processes against their formulas."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import kendalltau

from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.protocols import Predictor
from hwnas.predictors.encoding import BLOCKS, Encoder, structure
from hwnas.predictors.gp import GaussianProcess, Head, ranking_loss
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

    def test_leaving_one_out_is_refitting_without_it(self, encoder: Encoder) -> None:
        process, known, losses = self.fitted(encoder)
        predicted, targets = process.leave_one_out()[0]
        assert targets == pytest.approx(losses[:, 0])
        gram = kernel_matrix(process, known, known) + np.exp(process.heads[0].theta[-1]) * np.eye(len(known))
        centre = losses[:, 0].mean()
        for i in (0, 17):
            rest = np.delete(np.arange(len(known)), i)
            own = gram[i, rest] @ np.linalg.solve(gram[np.ix_(rest, rest)], losses[rest, 0] - centre) + centre
            assert predicted[i] == pytest.approx(own, abs=0.01 * losses[:, 0].std())

    @pytest.mark.parametrize("ranking", [0.0, 0.7])
    def test_gradients_are_those_of_differences(self, encoder: Encoder, ranking: float) -> None:
        known = cells(15)
        x = encoder(known)
        distances = GaussianProcess(encoder).kernel.distances(x.astype(float), x.astype(float))
        y = smooth(encoder, known)[:, 0]
        y = (y - y.mean()) / y.std()
        head = Head(2, ranking)
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
