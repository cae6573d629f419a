"""Runs that begin with the networks of another one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_methods import small_config, small_options, words

from diffpolicy.cli import main
from diffpolicy.trainers import METHODS, RLModule, prepare
from diffpolicy.trainers.io.checkpoint import Checkpoint

ACTOR = "loss.actor_network_params."


def begun(name: str, run: Path, **options: Any) -> RLModule:
    """The module of a run of a method that has been prepared to begin with another run."""
    return prepare(small_config(name, init_from=str(run), seed=9, **options)).module


def test_all_networks_are_those_of_a_run_of_the_same_method(dime_run: Path) -> None:
    theirs = Checkpoint.of_run(dime_run, "run").content["state_dict"]
    module = begun("dime", dime_run, temperature=0.5)
    ours = module.state_dict()
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {
        "loss.temperature.log_alpha"
    }
    assert module.warm_parts == ("actor", "critic")
    assert (module.progress.frames, module.progress.evaluations) == (0, [])


@pytest.mark.parametrize("name", ["diffsac", "diffppo"])
def test_another_method_takes_the_same_actor(name: str, dime_run: Path) -> None:
    theirs = Checkpoint.of_run(dime_run, "run").content["state_dict"]
    process = {k: getattr(small_config("dime"), k) for k in ("prior_std", "step_schedule")}
    options = {**process, "step_size": 0.1, "per_step": False}
    known = {k: v for k, v in options.items() if k in METHODS[name].config.__dataclass_fields__}
    plain = {"normalize_observations": False} if name == "diffppo" else {}
    module = begun(name, dime_run, **known, **plain)
    ours = module.state_dict()
    taken = {key for key in ours if key.startswith(ACTOR)}
    assert taken == {key for key in theirs if key.startswith(ACTOR)}
    assert all(torch.equal(ours[key], theirs[key]) for key in taken)
    fresh = prepare(small_config(name, seed=9, **known, **plain)).module.state_dict()
    assert all(torch.equal(ours[key], fresh[key]) for key in ours.keys() - taken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor_hidden_sizes": (4,)}, r"actor_network_params.*\[8\] there and \[4\] here"),
        ({"critic_hidden_sizes": (4,)}, r"qvalue_network_params.* there and .* here"),
        ({"denoising_steps": 3}, r"\[2\] there and \[3\] here; give this run"),
        ({"env": "InvertedPendulum-v5", "max_episode_steps": 5}, "there and .* here"),
        ({"prior_std": 0.3}, r"process.prior_std is .* and here it is 0\.3"),
        ({"value_range": (-7.0, 7.0)}, "support.atoms is"),
    ],
)
def test_other_networks_are_refused(options: dict[str, Any], message: str, dime_run: Path) -> None:
    with pytest.raises(ValueError, match=f"init_from='.*last.ckpt' is a run of dime .*{message}"):
        begun("dime", dime_run, **options)


def test_the_flag_names_what_is_wrong(
    dime_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, message in ((tmp_path / "x", "does not exist"), (tmp_path, "without a run")):
        flags = words(METHODS["dime"], small_options(METHODS["dime"], init_from=str(source)))
        with pytest.raises(SystemExit, match="2"):
            main(["train", "dime", *flags, "--output", str(tmp_path / "run")])
        assert f"--init-from {source}" in (err := capsys.readouterr().err)
        assert message in err


def test_a_warm_start_fills_its_buffer_with_the_policy_and_can_be_resumed(
    dime_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.ckpt"
    source.write_bytes((dime_run / "checkpoints" / "last.ckpt").read_bytes())
    # Random steps are made by the collector; a policy that has learned makes them itself.
    given: list[int] = []
    module_class = type(begun("dime", source))
    make = module_class.make_collector

    def noted(self: Any, *args: Any, random_frames: int = 0, **options: Any) -> Any:
        given.append(random_frames)
        return make(self, *args, random_frames=random_frames, **options)

    monkeypatch.setattr(module_class, "make_collector", noted)
    options = small_options(METHODS["dime"], init_from=str(source), checkpoint_every=40)
    flags = words(METHODS["dime"], options)
    output = tmp_path / "run"
    assert main(["train", "dime", *flags, "--output", str(output)]) == 0
    assert given == [0]
    source.unlink()
    more = ["--resume", "last", "--output", str(output), "--total-frames", "160"]
    assert main(["train", "dime", *more]) == 0
    assert Checkpoint.of_run(output, "run").frames == 160
