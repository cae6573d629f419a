"""The losses that the contract tests run on; a new loss is tested by adding a case here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from loss_builders import (
    NESTED_KEYS,
    NESTED_OBSERVATION,
    STEPS,
    make_denoising_q_networks,
    make_networks,
    make_off_policy_networks,
    make_rollout,
)
from rowwise import rowwise_draws
from tensordict import NestedKey, TensorDictBase
from torchrl.objectives import LossModule, SoftUpdate
from torchrl.objectives.utils import ValueEstimators

from diffpolicy.networks import CategoricalSupport, GaussianHead, HLGauss
from diffpolicy.sde import MeanFlowProcess, Process, VariancePreservingProcess
from objectives import (
    DACERLoss,
    DenoisingRegressionLoss,
    DiffPPOLoss,
    DiffSACLoss,
    DiffusionQLLoss,
    DiffWPOLoss,
    DIMELoss,
    DPMDLoss,
    FPMDLoss,
    LearnedTemperature,
    MaxEntDPLoss,
    QSMLoss,
    QVPOLoss,
)


@dataclass(frozen=True)
class Options:
    """How a case builds its loss; every factory honours all of them.

    Attributes:
        loss_keys: renamed entries of ``tensor_keys``; networks write the renamed ones.
        nested: observation and chain entries have nested keys.
        share: actor and critic share some parameters.
        separate_losses: passed to the loss.
        reduction: passed to the loss.
        seed: of the weights.
    """

    loss_keys: Mapping[str, NestedKey] = field(default_factory=dict)
    nested: bool = False
    share: bool = False
    separate_losses: bool = False
    reduction: str = "mean"
    seed: int = 0


@dataclass(frozen=True)
class LossCase:
    """One configuration of a loss.

    Attributes:
        name: id of the case.
        loss_class: class of the loss.
        factory: builds the loss.
        rows: ``rows(loss, batch_size)``: the flat minibatch ``[*B]`` of a training step, off the
            behaviour policy a little; the same seed in every call.
        rollout: ``rollout(loss, [*B, T])``: entries named by ``loss.in_keys``, and perhaps others.
        reach: for every ``loss_*`` that has a gradient, prefixes of the parameters that it
            reaches, all of them; others it must not reach.
        without_gradient: ``loss_*`` keys that are there but constant.
        row_fields: fields of ``tensor_keys`` that are read from the rows.
        rollout_fields: fields of ``tensor_keys`` that are read from ``next`` of the rollout.
        estimators: value estimators that the loss supports.
        priorities: whether a call on rows writes priorities, as for rows from replay.
        samples: whether a call on rows draws random numbers.
        batch_statistics: outputs that describe the whole batch, also without reduction.
    """

    name: str
    loss_class: type[LossModule]
    factory: Callable[[Options], LossModule]
    rows: Callable[[LossModule, tuple[int, ...]], TensorDictBase]
    rollout: Callable[[LossModule, tuple[int, ...]], TensorDictBase]
    reach: Mapping[str, tuple[str, ...]]
    without_gradient: frozenset[str] = frozenset()
    row_fields: tuple[str, ...] = ()
    rollout_fields: tuple[str, ...] = ()
    estimators: tuple[ValueEstimators, ...] = ()
    priorities: bool = False
    samples: bool = False
    batch_statistics: frozenset[str] = frozenset({"alpha", "multiplier"})

    @property
    def rows_are_transitions(self) -> bool:
        """Whether there are no rows but transitions from replay."""
        return "advantage" not in self.row_fields and "value_target" not in self.row_fields

    def call(self, loss: LossModule, batch: TensorDictBase) -> TensorDictBase:
        """The loss of a batch, with random numbers that are functions of its rows alone."""
        return loss(batch, draws=rowwise_draws(loss, batch))

    def build(self, **options: Any) -> LossModule:
        """The loss, see :class:`Options`."""
        chosen = Options(**options)
        torch.manual_seed(chosen.seed)
        return self.factory(chosen)


def _diff_ppo(
    support: tuple[float, float, int] | None = None,
    temperature: float | Callable[[], LearnedTemperature] = 0.0,
    **arguments: Any,
) -> Callable[[Options], LossModule]:
    def factory(options: Options) -> LossModule:
        defaults = DiffPPOLoss.default_keys()
        names = {name: options.loss_keys.get(name, getattr(defaults, name)) for name in _VALUE}
        actor, critic, _ = make_networks(
            keys=NESTED_KEYS if options.nested else None,
            observation_key=NESTED_OBSERVATION if options.nested else "observation",
            value_keys=tuple(names.values()),
            support=None if support is None else HLGauss(*support),
            share_embedding=options.share,
        )
        loss = DiffPPOLoss(
            actor,
            critic,
            temperature=temperature() if callable(temperature) else temperature,
            separate_losses=options.separate_losses,
            reduction=options.reduction,
            **arguments,
        )
        loss.set_keys(**options.loss_keys)
        return loss

    return factory


_VALUE = ("value", "value_logits")


def _diff_ppo_rollout(loss: LossModule, batch_size: tuple[int, ...]) -> TensorDictBase:
    keys = loss.tensor_keys
    return make_rollout(
        loss.actor_network,
        batch_size,
        reward=keys.reward,
        done=keys.done,
        terminated=keys.terminated,
    )


def _diff_ppo_rows(loss: LossModule, batch_size: tuple[int, ...]) -> TensorDictBase:
    rollout = _diff_ppo_rollout(loss, batch_size)
    rows = loss.chain_rows(loss.value_estimator(rollout))
    rows = rows.reshape(-1)[: torch.Size(batch_size).numel()].clone().reshape(batch_size)
    generator = torch.Generator().manual_seed(5)

    def shift(key: NestedKey, scale: float) -> None:
        value = rows.get(key)
        rows.set(key, value + scale * torch.randn(value.shape, generator=generator))

    # As after some updates: ratios off 1, values off the old ones, kernels that moved.
    shift(loss.chain_keys.log_prob, 0.2)
    shift(loss.chain_keys.kernel_mean, 0.1)
    shift(loss.tensor_keys.value, 0.3)
    weight = torch.rand(batch_size, generator=generator) + 0.5
    rows.set(loss.tensor_keys.priority_weight, weight)
    return rows


_ACTOR, _CRITIC = ("actor_network_params.",), ("critic_network_params.",)
_QVALUE = ("qvalue_network_params.",)
_PROCESS = ("actor_network_params.process.",)


def _diff_ppo_case(
    name: str,
    *,
    noising: bool = True,
    alpha: bool = False,
    fields: tuple[str, ...] = (),
    **arguments: Any,
) -> LossCase:
    reach = {"loss_objective": _ACTOR, "loss_critic": _CRITIC}
    reach |= {"loss_noising": _PROCESS} if noising else {}
    reach |= {"loss_alpha": ("temperature.",)} if alpha else {}
    return LossCase(
        name=f"DiffPPO-{name}",
        loss_class=DiffPPOLoss,
        factory=_diff_ppo(**arguments),
        rows=_diff_ppo_rows,
        rollout=_diff_ppo_rollout,
        reach=reach,
        without_gradient=frozenset() if noising else frozenset({"loss_noising"}),
        row_fields=("advantage", "value_target", "priority_weight", *fields),
        rollout_fields=("reward", "done", "terminated"),
        estimators=(ValueEstimators.GAE,),
        batch_statistics=frozenset({"alpha", "ESS", "max_ratio", "explained_variance"}),
    )


def _action_q(
    loss_class: type[DIMELoss | DACERLoss | DenoisingRegressionLoss | DiffusionQLLoss],
    head: type[CategoricalSupport | HLGauss | GaussianHead],
    support: tuple[float, ...] | None = None,
    normalization: str | None = None,
    temperature: float | Callable[[], LearnedTemperature] | None = 0.3,
    training: bool = True,
    learn_process: bool = True,
    process: Callable[[int, int], Process] | None = None,
    **arguments: Any,
) -> Callable[[Options], LossModule]:
    def factory(options: Options) -> LossModule:
        defaults = loss_class.default_keys()
        names = ("state_action_value", "state_action_value_logits")
        actor, critic = make_off_policy_networks(
            keys=NESTED_KEYS if options.nested else None,
            observation_key=NESTED_OBSERVATION if options.nested else "observation",
            value_keys=[options.loss_keys.get(name, getattr(defaults, name)) for name in names],
            support=None if support is None else head(*support),
            normalization=normalization,
            share_encoder=options.share,
            learn_process=learn_process,
            process=process,
        )
        if temperature is not None:
            arguments["temperature"] = temperature() if callable(temperature) else temperature
        loss = loss_class(
            actor,
            critic,
            separate_losses=options.separate_losses,
            reduction=options.reduction,
            **arguments,
        )
        loss.set_keys(**options.loss_keys)
        if loss.delay_qvalue or loss.delay_actor:
            SoftUpdate(loss, tau=0.1)
        return loss.train(training)

    return factory


def _transitions(loss: LossModule, batch_size: tuple[int, ...]) -> TensorDictBase:
    keys = loss.tensor_keys
    transitions = make_rollout(
        loss.actor_network, batch_size, reward=keys.reward, terminated=keys.terminated
    )
    transitions.names = None
    return transitions


def _weighted_transitions(loss: LossModule, batch_size: tuple[int, ...]) -> TensorDictBase:
    generator = torch.Generator().manual_seed(5)
    weight = torch.rand(batch_size, generator=generator) + 0.5
    return _transitions(loss, batch_size).set(loss.tensor_keys.priority_weight, weight)


def _replay_case(
    name: str,
    loss_class: type[LossModule],
    factory: Callable[[Options], LossModule],
    *,
    alpha: bool,
    actor: tuple[str, ...] = _ACTOR,
) -> LossCase:
    reach = {"loss_qvalue": _QVALUE, "loss_actor": actor}
    reach |= {"loss_alpha": ("temperature.",)} if alpha else {}
    return LossCase(
        name=name,
        loss_class=loss_class,
        factory=factory,
        rows=_weighted_transitions,
        rollout=_transitions,
        reach=reach,
        row_fields=("priority_weight",),
        rollout_fields=("reward", "terminated"),
        estimators=(ValueEstimators.TD0,),
        priorities=True,
        samples=True,
    )


def _dime_case(name: str, *, alpha: bool = False, **arguments: Any) -> LossCase:
    factory = _action_q(DIMELoss, CategoricalSupport, **arguments)
    return _replay_case(f"DIME-{name}", DIMELoss, factory, alpha=alpha)


def _dacer_case(name: str, **arguments: Any) -> LossCase:
    """Statistics are frozen, and an entropy was measured; test_dacer.py has the other modes."""
    build = _action_q(DACERLoss, GaussianHead, temperature=None, training=False, **arguments)

    def factory(options: Options) -> LossModule:
        loss = build(options)
        loss.spread.value.fill_(0.6)
        loss.temperature.note(torch.tensor(-3.0))
        return loss

    return replace(
        _replay_case(f"DACER-{name}", DACERLoss, factory, alpha=True),
        batch_statistics=frozenset({"alpha", "entropy"}),
    )


def _denoising_q(
    loss_class: type[DiffSACLoss | DiffWPOLoss],
    support: tuple[float, float, int] | None = None,
    normalization: Literal["layer"] | None = None,
    temperature: float | Callable[[], LearnedTemperature] = 0.3,
    **arguments: Any,
) -> Callable[[Options], LossModule]:
    def factory(options: Options) -> LossModule:
        defaults = loss_class.default_keys()
        names = ("state_action_value", "state_action_value_logits")
        actor, critic = make_denoising_q_networks(
            keys=NESTED_KEYS if options.nested else None,
            observation_key=NESTED_OBSERVATION if options.nested else "observation",
            value_keys=[options.loss_keys.get(name, getattr(defaults, name)) for name in names],
            support=None if support is None else HLGauss(*support),
            normalization=normalization,
            share_embedding=options.share,
        )
        loss = loss_class(
            actor,
            critic,
            temperature=temperature() if callable(temperature) else temperature,
            separate_losses=options.separate_losses,
            reduction=options.reduction,
            **arguments,
        )
        loss.set_keys(**options.loss_keys)
        if loss.delay_qvalue or loss.delay_actor:
            SoftUpdate(loss, tau=0.1)
        return loss

    return factory


def _diff_sac_case(name: str, *, alpha: bool = False, **arguments: Any) -> LossCase:
    factory = _denoising_q(DiffSACLoss, **arguments)
    return _replay_case(f"DiffSAC-{name}", DiffSACLoss, factory, alpha=alpha)


def _diff_wpo_rollout(loss: LossModule, batch_size: tuple[int, ...]) -> TensorDictBase:
    rollout = _diff_ppo_rollout(loss, batch_size)
    # As after some updates: kernels that moved away from the behaviour's.
    key = loss.chain_keys.kernel_mean
    generator = torch.Generator().manual_seed(5)
    mean = rollout.get(key)
    return rollout.set(key, mean + 0.1 * torch.randn(mean.shape, generator=generator))


def _diff_wpo_rows(loss: LossModule, batch_size: tuple[int, ...]) -> TensorDictBase:
    rows = loss.chain_rows(loss.value_estimator(_diff_wpo_rollout(loss, batch_size)))
    rows = rows.reshape(-1)[: torch.Size(batch_size).numel()].clone().reshape(batch_size)
    generator = torch.Generator().manual_seed(5)
    weight = torch.rand(batch_size, generator=generator) + 0.5
    return rows.set(loss.tensor_keys.priority_weight, weight)


def _diff_wpo_transitions(loss: LossModule, batch_size: tuple[int, ...]) -> TensorDictBase:
    generator = torch.Generator().manual_seed(6)
    weight = torch.rand(batch_size, generator=generator) + 0.5
    transitions = _diff_wpo_rollout(loss, batch_size)
    transitions.names = None
    return transitions.set(loss.tensor_keys.priority_weight, weight)


def _diff_wpo_case(
    name: str, *, alpha: bool = False, replay: bool = False, **arguments: Any
) -> LossCase:
    reach = {"loss_qvalue": _QVALUE, "loss_actor": _ACTOR, "loss_multiplier": ("multiplier.",)}
    reach |= {"loss_alpha": ("temperature.",)} if alpha else {}
    return LossCase(
        name=f"DiffWPO-{name}",
        loss_class=DiffWPOLoss,
        factory=_denoising_q(DiffWPOLoss, **arguments),
        rows=_diff_wpo_transitions if replay else _diff_wpo_rows,
        rollout=_diff_wpo_rollout,
        reach=reach,
        row_fields=("priority_weight",) if replay else ("value_target", "priority_weight"),
        rollout_fields=("reward", "terminated"),
        estimators=(ValueEstimators.TDLambda,),
        priorities=replay,
        samples=True,
    )


def _regression_case(
    loss_class: type[DenoisingRegressionLoss | DiffusionQLLoss],
    name: str,
    *,
    alpha: bool = False,
    **arguments: Any,
) -> LossCase:
    factory = _action_q(loss_class, HLGauss, learn_process=False, **arguments)
    score = ("actor_network_params.score_network.",)
    short = loss_class.__name__.removesuffix("Loss")
    return _replay_case(f"{short}-{name}", loss_class, factory, alpha=alpha, actor=score)


# Variants whose parts other cases have, too.
VARIANTS = frozenset(
    {
        "DACER-scalar",
        "DIME-layer-norm",
        "DPMD-diffusion",
        "DiffPPO-clipped-value",
        "DiffSAC-as-trained",
        "DiffSAC-reported-chains",
        "DiffWPO-kl-samples",
        "DiffWPO-reported-chains",
        "QSM-learned-temperature",
        "QVPO-diffusion",
    }
)
CASES: tuple[LossCase, ...] = (
    _diff_ppo_case("no-temperature", noising=False),
    _diff_ppo_case("temperature", temperature=0.3),
    _diff_ppo_case(
        "learned-temperature",
        alpha=True,
        temperature=lambda: LearnedTemperature(0.2, target_entropy=-2.0),
        advantage_normalization="standardize",
    ),
    _diff_ppo_case("hl-gauss", temperature=0.3, support=(-4.0, 4.0, 11)),
    _diff_ppo_case(
        "clipped-value",
        temperature=0.3,
        clip_value=0.2,
        loss_critic_type="l2",
        advantage_normalization=None,
        fields=("value",),
    ),
    _dime_case(
        "published",
        alpha=True,
        # Batch statistics tie the rows of a training batch together; test_dime.py has that mode.
        training=False,
        normalization="batch",
        support=(-4.0, 4.0, 21),
        temperature=lambda: LearnedTemperature(0.2, target_entropy=-8.0),
    ),
    _dime_case("layer-norm", normalization="layer", support=(-4.0, 4.0, 21), num_next_actions=2),
    _dime_case("scalar", delay_qvalue=True, critic_reduction="min", loss_function="smooth_l1"),
    _dacer_case(
        "published",
        support=(),
        process=partial(VariancePreservingProcess, schedule="vp"),
        noise_in_updates=True,
    ),
    _dacer_case("scalar", loss_function="smooth_l1", delay_qvalue=False, critic_reduction="mean"),
    _diff_sac_case(
        "learned-temperature",
        alpha=True,
        temperature=lambda: LearnedTemperature(0.2, target_entropy=-8.0),
    ),
    _diff_sac_case(
        "every-step",
        sampled_steps=STEPS,
        delay_qvalue=False,
        critic_reduction="mean",
        loss_function="smooth_l1",
        discount_mode="denoising_step",
        normalization="layer",
    ),
    _diff_sac_case(
        "as-trained",
        alpha=True,
        temperature=lambda: LearnedTemperature(0.2, target_entropy=-8.0),
        target_steps=STEPS,
        actor_steps=STEPS,
        squashed_entropy=True,
        fresh_chains=True,
        center_entropy=True,
        delay_qvalue=False,
        critic_reduction="mean",
    ),
    _diff_sac_case("reported-chains", check_chains="report", critic_reduction="mean"),
    _diff_sac_case("hl-gauss", support=(-4.0, 4.0, 11), sampled_steps=2, target_steps=2),
    _diff_wpo_case(
        "rollout",
        alpha=True,
        temperature=lambda: LearnedTemperature(0.2, target_entropy=-8.0),
        kl_bound=0.5,
    ),
    _diff_wpo_case("hl-gauss", support=(-4.0, 4.0, 11), precondition=True, kl_bound=0.5),
    _diff_wpo_case(
        "replay",
        replay=True,
        delay_actor=True,
        delay_qvalue=True,
        critic_reduction="min",
        sampled_steps=2,
    ),
    _diff_wpo_case("reported-chains", kl_bound=0.5, check_chains="report"),
    _diff_wpo_case("kl-samples", kl_samples=4, kl_bound=0.5, loss_function="smooth_l1"),
    _regression_case(QSMLoss, "published"),
    _regression_case(
        QSMLoss,
        "learned-temperature",
        alpha=True,
        temperature=lambda: LearnedTemperature(0.2, target_entropy=-8.0),
        support=(-4.0, 4.0, 11),
        normalization="layer",
        sampled_steps=2,
        delay_qvalue=False,
        critic_reduction="mean",
    ),
    # The others of the family are made of the same parts; test_regression.py has them all.
    _regression_case(
        QVPOLoss,
        "diffusion",
        process=VariancePreservingProcess,
        temperature=None,
        num_actions=3,
        uniform=2,
        best_of=2,
        sampled_steps=2,
    ),
    _regression_case(
        DPMDLoss,
        "diffusion",
        alpha=True,
        process=VariancePreservingProcess,
        temperature=None,
        num_actions=3,
        kl=0.5,
    ),
    _regression_case(FPMDLoss, "mean-flow", process=MeanFlowProcess, num_actions=3),
    _regression_case(MaxEntDPLoss, "own-process", num_noises=3, density_noises=2),
    _regression_case(
        DiffusionQLLoss,
        "diffusion",
        process=VariancePreservingProcess,
        temperature=None,
        best_of=2,
        sampled_steps=2,
    ),
)

# Tests of every case run those of variants with the slow ones.
EACH_CASE = [
    pytest.param(case, marks=pytest.mark.slow if case.name in VARIANTS else (), id=case.name)
    for case in CASES
]
