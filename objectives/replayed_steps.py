"""Single denoising steps of replayed transitions, and their soft targets."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors import DenoisingMDP, SimulatedStep, observation_keys
from diffpolicy.actors.keys import required
from objectives import functional as fn
from objectives.checks import check_choice, check_known
from objectives.draws import Draws
from objectives.q_critic import QCritic, QKeys
from objectives.transitions import next_entry, return_discount

#: Random numbers of a call on replayed transitions, see :meth:`ReplayedSteps.draw`.
REPLAY_DRAWS = ("step", "proposal", "prior", "target")


class TransitionKeys(QKeys, Protocol):
    """Where transitions keep what the environment said, and Q networks write."""

    reward: NestedKey
    terminated: NestedKey


class LookAhead(NamedTuple):
    """The steps of the policy after rows ``[*R]``, see :meth:`ReplayedSteps.look_ahead`.

    Attributes:
        rows: the last step that it took.
        cost: discounted sum of the entropy costs of all its steps ``[*R, 1]``.
        weight: discount of what comes after, from the first of them on ``[*R, 1]``.
    """

    rows: TensorDictBase
    cost: Tensor
    weight: Tensor


class ReplayedSteps:
    """Rows of the denoising MDP from replay, and the targets of their Q values.

    The target of a step is that of the step after it, sampled from the current policy: inside a
    chain the environment has no part in it (arXiv 2512.02019)::

        n < N-1:  y = Q_{n+1}(s, x'') - T LR_{n+1}(x''),          x'' ~ q(. | x_{n+1}, s)
        n = N-1:  y = r + gamma (Q_0(s', x'_1) - T LR_0(x'_1)),   x'_1 ~ q(. | x'_0, s')

    with ``x'_0`` from the prior. With ``squashed_entropy`` the cost of a last step is
    ``LR - log |d tanh(x_N)|``, so that the costs of a chain bound the entropy of the action.

    Args:
        mdp: the denoising MDP of the actor.
        critic: reads the values ``Q_n(s, x_{n+1})``, scalar or HL-Gauss.
        sampled_steps: steps of each chain, of the N different ones.
        target_steps: steps that a target simulates before it bootstraps.
        discount_mode: ``"env"`` or ``"denoising_step"``.
        squashed_entropy: see above.

    Raises:
        TypeError: if ``squashed_entropy`` needs what the actor has not.
        ValueError: for arguments outside their range.
    """

    def __init__(
        self,
        mdp: DenoisingMDP,
        critic: QCritic,
        *,
        sampled_steps: int,
        target_steps: int,
        discount_mode: fn.DiscountMode,
        squashed_entropy: bool = False,
    ) -> None:
        check_choice("discount_mode", discount_mode, ("env", "denoising_step"))
        if squashed_entropy and not hasattr(mdp.actor, "squash_log_det"):
            raise TypeError(
                "squashed_entropy=True needs an actor with a method squash_log_det(latent), which "
                f"{type(mdp.actor).__name__} lacks; add it or use squashed_entropy=False."
            )
        known = [*mdp.observation_keys, mdp.keys.next_latent, mdp.keys.step]
        check_known("qvalue_network", critic.network.in_keys, known)
        self.mdp = mdp
        self.critic = critic
        self.sampled_steps = self.checked_steps("sampled_steps", sampled_steps)
        self.target_steps = self.checked_steps("target_steps", target_steps)
        self.discount_mode = discount_mode
        self.squashed_entropy = squashed_entropy

    def checked_steps(self, name: str, number: int) -> int:
        """A number of steps of a chain; raises a ValueError if it has fewer."""
        if not 1 <= number <= self.mdp.denoising_steps:
            raise ValueError(
                f"{name} must be between 1 and the actor's {self.mdp.denoising_steps} denoising "
                f"steps, got {number}."
            )
        return number

    def rows(
        self,
        transitions: TensorDictBase,
        keys: TransitionKeys,
        step: Tensor | None = None,
        *,
        optional_keys: Sequence[NestedKey] = (),
    ) -> TensorDictBase:
        """Rows ``[kappa, *B]`` of chains ``[*B]``, into whose latents no gradient flows.

        Args:
            transitions: the observation, ``latents``, and what :meth:`carried_keys` names.
            keys: names of what the environment said.
            step: integers ``[kappa, *B, 1]``; None draws ``sampled_steps`` different ones.
            optional_keys: further entries that every row repeats, where present.
        """
        mdp = self.mdp
        for name in (keys.reward, keys.terminated):
            next_entry(transitions, name)
        if step is None:
            latents = transitions.get(mdp.keys.latents, None)
            device = None if latents is None else latents.device
            step = mdp.draw_steps(transitions.batch_size, self.sampled_steps, device).unsqueeze(-1)
        present = [key for key in optional_keys if transitions.get(key, None) is not None]
        carried = [*self.carried_keys(keys), *present]
        rows = mdp.rows_at(transitions, step.squeeze(-1), carry_keys=carried)
        return detached(rows, mdp)

    def carried_keys(self, keys: TransitionKeys) -> list[NestedKey]:
        """Entries of transitions that the target of a chain's last step reads."""
        following = (*self.mdp.observation_keys, keys.reward, keys.terminated)
        return [unravel_key(("next", key)) for key in following]

    def draw(self, transitions: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on transitions ``[*B]``, named by ``REPLAY_DRAWS``."""
        latents = required(transitions, self.mdp.keys.latents)
        batch, number, size = transitions.batch_size, self.sampled_steps, latents.shape[-1]
        step = self.mdp.draw_steps(batch, number, latents.device)
        shapes = {
            "proposal": (*batch, number, size),
            "prior": (*batch, number, size),
            "target": (*batch, number, self.target_steps, size),
        }
        draws = {name: torch.randn_like(latents.new_empty(shape)) for name, shape in shapes.items()}
        return TensorDict({"step": step.movedim(0, -1).unsqueeze(-1), **draws}, batch)

    def with_fresh_chains(
        self, transitions: TensorDictBase, noise: Tensor | None = None
    ) -> TensorDictBase:
        """The transitions ``[*B]`` with latents of the current policy.

        Args:
            transitions: the observation and anything else.
            noise: ``[*B, N+1, A]``; None lets the actor act, which may be faster.
        """
        actor: Any = self.mdp.actor
        keys = self.mdp.keys
        observation = transitions.select(*observation_keys(actor))
        # TorchRL runs losses under deterministic exploration.
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            if noise is not None:
                latents = self.mdp.chain_from(observation, noise)
            else:
                hint = "; build the actor with return_chain=True"
                latents = required(actor(observation), keys.latents, hint)
        return transitions.copy().set(keys.latents, latents)

    def cost(self, rows: TensorDictBase) -> Tensor:
        """The entropy cost of steps ``[*R]`` with their ``log_ratio``, ``[*R, 1]``."""
        ratio = rows[self.mdp.keys.log_ratio]
        return ratio - self.mdp.squash_log_det(rows) if self.squashed_entropy else ratio

    def inside(self, gamma: Tensor) -> Tensor:
        """Discount of a denoising step that is not the last."""
        return gamma if self.discount_mode == "denoising_step" else torch.ones_like(gamma)

    @torch.no_grad()
    def look_ahead(
        self, rows: TensorDictBase, draws: Draws, gamma: Tensor, step_entropy: float = 0.0
    ) -> LookAhead:
        """Let the policy take up to ``target_steps`` steps after rows ``[*R]``.

        Args:
            rows: steps with ``next_latent``.
            draws: ``prior`` and ``target``.
            gamma: discount of the environment.
            step_entropy: entropy of a step from which costs count.
        """
        following = self.mdp.following(rows, draws.get("prior", 1))
        noise = draws.get("target", 2)
        noise = None if noise is None else noise.movedim(1, 0)
        path = self.mdp.simulate(following, self.target_steps, noise)
        return self.summed(path, gamma, step_entropy)

    def summed(
        self, path: Sequence[SimulatedStep], gamma: Tensor, step_entropy: float = 0.0
    ) -> LookAhead:
        """The costs of steps of a path together, see :meth:`look_ahead`."""
        costs = [self.cost(step.rows) + step_entropy for step in path]
        cost, weight = fn.discounted_cost(costs, [step.taken for step in path], self.inside(gamma))
        return LookAhead(path[-1].rows, cost, weight)

    @torch.no_grad()
    def target(
        self,
        rows: TensorDictBase,
        ahead: LookAhead,
        next_value: Tensor,
        *,
        reward: Tensor,
        terminated: Tensor,
        discount: Tensor,
        gamma: Tensor,
        temperature: Tensor,
    ) -> Tensor:
        """The soft targets ``[*R, 1]`` of rows.

        Args:
            rows: the rows that :meth:`look_ahead` started from.
            ahead: its result.
            next_value: value of its last step ``[*R, 1]``.
            reward: of the transitions ``[*R, 1]``.
            terminated: of the transitions ``[*R, 1]``.
            discount: of the transitions, a scalar or ``[*R, 1]``.
            gamma: of one step of the environment.
            temperature: T.
        """
        last = self.mdp.is_last(rows)
        return fn.soft_target(
            ahead.weight * next_value,
            torch.where(last, reward, 0.0),
            last & terminated,
            ahead.cost,
            discount=torch.where(last, discount, self.inside(gamma)),
            temperature=temperature,
        )

    def temporal_difference(
        self,
        rows: TensorDictBase,
        draws: Draws,
        keys: TransitionKeys,
        params: TensorDictBase,
        target_params: TensorDictBase | None,
        *,
        estimator: ValueEstimatorBase,
        temperature: Tensor,
        step_entropy: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the critics against the targets of rows ``[*R]``, and diagnostics, ``[*R, 1]``.

        Args:
            rows: of :meth:`rows`.
            draws: ``prior`` and ``target``.
            keys: names of what critics and environment write.
            params: parameters of the critics.
            target_params: of the target critics; None uses ``params``, in one forward.
            estimator: its gamma, and the length of returns of several steps.
            temperature: T.
            step_entropy: see :meth:`look_ahead`.
        """
        ahead = self.look_ahead(rows, draws, estimator.gamma, step_entropy)
        inputs = self.critic.network.in_keys
        current, coming = self.critic.current_and_next(
            rows.select(*inputs),
            ahead.rows.select(*inputs).unsqueeze(0),
            keys,
            params,
            target_params,
        )
        reward = next_entry(rows, keys.reward)
        target = self.target(
            rows,
            ahead,
            self.critic.over_critics(coming.value[0]),
            reward=reward,
            terminated=next_entry(rows, keys.terminated),
            discount=return_discount(estimator, rows, reward),
            gamma=estimator.gamma,
            temperature=temperature,
        )
        return self.critic.distance(current, target), self.critic.diagnostics(current, target)

    @staticmethod
    def average(value: Tensor, transitions: TensorDictBase) -> Tensor:
        """Mean over the sampled steps: ``[*B, 1]`` from ``[kappa, *B, 1]`` or ``[*B, 1]``."""
        return value.mean(0) if value.ndim > transitions.batch_dims + 1 else value


def detached(rows: TensorDictBase, mdp: DenoisingMDP) -> TensorDictBase:
    """Rows into whose latents no gradient flows; ``rows`` itself stays as it is."""
    names = (mdp.keys.latent, mdp.keys.next_latent)
    return rows.copy().update({key: rows[key].detach() for key in names})
