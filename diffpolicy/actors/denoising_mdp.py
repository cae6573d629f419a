"""The denoising MDP of an actor: its rows, its steps, and chains that lead to given actions."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import expand_as_right
from torch import Tensor

from diffpolicy.actors.chains import SimulatedStep, chain_rows, draw_steps, rows_at
from diffpolicy.actors.keys import required
from diffpolicy.actors.protocol import ChainActor
from diffpolicy.actors.step_kernels import StepKernels
from diffpolicy.sde import check_densities, log_ratio

#: Largest distance of a chain's end from its action, as a share of the action's range.
_ACTION_TOLERANCE = 1e-3


class DenoisingMDP(StepKernels):
    """The Markov decision process whose actions are the steps of an actor's denoising chains.

    Its states are ``(s, x_n, n)`` and its actions ``x_{n+1}`` (arXiv 2512.02019). Inside of a chain
    the next state is ``(s, x_{n+1}, n + 1)``; after its last step the environment moves on and the
    next chain starts at ``(s', x'_0, 0)``. A *row* is a TensorDict with the observation, ``latent``
    ``[*R, A]``, ``step`` ``[*R, 1]`` and, after a step, ``next_latent`` ``[*R, A]``, named by the
    actor's :class:`ActorKeys`.

    Kernels are those of the actor as it is when a method is called. Every random number can be
    given as standard normal ``noise``; None draws it. Nothing here depends on TorchRL's
    exploration type, and no argument is written to.

    Args:
        actor: a :class:`ChainActor`. The number of its denoising steps is fixed at this moment; it
            may act with another one later.

    Raises:
        TypeError: if the actor lacks members of ChainActor.
        ValueError: if the steps of its process have no densities.

    Examples:
        >>> from diffpolicy.actors import ActionSquash, DenoisingActor
        >>> from diffpolicy.networks import ScoreNetwork
        >>> from diffpolicy.sde import DenoisingProcess
        >>> from tensordict import TensorDict
        >>> squash = ActionSquash(-torch.ones(2), torch.ones(2))
        >>> actor = DenoisingActor(DenoisingProcess(2, 4), ScoreNetwork(2, 3, 4), squash)
        >>> observation = TensorDict({"observation": torch.randn(5, 3)}, [5])
        >>> DenoisingMDP(actor).chains_for(observation, torch.zeros(5, 2)).shape
        torch.Size([5, 5, 2])
    """

    def __init__(self, actor: ChainActor) -> None:
        if not isinstance(actor, ChainActor):
            raise TypeError(
                "actor must offer the members of diffpolicy.actors.ChainActor (see its "
                f"documentation), got {type(actor).__name__}."
            )
        process = getattr(actor, "process", None)
        if process is not None:
            check_densities(process)
        self.actor = actor
        self.denoising_steps = actor.denoising_steps

    def rows(
        self,
        rollout: TensorDictBase,
        *,
        step_keys: Sequence[NestedKey] = (),
        carry_keys: Sequence[NestedKey] = (),
    ) -> TensorDictBase:
        """All steps of the chains of transitions ``[*B]`` as rows ``[*B, N]``, without copying.

        Args:
            rollout: transitions with whole chains.
            step_keys: further entries ``[*B, N, ...]``, taken along where present.
            carry_keys: further entries ``[*B, ...]`` that every row repeats where present.

        Raises:
            KeyError: if the chain or an observation key is missing.
            ValueError: if the chains have another number of steps.
        """
        return chain_rows(
            rollout,
            observation_keys=self.observation_keys,
            keys=self.keys,
            denoising_steps=self.denoising_steps,
            step_keys=step_keys,
            carry_keys=carry_keys,
        )

    def rows_at(
        self,
        transitions: TensorDictBase,
        step: Tensor,
        *,
        carry_keys: Sequence[NestedKey] = (),
    ) -> TensorDictBase:
        """Chosen steps of the chains of transitions ``[*B]`` as rows ``[M, *B]``.

        Args:
            transitions: the observation and ``latents``; other entries of a chain are optional.
            step: the chosen steps, integers ``[M, *B]``.
            carry_keys: further entries ``[*B, ...]`` that every row repeats.

        Raises:
            KeyError: if the latents, an observation key or an entry to carry is missing.
            ValueError: if the chains have another number of steps.
        """
        return rows_at(
            transitions,
            step,
            observation_keys=self.observation_keys,
            keys=self.keys,
            denoising_steps=self.denoising_steps,
            carry_keys=carry_keys,
        )

    def draw_steps(
        self,
        batch_size: torch.Size | tuple[int, ...],
        number: int,
        device: torch.device | None = None,
    ) -> Tensor:
        """``number`` different steps of every chain, uniformly drawn, integers ``[number, *B]``."""
        return draw_steps(self.denoising_steps, batch_size, number, device)

    def propose(self, rows: TensorDictBase, noise: Tensor | None = None) -> TensorDictBase:
        """Take a step of the actor from the states of rows ``[*R]``.

        Args:
            rows: observation, ``latent`` and ``step``.
            noise: ``[*R, A]``.

        Returns:
            Rows with the ``next_latent`` ``x' = m_n + std_n noise`` and its ``log_ratio``
            ``[*R, 1]``, both differentiable in the actor's parameters.
        """
        keys, actor = self.keys, self.actor
        denoising = actor.denoising_kernel(rows)
        next_latent = denoising.sample(noise)
        proposed = rows.select(*self.observation_keys, keys.latent, keys.step)
        proposed.set(keys.next_latent, next_latent)
        noising = actor.noising_kernel(proposed)
        ratio = log_ratio(required(rows, keys.latent), next_latent, denoising, noising)
        return proposed.set(keys.log_ratio, ratio)

    def following(self, rows: TensorDictBase, noise: Tensor | None = None) -> TensorDictBase:
        """The state after each row ``[*R]``: in the same chain, or at the start of the next.

        Args:
            rows: observation, also in ``next``, ``next_latent`` and ``step``.
            noise: of the prior of chains that start, ``[*R, A]``.

        Returns:
            Observation, ``latent`` and ``step``.
        """
        keys, last = self.keys, self.is_last(rows)
        next_latent = required(rows, keys.next_latent)
        following = rows.select(*self.observation_keys)
        for key in self.observation_keys:
            coming = rows["next"][key]
            mask = expand_as_right(last.squeeze(-1), coming)
            following.set(key, torch.where(mask, coming, rows[key]))
        prior = self.first_latent(rows.batch_size, next_latent, noise)
        following.set(keys.latent, torch.where(last, prior, next_latent))
        return following.set(keys.step, torch.where(last, 0, required(rows, keys.step) + 1))

    def first_state(
        self, observation: TensorDictBase, like: Tensor, noise: Tensor | None = None
    ) -> TensorDictBase:
        """The state ``(s, x_0, 0)`` at the start of chains.

        Args:
            observation: has the observation keys, batch ``[*B]``.
            like: gives dtype and device of the latents.
            noise: ``[*B, A]``.
        """
        batch = observation.batch_size
        state = observation.select(*self.observation_keys)
        state.set(self.keys.latent, self.first_latent(batch, like, noise))
        step = torch.zeros(*batch, 1, dtype=torch.long, device=like.device)
        return state.set(self.keys.step, step)

    def first_latent(
        self, batch_size: torch.Size, like: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """``x_0`` from the prior ``[*B, A]``, with dtype and device of ``like``."""
        if noise is None:
            return self.actor.sample_prior(batch_size).to(like)
        return self.actor.sample_prior(batch_size, noise).to(like)

    def simulate(
        self, rows: TensorDictBase, steps: int, noise: Tensor | None = None
    ) -> list[SimulatedStep]:
        """Take up to ``steps`` steps of the actor, at least 1, from the states of rows ``[*R]``.

        As :meth:`propose` and, for the steps after the first one, :meth:`go_on`; ``noise`` is
        ``[steps, *R, A]``.
        """
        first = self.propose(rows, None if noise is None else noise[0])
        return self.go_on(first, steps - 1, None if noise is None else noise[1:])

    def go_on(
        self, rows: TensorDictBase, steps: int, noise: Tensor | None = None
    ) -> list[SimulatedStep]:
        """Take up to ``steps`` steps of the actor after those that rows are, to the chain's end.

        Args:
            rows: steps ``[*R]`` of :meth:`propose`.
            steps: how many, at least 0.
            noise: ``[steps, *R, A]``.

        Returns:
            ``rows`` and ``steps`` more, the first one always taken.
        """
        keys = self.keys
        path = [SimulatedStep(rows, torch.ones_like(rows[keys.step], dtype=torch.bool))]
        for index in range(steps):
            taken = ~self.is_last(rows)
            state = rows.copy()
            state.set(keys.latent, torch.where(taken, rows[keys.next_latent], rows[keys.latent]))
            state.set(keys.step, torch.where(taken, rows[keys.step] + 1, rows[keys.step]))
            moved = self.propose(state, None if noise is None else noise[index])
            latest = torch.where(taken, moved[keys.next_latent], rows[keys.next_latent])
            rows = moved.set(keys.next_latent, latest)
            path.append(SimulatedStep(rows, taken))
        return path

    def chain_from(self, observation: TensorDictBase, noise: Tensor) -> Tensor:
        """The latents ``[*B, N+1, A]`` of the actor's chains from given noise.

        Args:
            observation: has the observation keys, batch ``[*B]``.
            noise: ``[*B, N+1, A]``; index 0 makes ``x_0``, index n+1 the step from ``x_n``.
        """
        keys = self.keys
        state = self.first_state(observation, noise, noise[..., 0, :])
        latents = [state[keys.latent]]
        for step in range(self.denoising_steps):
            state.set(keys.latent, latents[-1])
            state.set(keys.step, torch.full_like(state[keys.step], step))
            latents.append(self.propose(state, noise[..., step + 1, :])[keys.next_latent])
        return torch.stack(latents, -2)

    @property
    def knows_actions(self) -> bool:
        """Whether the actor has a ``squash``, so that chains can be compared with actions."""
        return hasattr(self.actor, "squash")

    @torch.no_grad()
    def chains_for(
        self, observation: TensorDictBase, action: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Latents that lead to given actions, drawn from them backwards.

        The last latent is the action before squashing; those before it are drawn through the
        noising kernels. Whatever acts without the actor (random steps, demonstrations, another
        policy) gets a chain in this way, so that the losses on chains can learn from it.

        Args:
            observation: has the observation keys, batch ``[*B]``.
            action: in the units of the environment, ``[*B, A]``; may be at the bounds.
            noise: ``[*B, N, A]``; index n makes ``x_n`` from ``x_{n+1}``.

        Returns:
            ``x_0 .. x_N`` as ``[*B, N+1, A]``, where ``squash(x_N)`` is the action.

        Raises:
            TypeError: if the actor has no ``squash``.
            ValueError: for actions outside of the bounds.
        """
        self._check_squash("chains_for")
        keys, batch = self.keys, action.shape[:-1]
        latents = [self.actor.squash.inverse(action)]  # type: ignore[attr-defined]
        row = observation.select(*self.observation_keys, strict=False)
        for step in reversed(range(self.denoising_steps)):
            row.set(keys.next_latent, latents[-1])
            row.set(keys.step, torch.full((*batch, 1), step, device=action.device))
            drawn = None if noise is None else noise[..., step, :]
            latents.append(self.actor.noising_kernel(row).sample(drawn))
        return torch.stack(latents[::-1], -2)

    @torch.no_grad()
    def misled(self, transitions: TensorDictBase) -> Tensor:
        """Whether chains do not lead to the action beside them, boolean ``[*B, 1]``.

        Such chains come from actions that were not the actor's, or that were changed after it.

        Raises:
            KeyError: if the latents or the action are missing.
            TypeError: if the actor has no ``squash``.
        """
        self._check_squash("misled")
        squash = self.actor.squash  # type: ignore[attr-defined]
        hint = "; collect with an actor built with return_chain=True"
        last = required(transitions, self.keys.latents, hint)[..., -1, :]
        action = required(transitions, self.keys.action)
        limit = _ACTION_TOLERANCE * (squash.high - squash.low)
        return ~((squash(last) - action).abs() <= limit).all(-1, keepdim=True)

    def _check_squash(self, wanted: str) -> None:
        if not self.knows_actions:
            raise TypeError(
                f"{wanted} needs an actor with a member squash (an ActionSquash), which "
                f"{type(self.actor).__name__} lacks."
            )
