"""Images: encoders in front of the networks of every method, and learning from pixels."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from pixel_tasks import Mixed, Spot
from small_methods import OFF_POLICY, small_config
from tensordict import TensorDict
from torch import nn

from collectors import make_env
from diffpolicy.errors import ArgumentError
from diffpolicy.networks import ImageEncoder
from diffpolicy.trainers import METHODS, RunConfig, prepare, train

ALL = pytest.mark.parametrize("method", METHODS)


class OwnEncoder(nn.Module):
    """A user's encoder, built from the shape of an image."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(int(np.prod(shape)), 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.flatten(1).float() / 255)


def pixels(method: str, output: Path, env: type[gym.Env[Any, Any]] = Spot, **options: Any) -> Any:
    own = {"env": env, "max_episode_steps": None, "encoder": "cnn", "total_frames": 80}
    return small_config(method, **{**own, "output": str(output), **options})


@pytest.mark.parametrize("shape", [(16, 16, 3), (3, 16, 16), (84, 84, 9), (5, 7, 1)])
def test_the_cnn_takes_channels_first_and_last(shape: tuple[int, ...]) -> None:
    encode = ImageEncoder(shape, features=7)
    image = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    assert encode(image).shape == (2, 7)
    assert torch.equal(encode(image), encode(image / 255 - 0.5))
    moved = image.movedim(-1, 1) if shape[-1] < shape[0] else image.movedim(1, -1)
    other = ImageEncoder(tuple(moved.shape[1:]), features=7)
    other.load_state_dict(encode.state_dict())
    assert torch.equal(other(moved), encode(image))


@ALL
def test_every_method_trains_encoders_on_images_and_vectors(method: str, tmp_path: Path) -> None:
    run = prepare(pixels(method, tmp_path, Mixed))
    loss: Any = run.module.loss
    before = {name: value.clone() for name, value in loss.named_parameters()}
    assert train(run)
    now = dict(loss.named_parameters())
    moved = {name for name, value in now.items() if not torch.equal(value, before[name])}
    for part in ("actor_network_params", "critic_network_params", "qvalue_network_params"):
        if hasattr(loss, part):
            convolutions = [n for n in moved if n.startswith(part) and "convolutions" in n]
            assert convolutions, (part, sorted(moved))
    if method in OFF_POLICY:
        stored = run.module.stream.buffer[:]  # type: ignore[attr-defined]
        assert stored["observation", "camera"].dtype is torch.uint8
        assert stored["next", "observation", "height"].dtype is torch.float32


@pytest.mark.parametrize("method", ["dime", "diffsac", "diffppo", "gaussian_ppo", "gaussian_wpo"])
def test_a_shared_encoder_is_moved_once_by_the_critics(method: str, tmp_path: Path) -> None:
    run = prepare(pixels(method, tmp_path, share_encoder=True))
    loss: Any = run.module.loss
    critic = "qvalue_network_params" if hasattr(loss, "qvalue_network") else "critic_network_params"
    shared = {id(value) for value in getattr(loss, critic).parameters()}
    both = [value for value in loss.actor_network_params.parameters() if id(value) in shared]
    assert sum(value.ndim == 4 for value in both) == 2  # convolutions
    if method in OFF_POLICY:
        optimizers: Any = run.module.configure_optimizers()
        groups = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        assert len({id(p) for p in groups}) == len(groups)
    env = make_env(Spot, num_envs=4)
    batch = env.rollout(2, run.module.actor).reshape(-1)  # type: ignore[attr-defined]
    if method == "dime":
        loss.actor_loss(batch)[0].backward()
        assert all(value.grad is None for value in both)
        loss.qvalue_loss(batch)[0].backward()
        assert all(value.grad is not None and value.grad.any() for value in both)


def test_sac_does_not_share_encoders(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"share_encoder=True does not go with SACLoss"):
        prepare(pixels("sac", tmp_path, share_encoder=True))


def test_own_encoders_are_modules_classes_or_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eyes.py").write_text(
        "import torch\n"
        "class Eye(torch.nn.Module):\n"
        "    def __init__(self, shape):\n"
        "        super().__init__()\n"
        "        self.shape = shape\n"
        "    def forward(self, image):\n"
        "        return image.float().mean((1, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    for encoder in ("eyes:Eye", OwnEncoder, OwnEncoder((16, 16, 1))):
        run = prepare(pixels("dime", tmp_path / "run", encoder=encoder))
        actor = run.module.actor  # type: ignore[attr-defined]
        out = actor(TensorDict({"observation": torch.zeros(2, 16, 16, 1, dtype=torch.uint8)}, [2]))
        assert out["action"].shape == (2, 2)
        assert type(run.module.parts.loss.actor_network.encoder[0].module.images[0]).__name__ in (  # type: ignore[attr-defined]
            "Eye",
            "OwnEncoder",
        )


def test_images_without_an_encoder_name_the_flag() -> None:
    message = (
        r"observes camera, an image of the shape \(1, 16, 16\), which needs an encoder: add "
        r"--encoder cnn \(or module:Class\), or read other entries \(--observation-keys height\)\.$"
    )
    with pytest.raises(ArgumentError, match=message):
        prepare(small_config("dime", env=Mixed))


def test_an_encoder_without_images_is_refused() -> None:
    with pytest.raises(ArgumentError, match="encoder='cnn' is for images, but Pendulum-v1 obs"):
        prepare(small_config("dime", encoder="cnn"))
    with pytest.raises(ValueError, match="--share-encoder needs --encoder"):
        small_config("dime", share_encoder=True)


def test_an_encoder_that_keeps_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder must map images \[2, 16, 16, 1\] to features"):
        prepare(small_config("dime", env=Spot, max_episode_steps=None, encoder=nn.Identity()))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_dime_learns_where_to_point_from_pixels(shared: bool, tmp_path: Path) -> None:
    config: RunConfig = METHODS["dime"].config(
        env=Spot,
        encoder="cnn",
        share_encoder=shared,
        num_envs=4,
        denoising_steps=4,
        actor_hidden_sizes=(64, 64),
        critic_hidden_sizes=(64, 64),
        critic_head="scalar",
        policy_delay=1,
        learning_starts=500,
        updates_per_step=0.5,
        batch_size=64,
        total_frames=4_000,
        eval_every=10_000,
        eval_episodes=50,
        temperature=0.01,
        learn_temperature=False,
        logger=("csv",),
        output=str(tmp_path / "run"),
    )
    run = prepare(config)
    assert train(run)
    first, *_, last = run.module.progress.evaluations
    # Without a look at the image the best action, in the middle, costs 0.54 on average.
    assert first.return_mean < -1.0
    assert last.return_mean > -0.35
