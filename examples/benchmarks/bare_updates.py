"""Updates of off-policy methods on batches of one's own, without a trainer; for other scripts."""

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from diffpolicy.trainers import METHODS, OffPolicyConfig
from diffpolicy.trainers.loops.off_policy import OffPolicyParts


class BareUpdates:
    """Networks, loss and optimisers of a method, as its trainer has them, with fresh parameters.

    Args:
        config: of an off-policy method; says which one.
        env: only its specs are read.
    """

    def __init__(self, config: OffPolicyConfig, env: EnvBase) -> None:
        parts = METHODS[config.method].build(env, config, torch.device("cpu"))
        assert isinstance(parts, OffPolicyParts)
        self.config, self.parts = config, parts
        self.optimizers = {name: made.build(parts.loss) for name, made in parts.optimizers.items()}
        self.made = 0

    def __call__(self, batch: TensorDictBase) -> None:
        """One update; the policy takes part in every ``policy_delay``-th."""
        parts, self.made = self.parts, self.made + 1
        moves = self.made % self.config.policy_delay == 0
        first = [name for name, made in parts.optimizers.items() if not made.delayed]
        later = [name for name, made in parts.optimizers.items() if made.delayed and moves]
        if parts.update_policy is None:
            self._step([*first, *later], parts.update(batch, moves))
        else:
            self._step(first, parts.update(batch, False))
            if later:
                self._step(later, parts.update_policy(batch))
        parts.after_update()

    def move_policy(self, batch: TensorDictBase) -> None:
        """An update of the policy alone, of losses with ``actor_loss``."""
        self.made += 1
        value, _ = self.parts.loss.actor_loss(batch)
        self._step(["actor"], {"loss_actor": value})
        self.parts.after_update()

    def _step(self, names: list[str], out: Mapping[str, Tensor]) -> None:
        for name in names:
            self.optimizers[name].zero_grad()
        losses = [value for key, value in out.items() if key.startswith("loss_")]
        torch.stack([value.mean() for value in losses if value.requires_grad]).sum().backward()
        for name in names:
            self.parts.optimizers[name].treat_gradients(self.parts.loss)
            self.optimizers[name].step()

    @torch.no_grad()
    def transitions(self, env: EnvBase, steps: int) -> TensorDictBase:
        """So many transitions ``[steps]`` of random actions, with all that an update reads."""
        rows = env.rollout(steps, self.parts.warm_up, break_when_any_done=False).reshape(-1)
        for name, source in self.parts.write_back.items():
            rows.set(name, rows[source].clone())
        return rows.select(*self.parts.keys, *self.parts.write_back)
