"""A browser, a page that tolerates no error, and a line that can be cut. The fixture `herd` is everybody's."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from browser.bring import bring, state_of
from browser.cut_line import CutLine
from harness.herd import Herd

WEB: Final = Path(__file__).parents[2] / "services/ui/llamaherd_ui/web"
AXE: Final = WEB / "node_modules/axe-core/axe.min.js"
ARGUMENTS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
]
"""Quiet: the browser asks nobody but the herd."""

WATCH_POLICY: Final = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.__violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""

NewPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module", autouse=True)
def leave_as_found(herd: Herd) -> Iterator[None]:
    """The herd is shared with other tests."""
    state = state_of(herd, "cria")
    yield
    bring(herd, "cria", "ready" if state == "ready" else "stopped")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For a module, not the session: while it lives, an event loop runs in this thread and tests can start none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("LLAMAHERD_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium) or set LLAMAHERD_CHROMIUM")
    with sync_playwright() as playwright:
        expect.set_options(timeout=15_000)
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser, herd: Herd) -> Iterator[NewPage]:
    """Opens the web app; at the end of the test nothing may have gone wrong on any page."""
    contexts: list[BrowserContext] = []
    pages: list[Page] = []
    troubles: list[str] = []

    def open_page(*, url: str | None = None, tolerate_offline: bool = False, **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.add_init_script(WATCH_POLICY)
        page.on("pageerror", lambda error: troubles.append(f"uncaught: {error}"))

        def listen(message: Any) -> None:
            offline = "net::ERR_" in message.text or "Failed to load resource" in message.text
            if message.type in {"error", "warning"} and not (tolerate_offline and offline):
                troubles.append(f"{message.type}: {message.text}")

        page.on("console", listen)
        page.goto(url or herd.ui_url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        troubles += page.evaluate("window.__violations")
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()


@pytest.fixture
def cut_line(herd: Herd) -> Iterator[CutLine]:
    """A line to the ui that can be cut and mended, as between a laptop and a server."""
    line = CutLine(herd.ui_url)
    yield line
    line.close()


@pytest.fixture
def find_violations() -> Callable[[Page], list[str]]:
    """What axe finds on a page, as WCAG 2.2 AA and its own best practices see it."""
    if not AXE.is_file():
        pytest.skip(f"no axe-core: run `npm ci` in {WEB.relative_to(Path(__file__).parents[2])}")
    script = AXE.read_text()
    tags = json.dumps(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"])

    def find(page: Page) -> list[str]:
        # Through the debugger, which the content security policy does not stop.
        page.evaluate(f"{script};undefined")
        violations = page.evaluate(f"axe.run(document, {{runOnly: {tags}}}).then((found) => found.violations)")
        return [f"{rule['id']}: {node['html'][:200]}" for rule in violations for node in rule["nodes"]]

    return find
