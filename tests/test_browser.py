"""The report's page in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from conescope.report import write_report
from conescope.training.recipe_reading import load_recipe
from made_runs import MadeRecipe, layered, made_run, made_series

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium"
)
pytestmark = [
    needs_chromium,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Playwright's own, at its end
]
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
    opened = context.new_page()
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append((message.type, message.text)))
    opened.on("pageerror", lambda error: opened.said.append(("error", str(error))))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()


def test_every_chart_is_drawn_and_nothing_leaves_the_page(page, report):
    charts = page.locator(".js-plotly-plot")
    assert charts.count() > 15
    undrawn = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')]"
        ".filter(c => !c.querySelector('.main-svg') || c.clientHeight < 100).map(c => c.id)"
    )
    assert undrawn == []
    assert [said for said in page.said if said[0] == "error"] == []
    outside = [url for url in page.asked if not url.startswith(("data:", "blob:"))]
    assert outside == [report.as_uri()]


def test_names_that_inject_are_text(page):
    assert page.evaluate("() => window.attacked") is None
    assert page.locator("h1").inner_text() == EVIL
    assert page.locator("h1 img").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function(
        "width => document.documentElement.scrollWidth <= width", arg=width, timeout=5000
    )


def test_the_slider_moves_kernel_place_and_eigenvalues_together(page, digits_run):
    read = (
        "() => { const drawn = id => document.getElementById(id).calcdata;"
        " return [drawn('slider-kernel')[0][0].z[0][1], drawn('slider-place').at(-1)[0].x,"
        " drawn('slider-spectrum')[0][0].y]; }"
    )
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
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found
               if v["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == []


def test_links_of_the_contents_lead_to_headings(page):
    links = page.locator("nav a")
    assert links.count() > 5
    for place in range(links.count()):
        target = links.nth(place).get_attribute("href").removeprefix("#")
        assert page.locator(f"h2#{target}").inner_text() == links.nth(place).inner_text()


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
