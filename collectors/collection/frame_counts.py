"""Counts of environment steps that only work out in whole rollouts."""


def check_whole_rollouts(
    argument: str, frames: int, frames_per_batch: int, *, also: int | None = None
) -> None:
    """Raise ValueError unless ``frames`` steps are one or several whole rollouts.

    Args:
        argument: what the error calls the number.
        frames: environment steps.
        frames_per_batch: environment steps in a rollout.
        also: another number that is allowed, for example -1 for "endless".

    Raises:
        ValueError: names the nearest larger number that works.
    """
    if frames == also or (frames >= 1 and frames % frames_per_batch == 0):
        return
    above = max(1, -(-frames // frames_per_batch)) * frames_per_batch
    if also is not None and frames < also:
        above = also
    other = "" if also is None else f"{also} or "
    raise ValueError(
        f"{argument} must be {other}a multiple of frames_per_batch="
        f"{frames_per_batch}, got {frames}; try {above}."
    )
