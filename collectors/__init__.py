"""Data collection: environments, collectors, denoising-MDP rows and the stream trainers read."""

from collectors.buffers import RolloutBuffer
from collectors.chains import flatten_chains
from collectors.envs import derive_seed, make_env
from collectors.errors import NonFiniteError, UnfinishedEpisodeError
from collectors.evaluation import EpisodeStats, episode_stats, evaluate
from collectors.factory import make_collector
from collectors.stream import OnPolicyStream, check_finite

__all__ = [
    "EpisodeStats",
    "NonFiniteError",
    "OnPolicyStream",
    "RolloutBuffer",
    "UnfinishedEpisodeError",
    "check_finite",
    "derive_seed",
    "episode_stats",
    "evaluate",
    "flatten_chains",
    "make_collector",
    "make_env",
]
