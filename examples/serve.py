"""Serve a modulated model over HTTP: every request says which classes its image is to be seen without.

    python -m examples.serve runs/digits-resnet-unlearned
    curl --data-binary @three.png -H "Content-Type: image/png" "http://127.0.0.1:8000/predict?forget=3&forget=5"

Requests that come together are computed in one forward, whatever each of them forgets, by a process of their own.
Needs starlette and uvicorn: pip install "memmod-torch[serve]"
"""

from __future__ import annotations

import argparse
import logging
import sys

import uvicorn

from examples.serving.app import create_app
from examples.serving.batching import Limits
from examples.serving.worker import Source


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", nargs="?", help="a run of `memmod unlearn`; or --memory and --base")
    made.add_argument("--memory", help="a memory file")
    made.add_argument("--base", help="the folder of its base, a run of `memmod train`")
    made.add_argument("--mean", type=_numbers, help="of the images, by channel, where white is 1: 0.485,0.456,0.406")
    made.add_argument("--std", type=_numbers, help="the same; default for both: those of the run's data set")
    made.add_argument("--resize", action="store_true", help="resize images of other sizes, instead of refusing them")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=8000)
    made.add_argument("--max-batch", type=int, default=Limits.max_batch, help="images in one forward")
    made.add_argument("--max-wait", type=float, default=Limits.max_wait, help="seconds to wait for more of them")
    made.add_argument("--max-queue", type=int, default=Limits.max_queue, help="images that may wait")
    made.add_argument("--request-seconds", type=float, default=Limits.request_seconds, help="then one is given up")
    made.add_argument("--max-bytes", type=int, default=10_000_000, help="of a request's body")
    made.add_argument("--workers", type=int, default=1, help="processes, each with a model of its own")
    made.add_argument("--threads", type=int, default=1, help="of each process")
    return made


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def main() -> None:
    options = parser().parse_args()
    if (options.run is None) == (options.memory is None) or (options.memory and not options.base):
        parser().error("name a run of `memmod unlearn`, or --memory and --base")
    if (options.mean is None) != (options.std is None):
        parser().error("--mean and --std belong together")
    least = min(options.max_batch, options.max_queue, options.max_bytes, options.workers, options.threads)
    if least < 1 or options.max_wait < 0 or options.request_seconds <= 0:
        parser().error("sizes and counts are at least 1, --max-wait at least 0, --request-seconds more")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    source = Source(options.run, options.base, options.memory, options.mean, options.std, options.threads)
    limits = Limits(
        options.max_batch,
        options.max_wait,
        options.max_queue,
        options.workers,
        request_seconds=options.request_seconds,
    )
    app = create_app(source, limits, options.max_bytes, options.resize)
    uvicorn.run(app, host=options.host, port=options.port, log_level="info", access_log=False)


if __name__ == "__main__":
    main()
