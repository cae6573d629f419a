import numpy as np
import pytest
import torch

from collectors import count_modes, mode_coverage, nearest_mode, reached_goal


class TestModeCoverage:
    @pytest.mark.parametrize(
        ("histogram", "coverage", "entropy"),
        [
            ([7, 7, 7], 1.0, 1.0),
            ([5, 0], 0.5, 0.0),
            ([1, 1, 0, 0], 0.5, 0.5),
            ([9, 1], 0.5, 0.4690),  # a tenth is a fifth of the fair half, not more
            ([89, 11], 1.0, 0.4999),
        ],
    )
    def test_known_histograms(self, histogram: list[int], coverage: float, entropy: float) -> None:
        measured = mode_coverage(histogram)
        assert measured.coverage == coverage
        assert measured.entropy == pytest.approx(entropy, abs=1e-4)

    @pytest.mark.parametrize("kind", [np.array, torch.tensor])
    def test_batches_are_measured_row_by_row(self, kind: type) -> None:
        rows = [[[3, 1, 0], [2, 2, 2]], [[0, 0, 4], [100, 5, 5]]]
        measured = mode_coverage(kind(rows))
        assert measured.coverage.shape == measured.entropy.shape == (2, 2)
        for index in np.ndindex(2, 2):
            alone = mode_coverage(rows[index[0]][index[1]])
            assert (measured.coverage[index], measured.entropy[index]) == alone

    def test_the_threshold_is_a_fraction_of_the_fair_share(self) -> None:
        assert mode_coverage([70, 30], threshold=0.59).coverage == 1.0
        assert mode_coverage([70, 30], threshold=0.61).coverage == 0.5

    @pytest.mark.parametrize(
        ("histogram", "message"),
        [
            ([0.5, 0.5], r"histogram must hold integer counts, got float64"),
            ([4], r"at least two modes, got the shape \(1,\)"),
            (4, r"at least two modes, got the shape \(\)"),
            ([4, -1], r"must not hold negative counts, got -1"),
            ([[1, 1], [0, 0]], r"must hold samples, but 1 of 2 are empty"),
        ],
    )
    def test_what_is_no_histogram_is_refused(self, histogram: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            mode_coverage(histogram)

    @pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
    def test_thresholds_out_of_range(self, threshold: float) -> None:
        with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\)"):
            mode_coverage([1, 1], threshold=threshold)


class TestCounting:
    def test_samples_are_counted_along_the_last_dimension(self) -> None:
        modes = np.random.default_rng(0).integers(-1, 4, (2, 3, 50))
        counts = count_modes(modes, 4)
        assert counts.shape == (2, 3, 4)
        for index in np.ndindex(2, 3):
            seen = modes[index][modes[index] >= 0]
            assert counts[index].tolist() == np.bincount(seen, minlength=4).tolist()

    @pytest.mark.parametrize("wrong", [4, -2])
    def test_other_indices_are_refused(self, wrong: int) -> None:
        with pytest.raises(ValueError, match=r"modes must be in \[0, 4\), or -1 for none"):
            count_modes([0, wrong], 4)


class TestAssignment:
    def test_actions_belong_to_the_nearest_maximum(self) -> None:
        maxima = [2 / 3, 0.0, -2 / 3]
        actions = torch.tensor([[1.0, 0.34], [0.32, -0.32], [-0.34, -1.0]])
        assert nearest_mode(actions, maxima).tolist() == [[0, 0], [1, 1], [2, 2]]

    def test_two_maxima_are_told_apart_by_the_sign(self) -> None:
        actions = np.array([-1.0, -1e-9, 0.0, 1e-9, 1.0])
        assert nearest_mode(actions, [0.5, -0.5]).tolist() == [1, 1, 0, 0, 0]

    def test_goals_count_within_their_radius(self) -> None:
        goals = [[5.0, 0.0], [0.0, 5.0]]
        positions = [[[5.0, 0.9], [4.0, 0.0]], [[3.9, 0.0], [0.5, 5.5]]]
        assert reached_goal(positions, goals, 1.0).tolist() == [[0, 0], [-1, 1]]
