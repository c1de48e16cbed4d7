"""Questions to a vLLM server over HTTP, asked until it answers or its time is up.

Standard library only. Every failure a person can mend is an `EngineError` of one sentence.
"""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
import warnings
from typing import Any

from spo.errors import EngineError


class NotFoundError(EngineError):
    """The server is there, and has no such route, model or adapter."""


class _Silence(Exception):
    """No answer this time; the next attempt may get one."""


class Client:
    """One server.

    Args:
        url: without a slash at the end.
        timeout: seconds without an answer after which the run ends.
        pause: seconds between two attempts.
    """

    def __init__(self, url: str, timeout: float, pause: float = 1.0):
        self.url, self.timeout, self.pause = url, timeout, pause
        self._lock = threading.Lock()
        self._warned = False

    def ask(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers to a GET, or to a POST of `body`: JSON, or else text.

        Raises:
            NotFoundError: it does not know what is asked for.
            EngineError: it refuses, or gave no answer for `timeout` seconds.
        """
        began = time.monotonic()
        while True:
            try:
                answer = self._once(route, body)
            except _Silence as silence:
                self._bear(silence, began)
            else:
                self._warned = False
                return answer

    def _bear(self, silence: _Silence, began: float) -> None:
        """Say once that nobody answers, and wait a little."""
        with self._lock:
            if time.monotonic() - began >= self.timeout:
                raise EngineError(
                    f"vLLM at {self.url} gave no answer for {self.timeout:g} seconds ({silence}): "
                    "start it again and go on with --resume_from_checkpoint auto, or give it more "
                    "time with --vllm_server_timeout."
                ) from silence
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"vLLM at {self.url} does not answer ({silence}); trying again for "
                    f"{self.timeout:g} seconds.",
                    stacklevel=4,
                )
        time.sleep(min(self.pause, self.timeout))

    def _once(self, route: str, body: dict[str, Any] | None) -> Any:
        try:
            return _read(self._open(route, body, self.timeout))
        except urllib.error.HTTPError as error:
            message = _message_of(error)
            if error.code == 404:
                raise NotFoundError(f"vLLM at {self.url}: {message}") from error
            if error.code >= 500 and not self._is_well():
                raise _Silence(message) from error
            raise EngineError(f"vLLM at {self.url} refuses {route}: {message}") from error
        except urllib.error.URLError as error:
            raise _Silence(error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Silence(str(error) or type(error).__name__) from error

    def _is_well(self) -> bool:
        """What the server says of itself; one whose engine has died still answers questions."""
        try:
            self._open("/health", None, min(self.timeout, 10.0)).close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _open(self, route: str, body: dict[str, Any] | None, timeout: float) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, headers)
        return urllib.request.urlopen(request, timeout=timeout)


def _read(response: Any) -> Any:
    with response:
        text = response.read().decode(errors="replace")
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # some routes answer in plain words
        return text


def _message_of(error: urllib.error.HTTPError) -> str:
    """The sentence in vLLM's error, or what else stands there."""
    answer = _read(error)
    if isinstance(answer, dict):
        told = answer.get("error", answer)
        answer = told.get("message", told) if isinstance(told, dict) else told
    return " ".join(str(answer).split())[:300] or f"{error.code} {error.reason}"
