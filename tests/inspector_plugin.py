"""Fixtures of the browser tests, loaded by `pytest_plugins` where they are used."""

import pytest
from inspector_browser import Visit, shared_server


@pytest.fixture(scope="module")
def root():
    return shared_server()[0]


@pytest.fixture(scope="module")
def server():
    return shared_server()[1]


@pytest.fixture
def visit(server):
    """Opens the page at a fragment; at the end nothing may have gone wrong in the browser."""
    visits = []

    def open_page(fragment="run=alpha&step=2&tab=read", **size):
        opened = Visit(server.address, fragment, **size).__enter__()
        if "tab=read" in fragment:
            opened.page.wait_for_selector(".card .t", state="attached")
        visits.append(opened)
        return opened

    yield open_page
    for opened in visits:
        opened.page.close()
        assert opened.problems == []
        assert [url for url in opened.requests if not is_local(url, server.address)] == []


def is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))
