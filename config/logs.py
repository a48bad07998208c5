"""Logs: one JSON object a line on standard error, each with the id of the request that caused it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from typing import Any, TextIO

import orjson
import structlog

# Notes of an error that are logged begin with one of these: the function whose SQL statement failed, and the trace.
STATEMENT, TRACE = "statement: ", "trace_id: "


def _json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def _without_values(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Log the type of an exception and where it was raised, but not its text, which may quote a row or a frame."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        places = []
        trace = error.__traceback__
        while trace is not None:
            places.append(f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}")
            trace = trace.tb_next
        event["error"] = type(error).__name__
        event["at"] = places[-6:]  # the innermost calls; the others are the event loop's
        event.update(error_fields(error))
    return event


def error_fields(error: BaseException) -> dict[str, str]:
    """Return what is known about an error or its causes: for a failed SQL statement its SQLSTATE and the function of
    ours that ran it, and the id of the trace."""
    fields: dict[str, str] = {}
    cause: BaseException | None = error
    while cause is not None:
        state = getattr(cause, "sqlstate", None)
        if isinstance(state, str):
            fields.setdefault("sqlstate", state)
        for note in getattr(cause, "__notes__", ()):
            if note.startswith((STATEMENT, TRACE)):
                name, _, value = note.partition(": ")
                fields.setdefault(name, value)
        cause = cause.__cause__
    return fields


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to ``stream`` as JSON lines.

    ``level`` is ``debug``, ``info``, ``warning`` or ``error``.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _without_values,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_json),
            ],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their lines contain statements, parameters, frames, and URLs that name payments and push subscriptions.
    libraries = ("asyncio", "peewee", "peewee.async", "websockets", "tornado.access", "tornado.general", "urllib3")
    for library in (*libraries, "httpcore", "httpx", "hpack", "h2", "stripe"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))


def catch_all() -> None:
    """Log what Python itself would print: uncaught exceptions, also those of threads, exceptions that can't be raised,
    and warnings. Their texts are not logged, because they may quote values."""
    log = structlog.get_logger("python")

    def uncaught(kind: type[BaseException], error: BaseException, _: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            log.info("interrupted")
        else:
            log.error("crashed", exc_info=error)

    def warned(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        log.warning("python_warning", category=category.__name__, at=f"{filename}:{lineno}")

    sys.excepthook = uncaught
    threading.excepthook = lambda failure: log.error("thread_failed", exc_info=failure.exc_value)
    sys.unraisablehook = lambda failure: log.error("not_raised", exc_info=failure.exc_value)
    warnings.showwarning = warned


def log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that asyncio reports (the loop's exception handler). Its message is cut before the callback or the
    task, whose description would contain values."""
    words = str(context.get("message", "")).partition(" callback ")[0].partition(" <")[0]
    task = context.get("task") or context.get("future")
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    log = structlog.get_logger("asyncio")
    log.error(
        "loop_complained",
        complaint=words,
        task=getattr(coroutine, "__qualname__", None),
        exc_info=context.get("exception"),
    )
