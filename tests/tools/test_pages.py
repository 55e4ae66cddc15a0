"""Tests of the pages in a real browser, Debian's headless Chromium."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from playwright import sync_api

import mae_jax
from mae_jax.tools import reconstructor
from mae_jax.tools.demo import server, services
from mae_jax.tools.report import command as report
from tests.helpers import fake_logs, runs, tiny

PATIENCE = 120_000  # ms, for a busy machine
sync_api.expect.set_options(timeout=PATIENCE)
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
  CHROMIUM is None and not os.environ.get("CI"),
  reason="no Chromium here: apt-get install chromium",
)


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    # Chromium has no sandbox for root.
    opened = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield opened
    opened.close()


@pytest.fixture
def visit(browser):
  """A function that opens a page; at the end, checks errors and requests."""
  context = browser.new_context(viewport={"width": 1300, "height": 1000})
  context.set_default_timeout(PATIENCE)
  page = context.new_page()
  wrong: list[str] = []
  page.on("pageerror", lambda error: wrong.append(str(error)))
  allowed = ["file:", "data:", "blob:"]

  def tell(message: sync_api.ConsoleMessage) -> None:
    # The browser and the page both report a refused request.
    refused = re.search("status of 4(00|15)", message.text)
    if message.type in ("error", "warning") and not refused:
      wrong.append(message.text)

  def look(request: sync_api.Request) -> None:
    if not request.url.startswith(tuple(allowed)):
      wrong.append(request.url)

  page.on("console", tell)
  page.on("request", look)

  def go(where: pathlib.Path | str) -> sync_api.Page:
    if isinstance(where, pathlib.Path):
      where = where.as_uri()
    allowed.append(where)
    page.goto(where)
    return page

  yield go
  context.close()
  assert wrong == []


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory):
  root = tmp_path_factory.mktemp("runs")
  for name, blr in (("one", 1e-2), ("two", 2e-2)):
    config = tiny.config(optim={"blr": blr})
    fake_logs.write(root / name, config, fake_logs.EVALUATED)
  out = root / "report.html"
  report.write([str(root / "one"), str(root / "two")], str(out), look_at=0)
  return out


def until(
  page: sync_api.Page,
  holds: Callable[[], bool],
  act: Callable[[], object] = lambda: None,
) -> None:
  """Repeats an action until a condition holds: a busy page may miss one."""
  for _ in range(PATIENCE // 1000):
    act()
    for _ in range(10):
      if holds():
        return
      page.wait_for_timeout(100)
  raise AssertionError("it never came")


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


def test_drag_zooms_and_double_click_resets(visit, page_of_two):
  page = visit(page_of_two)
  before = seen_range(page)
  box = loss(page).locator(".nsewdrag").bounding_box()
  assert box is not None
  y = box["y"] + box["height"] / 2

  def drag() -> None:
    page.mouse.move(box["x"] + 0.3 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
    page.mouse.up()

  until(page, lambda: seen_range(page) != before, drag)
  low, high = seen_range(page)
  assert before[0] < low < high < before[1]
  until(
    page,
    lambda: seen_range(page) == pytest.approx(before),
    lambda: page.mouse.dblclick(box["x"] + 0.5 * box["width"], y),
  )


def test_hover_shows_the_values(visit, page_of_two):
  page = visit(page_of_two)
  box = loss(page).locator(".nsewdrag").bounding_box()
  assert box is not None
  # The mouse moves in from elsewhere.
  x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

  def hover() -> None:
    page.mouse.move(x - 20, y)
    page.mouse.move(x, y, steps=4)

  output = loss(page).locator(".hoverlayer").first
  until(page, lambda: "one, training" in (output.text_content() or ""), hover)
  assert "two, training" in (output.text_content() or "")


def test_a_click_on_a_name_hides_its_line(visit, page_of_two):
  page = visit(page_of_two)
  loss(page).locator(".legendtoggle").first.click()
  sync_api.expect(loss(page).locator(".scatterlayer .trace")).to_have_count(3)


@pytest.mark.slow
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


def test_settings_that_differ_are_visible_at_once(visit, page_of_two):
  page = visit(page_of_two)
  assert page.locator("#changed").get_by_text("optim.blr").is_visible()
  other = page.get_by_text("data.channels", exact=True)
  assert not other.is_visible()
  page.get_by_text("all other settings").click()
  assert other.is_visible()


def test_a_narrow_window_needs_no_sideways_scrolling(visit, page_of_two):
  page = visit(page_of_two)
  fits = "each => each.scrollWidth <= each.clientWidth"
  for width in (700, 400):
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("body", ".charts"):
      place = page.locator(name).first
      until(page, lambda place=place: place.evaluate(fits))


def test_a_click_on_a_heading_sorts_the_runs(visit, page_of_two):
  page = visit(page_of_two)
  heads = page.locator("#runs th")
  cells = page.locator("#runs tbody td:first-child")
  head = heads.get_by_text("run", exact=True)
  head.click()
  sync_api.expect(head).to_have_attribute("aria-sort", "ascending")
  assert "".join(cells.all_inner_texts()).split() == ["one", "two"]
  head.click()
  sync_api.expect(head).to_have_attribute("aria-sort", "descending")
  assert "".join(cells.all_inner_texts()).split() == ["two", "one"]
  loss = page.locator("#runs th").get_by_text("loss", exact=True)
  loss.click()
  column = page.locator("#runs th").all_inner_texts().index("loss")
  values = page.locator(f"#runs tbody td:nth-child({column + 1})")
  numbers = [float(text) for text in values.all_inner_texts()]
  assert numbers == sorted(numbers)


@contextlib.contextmanager
def serving(service: services.Service) -> Iterator[str]:
  """Serves a demo page; yields its address."""
  opened = server.Server(service, "127.0.0.1", 0)
  thread = threading.Thread(target=opened.serve_forever, daemon=True)
  thread.start()
  yield f"http://127.0.0.1:{opened.server_port}/"
  opened.shutdown()
  opened.server_close()
  thread.join()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
  """The address of the demo page of a network after a few steps."""
  workdir = runs.pretrained(tmp_path_factory.mktemp("run"))
  network = reconstructor.load(workdir, runs.devices_mesh(1))
  with serving(services.Reconstruction(network, "run, step 3")) as address:
    yield address


def painted(page: sync_api.Page) -> str:
  """Returns the reconstruction when no request is pending."""
  picture = page.locator("#pasted")
  sync_api.expect(picture).to_have_attribute("src", re.compile("^data:"))
  sync_api.expect(page.locator("#busy")).to_have_text("")
  return page.locator("#pasted").get_attribute("src") or ""


def patch(page: sync_api.Page, row: int, column: int) -> tuple[float, float]:
  """Returns the screen position of a patch's middle, of 4 x 4 patches."""
  box = page.locator("#seen").bounding_box()
  assert box is not None
  return (
    box["x"] + (column + 0.5) * box["width"] / 4,
    box["y"] + (row + 0.5) * box["height"] / 4,
  )


def share(page: sync_api.Page) -> str:
  painted(page)
  return page.locator("#share").inner_text()


def test_an_example_is_shown_at_once(visit, demo):
  page = visit(demo)
  assert painted(page)
  assert share(page) == "75 %, 12 of 16 patches"
  assert "PSNR" in page.locator("#score").inner_text()
  assert page.locator("#reconstruction").evaluate("x => x.naturalWidth") == 8


def test_the_page_names_the_network_and_fits_a_phone(visit, demo):
  page = visit(demo)
  painted(page)
  title = page.locator("#title").inner_text()
  assert title == "run, step 3 (ViT-Ti/2, 8 x 8)"
  assert page.locator("#original").evaluate("x => x.naturalWidth") == 8
  page.set_viewport_size({"width": 400, "height": 900})
  fits = "document.body.scrollWidth <= document.documentElement.clientWidth"
  until(page, lambda: page.evaluate(fits))


def test_the_pictures_are_downloaded(visit, demo, tmp_path):
  page = visit(demo)
  painted(page)
  with page.expect_download() as download:
    page.get_by_role("button", name="download the pictures").click()
  download.value.save_as(tmp_path / "x.png")
  with Image.open(tmp_path / "x.png") as picture:
    assert picture.size == (5 * 330 + 10, 320 + 3 * 18 + 20)
    colors = np.asarray(picture.convert("RGB"))
  # The second picture has hatched patches, and the last one is colored.
  second, last = colors[40:320, 340:660], colors[40:320, 1330:1650]
  assert (second == 232).all(axis=-1).any()
  assert np.ptp(last.astype(int), axis=-1).max() > 50


@pytest.mark.slow
def test_a_classifier_has_a_page(visit, tmp_path):
  model = mae_jax.create_model(
    "vit_ti8", image_size=16, width=32, depth=1, heads=2, num_classes=12
  )
  model.save_pretrained(tmp_path / "classifier", format="jax")
  service = services.open_service(str(tmp_path / "classifier"))
  with serving(service) as address:
    page = visit(address)
    rows = page.locator("#classes tr")
    sync_api.expect(rows).to_have_count(10)
    assert "LABEL_" in rows.first.inner_text()
    assert "among 12 classes" in page.locator("#heading").inner_text()
    assert not page.locator("#ratio").is_visible()


def test_clicks_and_drags_mask_patches(visit, demo):
  page = visit(demo)
  painted(page)
  page.get_by_role("button", name="show all").click()
  assert share(page) == "0 %, 0 of 16 patches"
  before = painted(page)
  page.mouse.click(*patch(page, 1, 2))
  assert share(page) == "6 %, 1 of 16 patches"
  assert painted(page) != before
  page.mouse.click(*patch(page, 1, 2))
  assert share(page) == "0 %, 0 of 16 patches"
  assert painted(page) == before
  page.mouse.move(*patch(page, 3, 0))
  page.mouse.down()
  page.mouse.move(*patch(page, 3, 3), steps=20)
  page.mouse.up()
  assert share(page) == "25 %, 4 of 16 patches"


@pytest.mark.slow
def test_a_fast_drag_leaves_no_gaps(visit, demo):
  page = visit(demo)
  painted(page)
  page.get_by_role("button", name="show all").click()
  assert share(page) == "0 %, 0 of 16 patches"
  page.mouse.move(*patch(page, 2, 0))
  page.mouse.down()
  page.mouse.move(*patch(page, 2, 3))
  page.mouse.move(*patch(page, 1, 3))
  # Leaves the canvas and enters elsewhere.
  page.mouse.move(*patch(page, 1, 9))
  page.mouse.move(*patch(page, 0, 9))
  page.mouse.move(*patch(page, 0, 1))
  page.mouse.up()
  assert share(page) == "50 %, 8 of 16 patches"
  page.mouse.move(*patch(page, 3, 0))
  assert share(page) == "50 %, 8 of 16 patches"


def test_patches_are_masked_by_keyboard(visit, demo):
  page = visit(demo)
  painted(page)
  page.get_by_role("button", name="show all").click()
  page.locator("#seen").focus()
  for key in ("ArrowRight", "ArrowDown", "Space", "ArrowDown", "Enter"):
    page.keyboard.press(key)
  assert share(page) == "13 %, 2 of 16 patches"


def test_dragging_the_ratio_samples_new_masks(visit, demo):
  page = visit(demo)
  first = painted(page)
  page.get_by_role("button", name="another mask").click()
  assert painted(page) != first
  ratio = page.locator("#ratio")
  ratio.fill("25")
  assert share(page) == "25 %, 4 of 16 patches"
  page.locator("#strategy").select_option("grid")
  assert share(page) == "25 %, 4 of 16 patches"
  ratio.fill("60")
  sync_api.expect(page.locator("#error")).to_contain_text("cannot keep 6")
  assert_blank(page)
  assert page.locator("#share").inner_text() == "60 %, no such mask"
  assert ratio.input_value() == "60"
  # With a ratio of 0, no patch is masked; clicks then mask patches.
  page.mouse.click(*patch(page, 1, 2))
  assert share(page) == "6 %, 1 of 16 patches"
  assert page.locator("#error").inner_text() == ""
  # The browser reports the refused request.
  page.evaluate("0")


def assert_blank(page: sync_api.Page) -> None:
  """Checks that no picture or score of an earlier request remains."""
  sync_api.expect(page.locator("#busy")).to_have_text("")
  for name in ("reconstruction", "pasted", "difference"):
    assert page.locator(f"#{name}").get_attribute("src") is None
    assert not page.locator(f"#{name}").is_visible()
  assert page.locator("#score").inner_text() == ""
  assert set(page.locator(".truth").all_inner_texts()) == {""}


@pytest.mark.slow
def test_the_last_answer_is_removed_if_all_patches_are_masked(visit, demo):
  page = visit(demo)
  painted(page)
  page.locator("#statistics").select_option("true")
  sync_api.expect(page.locator(".truth").first).not_to_have_text("")
  page.locator("#ratio").fill("100")
  error = page.locator("#error")
  sync_api.expect(error).to_contain_text("all patches are masked")
  assert_blank(page)
  assert page.locator("#share").inner_text() == "100 %, 16 of 16 patches"
  height = "x => x.getBoundingClientRect().height"
  picture = page.locator("#pasted").evaluate(height)
  assert picture == page.locator("#seen").evaluate(height)
  page.mouse.click(*patch(page, 0, 0))
  assert share(page) == "94 %, 15 of 16 patches"
  assert error.inner_text() == ""


def test_the_slider_follows_patches_masked_by_hand(visit, demo):
  page = visit(demo)
  painted(page)
  ratio = page.locator("#ratio")
  assert ratio.input_value() == "75"
  page.get_by_role("button", name="show all").click()
  assert share(page) == "0 %, 0 of 16 patches"
  assert ratio.input_value() == "0"
  for column in range(3):
    page.mouse.click(*patch(page, 1, column))
  assert share(page) == "19 %, 3 of 16 patches"
  assert ratio.input_value() == "19"
  # The number masked by hand, not the 4 patches of 19 %.
  page.get_by_role("button", name="another mask").click()
  assert share(page) == "19 %, 3 of 16 patches"


@pytest.mark.slow
def test_an_old_reconstruction_is_marked_while_waiting(visit, demo):
  page = visit(demo)
  painted(page)
  picture, score = page.locator("#pasted"), page.locator("#score")
  opacity = "x => Number(getComputedStyle(x).opacity)"
  assert picture.evaluate(opacity) == 1
  top = page.locator("#seen").bounding_box()
  held: list[sync_api.Route] = []
  page.route("**/paint", lambda route: held.append(route))
  page.locator("#ratio").fill("50")
  busy = page.locator("#busy")
  sync_api.expect(busy).to_contain_text("some seconds the first time")
  until(page, lambda: picture.evaluate(opacity) < 0.5)
  until(page, lambda: score.evaluate(opacity) < 0.5)
  assert page.locator("#seen").bounding_box() == top
  held.pop().continue_()
  assert share(page) == "50 %, 8 of 16 patches"
  assert picture.evaluate(opacity) == 1


def test_a_refused_file_is_not_named(visit, demo, tmp_path):
  page = visit(demo)
  before = painted(page)
  (tmp_path / "x.png").write_bytes(b"no image")
  page.set_input_files("#file", tmp_path / "x.png")
  error = page.locator("#error")
  sync_api.expect(error).to_contain_text("this is not an image")
  sync_api.expect(page.locator("#file")).to_have_value("")
  # The page still shows the last reconstruction.
  assert painted(page) == before


def test_use_of_ground_truth_is_reported(visit, demo):
  page = visit(demo)
  painted(page)
  assert page.locator(".truth").first.inner_text() == ""
  page.locator("#statistics").select_option("true")
  painted(page)
  output = page.locator(".truth").first
  sync_api.expect(output).to_have_text("(uses ground truth)")


def test_an_image_is_chosen_or_dropped(visit, demo, tmp_path):
  page = visit(demo)
  before = painted(page)
  array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
  Image.fromarray(array).save(tmp_path / "x.png")
  page.set_input_files("#file", tmp_path / "x.png")
  sync_api.expect(page.locator("#pasted")).not_to_have_attribute("src", before)
  chosen = painted(page)
  data = page.evaluate_handle(
    """async () => {
      const canvas = new OffscreenCanvas(20, 20);
      canvas.getContext("2d").fillRect(0, 0, 9, 9);
      const blob = await canvas.convertToBlob();
      const moved = new DataTransfer();
      moved.items.add(new File([blob], "y.png", {type: "image/png"}));
      return moved;
    }"""
  )
  page.dispatch_event("#drop", "drop", {"dataTransfer": data})
  sync_api.expect(page.locator("#pasted")).not_to_have_attribute("src", chosen)
  assert page.locator("#error").inner_text() == ""
