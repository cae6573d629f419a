"""Updates of off-policy methods on batches of one's own, without a trainer; for other scripts."""

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from diffpolicy.trainers import METHODS, OffPolicyConfig
from diffpolicy.trainers.loops.updates import OffPolicyParts, Updates


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
        self.updates = Updates(
            parts, lambda: list(self.optimizers.values()), policy_delay=config.policy_delay
        )
        self.made = 0

    def __call__(self, batch: TensorDictBase) -> None:
        """One update; the policy takes part in every ``policy_delay``-th."""
        self.made += 1
        self.updates.step(batch, self.made)

    def move_policy(self, batch: TensorDictBase) -> None:
        """An update of the policy alone, of losses with ``actor_loss``."""
        self.made += 1
        value, _ = self.parts.loss.actor_loss(batch)
        optimizer = self.optimizers["actor"]
        optimizer.zero_grad()
        value.backward()
        self.parts.optimizers["actor"].treat_gradients(self.parts.loss)
        optimizer.step()
        self.parts.after_update()

    @torch.no_grad()
    def transitions(self, env: EnvBase, steps: int) -> TensorDictBase:
        """So many transitions ``[steps]`` of random actions, with all that an update reads."""
        rows = env.rollout(steps, self.parts.warm_up, break_when_any_done=False).reshape(-1)
        for name, source in self.parts.write_back.items():
            rows.set(name, rows[source].clone())
        return rows.select(*self.parts.keys, *self.parts.write_back)
