"""Act with an exported policy: onnxruntime and NumPy, neither torch nor this library.

Make a file first, then run episodes of the environment that the policy was trained on::

    python -c "from diffpolicy import load_policy; \
        load_policy('pretrained:diffppo-InvertedPendulum-v5').export('policy.onnx')"
    python examples/act_with_onnx.py policy.onnx --episodes 3
"""

import argparse
import json
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray


class ExportedPolicy:
    """A file of ``Policy.export``; noise comes from a NumPy generator.

    The file returns whole chunks of actions where the policy plans several: :meth:`act` gives one
    after the other.
    """

    def __init__(self, path: str, seed: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the networks are too small for more
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.told = json.loads(self.session.get_modelmeta().custom_metadata_map["diffpolicy"])
        self.generator = np.random.default_rng(seed)
        self.planned: list[NDArray[np.float32]] = []

    def reset(self) -> None:
        """Forget the rest of a chunk, because an episode begins."""
        self.planned = []

    def act(self, observation: Any, space: gym.Space[Any]) -> NDArray[np.float32]:
        """The action ``[A]`` for one observation, an element of ``space``."""
        if not self.planned:
            self.planned = list(self.plan(observation, space))
        return self.planned.pop(0)

    def plan(self, observation: Any, space: gym.Space[Any]) -> NDArray[np.float32]:
        """The chunk of actions ``[chunk, A]`` for one observation."""
        names = self.told["inputs"]
        inputs = {}
        for name, entry in zip(names, self.told["observation"], strict=False):
            vector = flat(entry["name"], observation, space)
            inputs[name] = vector.astype(entry["type"]).reshape(1, *entry["shape"])
        if "noise" in names:
            shape = (1, *self.told["noise_shape"])
            inputs["noise"] = self.generator.standard_normal(shape, np.float32)
        action: NDArray[np.float32] = self.session.run(["action"], inputs)[0]
        return action.reshape(self.told["chunk"], -1)


def flat(name: str, observation: Any, space: gym.Space[Any]) -> NDArray[Any]:
    """An entry of an observation as a vector; dots join the keys of dictionaries."""
    if isinstance(space, gym.spaces.Dict):
        for key in name.split("."):
            assert isinstance(space, gym.spaces.Dict)
            observation, space = observation[key], space[key]
    return np.asarray(gym.spaces.flatten(space, observation))


def episode_return(policy: ExportedPolicy, env: gym.Env[Any, Any], seed: int) -> float:
    observation, _ = env.reset(seed=seed)
    policy.reset()
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    total, done = 0.0, False
    while not done:
        action = policy.act(observation, env.observation_space).astype(space.dtype)
        action = np.clip(action.reshape(space.shape), space.low, space.high)
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        done = terminated or truncated
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", help="an ONNX file of Policy.export")
    parser.add_argument("--env", help="Gymnasium id (default: what the policy was trained on)")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    policy = ExportedPolicy(args.file, args.seed)
    env = gym.make(args.env or policy.told["env"])
    if policy.told["frames"] > 1:
        if any(entry["type"] == "uint8" for entry in policy.told["observation"]):
            parser.error("histories of images have to be joined along their channels, see docs.")
        env = FrameStackObservation(env, policy.told["frames"], padding_type="reset")
    for episode in range(args.episodes):
        total = episode_return(policy, env, args.seed + episode)
        print(f"episode {episode}: return {total:.1f}")


if __name__ == "__main__":
    main()
