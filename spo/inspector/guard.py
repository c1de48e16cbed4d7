"""Who may ask the server, and what its answers allow a page: ASGI middleware, no Gradio.

Rollouts are private until someone shares them. A web page that a person happens to visit must
neither read them (other sites, other ports of localhost, DNS rebinding) nor make the server act.
"""

import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

POLICY = (
    "default-src 'self'; connect-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {ancestors}"
)
"""Gradio itself needs inline scripts and `new Function`; connections leave for nowhere."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
SHARED = ".gradio.live"
"""What the names of Gradio's share links end with."""
EMBEDDING = "'self' https://huggingface.co https://*.hf.space"
"""Sites that show a Space inside their own page, as in CSP."""
CLOSED = re.compile(
    r"/(gradio_api/)?(upload|proxy=|file[=/]|deep_link|vibe|undo-vibe|run-history|process_recording)"
)
"""Gradio's routes that write files, fetch addresses or read paths; the inspector needs none."""
WITHOUT_TOKEN = ("/gradio_api/startup-events", "/startup-events", "/manifest.json")
"""What Gradio's launch asks of itself, and what browsers ask for without cookies. Neither tells
anything of a run."""
COOKIE = "spo-token"
SECRET_HEADERS = re.compile(rb"access-control-.*", re.IGNORECASE)


class Guard:
    """Refuses what no page of the inspector asks for, and adds the security headers.

    Args:
        hosts: names the server answers to, see `known_hosts`; None: any (a Space).
        token: what a visitor must show once as `?token=…`; empty: nothing.
        ancestors: sites that may embed the page, as in CSP.
    """

    def __init__(self, app, hosts: Iterable[str] | None, token: str, ancestors: str):
        self.app = app
        self.hosts = None if hosts is None else frozenset(hosts)
        self.token = token
        self.headers = [
            (b"content-security-policy", POLICY.format(ancestors=ancestors).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        send = self.with_headers(send)
        refusal = self.refusal(scope, headers)
        if refusal:
            return await answer(send, *refusal)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self.token and path not in WITHOUT_TOKEN and not self.has_cookie(headers):
            given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
            if not self.matches(given):
                words = "This inspector asks for its token: open its address with ?token=… once."
                return await answer(send, 401, words)
            cookie = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            return await answer(
                send, 303, "", [(b"location", b"./"), (b"set-cookie", cookie.encode())]
            )
        if not self.is_proxied(headers):
            kept = [pair for pair in scope["headers"] if not pair[0].startswith(b"x-forwarded-")]
            scope = {**scope, "headers": kept}
        return await self.app(scope, receive, send)

    def refusal(self, scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """(status, words) where the request is none of the inspector's."""
        if self.hosts is not None and not is_known(headers.get("host", ""), self.hosts):
            return 400, "This server answers to no such host name."
        if CLOSED.match(scope["path"].removeprefix(scope.get("root_path", ""))):
            return 404, "The inspector has no such address."
        if scope.get("method") in ("GET", "HEAD", None) and scope["type"] == "http":
            return None
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin")
        foreign = site not in ("same-origin", "none") if site else False
        if not site and origin:
            foreign = urlsplit(origin).netloc != headers.get("host", "")
        return (403, "Other sites may not ask this server.") if foreign else None

    def is_proxied(self, headers: dict[str, str]) -> bool:
        """Whether a proxy of ours stands before us, whose word on the address counts."""
        if self.hosts is None:
            return True
        return SHARED in self.hosts and host_name(headers.get("host", "")).endswith(SHARED)

    def has_cookie(self, headers: dict[str, str]) -> bool:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        return cookie is not None and self.matches(cookie.value)

    def matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def with_headers(self, send):
        """`send` that adds the headers and takes back every permission for other origins."""

        async def sender(message):
            if message["type"] == "http.response.start":
                own = [h for h in message.get("headers", []) if not SECRET_HEADERS.match(h[0])]
                message = {**message, "headers": [*own, *self.headers]}
            await send(message)

        return sender


async def answer(send, status: int, words: str, headers: list | None = None) -> None:
    head = [(b"content-type", b"text/plain; charset=utf-8"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": words.encode()})


def host_name(host: str) -> str:
    """The name without its port; [::1]:7860 -> ::1.

    >>> host_name("127.0.0.1:7860"), host_name("[::1]:7860"), host_name("my.box")
    ('127.0.0.1', '::1', 'my.box')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def is_known(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is one of ours. Where the server listens to other machines, every IP
    address is: a site that rebinds its name to us still sends its name."""
    name = host_name(host)
    if name in names or (SHARED in names and name.endswith(SHARED)):
        return True
    if ANY_ADDRESS not in names:
        return False
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


ANY_ADDRESS = "any IP address"


def known_hosts(listens_on: str, share: bool = False) -> list[str]:
    """The names a server that listens there answers to; `share`: also those of share links."""
    known = [*LOCAL_HOSTS, *([SHARED] if share else [])]
    if listens_on in LOCAL_HOSTS:
        return known
    names = {socket.gethostname().lower(), socket.getfqdn().lower(), listens_on.lower()}
    return [*known, *sorted(names - {""}), ANY_ADDRESS]
