"""The configuration of DIME."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diffpolicy.actors import DIME_PAPER
from diffpolicy.trainers.config.off_policy import ChainConfig, check_value_range
from diffpolicy.trainers.config.options import above, at_least, between, flag_name, option

# The published configuration of DIME, where it differs from the small one.
_PAPER: dict[str, Any] = {
    "num_envs": 1,
    "updates_per_step": 2.0,
    "batch_size": 256,
    "lr_actor": 3e-4,
    "lr_critic": 3e-4,
    "denoising_steps": DIME_PAPER.denoising_steps,
    "actor_hidden_sizes": DIME_PAPER.network.actor_hidden,
    "critic_hidden_sizes": DIME_PAPER.critic.hidden,
}


@dataclass(frozen=True)
class DIMEConfig(ChainConfig):
    """DIME: the entropy bound of a denoising chain in soft actor-critic.

    The constructor takes every option as it is; :meth:`from_preset` begins with those of a preset.
    """

    method: ClassVar[str] = "dime"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cpu": {}, "paper": _PAPER}

    preset: str = option(
        "cpu",
        "defaults of all other flags: small networks and batches, or the published configuration ("
        + ", ".join(f"{flag_name(name)} {value}" for name, value in _PAPER.items())
        + ")",
        choices=("cpu", "paper"),
        fixed=True,
    )
    critic_type: Literal["categorical", "scalar"] = option(
        "categorical", "what the critics predict", choices=("categorical", "scalar"), fixed=True
    )
    value_range: tuple[float, float] | None = option(
        None,
        "range of categorical critics (default: derived from the rewards of the random steps, or "
        "from the task where its rewards are known to be bounded)",
        metavar=("MIN", "MAX"),
        fixed=True,
    )
    critic_reduction: Literal["mean", "min"] = option(
        "mean", "mean or minimum over the critics; min needs scalar ones", choices=("mean", "min")
    )
    num_next_actions: int = option(1, "next actions that a target averages over", valid=at_least(1))
    critic_entropy_coeff: float = option(
        0.005, "weight of the entropy of categorical critics", valid=at_least(0)
    )
    adam_beta1: float = option(
        0.5, "first Adam coefficient of policy and critics", valid=between(0, 0.999)
    )
    actor_grad_limit: float = option(
        1.0, "limit of every entry of the policy's gradient; NaN becomes 0", valid=above(0)
    )
    checkpoint_chain: bool = option(
        False, "save memory by computing activations of the chain a second time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        scalar = self.critic_type == "scalar"
        check_value_range(self.value_range, "--critic-type categorical", has_range=not scalar)
        if self.gamma == 1 and self.value_range is None and not scalar:
            raise ValueError(
                "--gamma 1 leaves the range of values open; give it with --value-range MIN MAX."
            )
        if self.critic_reduction == "min" and not scalar:
            raise ValueError("--critic-reduction min needs --critic-type scalar.")
