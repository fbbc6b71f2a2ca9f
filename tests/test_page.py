"""The pages of a graph and of runs in a real browser: headless Chromium, driven by Selenium.

Skipped where there is no Chromium with its driver (Debian: chromium, chromium-driver), unless
JAXBP_NEEDS_BROWSER is set, as CI sets it.
"""

import os
import re
import shutil
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import lecture

from jaxbp import graph
from jaxbp.graph.nodes import value_text
from jaxbp.text import Table

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


SIZES = {"projector": (1280, 800), "phone": (390, 844), "small phone": (360, 640)}


@contextmanager
def screen(browser, width, height, *, dark=False):
    """The browser with a screen of this size, which has touch where it is narrow."""
    mobile = width < 500
    size = {"width": width, "height": height, "deviceScaleFactor": 1 + mobile, "mobile": mobile}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.refresh()
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


#: what overlaps what, and what is outside of the drawing or the window
GEOMETRY = """
    const rectangle = element => element.getBoundingClientRect();
    const apart = (a, b) => a.left >= b.right - .5 || b.left >= a.right - .5
        || a.top >= b.bottom - .5 || b.top >= a.bottom - .5;
    const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1
        && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
    const named = (kind, elements) => elements.map(e => [kind + e.closest('g').id, rectangle(e)]);
    const all = selector => [...document.querySelectorAll(selector)];
    const boxes = named('box ', all('.node')), labels = named('label ', all('.edge text'));
    const heads = named('head ', all('.head')), faults = [];
    for (const group of [[...boxes, ...labels], heads, [...labels, ...heads]])
        group.forEach(([name, a], i) => group.slice(i + 1).forEach(([other, b]) => {
            if (!apart(a, b) && name.slice(0, 4) + other.slice(0, 4) !== 'labelabe')
                faults.push(name + ' on ' + other);
        }));
    for (const edge of all('.edge')) {
        const path = edge.querySelector('path'), matrix = path.getScreenCTM();
        for (let at = 4; at < path.getTotalLength() - 4; at += 4) {
            const point = path.getPointAtLength(at).matrixTransform(matrix);
            const here = {left: point.x, right: point.x, top: point.y, bottom: point.y};
            for (const [name, box] of [...boxes, ...labels])
                if (!apart(here, box)) faults.push(edge.id + ' through ' + name);
        }
    }
    const points_at = (head, box) => Math.abs(head.bottom - box.top) < 2
        && head.left >= box.left && head.right <= box.right;
    for (const [name, head] of heads)
        if (!boxes.some(([, box]) => points_at(head, box))) faults.push(name + ' at no box');
    const drawing = rectangle(document.querySelector('.drawing'));
    const window_ = {left: 0, top: 0, right: innerWidth, bottom: innerHeight};
    for (const [name, box] of [...boxes, ...labels])
        if (!inside(box, drawing)) faults.push(name + ' outside of the drawing');
    for (const element of all('.drawing, .says, button, h1'))
        if (!inside(rectangle(element), window_)) faults.push(element.outerHTML + ' off screen');
    const panel = document.querySelector('.panel');
    if (!apart(rectangle(panel), drawing)) faults.push('panel on drawing');
    if (document.documentElement.scrollWidth > innerWidth) faults.push('wider than the screen');
    return [...new Set(faults)];
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by name: the lecture's function, two networks, and a function that crosses itself."""
    from jaxbp.cli import explain

    def tangled(x, z):
        sums = [jnp.sin(k * x) * z + x / (k + z) for k in range(1, 5)]
        return sums[0] * sums[3] + jnp.exp(sums[1] - sums[2]) * jnp.exp(x) + sums[0] / sums[2]

    folder = tmp_path_factory.mktemp("pages")
    with jax.enable_x64(True):
        graphs = {
            "lecture": graph.trace(lecture, 2.0, 3.0),
            "network": explain.network_graph(explain.Explain(network="2-3-1"))[1],
            "classifier": explain.network_graph(
                explain.Explain(network="2-3-3", activation="relu", head="softmax_cross_entropy")
            )[1],
            "tangled": graph.trace(tangled, 0.3, 0.7),
        }
    for name, traced in graphs.items():
        traced.to_html(folder / f"{name}.html")
    return graphs, folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["lecture", "network", "classifier", "tangled"])
def test_the_drawing_fits_and_nothing_overlaps(browser, pages, name, size):
    """At the first step, and at the last, when every label is there."""
    graphs, folder = pages
    browser.get((folder / f"{name}.html").as_uri())
    with screen(browser, *SIZES[size]):
        assert browser.execute_script(GEOMETRY) == []
        press(browser, "END")
        browser.execute_script("zooms.fit()")
        assert browser.execute_script(GEOMETRY) == []
        labels = browser.execute_script("return document.querySelectorAll('.edge text').length")
        shown = [text for text in find(browser, ".edge text") if text.is_displayed()]
        assert len(shown) == labels
        output = next(
            box for box in find(browser, ".node") if box.text.startswith(graphs[name].output)
        )
        assert value_text(graphs[name][graphs[name].output].value) in output.text


def view(browser):
    return browser.execute_script("return [view.x, view.y, view.k]")


def centre(browser):
    return browser.execute_script(
        "const r = svg.getBoundingClientRect();"
        "return [(r.left + r.right) / 2, (r.top + r.bottom) / 2]"
    )


def place(browser, selector):
    return browser.execute_script(
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [(r.left + r.right) / 2, (r.top + r.bottom) / 2]",
        selector,
    )


def mouse(browser, kind, x, y, **others):
    event = {"type": kind, "x": x, "y": y, **others}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def test_the_mouse_zooms_and_pans(opened):
    browser, _ = opened
    with screen(browser, *SIZES["projector"]):
        whole = view(browser)
        x, y = place(browser, "#n0")
        mouse(browser, "mouseWheel", x, y, deltaX=0, deltaY=-300)
        assert view(browser)[2] == pytest.approx(whole[2] * np.exp(0.6))
        np.testing.assert_allclose(
            place(browser, "#n0"), (x, y), atol=1
        )  # it stays below the mouse
        mouse(browser, "mousePressed", x, y, button="left", buttons=1)
        for part in (0.5, 1):
            mouse(browser, "mouseMoved", x + 90 * part, y + 60 * part, button="left", buttons=1)
        mouse(browser, "mouseReleased", x + 90, y + 60, button="left")
        np.testing.assert_allclose(place(browser, "#n0"), (x + 90, y + 60), atol=1)
        assert find(browser, ".count")[0].text.startswith("1 of")  # a drag is no click
        mouse(browser, "mouseMoved", x, y)
        np.testing.assert_allclose(place(browser, "#n0"), (x + 90, y + 60), atol=1)
        find(browser, "#fit")[0].click()
        np.testing.assert_allclose(view(browser), whole)


def test_a_click_on_a_box_goes_to_its_step(opened):
    browser, traced = opened
    with screen(browser, *SIZES["projector"]):
        press(browser, "END")
        position = next(i for i, node in enumerate(traced.nodes) if node.name == "c")
        x, y = place(browser, f"#n{position}")
        mouse(browser, "mousePressed", x, y, button="left", buttons=1, clickCount=1)
        mouse(browser, "mouseReleased", x, y, button="left", clickCount=1)
        assert said(browser)[0] == "c = log(x)"


def test_fingers_zoom_and_pan(opened):
    browser, _ = opened
    with screen(browser, *SIZES["phone"]):
        x, y = centre(browser)
        before = view(browser)

        def touch(kind, *points):
            touches = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
            browser.execute_cdp_cmd(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches}
            )

        touch("touchStart", (x - 40, y), (x + 40, y))
        for spread in (60, 80):
            touch("touchMove", (x - spread, y), (x + spread, y))
        touch("touchEnd")
        after = view(browser)
        assert after[2] == pytest.approx(2 * before[2], rel=0.02)
        np.testing.assert_allclose(after[:2], before[:2], atol=2)
        touch("touchStart", (x, y))
        for far in (20, 50):
            touch("touchMove", (x - far, y - far))
        touch("touchEnd")
        moved = np.subtract(view(browser), after) * after[2]
        np.testing.assert_allclose(moved[:2], (50, 50), atol=1)
        assert browser.execute_script("return [scrollX, scrollY, visualViewport.scale]") == [
            0,
            0,
            1,
        ]


def test_keys_zoom_and_pan(opened):
    from selenium.webdriver.common.keys import Keys

    browser, _ = opened
    with screen(browser, *SIZES["projector"]):
        whole, body = view(browser), find(browser, "body")[0]
        body.send_keys("+")
        body.send_keys("+")
        assert view(browser)[2] == pytest.approx(whole[2] * 1.69)
        body.send_keys("-")
        body.send_keys(Keys.SHIFT + Keys.ARROW_RIGHT)
        assert view(browser)[0] > whole[0]
        assert find(browser, ".count")[0].text.startswith("1 of")
        body.send_keys("0")
        np.testing.assert_allclose(view(browser), whole)


def test_what_happens_is_in_sight_however_close_one_looks(opened):
    browser, _ = opened
    in_sight = """
        const r = document.querySelector('.node.now').getBoundingClientRect();
        const f = svg.getBoundingClientRect();
        return r.left >= f.left && r.right <= f.right && r.top >= f.top && r.bottom <= f.bottom;
    """
    with screen(browser, *SIZES["phone"]):
        find(browser, "#in")[0].click()
        find(browser, "#in")[0].click()
        find(browser, "#in")[0].click()
        for _ in range(21):
            press(browser, "ARROW_RIGHT")
            assert browser.execute_script(in_sight)


def test_a_screen_reader_is_told(opened):
    browser, traced = opened
    for button in find(browser, "button"):
        assert button.get_attribute("aria-label")
        assert button.aria_role == "button"
    assert find(browser, ".says")[0].get_attribute("aria-live") == "polite"
    drawn = find(browser, "svg")[0]
    assert drawn.get_attribute("role") == "img"
    assert drawn.get_attribute("aria-label").startswith(f"graph of {len(traced.nodes)} nodes")
    press(browser, "ARROW_RIGHT", 3)
    (current,) = find(browser, "[aria-current=step]")
    assert current.text.startswith("b = exp(a)")
    focusable = browser.execute_script(
        "return [...document.querySelectorAll('button:not(:disabled), [tabindex=\"0\"]')].length"
    )
    from selenium.webdriver.common.keys import Keys

    seen = set()
    for _ in range(focusable):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.add(
            browser.execute_script(
                "return document.activeElement.id || document.activeElement.className"
            )
        )
    assert {"drawing", "tables", "next", "previous", "in", "out", "fit"} <= seen


TEXTS = (
    "body",
    ".node .name",
    ".node .value",
    ".node .adjoint",
    ".edge text",
    ".remarks",
    ".count",
)


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_on_a_phone_and_in_the_dark(opened, dark):
    browser, _ = opened
    with screen(browser, 360, 740, dark=dark):
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        for button in find(browser, "button"):
            assert button.size["height"] >= 44  # a thumb
        for selector in TEXTS:
            assert contrast(browser, selector) >= 4.5, selector  # WCAG 2.2, 1.4.3
        assert contrast(browser, ".edge .head") >= 3  # 1.4.11
        press(browser, "END")
        for selector in (".node.now .value", ".node.now .adjoint"):
            assert contrast(browser, selector, ".node.now rect") >= 4.5, selector


def contrast(browser, selector, behind="body"):
    """The ratio of luminances of text and paper (WCAG 2.2)."""
    ink = browser.execute_script(
        "const e = document.querySelector(arguments[0]), style = getComputedStyle(e);"
        "return e instanceof SVGElement ? style.fill : style.color",
        selector,
    )
    paper = browser.execute_script(
        "const e = document.querySelector(arguments[0]), style = getComputedStyle(e);"
        "return e instanceof SVGElement ? style.fill : style.backgroundColor",
        behind,
    )
    ink, paper = luminance(ink), luminance(paper)
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


def test_a_node_is_opened_beside_the_drawing(browser, tmp_path):
    from jaxbp.cli.expressions import parse

    text = "s = softmax(v); n = norm(v); s@v + n"
    graph.trace(parse(text).function(), jnp.array([1.0, 2.0, 4.0])).to_html(tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    with screen(browser, *SIZES["projector"]):
        assert browser.execute_script(GEOMETRY) == []
        assert not [each for each in find(browser, "details") if each.is_displayed()]
        press(browser, "ARROW_RIGHT")
        (inside,) = [each for each in find(browser, "details") if each.is_displayed()]
        assert inside.text == "inside s = softmax(v)"
        assert "the function's own rule" in said(browser)[-1]
        find(browser, "#i1 summary")[0].click()
        assert re.search(r"\w+ = exp\(\w\)", inside.text)
        assert "backward" in inside.text
        outlines = [
            len(box.find_elements("css selector", "rect")) for box in find(browser, ".node")
        ]
        assert outlines == [1, 2, 2, 1, 1][: len(outlines)]
        press(browser, "END")
        assert not [each for each in find(browser, "details") if each.is_displayed()]


def test_a_rule_that_contradicts_its_function_is_told_of(tmp_path):
    @jax.custom_jvp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defjvps(lambda tangent, y, x: tangent)
    traced = graph.trace(lambda x: straight_through(x) * jax.nn.relu(x), 0.3)
    traced.to_html(tmp_path / "page.html")
    straight, relu = re.findall(
        "<details.*?</details>", (tmp_path / "page.html").read_text("utf-8")
    )
    told = "its own rule has other adjoints than the operations inside"
    assert told in straight
    assert told not in relu


def test_the_dtype_is_on_the_page(opened):
    browser, _ = opened
    assert "float64" in find(browser, ".remarks")[0].text


def chained(x, w, length):
    """A graph of 4 nodes a link, whose arguments are used in all of them."""
    for k in range(length):
        x = jnp.tanh(w * x + (k + 2) * w)
    return x


def summed(x, terms):
    return sum(jnp.sin(k * x) ** 2 for k in range(1, terms))


def test_one_sees_what_happens_in_a_large_graph(browser, tmp_path):
    """And not a line of dust; ``benchmarks.graph_page`` has the time that it takes."""
    for name, f, args in (
        ("chain", chained, (0.3, 0.9, 75)),
        ("long", chained, (0.3, 0.9, 300)),
        ("sum", summed, (0.3, 100)),
    ):
        traced = graph.trace(lambda *values, f=f, n=args[-1]: f(*values, n), *args[:-1])
        traced.to_html(tmp_path / f"{name}.html")
        browser.get((tmp_path / f"{name}.html").as_uri())
        press(browser, "ARROW_RIGHT", 3)
        assert len(find(browser, ".node")) == len(traced.nodes) >= 290
        box, drawing = find(browser, ".node.now rect")[0].rect, find(browser, ".drawing")[0].rect
        assert box["height"] > 30
        assert drawing["x"] <= box["x"] <= drawing["x"] + drawing["width"] - box["width"]
        assert drawing["y"] <= box["y"] <= drawing["y"] + drawing["height"] - box["height"]
        find(browser, "#fit")[0].click()
        whole = browser.execute_script("return [whole.width * view.k, whole.height * view.k]")
        assert whole[0] <= drawing["width"]
        assert whole[1] <= drawing["height"]
        assert browser.get_log("browser") == []


def test_the_pages_of_runs_load_nothing_and_fit_a_phone(browser, tmp_path):
    """Wide tables and pictures scroll by themselves; names are text, and the theme is heeded."""
    pages, pictures = (pytest.importorskip(f"jaxbp.cli.{name}") for name in ("pages", "pictures"))
    labels = [f"<b>class</b> {number}" for number in range(36)]
    curves = {"a run": np.linspace(1, 0, 20).reshape(2, 10)}
    parts = [
        pages.facts([("data", "x" * 500)]),
        pages.matrix(np.eye(36, dtype=int), labels, "a matrix"),
        pages.table(Table(("run", "score"), [("<script>x()</script>", "0.5")] * 3), "a table"),
        pages.picture(pictures.learning_curves(curves, metric="accuracy"), "curves"),
    ]
    path = tmp_path / "report.html"
    path.write_text(pages.page("<i>a page</i>", parts), encoding="utf-8")
    browser.get_log("browser"), browser.get_log("performance")
    colours = []
    for theme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        screen = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get(path.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert find(browser, "h1")[0].text == "<i>a page</i>"
        assert not find(browser, "i, b, script")
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        colours.append(
            [
                browser.execute_script(style, "body", "backgroundColor"),
                browser.execute_script(style, "svg text", "fill"),
            ]
        )
    assert colours == [
        ["rgb(253, 253, 251)", "rgb(29, 29, 27)"],
        ["rgb(22, 24, 28)", "rgb(236, 236, 234)"],
    ]
    assert browser.get_log("browser") == []
    requests = [entry["message"] for entry in browser.get_log("performance")]
    asked = [entry for entry in requests if '"Network.requestWillBeSent"' in entry]
    assert asked
    assert not any('"url":"http' in entry for entry in asked)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
