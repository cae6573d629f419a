"""The on-policy Lightning module: training, several ranks, early stop, failures."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchrl.envs import EnvBase

from collectors import make_env
from diffpolicy.trainers import (
    METHODS,
    DiffPPOConfig,
    DiffWPOConfig,
    GaussianPPOConfig,
    GaussianWPOConfig,
    OnPolicyModule,
    OnPolicyParts,
    TrainingError,
    prepare,
    train,
)
from diffpolicy.trainers.io.checkpoint import Checkpoint

SmallConfig = Callable[..., DiffPPOConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]
CPU = torch.device("cpu")


def flat_parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in module.parameters()])


def checkpoint_parameters(path: Path) -> torch.Tensor:
    state = torch.load(path, weights_only=True)["state_dict"]
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


class ProbedModule(OnPolicyModule):
    """Saves what each rank has at the end of training."""

    def on_train_end(self) -> None:
        rollout = self.stream.last_rollout
        assert rollout is not None
        assert self.parts.normalizer is not None
        assert self.config.output is not None
        content = {
            "parameters": flat_parameters(self.loss),
            "statistics": self.parts.normalizer.mean.clone(),
            "count": self.parts.normalizer.count.clone(),
            "observations": rollout["observation"].clone(),
            "frames": self.progress.frames,
            "gradient_steps": self.progress.gradient_steps,
        }
        torch.save(content, f"{self.config.output}/rank{self.global_rank}.pt")


@pytest.mark.parametrize("target_kl", [None, 1e-6])
def test_two_ranks_train_the_same_networks_on_different_data(
    small_config: SmallConfig, read_run: ReadRun, target_kl: float | None
) -> None:
    config = small_config(cpu_ranks=2, total_frames=500, target_kl=target_kl, lr=0.01)
    run = prepare(config, lambda c, device: ProbedModule(c, METHODS["diffppo"].build, device))
    before = flat_parameters(run.module)
    assert train(run)
    first, second = (torch.load(run.output / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(first["parameters"], second["parameters"])
    assert not torch.equal(first["parameters"], before)
    assert torch.equal(first["statistics"], second["statistics"])
    assert not torch.equal(first["observations"], second["observations"])
    # Two iterations of 4 environments x 32 steps on each of two ranks.
    assert first["frames"] == second["frames"] == 512
    assert first["count"] == 512
    assert first["gradient_steps"] == second["gradient_steps"]
    # Two epochs of two minibatches each, or one step and then the limit.
    assert first["gradient_steps"] == (2 * 2 * 2 if target_kl is None else 2)
    results, rows = read_run(run.output)
    assert results["env_steps"] == 512
    assert [int(row["frames"]) for row in rows] == [256, 512]
    # The parent process has the trained networks, too.
    assert torch.equal(flat_parameters(run.module), first["parameters"])


@pytest.mark.parametrize(
    ("config_class", "parts"),
    [(DiffWPOConfig, METHODS["diffwpo"].build), (GaussianWPOConfig, METHODS["gaussian_wpo"].build)],
)
def test_wpo_trains_the_same_networks_on_two_ranks(
    small_config: SmallConfig, config_class: type[Any], parts: Any
) -> None:
    names = ("num_envs", "rollout_steps", "epochs", "minibatch_size", "eval_episodes", "output")
    shape = {name: getattr(small_config(), name) for name in names}
    config = config_class(
        **shape, cpu_ranks=2, total_frames=500, actor_hidden_sizes=(16,), logger=("csv",)
    )
    run = prepare(config, lambda c, device: ProbedModule(c, parts, device))
    before = dict(run.module.loss.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in before.items()}
    assert train(run)
    first, second = (torch.load(run.output / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(first["parameters"], second["parameters"])
    assert not torch.equal(first["observations"], second["observations"])
    # Gradients of every part were exchanged: all of them have moved, on both ranks alike.
    still = [
        name
        for name, parameter in run.module.loss.named_parameters()
        if torch.equal(parameter, before[name]) and parameter.requires_grad
    ]
    assert still == []


def test_a_kl_limit_ends_the_updates_of_an_iteration(
    small_config: SmallConfig, read_run: ReadRun
) -> None:
    run = prepare(small_config(target_kl=1e-6, lr=0.01, epochs=3))
    train(run)
    results, rows = read_run(run.output)
    # The first step starts at zero divergence, the second one beyond the limit.
    assert [row["updates"] for row in rows] == ["1", "1"]
    assert results["gradient_steps"] == 2


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    small_config: SmallConfig, cpu_ranks: int
) -> None:
    def broken_parts(env: EnvBase, config: Any, device: torch.device) -> OnPolicyParts:
        parts = METHODS["diffppo"].build(env, config, device)
        critic_loss, calls = parts.loss.critic_loss, []

        def broken(rows: Any) -> Any:
            calls.append(rows)
            value, diagnostics = critic_loss(rows)
            return (value + float("nan") if len(calls) > 5 else value), diagnostics

        parts.loss.critic_loss = broken
        return parts

    config = small_config(cpu_ranks=cpu_ranks, total_frames=4096, checkpoint_every=1)
    run = prepare(config, lambda c, device: OnPolicyModule(c, broken_parts, device))
    with pytest.raises(TrainingError, match="loss_critic is nan after") as raised:
        train(run)
    last = run.output / "checkpoints" / "last.ckpt"
    assert str(last) in str(raised.value)
    assert "\n" not in str(raised.value)
    # Five updates were good: one iteration of four and one of the next.
    assert Checkpoint.read(last).state["frames"] == 128 * cpu_ranks
    assert bool(checkpoint_parameters(last).isfinite().all())


class BrokenSensor(gym.Env[Any, Any]):
    """All copies together take 60 good steps; then the observation is NaN."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    total_steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        BrokenSensor.total_steps += 1
        value = np.nan if BrokenSensor.total_steps > 60 else 0.0
        return np.full(2, value, np.float32), 0.0, False, self.steps == 10, {}


def test_an_observation_that_is_not_finite_stops_the_run(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrokenSensor, "total_steps", 0)
    gym.register("BrokenSensor-v0", BrokenSensor, disable_env_checker=True)
    try:
        # The first evaluation takes 20 steps, the first rollout 128.
        run = prepare(small_config(env="BrokenSensor-v0"))
        with pytest.raises(TrainingError, match=r"observation.* is not finite.*last good"):
            train(run)
    finally:
        del gym.registry["BrokenSensor-v0"]
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").state["frames"] == 0


def test_a_programming_error_keeps_its_traceback(small_config: SmallConfig) -> None:
    def broken_parts(env: EnvBase, config: Any, device: torch.device) -> OnPolicyParts:
        parts = METHODS["diffppo"].build(env, config, device)
        return dataclasses.replace(parts, prepare=lambda rollout: int("no number"))

    run = prepare(small_config(), lambda c, device: OnPolicyModule(c, broken_parts, device))
    with pytest.raises(ValueError, match="invalid literal"):
        train(run)


class BrokenReward(BrokenSensor):
    """Every reward is NaN."""

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), np.nan, False, self.steps == 10, {}


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_an_evaluation_that_is_not_finite_stops_the_run_on_all_ranks(
    small_config: SmallConfig, cpu_ranks: int
) -> None:
    gym.register("BrokenReward-v0", BrokenReward, disable_env_checker=True)
    try:
        run = prepare(small_config(env="BrokenReward-v0", cpu_ranks=cpu_ranks))
        with pytest.raises(TrainingError, match=r"evaluation after 0 .* --env BrokenReward-v0"):
            train(run)
    finally:
        del gym.registry["BrokenReward-v0"]
    assert not (run.output / "results.json").exists()
    assert Checkpoint.read(run.output / "checkpoints" / "last.ckpt").state["frames"] == 0


def test_a_rank_of_another_launcher_is_refused(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"LOCAL_RANK=1 .*torchrun.*--gpus"):
        prepare(small_config())


def test_the_same_seed_gives_the_same_run_whether_or_not_it_is_evaluated(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    parameters = []
    for index, (seed, eval_every) in enumerate([(3, 128), (3, 10_000), (4, 10_000)]):
        config = small_config(
            seed=seed,
            eval_every=eval_every,
            eval_policy="stochastic",
            output=str(tmp_path / f"{index}"),
        )
        run = prepare(config)
        train(run)
        parameters.append(flat_parameters(run.module))
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])


def test_gaussian_ppo_runs_in_the_same_module(small_config: SmallConfig, read_run: ReadRun) -> None:
    options = dataclasses.asdict(small_config(minibatch_size=32, target_kl=10.0))
    names = {field.name for field in dataclasses.fields(GaussianPPOConfig)}
    config = GaussianPPOConfig(**{k: v for k, v in options.items() if k in names})
    run = prepare(config)
    before = flat_parameters(run.module)
    assert train(run)
    results, rows = read_run(run.output)
    assert results["method"] == "gaussian_ppo"
    assert results["gradient_steps"] == 2 * 2 * 4
    assert {"loss_objective", "loss_critic", "kl_approx", "explained_variance"} <= rows[0].keys()
    assert not torch.equal(flat_parameters(run.module), before)


def test_process_parameters_have_their_own_learning_rate(
    small_config: SmallConfig, read_run: ReadRun
) -> None:
    config = small_config(lr_process=0.0, lr_schedule="linear", total_frames=512)
    run = prepare(config)
    process = run.module.actor.process
    before, weights = process.step_sizes().detach().clone(), flat_parameters(run.module)
    train(run)
    assert torch.equal(process.step_sizes(), before)
    assert not torch.equal(flat_parameters(run.module), weights)
    _, rows = read_run(run.output)
    rates = [float(row["lr"]) for row in rows]
    assert rates == pytest.approx([config.lr * (1 - done / 4) for done in range(4)])


def test_step_size_and_friction_are_trained_with_a_multiplier(small_config: SmallConfig) -> None:
    run = prepare(small_config())
    process = run.module.actor.process
    before = process.step_sizes().detach().clone()
    train(run)
    assert not torch.equal(process.step_sizes(), before)


def test_observation_statistics_follow_every_rollout_and_are_saved(
    small_config: SmallConfig,
) -> None:
    run = prepare(small_config())
    train(run)
    assert isinstance(run.module, OnPolicyModule)
    assert run.module.parts.normalizer is not None
    assert run.module.parts.normalizer.count == 256
    state = torch.load(run.output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    counts = {name: value for name, value in state.items() if name.endswith("normalizer.count")}
    assert len(counts) == 2, "actor and critic share one normaliser"
    assert set(map(float, counts.values())) == {256.0}


def test_evaluations_happen_at_the_start_when_due_and_at_the_end(
    small_config: SmallConfig, read_run: ReadRun
) -> None:
    run = prepare(small_config(eval_every=200, total_frames=700))
    train(run)
    results, rows = read_run(run.output)
    steps = [evaluation["env_steps"] for evaluation in results["evaluations"]]
    assert steps == [0, 256, 512, 640, 768]
    evaluated = [int(row["frames"]) for row in rows if row["eval_return_mean"]]
    assert evaluated == steps[1:]


def test_building_a_module_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    first = METHODS["diffppo"].module(DiffPPOConfig(seed=1), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = (METHODS["diffppo"].module(DiffPPOConfig(seed=seed), CPU) for seed in (1, 2))
    assert torch.equal(flat_parameters(first), flat_parameters(again))
    assert not torch.equal(flat_parameters(first), flat_parameters(other))


def test_only_the_loss_has_parameters() -> None:
    module = METHODS["diffppo"].module(DiffPPOConfig(), CPU)
    assert [name for name, _ in module.named_children()] == ["loss", "rewards"]
    assert not list(module.rewards.parameters())
    names = [name for name, _ in module.named_parameters()]
    assert len(names) == len(set(names))
    pointers = {p.data_ptr() for p in module.parameters()}
    assert {p.data_ptr() for p in module.actor.parameters()} <= pointers


def test_network_builders_refuse_what_they_cannot_act_on(small_config: SmallConfig) -> None:
    with pytest.raises(ValueError, match="CartPole-v1"):
        prepare(small_config(env="CartPole-v1"))


def test_metadata_names_the_first_difference() -> None:
    metadata = METHODS["diffppo"].module(DiffPPOConfig(prior_std=1.0), CPU).metadata()
    checkpoint = Checkpoint(Path("a.ckpt"), {"diffpolicy": {"metadata": metadata}}, written=0)
    checkpoint.check_fits(metadata)
    shapes = {**metadata["shapes"], "loss.extra": [3]}
    with pytest.raises(ValueError, match=r"loss\.extra is absent there and \[3\] here"):
        checkpoint.check_fits({**metadata, "shapes": shapes})
    options = {**metadata["options"], "--prior-std": 9.0}
    with pytest.raises(ValueError, match=r"--prior-std 1\.0, which cannot change to 9\.0"):
        checkpoint.check_fits({**metadata, "options": options})


def test_a_custom_environment_needs_no_registration_in_the_library(
    small_config: SmallConfig,
) -> None:
    assert make_env("Pendulum-v1").action_spec.shape == (1, 1)
    run = prepare(small_config(env="Pendulum-v1", normalize_rewards=False, reward_scale=0.1))
    assert train(run)
