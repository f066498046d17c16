"""The HTTP API as an ASGI application. Errors are problem details (RFC 9457).

Who may ask what is decided by where they ask: only the unix socket (0600, so only its owner) answers administration calls. Other
listeners tell whether the gateway lives, and the metrics where they are wanted.
"""

import http
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import trio
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from egressvpn.errors import OperatorError
from egressvpn.observe import metrics
from egressvpn.observe.view import GatewayView
from egressvpn.observe.whois import answer, question

DEFAULT_FLOWS: Final = 100
MAX_FLOWS: Final = 10_000  # in one answer

Endpoint = Callable[[Request], Awaitable[Response]]


def application(source: GatewayView, *, administration: bool = False, measured: CollectorRegistry | None = None) -> Starlette:
    """The application for one listener: with or without administration calls, with or without /metrics."""
    routes = [Route("/livez", _livez), Route("/readyz", _readyz(source))]
    if measured is not None:
        routes.append(Route("/metrics", _metrics(measured)))
    if administration:
        routes += [Route("/v1/status", _status(source)), Route("/v1/flows", _flows(source)), Route("/v1/pools", _pools(source))]
        routes += [Route("/v1/whois", _whois(source)), Route("/v1/explain", _explain(source))]
    else:
        routes.append(Route("/v1/{path:path}", _administration_elsewhere, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]))
    handlers: Any = {HTTPException: _on_http_error, OperatorError: _on_operator_error, Exception: _on_bug}
    return Starlette(routes=routes, exception_handlers=handlers)


def problem(status: int, detail: str, **members: Any) -> Response:
    """RFC 9457: the title says the kind of problem, `detail` this occurrence of it."""
    body = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return Response(msgspec.json.encode(body), status, media_type="application/problem+json")


def _json(members: Any) -> Response:
    return Response(msgspec.json.encode({"schema": 1, **members}), media_type="application/json")


async def _livez(_: Request) -> Response:
    return PlainTextResponse("ok\n")


def _readyz(source: GatewayView) -> Endpoint:
    async def readyz(_: Request) -> Response:
        failing = source.readiness()
        return problem(503, "; ".join(failing), failing=failing) if failing else PlainTextResponse("ready\n")

    return readyz


def _metrics(measured: CollectorRegistry) -> Endpoint:
    async def exposition(request: Request) -> Response:
        body, content_type = metrics.render(measured, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return exposition


def _status(source: GatewayView) -> Endpoint:
    async def status(_: Request) -> Response:
        return _json(source.status())

    return status


def _flows(source: GatewayView) -> Endpoint:
    async def flows(request: Request) -> Response:
        peer = request.query_params.get("peer") or None
        written = request.query_params.get("limit", str(DEFAULT_FLOWS))
        if not (written.isascii() and written.isdigit() and 1 <= int(written[:9]) <= MAX_FLOWS):
            return problem(400, f"limit must be a number from 1 to {MAX_FLOWS}")
        try:
            return _json({"items": source.flows(peer, int(written))})
        except LookupError:
            return problem(404, f"there is no device named {peer}")

    return flows


def _pools(source: GatewayView) -> Endpoint:
    async def pools(_: Request) -> Response:
        return _json({"items": source.pools()})

    return pools


def _whois(source: GatewayView) -> Endpoint:
    async def who(request: Request) -> Response:
        asked = request.query_params
        try:
            what = question(asked.get("endpoint", ""), asked.get("proto", ""), asked.get("at", ""), time.time_ns())
        except OperatorError as error:
            return problem(400, error.what, mend=error.mend)
        return _json(await trio.to_thread.run_sync(answer, what, source.whois))

    return who


def _explain(source: GatewayView) -> Endpoint:
    async def explain(request: Request) -> Response:
        peer, destination = request.query_params.get("peer", ""), request.query_params.get("destination", "")
        try:
            return _json(await source.explain(peer, destination))
        except LookupError:
            return problem(404, f"there is no device named {peer}")
        except OperatorError as error:
            return problem(400, error.what, mend=error.mend)

    return explain


async def _administration_elsewhere(_: Request) -> Response:
    return problem(403, "administration calls are answered on the gateway's unix socket only")


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = problem(error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _on_operator_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, OperatorError)
    return problem(409, error.what, mend=error.mend)


async def _on_bug(_: Request, __: Exception) -> Response:
    """The server logs the traceback; the caller learns nothing from it."""
    return problem(500, "the gateway failed to answer; its log says why")
