"""A trained policy that acts: NumPy in, NumPy out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.envs import EnvBase

from collectors.environments.spaces import Actions, Entry
from diffpolicy.errors import ArgumentError
from diffpolicy.policy import sharing
from diffpolicy.policy.export import Format, Noise, export_policy
from diffpolicy.policy.functions import ChainFunction, Mode, action_function
from diffpolicy.policy.observations import read_observation
from diffpolicy.policy.spec import PolicySpec


class Policy:
    """A policy without the rest of its training: no environment, critic or Lightning.

    :func:`diffpolicy.load_policy` reads one from a file; :meth:`of` takes an actor that was trained
    in a loop of your own.

    Args:
        spec: what it reads and drives, and how its actor is built.
        state: the parameters of the actor, observation statistics included.
        training: what is known about its training, as plain data: ``method``, ``env``, ``seed``,
            ``env_steps``, ``gradient_steps``, ``config``, ``versions``, ``evaluations``.
        device: where it acts; observations and actions are NumPy arrays all the same.

    Raises:
        ValueError: if the parameters are those of another actor.

    Attributes:
        spec: see above.
        training: see above; empty if nothing is known.
        run_folder: the run that it was loaded from, None otherwise.
        device: see above.
    """

    def __init__(
        self,
        spec: PolicySpec,
        state: Mapping[str, Tensor],
        *,
        training: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.training = dict(training or {})
        self.run_folder: Path | None = None
        self.device = torch.device(device)
        self._actor = spec.build_actor()
        try:
            self._actor.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(f"the parameters are not those of its actor: {error}") from error
        self._actor.requires_grad_(False)
        self.function = action_function(spec, self._actor).to(self.device).eval()
        self._mode: Mode = self.function.modes[0]
        self._generator = torch.Generator(self.device)
        self._generator.seed()

    @classmethod
    def of(cls, actor: torch.nn.Module, env: EnvBase, **options: Any) -> Self:
        """A copy of an actor from one of our builders, for the environment it was built for.

        Args:
            actor: the actor.
            env: an environment of :func:`collectors.make_env`.
            **options: ``training`` and ``device``.

        Raises:
            ArgumentError: for another actor or environment.
        """
        spec = PolicySpec.of(actor, env)
        if spec is None:
            raise ArgumentError(
                "actor",
                type(actor).__name__,
                "must come from a builder of diffpolicy.actors, and env from "
                "collectors.make_env: other actors cannot be described in a file.",
            )
        return cls(spec, actor.state_dict(), **options)

    def __repr__(self) -> str:
        """What it is, in one line."""
        words = [str(self.training[key]) for key in ("method", "env") if key in self.training]
        reads = ", ".join(f"{e.name} {e.space.shape}" for e in self.spec.entries)
        steps = f"{self.denoising_steps} denoising step{'s' if self.denoising_steps > 1 else ''}"
        return f"Policy({' on '.join(words) or 'untrained'}; reads {reads}; {steps})"

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What it reads of an observation, with names and spaces."""
        return self.spec.entries

    @property
    def actions(self) -> Actions:
        """The action space and its bounds."""
        return self.spec.actions

    @property
    def denoising_steps(self) -> int:
        """Number of denoising steps; may be set to another number.

        Raises:
            ArgumentError: when set to a number that this policy cannot act with.
        """
        return self.function.denoising_steps

    @denoising_steps.setter
    def denoising_steps(self, value: int) -> None:
        self.spec.check_steps(value)
        if isinstance(self.function, ChainFunction):
            self.function.denoising_steps = value

    @property
    def deterministic_step(self) -> str:
        """What actions without noise follow: ``"mean"``, ``"flow"`` or ``"published"``; may be set.

        A Gaussian has its mean only.

        Raises:
            ArgumentError: when set to another word.
        """
        return self._mode

    @deterministic_step.setter
    def deterministic_step(self, value: Mode) -> None:
        self._mode = self.check_mode("deterministic_step", value, "sample")

    def check_mode(self, argument: str, mode: Mode, *without: Mode) -> Mode:
        """Return a mode that this policy has; ArgumentError otherwise.

        Args:
            argument: its name in the error.
            mode: what was given.
            *without: modes that do not go.
        """
        known = [own for own in self.function.modes if own not in without]
        if mode not in known:
            raise ArgumentError(argument, mode, f"must be one of {', '.join(known)} here.")
        return mode

    def seed(self, seed: int) -> Self:
        """Make the following sampled actions repeatable; returns the policy."""
        self._generator.manual_seed(seed)
        return self

    def act(
        self,
        observation: Any,
        deterministic: bool = True,
        *,
        noise: NDArray[np.float32] | None = None,
    ) -> NDArray[Any]:
        """The action for an observation, or those for a batch of observations.

        Observations are normalised as in training.

        Args:
            observation: as the environment gives it: an array, or a dictionary of arrays, nested or
                with dotted names (``"body.speed"``). With more dimensions than the observation
                space it is a batch of any shape.
            deterministic: act without noise along :attr:`deterministic_step`; otherwise sample.
            noise: standard normal noise to sample with, ``[*batch, N + 1, A]`` for a chain of ``N``
                steps and ``[*batch, A]`` for a Gaussian; by default it is drawn. Only for
                ``deterministic=False``.

        Returns:
            An array of the type of the action space, inside of its bounds: ``[*batch, *shape of the
            action space]``.

        Raises:
            ArgumentError: for an observation or noise of another shape, with other keys, or that is
                not finite.
        """
        rows, batch = read_observation(self.spec.entries, observation)
        mode: Mode = self._mode if deterministic else "sample"
        drawn = self._noise(batch, deterministic, noise)
        with torch.inference_mode():
            given = [torch.from_numpy(row).to(self.device) for row in rows]
            action = self.function(given, drawn, mode)
        return self.spec.actions.to_environment(action.cpu().numpy())

    def _noise(
        self, batch: tuple[int, ...], deterministic: bool, noise: NDArray[np.float32] | None
    ) -> Tensor | None:
        if noise is None:
            return None if deterministic else self.draw_noise(batch)
        shape, expected = np.shape(noise), (*batch, *self.function.noise_shape)
        if deterministic:
            problem = "is for sampled actions; give deterministic=False, too."
            raise ArgumentError("noise", f"of the shape {shape}", problem)
        if shape != expected:
            problem = f"must have the shape {expected}."
            raise ArgumentError("noise", f"of the shape {shape}", problem)
        return torch.as_tensor(noise, dtype=torch.float32, device=self.device)

    def draw_noise(self, batch: tuple[int, ...] = ()) -> Tensor:
        """Standard normal noise ``[*batch, *noise_shape]`` from the generator of this policy."""
        shape = (*batch, *self.function.noise_shape)
        return torch.randn(shape, generator=self._generator, device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters of the actor, observation statistics included."""
        state: dict[str, Tensor] = self._actor.state_dict()
        return state

    def export(
        self,
        path: str | Path,
        *,
        format: Format = "onnx",
        mode: Mode = "sample",
        denoising_steps: int | None = None,
        noise: Noise = "input",
    ) -> Path:
        """Write this policy to a file that runs without this package, and check the file.

        Inputs are the observation entries as vectors ``[batch, F]``, named after their keys
        (``observation``, or ``observation_body_speed`` of a dictionary), and ``noise`` ``[batch,
        *noise_shape]``, standard normal. The output is ``action`` ``[batch, A]``, float32, in the
        units of the environment. The batch size is open, the number of denoising steps fixed. The
        file also says what it is: in the metadata entry ``diffpolicy`` of ONNX, in the extra file
        ``diffpolicy.json`` of torch.export.

        The file is then run, ONNX with onnxruntime, on batches of several sizes and compared with
        this policy, to 1e-5.

        Args:
            path: the file: ``.onnx``, or ``.pt2`` for torch.export.
            format: ``"onnx"`` (extra ``export``) or ``"torch"``.
            mode: ``"sample"``, or without noise ``"mean"``, ``"flow"`` or ``"published"``; see
                :attr:`deterministic_step`.
            denoising_steps: their number; by default that of this policy.
            noise: with ``"drawn"`` the file draws its noise itself and returns it as a second
                output, ``noise``.

        Returns:
            The file.

        Raises:
            ArgumentError: for an argument that does not work, or a package that is missing.
            ExportError: if the file does not do what this policy does. There is no file then.
        """
        return export_policy(
            self, path, format=format, mode=mode, denoising_steps=denoising_steps, noise=noise
        )

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> Path:
        """Write this policy into a folder, in the convention of Hugging Face.

        It then holds ``model.safetensors``, ``config.json``, and ``README.md``, the model card,
        with the environment, versions, seed, options and evaluations of the training, as far as
        they are known, and the learning curve of the run that the policy was loaded from.

        Args:
            folder: where; made if it does not exist.
            license: of the policy, in the names of the hub (``"mit"``).

        Raises:
            ArgumentError: if ``folder`` is a file or the folder of a run.
        """
        return sharing.save_pretrained(self, folder, license)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: torch.device | str = "cpu",
    ) -> "Policy":
        """The policy in a folder of :meth:`save_pretrained`, or in a repository of the hub.

        Args:
            source: the folder, or ``user/name``.
            revision: branch, tag or commit of the repository.
            token: for private repositories; by default that of ``hf auth login``.
            device: where it acts.

        Raises:
            ArgumentError: if there is no policy.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = sharing.pull_from_hub(str(source), revision, token)
        return sharing.read_pretrained(folder, device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub (extra ``hub``).

        Args:
            repo_id: ``user/name``; the repository is made if it does not exist.
            private: whether a new repository is private.
            token: by default that of ``hf auth login``.
            license: see :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            ArgumentError: if the hub refuses it or is out of reach.
        """
        return sharing.push_to_hub(self, repo_id, private=private, token=token, license=license)
