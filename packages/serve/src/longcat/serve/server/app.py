"""The application: endpoints around one engine. `create_app` makes it, any ASGI server runs it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from longcat.serve.server import errors
from longcat.serve.server.chat import chat_completions
from longcat.serve.server.chat_request import ChatRequest
from longcat.serve.server.completion_request import CompletionRequest
from longcat.serve.server.completions import completions
from longcat.serve.server.documents import publish
from longcat.serve.server.doorkeeper import Doorkeeper
from longcat.serve.server.page import page
from longcat.serve.server.service import Service
from longcat.serve.server.status import status
from longcat.serve.server.tokens import DetokenizeRequest, TokenizeRequest, tokens

_ABOUT = "LongCat-Flash behind the OpenAI API: completions, chat, tools, streams."


def create_app(service: Service) -> FastAPI:
    """An ASGI application that serves `service`.

    Its lifespan starts the engine and stops it; nothing else need be done to run it.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        try:
            yield
        finally:
            await service.engine.stop()

    app = FastAPI(
        title="longcat",
        version=version("longcat-serve"),
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    errors.install(app)
    for routes in (completions, chat_completions, tokens, status, page):
        app.include_router(routes(service))
    publish(
        app,
        [CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest],
        model=service.config.model_name,
        keys=bool(service.config.api_keys),
    )
    app.add_middleware(
        Doorkeeper, config=service.config, metrics=service.metrics, gate=service.gate
    )
    if service.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients add their own, which mean nothing here
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app
