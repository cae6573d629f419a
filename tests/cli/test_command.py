"""The command ``diffpolicy``: subcommands, help, and what it says about mistakes."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import diffpolicy
from diffpolicy.cli import COMMANDS, main
from diffpolicy.cli.listing import methods, own_tasks
from diffpolicy.trainers import METHODS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "lightning", "tensordict", "torchrl", "numpy", "matplotlib"}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    try:
        code = main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def wrong(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line about a command line that is refused."""
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    return err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",), ("-h",)):
        code, out, err = run(capsys, *words)
        assert (code, err) == (0, "")
        assert all(
            re.search(rf"^  {name} +{re.escape(c.summary)}$", out, re.M)
            for name, c in COMMANDS.items()
        )
    assert run(capsys, "--version") == (0, f"diffpolicy {diffpolicy.__version__}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["list"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_lists_come_without_torch(words: list[str]) -> None:
    code = (
        "import sys; from diffpolicy.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('loaded', *sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    loaded = set(ended.stderr.splitlines()[-1].split())
    assert loaded.isdisjoint(HEAVY - {"numpy"} if words == ["list"] else HEAVY)
    assert len(ended.stdout) > 100


def test_help_takes_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "diffpolicy", "--help"], check=True, stdout=-3)
        seconds.append(time.perf_counter() - start)
    # The machine may be busy with other tests; one quiet moment is enough.
    assert min(seconds) < 1.0


def test_a_mistyped_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no command tarin; did you mean train?" in wrong(capsys, "tarin")
    assert "diffpolicy --help lists all commands" in wrong(capsys, "zzz")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "dmie"], "there is no method dmie; did you mean dime?"),
        (["train", "xxxx"], "there is no method xxxx; methods are "),
        (["train", "--env", "Pendulum-v1"], "METHOD is missing"),
        (["train", "dime", "--totl-frames", "3"], "did you mean --total-frames?"),
        (["train", "nowhere:METHOD"], "names a module that cannot be imported"),
        (["train", "json:METHOD"], "the module json has no METHOD"),
        (["train", "json:loads"], "must be a diffpolicy.trainers.Method"),
        (["list", "method"], "invalid choice: 'method'"),
        (["eval", "--episode", "3", "x"], "there is no flag --episode; did you mean --episodes?"),
        (["eval", "nowhere"], "run nowhere does not exist."),
        (["eval", ".", "--episodes", "0"], "--episodes must be at least 1, got 0."),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in wrong(capsys, *words)


def test_the_list_of_methods_is_the_registry() -> None:
    found = {method.name: method for method in methods()}
    assert found.keys() == METHODS.keys()
    for name, method in METHODS.items():
        assert found[name].summary == method.summary
        assert found[name].presets == tuple(method.config.presets)


def test_the_list_of_tasks_holds_all_that_are_registered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from collectors.environments.tasks.multimodal import _TASKS

    assert own_tasks() == list(_TASKS)
    code, out, _ = run(capsys, "list", "tasks")
    assert code == 0
    assert "HalfCheetah-v5" in out
    assert "HalfCheetah-v4" not in out
    assert all(name in out for name in _TASKS)


# ---------------------------------------------------------------------------------------------
# What is not there, or in the way


@pytest.mark.parametrize("name", ["collectors", "objectives"])
def test_a_module_of_the_user_that_hides_ours_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("mine = 1\n")
    ended = subprocess.run(
        [sys.executable, "-m", "diffpolicy", "train", "dime"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"{name}.py is where Python finds the package {name}" in ended.stderr
    assert "rename it" in ended.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("lightning.pytorch", "diffpolicy[lightning]"),
        ("imageio", "diffpolicy[video]"),
        ("optuna", "diffpolicy[sweep]"),
        ("huggingface_hub", "diffpolicy[hub]"),
        ("onnx", "diffpolicy[export]"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("diffpolicy.cli.importlib.import_module", lacking)
    line = f"error: {module.partition('.')[0]} is not installed; pip install '{extra}'.\n"
    assert wrong(capsys, "list").endswith(line)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train", "dime"], ["eval", "."]])
def test_training_without_lightning_is_one_line(words: list[str], tmp_path: Path) -> None:
    # None in sys.modules is what Python keeps for a module that cannot be imported.
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "from diffpolicy.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith(
        "error: lightning is not installed; pip install 'diffpolicy[lightning]'."
    )


def test_a_module_that_we_know_nothing_of_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> None:
        raise ModuleNotFoundError("No module named 'typo'", name="typo")

    monkeypatch.setattr("diffpolicy.cli.importlib.import_module", lacking)
    with pytest.raises(ModuleNotFoundError):
        main(["list"])
