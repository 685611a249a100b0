"""What went wrong between this machine and the Hugging Face hub, in words that may be logged."""

from __future__ import annotations

_LONGEST = 240  # characters of a message
_WORTH_ANOTHER_TRY = frozenset((408, 409, 412, 423, 425, 429))  # of the answers that blame the request


def http_status(error: BaseException) -> int | None:
    """The status that the hub answered with; None where it did not answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_final(error: BaseException) -> bool:
    """Whether the hub has refused, so that asking again gives the same: a wrong token, name or right."""
    status = http_status(error)
    return status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY


def fault_words(error: BaseException, token: str | None) -> str:
    """The message of an error on one line, without any access token.

    Args:
        error: Of the hub's client or below it.
        token: That was given; the one of HF_TOKEN or of the login is hidden as well.
    """
    from huggingface_hub import get_token

    text = " ".join(str(error).split()) or type(error).__name__
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "***")
    return text.rstrip(".") if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
