"""A stand-in for a vLLM server: the same routes over HTTP, a real policy behind them.

It samples with its own few lines, so that tokens and log-probs are found twice and compared.
"""

import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from peft import PeftModel


class StandIn:
    """A server on a port of 127.0.0.1, with `model` as its base.

    Attributes:
        deaf: it accepts adapters and goes on with the first one.
        raw_logprobs: it reports log-probs without the temperature.
        broken: its engine has died: every question gets 500, and its health is 503.
        delay: seconds before each completion.
        before_completion: called with the number of the completion, from 1.
        loaded, unloaded, bodies: the adapters it was sent and told to forget; what it was asked.
    """

    def __init__(self, model, port: int = 0):
        self.base, self.port = model.eval(), port
        self.deaf = self.raw_logprobs = self.broken = False
        self.runtime_lora = True
        self.delay, self.before_completion = 0.0, lambda number: None
        self.loaded, self.unloaded, self.bodies = [], [], []
        self.adapters, self.roots = {}, {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "StandIn":
        self.start()
        return self

    def __exit__(self, *raised) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, knowing no adapter."""
        self.adapters = {}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                stand_in.answer(self, None)

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                stand_in.answer(self, json.loads(self.rfile.read(length)))

            def log_message(self, *args):
                """Nothing to the terminal."""

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Free the port; what is being answered is broken off by nobody."""
        self.server.shutdown()
        self.server.server_close()

    def restart(self) -> None:
        self.stop()
        self.start()

    # --- the routes --------------------------------------------------------------------------

    def answer(self, handler, body) -> None:
        status, content = self.route(handler.path, body)
        text = content if isinstance(content, str) else json.dumps(content)
        try:
            handler.send_response(status)
            handler.end_headers()
            handler.wfile.write(text.encode())
        except OSError:
            return  # the client has lost patience

    def route(self, path, body):
        if self.broken:
            return (503, "") if path == "/health" else (500, _error("EngineCore has died."))
        match path:
            case "/health":
                return 200, ""
            case "/v1/models":
                cards = [{"id": "base", "root": "base"}]
                cards += [{"id": name, "root": self.roots[name]} for name in self.adapters]
                return 200, {"data": cards}
            case "/v1/load_lora_adapter" if self.runtime_lora:
                return self.load(body["lora_name"], Path(body["lora_path"]))
            case "/v1/unload_lora_adapter" if self.runtime_lora:
                self.unloaded.append(body["lora_name"])
                del self.adapters[body["lora_name"]]
                return 200, "Success"
            case "/v1/completions":
                self.bodies.append(body)
                self.before_completion(len(self.bodies))
                time.sleep(self.delay)
                if body["model"] not in self.adapters:
                    return 404, _error(f"The model `{body['model']}` does not exist.")
                with self.lock:
                    return 200, {"choices": [self.complete(**body)]}
        return 404, {"detail": "Not Found"}

    def load(self, name, path):
        if not path.is_dir():
            return 404, _error(f"Loading lora {name} failed")
        with self.lock:
            self.loaded.append(name)
            if not (self.deaf and len(self.loaded) > 1):
                self.newest = PeftModel.from_pretrained(copy.deepcopy(self.base), path).eval()
            self.adapters[name], self.roots[name] = self.newest, str(path)
        return 200, "Success"

    # --- sampling ----------------------------------------------------------------------------

    @torch.no_grad()
    def complete(
        self, *, model, prompt, max_tokens, temperature, top_k, stop_token_ids, seed, **rest
    ):
        """One completion, every token from a pass over all before it."""
        generator = torch.Generator().manual_seed(seed)
        token_ids, logprobs = [], []
        for _ in range(max_tokens):
            ids = torch.tensor([[*prompt, *token_ids]])
            logits = self.adapters[model](input_ids=ids).logits[0, -1]
            processed = logits / (temperature or 1.0)
            if top_k:
                processed[processed < processed.topk(top_k).values[-1]] = -torch.inf
            processed = processed.log_softmax(-1)
            token = int(
                processed.exp().multinomial(1, generator=generator)
                if temperature
                else processed.argmax()
            )
            reported = logits.log_softmax(-1) if self.raw_logprobs else processed
            token_ids.append(token)
            logprobs.append(float(reported[token]))
            if token in stop_token_ids:
                break
        stopped = token_ids[-1] in stop_token_ids
        return {
            "token_ids": token_ids,
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": "stop" if stopped else "length",
        }


def _error(message):
    return {"error": {"message": message}}
