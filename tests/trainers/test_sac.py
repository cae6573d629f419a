"""SAC and DiffSAC in the off-policy Lightning module."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from diffpolicy.networks import BatchRenorm, QEnsemble
from diffpolicy.networks.q_ensemble import EnsembleLayerNorm
from diffpolicy.trainers import METHODS, DiffSACConfig, Method, OffPolicyModule, prepare, train
from diffpolicy.trainers.methods.soft import TargetUpdate
from diffpolicy.trainers.run.cli import parse_config
from diffpolicy.trainers.run.parser import Parser
from objectives import LearnedTemperature

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "num_envs": 2,
    "learning_starts": 20,
    "iteration_frames": 10,
    "total_frames": 40,
    "batch_size": 16,
    "actor_hidden_sizes": (8,),
    "critic_hidden_sizes": (8,),
    "max_episode_steps": 10,
    "eval_episodes": 2,
    "eval_every": 10_000,
    "replay_size": 1000,
    "logger": ("csv",),
}


class Named(NamedTuple):
    """A method, and what its loss calls its critics and its temperature."""

    name: str
    critic: str
    temperature: str
    options: dict[str, Any]

    @property
    def method(self) -> Method:
        return METHODS[self.name]


SAC = Named("sac", "qvalue_network", "log_alpha", {})
DIFFSAC = Named("diffsac", "qvalue_network", "temperature", {"denoising_steps": 3})
NAMED = {named.name: named for named in (SAC, DIFFSAC)}

Build = Callable[..., Any]
ReadRun = Callable[[Path], tuple[dict[str, Any], list[dict[str, str]]]]


@pytest.fixture(params=NAMED)
def method(request: pytest.FixtureRequest) -> Named:
    return NAMED[request.param]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Configurations of small runs of a method: 20 random steps, then iterations of 10."""

    def make(method: Named, **options: Any) -> Any:
        output = str(tmp_path / "run")
        return method.method.config(**{**SMALL, **method.options, "output": output, **options})

    return make


def flat(part: Any) -> Tensor:
    values = [part] if isinstance(part, Tensor) else part.values(True, True)
    return torch.cat([value.detach().flatten().double() for value in values])


class Probe(OffPolicyModule):
    """Notes what each update has moved, and the batches."""

    def __init__(self, config: Any, method: Named) -> None:
        super().__init__(config, method.method.build, CPU)
        self.method = method
        self.moved: list[set[str]] = []
        self.targets: list[tuple[Tensor, Tensor, Tensor]] = []
        self.batches: list[TensorDictBase] = []

    def parts_now(self) -> dict[str, Tensor]:
        loss, method = self.loss, self.method
        temperature = getattr(loss, method.temperature)
        return {
            "actor": flat(loss.actor_network_params),
            "critic": flat(getattr(loss, f"{method.critic}_params")),
            # Those of DiffSAC's defaults are the critics themselves.
            "target": flat(getattr(loss, f"target_{method.critic}_params")),
            "alpha": flat(getattr(temperature, "log_alpha", temperature)),
        }

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        before = self.parts_now()
        super().training_step(batch, batch_idx)
        after = self.parts_now()
        self.moved.append({name for name in before if not torch.equal(before[name], after[name])})
        self.targets.append((before["target"], after["critic"], after["target"]))
        self.batches.append(batch)

    def on_train_end(self) -> None:
        content = {
            "state": torch.cat(list(self.parts_now().values())),
            "rewards": self.stream.buffer[:]["next", "reward"].clone(),
            "counts": (self.progress.frames, self.progress.gradient_steps),
        }
        torch.save(content, f"{self.config.output}/rank{self.global_rank}.pt")


def trained(config: Any, method: Named) -> Probe:
    run = prepare(config, lambda c, device: Probe(c, method))
    assert train(run)
    assert isinstance(run.module, Probe)
    return run.module


def test_policy_and_temperature_wait_and_targets_follow(method: Named, build: Build) -> None:
    options = {"policy_delay": 3, "updates_per_step": 0.6, "tau": 0.25}
    module = trained(build(method, **options), method)
    moving, waiting = {"actor", "critic", "target", "alpha"}, {"critic", "target"}
    assert module.moved == [waiting, waiting, moving] * 4
    for before, critic, after in module.targets:
        torch.testing.assert_close(after, 0.75 * before + 0.25 * critic, rtol=1e-5, atol=1e-7)


def test_metrics_of_an_iteration(method: Named, build: Build, read_run: ReadRun) -> None:
    config = build(method)
    trained(config, method)
    results, rows = read_run(Path(config.output))
    assert results["method"] == method.name
    assert (results["env_steps"], results["gradient_steps"]) == (40, 20)
    expected = {
        *("frames", "gradient_steps", "episode_return", "replay_ratio", "replay_size"),
        *("loss_qvalue", "loss_actor", "loss_alpha", "alpha", "entropy", "td_error"),
        *("grad_norm_critic", "grad_norm_actor", "grad_norm_alpha", "eval_return_mean"),
    }
    if config.method == "diffsac":
        expected |= {
            "q_value",
            "target_value",
            "entropy",
            "entropy_bound",
            "step_size_mean",
            "friction",
        }
    else:
        expected |= {"entropy"}
    assert expected <= rows[0].keys()
    assert [int(row["frames"]) for row in rows] == [30, 40]
    assert all(rows[1].values())
    assert float(rows[1]["alpha"]) < 1


def test_updates_without_the_policy_compute_the_critics_loss_alone(
    method: Named, build: Build, read_run: ReadRun
) -> None:
    config = build(method, policy_delay=1000)
    module = trained(config, method)
    _, rows = read_run(Path(config.output))
    absent = {"loss_actor", "loss_alpha", "alpha", "grad_norm_actor"}
    assert not absent & rows[0].keys()
    batch = module.stream.buffer.sample()
    losses = []
    for policy_moves in (False, True):
        torch.manual_seed(0)
        losses.append(module.parts.update(batch, policy_moves)["loss_qvalue"])
    assert torch.equal(*losses)


def test_batches_hold_what_the_loss_reads_and_its_priorities(method: Named, build: Build) -> None:
    module = trained(build(method, policy_delay=2), method)
    expected = {"index", "td_error", *module.loss.in_keys}
    for batch in module.batches:
        assert set(batch.keys(True, True)) == expected
        assert batch["td_error"].shape == (16,)
        assert float(batch["td_error"].min()) >= 0


def test_a_resumed_run_goes_on(method: Named, build: Build, read_run: ReadRun) -> None:
    options = {"lr_temperature": 0.1, "temperature": 1.0, "target_entropy": -50.0}
    first = build(method, policy_delay=3, checkpoint_replay="never", **options)
    before = trained(first, method)
    last = f"{first.output}/checkpoints/last.ckpt"
    # Filling the buffer again takes 20 steps, then comes one iteration.
    resumed = dataclasses.replace(first, resume=last, total_frames=70)
    module = trained(resumed, method)
    # Of 20 updates the 18th was the last of the policy.
    assert ["actor" in moved for moved in module.moved] == ([True, False, False] * 4)[:10]
    assert (module.progress.frames, module.progress.gradient_steps) == (70, 30)
    state = torch.load(last, weights_only=True)["state_dict"]
    assert set(state) == set(before.state_dict())
    _, rows = read_run(Path(first.output))
    alphas = [1.0, *(float(row["alpha"]) for row in rows)]
    # It starts from the temperature that the first run has learned.
    assert alphas == sorted(alphas, reverse=True)
    assert alphas[-1] < 0.6 < alphas[1]


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 0.5},
        {"temperature": 0.2},
        {"critic_normalization": "none"},
        {"squashed_entropy": False},
    ],
)
def test_what_the_trained_networks_hold_cannot_change(build: Build, change: dict[str, Any]) -> None:
    method = DIFFSAC
    first = build(method)
    trained(first, method)
    changed = {"resume": f"{first.output}/checkpoints/last.ckpt", "total_frames": 70, **change}
    flag = "--" + next(iter(change)).replace("_", "-")
    with pytest.raises(ValueError, match=f"{flag} .*cannot change to"):
        prepare(dataclasses.replace(first, **changed))


def test_two_ranks_hold_the_same_networks_and_different_data(method: Named, build: Build) -> None:
    config = build(method, cpu_ranks=2, total_frames=80, policy_delay=3)
    run = prepare(config, lambda c, device: Probe(c, method))
    assert isinstance(run.module, Probe)
    before = torch.cat(list(run.module.parts_now().values()))
    assert train(run)
    first, second = (torch.load(run.output / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(first["state"], second["state"])
    assert not torch.equal(first["state"], before)
    assert not torch.equal(first["rewards"], second["rewards"])
    assert first["counts"] == second["counts"] == (80, 20)


def test_every_parameter_has_one_optimiser(method: Named, build: Build) -> None:
    rates = {"lr_critic": 2e-3, "lr_actor": 3e-3, "lr_temperature": 4e-3}
    module = method.method.module(build(method, **rates), CPU)
    optimizers = module.configure_optimizers()
    moved = [p.data_ptr() for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(moved) == sorted(p.data_ptr() for p in module.loss.parameters())
    assert [o.param_groups[0]["lr"] for o in optimizers] == [2e-3, 3e-3, 4e-3]


def test_a_fixed_temperature_is_not_trained(method: Named, build: Build, read_run: ReadRun) -> None:
    config = build(method, learn_temperature=False, temperature=0.3)
    run = prepare(config)
    assert train(run)
    assert len(run.module.configure_optimizers()) == 2
    _, rows = read_run(run.output)
    assert "loss_alpha" not in rows[0]
    assert float(rows[-1]["alpha"]) == pytest.approx(0.3)


def test_sac_is_torchrls_with_the_options_of_the_run(build: Build) -> None:
    sac = SAC
    options = {"num_qvalue_nets": 3, "target_entropy": -2.0, "temperature": 0.5, "gamma": 0.9}
    loss = METHODS["sac"].module(build(sac, env="HalfCheetah-v5", **options), CPU).loss
    assert loss.qvalue_network_params.batch_size == (3,)
    assert float(loss.target_entropy) == -12
    assert float(loss.log_alpha.detach().exp()) == pytest.approx(0.5)
    assert float(loss.value_estimator.gamma) == pytest.approx(0.9)
    plain = {name for name, _ in loss.named_parameters()}
    normalised = METHODS["sac"].module(build(sac, critic_normalization="layer"), CPU).loss
    assert len({name for name, _ in normalised.named_parameters()} - plain) == 2


@pytest.mark.parametrize("method", [SAC, DIFFSAC])
def test_target_networks_move_as_torchrls_do(build: Build, method: Named) -> None:
    losses = [METHODS[method.name].module(build(method), CPU).loss for _ in range(2)]
    updates = [SoftUpdate(losses[0], tau=0.3), TargetUpdate(losses[1], tau=0.3)]
    for seed in range(2):
        for loss, update in zip(losses, updates, strict=True):
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in loss.qvalue_network_params.parameters():
                    parameter.copy_(torch.randn_like(parameter))
            update.step()
    first, second = (dict(loss.named_buffers()) for loss in losses)
    moved = {name for name in first if name.startswith("target_qvalue_network_params.")}
    assert all(torch.equal(first[name], second[name]) for name in moved)
    fresh = dict(METHODS[method.name].module(build(method), CPU).loss.named_buffers())
    assert len([name for name in moved if not torch.equal(first[name], fresh[name])]) >= 4


@pytest.mark.parametrize("method", [SAC, DIFFSAC])
def test_scalar_critics_are_scaled_to_normalised_rewards(build: Build, method: Named) -> None:
    """Unless told otherwise, and never with rewards as they are."""

    def scale(**options: Any) -> float:
        loss = METHODS[method.name].module(build(method, **options), CPU).loss
        parts = loss.qvalue_network.modules()
        (found,) = {part.value_scale for part in parts if isinstance(part, QEnsemble)}
        return float(found)

    assert scale() == 1 / 32
    assert scale(normalize_rewards=False) == 1
    assert scale(value_scale=0.5) == scale(value_scale=0.5, normalize_rewards=False) == 0.5


def test_diffsac_takes_the_options_of_the_run(build: Build) -> None:
    options: dict[str, Any] = {
        "denoising_steps": 4,
        "sampled_steps": 2,
        "target_steps": 3,
        "target_entropy": -2.0,
        "critic_reduction": "min",
        "discount_mode": "denoising_step",
        "step_size_per_step": True,
        "learn_friction": False,
    }
    module = METHODS["diffsac"].module(build(DIFFSAC, env="HalfCheetah-v5", **options), CPU)
    loss, process = module.loss, module.actor.process
    assert (loss.mdp.denoising_steps, loss.replayed.sampled_steps, loss.replayed.target_steps) == (
        4,
        2,
        3,
    )
    assert (loss.critic.reduction, loss.replayed.discount_mode) == ("min", "denoising_step")
    assert isinstance(loss.temperature, LearnedTemperature)
    assert loss.temperature.target_entropy == -12
    assert process.raw_step_size.shape[0] == 4
    assert process.raw_step_size.requires_grad
    assert not process.raw_friction.requires_grad


NEW_OPTIONS = ("squashed_entropy", "fresh_chains", "center_entropy")


def in_use(loss: Any) -> set[str]:
    used = (loss.replayed.squashed_entropy, loss.fresh_chains, loss.center_entropy)
    return {name for name, value in zip(NEW_OPTIONS, used, strict=True) if value}


def test_diffsac_by_default(build: Build) -> None:
    method = DIFFSAC
    config = build(method)
    assert DiffSACConfig(env=config.env).denoising_steps == 4
    loss = METHODS["diffsac"].module(config, CPU).loss
    assert in_use(loss) == set(NEW_OPTIONS)
    # Targets simulate whole chains, whatever their length.
    replayed = loss.replayed
    steps = (replayed.target_steps, loss.mdp.denoising_steps, replayed.sampled_steps)
    assert steps == (3, 3, 1)
    longer = METHODS["diffsac"].module(build(method, denoising_steps=5), CPU).loss
    assert longer.replayed.target_steps == 5
    assert (loss.critic.reduction, loss.delay_qvalue, config.tau) == ("min", True, 0.05)
    assert any(isinstance(module, EnsembleLayerNorm) for module in loss.qvalue_network.modules())
    assert float(loss.temperature()) == pytest.approx(0.01)


@pytest.mark.parametrize("name", NEW_OPTIONS)
def test_each_change_to_diffsac_can_be_undone(build: Build, name: str) -> None:
    config = build(DIFFSAC, env="HalfCheetah-v5", **{name: False})
    loss = METHODS["diffsac"].module(config, CPU).loss
    assert in_use(loss) == set(NEW_OPTIONS) - {name}


@pytest.mark.parametrize("flag", [None, False])
def test_a_fixed_temperature_has_no_target_to_count_from(build: Build, flag: bool | None) -> None:
    config = build(DIFFSAC, learn_temperature=False, center_entropy=flag)
    assert not METHODS["diffsac"].module(config, CPU).loss.center_entropy


@pytest.mark.parametrize(
    ("argv", "expected"),
    [([], None), (["--center-entropy"], True), (["--no-center-entropy"], False)],
)
def test_the_flag_of_centred_entropies_may_be_left_out(
    argv: list[str], expected: bool | None
) -> None:
    config = DiffSACConfig(**Parser(DiffSACConfig).parse_options(argv))
    assert config.center_entropy is expected
    assert config.centers_entropy is (expected is not False)


def test_a_resumed_run_keeps_its_bins(build: Build) -> None:
    method = DIFFSAC
    run = prepare(build(method, critic_head="hl_gauss", value_range=(-7.0, 3.0)))
    assert train(run)
    last = run.output / "checkpoints" / "last.ckpt"
    given = {"resume": str(last), "total_frames": 70}
    config, _ = parse_config(DiffSACConfig, given)
    assert config.bins == 101
    resumed = prepare(config)
    assert train(resumed)
    assert resumed.module.progress.frames == 70
    with pytest.raises(ValueError, match="--bins"):
        prepare(parse_config(DiffSACConfig, {**given, "bins": 50})[0])


def with_actions(config: DiffSACConfig, device: torch.device) -> OffPolicyModule:
    """DiffSAC whose replay keeps the actions as well."""

    def parts(*args: Any) -> Any:
        found = METHODS["diffsac"].build(*args)
        return dataclasses.replace(found, keys=[*found.keys, "action"])

    return OffPolicyModule(config, parts, device)


def test_all_chains_in_replay_lead_to_the_actions_that_were_taken(build: Build) -> None:
    config = build(DIFFSAC, learning_starts=2000, total_frames=2040, replay_size=5000)
    run = prepare(config, with_actions)
    assert train(run)
    assert isinstance(run.module, OffPolicyModule)
    rows = run.module.stream.buffer[:]
    latents, action = rows["latents"], rows["action"]
    assert latents.shape == (2040, 4, 1)
    torch.testing.assert_close(2 * latents[:, -1].tanh(), action)
    # The random steps are uniform over the actions of Pendulum, [-2, 2] ...
    random = action[:2000]
    assert float(random.min()) == pytest.approx(-2, abs=0.02)
    assert float(random.max()) == pytest.approx(2, abs=0.02)
    assert float(random.std()) == pytest.approx(4 / 12**0.5, rel=0.05)
    # ... and those of the untrained policy are as narrow as its prior.
    assert float(action[2000:].std()) < 1.0


def test_an_hl_gauss_critic_takes_a_range_or_that_of_normalised_rewards(
    build: Build, read_run: ReadRun
) -> None:
    method = DIFFSAC
    config = build(method, critic_head="hl_gauss", value_range=(-7.0, 3.0), bins=20)
    module = trained(config, method)
    support = module.loss.value_support
    assert (float(support.edges[0]), float(support.edges[-1]), support.bins) == (-7, 3, 20)
    _, rows = read_run(Path(config.output))
    assert 0 <= float(rows[-1]["value_clip_fraction"]) <= 1
    task = build(method, critic_head="hl_gauss")
    support = METHODS["diffsac"].module(task, CPU).loss.value_support
    assert support.bins == 101
    edges = support.edges
    assert (float(edges[0]), float(edges[-1])) == (-10, 10)


@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_critics_do_without_targets(build: Build, normalization: str) -> None:
    method = DIFFSAC
    run = prepare(
        build(method, critic_normalization=normalization, delay_critic=False),
        METHODS["diffsac"].module,
    )
    networks = run.module.loss.qvalue_network.modules()
    assert any(isinstance(part, BatchRenorm) for part in networks) == (normalization == "batch")
    assert train(run)
    assert run.module.progress.gradient_steps == 20


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sac", {"critic_normalization": "batch"}, "--critic-normalization must be one of layer"),
        ("sac", {"num_qvalue_nets": 0}, "--num-qvalue-nets must be at least 1, got 0"),
        ("sac", {"temperature": 0.0}, "--temperature must be greater than 0"),
        ("diffsac", {"sampled_steps": 4}, "--sampled-steps must be at most --denoising-steps 3"),
        ("diffsac", {"target_steps": 4}, "--target-steps must be at most --denoising-steps 3"),
        ("diffsac", {"value_range": (0.0, 1.0)}, "--value-range is for --critic-head hl_gauss"),
        (
            "diffsac",
            {"critic_head": "hl_gauss", "value_range": (1.0, 0.0)},
            "--value-range must be a smaller and a greater number, got 1 0",
        ),
        (
            "diffsac",
            {"critic_head": "hl_gauss", "value_scale": 0.5},
            "--value-scale 0.5 is for --critic-head scalar",
        ),
        ("diffsac", {"actor_steps": 4}, "--actor-steps must be at most --denoising-steps 3"),
        ("diffsac", {"critic_normalization": "batch"}, "--delay-critic does not go with"),
        ("diffsac", {"bins": 1}, "--bins must be at least 2, got 1"),
        ("diffsac", {"bins": 101}, "--bins is for --critic-head hl_gauss; leave one of them out"),
        (
            "diffsac",
            {"center_entropy": True, "learn_temperature": False},
            "--center-entropy is for a learned temperature",
        ),
    ],
)
def test_wrong_options_name_their_flag(
    build: Build, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(NAMED[name], **options)


def test_a_range_that_is_not_known_is_asked_for(build: Build) -> None:
    config = build(DIFFSAC, critic_head="hl_gauss", normalize_rewards=False)
    with pytest.raises(ValueError, match="--no-normalize-rewards needs --value-range MIN MAX"):
        prepare(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("temperature", "target", "end", "words"),
    [
        (1e4, 1e3, 1.0, "stays below --target-entropy 1000.0 although .* largest value, 10000: "),
        (
            1e-6,
            -1e3,
            -1.0,
            "stays above --target-entropy -1000.0 although .* smallest value, 1e-06",
        ),
        (1.0, -1.0, 0.0, None),
    ],
)
def test_a_temperature_at_its_bound_shows_and_is_said_once(
    method: Method,
    build: Build,
    read_run: ReadRun,
    capsys: pytest.CaptureFixture[str],
    temperature: float,
    target: float,
    end: float,
    words: str | None,
) -> None:
    config = build(method, temperature=temperature, target_entropy=target)
    trained(config, method)
    _, rows = read_run(Path(config.output))
    assert [float(row["alpha_at_bound"]) for row in rows] == [end, end]
    assert float(rows[-1]["alpha"]) == pytest.approx(temperature, rel=0.2 if end == 0 else 1e-4)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == (words is not None)
    assert words is None or re.search(words, warnings[0])
