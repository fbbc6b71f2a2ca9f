"""The page of a graph in a real browser: headless Chromium, driven by Selenium.

Skipped where there is no Chromium with its driver (Debian: chromium, chromium-driver), unless
JAXBP_NEEDS_BROWSER is set, as CI sets it.
"""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import lecture

from jaxbp import graph
from jaxbp.graph.nodes import value_text

pytestmark = pytest.mark.slow

NEEDED = bool(os.environ.get("JAXBP_NEEDS_BROWSER"))
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
PLAIN = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not NEEDED:
        pytest.importorskip("selenium")
        if not (CHROMIUM and DRIVER):
            pytest.skip("no chromium with its chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for option in (*PLAIN, *OFFLINE, f"--user-data-dir={profile}", "--window-size=1000,1000"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    with jax.enable_x64(True):
        traced = graph.trace(lecture, 2.0, 3.0)
    path = tmp_path_factory.mktemp("page") / "page.html"
    traced.to_html(path, title="y = <the lecture's>")
    return traced, path


@pytest.fixture
def opened(browser, written):
    traced, path = written
    browser.get("about:blank")
    browser.get(path.as_uri())
    return browser, traced


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def said(browser):
    return find(browser, ".says")[0].text.splitlines()


def press(browser, key, times=1):
    from selenium.webdriver.common.keys import Keys

    for _ in range(times):
        find(browser, "body")[0].send_keys(getattr(Keys, key))


def test_it_steps_through_the_computation(opened):
    """Each step lights up its edges and says equation, local derivative and running sum."""
    browser, traced = opened
    assert find(browser, "h1")[0].text == "y = <the lecture's>"
    assert find(browser, ".count")[0].text == "1 of 22, forward"
    assert said(browser) == ["x = 2"]
    press(browser, "ARROW_RIGHT", 2)
    assert said(browser) == ["a = x·z", "= 2·3", "= 6"]
    assert len(find(browser, ".edge.now")) == 2
    assert find(browser, ".node.now .value")[0].text == "6"
    press(browser, "ARROW_RIGHT", 14)
    assert said(browser) == [
        "ga = gb·b",
        "= 403.429",
        "local derivative ∂b/∂a = b = 403.429",
        "ga = 403.429, so far",
    ]
    assert find(browser, "#backward tr.now .term")[0].text == "gb·b"
    assert [edge.text for edge in find(browser, ".edge.now text")] == ["b"]
    press(browser, "ARROW_RIGHT", 2)
    assert said(browser)[0] == "ga += gf·(-e/a²)"
    assert said(browser)[1] == "= -0.0177489"
    assert said(browser)[-1] == f"ga = {value_text(traced['a'].adjoint)}"
    assert find(browser, ".node.now .adjoint")[0].text == "ga = 404.854"
    assert find(browser, ".count")[0].text == "19 of 22, backward"
    press(browser, "ARROW_LEFT")
    assert said(browser)[-1] == "ga = 404.871, so far"
    assert find(browser, ".node.now .adjoint")[0].text == "ga = 404.871"


def test_every_value_appears_at_its_step(opened):
    browser, traced = opened
    for node in traced.nodes:
        box = next(b for b in find(browser, ".node.now") if b.text.startswith(node.name))
        assert value_text(node.value) in box.text
        press(browser, "ARROW_RIGHT")
    press(browser, "END")
    boxes = {box.text.split(" ")[0].split("\n")[0]: box.text for box in find(browser, ".node")}
    for node in traced.nodes:
        assert f"{node.adjoint_name} = {value_text(node.adjoint)}" in boxes[node.name]
    assert len(find(browser, "tr.done")) == 2 * len(traced.nodes)


def test_buttons_keys_and_the_address_do_the_same(opened):
    browser, _ = opened
    last, first, onward, back = (
        find(browser, f"#{name}")[0] for name in ("last", "first", "next", "previous")
    )
    assert not first.is_enabled()
    assert not back.is_enabled()
    last.click()
    assert find(browser, ".count")[0].text == "22 of 22, backward"
    assert not onward.is_enabled()
    back.click()
    assert browser.current_url.endswith("#21")
    press(browser, "HOME")
    assert find(browser, ".count")[0].text.startswith("1 of")
    press(browser, "ARROW_LEFT")
    assert find(browser, ".count")[0].text.startswith("1 of")
    browser.get(browser.current_url.split("#")[0] + "#7")
    browser.refresh()
    assert find(browser, ".count")[0].text.startswith("7 of")


def test_it_needs_no_network_and_makes_no_error(opened):
    browser, _ = opened
    press(browser, "END")
    assert browser.get_log("browser") == []
    requests = [entry["message"] for entry in browser.get_log("performance")]
    asked = [entry for entry in requests if '"Network.requestWillBeSent"' in entry]
    assert asked
    assert not any('"url":"http' in entry for entry in asked)


def test_it_is_readable_on_a_phone_and_in_the_dark(opened):
    browser, _ = opened
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        browser.refresh()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        for button in find(browser, "button"):
            assert button.size["height"] >= 44  # a thumb
        for selector in ("body", ".node .name", ".node .value", ".node .adjoint", ".remarks"):
            assert contrast(browser, selector) >= 4.5, selector  # WCAG 2.2, 1.4.3
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.refresh()
    for selector in ("body", ".node .name", ".node .value", ".node .adjoint", ".remarks"):
        assert contrast(browser, selector) >= 4.5, selector


def contrast(browser, selector):
    """The ratio of luminances of text and paper (WCAG 2.2)."""
    script = """
        const style = getComputedStyle(document.querySelector(arguments[0]));
        const ink = arguments[0].startsWith('.node') ? style.fill : style.color;
        return [ink, getComputedStyle(document.body).backgroundColor];
    """
    ink, paper = (luminance(colour) for colour in browser.execute_script(script, selector))
    return (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)


def luminance(colour):
    channels = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_without_scripts_all_is_there_at_once(opened):
    browser, _ = opened
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        text = find(browser, ".tables")[0].text
        assert "ga = gb·b + gd·(1/c) + gf·(-e/a²) = 404.854" in text
        assert "gx = 1208.38" in find(browser, "svg")[0].text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_names_are_text_and_nothing_else(browser, tmp_path):
    """A name that looks like HTML must not become a part of the page."""
    name = "</script><script>document.title='broken'</script>&\"'"
    traced = graph.trace(lambda x: graph.named(x * x, name) + 1, 2.0)
    traced.to_html(tmp_path / "odd.html", title=name)
    browser.get((tmp_path / "odd.html").as_uri())
    press(browser, "END")
    assert browser.title == name
    assert find(browser, "h1")[0].text == name
    assert browser.get_log("browser") == []


def test_a_large_graph_is_drawn(browser, tmp_path):
    traced = graph.trace(lambda x: sum(jnp.sin(k * x) ** 2 for k in range(1, 30)), 0.3)
    traced.to_html(tmp_path / "large.html")
    browser.get((tmp_path / "large.html").as_uri())
    press(browser, "END")
    assert len(find(browser, ".node")) == len(traced.nodes)
    assert find(browser, ".node.now")[0].text.startswith("x")
    assert browser.get_log("browser") == []
