"""Runs a configuration: devices, Lightning trainer, output folder, interruption."""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.multiprocessing.spawn import ProcessRaisedException

from diffpolicy.trainers import files
from diffpolicy.trainers.base import RLModule
from diffpolicy.trainers.callbacks import (
    Checkpoints,
    LoggerMetrics,
    MetricsFiles,
    ProgressBar,
    ResultsFile,
)
from diffpolicy.trainers.config import RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.scope import StopSignal, run_scope

ConfigT = TypeVar("ConfigT", bound=RunConfig)
# Tells the further ranks on several GPUs, which run the script anew, the folder of the run.
_OUTPUT = "DIFFPOLICY_OUTPUT"

MakeModule = Callable[[ConfigT, torch.device], RLModule]


@dataclass(frozen=True)
class Run:
    """A run whose configuration has been checked; nothing is written yet.

    Attributes:
        config: its configuration.
        module: the Lightning module.
        output: its folder.
        frames: environment steps that its checkpoint has already.
    """

    config: RunConfig
    module: RLModule
    output: Path
    frames: int = 0


def prepare(config: ConfigT, make_module: MakeModule[ConfigT]) -> Run:
    """Check everything that can be wrong with a configuration, and build its module.

    Args:
        config: what to run.
        make_module: builds the Lightning module for a device.

    Raises:
        ValueError: one sentence that names the flag; nothing has been written or trained.
    """
    check_launcher()
    check_devices(config)
    device = _device(config)
    with run_scope(device):
        check_loggers(config)
    # The launcher of several GPUs starts this program once more for each further rank.
    output = files.output_folder(config) if is_first_process() else Path(os.environ[_OUTPUT])
    state = None if config.resume is None else files.read_checkpoint(config.resume)
    if config.resume is not None and state is not None:
        files.check_method(config.resume, state, config.method)
    with run_scope(device):
        module = make_module(config, device)
    if config.resume is not None and state is not None:
        files.check_metadata(config.resume, state, module.metadata())
        _check_frames_left(config, state["frames"])
    return Run(config, module, output, 0 if state is None else state["frames"])


def train(run: Run) -> bool:
    """Train until ``--total-frames`` or Ctrl-C, which ends the run after its current iteration.

    Returns:
        Whether the run was finished; False after Ctrl-C. A checkpoint exists in both cases.

    Raises:
        TrainingError: if training cannot go on, for example after a loss that is not finite.
    """
    config, module = run.config, run.module
    if is_first_process():
        (run.output / files.CHECKPOINT_FOLDER).mkdir(parents=True, exist_ok=True)
        files.write_json(
            run.output / files.CONFIG_FILE, {"method": config.method, **asdict(config)}
        )
    stop, bar = StopSignal(), ProgressBar()
    module.stop_requested = stop.requested
    with run_scope(_device(config)), stop.installed():
        os.environ[_OUTPUT] = str(run.output)
        trainer = make_trainer(run, bar)
        try:
            trainer.fit(module, ckpt_path=config.resume, weights_only=True)
        except (Exception, SystemExit) as error:
            # After a second Ctrl-C: whatever the frameworks have made of KeyboardInterrupt.
            if stop.forced():
                return False
            message = _training_error(error)
            if message is None:
                raise
            last = run.output / files.CHECKPOINT_FOLDER / files.LAST_CHECKPOINT
            raise TrainingError(f"{message} The last good checkpoint is {last}.") from error
        finally:
            bar.close()
            module.close()
    return not stop.requested() or _env_steps(run.output) >= config.total_frames


def _check_frames_left(config: RunConfig, done: int) -> None:
    refill = config.refill_frames if done else 0
    if done + refill >= config.total_frames:
        more = f" and {refill} to fill the replay buffer again" if refill else ""
        raise ValueError(
            f"--total-frames must be greater than {done + refill}, {done} that the checkpoint "
            f"{config.resume} has already{more}, got {config.total_frames}."
        )


def is_first_process() -> bool:
    """Whether this process is the one that the user started."""
    return _local_rank() == 0


def make_trainer(run: Run, bar: ProgressBar) -> L.Trainer:
    """The Lightning trainer of a run."""
    config, output = run.config, run.output
    callbacks: list[L.Callback] = [
        ResultsFile(output),
        LoggerMetrics(),
        MetricsFiles(output),
        Checkpoints(output, config.checkpoint_every),
        bar,
    ]
    return L.Trainer(
        accelerator="gpu" if config.gpus else "cpu",
        devices=config.ranks,
        strategy=_strategy(config),
        # The module stops the trainer when its frames are used up.
        max_epochs=-1,
        callbacks=callbacks,
        logger=_loggers(run),
        default_root_dir=output,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def check_devices(config: RunConfig) -> None:
    """Raise ValueError unless this machine has the devices that ``--gpus`` asks for."""
    available = torch.cuda.device_count()
    if config.gpus > available:
        raise ValueError(
            f"--gpus {config.gpus} needs {config.gpus} CUDA devices and this machine has "
            f"{available}; --cpu-ranks {config.gpus} runs as many ranks on the CPU."
        )


def check_launcher() -> None:
    """Raise ValueError in a rank that something else than ``--gpus`` has started."""
    if not is_first_process() and _OUTPUT not in os.environ:
        raise ValueError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']} is set by a launcher such as torchrun, which "
            "is not supported; start the script once, with --gpus or --cpu-ranks."
        )


def check_loggers(config: RunConfig) -> None:
    """Raise ValueError if ``--logger`` needs a package or a login that is missing."""
    for name in config.logger:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise ValueError(f"--logger {name} needs the package {name}: pip install {name}.")
    if "wandb" in config.logger and is_first_process():
        import wandb

        try:
            # Asks on a terminal; does nothing when offline.
            wandb.login(verify=False)
        except wandb.errors.Error as error:
            raise ValueError(
                "--logger wandb needs a login; run `wandb login`, or set WANDB_MODE=offline."
            ) from error


def _strategy(config: RunConfig) -> str | Strategy:
    if config.ranks == 1:
        return "auto"
    # The only buffers that change, statistics of observations and batches, reduce over the ranks
    # themselves.
    if config.gpus:
        return DDPStrategy(broadcast_buffers=False)
    return DDPStrategy(start_method="fork", process_group_backend="gloo", broadcast_buffers=False)


def _loggers(run: Run) -> list[Logger]:
    loggers: list[Logger] = []
    if "tensorboard" in run.config.logger:
        # TensorBoard then hides what a resumed run does again.
        purge_step = run.frames + 1 if run.frames else None
        loggers.append(
            TensorBoardLogger(run.output, name="tensorboard", version="", purge_step=purge_step)
        )
    if "wandb" in run.config.logger:
        loggers.append(WandbLogger(run.output.name, run.output, project="diffpolicy"))
    return loggers


def _env_steps(output: Path) -> int:
    # Forked ranks cannot tell their parent; their results file does.
    steps: int = json.loads((output / files.RESULTS_FILE).read_text())["env_steps"]
    return steps


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda", _local_rank()) if config.gpus else torch.device("cpu")


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def _training_error(error: BaseException) -> str | None:
    """The message of a TrainingError, also of one on a forked rank; None for other errors."""
    if isinstance(error, TrainingError):
        return str(error)
    # A forked rank hands over its traceback as text, which ends with the message.
    marker = f"{TrainingError.__qualname__}: "
    if isinstance(error, ProcessRaisedException) and marker in str(error):
        return str(error).rpartition(marker)[2].strip()
    return None
