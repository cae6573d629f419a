"""The off-policy Lightning module with DIME: cadence, replay, ranks, resume, failures."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from collectors import make_replay_buffer
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers import (
    METHODS,
    DIMEConfig,
    OffPolicyModule,
    OffPolicyParts,
    TrainingError,
    prepare,
    train,
)
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.loops.optimizer import treat_gradients
from objectives import DIMELoss

DIME = Callable[..., DIMEConfig]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]
Register = Callable[[type[gym.Env[Any, Any]]], str]
CPU = torch.device("cpu")


@pytest.fixture
def dime(tmp_path: Path) -> DIME:
    """Configurations of small runs: 20 random steps, then iterations of 10."""
    small: dict[str, Any] = {
        "env": "Pendulum-v1",
        "num_envs": 2,
        "learning_starts": 20,
        "iteration_frames": 10,
        "total_frames": 40,
        "batch_size": 16,
        "policy_delay": 2,
        "denoising_steps": 2,
        "actor_hidden_sizes": (8,),
        "critic_hidden_sizes": (8,),
        "max_episode_steps": 10,
        "eval_episodes": 2,
        "eval_every": 10_000,
        "replay_size": 1000,
        "logger": ("csv",),
    }

    def build(**options: Any) -> DIMEConfig:
        return DIMEConfig(**{**small, "output": str(tmp_path / "run"), **options})

    return build


def flat(parameters: Any) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in parameters])


def parts_of(loss: Any) -> dict[str, Tensor]:
    names = ("actor_network_params", "qvalue_network_params", "temperature")
    return {name: flat(loss.get_submodule(name).parameters()) for name in names}


class Probe(OffPolicyModule):
    """Notes after each update which parts of the loss it has moved, and the batches."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.moved: list[set[str]] = []
        self.batches: list[TensorDictBase] = []

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        before = parts_of(self.loss)
        super().training_step(batch, batch_idx)
        after = parts_of(self.loss)
        self.moved.append({name for name in before if not torch.equal(before[name], after[name])})
        self.batches.append(batch)

    def on_train_end(self) -> None:
        assert self.config.output is not None
        state = {k: v for k, v in self.state_dict().items() if v.is_floating_point()}
        content = {
            "state": flat(state[name] for name in sorted(state)),
            "rewards": self.stream.buffer[:]["next", "reward"].clone(),
            "atoms": self.loss.value_support.atoms.clone(),
            "frames": self.progress.frames,
            "gradient_steps": self.progress.gradient_steps,
        }
        torch.save(content, f"{self.config.output}/rank{self.global_rank}.pt")


def probe(config: DIMEConfig, device: torch.device) -> Probe:
    return Probe(config, METHODS["dime"].build, device)


def trained(config: DIMEConfig) -> Probe:
    run = prepare(config, probe)
    assert train(run)
    assert isinstance(run.module, Probe)
    return run.module


def test_the_policy_moves_at_every_third_update_only(dime: DIME) -> None:
    module = trained(dime(updates_per_step=0.6, policy_delay=3, total_frames=30))
    policy = {"actor_network_params", "temperature"}
    expected = [set(), set(), policy, set(), set(), policy]
    assert [moved - {"qvalue_network_params"} for moved in module.moved] == expected
    assert all("qvalue_network_params" in moved for moved in module.moved)


def test_the_policy_follows_critics_that_have_moved_or_not(
    dime: DIME, read_run: ReadRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor_loss, seen_by_policy = DIMELoss.actor_loss, []

    def noted(loss: Any, rows: TensorDictBase, **options: Any) -> Any:
        seen_by_policy.append(flat(loss.qvalue_network_params.parameters()))
        return actor_loss(loss, rows, **options)

    monkeypatch.setattr(DIMELoss, "actor_loss", noted)
    columns, critics = {}, {}
    for order in ("joint", "critic_first"):
        config = dime(update_order=order, policy_delay=1, updates_per_step=0.1, total_frames=30)
        run = prepare(dataclasses.replace(config, output=f"{config.output}-{order}"))
        before = flat(run.module.loss.qvalue_network_params.parameters())
        assert train(run)
        assert run.module.progress.gradient_steps == 1
        after = flat(run.module.loss.qvalue_network_params.parameters())
        columns[order] = set(read_run(run.output)[1][0])
        critics[order] = (before, seen_by_policy.pop(), after)
    assert seen_by_policy == []
    before, seen, after = critics["joint"]
    assert torch.equal(seen, before)
    assert not torch.equal(after, before)
    before_again, seen, after_again = critics["critic_first"]
    # The critics' own update does not depend on the order.
    assert torch.equal(before_again, before)
    assert torch.equal(after_again, after)
    assert torch.equal(seen, after)
    assert columns["joint"] == columns["critic_first"]


def test_the_cadence_continues_over_iterations_and_resumed_runs(dime: DIME) -> None:
    first = dime(updates_per_step=0.5, policy_delay=3, checkpoint_replay="never")
    module = trained(first)
    assert ["temperature" in moved for moved in module.moved] == [False, False, True] * 3 + [False]
    last = f"{first.output}/checkpoints/last.ckpt"
    # Filling the buffer again takes 20 steps, then come two iterations.
    module = trained(dataclasses.replace(first, resume=last, total_frames=80))
    assert ["temperature" in moved for moved in module.moved] == [False, True, False] * 3 + [False]
    assert module.progress.frames == 80
    assert module.progress.gradient_steps == 20


def test_learning_rates_of_a_resumed_run_are_its_own(dime: DIME) -> None:
    first = dime()
    trained(first)
    last = f"{first.output}/checkpoints/last.ckpt"
    changed = dataclasses.replace(
        first, resume=last, total_frames=70, lr_actor=0.5, lr_temperature=0.25, adam_beta1=0.75
    )
    module = trained(changed)
    found = [optimizer.param_groups[0] for optimizer in module.optimizers()]
    assert [group["lr"] for group in found] == [1e-3, 0.5, 0.25]
    assert [group["betas"][0] for group in found] == [0.75, 0.75, 0.9]
    assert module.progress.frames == 70


@pytest.mark.parametrize(
    "change",
    [
        {"value_range": (-1.0, 1.0)},
        {"gamma": 0.5},
        {"temperature": 0.1},
    ],
)
def test_what_the_trained_networks_hold_cannot_change(dime: DIME, change: dict[str, Any]) -> None:
    first = dime()
    trained(first)
    last = f"{first.output}/checkpoints/last.ckpt"
    flag = "--" + next(iter(change)).replace("_", "-")
    with pytest.raises(ValueError, match=f"{flag} .*cannot change to"):
        prepare(dataclasses.replace(first, resume=last, total_frames=70, **change))


def test_a_resumed_run_needs_steps_for_its_replay_buffer(dime: DIME) -> None:
    first = dime(checkpoint_replay="never")
    trained(first)
    last = f"{first.output}/checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=r"greater than 60, 40 that .* and 20 to fill the replay"):
        prepare(dataclasses.replace(first, resume=last, total_frames=60))


def test_presets_are_a_start_for_other_options() -> None:
    paper = DIMEConfig.from_preset("paper", batch_size=64)
    assert (paper.preset, paper.denoising_steps, paper.batch_size) == ("paper", 16, 64)
    assert paper.critic_hidden_sizes == (2048, 2048)
    with pytest.raises(ValueError, match="preset must be one of cpu, paper, got 'gpu'"):
        DIMEConfig.from_preset("gpu")


def test_replay_files_of_all_ranks_are_removed(
    dime: DIME, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    run = prepare(dime(replay_storage="disk", cpu_ranks=2, total_frames=80))
    assert train(run)
    assert list(folder.glob("replay-buffer-*")) == []


@pytest.mark.parametrize(("ratio", "updates"), [(2.0, 40), (1.0, 20), (0.5, 10), (0.1, 2)])
def test_updates_per_step_may_be_a_fraction(
    dime: DIME, read_run: ReadRun, ratio: float, updates: int
) -> None:
    config = dime(updates_per_step=ratio)
    trained(config)
    results, rows = read_run(Path(str(config.output)))
    assert results["gradient_steps"] == updates
    assert results["env_steps"] == 40
    assert [int(row["frames"]) for row in rows] == [30, 40]
    assert [float(row["replay_ratio"]) for row in rows] == pytest.approx(
        [updates / 2 / 30, updates / 40]
    )


def test_metrics_of_an_iteration(dime: DIME, read_run: ReadRun) -> None:
    config = dime()
    trained(config)
    _, rows = read_run(Path(str(config.output)))
    expected = {
        *("frames", "gradient_steps", "updates"),
        *("episodes", "episode_return", "episode_length", "replay_ratio", "replay_size"),
        *("loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy_bound"),
        *("entropy", "q_value", "target_value", "td_error"),
        *("value_clip_fraction", "critic_entropy", "grad_norm_critic", "grad_norm_actor"),
        *("grad_nans_actor", "step_size_mean", "friction", "eval_return_mean"),
    }
    assert expected <= rows[0].keys()
    assert [row["replay_size"] for row in rows] == ["30", "40"]
    # Two environments with episodes of ten steps; ten random steps each are one episode.
    assert [row["episodes"] for row in rows] == ["0.0", "2.0"]
    assert float(rows[1]["episode_return"]) < 0
    assert all(rows[1].values())


def test_the_replay_buffer_begins_with_uniform_actions(dime: DIME) -> None:
    module = trained(dime(learning_starts=2000, total_frames=2010, replay_size=5000))
    rows = module.stream.buffer[:2000]
    action = rows["action"].flatten()
    assert float(action.min()) == pytest.approx(-2, abs=0.02)
    assert float(action.max()) == pytest.approx(2, abs=0.02)
    assert float(action.std()) == pytest.approx(4 / 12**0.5, rel=0.05)
    assert set(rows.keys(True, True)) == {"index", *module.loss.in_keys}
    # The time limit ends episodes, but is not terminal.
    assert not bool(rows["next", "terminated"].any())


def test_two_ranks_hold_the_same_networks_and_different_data(dime: DIME, read_run: ReadRun) -> None:
    config = dime(cpu_ranks=2, total_frames=80, lr_actor=0.01)
    run = prepare(config, probe)
    before = flat(run.module.parameters())
    assert train(run)
    first, second = (torch.load(run.output / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(first["state"], second["state"])
    assert torch.equal(first["atoms"], second["atoms"])
    assert not torch.equal(first["rewards"], second["rewards"])
    assert first["frames"] == second["frames"] == 80
    assert first["gradient_steps"] == second["gradient_steps"] == 20
    assert not torch.equal(flat(run.module.parameters()), before)
    _, rows = read_run(run.output)
    assert [row["replay_size"] for row in rows] == ["60", "80"]
    assert [float(row["replay_ratio"]) for row in rows] == pytest.approx([10 / 30, 20 / 40])


def test_the_same_seed_gives_the_same_run_whether_or_not_it_is_evaluated(
    dime: DIME, tmp_path: Path
) -> None:
    parameters = []
    for index, (seed, eval_every) in enumerate([(3, 10), (3, 10_000), (4, 10_000)]):
        output = str(tmp_path / str(index))
        module = trained(dime(seed=seed, eval_every=eval_every, output=output))
        parameters.append(flat(module.parameters()))
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])


def test_gradients_are_freed_of_nan_and_clipped_by_entry() -> None:
    grad = torch.tensor([10.0, 0.5, -3.0, float("nan"), float("inf"), -float("inf")])
    treat_gradients([grad], 1.0)
    assert grad.tolist() == [1.0, 0.5, -1.0, 0.0, 1.0, -1.0]


def broken(change: Callable[[int, dict[str, Tensor]], dict[str, Tensor]]) -> Any:
    """Parts of DIME whose n-th update (from 1) is changed."""

    def build(env: EnvBase, config: Any, device: torch.device) -> OffPolicyParts:
        parts = METHODS["dime"].build(env, config, device)
        calls: list[int] = []

        def update(batch: TensorDictBase, policy_moves: bool) -> dict[str, Tensor]:
            calls.append(1)
            return change(len(calls), dict(parts.update(batch, policy_moves)))

        return dataclasses.replace(parts, update=update)

    return lambda config, device: OffPolicyModule(config, build, device)


def test_nan_in_the_gradient_of_the_policy_is_counted_and_ignored(
    dime: DIME, read_run: ReadRun
) -> None:
    def nan_gradient(call: int, out: dict[str, Tensor]) -> dict[str, Tensor]:
        if "loss_actor" in out and call > 4:
            # Zero times infinity is NaN in the gradient; the value stays as it was.
            out["loss_actor"].register_hook(lambda grad: grad * float("nan"))
        return out

    run = prepare(dime(), broken(nan_gradient))
    assert train(run)
    assert bool(flat(run.module.parameters()).isfinite().all())
    _, rows = read_run(run.output)
    count = sum(p.numel() for p in run.module.actor.parameters())
    # Updates 2 and 4 of the first five policy updates were good.
    assert float(rows[0]["grad_nans_actor"]) == pytest.approx(3 / 5 * count)
    assert float(rows[1]["grad_nans_actor"]) == count


@pytest.mark.parametrize("cpu_ranks", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    dime: DIME, cpu_ranks: int
) -> None:
    def nan_loss(call: int, out: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**out, "loss_qvalue": out["loss_qvalue"] * (float("nan") if call > 15 else 1.0)}

    config = dime(cpu_ranks=cpu_ranks, total_frames=40 * cpu_ranks, checkpoint_every=1)
    run = prepare(config, broken(nan_loss))
    with pytest.raises(TrainingError, match="loss_qvalue is nan") as raised:
        train(run)
    last = run.output / "checkpoints" / "last.ckpt"
    assert str(last) in str(raised.value)
    assert Checkpoint.read(last).state["frames"] == 30 * cpu_ranks
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(bool(v.isfinite().all()) for v in state.values())


def test_a_gradient_that_is_not_finite_gets_into_no_checkpoint(dime: DIME) -> None:
    def nan_gradient(call: int, out: dict[str, Tensor]) -> dict[str, Tensor]:
        if call == 20:  # the last one of an iteration: no loss is computed after it
            out["loss_qvalue"].register_hook(lambda grad: grad * float("nan"))
        return out

    run = prepare(dime(total_frames=60, checkpoint_every=1), broken(nan_gradient))
    with pytest.raises(TrainingError, match="grad_norm_critic is nan"):
        train(run)
    last = run.output / "checkpoints" / "last.ckpt"
    assert Checkpoint.read(last).state["frames"] == 30
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(bool(v.isfinite().all()) for v in state.values())


class NoReward(gym.Env[Any, Any]):
    """Nothing is ever rewarded; the observation can be made NaN."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    observation = 0.0
    steps_until_nan = 10**9

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        NoReward.steps_until_nan -= 1
        value = np.nan if NoReward.steps_until_nan < 0 else 0.0
        return np.full(2, value, np.float32), 0.0, False, self.steps == 10, {}


def test_an_observation_that_is_not_finite_stops_the_run(
    dime: DIME, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first evaluation takes 20 steps; one in the random steps, one in an iteration.
    for good in (25, 45):
        monkeypatch.setattr(NoReward, "steps_until_nan", good)
        name = "NoReward-v0" if good > 25 else register(NoReward)
        output = f"{dime().output}{good}"
        run = prepare(dime(env=name, value_range=(-1.0, 1.0), output=output))
        with pytest.raises(TrainingError, match=r"observation.* is not finite.*last good"):
            train(run)


class TwoSensors(NoReward):
    """Observes a dictionary of vectors."""

    observation_space = gym.spaces.Dict(
        {name: gym.spaces.Box(-1.0, 1.0, (size,)) for name, size in {"eye": 2, "ear": 3}.items()}
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        _, _, terminated, truncated, info = super().step(action)
        return self.observe(), -float(action[0] ** 2), terminated, truncated, info

    def observe(self) -> dict[str, np.ndarray]:
        return {"eye": np.zeros(2, np.float32), "ear": np.ones(3, np.float32)}


def test_entries_of_a_dictionary_are_observed_and_replayed(dime: DIME, register: Register) -> None:
    module = trained(dime(env=register(TwoSensors)))
    assert sorted(module.actor.in_keys) == [("observation", "ear"), ("observation", "eye")]
    rows = module.stream.buffer[:]
    assert bool((rows["next", "observation", "ear"] == 1).all())
    assert rows["observation", "eye"].shape == (40, 2)
    only = dime(env="TwoSensors-v0", observation_keys=("ear",), output=f"{dime().output}-ear")
    assert trained(only).actor.in_keys == [("observation", "ear")]


def test_the_value_range_is_given_or_that_of_normalised_rewards(dime: DIME, tmp_path: Path) -> None:
    given, default = (
        prepare(dime(output=str(tmp_path / name), **options)).module.loss.value_support.atoms
        for name, options in (("given", {"value_range": (-7.0, 3.0)}), ("default", {}))
    )
    assert (float(given[0]), float(given[-1])) == (-7.0, 3.0)
    assert (float(default[0]), float(default[-1])) == (-10.0, 10.0)
    with pytest.raises(ValueError, match=r"--no-normalize-rewards needs --value-range MIN MAX"):
        prepare(dime(normalize_rewards=False, output=str(tmp_path / "raw")))


class TargetProbe(OffPolicyModule):
    """Notes after each update how far the targets have moved from where they were."""

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        loss = self.loss
        before = flat(loss.target_qvalue_network_params.values(True, True))
        super().training_step(batch, batch_idx)
        target, current = (
            flat(params.values(True, True))
            for params in (loss.target_qvalue_network_params, loss.qvalue_network_params)
        )
        torch.testing.assert_close(target, 0.75 * before + 0.25 * current, rtol=1e-5, atol=1e-7)
        assert not torch.equal(target, before)


def test_target_networks_follow_at_every_update(dime: DIME) -> None:
    config = dime(
        critic_head="scalar",
        critic_normalization="layer",
        critic_reduction="min",
        delay_critic=True,
        tau=0.25,
    )
    run = prepare(config, lambda c, device: TargetProbe(c, METHODS["dime"].build, device))
    assert train(run)
    assert run.module.progress.gradient_steps == 20


def test_a_fixed_temperature_is_not_trained(dime: DIME, read_run: ReadRun) -> None:
    run = prepare(dime(learn_temperature=False, temperature=0.3))
    assert train(run)
    assert len(run.module.configure_optimizers()) == 2
    _, rows = read_run(run.output)
    assert "loss_alpha" not in rows[0]
    assert float(rows[-1]["alpha"]) == pytest.approx(0.3)


def test_every_parameter_has_one_optimiser(dime: DIME) -> None:
    rates = {"lr_critic": 2e-3, "lr_actor": 3e-3, "lr_temperature": 4e-3}
    module = METHODS["dime"].module(dime(**rates), CPU)
    optimizers = module.configure_optimizers()
    moved = [p.data_ptr() for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(moved) == sorted(p.data_ptr() for p in module.loss.parameters())
    assert [o.param_groups[0]["betas"] for o in optimizers] == [
        *[(0.5, 0.999)] * 2,
        (0.9, 0.999),
    ]
    assert [o.param_groups[0]["lr"] for o in optimizers] == [2e-3, 3e-3, 4e-3]


def test_replay_on_disk(dime: DIME) -> None:
    module = trained(dime(replay_storage="disk"))
    assert len(module.stream.buffer) == 40


def test_the_oldest_transitions_make_room(dime: DIME, read_run: ReadRun) -> None:
    config = dime(replay_size=25)
    trained(config)
    _, rows = read_run(Path(str(config.output)))
    assert [row["replay_size"] for row in rows] == ["25", "25"]


def test_prioritised_replay_runs_or_says_why_not(dime: DIME) -> None:
    try:
        make_replay_buffer(1, batch_size=1, seed=0, prioritized=True)
    except ValueError:
        with pytest.raises(
            ArgumentError, match=r"prioritized=True needs .*does not load.* leave it out"
        ):
            prepare(dime(prioritized_replay=True))
    else:
        assert train(prepare(dime(prioritized_replay=True)))
