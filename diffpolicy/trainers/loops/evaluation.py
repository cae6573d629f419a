"""Evaluation of the policy on environments of its own."""

import math
from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType

from collectors import NonFiniteError, UnfinishedEpisodeError, evaluate
from collectors.errors import describe
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.loops.environments import evaluation_env

# Evaluations start from the same states in every run, whatever its seed.
EVALUATION_SEED = 1_000_003
_EXPLORATION = {
    "deterministic": ExplorationType.DETERMINISTIC,
    "stochastic": ExplorationType.RANDOM,
}


@dataclass(frozen=True)
class Evaluation:
    """Returns of one evaluation.

    Attributes:
        env_steps: environment steps (all ranks) trained on before it.
        return_mean: mean undiscounted return.
        return_std: standard deviation over the episodes.
        episodes: number of episodes.
    """

    env_steps: int
    return_mean: float
    return_std: float
    episodes: int


class Evaluator:
    """Evaluates policies as a run's options say; its environments are built at the first call.

    Args:
        config: the options of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._env: EnvBase | None = None

    def evaluate(self, policy: TensorDictModuleBase, env_steps: int) -> Evaluation | str:
        """Evaluate a policy that was trained for ``env_steps``.

        Returns:
            The evaluation, or the words on what is wrong with the environment or the policy.
        """
        config = self.config
        if self._env is None:
            self._env = evaluation_env(config)
        advice = f"check the observations and rewards of --env {config.env}."
        try:
            returns, _ = evaluate(
                policy,
                self._env,
                config.eval_episodes,
                seed=EVALUATION_SEED,
                exploration_type=_EXPLORATION[config.eval_policy],
            )
        except NonFiniteError as error:
            return f"{str(error).rstrip('.')}; {advice}"
        except UnfinishedEpisodeError:
            return (
                f"an episode of --env {config.env} does not end; cut episodes off with "
                "--max-episode-steps."
            )
        except Exception as error:  # whatever an environment may raise
            return f"--env {config.env} or the policy raised {describe(error)}\n"
        values = torch.tensor(returns, dtype=torch.float64)
        mean, std = float(values.mean()), float(values.std(correction=0))
        if not math.isfinite(mean):
            return f"the mean return is {mean}; {advice}"
        return Evaluation(env_steps, mean, std, config.eval_episodes)

    def close(self) -> None:
        """Close the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None
