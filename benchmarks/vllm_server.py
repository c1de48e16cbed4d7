"""A vLLM server started as docs/engines.md says, for benchmarks and slow tests."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

UP_SECONDS = 900


class VllmServer:
    """`vllm serve` on 127.0.0.1.

    Args:
        python: of an environment that has vLLM.
        model: folder of the model.
        port: to listen on.
        log: file for what the server says.
        length: longest prompt and completion together.
        dtype: of its weights and arithmetic.
    """

    def __init__(
        self, python: str, model: str, port: int, log: Path, length: int, dtype: str = "float32"
    ):
        self.model, self.log, self.url = model, log, f"http://127.0.0.1:{port}"
        flags = f"--model {model} --dtype {dtype} --max-model-len {length} --port {port}"
        flags += " --host 127.0.0.1 --enable-lora --max-lora-rank 16"
        flags += " --logprobs-mode processed_logprobs"
        self.command = [python, "-m", "vllm.entrypoints.openai.api_server", *flags.split()]

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "TORCHDYNAMO_DISABLE": "1"}
        settings |= {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that `stop` reaches the processes that it starts
            )
        deadline = time.monotonic() + UP_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers():
                return
            time.sleep(1)
        self.stop()
        raise RuntimeError(f"vLLM did not start:\n{self.log.read_text()[-3000:]}")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it; SIGKILL: all of its processes at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        self.process.wait(60)
