"""The page of one problem in a real browser: redraws keep the keyboard focus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from figures.example.read import Example, read_example
from tests.figures.example.test_page_browser import LONG, WATCHED, above_its_panel, numbers, settle, strongest, token


@pytest.fixture
def example(example_folder) -> Example:
    """Two models, two of twelve heads watched."""
    return read_example(example_folder(watched=WATCHED))


def test_the_focus_survives_redraws(opened, example):
    page, position = opened(example), numbers(example)[5]
    token(page, 0, position).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    settle(page)
    key = page.evaluate("document.activeElement.dataset.token")
    assert key == strongest(example, "model-0", (0, 1), "query", position + 1)[0][0]
    page.keyboard.press("Enter")
    settle(page)
    assert token(page, 0, int(key)).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    button = page.locator("#highest-0 button").first
    name = button.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f'html[data-head="{name}"]', state="attached")
    assert page.evaluate("document.activeElement.textContent") == name


def test_a_pending_frame_does_not_replace_the_keyboards_token(opened, example):
    """Keys that are faster than the screen: the panel's button has the focus before the frame requested by leaving the token."""
    page, position = opened(example), numbers(example)[5]
    page.keyboard.press("Tab")
    reached = page.evaluate(
        """(at) => {
          const tokens = document.querySelectorAll("#text-0 .t");
          tokens[at].focus();
          tokens[at + 1].focus();
          const button = document.querySelector("#detail-0 .out button");
          button.focus();
          return [button.dataset.token, document.activeElement === button];
        }""",
        position,
    )
    key = strongest(example, "model-0", (0, 1), "query", position + 1)[0][0]
    assert reached == [key, True]
    settle(page)
    assert page.evaluate("document.activeElement.dataset.token") == key


def test_a_redrawn_panel_keeps_the_focus(opened, example):
    page, position = opened(example), numbers(example)[5]
    token(page, 0, position).focus()
    page.keyboard.press("Enter")
    button = page.locator("#detail-0 .in button").first
    key = button.get_attribute("data-token")
    button.focus()
    token(page, 0, position).hover()
    settle(page)
    held = page.evaluate("[document.activeElement.dataset.token, document.activeElement.closest('.in') !== null]")
    assert held == [key, True]
    token(page, 0, position + 1).hover()
    settle(page)
    assert page.evaluate("document.activeElement.closest('#detail-0') !== null")


FOCUS = "(() => { const at = document.activeElement; return at.dataset.key ?? (at.id || at.className || at.tagName); })()"


def slow_down(page: Any, times: int) -> None:
    """Slow down the processor by a factor, so that pending frames and blocks come late."""
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": times})


def focused_token(page: Any) -> list[int]:
    """(model, position) of the token that has the focus."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".text")].flatMap((text, m) => {
          const at = [...text.querySelectorAll(".t")].indexOf(document.activeElement);
          return at < 0 ? [] : [m, at];
        })"""
    )


def watch_focus(page: Any) -> Callable[[], list[str]]:
    """Watch every frame from now on; returns what had the focus before each frame in which nothing had it."""
    page.evaluate(
        """() => {
          window.lost = [];
          let before = null;
          const look = () => {
            if (document.activeElement !== document.body) before = document.activeElement;
            else if (before) { window.lost.push(before.outerHTML); before = null; }
            requestAnimationFrame(look);
          };
          look();
        }"""
    )

    def lost() -> list[str]:
        settle(page)
        return page.evaluate("window.lost")

    return lost


@pytest.mark.parametrize("times", [1, 10], ids=["quick", "slow"])
@pytest.mark.parametrize("answers", [1, 2])
def test_unpinning_moves_the_focus_to_the_token(opened, example_folder, answers, times):
    example = read_example(example_folder(answers=("3*12=36\n#### 36", "#### 7")[:answers], watched=WATCHED))
    page, position, model = opened(example), numbers(example)[2], answers - 1
    slow_down(page, times)
    lost = watch_focus(page)
    token(page, 0, position).focus()
    page.keyboard.press("Enter")
    page.locator(f"#detail-{model} .in button").first.focus()
    page.keyboard.press("Escape")
    assert focused_token(page) == [model, position]
    assert page.locator(".t[aria-pressed='true'], .detail .out").count() == 0
    assert page.evaluate("document.activeElement.tabIndex") == 0
    page.keyboard.press("Enter")
    assert page.locator("#detail-0 .out").count() == 1
    page.locator("#unpin").focus()
    page.keyboard.press("Enter")
    assert focused_token(page) == [model, position]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator("#unpin").click()
    assert focused_token(page) == [model, position + 1]
    assert page.locator(".t[aria-pressed='true'], .detail .out").count() == 0
    assert lost() == []


def test_unpinning_scrolls_to_a_token_out_of_view(opened, example_folder):
    page = opened(read_example(example_folder(answers=(LONG,), watched=WATCHED)))
    token(page, 0, 0).focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.evaluate("scrollTo(0, 0)")
    page.locator("#unpin").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "<|im_end|>"
    assert min(above_its_panel(page)) >= 0


@pytest.mark.parametrize("times", [1, 10], ids=["quick", "slow"])
def test_a_leaving_pointer_does_not_close_a_panel_with_the_focus(opened, example, times):
    page, position = opened(example), numbers(example)[5]
    slow_down(page, times)
    lost = watch_focus(page)
    token(page, 0, position - 4).hover()
    token(page, 0, position).focus()
    page.keyboard.press("ArrowRight")
    page.mouse.move(2, 2)
    settle(page)
    assert f"token {position + 1}" in page.locator("#detail-0 h4").inner_text()
    token(page, 0, position - 4).hover()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    held = page.evaluate(FOCUS)
    assert held == f"out {strongest(example, 'model-0', (0, 1), 'query', position)[0][0]}"
    page.mouse.move(2, 2)
    settle(page)
    assert page.evaluate(FOCUS) == held
    token(page, 0, position - 4).hover()
    settle(page)
    assert f"token {position - 4}" in page.locator("#detail-0 h4").inner_text()
    page.mouse.move(2, 2)
    settle(page)
    assert f"token {position}" in page.locator("#detail-0 h4").inner_text()
    assert page.evaluate("document.activeElement.closest('#detail-0') !== null")
    page.locator("#save-0").focus()
    settle(page)
    assert page.locator("#detail-0 .out").count() == 0
    assert lost() == []


def test_a_panel_opened_by_the_pointer_stays_open_while_focused(opened, example):
    page, position = opened(example), numbers(example)[5]
    lost = watch_focus(page)
    token(page, 0, position).hover()
    settle(page)
    page.locator("#detail-0 .out button").first.focus()
    page.mouse.move(2, 2)
    settle(page)
    assert f"token {position}" in page.locator("#detail-0 h4").inner_text()
    assert page.evaluate("document.activeElement.closest('#detail-0') !== null")
    assert lost() == []


def test_a_panel_that_shows_a_shared_token_accepts_the_focus(opened, example):
    """A shared token is shown in every panel; pressing a button lasts several frames."""
    page, position = opened(example), numbers(example)[1]
    lost = watch_focus(page)
    token(page, 0, position).focus()
    page.keyboard.press("ArrowRight")
    page.locator("#detail-1 .out button").first.hover()
    page.mouse.down()
    settle(page)
    page.mouse.up()
    settle(page)
    assert focused_token(page)[0] == 1
    assert token(page, *focused_token(page)).get_attribute("aria-pressed") == "true"
    assert lost() == []


ADDRESS = "(address) => { location.hash = address; }"


@pytest.mark.parametrize("times", [1, 10], ids=["quick", "slow"])
def test_no_control_loses_the_focus_when_the_page_is_redrawn(opened, example, times):
    page = opened(example, address="#head=0.1&token=0:8")
    slow_down(page, times)
    lost = watch_focus(page)
    page.locator("#between-0 summary").click()
    button = page.locator("#between-0 button").first
    assert button.count() == 1
    for place in (page.locator("#top .head-button").nth(1), page.locator("#highest-0 .head-button").nth(1), button):
        place.focus()
        held = page.evaluate(FOCUS)
        page.emulate_media(color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'));")
        page.emulate_media(color_scheme="light")
        settle(page)
        assert page.evaluate(FOCUS) == held
    for head in ("1.2", "2.3", "0.1"):
        page.evaluate(ADDRESS, f"#head={head}&token=0:8")
        page.wait_for_selector(f'html[data-head="{head}"]', state="attached")
        assert page.evaluate("document.activeElement.closest('#between-0') !== null")
    page.locator("#highest-0 .head-button").first.focus()
    page.evaluate("document.querySelectorAll('#steps-0 button.step')[2].click()")
    assert page.evaluate("document.activeElement.closest('#highest-0, #grid') !== null")
    assert lost() == []


@pytest.mark.parametrize("times", [1, 10], ids=["quick", "slow"])
def test_a_new_address_keeps_the_focus(opened, example, times):
    own = example.run["shared_tokens"] + 5
    page = opened(example, address="#head=0.1&token=0:8")
    slow_down(page, times)
    lost = watch_focus(page)
    page.locator("#detail-1 .out button").first.focus()
    page.evaluate(ADDRESS, f"#head=2.3&token=0:{own}")
    page.wait_for_selector('html[data-head="2.3"]', state="attached")
    assert "that only" in page.locator("#detail-1").inner_text()
    assert focused_token(page) == [1, 8]
    page.locator("#unpin").focus()
    page.evaluate(ADDRESS, "#head=0.1")
    page.wait_for_selector('html[data-head="0.1"]', state="attached")
    assert focused_token(page) == [0, own]
    page.locator("#differ").focus()
    page.evaluate(ADDRESS, "#head=1.2")
    page.wait_for_selector('html[data-head="1.2"]', state="attached")
    settle(page)
    assert page.evaluate(FOCUS) == "map-1"
    for control, before, after in (("as", "", "&color=step.earlier_results"), ("top-more", "&color=entropy_nats", "")):
        for head, more in (("0.1", before), ("2.3", after)):
            page.evaluate(ADDRESS, f"#head={head}{more}")
            page.wait_for_selector(f'html[data-head="{head}"]', state="attached")
            if head == "0.1":
                page.locator(f"#{control}").focus()
                assert page.evaluate(FOCUS) == control
        settle(page)
        assert page.evaluate(FOCUS) == "quantity"
    assert lost() == []


def test_a_panel_without_buttons_moves_the_focus_to_its_token(opened, example):
    weak = example.edges["layer"].eq(1) & example.edges["head"].eq(2)
    page = opened(replace(example, edges=example.edges[~weak]), address="#head=0.1&token=1:8")
    page.locator("#detail-1 .out button").first.focus()
    page.evaluate(ADDRESS, "#head=1.2&token=1:8")
    page.wait_for_selector('html[data-head="1.2"]', state="attached")
    assert page.locator("#detail-1 button").count() == 0
    assert focused_token(page) == [1, 8]
