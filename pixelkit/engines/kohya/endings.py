"""How a watched run may end before its last step."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - not a fault of the program: what was asked cannot be done
    """The trainer cannot do this; the message says what to change."""


class Stopped(Exception):  # noqa: N818 - it ends the run in order
    """Leaves the training loop after a stop was asked for and everything is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


class NonFiniteError(Exception):
    """Something is NaN or infinite: `what` is "loss", "gradient", "latents" or "weights"."""

    def __init__(self, step: int, what: str, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.what = what
