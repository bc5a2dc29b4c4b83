"""/ and /stats: a page to chat with and to watch the engine, and the counts that it watches.

The page is one file that loads nothing from elsewhere; the header that goes with it forbids it.
"""

from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from longcat.serve.server.answers import ServerStats
from longcat.serve.server.documents import asked
from longcat.serve.server.service import Service

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    text = files("longcat.serve.server").joinpath("page.html").read_text("utf-8")
    guard = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}

    @router.get("/", response_class=HTMLResponse)
    async def whole() -> HTMLResponse:
        """A page to chat with."""
        return HTMLResponse(text, headers=guard)

    @router.get("/stats", **asked(ServerStats))
    async def stats() -> dict[str, Any]:
        """What the engine is doing, as JSON; the same as /metrics tells Prometheus."""
        engine = service.engine
        return {
            "model": service.config.model_name,
            "chat": service.tokenizer.chat is not None,
            "speculative": engine.info.speculative,
            "max_model_len": engine.info.longest,
            "state": engine.state,
            "restarts": engine.restarts,
            "inside": service.gate.inside,
            "engine": None if engine.stats is None else asdict(engine.stats),
        }

    return router
