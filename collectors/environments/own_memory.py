"""Rows that share no memory with the environment they come from."""

from tensordict import TensorDictBase
from torchrl.envs import EnvBase, Transform, TransformedEnv

from collectors.environments.simulator_env import simulator_env


def with_own_memory(env: EnvBase) -> EnvBase:
    """An environment whatever it does to what it is given, or keeps of what it has returned.

    TorchRL hands a policy's tensors to environments as they are: one that rescales its action in
    place changes what is stored, and one that writes every observation into the same memory changes
    what it gave before. Environments of :func:`collectors.make_env` are returned as they are:
    they copy already.
    """
    if simulator_env(env) is not None:
        return env
    if isinstance(env, TransformedEnv):
        env.append_transform(OwnMemory())
        return env
    return TransformedEnv(env, OwnMemory())


class OwnMemory(Transform):
    """Copies actions on their way to an environment, and everything on its way back."""

    def __init__(self) -> None:
        super().__init__(in_keys=[], out_keys=[])

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.clone()

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.clone()

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return tensordict_reset.clone()
