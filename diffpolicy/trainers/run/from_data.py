"""Runs that are trained on a data set, without steps of the environment: what they share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io import files
from diffpolicy.trainers.methods import METHODS
from diffpolicy.trainers.run.launch import Run, prepare
from diffpolicy.trainers.run.results import write_results


def check_config(config: RunConfig, needed: Mapping[str, object], *, what: str, hint: str) -> None:
    """Raise ArgumentError for options that have no place in such a run.

    Args:
        config: of the run.
        needed: values that options must have.
        what: the run, in messages.
        hint: which methods there are.
    """
    if config.method not in METHODS:
        raise ArgumentError("method", config.method, f"is not registered; {hint}")
    for name, plain in needed.items():
        if getattr(config, name) != plain:
            problem = f"is not supported by {what}, which needs {plain}."
            raise ArgumentError(name, getattr(config, name), problem)


@contextmanager
def prepared(config: RunConfig) -> Iterator[Run]:
    """A run, whose environments and whose folder are let go of at the end.

    Raises:
        ValueError: for a configuration that does not work.
    """
    run = prepare(config)
    assert run.lock is not None  # there is one process
    try:
        yield run
    finally:
        run.module.close()
        run.lock.release()


def write_run(run: Run, key: str, described: Mapping[str, str | int]) -> None:
    """Results and the checkpoint, in the format of all runs.

    Args:
        run: whose networks have been trained.
        key: under which checkpoints say how.
        described: what is said there.

    Raises:
        TrainingError: the folder cannot be written to.
    """
    module = run.module
    content = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    content[files.CHECKPOINT_KEY][key] = dict(described)
    path = run.output / files.CHECKPOINT_FOLDER / files.LAST_CHECKPOINT
    try:
        write_results(run.output, module)
        files.write_plain(path, content)
    except OSError as error:
        raise TrainingError(f"--output {run.output} cannot be written to: {error}.") from error
