"""The command line that all training scripts share."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffpolicy.trainers.config.options import fields_of, in_flags
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import RunFinishedError, TrainingError
from diffpolicy.trainers.io import console, files
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.io.config_file import config_text
from diffpolicy.trainers.io.signals import StopSignal
from diffpolicy.trainers.methods import Method
from diffpolicy.trainers.run.launch import ConfigT, prepare, train
from diffpolicy.trainers.run.parser import Parser

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def parse_config(
    config_class: type[ConfigT], given: dict[str, Any]
) -> tuple[ConfigT, Checkpoint | None]:
    """Complete the options given on a command line to a configuration.

    Options that were not given have their defaults, those of ``preset`` if there is one, or with
    ``resume`` the checkpoint's values.

    Returns:
        The configuration, and the checkpoint that it continues.

    Raises:
        ValueError: one sentence that names the flag.
        RunFinishedError: ``--resume last`` finds a run whose environment steps are used up.
    """
    resume = given.get("resume")
    checkpoint = Checkpoint.find(resume, given.get("output"), config_class.method)
    if checkpoint is None:
        options = dict(config_class.presets.get(given.get("preset", ""), {}))
        given = {**given, "resume": None}
    else:
        options = _saved_options(config_class, checkpoint, given)
        given = {**given, "resume": str(checkpoint.path)}
    config = config_class(**{**options, **given})
    finished = checkpoint is not None and checkpoint.frames >= config.total_frames
    if resume == files.NEWEST and finished:
        raise RunFinishedError(f"finished before; results are in {config.output}")
    return config, checkpoint


def _saved_options(
    config_class: type[RunConfig], checkpoint: Checkpoint, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a checkpoint's run that hold unless others are given."""
    known = {field.name for field in fields_of(config_class)} - {"output"}
    if "gpus" in given or "cpu_ranks" in given:
        # Devices are chosen anew as a whole.
        known -= {"gpus", "cpu_ranks", "num_nodes"}
    if "collector" in given:
        known -= {"num_workers", "restart_workers"}
    return {name: value for name, value in checkpoint.state["config"].items() if name in known}


def run_script(
    method: Method,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
) -> int:
    """Parse a command line and train.

    Args:
        method: a registered method (``METHODS["dime"]``), or one of your own; the options of its
            configuration are the flags.
        argv: command line without the program's name; None takes ``sys.argv``.
        description: for ``--help``; by default the summary of the method.
        prog: what the program is called; by default as the script is.

    Returns:
        The exit code: 0, also after SIGTERM, SIGUSR1 and SIGHUP; 1 if training failed; 130 after
        Ctrl-C.

    Raises:
        SystemExit: with code 2 and one line on the console, for wrong flags.
    """
    try:
        return _run(method, argv, Parser(method.config, description or method.summary, prog))
    finally:
        console.STDOUT.settle()
        console.STDERR.settle()


def _run(method: Method, argv: Sequence[str] | None, parser: Parser) -> int:
    given = parser.parse_options(argv)
    try:
        config, checkpoint = parse_config(method.config, given)
        if parser.print_only:
            console.STDOUT.write(config_text(config))
            return 0
        run = prepare(config, method.module, checkpoint)
    except ValueError as error:
        parser.error(in_flags(error))
    except RunFinishedError as reason:
        console.say(str(reason))
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    notes = run.module.notes
    for line in filter(None, (notes.interface, notes.inexact)):
        console.note(line)
    stop = StopSignal()
    try:
        finished = train(run, stop)
    except KeyboardInterrupt:
        finished = False
    except TrainingError as error:
        # Of ranks that torchrun or srun has started, any may be the one that knows why.
        console.fail(f"{parser.prog}: training failed: {error}")
        return EXIT_FAILED
    if not finished:
        last = run.output / files.CHECKPOINT_FOLDER / files.LAST_CHECKPOINT
        console.say(f"stopped; continue with --resume {last}" if last.exists() else "stopped")
        return EXIT_INTERRUPTED if stop.interrupted() else 0
    console.note(notes.interface)
    console.say(f"finished; results are in {run.output}")
    return 0
