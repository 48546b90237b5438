"""The report's page in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import uvicorn

from conescope.report import write_report
from conescope.report.live import application
from conescope.statistics.attribution import attribution
from conescope.training.recipe_reading import load_recipe
from made_runs import MadeRecipe, layered, made_run, made_series
from made_sweeps import planned, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium"
)
pytestmark = [
    needs_chromium,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Playwright's own, at its end
]
PATIENCE = 120_000
"""Milliseconds after which a page that is not there fails, also on a busy machine."""

WIDTHS = (390, 1000, 1600)
EVIL = "</script><script>window.attacked = 1</script><img src=x onerror=window.attacked=1> *x*"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def digits_run():
    """A run whose samples are images at hand, with kernels by layer and an injecting name."""
    recipe = load_recipe("digits")
    recipe = replace(recipe, probe=replace(recipe.probe, size=20))
    series = layered(made_series(range(0, 1001, 20), samples=20))
    return made_run(series, recipe=recipe, name=EVIL, environment={EVIL: EVIL}, command=EVIL)


@pytest.fixture(scope="module")
def report(digits_run, tmp_path_factory):
    return write_report(digits_run, tmp_path_factory.mktemp("browser") / "report.html")


@pytest.fixture
def page(browser, report):
    """The opened report, and what it said and asked for on the way."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append((message.type, message.text)))
    opened.on("pageerror", lambda error: opened.said.append(("error", str(error))))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()


def drawn_all(page):
    """Wait until every chart of a page is drawn, and is as large as it should be."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('.plotly-graph-div')]"
        ".every(c => c.querySelector('.main-svg') && c.clientHeight >= 100)",
        timeout=PATIENCE,
    )


def test_every_chart_is_drawn_and_nothing_leaves_the_page(page, report):
    assert page.locator(".plotly-graph-div").count() > 15
    drawn_all(page)
    assert [said for said in page.said if said[0] == "error"] == []
    outside = [url for url in page.asked if not url.startswith(("data:", "blob:"))]
    assert outside == [report.as_uri()]


def test_a_chart_is_drawn_when_it_comes_into_view(browser, report):
    opened = browser.new_page(viewport={"width": 1000, "height": 900})
    opened.add_init_script("window.requestIdleCallback = () => 0")  # the browser is never idle
    opened.goto(report.as_uri())
    opened.wait_for_function("document.querySelector('#distance-from .main-svg')")
    opened.wait_for_timeout(1000)
    last = opened.locator(".plotly-graph-div").last
    assert last.locator(".main-svg").count() == 0
    last.scroll_into_view_if_needed()
    last.locator(".main-svg").first.wait_for(timeout=PATIENCE)
    opened.close()


def test_all_charts_are_drawn_before_the_page_is_printed(browser, report):
    opened = browser.new_page()
    opened.add_init_script("window.requestIdleCallback = () => 0")
    opened.goto(report.as_uri())
    opened.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    drawn_all(opened)
    opened.close()


def test_a_printed_page_names_the_iteration_that_it_shows(page):
    page.emulate_media(media="print")
    assert page.locator("#iteration").is_hidden()
    assert page.locator("#iteration-shown").inner_text() == "1,000"


def test_names_that_inject_are_text(page):
    assert page.evaluate("() => window.attacked") is None
    assert page.locator("h1").inner_text() == EVIL
    assert page.locator("h1 img").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    drawn_all(page)
    page.wait_for_function(
        "width => document.documentElement.scrollWidth <= width", arg=width, timeout=PATIENCE
    )


def test_the_slider_moves_kernel_place_and_eigenvalues_together(page, digits_run):
    read = (
        "() => { const drawn = id => document.getElementById(id).calcdata;"
        " return [drawn('slider-kernel')[0][0].z[0][1], drawn('slider-place').at(-1)[0].x,"
        " drawn('slider-spectrum')[0][0].y]; }"
    )
    drawn_all(page)
    last = page.evaluate(read)
    slider = page.locator("#iteration")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#iteration-shown").inner_text() == "0"
    assert slider.get_attribute("aria-valuetext") == "iteration 0"
    first = page.evaluate(read)
    assert all(a != b for a, b in zip(first, last, strict=True))
    embedding = digits_run.series.embedding(2).coordinates
    kernel = digits_run.series.kernels[0].matrix.numpy()
    assert first[1] == pytest.approx(embedding[0, 0])
    values = np.linalg.eigvalsh(kernel)
    assert first[2] == pytest.approx(values[-1] / values.sum())
    page.keyboard.press("End")
    assert page.evaluate(read)[1:] == pytest.approx(last[1:])


def test_the_slider_shows_the_samples_that_moved_the_kernel_until_then(page, digits_run):
    drawn_all(page)
    slider, shown = page.locator("#iteration"), page.locator("#slider-samples li:visible")
    assert shown.count() == 8
    slider.focus()
    page.keyboard.press("Home")
    assert shown.count() == 0
    page.keyboard.press("ArrowRight")
    series = digits_run.series
    shares = attribution(series.kernels[0], series.kernels[1]).images
    for place, sample in enumerate(np.argsort(-shares)[:8].tolist()):
        text = shown.nth(place).inner_text()
        assert text.startswith(f"sample {sample}, class")
        assert text.endswith(f": {shares[sample]:.1%}")


def test_the_leading_samples_are_pictures_with_a_text(page):
    pictures = page.locator(".samples img")
    assert pictures.count() > 15
    widths = page.evaluate(
        "() => [...document.querySelectorAll('.samples img')].map(i => i.naturalWidth)"
    )
    assert min(widths) >= 64
    assert "class" in pictures.first.get_attribute("alt")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, scheme):
    page.emulate_media(color_scheme=scheme)
    drawn_all(page)
    assert serious_faults(page) == []


LIGHT, DARK = "rgb(255, 255, 255)", "rgb(22, 24, 28)"


def colours_on(page, paper):
    """The colours of all charts, once they are on paper of this colour."""
    read = """c => [getComputedStyle(c.querySelector('.main-svg')).backgroundColor, c.data.map(
        t => [t.line?.color, t.marker?.color, t.fillcolor, t.colorscale?.at(-1)[1]])]"""
    charts = f"[...document.querySelectorAll('.plotly-graph-div')].map({read})"
    page.wait_for_function(f"paper => {charts}.every(c => c[0] === paper)", arg=paper)
    return page.evaluate(charts)


def test_charts_follow_the_scheme_and_paper_is_light(page):
    page.emulate_media(color_scheme="light")
    drawn_all(page)
    day = colours_on(page, LIGHT)
    page.emulate_media(color_scheme="dark")
    night = colours_on(page, DARK)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == DARK
    page.emulate_media(media="print")
    assert colours_on(page, LIGHT) == day
    page.emulate_media(media="screen")
    assert colours_on(page, DARK) == night
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert colours_on(page, LIGHT) == day
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert colours_on(page, DARK) == night
    page.emulate_media(color_scheme="light")
    assert colours_on(page, LIGHT) == day


def test_a_page_that_opens_in_the_dark_has_dark_charts(browser, report):
    opened = browser.new_page(color_scheme="dark")
    opened.goto(report.as_uri())
    first = opened.locator("#distance-from .main-svg").first
    first.wait_for(timeout=PATIENCE)
    assert first.evaluate("c => getComputedStyle(c).backgroundColor") == DARK
    opened.close()


def test_the_answer_is_there_before_the_charts_begin(browser, report):
    opened = browser.new_page()
    opened.add_init_script(
        "let held; Object.defineProperty(window, 'Plotly', { configurable: true, get: () => held,"
        "set: (given) => { held = given; window.startedAt ??= performance.now(); } })"
    )
    opened.goto(report.as_uri())
    painted = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    opened.wait_for_function(f"{painted} !== undefined && window.startedAt !== undefined")
    assert opened.evaluate(f"{painted} < window.startedAt")
    opened.close()


def serious_faults(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(v["id"], v["nodes"][0]["html"][:200]) for v in found
            if v["impact"] in ("serious", "critical")]  # fmt: skip


def test_the_keyboard_hides_and_shows_a_line_by_its_entry_in_the_legend(page):
    drawn_all(page)
    toggle = page.locator("#distance-from .legendtoggle").first
    assert toggle.get_attribute("aria-pressed") == "true"
    assert "τ" in toggle.get_attribute("aria-label")
    seen = "() => document.getElementById('distance-from').data[0].visible"
    for key, visible in (("Enter", "legendonly"), (" ", True)):
        toggle.focus()
        page.keyboard.press(key)
        page.wait_for_function(f"{seen[6:]} === {visible!r}".replace("True", "true"))
        page.wait_for_timeout(500)  # two presses within 300 ms are a double click
        assert toggle.get_attribute("aria-pressed") == str(visible is True).lower()


def test_links_of_the_contents_lead_to_headings(page):
    links = page.locator("nav a")
    assert links.count() > 5
    for place in range(links.count()):
        target = links.nth(place).get_attribute("href").removeprefix("#")
        assert page.locator(f"h2#{target}").inner_text() == links.nth(place).inner_text()


@pytest.fixture
def address(tmp_path):
    """The address of a server of a folder with a sweep, of which one run is finished."""
    sweep = planned(tmp_path / "lr", "--optimizer.lr=0.01,0.1", "--probe.size=6")
    write_run(sweep.runs[0])
    served = application([tmp_path], ["127.0.0.1"], None)
    server = uvicorn.Server(uvicorn.Config(served, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("width", [390, 1000])
def test_from_the_list_to_a_sweep_to_a_run(browser, address, width):
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.set_default_timeout(PATIENCE)
    errors = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    for heading in ("Sweep lr", "digits-"):
        opened.locator("section th a").first.click()
        opened.locator("h1", has_text=heading).wait_for()
        drawn_all(opened)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert serious_faults(opened) == []
    assert errors == []
    opened.close()


def test_a_page_of_one_kernel_has_no_slider(browser, tmp_path):
    path = write_report(made_run(made_series([0])), tmp_path / "one.html")
    opened = browser.new_page()
    errors = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(path.as_uri())
    assert opened.locator("#iteration").count() == 0
    assert errors == []
    opened.close()


def test_a_made_recipe_has_no_pictures(browser, tmp_path):
    path = write_report(made_run(recipe=MadeRecipe("A", "b: 1\n")), tmp_path / "made.html")
    opened = browser.new_page()
    opened.goto(path.as_uri())
    assert opened.locator(".samples").count() == 0
    opened.close()
