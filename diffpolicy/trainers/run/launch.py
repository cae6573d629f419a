"""Runs a configuration: devices, Lightning trainer, output folder, interruption."""

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.options import in_flags
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import TrainingError, training_error
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.io.cluster import (
    announce,
    announced,
    check_launcher,
    cluster,
    is_first_process,
    launched_outside,
    local_rank,
)
from diffpolicy.trainers.io.config_file import config_text
from diffpolicy.trainers.io.folders import (
    FolderLock,
    check_unused,
    output_folder,
    remove_temporaries,
)
from diffpolicy.trainers.io.resume import continuation
from diffpolicy.trainers.io.signals import StopSignal
from diffpolicy.trainers.loops.base import RLModule, RunCallback
from diffpolicy.trainers.loops.warm_start import warm_start
from diffpolicy.trainers.methods import METHODS, Method
from diffpolicy.trainers.run.callbacks import MetricsFiles, ProgressBar, ResultsFile
from diffpolicy.trainers.run.checkpoints import Checkpoints
from diffpolicy.trainers.run.loggers import LoggerMetrics, check_loggers, make_loggers
from diffpolicy.trainers.run.scope import run_scope

ConfigT = TypeVar("ConfigT", bound=RunConfig)

MakeModule = Callable[[ConfigT, torch.device], RLModule]


@dataclass(frozen=True)
class Run:
    """A run whose configuration has been checked; nothing is written yet.

    Attributes:
        config: its configuration.
        module: the Lightning module.
        output: its folder.
        lock: held on that folder while the run trains, and from before its checkpoint is loaded;
            None in ranks that another process has started.
        checkpoint: what it goes on from; None at a start.
    """

    config: RunConfig
    module: RLModule
    output: Path
    lock: FolderLock | None = None
    checkpoint: Checkpoint | None = None

    @property
    def frames(self) -> int:
        """Environment steps that its checkpoint has already."""
        return 0 if self.checkpoint is None else self.checkpoint.frames


def prepare(
    config: ConfigT,
    make_module: MakeModule[ConfigT] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Check everything that can be wrong with a configuration, and build its module.

    Args:
        config: what to run.
        make_module: builds the Lightning module for a device; by default that of the registered
            method of the configuration.
        checkpoint: what ``config.resume`` names, if it has been read already.

    Raises:
        ValueError: one sentence that names the flag; nothing has been written or trained.
    """
    if make_module is None:
        make_module = _registered(config.method).module
    if checkpoint is None:
        checkpoint = Checkpoint.find(config.resume, config.output, config.method)
        config = replace(config, resume=None if checkpoint is None else str(checkpoint.path))
    check_launcher(config)
    check_devices(config)
    device = _device(config)
    with run_scope(device):
        check_loggers(config)
    # The launcher of several GPUs starts this program once more for each further rank.
    own = is_first_process() or launched_outside()
    output = output_folder(config) if own else announced()
    assert output is not None  # check_launcher has seen to it
    lock = FolderLock(output) if is_first_process() else None
    try:
        if lock is not None and (output / files.CHECKPOINT_FOLDER).is_dir():
            _acquire(lock)
        module = _build(config, make_module, checkpoint, device)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return Run(config, module, output, lock, checkpoint)


def _build(
    config: ConfigT,
    make_module: MakeModule[ConfigT],
    checkpoint: Checkpoint | None,
    device: torch.device,
) -> RLModule:
    """The module, compared with the checkpoint that it goes on from."""
    if checkpoint is not None:
        checkpoint.check_newest()
    with run_scope(device):
        module = make_module(config, device)
    if checkpoint is not None:
        checkpoint.check_fits(module.metadata())
        _check_frames_left(config, checkpoint.state)
    elif config.init_from is not None:
        warm_start(module, Checkpoint.of_run(config.init_from, "init_from"))
    return module


def _registered(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(
            f"the method {name!r} is not registered; give make_module, such as the module of a "
            f"Method, or a configuration of {', '.join(METHODS)}."
        )
    return METHODS[name]


def train(
    run: Run,
    stop: StopSignal | None = None,
    callbacks: Sequence[L.Callback] = (),
    *,
    progress_bar: bool = True,
) -> bool:
    """Train until ``--total-frames``, or until Ctrl-C or a signal, after the current iteration.

    Args:
        run: what :func:`prepare` has made.
        stop: collects Ctrl-C, SIGTERM and other signals, and tells afterwards which of them it was;
            None is one of this call's own.
        callbacks: further callbacks, such as a :class:`RunCallback`, which may end the run.
        progress_bar: whether to show how far the run is.

    Returns:
        Whether the run was finished; False if it was stopped. A checkpoint exists in both cases.

    Raises:
        TrainingError: if training cannot go on, for example after a loss that is not finite.
    """
    config, module = run.config, run.module
    stop = StopSignal() if stop is None else stop
    if run.lock is not None:
        start_folder(run, run.lock)
    stopped, bar = _Stopped(), ProgressBar()
    module.signals = stop
    with run_scope(_device(config)), stop.installed():
        announce(run.output)
        shown = [bar] if progress_bar else []
        trainer = make_trainer(run, [*shown, stopped, *callbacks])
        try:
            trainer.fit(module, ckpt_path=config.resume, weights_only=True)
        except (Exception, SystemExit) as error:
            # After a second Ctrl-C: whatever the frameworks have made of KeyboardInterrupt.
            if stop.forced():
                return False
            message = training_error(error)
            if message is None:
                raise
            last = run.output / files.CHECKPOINT_FOLDER / files.LAST_CHECKPOINT
            if last.exists():
                # A message that ends with a traceback has lines of its own.
                space = "\n" if "\n" in message else " "
                message = f"{message}{space}The last good checkpoint is {last}."
            raise TrainingError(message) from error
        finally:
            bar.close()
            module.close()
            if run.lock is not None:
                run.lock.release()
    return not stopped


def start_folder(run: Run, lock: FolderLock) -> None:
    """Make the folder of a run, with its configuration, and keep other runs out of it.

    Raises:
        TrainingError: before any work is lost, if it cannot be written to, or if another run has
            taken it since this one was prepared.
    """
    checkpoints = run.output / files.CHECKPOINT_FOLDER
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        _acquire(lock)
        check_unused(run.output, run.config)
        for folder in (run.output, checkpoints):
            remove_temporaries(folder)
        files.write_text(run.output / files.CONFIG_FILE, config_text(run.config))
    except (ArgumentError, OSError) as error:
        lock.release()
        if isinstance(error, ArgumentError):
            raise TrainingError(in_flags(error)) from error
        raise TrainingError(f"--output {run.output} cannot be written to: {error}.") from error


def _acquire(lock: FolderLock) -> None:
    """Take the lock; raise ArgumentError if another run has it or the folder is read-only."""
    try:
        lock.acquire()
    except OSError as error:
        problem = f"cannot be written to: {error}."
        raise ArgumentError("output", str(lock.folder), problem) from error


class _Stopped(RunCallback):
    """True once a run has stopped before its end, in the process that has forked the ranks, too."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def __bool__(self) -> bool:
        return self._shared[0] > 0

    def on_iteration_end(
        self, trainer: L.Trainer, module: RLModule, metrics: dict[str, float]
    ) -> None:
        """Remember what the module has decided."""
        self._shared[0] = int(module.stopping)


def _check_frames_left(config: RunConfig, state: Mapping[str, Any]) -> None:
    done = state["frames"]
    refill = config.refill_frames if done and continuation(state, config).replay is None else 0
    if done + refill >= config.total_frames:
        more = f" and {refill} to fill the replay buffer again" if refill else ""
        raise ValueError(
            f"--total-frames must be greater than {done + refill}, {done} that the checkpoint "
            f"{config.resume} has already{more}, got {config.total_frames}."
        )


def make_trainer(run: Run, further: Sequence[L.Callback]) -> L.Trainer:
    """The Lightning trainer of a run, with callbacks after those that write its files."""
    config, output = run.config, run.output
    callbacks: list[L.Callback] = [
        ResultsFile(output),
        LoggerMetrics(),
        MetricsFiles(output),
        Checkpoints(output, config.checkpoint_every, run.checkpoint),
        *further,
    ]
    trainer = L.Trainer(
        accelerator="gpu" if config.gpus else "cpu",
        devices=config.ranks_per_node,
        num_nodes=config.num_nodes,
        strategy=_strategy(config),
        plugins=[cluster()],
        # The module stops the trainer when its frames are used up.
        max_epochs=-1,
        callbacks=callbacks,
        logger=make_loggers(config.logger, output, run.frames),
        default_root_dir=output,
        # None leaves torch's own setting alone.
        deterministic=config.deterministic or None,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's own would end the run inside of an iteration, and wait for ranks to be told, too.
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    return trainer


def check_devices(config: RunConfig) -> None:
    """Raise ValueError unless this machine has the devices that ``--gpus`` asks for."""
    available = torch.cuda.device_count()
    if config.gpus > available:
        raise ValueError(
            f"--gpus {config.gpus} needs {config.gpus} CUDA devices and this machine has "
            f"{available}; --cpu-ranks {config.gpus} runs as many ranks on the CPU."
        )


def _strategy(config: RunConfig) -> str | Strategy:
    if config.ranks == 1:
        return "auto"
    # The only buffers that change, statistics of observations and batches, reduce over the ranks
    # themselves.
    if config.gpus:
        return DDPStrategy(broadcast_buffers=False)
    # "popen" starts nothing where torchrun or srun has done so.
    start: Literal["popen", "fork"] = "popen" if launched_outside() else "fork"
    return DDPStrategy(start_method=start, process_group_backend="gloo", broadcast_buffers=False)


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda", local_rank()) if config.gpus else torch.device("cpu")


def _nothing() -> None:
    pass
