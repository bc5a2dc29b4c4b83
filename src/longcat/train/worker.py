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
    store: str
    expert_parallel: int = 1
    fsdp: bool = False


def main() -> int:
    """Work until rank 0 says stop."""
    # Rank 0 alone decides what an interruption means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = WorkerTask(**json.loads(sys.stdin.read()))

    from longcat.train.allocator import keep_freed_memory
    from longcat.train.exchange import limit_threads, meet, open_store, signs_of
    from longcat.train.loop import work
    from longcat.train.parallel.layout import Layout

    limit_threads(1)
    keep_freed_memory()
    store = open_store(task.store, task.world)
    store.set(f"arrived-{task.rank}", "yes")
    layout = Layout(expert_parallel=task.expert_parallel, fsdp=task.fsdp)
    signs = open_store(signs_of(task.store))
    exchange = meet(store, task.rank, task.world, layout, signs)
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
