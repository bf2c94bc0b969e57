"""The report in Chromium: charts, filter, parts of runs; by keyboard, on paper, on a telephone, without JavaScript."""

import base64
import csv
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sat_core.report.page import write_report
from sat_core.runs import folder

PSAT = "digits/cnn/psat/eps0.3/seed0"
HERE = Path(__file__).parent
FOCUSABLE = "a[href], button, select, input, summary, [tabindex='0']"
NAMED = """const e = document.activeElement;
return `${e.tagName} ${e.getAttribute("aria-label") ?? e.textContent.slice(0, 60)}`"""


@pytest.fixture(scope="module")
def address(study):
    write_report(study)
    return (study.folder / "report.html").absolute().as_uri()


@pytest.fixture
def opened(browser, address):
    """The report, opened as a file. Fails if anything but it was asked for, or anything was said on the console."""
    browser.get_log("performance")
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.get(address)
    yield browser
    said = [entry for entry in browser.get_log("browser") if entry["source"] != "rendering"]  # of slow graphics
    assert said == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert address in requests
    assert all(
        url.partition("#")[0] in (address, "about:blank") or url.startswith(("data:", "blob:")) for url in requests
    )


def until(condition, seconds=60):
    """What ``condition`` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)
    return found


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def drawn(browser, selector):
    """A chart, once it is drawn because it was scrolled to."""
    browser.execute_script("document.querySelector(arguments[0]).scrollIntoView()", selector)
    until(lambda: find(browser, f"{selector}[data-drawn]"))
    return find(browser, selector)[0]


def open_run(browser, run):
    browser.execute_script("document.getElementById(arguments[0]).parentElement.open = true", run)
    return until(lambda: browser.execute_script("return document.getElementById(arguments[0]).innerText", run))


def column(browser, region, number):
    rows = find(browser, f"[aria-label='{region}'] tbody tr")
    return [row.find_elements("css selector", "th, td")[number].text for row in rows]


def test_tables_sort_by_mouse_and_by_keyboard_and_back(opened, study):
    from selenium.webdriver.common.keys import Keys

    buttons = find(opened, "[aria-label='Runs'] th button")
    number = [button.text for button in buttons].index("Clean (%)")
    original = column(opened, "Runs", number)
    best, worst = sorted((text for text in original if text != "—"), key=float, reverse=True)
    assert best != worst
    head = buttons[number].find_element("xpath", "..")
    for press, state, expected in (
        (buttons[number].click, "descending", [best, worst, "—", "—"]),
        (lambda: buttons[number].send_keys(Keys.ENTER), "ascending", [worst, best, "—", "—"]),
        (lambda: buttons[number].send_keys(Keys.SPACE), "none", original),
    ):
        press()
        assert head.get_attribute("aria-sort") == state
        assert column(opened, "Runs", number) == expected
    buttons[0].click()
    assert column(opened, "Runs", 0) == sorted(2 * [study.display("psat"), study.display("standard")], key=str.lower)
    assert len(find(opened, "[aria-label='Accuracy, table digits'] thead tr:last-child button")) == 2
    rows = find(opened, "[aria-label='Runs'] tbody tr")
    cells = [row.find_elements("css selector", "th, td")[number] for row in rows]
    for cell, text in zip(cells, ("−3.5", "+0.2", "—", "−0.1"), strict=True):  # as differences are written
        opened.execute_script("arguments[0].textContent = arguments[1]", cell, text)
    buttons[number].click()
    assert column(opened, "Runs", number) == ["+0.2", "−0.1", "−3.5", "—"]


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_its_window(opened, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for chart in ("plane", "curves", "landscape"):
        drawn(opened, f"[data-chart={chart}]")
    open_run(opened, PSAT)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for scrolling in find(opened, ".js .scroll:not(.still)"):
        assert 0 < scrolling.size["width"] <= width and scrolling.get_attribute("tabindex") == "0"


def test_a_link_to_a_run_opens_its_part_which_goes_when_closed(opened):
    link = find(opened, f"tbody a[href='#{PSAT}']")[0]
    assert not opened.find_element("id", PSAT).is_displayed()
    opened.execute_script("arguments[0].click()", link)
    part = opened.find_element("id", PSAT)
    headings = until(lambda: [heading.text for heading in part.find_elements("css selector", "h4")])
    assert headings == [
        *("Training", "Adversarial examples", "Verdict by image: which attack broke which"),
        *("Curvature of the loss", "Loss landscape", "Settings"),
    ]
    assert len(find(opened, "img.pixels")) == 6
    opened.execute_script("arguments[0].parentElement.open = false", part)
    until(lambda: not part.find_elements("css selector", "*"))


def test_the_part_of_a_run_says_which_attack_broke_how_many(opened, study):
    open_run(opened, PSAT)
    _, images = folder.judged(study.run(PSAT))
    shown = column(opened, f"Verdict by class, {PSAT}", 1)
    assert shown == [str(len(images)), *images.groupby("label").size().astype(str)]
    robust = images[images["broken_by"] == ""].groupby("label").size().reindex(range(10), fill_value=0)
    assert column(opened, f"Verdict by class, {PSAT}", -1) == [str(robust.sum()), *robust.astype(str)]


def test_charts_show_every_run_there_is_and_follow_the_filter(opened, study):
    points = "return arguments[0].data.flatMap((trace) => trace.runs ?? []).sort()"
    plane, curves = drawn(opened, "[data-chart=plane]"), drawn(opened, "[data-chart=curves]")
    judged = ["digits/cnn/psat/eps0.3/seed0", "digits/cnn/standard/eps0.3/seed0"]
    assert opened.execute_script(points, plane) == judged
    assert len(opened.execute_script("return arguments[0].data", curves)) == 2
    find(opened, "#filter summary")[0].click()
    find(opened, "#filter [value=standard]")[0].click()
    until(lambda: opened.execute_script(points, plane) == judged[:1])
    assert find(opened, "#filter output")[0].text == "2 of 4 runs"
    assert [text for text in column(opened, "Runs", 0) if text] == 2 * [study.display("psat")]
    find(opened, "#filter button")[0].click()
    until(lambda: opened.execute_script(points, plane) == judged)


def test_what_others_have_published_is_hollow_in_the_plane_whatever_the_filter_says(opened):
    plane = drawn(opened, "[data-chart=plane]")
    opened.execute_script("study.tables.digits.published = [['psat', 0, 99.16, 92, 'paper']]")
    find(opened, "#filter summary")[0].click()
    find(opened, "#filter [value=standard]")[0].click()
    found = "return arguments[0].data.filter((trace) => trace.name === 'published')"
    (trace,) = until(lambda: opened.execute_script(found, plane))
    assert (trace["x"], trace["y"], trace["marker"]["symbol"][-5:]) == ([99.16], [92], "-open")
    find(opened, "#filter button")[0].click()


def test_a_chart_can_be_zoomed_and_walked_through_and_uploads_nothing(opened):
    from selenium.webdriver.common.keys import Keys

    plane = drawn(opened, "[data-chart=plane]")
    buttons = {
        button.get_attribute("aria-label"): button for button in plane.find_elements("css selector", ".modebar-btn")
    }
    assert not any("hare" in name or "loud" in name for name in buttons)
    before = opened.execute_script("return arguments[0].layout.xaxis.range", plane)
    buttons["Zoom in"].send_keys(Keys.ENTER)
    until(lambda: opened.execute_script("return arguments[0].layout.xaxis.range", plane) != before)
    buttons["Reset axes"].send_keys(Keys.ENTER)
    plane.send_keys(Keys.ARROW_RIGHT)
    told = until(lambda: find(opened, "figure > [aria-live]")[0].text)
    assert told.startswith("digits/cnn/standard/eps0.3/seed0: clean ")
    until(lambda: find(opened, "[data-chart=plane] .hoverlayer .hovertext"))
    plane.send_keys(Keys.ENTER)
    until(lambda: opened.find_element("id", "digits/cnn/standard/eps0.3/seed0").is_displayed())


def test_every_plane_is_there_as_a_surface_and_as_contours(opened):
    chart = drawn(opened, "[data-chart=landscape]")
    kinds = "return arguments[0].data.map((trace) => trace.type)"
    assert opened.execute_script(kinds, chart) == ["surface"]
    selects = chart.find_elements("xpath", "preceding-sibling::p//select")
    planes = [option.get_attribute("value") for option in selects[0].find_elements("css selector", "option")]
    assert planes == ["random", "hessian", "input", "reattacked"]
    selects[1].find_element("css selector", "[value=contours]").click()
    until(lambda: opened.execute_script(kinds, chart) == ["contour"])


def test_what_the_page_saves_of_a_run_is_what_was_recorded(opened, study, tmp_path):
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    open_run(opened, PSAT)
    opened.execute_script("document.querySelectorAll('.run .save button').forEach((button) => button.click())")
    for name in ("history.csv", "autoattack.csv"):
        saved = until(lambda name=name: (tmp_path / name).exists() and (tmp_path / name).read_text())
        rows = list(csv.DictReader(saved.splitlines()))
        with (study.run(PSAT).folder / name).open() as file:
            whole = list(csv.DictReader(file))
        key = "epoch" if name == "history.csv" else "broken_by"
        assert [row[key] for row in rows] == [row[key] for row in whole]


def test_the_keyboard_reaches_everything(opened):
    """From the top with Tab alone: the filter, tables, headings, charts, files and runs; never into a trap."""
    from selenium.webdriver.common.keys import Keys

    drawn(opened, "[data-chart=plane]")
    opened.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    seen = set()
    for _ in range(opened.execute_script(f"return document.querySelectorAll({FOCUSABLE!r}).length")):
        opened.switch_to.active_element.send_keys(Keys.TAB)
        seen.add(opened.execute_script(NAMED))
    for wanted in (
        *("SUMMARY Filter", "A Table digits", "DIV Accuracy, table digits", "BUTTON Robust", "A digits.csv"),
        *("DIV Clean against robust accuracy", "BUTTON Zoom in", "SELECT", f"SUMMARY {PSAT}"),
    ):
        assert any(name.startswith(wanted) for name in seen), wanted


def test_it_is_read_without_javascript(opened):
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.refresh()
        assert find(opened, "[aria-label='Accuracy, table digits'] td")[0].is_displayed()
        figures = find(opened, "figure img")
        assert len(figures) == 11 and all(figure.is_displayed() for figure in figures)
        assert not any(chart.is_displayed() for chart in find(opened, ".chart"))
        assert find(opened, "noscript p")[0].is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_on_paper_figures_stand_for_charts(opened):
    drawn(opened, "[data-chart=plane]")
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not find(opened, "[data-chart=plane]")[0].is_displayed()
    assert all(image.is_displayed() for image in find(opened, "figure img"))
    assert not find(opened, ".save")[0].is_displayed()
    paper = opened.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(paper).startswith(b"%PDF")


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, from npm, at the version of the lock beside this file."""
    place = tmp_path_factory.mktemp("axe")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "axe" / name, place)
    if not shutil.which("npm") or subprocess.run(["npm", "ci", "--silent"], cwd=place, timeout=300).returncode:
        pytest.skip("needs npm, and axe-core from its registry")
    return (place / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, axe, scheme):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    find(opened, "#filter summary")[0].click()
    for chart in ("plane", "curves", "landscape"):
        drawn(opened, f"[data-chart={chart}]")
    open_run(opened, PSAT)
    drawn(opened, f"[aria-label='Verdict by image, {PSAT}']")
    opened.execute_script(axe)
    opened.set_script_timeout(120)
    found = opened.execute_async_script("axe.run().then(arguments[0], (error) => arguments[0](String(error)))")
    assert found["passes"]
    said = [(of["impact"], of["id"], [node["html"][:200] for node in of["nodes"]]) for of in found["violations"]]
    assert [finding for finding in said if finding[0] in ("serious", "critical")] == []
