"""The model card of a policy: what it does, how it was trained, how well it does."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diffpolicy.files import PLOT_FILE

if TYPE_CHECKING:
    from diffpolicy.policy.policy import Policy

# Rows of the table of evaluations, evenly chosen; the last one is always there.
_ROWS = 20


def model_card(
    policy: "Policy", training: dict[str, Any], license: str | None, *, has_plot: bool
) -> str:
    """The text of README.md, with the metadata that the hub reads.

    Args:
        policy: the policy.
        training: what is told about its training.
        license: its license, in the names of the hub (``"mit"``).
        has_plot: whether its learning curve lies beside it.
    """
    method, env = training.get("method", "a diffusion policy"), training.get("env", "")
    title = f"{method} on {env}" if env else str(method)
    parts = [
        _metadata(training, license),
        f"# {title}",
        f"A policy of the Python package diffpolicy: {_what(policy)}.",
        _usage(),
        "## Evaluation",
        *_evaluation(training),
        *([f"![Return of evaluations over environment steps]({PLOT_FILE})"] if has_plot else []),
        "## Training",
        *_training(training),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(training: dict[str, Any], license: str | None) -> str:
    """The YAML at the top; JSON is YAML, and quotes whatever the values hold."""
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "diffusion-policy"]
    tags += [str(training[key]) for key in ("env", "method") if key in training]
    lines = ["library_name: diffpolicy", "pipeline_tag: reinforcement-learning"]
    if license is not None:
        lines.append(f"license: {json.dumps(license)}")
    lines.append(f"tags: {json.dumps(tags)}")
    evaluations = training.get("evaluations") or []
    if evaluations and "env" in training:
        index = {
            "name": training.get("method", "diffpolicy"),
            "results": [
                {
                    "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
                    "dataset": {"name": training["env"], "type": training["env"]},
                    "metrics": [
                        {
                            "type": "mean_reward",
                            "name": "mean_reward",
                            "value": _return(evaluations[-1]),
                            "verified": False,
                        }
                    ],
                }
            ],
        }
        lines.append(f"model-index: {json.dumps([index])}")
    return "\n".join(["---", *lines, "---"])


def _what(policy: "Policy") -> str:
    steps, process = policy.denoising_steps, policy.spec.actor.process
    kind = f"a denoising chain of {steps} steps" if process is not None else "a squashed Gaussian"
    low, high = policy.actions.low, policy.actions.high
    drives = f"actions {policy.actions.space.shape} in [{low.min():g}, {high.max():g}]"
    return f"{kind} that {policy.interface.words()}, and gives {drives}"


def _usage() -> str:
    return (
        "```python\n"
        "from diffpolicy import load_policy\n\n"
        'policy = load_policy("user/name")  # this repository, or a folder with its files\n'
        "policy.reset()  # when an episode begins\n"
        "action = policy.act(observation)  # NumPy in, NumPy out; one or a batch\n"
        "```"
    )


def _evaluation(training: dict[str, Any]) -> Iterator[str]:
    evaluations = training.get("evaluations") or []
    if not evaluations:
        yield "Nothing is known."
        return
    config = training.get("config", {})
    acts = config.get("eval_policy", "unknown")
    last = evaluations[-1]
    yield (
        f"Return after {last['env_steps']} environment steps: **{_return(last)}** (mean and "
        f"standard deviation over {last['episodes']} episodes of environments of their own; "
        f"actions: {acts}). It is that of the last evaluation, not of the best one."
    )
    chosen = {round(i * (len(evaluations) - 1) / (_ROWS - 1)) for i in range(_ROWS)}
    rows = [evaluations[i] for i in sorted(chosen)]
    lines = [f"| {row['env_steps']} | {_return(row)} |" for row in rows]
    yield "\n".join(["| environment steps | return |", "|---:|---:|", *lines])


def _return(evaluation: dict[str, Any]) -> str:
    return f"{evaluation['return_mean']:.2f} +/- {evaluation['return_std']:.2f}"


def _training(training: dict[str, Any]) -> Iterator[str]:
    if not training:
        yield "Nothing is known."
        return
    names = {
        "method": "method",
        "env": "environment",
        "seed": "seed",
        "env_steps": "environment steps",
        "gradient_steps": "gradient steps",
        "wall_seconds": "seconds",
    }
    rows = [(text, training[key]) for key, text in names.items() if key in training]
    rows += sorted(training.get("versions", {}).items())
    yield "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(v)} |" for name, v in rows)])
    if "config" in training:
        options = json.dumps(training["config"], indent=2)
        yield f"All options:\n\n```json\n{options}\n```"


def _cell(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)
