"""Rollouts are data from strangers: whatever they hold stays text, and the server stays shut."""

import json
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest
from inspector_browser import Visit, serve
from inspector_fixtures import MARKUP_NAME, PAYLOADS

from spo.inspector.guard import EMBEDDING, Guard, known_hosts

pytest_plugins = ["inspector_plugin"]

ADDRESS = "window.pwned"
RUN = f"run={quote(MARKUP_NAME)}"


def calm(page) -> bool:
    """Nothing was executed, and nothing but our own elements exists."""
    return page.evaluate(
        f"{ADDRESS} === undefined && !document.querySelector("
        "'.spo :is(script, iframe, img), td :is(img, script), .spo style')"
    )


def test_payloads_stay_text_in_every_view(server):
    dialogs = []
    with Visit(server.address, f"{RUN}&step=1&tab=read&prompt=0&token=0&p=0.4") as visit:
        page = visit.page
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        page.wait_for_selector(".card .t", state="attached")
        texts = page.evaluate(
            "[...document.querySelectorAll('.card .text')].map((t) => t.textContent)"
        )
        assert texts == ["".join(PAYLOADS), "".join(PAYLOADS[::-1])]
        assert "".join(PAYLOADS)[:20] in page.text_content(".prompt")
        tokens = page.evaluate(
            "[...document.querySelectorAll('.card .t')].map((t) => t.textContent)"
        )
        assert tokens[: len(PAYLOADS)] == PAYLOADS
        for at in range(len(PAYLOADS)):
            page.evaluate(
                "(at) => { const token = document.querySelectorAll('.card .t')[at];"
                "token.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));"
                "token.click(); }",
                at,
            )
            assert calm(page)
        page.click("text=Rendered: Markdown and LaTeX")
        page.wait_for_selector(".message")
        page.wait_for_timeout(700)
        assert calm(page)
        assert page.locator(".message :is(img, script, iframe, style, svg)").count() == 0
        for name in ("Run", "Critic", "Hacking", "Step", "Compare"):
            page.click(f"role=tab[name={name}]")
            page.wait_for_timeout(700)
            assert calm(page)
        assert "onerror" in page.inner_text("body")  # the run's name stands there as text
        page.goto(f"{server.address}#{RUN}&tab=search&emin=0")
        page.wait_for_selector("text=segments in 2 of 2 steps")
        page.wait_for_timeout(300)
        assert calm(page)
        assert dialogs == []
        assert visit.problems == []
        assert all(url.startswith((server.address, "data:", "blob:")) for url in visit.requests)


def test_payloads_stay_text_in_exports(server, tmp_path):
    with Visit(server.address, f"{RUN}&step=1&tab=read&prompt=0") as visit:
        page = visit.page
        page.wait_for_selector(".card .t")
        for item, name in (
            ("Prompt group as HTML", "group.html"),
            ("Completion as SVG", "one.svg"),
        ):
            page.click(".menu summary")
            with page.expect_download() as download:
                page.click(f"text={item}")
            download.value.save_as(tmp_path / name)
    for name in ("group.html", "one.svg"):
        with Visit((tmp_path / name).as_uri()) as visit:
            visit.page.wait_for_selector(".card .t, svg text", state="attached")
            assert visit.page.evaluate(f"{ADDRESS} === undefined")
            assert visit.problems == []
            if name == "group.html":
                assert visit.text(".card .text") == "".join(PAYLOADS)
                assert calm(visit.page)


def fetch(address, path="", body=None, **headers):
    request = urllib.request.Request(address + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_the_policy_allows_no_connection_elsewhere(server):
    status, headers, _ = fetch(server.address)
    assert status == 200
    policy = headers["content-security-policy"]
    assert "connect-src 'self'" in policy
    assert "object-src 'none'" in policy
    with Visit(server.address) as visit:
        blocked = visit.ask(
            "fetch('http://127.0.0.2:9/').then(() => 'sent', (error) => String(error))"
        )
        assert blocked != "sent"
        assert any("Content Security Policy" in problem for problem in visit.problems)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example"])
def test_other_host_names_are_refused(server, host):
    assert fetch(server.address, Host=host)[0] == 400


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=pyproject.toml",
        "gradio_api/file=http://127.0.0.1:9/",
        "gradio_api/file/http://127.0.0.1:9/",
        "file/http://127.0.0.1:9/",
        "inspector-static/../server.py",
        "inspector-static/%2e%2e/server.py",
        "inspector-static/..%2f..%2fapp.py",
        "monitoring",
        "docs",
        "openapi.json",
        "gradio_api/proxy=http://127.0.0.1:9/",
        "gradio_api/upload_progress?upload_id=x",
    ],
)
def test_nothing_else_is_served(server, path):
    status, _, body = fetch(server.address, path)
    assert status >= 400 or b"<gradio-app" in body
    assert b"import " not in body[:2000]
    assert b"root:" not in body


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:9"},
        {"Origin": "http://localhost:9"},
        {"Origin": "null"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["gradio_api/component_server", "gradio_api/queue/join"])
def test_other_sites_cannot_ask(server, headers, path):
    status, _, body = fetch(server.address, path, b"{}", **headers)
    assert (status, body) == (403, b"Other sites may not ask this server.")


def test_nothing_can_be_uploaded(server):
    for path in ("gradio_api/upload", "upload", "gradio_api/upload?upload_id=1"):
        assert fetch(server.address, path, b"x")[0] == 404


def test_other_ports_of_localhost_get_no_permission(server):
    for body in (None, b"{}"):
        _, headers, _ = fetch(server.address, "config", body, Origin="http://localhost:9")
        assert not [name for name in headers if name.lower().startswith("access-control-")]


def test_forwarded_hosts_are_not_reflected(server):
    for path in ("", "config"):
        _, headers, body = fetch(server.address, path, **{"X-Forwarded-Host": "evil.example"})
        assert b"evil.example" not in body + str(headers).encode()


def test_other_machines_need_the_token(root):
    opened = serve(root, "--host", "0.0.0.0", "--token", "s3cret")
    assert fetch(opened.address)[0] == 401
    assert fetch(opened.address, "config?token=wrong")[0] == 401
    assert fetch(opened.address, "gradio_api/component_server", b"{}")[0] == 401
    assert fetch(opened.address, Host="rebound.example")[0] == 400
    with Visit(f"{opened.address}?token=s3cret", "run=alpha&step=2&tab=read") as visit:
        visit.page.wait_for_selector(".card .t")
        assert "s3cret" not in visit.page.url
        assert visit.problems == []
    opened.process.kill()


LINK = "0a1b2c.gradio.live"


def ask_guard(hosts, ancestors="'self'", method="GET", **headers):
    """(status, its headers, the headers that reached the page) of one request at the guard."""
    reached, sent = [], []

    async def page(scope, receive, send):
        reached.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), x.encode()) for name, x in headers.items()]
    scope = {"type": "http", "method": method, "path": "/config", "headers": pairs}
    with pytest.raises(StopIteration):  # nothing in it waits: the first step is the whole answer
        Guard(page, hosts, "", ancestors)(scope, None, send).send(None)
    return sent[0]["status"], dict(sent[0]["headers"]), dict(reached)


def test_a_share_link_is_answered_only_when_asked_for():
    shared = known_hosts("127.0.0.1", share=True)
    status, _, reached = ask_guard(shared, host=LINK, x_forwarded_proto="https")
    assert status == 200
    assert reached[b"x-forwarded-proto"] == b"https"  # or the page would fetch over http
    assert ask_guard(known_hosts("127.0.0.1"), host=LINK)[0] == 400
    for host in ("evil.example", "gradio.live", "evilgradio.live", f"{LINK}.evil.example"):
        assert ask_guard(shared, host=host)[0] == 400
    status, _, reached = ask_guard(shared, host="127.0.0.1:7860", x_forwarded_host="evil.example")
    assert (status, b"x-forwarded-host" in reached) == (200, False)


@pytest.mark.parametrize(
    ("site", "status"),
    [
        ({"origin": f"https://{LINK}"}, 200),
        ({"origin": f"https://{LINK}", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://other.gradio.live"}, 403),
        ({"origin": "https://other.gradio.live", "sec_fetch_site": "same-site"}, 403),
    ],
    ids=str,
)
def test_a_share_link_is_asked_by_its_own_page_only(site, status):
    shared = known_hosts("127.0.0.1", share=True)
    assert ask_guard(shared, method="POST", host=LINK, **site)[0] == status


def test_a_space_may_be_embedded_by_hugging_face_alone():
    _, headers, _ = ask_guard(None, EMBEDDING, host="someone-inspector.hf.space")
    policy = headers[b"content-security-policy"].decode()
    ancestors = policy.split("frame-ancestors ")[1]
    assert ancestors == "'self' https://huggingface.co https://*.hf.space"
    assert b"x-frame-options" not in headers
    _, headers, _ = ask_guard(known_hosts("127.0.0.1"), host="127.0.0.1:7860")
    assert headers[b"content-security-policy"].endswith(b"frame-ancestors 'self'")


def test_no_function_is_public_without_mcp(server):
    _, _, body = fetch(server.address, "gradio_api/info")
    assert json.loads(body)["named_endpoints"] == {}


def test_server_functions_read_only_listed_runs(server):
    """Called as the page calls them, with the names an attacker would try."""
    _, _, body = fetch(server.address, "config")
    component = next(
        c["id"]
        for c in json.loads(body)["components"]
        if c["type"] == "html" and "spo-root" in c["props"]["html_template"]
    )
    for run in ("../..", "/etc", "..", "\x00"):
        message = {
            "session_hash": "x",
            "component_id": component,
            "fn_name": "list_steps",
            "data": {"run": run},
        }
        request = urllib.request.Request(
            server.address + "gradio_api/component_server",
            json.dumps(message).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            result = json.loads(json.loads(answer.read()))
        assert result["ok"] is False
        assert "no run" in result["error"]
