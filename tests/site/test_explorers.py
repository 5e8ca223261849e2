"""The explorers show what Python computes, to every hand, in time, and only where they belong."""

import hashlib
import json
import math
import re
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from conftest import CHAPTERS, HTML, ROOT

PAGES = {"shrinkage": "chapters/pooling.html", "exchangeability": "chapters/when_to_use.html"}
SLIDERS = {
    "shrinkage": ["tau", "sigma", "n", "y"],
    "exchangeability": ["red", "blue", "same", "other"],
}
EACH = pytest.mark.parametrize("name", PAGES)


@pytest.fixture
def open_explorer(visit):
    """Open an explorer's page; returns the page, and the figure once it answers."""

    def go(name, **options):
        page, told = visit(PAGES[name], **options)
        figure = page.locator(f"figure.explorer-{name}")
        figure.locator("tbody tr").first.wait_for(state="attached")
        return page, figure, told

    return go


def data(page, name):
    return json.loads(page.locator(f'script[data-explorer="{name}"]').text_content())


def slider(figure, name, kind):
    return figure.locator(f"#{kind}-{name}")


def table(figure):
    """Return the rows of an explorer's table: numbers in full where there are any, else text."""
    return figure.locator("tbody tr").evaluate_all(
        """rows => rows.map(row => [...row.cells].map(
            cell => cell.dataset.value === undefined ? cell.textContent : +cell.dataset.value))"""
    )


def shown(text):
    return float(text.replace("\N{MINUS SIGN}", "-").rstrip("%").replace(",", ""))


# What Python says


def pooled(y, n, sigma, tau):
    """Posterior of each theta_j given tau, by solving the normal equations of all parameters."""
    variance = sigma**2 / np.array(n, dtype=float)
    y = np.array(y, dtype=float)
    if math.isinf(tau):
        estimate, sd = y, np.sqrt(variance)
    elif tau == 0:
        covariance = np.full((len(y), len(y)), 1 / np.sum(1 / variance))
        estimate, sd = covariance @ (y / variance), np.sqrt(np.diag(covariance))
    else:  # theta_1, ..., theta_J and, without a prior, mu
        J = len(y)
        precision = np.zeros((J + 1, J + 1))
        precision[:J, :J] = np.diag(1 / variance + 1 / tau**2)
        precision[J, :J] = precision[:J, J] = -1 / tau**2
        precision[J, J] = J / tau**2
        covariance = np.linalg.inv(precision)
        estimate = (covariance @ np.append(y / variance, 0))[:J]
        sd = np.sqrt(np.diag(covariance)[:J])
    complete = np.average(y, weights=1 / variance)
    return np.column_stack([n, np.sqrt(variance), y, estimate, sd, np.full(len(y), complete)])


def from_cup(order, red, blue, same, other):
    cup, probability = {"R": red, "B": blue}, 1.0
    for ball in order:
        probability *= cup[ball] / (cup["R"] + cup["B"])
        cup["RB".replace(ball, "")] += other
        cup[ball] += same
    return probability


def check_shrinkage(figure, state):
    rows = table(figure)
    assert [row[0] for row in rows] == state["groups"]
    numbers = np.array([row[1:] for row in rows], dtype=float)
    expected = pooled(state["y"], state["n"], state["sigma"], state["tau"])
    np.testing.assert_allclose(np.delete(numbers, 3, axis=1), expected, rtol=1e-9, atol=1e-9)
    se = expected[:, 1]
    B = np.zeros(len(se)) if math.isinf(state["tau"]) else se**2 / (se**2 + state["tau"] ** 2)
    np.testing.assert_allclose(numbers[:, 3], B, rtol=1e-9)
    cells = figure.locator("tbody td").all_text_contents()
    np.testing.assert_allclose([shown(c) for c in cells][5::7], expected[:, 4], atol=0.051)
    np.testing.assert_allclose([shown(c) for c in cells][4::7], expected[:, 3], atol=0.051)


def check_exchangeability(figure, state):
    own = "".join("BR"[is_red] for is_red in state["draws"])
    rule = [state[name] for name in SLIDERS["exchangeability"]]
    orders = ["".join(order) for order in product("RB", repeat=len(own))]
    every = {order: from_cup(order, *rule) for order in orders}
    assert math.isclose(sum(every.values()), 1)
    alike = {order: p for order, p in every.items() if order.count("R") == own.count("R")}
    rows = {row[0]: row[2] for row in table(figure)}
    assert rows == pytest.approx(alike, rel=1e-12)
    bars = figure.locator("g.order text.p").all_text_contents()
    assert [float(bar) for bar in bars] == pytest.approx(list(rows.values()), abs=5.1e-5)
    (shares,) = (re.findall(r"\d+/\d+", row[1]) for row in table(figure) if row[0] == own)
    written = figure.locator("g.ball text.share").all_text_contents()
    assert re.findall(r"\d+/\d+", " ".join(written)) == shares
    assert math.isclose(math.prod(Fraction(share) for share in shares), every[own])
    product_shown = figure.locator("text.product").text_content().split("=")[-1]
    assert float(product_shown) == pytest.approx(every[own], abs=5.1e-5)
    exchangeable = all(math.isclose(p, every["".join(sorted(order))]) for order, p in every.items())
    says = figure.locator(".explorer-says").text_content()
    assert says.startswith("Exchangeable" if exchangeable else "Not exchangeable")
    then = from_cup(own + "R", *rule) / every[own]
    assert float(Fraction(re.search(r"sixth draw it is (\d+/\d+)", says)[1])) == pytest.approx(then)


CHECKS = {"shrinkage": check_shrinkage, "exchangeability": check_exchangeability}


# To every hand


@EACH
def test_explorer_starts_from_the_numbers_of_the_page(open_explorer, name):
    page, figure, _ = open_explorer(name)
    CHECKS[name](figure, data(page, name))


def tau_at(position):
    return math.inf if position == 100 else 10 * position / (100 - position)


@pytest.mark.parametrize("key", ["ArrowRight", "ArrowLeft", "PageUp", "Home", "End"])
@pytest.mark.parametrize(
    ("name", "control"), [(name, control) for name in PAGES for control in SLIDERS[name]]
)
def test_slider_moved_by_key_shows_what_python_computes(open_explorer, name, control, key):
    page, figure, _ = open_explorer(name)
    state, knob = data(page, name), slider(figure, control, name)
    before = float(knob.input_value())
    knob.press(key)
    after = float(knob.input_value())
    bound = {"Home": knob.get_attribute("min"), "End": knob.get_attribute("max")}.get(key)
    if bound is not None:
        assert after == float(bound)
    elif key == "ArrowRight":
        assert after == before + 1
    if control == "tau":
        state["tau"] = tau_at(after)
    elif control in ("n", "y"):
        state[control][0] = after  # of the first group, which is chosen at the start
    else:
        state[control] = int(after)
    CHECKS[name](figure, state)
    says = knob.get_attribute("aria-valuetext")
    assert figure.locator(f"output[for={name}-{control}]").text_content() == says
    assert says == "infinite" if state.get("tau") == math.inf else shown(says) is not None


def test_group_is_chosen_by_key_and_all_can_be_made_as_large(open_explorer):
    page, figure, _ = open_explorer("shrinkage")
    state = data(page, "shrinkage")
    figure.get_by_label("Group", exact=True).select_option("E")
    slider(figure, "n", "shrinkage").press("ArrowRight")
    state["n"][4] += 1
    check_shrinkage(figure, state)
    figure.locator("[data-press=alike]").press("Enter")
    state["n"] = [state["n"][4]] * 8
    check_shrinkage(figure, state)
    figure.locator("[data-press=reset]").press("Enter")
    check_shrinkage(figure, data(page, "shrinkage"))


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag_by_mouse(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=5)
    page.mouse.up()


def drag_by_touch(page, start, end):
    session = page.context.new_cdp_session(page)

    def send(kind, *points):
        places = [{"x": x, "y": y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    send("touchStart", start)
    for step in range(1, 6):
        send("touchMove", tuple(a + (b - a) * step / 5 for a, b in zip(start, end, strict=True)))
    send("touchEnd")


HANDS = pytest.mark.parametrize(
    ("drag", "options"),
    [
        pytest.param(drag_by_mouse, {}, id="mouse"),
        pytest.param(drag_by_touch, {"has_touch": True, "width": 360}, id="touch"),
    ],
)


@HANDS
def test_estimate_is_dragged(open_explorer, drag, options):
    page, figure, _ = open_explorer("shrinkage", **options)
    state = data(page, "shrinkage")
    handle = figure.locator("circle.handle").nth(2)
    handle.evaluate("handle => handle.scrollIntoView({ block: 'center', behavior: 'instant' })")
    x, y = centre(handle)
    drag(page, (x, y), (x + 60, y))
    moved = float(slider(figure, "y", "shrinkage").input_value())
    assert shown(figure.locator("output[for=shrinkage-y]").text_content()) == moved
    assert figure.get_by_label("Group", exact=True).input_value() == "C"
    assert moved > state["y"][2] + 5
    state["y"][2] = moved
    check_shrinkage(figure, state)


@HANDS
def test_ball_is_carried_to_another_place(open_explorer, drag, options):
    page, figure, _ = open_explorer("exchangeability", **options)
    state = data(page, "exchangeability")
    balls = figure.locator("g.ball circle")
    balls.nth(2).evaluate("ball => ball.scrollIntoView({ block: 'center', behavior: 'instant' })")
    drag(page, centre(balls.nth(2)), centre(balls.nth(0)))
    state["draws"].insert(0, state["draws"].pop(2))
    check_exchangeability(figure, state)


def test_ball_is_carried_and_turned_by_key_and_by_click(open_explorer):
    page, figure, _ = open_explorer("exchangeability")
    state, balls = data(page, "exchangeability"), figure.locator("g.ball")
    balls.nth(2).press("ArrowLeft")
    state["draws"][1:3] = state["draws"][2:0:-1]
    check_exchangeability(figure, state)
    page.keyboard.press("ArrowLeft")  # the ball has kept the focus
    state["draws"][0:2] = state["draws"][1], state["draws"][0]
    check_exchangeability(figure, state)
    page.keyboard.press("ArrowLeft")  # and stays where there is no place further on
    page.keyboard.press("Enter")
    state["draws"][0] = 1 - state["draws"][0]
    check_exchangeability(figure, state)
    balls.nth(4).click()
    state["draws"][4] = 1 - state["draws"][4]
    check_exchangeability(figure, state)
    figure.locator("g.order").first.click()
    assert figure.locator("g.order.chosen").count() == 1
    assert "chosen" in figure.locator("g.order").first.get_attribute("class")


def test_ball_is_turned_by_a_tap(open_explorer):
    page, figure, _ = open_explorer("exchangeability", has_touch=True, width=360)
    state = data(page, "exchangeability")
    figure.locator("g.ball").nth(1).tap()
    state["draws"][1] = 1 - state["draws"][1]
    check_exchangeability(figure, state)


def test_rule_that_feeds_the_other_colour_breaks_exchangeability(open_explorer):
    page, figure, _ = open_explorer("exchangeability")
    slider(figure, "same", "exchangeability").press("Home")
    slider(figure, "other", "exchangeability").press("ArrowRight")
    check_exchangeability(figure, data(page, "exchangeability") | {"same": 0, "other": 1})
    assert figure.locator(".explorer-says").text_content().startswith("Not exchangeable")


# In time, and on every screen


@EACH
def test_move_takes_less_than_a_tenth_of_a_second(open_explorer, name):
    _, figure, _ = open_explorer(name)
    times = slider(figure, SLIDERS[name][0], name).evaluate(
        """(input) => Array.from({ length: 40 }, (_, i) => {
            input.value = +input.min + i % (input.max - input.min);
            const start = performance.now();
            input.dispatchEvent(new Event("input"));
            input.closest("figure").getBoundingClientRect();
            return performance.now() - start;
        })"""
    )
    print(f"{name}: median {np.median(times):.1f} ms, slowest {max(times):.1f} ms")
    assert np.quantile(times, 0.9) < 100  # a busy machine may stumble


@EACH
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1440])
def test_explorer_fits_the_page_and_can_be_read(open_explorer, name, theme, width):
    page, figure, told = open_explorer(name, theme=theme, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = figure.locator(".explorer-body").evaluate(
        """body => [...body.querySelectorAll(
            "text, label, output, button, select, input, span")].every((mark) => {
            const [own, all] = [mark.getBoundingClientRect(), body.getBoundingClientRect()];
            return own.left >= all.left - 1 && own.right <= all.right + 1;
        })"""
    )
    assert inside
    colours = figure.evaluate(
        """figure => [...figure.querySelectorAll("text, label, output, button, p[role], summary")]
            .map((mark) => {
                const style = getComputedStyle(mark);
                let ground = mark.matches(".letter")
                    ? getComputedStyle(mark.parentNode.querySelector("circle")).fill
                    : "rgba(0, 0, 0, 0)";
                for (let at = mark; ground === "rgba(0, 0, 0, 0)"; at = at.parentElement)
                    ground = getComputedStyle(at).backgroundColor;
                return [mark instanceof SVGElement ? style.fill : style.color, ground];
            })"""
    )
    assert min(contrast(*pair) for pair in colours) >= 4.5
    # sphinx-thebe says its name twice on every page, and this is none of an explorer's doing
    assert told.errors == []
    assert told.outside == []


def luminance(colour):
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@EACH
def test_every_control_has_a_name(open_explorer, name):
    _, figure, _ = open_explorer(name)
    for knob in figure.locator("input, select").all():
        label = figure.locator(f"label[for={knob.get_attribute('id')}]")
        assert len(label.text_content()) > 1
    assert figure.locator("[role=status]").text_content()


# Without scripts, without a server, and nowhere else


@EACH
def test_still_image_stands_where_scripts_are_off(visit, name):
    page, _ = visit(PAGES[name], scripts=False)
    image = page.locator(f"figure.explorer-{name} img")
    assert image.is_visible()
    assert len(image.get_attribute("alt")) > 50
    assert page.locator(".explorer-body").count() == 0
    assert not page.locator(f'script[data-explorer="{name}"]').is_visible()


@EACH
def test_still_image_gives_way_and_is_what_is_printed(open_explorer, name):
    page, figure, _ = open_explorer(name)
    assert not figure.locator("img").is_visible()
    page.emulate_media(media="print")
    assert figure.locator("img").is_visible()
    assert not figure.locator(".explorer-body").is_visible()


@EACH
def test_explorer_works_from_disk(browser, name):
    context = browser.new_context()
    page = context.new_page()
    page.goto((HTML / PAGES[name]).as_uri())
    figure = page.locator(f"figure.explorer-{name}")
    figure.locator("tbody tr").first.wait_for(state="attached")
    CHECKS[name](figure, data(page, name))
    context.close()


def test_scripts_are_on_pages_with_an_explorer_only():
    texts = {page: (HTML / page).read_text(encoding="utf-8") for page in CHAPTERS}
    files = re.compile(r'src="[^"]*_static/((?:vendor/d3|explorers/)[\w.]+)')
    found = {page: files.findall(text) for page, text in texts.items()}
    assert {page for page, names in found.items() if names} == set(PAGES.values())
    for name, page in PAGES.items():
        assert found[page] == ["vendor/d3.min.js", "explorers/explorer.js", f"explorers/{name}.js"]
    for page, text in texts.items():
        (styles,) = re.findall(r'<link rel="stylesheet" href="([^"]+)"', text)
        rules = (HTML / page).parent.joinpath(styles).read_text(encoding="utf-8")
        assert (".explorer-scroll" in rules) == (page in PAGES.values()), page


def test_library_is_the_package_s_own_to_the_byte():
    folder = ROOT / "_static" / "vendor"
    listed = re.findall(
        r"^\| `([^`]+)` \|.*`([^`]+)` \| `([0-9a-f]{64})` \|$",
        (folder / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    names = {name for file, licence, _ in listed for name in (file, licence)}
    assert names | {"README.md"} == {path.name for path in folder.iterdir()}
    for file, _, digest in listed:
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
