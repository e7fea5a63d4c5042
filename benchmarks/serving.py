"""What serving costs: 32 clients at a time on 127.0.0.1, beside the plain model served likewise, in one run.

    python benchmarks/serving.py                          # everything, about three minutes on two cores
    python benchmarks/serving.py --models mlp --rounds 3

Writes benchmarks/results/serving.json. The server is that of `examples/serve.py` in a process of its own, one thread of
PyTorch for each thread that answers; the clients are 32 coroutines of another process that each send the next
request when they have the answer to the last. Server and clients share the cores, so that the figures are those of this
machine under full load, not those of a server alone. What is served takes turns, round by round; a ratio is the median
over the rounds. `server_cpu_ms_a_request` is what the server's process has of the processors, in which other work and
the clients have little part. Every answer is compared with what one thread answers to the same request.

mlp      64 numbers a request to a network of two layers of 128: nearly all of the time is HTTP and JSON.
encoder  a text of 32 tokens to a transformer of 6 layers of 384 (MiniLM's size), random weights.

plain          `softmax(model(x))` of the network as it was before it was wrapped.
Deterministic  a Scorer of it: looks at every row, all columns of the answer.
SNGP           a Scorer of SNGP around it, with a policy.
gathered       the SNGP, requests that wait at the same time answered in one forward pass (micro-batching).
"""

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import machine, save
from torch import nn

import hesitant

HERE = Path(__file__).parent
CLIENTS, REQUESTS = 32, 64  # different requests, which the clients repeat
SERVED = ("plain", "Deterministic", "SNGP", "gathered")


def mlp() -> nn.Module:
    """A network for rows of 64 numbers."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 8))


def encoder() -> nn.Module:
    """A text model of MiniLM's size."""
    from transformers import BertConfig, BertForSequenceClassification

    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertForSequenceClassification(BertConfig(**size, num_labels=8))


def numbers(count: int) -> dict[str, Any]:
    """Answers rows of 64 numbers."""
    return {"x": torch.randn(count, 64, generator=torch.Generator().manual_seed(0))}


def tokens(count: int) -> dict[str, Any]:
    """Answers texts of 32 tokens."""
    drawn = torch.randint(0, 30_000, (count, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": drawn, "attention_mask": torch.ones_like(drawn)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Any]]]] = {
    "mlp": (mlp, numbers),
    "encoder": (encoder, tokens),
}


class Plain:
    """The plain model, as people serve it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    def __call__(self, batch: Any, /) -> dict[str, Any]:
        """Answers the probabilities and the label."""
        inputs = {name: torch.tensor(column) for name, column in batch.items()}
        with torch.no_grad():
            output = self.network(inputs["x"]) if "x" in inputs else self.network(**inputs).logits
            probs = output.softmax(-1)
        return {"probs": probs.numpy(), "label": probs.argmax(-1).numpy()}


class Gathered:
    """Answers all requests that wait together in one forward pass."""

    def __init__(self, answering: Callable[[Any], dict[str, Any]]) -> None:
        self.answering = answering
        self.waiting: deque[tuple[Any, dict[str, Any]]] = deque()
        self.turn = threading.Lock()

    def __call__(self, batch: Any, /) -> dict[str, Any]:
        """Answers a batch, with those of others."""
        mine: dict[str, Any] = {}
        self.waiting.append((batch, mine))
        with self.turn:
            if not mine:
                taken = [self.waiting.popleft() for _ in range(len(self.waiting))]
                together = {name: [row for one, _ in taken for row in one[name]] for name in batch}
                answer, start = self.answering(together), 0
                for one, answers in taken:
                    end = start + len(next(iter(one.values())))
                    answers.update({name: column[start:end] for name, column in answer.items()})
                    start = end
        return mine


def example() -> Any:
    """Answers the example server as a module."""
    spec = importlib.util.spec_from_file_location("serve", HERE.parent / "examples" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network_of(name: str) -> nn.Module:
    """Answers a network, its weights from a seed."""
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def answering_of(name: str, served: str, folder: Path) -> Any:
    """Answers what is served."""
    if served == "plain":
        return Plain(network_of(name))
    scorer = hesitant.Scorer(folder / ("Deterministic" if served == "Deterministic" else "SNGP"))
    scorer.load()
    return Gathered(scorer) if served == "gathered" else scorer


def serve(name: str, served: str, folder: Path, told: Any) -> None:
    """Serves in this process, and says at which port."""
    import uvicorn

    torch.set_num_threads(1)
    answering = answering_of(name, served, folder)
    threads = CLIENTS if served == "gathered" else 0
    app = example().create_app(answering, threads=threads)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    listening = config.bind_socket()
    told.send(listening.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listening])


async def ask(port: int, bodies: list[bytes], seconds: float) -> list[tuple[int, float, Any]]:
    """Answers of each request which it was, how many seconds it took, and the answer."""
    import httpx

    done: list[tuple[int, float, Any]] = []

    async def client(http: Any, place: int) -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            response = await http.post("/predict", content=bodies[place % len(bodies)])
            done.append((place % len(bodies), time.perf_counter() - began, response.content))
            place += CLIENTS

    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60) as http:
        await asyncio.gather(*(http.get("/health") for _ in range(CLIENTS)))  # all connections are there
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client(http, place) for place in range(CLIENTS)))
    return done


def cpu_seconds(process: int | None) -> float:
    """Answers the seconds that a process has had of the processors (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wrong(done: list[tuple[int, float, Any]], alone: list[dict[str, Any]]) -> int:
    """Answers how many answers are not those of one thread: other labels or decisions, or numbers off by over 1e-5."""
    count = 0
    for place, _, content in done:
        answer = json.loads(content)
        count += not all(
            np.allclose(answer[name], column, rtol=0, atol=1e-5)
            if column.dtype.kind == "f"
            else answer[name] == column.tolist()
            for name, column in alone[place].items()
        )
    return count


def measure(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Answers the latencies of one model, served in each way."""
    draw = MODELS[name][1]
    batch = draw(REQUESTS)
    requests = [{key: column[row : row + 1].tolist() for key, column in batch.items()} for row in range(REQUESTS)]
    bodies = [json.dumps(request).encode() for request in requests]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hesitant.Deterministic(network_of(name)).save_pretrained(folder / "Deterministic")
        sngp = hesitant.SNGP(network_of(name))
        data = draw(256)
        sngp.fit_covariance(data.get("x", data))
        policy = hesitant.DeferralPolicy.calibrate(sngp.predict(data.get("x", data)), budget=0.1)
        sngp.save_pretrained(folder / "SNGP", policy=policy)
        alone = {}
        for served in SERVED:
            answering = answering_of(name, served, folder)
            alone[served] = [answering(request) for request in requests]
        context = multiprocessing.get_context("spawn")
        servers, ports = {}, {}
        for served in SERVED:
            hears, tells = context.Pipe(duplex=False)
            servers[served] = context.Process(target=serve, args=(name, served, folder, tells), daemon=True)
            servers[served].start()
            ports[served] = hears.recv()
        taken: dict[str, list[dict[str, float]]] = {served: [] for served in SERVED}
        wrongs = dict.fromkeys(SERVED, 0)
        for served in SERVED:
            asyncio.run(ask(ports[served], bodies, min(1.0, seconds)))  # warm
        for _ in range(rounds):
            for served in SERVED:
                before = cpu_seconds(servers[served].pid)
                done = asyncio.run(ask(ports[served], bodies, seconds))
                cpu = cpu_seconds(servers[served].pid) - before
                times = np.array([duration for _, duration, _ in done]) * 1e3
                taken[served].append(
                    {
                        "p50_ms": float(np.percentile(times, 50)),
                        "p99_ms": float(np.percentile(times, 99)),
                        "requests_a_second": len(done) / seconds,
                        "requests": len(done),
                        "server_cpu_ms_a_request": cpu / len(done) * 1e3,
                    }
                )
                wrongs[served] += wrong(done, alone[served])
        for server in servers.values():
            server.terminate()
            server.join()
    found: dict[str, Any] = {"clients": CLIENTS, "rounds": rounds, "seconds_a_round": seconds}
    for served in SERVED:
        medians = {key: statistics.median(each[key] for each in taken[served]) for key in taken[served][0]}
        ratios = {
            f"{key}_to_plain": statistics.median(
                mine[key] / plain[key] for mine, plain in zip(taken[served], taken["plain"], strict=True)
            )
            for key in ("p50_ms", "p99_ms", "requests_a_second", "server_cpu_ms_a_request")
        }
        found[served] = {**medians, **ratios, "wrong": wrongs[served]}
    return found


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round of one server")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "serving.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        found = measure(name, arguments.rounds, arguments.seconds)
        save(arguments.out, {name: found, "machine": machine(torch.device("cpu"))})
        print(name, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
