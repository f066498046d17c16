"""Logs: structured, on stderr; readable on a terminal, JSON lines otherwise. Secrets are masked even when somebody logs one by mistake."""

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

SECRET_WORDS: Final = ("private", "preshared", "psk", "secret", "token", "password")

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str, output: str) -> None:
    """Set up structlog and the standard library's logging. `output` is auto, console or json."""
    readable = output == "console" or (output == "auto" and sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    last: structlog.types.Processor
    if readable:
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        shared.remove(structlog.processors.format_exc_info)
    else:
        last = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_Unfailing(sys.stderr))
    removed = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[removed, last], foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(_LEVELS[level], logging.WARNING), force=True)


class _Unfailing:
    """A text stream whose full disk or closed pipe is no reason to stop forwarding."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def mask_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask values whose key speaks of a secret, and raw bytes, which nobody means to read in a log."""
    for key, value in event.items():
        if any(word in key.lower() for word in SECRET_WORDS) or isinstance(value, bytes | bytearray | memoryview):
            event[key] = "[masked]"
    return event
