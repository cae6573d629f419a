"""Data collection: environments, collectors, buffers, and the streams that trainers read."""

from collectors.collection.evaluation import EpisodeStats, episode_stats, evaluate
from collectors.collection.factory import make_collector
from collectors.collection.ray_workers import check_ray
from collectors.collection.rollouts import check_finite, environment_steps
from collectors.environments.envpool_env import EnvPoolEnv
from collectors.environments.factory import make_env
from collectors.environments.gymnasium_env import GymnasiumEnv
from collectors.environments.spaces import Entry, observation_entries
from collectors.environments.tasks.modes import (
    ModeCoverage,
    count_modes,
    mode_coverage,
    nearest_mode,
    reached_goal,
)
from collectors.environments.tasks.multimodal import optimal_density, register_tasks
from collectors.errors import (
    CollectionError,
    NonFiniteError,
    UnfinishedEpisodeError,
    UnsupportedStateError,
    WorkerError,
)
from collectors.randomness import RandomStream
from collectors.seeding import EVALUATION_SEED, derive_seed
from collectors.state.collector_state import borrowed_env, collector_state, load_collector_state
from collectors.state.replay_state import load_replay_state, replay_state
from collectors.streams.demonstrations import episode_returns, load_demonstrations
from collectors.streams.minibatches import RolloutBuffer
from collectors.streams.off_policy import OffPolicyStream
from collectors.streams.on_policy import OnPolicyStream
from collectors.streams.replay import MixedReplay, make_replay_buffer
from collectors.streams.windows import demonstrated_transitions, demonstrated_windows

register_tasks()

__all__ = [
    "EVALUATION_SEED",
    "CollectionError",
    "Entry",
    "EnvPoolEnv",
    "EpisodeStats",
    "GymnasiumEnv",
    "MixedReplay",
    "ModeCoverage",
    "NonFiniteError",
    "OffPolicyStream",
    "OnPolicyStream",
    "RandomStream",
    "RolloutBuffer",
    "UnfinishedEpisodeError",
    "UnsupportedStateError",
    "WorkerError",
    "borrowed_env",
    "check_finite",
    "check_ray",
    "collector_state",
    "count_modes",
    "demonstrated_transitions",
    "demonstrated_windows",
    "derive_seed",
    "environment_steps",
    "episode_returns",
    "episode_stats",
    "evaluate",
    "load_collector_state",
    "load_demonstrations",
    "load_replay_state",
    "make_collector",
    "make_env",
    "make_replay_buffer",
    "mode_coverage",
    "nearest_mode",
    "observation_entries",
    "optimal_density",
    "reached_goal",
    "register_tasks",
    "replay_state",
]
