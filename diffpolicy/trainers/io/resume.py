"""What a resumed run can take over from its checkpoint, and what it must start anew.

Networks and optimisers always go on. The rest goes on where it was, to the last bit on a CPU, if
the run is made up as the one before: the replay buffers of as many ranks, and the episodes, noise
and random states of as many environments. What does not go on is restarted: episodes from new
seeds, and a replay buffer is filled again with steps of the policy. One warning says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpolicy.names import plain
from diffpolicy.trainers.config.options import flag_name
from diffpolicy.trainers.config.run import RunConfig

# Options that the saved episodes and generators would override.
_OF_EPISODES = ("num_envs", "seed", "max_episode_steps", "collector")
# Options that make a replay buffer another one.
_OF_REPLAY = ("replay_size", "prioritized_replay")


@dataclass(frozen=True)
class Continuation:
    """What of the collection goes on.

    Attributes:
        episodes: whether the episodes, the noise and the random state do.
        replay: folder of the replay buffers, None where they are filled again or there are none.
        reasons: why not all of it does; empty if it does.
    """

    episodes: bool = False
    replay: Path | None = None
    reasons: tuple[str, ...] = ()


def continuation(state: Mapping[str, Any], config: RunConfig) -> Continuation:
    """What ``config``, which names a checkpoint in ``resume``, can take over from its ``state``."""
    if state["frames"] == 0 or config.resume is None:
        # Nothing has been collected yet: the run starts from its seed, as it did then.
        return Continuation()
    ranks = state.get("ranks") or []
    if len(ranks) != config.ranks:
        had = f"is that of {len(ranks)} rank(s)" if ranks else "holds no state of the ranks"
        reason = f"the checkpoint {had}, and this run has {config.ranks}"
        return Continuation(reasons=(reason,))
    reasons, outside = _against_episodes(state, config), _outside(ranks)
    if not config.refill_frames:
        return Continuation(not reasons, None, (*reasons, *outside))
    # Episodes that went on without the buffer would not make the run exact.
    lost = _against_replay(state, config)
    replay = None if lost else Path(config.resume).parent / state["replay"]
    return Continuation(not (reasons or lost), replay, (*reasons, *lost, *outside))


def replay_file(folder: Path, rank: int) -> Path:
    """The file with the replay buffer of a rank."""
    return folder / f"rank{rank}.pt"


def warning(config: RunConfig, plan: Continuation) -> str:
    """One line on what is not exact about a resumed run, and what that means."""
    effects = [] if plan.episodes else ["episodes start anew"]
    if config.refill_frames and plan.replay is None:
        effects.append(
            f"the replay buffer is first filled again with {config.refill_frames} steps of the "
            "policy"
        )
    told = f"--resume {config.resume} does not go on exactly: {'; '.join(plan.reasons)}."
    return f"{told} So {' and '.join(effects)}." if effects else told


def _against_episodes(state: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Why the episodes cannot go on."""
    reasons = _changes(_OF_EPISODES, state, config)
    if bool(state["config"]["gpus"]) != bool(config.gpus):
        reasons.append("it changes between CPU and GPU")
    unsaved = [rank["unsupported"] for rank in state["ranks"] if rank["unsupported"]]
    return reasons + unsaved[:1]


def _outside(ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the environments keep where no checkpoint finds it; the rest goes on all the same."""
    names = {name for rank in ranks for name in outside_names(rank)}
    return [outside_words(sorted(names))] if names else []


def outside_names(rank: Mapping[str, Any]) -> list[str]:
    """Names of what the environments of a rank keep on classes and in modules."""
    names: list[str] = ((rank["stream"] or {}).get("collector") or {}).get("outside", [])
    return names


def outside_words(names: Sequence[str]) -> str:
    """Say where environments keep something that no checkpoint holds."""
    return (
        f"the environment keeps {', '.join(names)} on a class or in a module, which a new process "
        "starts anew"
    )


def _against_replay(state: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Why the replay buffers cannot go on."""
    if state["replay"] is None:
        return ["the checkpoint was made without the replay buffer"]
    folder = Path(str(config.resume)).parent / state["replay"]
    if not all(replay_file(folder, rank).is_file() for rank in range(config.ranks)):
        return [f"its replay buffer {folder} is not there any more"]
    return _changes(_OF_REPLAY, state, config)


def _changes(names: tuple[str, ...], state: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Which of these options have another value than in the run that made the checkpoint."""
    saved = state["config"]
    return [
        f"{flag_name(name)} was {saved[name]} and is {getattr(config, name)}"
        for name in names
        if name in saved and saved[name] != plain(getattr(config, name))
    ]
