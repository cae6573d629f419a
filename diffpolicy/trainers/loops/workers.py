"""Where a run's environments are stepped, and what ends it when they fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector

from collectors import CollectionError, NonFiniteError, check_ray, make_collector
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io.console import warn
from diffpolicy.trainers.loops.environments import training_env


def check_collector(config: OnPolicyConfig | OffPolicyConfig) -> None:
    """Raise ArgumentError if ``--collector`` needs a package that is missing."""
    if config.collector == "ray":
        check_ray()


def training_collector(
    config: OnPolicyConfig | OffPolicyConfig,
    policy: TensorDictModuleBase,
    *,
    frames_per_batch: int,
    random_frames: int,
    seed: int,
    device: torch.device,
) -> BaseCollector:
    """The collector of one rank; arguments as for :func:`collectors.make_collector`.

    Raises:
        TrainingError: its workers cannot be started.
    """
    workers = config.num_workers
    with faults_end_training(config.env_name):
        return make_collector(
            partial(training_env, config, config.num_envs // max(1, workers)),
            policy,
            frames_per_batch=frames_per_batch,
            random_frames=random_frames,
            seed=seed,
            backend=config.collector,
            num_workers=workers,
            restarts=config.restart_workers,
            on_restart=warn,
            device=device,
            compile_policy=config.compile,
        )


@contextmanager
def faults_end_training(env: str) -> Iterator[None]:
    """Turn what environments (named ``env``) and workers do wrong into TrainingError."""
    try:
        yield
    except NonFiniteError as error:
        raise TrainingError(str(error)) from error
    except CollectionError as error:
        # The message has the traceback.
        raise TrainingError(f"collecting from --env {env} failed: {error}") from None
