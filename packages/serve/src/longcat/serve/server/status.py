"""/v1/models, /health and /metrics: what is served, and how it is."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from longcat.serve.server.answers import Health, ModelList, ModelTold
from longcat.serve.server.documents import asked
from longcat.serve.server.errors import ApiError, shutting_down
from longcat.serve.server.metrics import CONTENT_TYPE
from longcat.serve.server.service import Service


def status(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    def model() -> dict[str, Any]:
        return {
            "id": service.config.model_name,
            "object": "model",
            "created": service.created,
            "owned_by": "longcat",
            "max_model_len": service.engine.info.longest,
        }

    @router.get("/v1/models/", include_in_schema=False)
    @router.get("/v1/models", **asked(ModelList))
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [model()]}

    @router.get("/v1/models/{name:path}", **asked(ModelTold, 404))
    async def one_model(name: str) -> dict[str, Any]:
        """The model of that name."""
        service.check_model(name)
        return model()

    @router.get("/health", **asked(Health, 503))
    async def health() -> dict[str, Any]:
        """Whether requests are taken now."""
        if service.gate.closed:
            raise shutting_down("the server is shutting down")
        if service.engine.state != "up":
            raise ApiError(
                503, f"the engine is {service.engine.state}", code="engine_down", retry_after=1
            )
        stats = service.engine.stats
        if stats is None or stats.prefill_alive is None:
            return {"status": "ok"}
        return {"status": "ok", "prefill": "up" if stats.prefill_alive else "down"}

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Counts and times in Prometheus's text format."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)

    return router
