"""One file per method: its options, its parts, and a :class:`Method` that names them.

A method becomes known to the command line, the benchmarks and the tests by its line here.
"""

from diffpolicy.trainers.methods.dacer import DACER
from diffpolicy.trainers.methods.diffppo import DIFFPPO
from diffpolicy.trainers.methods.diffsac import DIFFSAC
from diffpolicy.trainers.methods.diffusion_ql import DIFFUSION_QL
from diffpolicy.trainers.methods.diffwpo import DIFFWPO
from diffpolicy.trainers.methods.dime import DIME
from diffpolicy.trainers.methods.dipo import DIPO
from diffpolicy.trainers.methods.dpmd import DPMD
from diffpolicy.trainers.methods.fpmd import FPMD
from diffpolicy.trainers.methods.gaussian_ppo import GAUSSIAN_PPO
from diffpolicy.trainers.methods.gaussian_wpo import GAUSSIAN_WPO
from diffpolicy.trainers.methods.maxent_dp import MAXENT_DP
from diffpolicy.trainers.methods.method import Kind, Method
from diffpolicy.trainers.methods.qsm import QSM
from diffpolicy.trainers.methods.qvpo import QVPO
from diffpolicy.trainers.methods.sac import SAC
from diffpolicy.trainers.methods.sdac import SDAC

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        DACER,
        DIFFPPO,
        DIFFSAC,
        DIFFUSION_QL,
        DIFFWPO,
        DIME,
        DIPO,
        DPMD,
        FPMD,
        GAUSSIAN_PPO,
        GAUSSIAN_WPO,
        MAXENT_DP,
        QSM,
        QVPO,
        SAC,
        SDAC,
    )
}
"""All methods by name."""

__all__ = ["METHODS", "Kind", "Method"]
