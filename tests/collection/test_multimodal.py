import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torchrl.envs.utils import check_env_specs

from collectors import make_env, optimal_density, register_tasks
from collectors.environments.tasks.multi_goal import GOALS, MultiGoalEnv, multi_goal_step
from collectors.environments.tasks.multimodal import (
    GMM_MEANS,
    ActionModesEnv,
    TurningMultiWellEnv,
    double_well_reward,
    gmm_reward,
    multi_well_reward,
    well_maxima,
)

TASKS = (
    "TurningDoubleWell-v0",
    "TurningMultiWell-v0",
    "GMMBandit-v0",
    "MultiGoal-v0",
    "MultiGoalAnywhere-v0",
)
TURNING = [("TurningDoubleWell-v0", 2, {}), ("TurningMultiWell-v0", 3, {})]
TURNING += [("TurningMultiWell-v0", wells, {"wells": wells}) for wells in (2, 4, 5)]


class TestRewards:
    def test_double_well(self) -> None:
        actions = [0.0, 0.5, -0.5, 1.0, -1.0, 0.25, 0.75]
        # u = 1/16: .85 + .15 (1 - .75^2); u = 9/16: 1 - (5/12)^2
        expected = [0.85, 1.0, 1.0, 0.0, 0.0, 0.915625, 1 - 25 / 144]
        np.testing.assert_allclose(double_well_reward(actions), expected, atol=1e-12)

    def test_maxima_of_multi_wells_are_at_the_given_degrees(self) -> None:
        np.testing.assert_allclose(90 * well_maxima(3), [60, 0, -60], atol=1e-12)
        np.testing.assert_allclose(90 * well_maxima(4), [67.5, 22.5, -22.5, -67.5])

    @pytest.mark.parametrize("wells", [2, 3, 4, 7])
    def test_multi_well(self, wells: int) -> None:
        reward = partial(multi_well_reward, wells=wells)
        maxima = well_maxima(wells)
        np.testing.assert_allclose(reward(maxima), 1.0)
        np.testing.assert_allclose(reward((maxima[1:] + maxima[:-1]) / 2), 0.85)
        np.testing.assert_allclose(reward([1.0, -1.0]), 0.0, atol=1e-12)
        # half-way between the outermost maximum and the end: 1 - 1/4
        np.testing.assert_allclose(reward((1 + maxima[0]) / 2), 0.75)
        np.testing.assert_allclose(reward(maxima + 0.5 / wells), [0.75] + [0.925] * (wells - 1))

    @pytest.mark.parametrize(
        "reward", [double_well_reward, partial(multi_well_reward, wells=5), gmm_reward]
    )
    def test_rewards_are_even_continuous_and_largest_at_the_maxima(self, reward) -> None:
        grid = np.linspace(-1, 1, 20_001)
        values = reward(grid)
        np.testing.assert_allclose(values, values[::-1], atol=1e-9)
        assert np.abs(np.diff(values)).max() < 0.02
        assert values.shape == grid.shape
        assert reward(grid.reshape(3, -1)[:, :, None]).shape == (3, 6667, 1)

    def test_the_mixture_is_normalised(self) -> None:
        grid = np.linspace(-1, 1, 4001)
        assert np.trapezoid(np.exp(gmm_reward(grid)), grid) == pytest.approx(1.0, abs=1e-9)
        peak = 1 / (5 * 0.05 * math.sqrt(2 * math.pi))
        np.testing.assert_allclose(np.exp(gmm_reward(GMM_MEANS)), peak, rtol=1e-6)

    def test_multi_goal(self) -> None:
        step = multi_goal_step(
            [[0.0, 0.0], [3.9, 0.0], [0.0, -6.5]], [[0.4, 0.3], [0.1, 0], [0, -2]]
        )
        np.testing.assert_allclose(step.position, [[0.4, 0.3], [4.0, 0.0], [0.0, -7.0]])
        far = math.hypot(4.6, 0.3)
        # 30 (.16 + .09); within distance 1; at the wall, and the action clipped to -1
        np.testing.assert_allclose(step.reward, [-far - 7.5, -1 - 0.3 + 10, -2 - 30])
        assert step.reached.tolist() == [False, True, False]

    def test_multi_goal_treats_all_goals_alike(self) -> None:
        quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
        rng = np.random.default_rng(0)
        position, action = rng.uniform(-6, 6, (50, 2)), rng.uniform(-1, 1, (50, 2))
        step = multi_goal_step(position, action)
        turned = multi_goal_step(position @ quarter, action @ quarter)
        np.testing.assert_allclose(turned.reward, step.reward)
        np.testing.assert_allclose(turned.position, step.position @ quarter)


class TestOptimalDensity:
    def test_of_the_action(self) -> None:
        grid = np.linspace(-1, 1, 1001)
        density = optimal_density(double_well_reward, 0.1, grid)
        assert np.trapezoid(density, grid) == pytest.approx(1.0)
        # at 0 against a maximum: exp(-.15 / .1)
        assert density[500] / density[750] == pytest.approx(math.exp(-1.5))

    def test_of_the_latent_is_the_boltzmann_density_before_the_tanh(self) -> None:
        latent = np.linspace(-3, 3, 6001)
        grid = np.tanh(latent)
        density = optimal_density(double_well_reward, 0.2, grid, measure="latent")
        over_latents = density * (1 - grid**2)
        boltzmann = np.exp(double_well_reward(grid) / 0.2)
        boltzmann /= np.trapezoid(boltzmann, latent)
        np.testing.assert_allclose(over_latents, boltzmann, rtol=1e-4)

    def test_it_maximises_the_entropy_regularised_reward(self) -> None:
        """The value of any density is below ``T log Z``, which the optimal one has."""
        grid, temperature = np.linspace(-1, 1, 2001), 0.3
        reward = double_well_reward(grid)

        def value(density: np.ndarray) -> float:
            return np.trapezoid(density * (reward - temperature * np.log(density)), grid)

        best = optimal_density(double_well_reward, temperature, grid)
        log_z = math.log(np.trapezoid(np.exp(reward / temperature), grid))
        assert value(best) == pytest.approx(temperature * log_z)
        for other in (0.9, 1.1):
            tilted = optimal_density(double_well_reward, other * temperature, grid)
            assert value(tilted) < value(best) - 1e-5

    def test_low_temperatures_do_not_overflow(self) -> None:
        grid = np.linspace(-1, 1, 20_001)
        density = optimal_density(double_well_reward, 1e-4, grid)
        assert np.isfinite(density).all()
        assert np.trapezoid(density[grid > 0], grid[grid > 0]) == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"temperature": 0.0}, "temperature must be a positive finite number, got 0"),
            ({"temperature": math.nan}, "temperature must be a positive finite number, got nan"),
            ({"measure": "chain"}, "measure must be 'action' or 'latent', got 'chain'"),
            ({"measure": "latent"}, r"grid must be in \(-1, 1\) for measure='latent'"),
            ({"grid": [-1.5, 0.0]}, r"grid must be in \[-1, 1\] for measure='action'"),
            ({"grid": [0.5, 0.0]}, "grid must be one-dimensional, with increasing"),
            ({"grid": [[0.0, 0.5]]}, "grid must be one-dimensional"),
            ({"grid": [0.0]}, "grid must be one-dimensional"),
        ],
    )
    def test_bad_input(self, change: dict[str, object], message: str) -> None:
        arguments = {"temperature": 1.0, "grid": [-1.0, 0.0, 1.0], "measure": "action", **change}
        with pytest.raises(ValueError, match=message):
            optimal_density(double_well_reward, **arguments)


class TestRegistration:
    def test_importing_registers_and_again_does_no_harm(self) -> None:
        before = {name: gym.spec(name) for name in TASKS}
        register_tasks()  # Gymnasium would warn of an id that is registered anew
        assert {name: gym.spec(name) for name in TASKS} == before

    @pytest.mark.parametrize("name", TASKS)
    def test_gymnasium_and_torchrl_agree_with_the_specs(self, name: str) -> None:
        check_env(gym.make(name).unwrapped)
        env = make_env(name, num_envs=2, seed=0)
        check_env_specs(env, seed=None)
        assert env.action_spec.space.low.unique().tolist() == [-1.0]
        assert env.action_spec.space.high.unique().tolist() == [1.0]

    @pytest.mark.parametrize("name", TASKS)
    def test_the_seed_decides_the_episode(self, name: str) -> None:
        def rewards(seed: int) -> torch.Tensor:
            torch.manual_seed(seed)
            rollout = make_env(name, num_envs=8, seed=seed).rollout(3)
            return torch.cat(
                (rollout["observation"].flatten(), rollout["next", "reward"].flatten())
            )

        assert torch.equal(rewards(3), rewards(3))
        assert not torch.equal(rewards(3), rewards(4))


class TestTurning:
    @pytest.mark.parametrize(("name", "wells", "arguments"), TURNING)
    def test_headings_turn_by_the_angle_of_the_nearest_maximum(
        self, name: str, wells: int, arguments: dict[str, int]
    ) -> None:
        env = gym.make(name, **arguments)
        observation, _ = env.reset(seed=1)
        angle = math.atan2(observation[1], observation[0])
        maxima = well_maxima(wells)
        rng = np.random.default_rng(2)
        for action in np.float32(rng.uniform(-1, 1, 40)):
            observation, reward, *_ = env.step(np.array([action]))
            angle += maxima[np.abs(maxima - action).argmin()] * math.pi / 2
            np.testing.assert_allclose(observation, [math.cos(angle), math.sin(angle)], atol=1e-6)
            assert reward <= 1

    def test_the_double_well_turns_by_45_degrees_in_the_direction_of_the_sign(self) -> None:
        env = gym.make("TurningDoubleWell-v0").unwrapped
        assert isinstance(env, ActionModesEnv)
        headings = env.task.observations
        before, _ = env.reset(seed=0)
        start = np.abs(headings - before).sum(-1).argmin()
        for action, turn in ((0.01, 1), (-0.9, 0), (-0.2, -1)):
            after = env.step(np.float32([action]))[0]
            np.testing.assert_allclose(after, headings[(start + turn) % 8], atol=1e-6)

    def test_all_headings_are_starts(self) -> None:
        env = make_env("TurningDoubleWell-v0", num_envs=200, seed=0)
        rows, counts = env.reset()["observation"].unique(dim=0, return_counts=True)
        assert len(rows) == 8
        assert counts.min() > 10

    @pytest.mark.parametrize(("name", "wells", "arguments"), TURNING)
    def test_the_optimal_return_is_100_whichever_maxima_are_chosen(
        self, name: str, wells: int, arguments: dict[str, int]
    ) -> None:
        env = make_env(name, seed=0, **arguments)
        choices = iter(np.random.default_rng(0).choice(well_maxima(wells), 200))

        def act(tensordict):
            return tensordict.set("action", torch.tensor([[next(choices)]], dtype=torch.float32))

        rollout = env.rollout(200, act)
        assert rollout.shape == (1, 100)
        assert rollout["next", "truncated"].sum() == 1
        assert not rollout["next", "terminated"].any()
        assert rollout["next", "episode_reward"][0, -1].item() == pytest.approx(100, abs=1e-3)

    def test_too_few_wells(self) -> None:
        with pytest.raises(ValueError, match="wells must be an integer of at least 2, got 1"):
            TurningMultiWellEnv(1)


def test_the_bandit_ends_after_one_step() -> None:
    rollout = make_env("GMMBandit-v0", num_envs=3, seed=0).rollout(2, break_when_any_done=False)
    assert rollout["next", "terminated"].all()
    assert not rollout["next", "truncated"].any()
    expected = gmm_reward(rollout["action"].squeeze(-1).numpy())
    np.testing.assert_allclose(rollout["next", "reward"].squeeze(-1), expected, rtol=1e-4)


class TestMultiGoal:
    def walk(self, direction: list[float]) -> dict[str, torch.Tensor]:
        def act(tensordict):
            return tensordict.set("action", torch.tensor([direction]))

        return make_env("MultiGoal-v0", seed=0).rollout(100, act)

    @pytest.mark.parametrize("goal", range(4))
    def test_reaching_a_goal_ends_the_episode(self, goal: int) -> None:
        rollout = self.walk((GOALS[goal] * 0.1).tolist())
        assert rollout["next", "terminated"].flatten().nonzero().tolist() == [
            [rollout.shape[1] - 1]
        ]
        distances = np.linalg.norm(rollout["next", "observation"][0].numpy() - GOALS[goal], axis=-1)
        assert distances[-1] <= 1 < distances[:-1].min()
        expected = -distances - 30 * 0.25
        expected[-1] += 10
        np.testing.assert_allclose(rollout["next", "reward"][0, :, 0], expected, rtol=1e-4)

    def test_other_episodes_are_cut_off_after_50_steps(self) -> None:
        rollout = self.walk([0.3, 0.3])
        assert rollout.shape == (1, 50)
        assert rollout["next", "truncated"][0, -1].item()
        assert not rollout["next", "terminated"].any()
        assert rollout["next", "observation"].max() == 7  # the wall

    def test_starts_are_near_the_origin(self) -> None:
        starts = make_env("MultiGoal-v0", num_envs=400, seed=0).reset()["observation"]
        assert starts.std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.1)
        assert starts.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.02)

    def test_starts_anywhere_fill_the_square(self) -> None:
        starts = make_env("MultiGoalAnywhere-v0", num_envs=400, seed=0).reset()["observation"]
        # The standard deviation of a uniform distribution on [-7, 7].
        assert starts.std(0).tolist() == pytest.approx([4.04, 4.04], rel=0.1)
        assert starts.abs().max() <= 7

    def test_the_action_cost_is_an_argument(self) -> None:
        env = make_env("MultiGoal-v0", seed=0, action_cost=0.0)
        reward = env.rollout(1)["next"]
        distance = np.linalg.norm(reward["observation"][0].numpy() - GOALS, axis=-1).min()
        assert reward["reward"].item() == pytest.approx(-distance, rel=1e-5)

    @pytest.mark.parametrize("cost", [-1.0, math.inf, math.nan])
    def test_costs_that_are_none(self, cost: float) -> None:
        with pytest.raises(ValueError, match="action_cost must be a finite number >= 0"):
            MultiGoalEnv(action_cost=cost)
