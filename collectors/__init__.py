"""Data collection: environments, collectors, buffers, and the streams that trainers read."""

from collectors.buffers import RolloutBuffer
from collectors.chains import flatten_chains
from collectors.collector_state import collector_state, load_collector_state
from collectors.envs import derive_seed, make_env
from collectors.errors import (
    CollectionError,
    NonFiniteError,
    UnfinishedEpisodeError,
    UnsupportedStateError,
    WorkerError,
)
from collectors.evaluation import EpisodeStats, episode_stats, evaluate
from collectors.factory import make_collector
from collectors.modes import ModeCoverage, count_modes, mode_coverage, nearest_mode, reached_goal
from collectors.multimodal import optimal_density, register_tasks
from collectors.off_policy_stream import OffPolicyStream
from collectors.ray_workers import check_ray
from collectors.replay import make_replay_buffer
from collectors.replay_state import load_replay_state, replay_state
from collectors.rollouts import check_finite
from collectors.stream import OnPolicyStream

register_tasks()

__all__ = [
    "CollectionError",
    "EpisodeStats",
    "ModeCoverage",
    "NonFiniteError",
    "OffPolicyStream",
    "OnPolicyStream",
    "RolloutBuffer",
    "UnfinishedEpisodeError",
    "UnsupportedStateError",
    "WorkerError",
    "check_finite",
    "check_ray",
    "collector_state",
    "count_modes",
    "derive_seed",
    "episode_stats",
    "evaluate",
    "flatten_chains",
    "load_collector_state",
    "load_replay_state",
    "make_collector",
    "make_env",
    "make_replay_buffer",
    "mode_coverage",
    "nearest_mode",
    "optimal_density",
    "reached_goal",
    "register_tasks",
    "replay_state",
]
