"""Pages in a real browser: Debian's Chromium, without a window."""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest
from playwright import sync_api

from mae_jax.report import __main__ as report
from tests import logged, tiny

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
  CHROMIUM is None and not os.environ.get("CI"),
  reason="no Chromium here: apt-get install chromium",
)


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    # No sandbox, as root has none.
    opened = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield opened
    opened.close()


@pytest.fixture
def visit(browser):
  """Opens a page; at the end, nothing went wrong in it or was asked for."""
  context = browser.new_context(viewport={"width": 1300, "height": 1000})
  page = context.new_page()
  wrong: list[str] = []
  page.on("pageerror", lambda error: wrong.append(str(error)))
  page.on(
    "console",
    lambda message: (
      wrong.append(message.text)
      if message.type in ("error", "warning")
      else None
    ),
  )
  page.on(
    "request",
    lambda request: (
      wrong.append(request.url)
      if not request.url.startswith(("file:", "data:", "blob:"))
      else None
    ),
  )

  def go(path: pathlib.Path) -> sync_api.Page:
    page.goto(path.as_uri())
    return page

  yield go
  context.close()
  assert wrong == []


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory):
  root = tmp_path_factory.mktemp("runs")
  for name, blr in (("one", 1e-2), ("two", 2e-2)):
    config = tiny.config(optim={"blr": blr})
    logged.write(root / name, config, logged.EVALUATED)
  out = root / "report.html"
  report.write([str(root / "one"), str(root / "two")], str(out), look_at=0)
  return out


def loss(page: sync_api.Page) -> sync_api.Locator:
  return page.locator("#chart0")


def seen_range(page: sync_api.Page) -> list[float]:
  return page.evaluate(
    "document.getElementById('chart0')._fullLayout.xaxis.range"
  )


def test_every_chart_is_drawn(visit, page_of_two):
  page = visit(page_of_two)
  charts = page.locator(".chart")
  assert charts.count() >= 4
  for number in range(charts.count()):
    assert charts.nth(number).locator("svg.main-svg").count()
  assert loss(page).locator(".scatterlayer .trace").count() == 4


def test_drag_zooms_and_double_click_shows_all_again(visit, page_of_two):
  page = visit(page_of_two)
  before = seen_range(page)
  box = loss(page).locator(".nsewdrag").bounding_box()
  assert box is not None
  y = box["y"] + box["height"] / 2
  page.mouse.move(box["x"] + 0.3 * box["width"], y)
  page.mouse.down()
  page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
  page.mouse.up()
  page.wait_for_timeout(300)
  low, high = seen_range(page)
  assert before[0] < low < high < before[1]
  page.mouse.dblclick(box["x"] + 0.5 * box["width"], y)
  page.wait_for_timeout(500)
  assert seen_range(page) == pytest.approx(before)


def test_hover_tells_the_values(visit, page_of_two):
  page = visit(page_of_two)
  box = loss(page).locator(".nsewdrag").bounding_box()
  assert box is not None
  # A mouse comes from somewhere.
  x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
  page.mouse.move(x - 20, y)
  page.mouse.move(x, y, steps=4)
  told = loss(page).locator(".hoverlayer").first
  told.locator("text").first.wait_for()
  assert "one, training" in (told.text_content() or "")
  assert "two, training" in (told.text_content() or "")


def test_a_click_on_a_name_hides_its_line(visit, page_of_two):
  page = visit(page_of_two)
  loss(page).locator(".legendtoggle").first.click()
  page.wait_for_timeout(600)
  assert loss(page).locator(".scatterlayer .trace").count() == 3


def test_the_slider_moves_by_keyboard(visit, page_of_two):
  page = visit(page_of_two)
  slider = page.get_by_role("slider").first
  picture = page.locator("#slider0-0-image")
  step = page.locator("#slider0-0-step")
  last = picture.get_attribute("src")
  assert step.inner_text() == "6"
  assert picture.evaluate("image => image.naturalWidth") > 100
  slider.focus()
  page.keyboard.press("ArrowLeft")
  assert step.inner_text() == "3"
  assert picture.get_attribute("src") != last
  page.keyboard.press("End")
  assert step.inner_text() == "6"
  assert picture.get_attribute("src") == last


def test_settings_that_differ_are_seen_at_once(visit, page_of_two):
  page = visit(page_of_two)
  assert page.locator("#changed").get_by_text("optim.blr").is_visible()
  other = page.get_by_text("data.channels", exact=True)
  assert not other.is_visible()
  page.get_by_text("all other settings").click()
  assert other.is_visible()


def test_a_narrow_window_needs_no_sideways_scrolling(visit, page_of_two):
  page = visit(page_of_two)
  page.set_viewport_size({"width": 700, "height": 900})
  page.wait_for_timeout(300)
  charts = page.locator(".charts").first
  assert charts.evaluate("each => each.scrollWidth <= each.clientWidth")
