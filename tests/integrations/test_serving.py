"""`examples/serve.py`: a saved model over HTTP, asked by many at a time, and by who sends nonsense."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tests.integrations.folders import WIDTH, rows, saved, sngp

from hesitant import Scorer

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"
MOST_BYTES = 50_000


def example() -> Any:
    """Answers the example as a module."""
    spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Gives the address at which an application is served, on a port of 127.0.0.1 that is free."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(saved(tmp_path_factory.mktemp("scored") / "model", sngp()), inputs={"x": (WIDTH,)})


@pytest.fixture(scope="module")
def address(scorer: Scorer) -> Iterator[str]:
    with serving(example().create_app(scorer, most_bytes=MOST_BYTES, most_rows=100)) as address:
        yield address


def test_it_answers_as_the_scorer_does(address: str, scorer: Scorer) -> None:
    batch = {"x": rows(5)["x"].tolist()}
    response = httpx.post(f"{address}/predict", json=batch)
    assert response.status_code == 200
    assert response.json() == {name: column.tolist() for name, column in scorer(batch).items()}
    assert httpx.get(f"{address}/health").json()["status"] == "ok"


def test_32_clients_at_a_time_get_what_each_would_get_alone(address: str, scorer: Scorer) -> None:
    batches = [{"x": rows(1 + seed % 3, seed)["x"].tolist()} for seed in range(32)]
    alone = [{name: column.tolist() for name, column in scorer(batch).items()} for batch in batches]
    together = threading.Barrier(32)

    def asks(place: int) -> list[Any]:
        with httpx.Client() as client:
            together.wait()
            return [client.post(f"{address}/predict", json=batches[place]).json() for _ in range(5)]

    with ThreadPoolExecutor(32) as pool:
        for place, answers in enumerate(pool.map(asks, range(32))):
            assert answers == [alone[place]] * 5


BAD = {
    "no JSON": (b"x", "Invalid JSON"),
    "cut off": (b'{"x": [[1, 2', "Invalid JSON"),
    "no UTF-8": (b'{"x": ["\xff"]}', "Invalid JSON"),
    "nothing": (b"", "Invalid JSON"),
    "a list": (b"[1]", "the body"),
    "no columns": (b"{}", "no columns"),
    "another column": (b'{"y": [1]}', "expected 'x' among them"),
    "no list": (b'{"x": 1}', "x: Input should be a valid"),
    "no rows": (b'{"x": []}', None),
    "a text": (b'{"x": ["1"]}', "row 0 of column 'x' is a text, expected numbers"),
    "null": (b'{"x": [null]}', "row 0 of column 'x' is missing"),
    "too few numbers": (b'{"x": [[1, 2]]}', "row 0 of column 'x' has shape (2,), expected (6,)"),
    "NaN": (b'{"x": [[1, 2, 3, 4, 5, NaN]]}', "row 0 of column 'x' holds nan"),
    "infinite": (b'{"x": [[1, 2, 3, 4, 5, 1e400]]}', "row 0 of column 'x' holds inf"),
    "an enormous integer": (b'{"x": [[1, 2, 3, 4, 5, 1' + b"0" * 400 + b"]]}", "row 0 of column 'x'"),
    "deep": (b'{"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "recursion limit"),
    "a row of dicts": (b'{"x": [{"a": 1}]}', "row 0 of column 'x' is a dict"),
    "columns of several lengths": (b'{"x": [[1, 2, 3, 4, 5, 6]], "id": []}', "of the lengths"),
    "too many rows": (json.dumps({"x": [[0] * WIDTH] * 101}).encode(), "more than 100 rows"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_with_the_reason(address: str, kind: str) -> None:
    body, reason = BAD[kind]
    response = httpx.post(f"{address}/predict", content=body)
    if reason is None:
        assert (response.status_code, response.json()["label"]) == (200, [])
    else:
        assert response.status_code == 422
        assert reason in response.json()["detail"]
    assert httpx.get(f"{address}/health").status_code == 200


def test_a_body_is_not_read_beyond_its_bound(address: str) -> None:
    assert httpx.post(f"{address}/predict", content=b" " * (MOST_BYTES + 1)).status_code == 413
    pieces = (b" " * 1000 for _ in range(MOST_BYTES // 1000 + 1))  # whose length is not said before
    assert httpx.post(f"{address}/predict", content=pieces).status_code == 413


def test_what_is_wrong_with_the_server_is_no_fault_of_the_input(scorer: Scorer) -> None:
    def failing(batch: Any) -> Any:
        raise ValueError("the model is broken")

    with serving(example().create_app(failing)) as address:
        assert httpx.post(f"{address}/predict", json={"x": [[0] * WIDTH]}).status_code == 500
