"""The diffusion policy as a TensorDict module."""

import math
from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from diffpolicy.actors.exploration import is_deterministic
from diffpolicy.actors.keys import ActorKeys, ReturnedChain, required
from diffpolicy.actors.module import ActorModule
from diffpolicy.actors.protocol import PathSample
from diffpolicy.actors.squashing import ActionMap
from diffpolicy.sde import (
    Chain,
    DeterministicStep,
    Gaussian,
    Process,
    RolloutMode,
    ScoreFunction,
    checkpointed,
    draw_noise,
    prior_log_prob,
    rollout_chain,
    rollout_last,
    rollout_latents,
    sampled_log_ratio,
)


class DenoisingActor(ActorModule):
    """Acts by running a whole denoising chain in one module call.

    Follows TorchRL's exploration type: ``DETERMINISTIC``, ``MODE``, ``MEAN`` and ``MEDIAN`` run the
    chain without noise from a zero prior sample, everything else samples the process.

    Args:
        process: the process; a :class:`~diffpolicy.sde.DenoisingProcess` or another one.
        score_network: any module with ``forward(latent [*B, A], step [*B], observation [*B, S])``
            (``step`` are times ``[*B, 2]`` with a :class:`~diffpolicy.sde.MeanFlowProcess`); an
            optional method ``condition(observation)`` is used for whole chains (see
            :class:`~diffpolicy.networks.ScoreNetwork`).
        squash: maps the last latent to the action.
        in_keys: observation keys, concatenated over their last dimension.
        keys: names of everything else that is read or written.
        return_chain: also write the chain, its log-probabilities and kernels; ``"latents"``
            writes the latents alone, which costs no more than acting does.
        return_entropy_bound: also write the entropy-bound estimate.
        deterministic_step: what a chain without noise follows: ``"mean"``, the mean of each
            denoising kernel, ``"flow"``, the probability flow of the process, or ``"published"``,
            the step of the published code; see :func:`~diffpolicy.sde.rollout_chain`. The flow
            presumes that the score is the one of the reversed noising process, to which the
            temperature ties it; at temperature 0 nothing does.
        noise_key: where to read standard normal noise ``[*B, N+1, A]`` from; None draws it. It is
            then one of ``in_keys``. A deterministic chain reads index 0 only, as its start.

    Raises:
        ValueError: if process and squash disagree on the action dimension, for an unknown
            ``deterministic_step``, or for an observation with the name of another entry.

    Examples:
        >>> from diffpolicy.actors import ActionSquash
        >>> from diffpolicy.networks import ScoreNetwork
        >>> from diffpolicy.sde import DenoisingProcess
        >>> from tensordict import TensorDict
        >>> process = DenoisingProcess(action_dim=2, denoising_steps=4)
        >>> squash = ActionSquash(-torch.ones(2), torch.ones(2))
        >>> actor = DenoisingActor(process, ScoreNetwork(2, 3, 4), squash, return_chain=True)
        >>> out = actor(TensorDict({"observation": torch.randn(5, 3)}, [5]))
        >>> out["action"].shape, out["latents"].shape, out["log_prob"].shape
        (torch.Size([5, 2]), torch.Size([5, 5, 2]), torch.Size([5, 4, 1]))
    """

    def __init__(
        self,
        process: Process,
        score_network: nn.Module,
        squash: ActionMap,
        *,
        in_keys: Sequence[NestedKey] = ("observation",),
        keys: ActorKeys | None = None,
        return_chain: ReturnedChain = False,
        return_entropy_bound: bool = False,
        deterministic_step: DeterministicStep = "mean",
        noise_key: NestedKey | None = None,
    ) -> None:
        super().__init__(in_keys, keys or ActorKeys(), noise_key)
        if process.action_dim != squash.action_dim:
            raise ValueError(
                f"process has {process.action_dim} action dimensions and squash "
                f"{squash.action_dim}; they must agree."
            )
        if deterministic_step not in process.deterministic_steps:
            raise ValueError(
                f"deterministic_step must be one of {process.deterministic_steps}, "
                f"got {deterministic_step!r}."
            )
        self.deterministic_step = deterministic_step
        self.process = process
        self.score_network = score_network
        self.squash = squash
        self.return_chain = return_chain
        self.return_entropy_bound = return_entropy_bound
        self.out_keys = [
            self.keys.action,
            *self.keys.written(return_chain),
            *((self.keys.entropy_bound,) if return_entropy_bound else ()),
        ]

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps ``N``; may be set to another number for acting."""
        return self.process.denoising_steps

    @denoising_steps.setter
    def denoising_steps(self, value: int) -> None:
        self.process.set_denoising_steps(value)

    def _write(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation, noise = self.observation(tensordict), self.given_noise(tensordict)
        deterministic, keys = is_deterministic(), self.keys
        if self.return_chain is True or self.return_entropy_bound:
            chain = self.sample_chain(observation, noise, deterministic=deterministic)
            tensordict.set(keys.action, self.squash(chain.latents[..., -1, :]))
            return self._write_chain(tensordict, chain)
        if not self.return_chain:
            latent = self.sample_latent(observation, noise, deterministic=deterministic)
            return tensordict.set(keys.action, self.squash(latent))
        latents = self.sample_latents(observation, noise, deterministic=deterministic)
        tensordict.set(keys.action, self.squash(latents[..., -1, :]))
        return tensordict.set(keys.latents, latents)

    def _write_chain(self, tensordict: TensorDictBase, chain: Chain) -> TensorDictBase:
        keys = self.keys
        if self.return_chain:
            tensordict.set(keys.latents, chain.latents)
        if self.return_chain is True:
            log_prob = chain.log_prob
            tensordict.set(keys.log_prob, log_prob)
            tensordict.set(keys.log_ratio, log_prob - chain.noising_log_prob)
            tensordict.set(keys.kernel_mean, chain.denoising.mean)
            tensordict.set(keys.kernel_std, chain.denoising.std)
        if self.return_entropy_bound:
            tensordict.set(keys.entropy_bound, self.entropy_bound(chain))
        return tensordict

    def sample_chain(
        self, observation: Tensor, noise: Tensor | None = None, *, deterministic: bool = False
    ) -> Chain:
        """Run the chain for observations ``[*B, S]``.

        Args:
            observation: ``[*B, S]``.
            noise: standard normal ``[*B, N+1, A]``; None draws it, or is zero if deterministic.
                A deterministic chain uses index 0 only.
            deterministic: run without noise along ``deterministic_step``.
        """
        process, score, noise, mode = self._rollout_inputs(observation, noise, deterministic)
        return rollout_chain(process, score, noise, mode=mode)

    def sample_latents(
        self, observation: Tensor, noise: Tensor | None = None, *, deterministic: bool = False
    ) -> Tensor:
        """The latents ``x_0 .. x_N`` ``[*B, N+1, A]``; arguments as in :meth:`sample_chain`."""
        process, score, noise, mode = self._rollout_inputs(observation, noise, deterministic)
        return rollout_latents(process, score, noise, mode=mode)

    def sample_latent(
        self, observation: Tensor, noise: Tensor | None = None, *, deterministic: bool = False
    ) -> Tensor:
        """The pre-squash action ``x_N`` ``[*B, A]``; arguments as in :meth:`sample_chain`."""
        process, score, noise, mode = self._rollout_inputs(observation, noise, deterministic)
        return rollout_last(process, score, noise, mode=mode)

    def _rollout_inputs(
        self, observation: Tensor, noise: Tensor | None, deterministic: bool
    ) -> tuple[Process, ScoreFunction, Tensor, RolloutMode]:
        batch = observation.shape[:-1]
        if noise is None:
            noise = self._noise(batch, deterministic)
        elif noise.shape[:-2] != batch:
            raise ValueError(
                f"noise must have the batch shape of the observation, {tuple(batch)}, "
                f"got {tuple(noise.shape)}."
            )
        mode: RolloutMode = self.deterministic_step if deterministic else "sample"
        return self.process, self._conditioned(observation), noise, mode

    def _noise(self, batch: torch.Size, deterministic: bool) -> Tensor:
        if not deterministic:
            return draw_noise(self.process, batch)
        shape = (*batch, self.denoising_steps + 1, self.process.action_dim)
        return self.process.prior_std.new_zeros(shape)

    def sample_path(
        self,
        tensordict: TensorDictBase,
        *,
        noise: Tensor | None = None,
        checkpoint: bool = False,
    ) -> PathSample:
        """Actions and their entropy costs for differentiation, see :class:`PathActor`.

        Samples the process whatever the exploration type, from ``noise``, from the entry
        ``noise_key``, or by itself. The prior sample carries no gradient.
        """
        observation = self.observation(tensordict)
        if noise is None:
            noise = self.given_noise(tensordict)
        process, score, noise, _ = self._rollout_inputs(observation, noise, deterministic=False)
        chain = rollout_chain(process, checkpointed(score) if checkpoint else score, noise)
        last = chain.latents[..., -1, :]
        return PathSample(
            action=self.squash(last),
            running_cost=sampled_log_ratio(chain, noise) - self.squash_log_det(last),
            terminal_cost=prior_log_prob(chain.latents[..., 0, :], process.prior_std),
        )

    def sample_prior(
        self, batch_size: torch.Size | tuple[int, ...], noise: Tensor | None = None
    ) -> Tensor:
        """Draw ``x_0`` of shape ``[*batch_size, A]``, from ``noise`` (standard normal) if given."""
        return self.process.sample_prior(batch_size, noise)

    @property
    def prior_entropy(self) -> float:
        """Differential entropy of ``x_0``, in nats."""
        each = 0.5 * math.log(2 * math.pi * math.e) + math.log(float(self.process.prior_std))
        return self.process.action_dim * each

    def prior_log_prob(self, latent: Tensor) -> Tensor:
        """``log p(x_0)`` of first latents ``[*B, A]``, ``[*B, 1]``."""
        return prior_log_prob(latent, self.process.prior_std)

    def squash_log_det(self, latent: Tensor) -> Tensor:
        """``log |d tanh(x_N)|`` of last latents ``[*B, A]``, in [-1, 1] units, ``[*B, 1]``."""
        return self.squash.log_det(latent)

    def entropy_bound(self, chain: Chain) -> Tensor:
        """``-(sum_n LR_n + log prior(x_0) - log|d tanh|)`` (arXiv 2502.02316), ``[*B, 1]``."""
        prior = prior_log_prob(chain.latents[..., 0, :], self.process.prior_std)
        log_det = self.squash_log_det(chain.latents[..., -1, :])
        return log_det - prior - chain.log_ratio.sum(-2)

    def denoising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """``q(. | x_n, s)`` of denoising-MDP rows, see :class:`ChainActor`."""
        step = required(rows, self.keys.step).squeeze(-1)
        latent = required(rows, self.keys.latent)
        return self.process.denoising_kernel(latent, self.output(rows), step)

    def output(self, rows: TensorDictBase) -> Tensor:
        """What the network says at denoising-MDP rows, see :class:`RegressionActor`."""
        latent = required(rows, self.keys.latent)
        step = self.process.network_step(required(rows, self.keys.step).squeeze(-1))
        return self.score_network(latent, step, self.observation(rows))

    def sample_action(self, tensordict: TensorDictBase, *, noise: Tensor | None = None) -> Tensor:
        """Actions of whole chains, whatever the exploration type, see :class:`RegressionActor`."""
        return self.squash(self.sample_latent(self.observation(tensordict), noise))

    def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """``p(. | x_{n+1})`` of denoising-MDP rows, see :class:`ChainActor`."""
        step = required(rows, self.keys.step).squeeze(-1)
        return self.process.noising_kernel(required(rows, self.keys.next_latent), step)

    def _conditioned(self, observation: Tensor) -> ScoreFunction:
        condition = getattr(self.score_network, "condition", None)
        if condition is not None:
            return condition(observation)
        batch_size = observation.shape[:-1]

        def score(latent: Tensor, step: int | Tensor) -> Tensor:
            if isinstance(step, int):
                steps = torch.full(batch_size, step, dtype=torch.long, device=latent.device)
            else:
                steps = step.expand(*batch_size, *step.shape)
            return self.score_network(latent, steps, observation)

        return score
