"""Lightning trainers: the only part of the library that imports lightning.

:data:`METHODS` names every training method, and :class:`Learner` makes a class of each, in the way
of Stable-Baselines3. :func:`run_script` is the command line of all training
scripts, :func:`prepare` and :func:`train` are its two halves. A method of your own is a
:class:`Method`: a configuration, and a function that builds :class:`OnPolicyParts` or
:class:`OffPolicyParts`, which :class:`OnPolicyModule` and :class:`OffPolicyModule` train.
"""

from collectors import EVALUATION_SEED
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.loops.base import RLModule, RunCallback
from diffpolicy.trainers.loops.evaluation import Evaluation
from diffpolicy.trainers.loops.off_policy import OffPolicyModule, OffPolicyParts
from diffpolicy.trainers.loops.on_policy import OnPolicyModule, OnPolicyParts
from diffpolicy.trainers.loops.optimizer import Optimizer
from diffpolicy.trainers.methods import METHODS, Method
from diffpolicy.trainers.methods.diffppo import DiffPPOConfig
from diffpolicy.trainers.methods.diffsac import DiffSACConfig
from diffpolicy.trainers.methods.diffwpo import DiffWPOConfig
from diffpolicy.trainers.methods.dime import DIMEConfig
from diffpolicy.trainers.methods.gaussian_ppo import GaussianPPOConfig
from diffpolicy.trainers.methods.gaussian_wpo import GaussianWPOConfig
from diffpolicy.trainers.methods.sac import SACConfig
from diffpolicy.trainers.run.cli import run_script
from diffpolicy.trainers.run.clone import Cloning, clone
from diffpolicy.trainers.run.launch import Run, prepare, train
from diffpolicy.trainers.run.learner import LEARNERS, Learner
from diffpolicy.trainers.run.offline import OfflineTraining, train_offline
from diffpolicy.trainers.run.trained import evaluate_run, load_run

__all__ = [
    "EVALUATION_SEED",
    "LEARNERS",
    "METHODS",
    "Cloning",
    "DIMEConfig",
    "DiffPPOConfig",
    "DiffSACConfig",
    "DiffWPOConfig",
    "Evaluation",
    "GaussianPPOConfig",
    "GaussianWPOConfig",
    "Learner",
    "Method",
    "OffPolicyConfig",
    "OffPolicyModule",
    "OffPolicyParts",
    "OfflineTraining",
    "OnPolicyConfig",
    "OnPolicyModule",
    "OnPolicyParts",
    "Optimizer",
    "RLModule",
    "Run",
    "RunCallback",
    "RunConfig",
    "SACConfig",
    "TrainingError",
    "clone",
    "evaluate_run",
    "load_run",
    "prepare",
    "run_script",
    "train",
    "train_offline",
]
