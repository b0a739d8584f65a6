"""Every error that Sheet Anchor raises on purpose.

    SheetAnchorError
    ├── BadSettings          a flag, variable or file entry is wrong
    ├── BadRecording         a recording cannot be read
    ├── BadModel             a model file or its manifest cannot be used
    ├── ModelConflict        the model in use was changed at the same time
    ├── DecodeError          (in `sheetanchor.sbe`) a frame is not one of the four known messages
    ├── ExchangeError        a request to the exchange's REST interface failed
    │   ├── ExchangeUnavailable   no answer, a 5xx, or a refused connection: worth another try
    │   ├── RateLimited           429 or 418; `retry_after_s` says how long to wait
    │   ├── Unresponsive          no answer within the whole time-out: another try would delay the caller as long again
    │   └── ExchangeRefused       any other 4xx: a retry will not help
    ├── RedisError           a Redis command failed
    │   ├── RedisUnavailable      no connection, time-out, LOADING, READONLY, NOREPLICAS, MASTERDOWN: worth another try
    │   ├── RedisOutOfMemory      the write was refused before it had any effect
    │   └── RedisRefused          wrong password, missing permission, wrong type: a retry will not help
    ├── LockHeld             another run holds the lock of this symbol
    ├── Superseded           another run has rebuilt the state meanwhile
    ├── ValidationFailed     a rebuilt state did not pass its checks; nothing was swapped
    ├── CircuitOpen          the circuit breaker of a dependency is open: not called
    ├── OperationFailed      a guarded call failed; the cause is `__cause__`
    └── MaxRetriesExceeded   the last of a bounded number of tries failed; `attempts`, `last_error`

Retryable or fatal is decided in one place: `is_retryable`.
"""

from __future__ import annotations

from typing import Final

DECODER_MODULE: Final = "sheetanchor._decoder"
DECODER_MISSING: Final = (
    "the native decoder is missing or was built for another Python: install the wheel for this kind of machine, "
    "or build it with `make setup`"
)

MESSAGE_LENGTH_MAX: Final = 1_000
"""Characters of a library's or a server's message: enough for all that were seen of onnxruntime, Redis and exchange."""


class SheetAnchorError(Exception):
    """Root of the tree; the text is one line that says what is wrong and what to do."""


class BadSettings(SheetAnchorError):
    """A setting is missing or wrong; the text names the setting, its value and what was expected."""


class BadRecording(SheetAnchorError):
    """A recording cannot be read; the text names the file, the place in it and what was expected."""


class BadModel(SheetAnchorError):
    """A model file or its manifest cannot be used; the text says which and why."""


class ModelConflict(SheetAnchorError):
    """The model in use was changed since it was read; nothing was changed."""


class ExchangeError(SheetAnchorError):
    """A request to the exchange's REST interface failed."""


class ExchangeUnavailable(ExchangeError):
    """No answer, a 5xx, or a refused connection."""


class Unresponsive(ExchangeError):
    """No answer within the whole time-out: a retry would delay the caller as long again."""


class RateLimited(ExchangeError):
    """The exchange answered 429 or 418.

    Args:
        message: The request and the answer.
        retry_after_s: Seconds to wait before the next request, from the `Retry-After` header.
        status: 429 (slow down) or 418 (banned after ignoring 429).
    """

    def __init__(self, message: str, *, retry_after_s: float, status: int = 429) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status


class ExchangeRefused(ExchangeError):
    """A 4xx that a retry will not change."""


class RedisError(SheetAnchorError):
    """A Redis command failed."""


class RedisUnavailable(RedisError):
    """No connection, a time-out, or a server that cannot write at the moment."""


class RedisOutOfMemory(RedisError):
    """The write was refused for lack of memory, before it had any effect."""


class RedisRefused(RedisError):
    """Wrong password, missing permission or a key of the wrong type."""


class LockHeld(SheetAnchorError):
    """Another run holds the lock of this symbol."""


class Superseded(SheetAnchorError):
    """Another run has rebuilt the state meanwhile; this run changed nothing."""


class ValidationFailed(SheetAnchorError):
    """A rebuilt state did not pass its checks; nothing was swapped."""


class CircuitOpen(SheetAnchorError):
    """The circuit breaker of a dependency is open: the call was not made.

    Args:
        message: The dependency and why it is not called.
        retry_after_s: Seconds until a call may be made; 0 if that is not known.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OperationFailed(SheetAnchorError):
    """A guarded call failed; the cause is chained."""


class MaxRetriesExceeded(SheetAnchorError):
    """The last of a bounded number of tries failed.

    Args:
        attempts: Calls made, the first one included.
        last_error: What the last call raised.
    """

    def __init__(self, attempts: int, last_error: BaseException) -> None:
        super().__init__(f"gave up after {attempts} attempts: {last_error}")
        self.attempts = attempts
        self.last_error = last_error


def is_retryable(error: BaseException) -> bool:
    """Say whether the same call may succeed at a later try."""
    retryable = (ExchangeUnavailable, RateLimited, RedisUnavailable, ConnectionError, TimeoutError)
    return isinstance(error, retryable)


def shortened(text: str, length: int) -> str:
    """Shorten a text to a length by replacing its middle with an ellipsis.

    Libraries begin a message with the place and end with the cause, people the other way round: both ends are needed.

    Args:
        text: The text.
        length: Most characters of the result, at least 1.
    """
    if len(text) <= length:
        return text
    head = length // 2
    tail = length - head - 1
    return f"{text[:head]}…{text[len(text) - tail :]}"


def message_of(error: BaseException) -> str:
    """Give a library's error message as one line of bounded length; the error's type when it has none."""
    return shortened(" ".join(str(error).split()), MESSAGE_LENGTH_MAX) or type(error).__name__
