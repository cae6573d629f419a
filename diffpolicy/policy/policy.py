"""A trained policy that acts: NumPy in, NumPy out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchrl.envs import EnvBase

from collectors.environments.spaces import Actions, Entry
from diffpolicy.policy import sharing
from diffpolicy.policy.export import Format, Noise, export_policy
from diffpolicy.policy.functions import ChainFunction, Mode, action_function
from diffpolicy.policy.memory import Memory
from diffpolicy.policy.observations import read_observation
from diffpolicy.policy.spec import PolicySpec


class Policy:
    """A policy without the rest of its training: no environment, critic or Lightning.

    :func:`diffpolicy.load_policy` reads one from a file; :meth:`of` takes an actor that was trained
    in a loop of your own. One that reads histories or plans several actions remembers its episodes:
    call :meth:`reset` when they begin.

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
        interface: what it is given and what it gives, and what its network reads and plans.
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
        self.interface = spec.interface
        self.training = dict(training or {})
        self.run_folder: Path | None = None
        self.device = torch.device(device)
        self._actor = spec.build_actor()
        try:
            self._actor.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(f"the parameters are not those of its actor: {error}") from error
        self._actor.requires_grad_(False)
        self.function = action_function(self.interface, self._actor).to(self.device).eval()
        self._mode: Mode = self.function.modes[0]
        self._generator = torch.Generator(self.device)
        self._generator.seed()
        self._memory = Memory(self.interface)

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
        return cls(PolicySpec.of(actor, env), actor.state_dict(), **options)

    def __repr__(self) -> str:
        """What it is, in one line."""
        words = [str(self.training[key]) for key in ("method", "env") if key in self.training]
        steps = f"{self.denoising_steps} denoising step{'s' if self.denoising_steps > 1 else ''}"
        return f"Policy({' on '.join(words) or 'untrained'}; {self.interface.words()}; {steps})"

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What it reads of an observation, with names and spaces."""
        return self.interface.observed

    @property
    def actions(self) -> Actions:
        """The action space and its bounds."""
        return self.interface.actions

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

        Raises:
            ArgumentError: when set to another word.
        """
        return self._mode

    @deterministic_step.setter
    def deterministic_step(self, value: Mode) -> None:
        self._mode = self.function.check_mode("deterministic_step", value, "sample")

    def seed(self, seed: int) -> Self:
        """Make the following sampled actions repeatable; returns the policy."""
        self._generator.manual_seed(seed)
        return self

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Forget the last observations and the rest of the plan: an episode begins.

        Args:
            rows: booleans of the shape of the batch: the rows whose episodes begin. By default all,
                and the next batch may have another shape.

        Raises:
            ArgumentError: for rows of another shape.
        """
        self._memory.reset(rows)

    def replan(self) -> None:
        """Forget the rest of the plan, so that the next action is the first one of a new plan."""
        self._memory.replan()

    @property
    def planned(self) -> NDArray[Any] | None:
        """The last plan of each row ``[*batch, chunk, *shape of the action space]``, as a whole.

        None before the first action of an episode.
        """
        return self._memory.plan

    def act(
        self,
        observation: Any,
        deterministic: bool = True,
        *,
        noise: NDArray[np.float32] | None = None,
    ) -> NDArray[Any]:
        """The action for an observation, or those for a batch of observations.

        Observations are normalised as in training. A policy that reads histories remembers those
        that it was given since :meth:`reset`. One that plans several actions at once gives one of
        them after the other, and plans anew when they are used up.

        Args:
            observation: as the environment gives it: an array, a dictionary of arrays, nested or
                with dotted names (``"body.speed"``), or a TensorDict. With more dimensions than the
                observation space it is a batch of any shape.
            deterministic: act without noise along :attr:`deterministic_step`; otherwise sample.
            noise: standard normal noise to sample with, ``[*batch, N + 1, A]`` for a chain of ``N``
                steps and ``[*batch, A]`` for a Gaussian, where ``A`` counts the dimensions of a
                whole plan; by default it is drawn. Only for ``deterministic=False``. Rows that do
                not plan in this step do not read theirs.

        Returns:
            An array of the type of the action space, inside of its bounds: ``[*batch, *shape of the
            action space]``.

        Raises:
            ArgumentError: for an observation or noise of another shape, with other keys, or that is
                not finite, and for another batch than before in the same episodes.
        """
        given = read_observation(self.entries, observation)
        noise = self.function.read_noise(noise, given.batch, deterministic)
        rows = self._memory.observe(given)
        due = self._memory.due
        if due.any():
            drawn = None
            if not deterministic:
                count = int(due.sum())
                drawn = self.draw_noise((count,)) if noise is None else torch.from_numpy(noise[due])
            mode: Mode = self._mode if deterministic else "sample"
            plan = self.function.plan([row[due] for row in rows], drawn, mode, self.device)
            self._memory.keep(self.interface.to_environment(plan))
        return self._memory.next_action()

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

        Inputs are the observation entries as vectors ``[batch, F]``, or images, named after their
        keys (``observation``, or ``observation_body_speed`` of a dictionary), and ``noise``
        ``[batch, *noise_shape]``, standard normal. The output is ``action`` ``[batch, A]``,
        float32, in the units of the environment. A file remembers nothing: it takes whole
        histories, and gives whole chunks of actions, ``[batch, chunk, A]``. The batch size is open,
        the number of denoising steps fixed. The file also says what it is: in the metadata entry
        ``diffpolicy`` of ONNX, in the extra file ``diffpolicy.json`` of torch.export.

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
            token: by default that of ``hf auth login``.
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
