"""Every error that Sheet Anchor raises on purpose.

    SheetAnchorError
    ├── BadSettings          a flag, variable or file entry is wrong
    ├── BadRecording         a recording cannot be read
    ├── BadModel             a model file or its manifest cannot be used
    ├── ModelConflict        somebody else has changed which model is in use
    ├── DecodeError          (in `sheetanchor.sbe`) a frame is not one of the four known messages
    ├── ExchangeError        the exchange's REST interface did not give what was asked
    │   ├── ExchangeUnavailable   no answer, a 5xx, or a refused connection: worth another try
    │   ├── RateLimited           429 or 418; `retry_after_s` says when to come back
    │   ├── Unresponsive          no answer within the whole time-out: another try would only hold up whoever asks
    │   └── ExchangeRefused       any other 4xx: asking again will not help
    ├── RedisError           Redis did not do what was asked
    │   ├── RedisUnavailable      no connection, time-out, LOADING, READONLY, NOREPLICAS, MASTERDOWN: worth another try
    │   ├── RedisOutOfMemory      the write was refused before it had any effect
    │   └── RedisRefused          wrong password, missing permission, wrong type: asking again will not help
    ├── LockHeld             another run holds the lock of this symbol
    ├── Superseded           somebody else has rebuilt the state meanwhile
    ├── ValidationFailed     a rebuilt state did not pass its checks; nothing was swapped
    ├── CircuitOpen          the breaker of a dependency is open: not called
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
"""Of what a library or a server says: enough for whatever was seen of onnxruntime, Redis and the exchange."""


class SheetAnchorError(Exception):
    """Root of the tree; its text is one line that a person can act on."""


class BadSettings(SheetAnchorError):
    """A setting is missing or wrong; the text names the setting, its value and what was expected."""


class BadRecording(SheetAnchorError):
    """A recording cannot be read; the text names the file, the place in it and what was expected."""


class BadModel(SheetAnchorError):
    """A model file or its manifest cannot be used; the text says which and why."""


class ModelConflict(SheetAnchorError):
    """Somebody else has changed which model is in use since it was looked at; nothing was changed."""


class ExchangeError(SheetAnchorError):
    """The exchange's REST interface did not give what was asked."""


class ExchangeUnavailable(ExchangeError):
    """No answer, a 5xx, or a refused connection."""


class Unresponsive(ExchangeError):
    """No answer within the whole time-out: waiting as long again would only hold up whoever asks."""


class RateLimited(ExchangeError):
    """The exchange answered 429 or 418.

    Args:
        message: What was asked and what came back.
        retry_after_s: Seconds to wait before the next request, from the `Retry-After` header.
        status: 429 (slow down) or 418 (banned for going on after 429).
    """

    def __init__(self, message: str, *, retry_after_s: float, status: int = 429) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status


class ExchangeRefused(ExchangeError):
    """A 4xx that asking again will not change."""


class RedisError(SheetAnchorError):
    """Redis did not do what was asked."""


class RedisUnavailable(RedisError):
    """No connection, a time-out, or a server that cannot write just now."""


class RedisOutOfMemory(RedisError):
    """The write was refused for want of memory before it had any effect."""


class RedisRefused(RedisError):
    """Wrong password, missing permission or a key of the wrong type."""


class LockHeld(SheetAnchorError):
    """Another run holds the lock of this symbol."""


class Superseded(SheetAnchorError):
    """Somebody else has rebuilt the state meanwhile; this run changed nothing."""


class ValidationFailed(SheetAnchorError):
    """A rebuilt state did not pass its checks; nothing was swapped."""


class CircuitOpen(SheetAnchorError):
    """The breaker of a dependency is open: the call was not made.

    Args:
        message: What was not called and why.
        retry_after_s: Seconds until it may be; 0 where that is not known.
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
    """Say whether the same call may succeed if it is made again a little later."""
    retryable = (ExchangeUnavailable, RateLimited, RedisUnavailable, ConnectionError, TimeoutError)
    return isinstance(error, retryable)


def shortened(text: str, length: int) -> str:
    """Bring a text to a length; its beginning and its end stay, a sign stands for what is left out between them.

    Libraries begin with where they were and end with what was wrong, people the other way round: neither may go.

    Args:
        text: The text.
        length: Characters that may remain, at least 1.
    """
    if len(text) <= length:
        return text
    head = length // 2
    tail = length - head - 1
    return f"{text[:head]}…{text[len(text) - tail :]}"


def message_of(error: BaseException) -> str:
    """Give what a foreign error says in one line of bounded length; its type when it says nothing."""
    return shortened(" ".join(str(error).split()), MESSAGE_LENGTH_MAX) or type(error).__name__
