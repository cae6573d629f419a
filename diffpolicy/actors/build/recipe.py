"""How an actor is built, as plain data that checkpoints and shared policies carry."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, get_args

from diffpolicy.actors.build.own_encoders import encoder_from_plain, plain_encoder
from diffpolicy.actors.configs import (
    AnyProcessConfig,
    DiffusionConfig,
    FlowConfig,
    MeanFlowConfig,
    NetworkConfig,
    ProcessConfig,
)
from diffpolicy.sde import DeterministicStep

ActorKind = Literal[
    "denoising",
    "diffusion",
    "flow",
    "mean_flow",
    "gaussian_chain",
    "gaussian_ppo",
    "gaussian_sac",
]
ConfigT = TypeVar("ConfigT")
#: The options of the process of each kind of actor that has one.
PROCESS_CONFIGS: dict[ActorKind, type[AnyProcessConfig]] = {
    "denoising": ProcessConfig,
    "diffusion": DiffusionConfig,
    "flow": FlowConfig,
    "mean_flow": MeanFlowConfig,
}


@dataclass(frozen=True)
class ActorRecipe:
    """All that an actor needs besides the sizes of its environment and its parameters.

    :func:`~diffpolicy.actors.build.actors.make_actor` follows it. The actors of all builders carry
    theirs, see :func:`recipe_of`.

    Attributes:
        kind: which actor: a :class:`~diffpolicy.actors.DenoisingActor` on a
            :class:`~diffpolicy.sde.DenoisingProcess` (``"denoising"``), a
            :class:`~diffpolicy.sde.VariancePreservingProcess` (``"diffusion"``), a
            :class:`~diffpolicy.sde.RectifiedFlowProcess` (``"flow"``) or a
            :class:`~diffpolicy.sde.MeanFlowProcess` (``"mean_flow"``), a
            :class:`~diffpolicy.actors.GaussianChainActor`, or TorchRL's TanhNormal actor with the
            networks of PPO or those of SAC.
        network: options of its network.
        denoising_steps: number of steps ``N`` it is trained with; 1 without a chain.
        process: options of its denoising process; None without a chain.
        deterministic_step: what a chain without noise follows, see
            :class:`~diffpolicy.actors.DenoisingActor`.
    """

    kind: ActorKind
    network: NetworkConfig
    denoising_steps: int = 1
    process: AnyProcessConfig | None = None
    deterministic_step: DeterministicStep = "mean"

    def plain(self) -> dict[str, Any]:
        """Plain data for a file; networks of one's own in the options stay as they are.

        Raises:
            ArgumentError: for an encoder of one's own that no file can describe.
        """
        encoder = plain_encoder(self.network.encoder)
        values = dataclasses.asdict(self)
        values["network"]["encoder"] = encoder
        return values

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that :meth:`plain` has written, through JSON or not.

        Raises:
            ValueError: if it is of another version, naming what is unknown.
            ArgumentError: if an encoder of one's own cannot be imported.
        """
        values = dict(data)
        if values.get("kind") not in get_args(ActorKind):
            raise ValueError(
                f"the kind of its actor is {values.get('kind')!r}; this version knows "
                f"{', '.join(get_args(ActorKind))}"
            )
        network = dict(values.get("network", {}))
        network["encoder"] = encoder_from_plain(network.get("encoder"))
        values["network"] = _config(NetworkConfig, network)
        if values.get("process") is not None:
            kind = PROCESS_CONFIGS.get(values["kind"], ProcessConfig)
            values["process"] = _config(kind, values["process"])
        return _config(cls, values)


def chain_recipe(
    network: NetworkConfig,
    denoising_steps: int,
    process: AnyProcessConfig,
    deterministic_step: DeterministicStep = "mean",
) -> ActorRecipe:
    """The recipe of a chain; the type of the options of its process says which kind it is."""
    (kind,) = (kind for kind, config in PROCESS_CONFIGS.items() if isinstance(process, config))
    return ActorRecipe(kind, network, denoising_steps, process, deterministic_step)


def recipe_of(actor: object) -> ActorRecipe | None:
    """The recipe of an actor from one of the builders; None of any other actor."""
    return getattr(actor, "recipe", None)


def _config(kind: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """A dataclass of plain values; JSON has made lists of its tuples."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(data.keys() - known)
    if unknown:
        raise ValueError(f"this version does not know {', '.join(unknown)} of {kind.__name__}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
