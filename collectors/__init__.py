"""Data collection: environments, collectors, buffers, and the streams that trainers read."""

from collectors.buffers import RolloutBuffer
from collectors.chains import flatten_chains
from collectors.envs import derive_seed, make_env
from collectors.errors import NonFiniteError, UnfinishedEpisodeError
from collectors.evaluation import EpisodeStats, episode_stats, evaluate
from collectors.factory import make_collector
from collectors.modes import ModeCoverage, count_modes, mode_coverage, nearest_mode, reached_goal
from collectors.multimodal import optimal_density, register_tasks
from collectors.off_policy_stream import OffPolicyStream
from collectors.replay import make_replay_buffer
from collectors.rollouts import check_finite
from collectors.stream import OnPolicyStream

register_tasks()

__all__ = [
    "EpisodeStats",
    "ModeCoverage",
    "NonFiniteError",
    "OffPolicyStream",
    "OnPolicyStream",
    "RolloutBuffer",
    "UnfinishedEpisodeError",
    "check_finite",
    "count_modes",
    "derive_seed",
    "episode_stats",
    "evaluate",
    "flatten_chains",
    "make_collector",
    "make_env",
    "make_replay_buffer",
    "mode_coverage",
    "nearest_mode",
    "optimal_density",
    "reached_goal",
    "register_tasks",
]
