"""Who has started the ranks of a run: this library itself, torchrun, or Slurm's srun."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

if TYPE_CHECKING:
    # At run time the configurations are above this module.
    from diffpolicy.trainers.config.run import RunConfig

# Tells the further ranks on several GPUs, which run the script anew, the process that has started
# them and the folder of the run.
_OUTPUT = "DIFFPOLICY_OUTPUT"
# What torchrun and srun set for each rank.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NNODES")
# What a launcher, or somebody who has played one, may have left behind in a shell.
_LEFT_BEHIND = (
    *_TORCHRUN,
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"),
)


def cluster() -> ClusterEnvironment:
    """Where this process gets its rank from; Lightning is told, so that it need not guess.

    A script that srun has started once, or that a Slurm job runs without srun, starts its ranks
    itself, like one outside of Slurm; so does one in an interactive shell (``srun --pty``).

    Raises:
        ValueError: if srun was not told how many ranks there are on a machine.
    """
    if _by_torchrun():
        return TorchElasticEnvironment()
    if not _by_srun():
        return LightningEnvironment()
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError("srun needs --ntasks-per-node, the number of ranks on each machine.")
    # Lightning's own answer to Slurm's signals is not used: see scope.py.
    return SLURMEnvironment(auto_requeue=False)


def _by_torchrun() -> bool:
    """Whether torchrun has set all that a rank needs; its run id alone is left behind."""
    return TorchElasticEnvironment.detect() and os.environ.keys() >= set(_TORCHRUN)


def _by_srun() -> bool:
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    return tasks > 1 and os.environ.keys() >= set(_SRUN) and not _interactive()


def _interactive() -> bool:
    """Whether somebody has typed the command in a shell of ``srun --pty``, its only task."""
    return "SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty()


def announce(output: Path) -> None:
    """Tell the ranks that this process starts the folder of the run, in the environment.

    What launchers have left behind there is removed: a run of one machine would wait for ranks on
    another one. The caller restores the environment.
    """
    if not launched_outside() and is_first_process():
        for name in _LEFT_BEHIND:
            os.environ.pop(name, None)
    os.environ[_OUTPUT] = f"{os.getpid()}:{output}"


def announced() -> Path | None:
    """The folder that the process which has started this one has announced; None without one."""
    process, _, folder = os.environ.get(_OUTPUT, "").partition(":")
    return Path(folder) if process == str(os.getppid()) else None


def launched_outside() -> bool:
    """Whether torchrun or srun has started the ranks."""
    # In the ranks that Lightning starts, its own environment calls itself external, too.
    return not isinstance(cluster(), LightningEnvironment)


def local_rank() -> int:
    """The number of this process among the ranks of its machine."""
    return cluster().local_rank()


def is_first_process() -> bool:
    """Whether this process writes the files and speaks: the first rank, or who started the run."""
    return (cluster().global_rank() if launched_outside() else local_rank()) == 0


def check_launcher(config: "RunConfig") -> None:
    """Compare the processes that were started with those that a configuration asks for.

    Raises:
        ValueError: if they differ, if there is no launcher for several machines or one that is
            not supported, or if the ranks of a launcher cannot know where to write to.
    """
    _check_complete("torchrun", TorchElasticEnvironment.detect(), _TORCHRUN)
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and not _interactive()
    _check_complete("srun", started and not _by_torchrun(), _SRUN)
    if not launched_outside():
        _check_own_launcher(config)
        return
    flag = "--gpus" if config.gpus else "--cpu-ranks"
    name, nodes, ranks = _launched()
    if (nodes, ranks) != (config.num_nodes, config.ranks_per_node):
        raise ValueError(
            f"{name} has started {ranks} rank(s) on each of {nodes} machine(s), but {flag} "
            f"{config.ranks_per_node} and --num-nodes {config.num_nodes} were given; both must "
            "say the same."
        )
    if config.output is None and config.resume is None:
        raise ValueError(f"--output is needed with {name}: all ranks work in one folder.")


def _check_complete(launcher: str, detected: bool, names: Sequence[str]) -> None:
    """Raise ValueError if some of a launcher's variables are there and others are not."""
    missing = [name for name in names if name not in os.environ]
    if detected and missing and len(missing) < len(names):
        raise ValueError(
            f"the environment has only a part of what {launcher} sets: {', '.join(missing)} is "
            f"missing; start the script with {launcher}, or unset "
            f"{', '.join(name for name in names if name in os.environ)}."
        )


def _check_own_launcher(config: "RunConfig") -> None:
    if config.num_nodes > 1:
        raise ValueError(
            f"--num-nodes {config.num_nodes} needs torchrun or srun to start the script on each "
            "machine; see docs/launching.md."
        )
    if local_rank() and announced() is None:
        raise ValueError(
            f"LOCAL_RANK={local_rank()} is set, but by neither torchrun nor srun; start the script "
            "once with --gpus or --cpu-ranks, or with one of these two."
        )


def _launched() -> tuple[str, int, int]:
    """The launcher, the number of machines, and the ranks on each."""
    env = os.environ
    if _by_torchrun():
        ranks = int(env["LOCAL_WORLD_SIZE"])
        return "torchrun", int(env["WORLD_SIZE"]) // ranks, ranks
    return "srun", int(env["SLURM_NNODES"]), int(env["SLURM_NTASKS_PER_NODE"])
