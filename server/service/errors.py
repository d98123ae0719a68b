"""Errors of the service: what a caller is told, as a status, a code and words.

in        whatever goes wrong with one request
out       JSON {"error": {"code": ..., "message": ...}}
relies on nothing; what a message says is of the caller's own request, and it is not logged
"""

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_CODES = {400: "bad-request", 404: "not-found", 405: "method-not-allowed"}


class RequestError(Exception):
    """A request that gets no answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message
        super().__init__(message)


async def told(_: Request, error: Exception) -> JSONResponse:
    """The error as JSON; one that nobody foresaw without its words, which could hold what was sent."""
    if isinstance(error, RequestError):
        return _json(error.status, error.code, error.message)
    if isinstance(error, HTTPException):
        return _json(error.status_code, _CODES.get(error.status_code, "refused"), str(error.detail))
    return _json(500, "internal", "the service failed; nothing of the request was kept")


def _json(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)
