"""Evaluations of a run: in environments of their own, or in those that it trains on."""

import math
from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase, ExplorationType

from collectors import (
    EVALUATION_SEED,
    NonFiniteError,
    RandomStream,
    UnfinishedEpisodeError,
    UnsupportedStateError,
    borrowed_env,
    derive_seed,
    evaluate,
)
from collectors.errors import describe
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.io.console import warn
from diffpolicy.trainers.loops.environments import evaluation_env

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
    """Evaluates on one rank.

    Args:
        config: the run's configuration.
        seed: of initial states and noise; by default the same for all runs.
    """

    def __init__(self, config: RunConfig, seed: int = EVALUATION_SEED) -> None:
        self.config = config
        self.seed = seed
        self._env: EnvBase | None = None
        self._borrows = config.eval_env == "training"
        self._warned = False

    def evaluate(
        self, policy: TensorDictModuleBase, frames: int, collector: BaseCollector | None = None
    ) -> Evaluation | str:
        """An evaluation, or the words on what is wrong with it.

        Args:
            policy: what acts.
            frames: environment steps trained on so far.
            collector: whose environments are used if there are no others; None has none.
        """
        config = self.config
        advice = f"check the observations and rewards of --env {config.env_name}."
        try:
            returns = self._returns(policy, frames, collector)
        except NonFiniteError as error:
            return f"{str(error).rstrip('.')}; {advice}"
        except UnfinishedEpisodeError:
            return (
                f"an episode of --env {config.env_name} does not end; cut episodes off with "
                "--max-episode-steps."
            )
        except Exception as error:  # whatever an environment may raise
            return f"--env {config.env_name} or the policy raised {describe(error)}\n"
        values = torch.tensor(returns, dtype=torch.float64)
        mean, std = float(values.mean()), float(values.std(correction=0))
        if not math.isfinite(mean):
            return f"the mean return is {mean}; {advice}"
        return Evaluation(frames, mean, std, config.eval_episodes)

    def close(self) -> None:
        """Close the environments, if they are its own."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _returns(
        self, policy: TensorDictModuleBase, frames: int, collector: BaseCollector | None
    ) -> list[float]:
        if self._env is None and (collector is None or not self._borrows):
            self._env = self._build(may_borrow=collector is not None)
        if self._env is not None:
            return self._episodes(policy, self._env)
        assert collector is not None
        with borrowed_env(
            collector,
            seed=derive_seed(self.config.seed, frames, 3),
            on_restart=self._on_restart,
        ) as env:
            return self._episodes(policy, env)

    def _build(self, *, may_borrow: bool) -> EnvBase | None:
        """Environments for evaluations; None where the simulator does not run twice."""
        try:
            # Constructors may draw from global generators, which belong to the training.
            with RandomStream(self.seed):
                return evaluation_env(self.config)
        except Exception as error:
            if self.config.collector != "local" or not may_borrow:
                raise
            self._borrows = True
            warn(
                "the environments of evaluations cannot be built beside those of the training "
                f"({type(error).__name__}: {error}); evaluations use the latter, as with "
                "--eval-env training."
            )
            return None

    def _episodes(self, policy: TensorDictModuleBase, env: EnvBase) -> list[float]:
        config = self.config
        returns, _ = evaluate(
            policy,
            env,
            config.eval_episodes,
            seed=self.seed,
            exploration_type=_EXPLORATION[config.eval_policy],
        )
        return returns

    def _on_restart(self, error: UnsupportedStateError) -> None:
        if not self._warned:
            self._warned = True
            warn(f"episodes of the training start anew after each evaluation: {error}")
