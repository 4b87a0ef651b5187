"""The web app in a real browser, on a real herd."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from browser.bring import bring
from browser.cut_line import CutLine
from harness.herd import Herd

MODEL = "cria"

NewPage = Callable[..., Page]
FindViolations = Callable[[Page], list[str]]


def row(page: Page, model: str = MODEL) -> Any:
    return page.locator(f"li[data-model='{model}']")


def connection(page: Page) -> Any:
    return page.get_by_role("status", name="Connection")


def test_the_page_shows_the_herd_and_says_that_it_is_live(page: Page) -> None:
    expect(page).to_have_title("Llamaherd")
    expect(connection(page)).to_have_text("live")
    expect(row(page)).to_be_visible()
    expect(page.locator("footer")).to_contain_text("supervisor")


def test_a_model_is_loaded_and_unloaded_by_click(page: Page, herd: Herd) -> None:
    bring(herd, MODEL, "stopped")
    state = row(page).locator("[data-state]")
    expect(state).to_have_attribute("data-state", "stopped")
    row(page).get_by_role("button", name=f"Load: {MODEL}").click()
    expect(state).to_have_attribute("data-state", "ready", timeout=30_000)
    expect(row(page)).to_contain_text("tokens")

    log = page.get_by_role("log")
    expect(log).to_contain_text(MODEL)

    row(page).get_by_role("button", name=f"Unload: {MODEL}").click()
    expect(state).to_have_attribute("data-state", "stopped", timeout=30_000)
    expect(row(page).get_by_role("button", name=f"Load: {MODEL}")).to_be_enabled()


def test_the_keyboard_alone_loads_a_model(page: Page, herd: Herd) -> None:
    bring(herd, MODEL, "stopped")
    button = row(page).get_by_role("button", name=f"Load: {MODEL}")
    expect(button).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the models")).to_be_focused()
    for _ in range(30):
        page.keyboard.press("Tab")
        if button.evaluate("(element) => element === document.activeElement"):
            break
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(row(page).locator("[data-state]")).to_have_attribute("data-state", "ready", timeout=30_000)


def test_lines_of_the_instance_arrive_in_the_log(new_page: NewPage, herd: Herd) -> None:
    bring(herd, MODEL, "stopped")
    page = new_page(url=f"{herd.ui_url}/?source=llama-server/{MODEL}/0")
    expect(connection(page)).to_have_text("live")
    shown = page.locator("#logs .section-head").get_by_text(re.compile(r"[\d,]+\+? lines match"))
    before = shown.inner_text()
    bring(herd, MODEL, "ready")
    expect(shown).not_to_have_text(before)
    assert set(page.locator("#logs .line .source").all_inner_texts()) == {MODEL}


def test_a_request_through_the_gateway_appears_in_the_list(page: Page, herd: Herd) -> None:
    bring(herd, MODEL, "ready")
    expect(connection(page)).to_have_text("live")
    seen = page.locator("tr[data-request]").count()
    assert herd.chat(MODEL, "Hello!", max_tokens=8).status_code == 200
    expect(page.locator("tr[data-request]")).to_have_count(min(seen + 1, 12))
    newest = page.locator("tr[data-request]").first
    expect(newest).to_contain_text(MODEL)
    expect(newest).to_contain_text("ok 200")


def test_a_refused_request_appears_with_its_reason(page: Page, herd: Herd) -> None:
    expect(connection(page)).to_have_text("live")
    assert herd.chat("no-such-model", "Hello!").status_code == 404
    expect(page.locator("tr[data-request]").first).to_contain_text("no-such-model")
    expect(page.locator("tr[data-request]").first).to_contain_text("error 404")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["stopped", "ready"])
def test_axe_finds_nothing(
    new_page: NewPage, herd: Herd, find_violations: FindViolations, scheme: str, state: str
) -> None:
    bring(herd, MODEL, state)
    page = new_page(color_scheme=scheme)
    expect(row(page).locator("[data-state]")).to_have_attribute("data-state", state)
    expect(connection(page)).to_have_text("live")
    for summary in page.locator("summary").all():
        summary.click()
    assert find_violations(page) == []


@pytest.mark.parametrize("width", [390, 820])
def test_a_narrow_window_needs_no_sideways_scrolling(new_page: NewPage, herd: Herd, width: int) -> None:
    herd.chat(MODEL, "Hello!", max_tokens=8)
    page = new_page(viewport={"width": width, "height": 844})
    expect(page.locator("tr[data-request]").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_cut_line_is_said_and_what_was_missed_comes_after(new_page: NewPage, herd: Herd, cut_line: CutLine) -> None:
    bring(herd, MODEL, "ready")
    page = new_page(url=cut_line.url, tolerate_offline=True)
    expect(connection(page)).to_have_text("live")
    newest = page.locator("tr[data-request]").first
    cut_line.cut()
    expect(connection(page)).to_have_text("offline")
    expect(page.locator(".connection")).to_contain_text("retry")
    assert herd.chat("missed-meanwhile", "Hello!").status_code == 404
    expect(newest).not_to_contain_text("missed-meanwhile")
    cut_line.mend()
    expect(connection(page)).to_have_text("live")
    expect(newest).to_contain_text("missed-meanwhile")
    expect(page.locator("tr[data-request]", has_text="missed-meanwhile")).to_have_count(1)


def test_a_killed_ui_service_comes_back_to_the_page(new_page: NewPage, herd: Herd) -> None:
    page = new_page(tolerate_offline=True)
    expect(connection(page)).to_have_text("live")
    killed = herd.kill("ui")
    expect(connection(page)).to_have_text("offline")
    herd.eventually(lambda: herd.pid("ui") != killed, within_s=10, what="another ui")
    expect(connection(page)).to_have_text("live")
    assert herd.chat("after-the-crash", "Hello!").status_code == 404
    expect(page.locator("tr[data-request]").first).to_contain_text("after-the-crash")


def test_the_log_window_keeps_few_rows_and_follows_until_scrolled(page: Page, herd: Herd) -> None:
    for _ in range(3):
        bring(herd, MODEL, "stopped")
        bring(herd, MODEL, "ready")
    log = page.get_by_role("log")
    expect(page.locator("#logs .section-head")).to_contain_text("lines")
    expect(log.locator(".line .time").first).to_be_visible()
    assert log.locator(".line").count() <= 100
    page.wait_for_function("() => { const log = document.querySelector('[role=log]'); return log.scrollTop > 0; }")

    log.hover()
    page.mouse.wheel(0, -200)
    newest = page.get_by_role("button", name="new line").or_(page.get_by_role("button", name="To the newest"))
    expect(newest).to_be_visible()
    newest.click()
    expect(newest).to_have_count(0)


def test_a_filter_stands_in_the_address_and_survives_a_reload(page: Page) -> None:
    expect(connection(page)).to_have_text("live")
    page.get_by_label("Words in the line").fill("nosuchwordanywhere")
    expect(page.locator("#logs")).to_contain_text("No line matches")
    expect(page).to_have_url(re.compile("q=nosuchwordanywhere"))
    page.reload()
    expect(page.get_by_label("Words in the line")).to_have_value("nosuchwordanywhere")
    page.get_by_role("button", name="Show all lines").click()
    expect(page.locator(".line .time").first).to_be_visible()


def test_a_chosen_theme_is_there_before_the_first_paint(page: Page) -> None:
    page.get_by_role("radio", name="Dark").check(force=True)
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.add_init_script(
        "document.addEventListener('readystatechange', () => {"
        " window.__theme ??= document.documentElement.dataset.theme; }, { once: true });"
    )
    page.reload()
    assert page.evaluate("window.__theme") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_everything_is_loaded_from_this_host(new_page: NewPage, herd: Herd) -> None:
    asked: list[str] = []
    page = new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(connection(page)).to_have_text("live")
    assert [url for url in asked if not url.startswith(herd.ui_url)] == []
