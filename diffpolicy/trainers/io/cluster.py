"""Who has started the ranks of a run: this library itself, torchrun, or Slurm's srun."""

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from diffpolicy.trainers.config.run import RunConfig

# Tells the further ranks on several GPUs, which run the script anew, the folder of the run.
OUTPUT = "DIFFPOLICY_OUTPUT"


def cluster() -> ClusterEnvironment:
    """Where this process gets its rank from; Lightning is told, so that it need not guess.

    A script that srun has started once, or that a Slurm job runs without srun, starts its ranks
    itself, like one outside of Slurm.

    Raises:
        ValueError: if srun was not told how many ranks there are on a machine.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return LightningEnvironment()
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError("srun needs --ntasks-per-node, the number of ranks on each machine.")
    # Lightning's own answer to Slurm's signals is not used: see scope.py.
    return SLURMEnvironment(auto_requeue=False)


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


def check_launcher(config: RunConfig) -> None:
    """Compare the processes that were started with those that a configuration asks for.

    Raises:
        ValueError: if they differ, if there is no launcher for several machines or one that is
            not supported, or if the ranks of a launcher cannot know where to write to.
    """
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


def _check_own_launcher(config: RunConfig) -> None:
    if config.num_nodes > 1:
        raise ValueError(
            f"--num-nodes {config.num_nodes} needs torchrun or srun to start the script on each "
            "machine; see docs/launching.md."
        )
    if local_rank() and OUTPUT not in os.environ:
        raise ValueError(
            f"LOCAL_RANK={local_rank()} is set, but by neither torchrun nor srun; start the script "
            "once with --gpus or --cpu-ranks, or with one of these two."
        )


def _launched() -> tuple[str, int, int]:
    """The launcher, the number of machines, and the ranks on each."""
    env = os.environ
    if TorchElasticEnvironment.detect():
        ranks = int(env["LOCAL_WORLD_SIZE"])
        return "torchrun", int(env["WORLD_SIZE"]) // ranks, ranks
    return "srun", int(env["SLURM_NNODES"]), int(env["SLURM_NTASKS_PER_NODE"])
