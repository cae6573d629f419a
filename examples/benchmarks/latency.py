"""How long an action takes on one core: the policy itself, torch.export and ONNX.

    python examples/benchmarks/latency.py --output examples/benchmarks/results/latency.json

measures policies of the CPU sizes on the spaces of HalfCheetah-v5 (17 numbers in, 6 out), one
observation at a time, and prints a table. Parameters are random: they do not change the time.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch

from collectors import make_env
from diffpolicy import Policy
from diffpolicy.actors import build_dime_networks, build_ppo_networks
from diffpolicy.files import versions, write_json

STEPS = (1, 2, 4, 8, 16)
BUILDERS: dict[str, Callable[..., Any]] = {
    "dime": build_dime_networks,
    "diffppo": build_ppo_networks,
}
Call = Callable[[], object]


def measure(call: Call, calls: int) -> dict[str, float]:
    """Milliseconds of one call: the median, and the fastest tenth, which a busy machine leaves."""
    for _ in range(20):
        call()
    times = np.empty(calls)
    for index in range(calls):
        start = time.perf_counter()
        call()
        times[index] = time.perf_counter() - start
    median, tenth = 1e3 * np.quantile(times, (0.5, 0.1))
    return {"median_ms": round(float(median), 4), "fast_ms": round(float(tenth), 4)}


def runners(policy: Policy, mode: Any, folder: Path) -> dict[str, Call]:
    """One action by each of the ways; the noise of a sample is drawn in the measured time."""
    generator = np.random.default_rng(0)
    observation = generator.standard_normal(policy.entries[0].shape, np.float32)
    shape, samples = (1, *policy.function.noise_shape), mode == "sample"
    policy.export(folder / "policy.pt2", format="torch", mode=mode)
    policy.export(folder / "policy.onnx", mode=mode)
    with (folder / "policy.pt2").open("rb") as file:
        program = torch.export.load(file).module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "policy.onnx", options)

    @torch.inference_mode()
    def exported() -> object:
        noise = (torch.randn(shape),) if samples else ()
        return program(torch.from_numpy(observation[None]), *noise).numpy()

    def onnx() -> object:
        inputs = {"observation": observation[None]}
        if samples:
            inputs["noise"] = generator.standard_normal(shape, np.float32)
        return session.run(None, inputs)

    return {
        "torch": lambda: policy.act(observation, deterministic=not samples),
        "torch.export": exported,
        "ONNX": onnx,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--output", type=Path, help="a json file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    env, rows = make_env(args.env), []
    for name, builder in BUILDERS.items():
        for steps in args.steps:
            policy = Policy.of(builder(env, denoising_steps=steps).actor, env)
            for mode in ("sample", "mean"):
                with TemporaryDirectory() as folder:
                    for way, call in runners(policy, mode, Path(folder)).items():
                        row = {"networks": name, "steps": steps, "mode": mode, "way": way}
                        rows.append({**row, **measure(call, args.calls)})
                        print(rows[-1], flush=True)
    for name in BUILDERS:
        print(table(name, rows))
    if args.output is not None:
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        load = round(os.getloadavg()[0], 1)
        content = {"env": args.env, "calls": args.calls, "load": load, **machine}
        write_json(args.output, {**content, "versions": versions(), "rows": rows})


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Median and, in brackets, the fastest tenth, in milliseconds, as Markdown."""
    own = [row for row in rows if row["networks"] == name]
    columns = list(dict.fromkeys((row["way"], row["mode"]) for row in own))
    lines = [f"| {name}, N | " + " | ".join(f"{way}, {mode}" for way, mode in columns) + " |"]
    lines.append("|---:" * (len(columns) + 1) + "|")
    for steps in dict.fromkeys(row["steps"] for row in own):
        cells = {(r["way"], r["mode"]): r for r in own if r["steps"] == steps}
        values = [f"{cells[c]['median_ms']:.3f} ({cells[c]['fast_ms']:.3f})" for c in columns]
        lines.append(f"| {steps} | " + " | ".join(values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
