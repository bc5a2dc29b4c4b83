"""The serving engine behind the OpenAI API; needs the extra `longcat-serve[server]`.

    engine = EngineProcess(partial(build_engine, directory))   # a process of its own, watched
    gate = Gate(capacity)
    service = Service(config=..., engine=engine, tokenizer=..., gate=gate, metrics=...)
    run(service, listen("127.0.0.1", 8000), ready)

`create_app(service)` alone is an application for any ASGI server.

The front (asyncio) checks, renders, encodes and streams; the engine's process only computes.
"""

from longcat.serve.server.app import create_app
from longcat.serve.server.config import ServerConfig
from longcat.serve.server.gate import Gate
from longcat.serve.server.metrics import Metrics
from longcat.serve.server.run import listen, run
from longcat.serve.server.service import Service
from longcat.serve.server.supervisor import EngineClient, EngineProcess
from longcat.serve.server.tokenizer import ServedTokenizer

__all__ = [
    "EngineClient",
    "EngineProcess",
    "Gate",
    "Metrics",
    "ServedTokenizer",
    "ServerConfig",
    "Service",
    "create_app",
    "listen",
    "run",
]
