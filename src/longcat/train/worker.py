"""One worker process: `python -m longcat.train.worker`, its task as JSON on standard input."""

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What a worker is told: where to meet, who it is, and which run it works on."""

    directory: str
    rank: int
    world: int
    port: int


def main() -> int:
    """Work until rank 0 says stop."""
    # Ctrl-C reaches the whole process group; rank 0 alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = WorkerTask(**json.loads(sys.stdin.read()))

    from longcat.train.exchange import join_store, limit_threads, meet
    from longcat.train.loop import work

    limit_threads(1)
    store = join_store(task.port)
    store.set(f"arrived-{task.rank}", "yes")
    exchange = meet(store, task.rank, task.world)
    try:
        work(Path(task.directory), exchange)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        exchange.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
