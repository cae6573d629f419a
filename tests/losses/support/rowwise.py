"""Random numbers for the losses that are functions of each row alone.

Equal rows get equal numbers, however they are batched, masked or ordered, and an oracle that works
row by row can compute the same ones.
"""

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule

from diffpolicy.actors.keys import required
from objectives import DiffPPOLoss, DiffSACLoss, DiffWPOLoss, DIMELoss


def noise_of(observation: Tensor, index: Tensor | int, action_dim: int) -> Tensor:
    """Numbers ``[*B, A]`` for observations ``[*B, S]`` and an index, a number or ``[*B, 1]``."""
    phase = 11.0 * torch.arange(action_dim).to(observation)
    place = 37 * observation.detach().sum(-1, keepdim=True)
    return 1.4 * torch.sin(place + 7.0 * index + phase)


def start_of(observation: Tensor, action_dim: int) -> Tensor:
    """Prior noise ``[*B, A]``: every chain starts in the same place."""
    start = torch.linspace(-0.8, 0.5, action_dim).to(observation)
    return start.expand(*observation.shape[:-1], action_dim)


def path_noise(observation: Tensor, steps: int, action_dim: int) -> Tensor:
    """Noise of whole chains ``[*B, N+1, A]``, the first latent's as in :func:`start_of`."""
    later = [noise_of(observation, step, action_dim) for step in range(steps)]
    return torch.stack([start_of(observation, action_dim), *later], -2)


def rowwise_draws(loss: LossModule, batch: TensorDictBase) -> TensorDictBase:
    """The ``draws`` of a call of ``loss`` on ``batch``, from its rows alone."""
    if isinstance(loss, DIMELoss):
        return _dime(loss, batch)
    if isinstance(loss, DiffPPOLoss):
        is_rows = batch.get(loss.chain_keys.next_latent, None) is not None
        return TensorDict(batch_size=batch.batch_size) if is_rows else rollout_draws(loss, batch)
    if not isinstance(loss, (DiffSACLoss, DiffWPOLoss)):
        return _of_their_shapes(loss, batch)
    if isinstance(loss, DiffWPOLoss) and not loss._is_replayed(batch):
        rows = loss._estimated_rows(batch)
        observation = _observation(loss, rows)
        step = required(rows, loss.chain_keys.step)
        size = required(rows, loss.chain_keys.latent).shape[-1]
        draws = TensorDict({"proposal": noise_of(observation, step, size)}, rows.batch_size)
    else:
        draws = _replayed(loss, batch)
    samples = loss.wasserstein.kl_samples if isinstance(loss, DiffWPOLoss) else None
    if samples is not None:
        proposal = draws["proposal"].unsqueeze(-2)
        phase = torch.arange(samples).to(proposal).unsqueeze(-1)
        draws["divergence"] = 1.4 * torch.sin(13 * proposal + 3.0 * phase)
    return draws


def _of_their_shapes(loss: LossModule, batch: TensorDictBase) -> TensorDictBase:
    """Numbers in the shapes of those that ``loss`` draws itself; steps are different ones."""
    draws = loss.draw(batch)
    observation = _observation(loss, batch)
    for name in list(draws.keys()):
        drawn = required(draws, name)
        event = drawn.shape[batch.batch_dims :]
        if drawn.is_floating_point():
            numbers = noise_of(observation, len(name), event.numel())
        else:
            order = noise_of(observation, 0, loss.actor_network.denoising_steps).argsort(-1)
            numbers = order[..., : event.numel()]
        draws.set(name, numbers.reshape(drawn.shape).to(drawn.dtype))
    return draws


def rollout_draws(loss: LossModule, rollout: TensorDictBase) -> TensorDictBase:
    """The chains after the ends of trajectories ``[*B, T]``, for a value estimator."""
    coming = required(rollout["next"], loss.actor_network.in_keys[0])
    size = required(rollout, loss.chain_keys.latents).shape[-1]
    draws = {"prior": start_of(coming, size)}
    if loss.value_estimator.samples_step:
        draws["proposal"] = noise_of(coming, 0, size)
    return TensorDict(draws, rollout.batch_size)


def _observation(loss: LossModule, batch: TensorDictBase) -> Tensor:
    return required(batch, loss.actor_network.in_keys[0])


def _dime(loss: DIMELoss, batch: TensorDictBase) -> TensorDictBase:
    size = required(batch, loss.tensor_keys.action).shape[-1]
    steps = loss.actor_network.denoising_steps
    noise = path_noise(_observation(loss, batch), steps, size)
    coming = path_noise(_observation(loss, batch["next"]), steps, size)
    shape = (*batch.batch_size, loss.num_next_actions, steps + 1, size)
    coming = coming.unsqueeze(-3).expand(shape)
    return TensorDict({"noise": noise, "next_noise": coming}, batch.batch_size)


def _replayed(loss: LossModule, batch: TensorDictBase) -> TensorDictBase:
    replayed, steps = loss.replayed, loss.mdp.denoising_steps
    size = required(batch, loss.chain_keys.latents).shape[-1]
    observation = _observation(loss, batch).unsqueeze(-2)
    following = _observation(loss, batch["next"]).unsqueeze(-2)
    order = noise_of(observation.squeeze(-2), 0, steps).argsort(-1)
    step = order[..., : replayed.sampled_steps].unsqueeze(-1)
    last = step == steps - 1
    after = torch.where(last, 0, step + 1)
    seen = torch.where(last, following, observation)
    target = [
        noise_of(seen, (after + k).clamp(max=steps - 1), size) for k in range(replayed.target_steps)
    ]
    draws = {
        "step": step,
        "proposal": noise_of(observation, step, size),
        "prior": start_of(seen, size),
        "target": torch.stack(target, -2),
    }
    onward = getattr(loss, "actor_steps", 1) - 1
    if onward:
        later = [(step + 1 + k).clamp(max=steps - 1) for k in range(onward)]
        noise = [noise_of(observation, index, size) for index in later]
        draws["continuation"] = torch.stack(noise, -2)
    if getattr(loss, "fresh_chains", False):
        draws["chain"] = path_noise(observation.squeeze(-2), steps, size)
    return TensorDict(draws, batch.batch_size)
