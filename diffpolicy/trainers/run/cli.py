"""The command line that all training scripts share."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from diffpolicy.trainers.config.parser import Parser
from diffpolicy.trainers.errors import RunFinishedError, TrainingError
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.cluster import is_first_process
from diffpolicy.trainers.methods import Method
from diffpolicy.trainers.run.launch import ConfigT, prepare, train
from diffpolicy.trainers.run.scope import StopSignal

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def parse_config(config_class: type[ConfigT], given: dict[str, Any]) -> ConfigT:
    """Complete the options given on a command line to a configuration.

    Options that were not given have their defaults, those of ``preset`` if there is one, or with
    ``resume`` the checkpoint's values.

    Raises:
        ValueError: one sentence that names the flag.
        RunFinishedError: ``--resume last`` finds a run whose environment steps are used up.
    """
    options: dict[str, Any] = {}
    state: dict[str, Any] = {}
    newest = given.get("resume") == files.NEWEST
    if newest:
        given = {**given, "resume": files.newest_checkpoint(given.get("output"))}
    if given.get("resume") is not None:
        state = files.read_checkpoint(given["resume"])
        files.check_method(given["resume"], state, config_class.method)
        options = {**state["config"], "output": None}
        if "gpus" in given or "cpu_ranks" in given:
            # Devices are chosen anew as a whole.
            for name in ("gpus", "cpu_ranks", "num_nodes"):
                options.pop(name, None)
        if "collector" in given:
            for name in ("num_workers", "restart_workers"):
                options.pop(name, None)
    else:
        options = dict(config_class.presets.get(given.get("preset", ""), {}))
    known = {field.name for field in dataclasses.fields(config_class)}
    options = {name: value for name, value in options.items() if name in known}
    config = config_class(**{**options, **given})
    if newest and state and state["frames"] >= config.total_frames:
        raise RunFinishedError(f"finished before; results are in {config.output}")
    return config


def run_script(
    method: Method,
    argv: Sequence[str] | None = None,
    description: str | None = None,
) -> int:
    """Parse a command line and train.

    Args:
        method: a registered method (``METHODS["dime"]``), or one of your own; the options of its
            configuration are the flags.
        argv: command line without the program's name; None takes ``sys.argv``.
        description: for ``--help``; by default the summary of the method.

    Returns:
        The exit code: 0, also after SIGTERM; 1 if training failed; 130 after Ctrl-C.

    Raises:
        SystemExit: with code 2 and one line on the console, for wrong flags.
    """
    parser = Parser(method.config, description or method.summary)
    given = parser.parse_options(argv)
    try:
        run = prepare(parse_config(method.config, given), method.module)
    except ValueError as error:
        parser.error(str(error))
    except RunFinishedError as reason:
        _say(str(reason))
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    stop = StopSignal()
    try:
        finished = train(run, stop)
    except KeyboardInterrupt:
        finished = False
    except TrainingError as error:
        # Of ranks that torchrun or srun has started, any may be the one that knows why.
        print(f"{parser.prog}: training failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    if not finished:
        last = run.output / files.CHECKPOINT_FOLDER / files.LAST_CHECKPOINT
        _say(f"stopped; continue with --resume {last}" if last.exists() else "stopped")
        return EXIT_INTERRUPTED if stop.interrupted() else 0
    _say(f"finished; results are in {run.output}")
    return 0


def _say(line: str) -> None:
    if is_first_process():
        print(line)
