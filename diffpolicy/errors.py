"""Errors that every layer may raise; the standard library only."""


class ArgumentError(ValueError):
    """An argument has a value that does not work.

    It is raised where the rule is known, by the name that the argument has there. The command line
    shows the flag instead.

    Args:
        argument: name of the argument.
        value: what was given.
        problem: what is wrong with it and what would work; it continues the sentence that begins
            with the argument and its value.

    Attributes:
        argument: name of the argument.
        value: what was given.
        problem: what is wrong with it and what would work.

    Examples:
        >>> print(ArgumentError("num_envs", 0, "must be at least 1."))
        num_envs=0 must be at least 1.
    """

    def __init__(self, argument: str, value: object, problem: str) -> None:
        # The arguments themselves, so that the error can be pickled: workers raise it, too.
        super().__init__(argument, value, problem)
        self.argument = argument
        self.value = value
        self.problem = problem

    def __str__(self) -> str:
        """The sentence, in the words of Python."""
        return f"{self.argument}={self.value!r} {self.problem}"
