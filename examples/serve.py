"""Serve a saved model over HTTP
=============================

A model that was saved with ``save_pretrained`` answers over HTTP: labels, probabilities, how unsure it is, and which
answers to hand over to a person. Bad input is refused with the reason. This page is a whole server, to copy and to
change; it needs the extra ``serve`` (FastAPI and uvicorn).

``python examples/serve.py FOLDER --input pixels=64`` serves it on http://127.0.0.1:8000::

    curl 127.0.0.1:8000/predict -d '{"pixels": [[0.0, 0.5, ...], [...]]}'
    {"probs": [[...], [...]], "label": [3, 5], "confidence": [...], "uncertainty": [...], "accept": [true, false]}
"""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

import anyio
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import TypeAdapter, ValidationError

from hesitant import Scorer
from hesitant.integrations.scorer import BadInputs

# %%
# What is served is a callable from columns to columns. A request is JSON of the same form: columns of rows, by name.
# The scorer looks at every row; what is no JSON of that form at all is found here.
COLUMNS = TypeAdapter(dict[str, list[Any]])


class Answering(Protocol):
    """Answers columns with columns, as :class:`hesitant.Scorer` does."""

    def __call__(self, batch: Mapping[str, Any], /) -> dict[str, Any]:
        """Answers a batch."""


def answered(answering: Answering, body: bytes, most_rows: int) -> bytes:
    """Answers the JSON of a request with JSON, or raises an HTTPException that says what is wrong with it."""
    try:
        columns = COLUMNS.validate_json(body)
        if max((len(rows) for rows in columns.values()), default=0) > most_rows:
            raise HTTPException(422, f"more than {most_rows} rows: send them in several requests")
        answer = answering(columns)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(map(str, found["loc"])) or "the body"
        raise HTTPException(422, f"{place}: {found['msg']}; expected JSON such as {{'pixels': [row, row]}}") from None
    except BadInputs as error:
        raise HTTPException(422, str(error)) from None
    return json.dumps({name: column.tolist() for name, column in answer.items()}, allow_nan=False).encode()


# %%
# A request is answered in a thread, so that the server goes on accepting others: any number of threads may ask one
# scorer. More threads than cores would only take turns, so there are as many as cores. No body is read beyond its
# bound.
def create_app(answering: Answering, *, most_bytes: int = 2**20, most_rows: int = 1024, threads: int = 0) -> FastAPI:
    """Answers an application with the routes ``/predict`` and ``/health``.

    Args:
        answering: What answers; it has loaded its model.
        most_bytes: Of a request's body; more is refused with 413.
        most_rows: Of a request; more is refused with 422.
        threads: That answer at a time; 0 is the number of cores.
    """
    app = FastAPI(title="hesitant", docs_url=None, redoc_url=None)
    limiter = anyio.CapacityLimiter(threads or os.cpu_count() or 1)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "serves": repr(answering)}

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most_bytes:
                raise HTTPException(
                    413, f"the body has more than {most_bytes} bytes: send its rows in several requests"
                )
        content = await anyio.to_thread.run_sync(answered, answering, bytes(body), most_rows, limiter=limiter)
        return Response(content, media_type="application/json")

    return app


# %%
# Started as a script, it loads the folder before it accepts the first request. One thread of PyTorch for each thread of
# the server is the fastest where requests are many and small.
def main() -> None:
    """Serves what the command line names."""
    parser = argparse.ArgumentParser(description="Serves a saved model over HTTP.")
    parser.add_argument("folder", help="what model.save_pretrained wrote")
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="COLUMN[=SHAPE]",
        help="a column that the model takes, and the shape of one row, such as pixels=3,32,32",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--most-bytes", type=int, default=2**20, help="of a request")
    parser.add_argument("--most-rows", type=int, default=1024, help="of a request")
    arguments = parser.parse_args()
    inputs: dict[str, tuple[int, ...] | None] = {}
    for named in arguments.input:
        column, _, shape = named.partition("=")
        inputs[column] = tuple(map(int, shape.split(","))) if shape else None
    torch.set_num_threads(1)
    scorer = Scorer(arguments.folder, inputs=inputs)
    scorer.load()
    app = create_app(scorer, most_bytes=arguments.most_bytes, most_rows=arguments.most_rows)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
