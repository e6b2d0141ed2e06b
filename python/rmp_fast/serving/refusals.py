"""What the service answers when it does not answer with an image."""

from __future__ import annotations

__all__ = ["RequestError", "busy", "diverged", "draining", "expired", "invalid", "not_acceptable", "too_large"]


class RequestError(Exception):
    """A request that gets no image.

    Attributes:
        status: of HTTP.
        code: a word that a program can act on.
        message: what was expected, what came, what to do.
        retry_after: seconds after which the same request may succeed; None: it will not.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def invalid(message: str, status: int = 422) -> RequestError:
    """A value that is wrong (422), or bytes that are not what they must be (400)."""
    return RequestError(status, "invalid", message)


def not_acceptable(message: str) -> RequestError:
    """A kind of file or body that the service does not read."""
    return RequestError(415, "unsupported", message)


def too_large(message: str) -> RequestError:
    """More bytes or pixels than the service takes."""
    return RequestError(413, "too_large", message)


def busy(message: str, retry_after: int) -> RequestError:
    """The queue is full."""
    return RequestError(429, "busy", message, retry_after)


def draining() -> RequestError:
    """The service is going away and finishes what it has accepted."""
    return RequestError(503, "draining", "the service is shutting down and takes no new requests; try again later", 5)


def expired(seconds: float) -> RequestError:
    """The deadline passed first."""
    message = f"no result within the `deadline` of {seconds:g} s; ask for more time, or send fewer requests at once"
    return RequestError(504, "deadline", message, 1)


def diverged() -> RequestError:
    """The chain left the finite range; its last finite image is no estimate, and is not sent as if it were one."""
    message = (
        "the chain left the finite range and has no estimate; check that `image` is that of a picture on [0, 1], that "
        "`operator` and its options are those of the measurement, and that `noise_std` is not too small"
    )
    return RequestError(422, "diverged", message)
