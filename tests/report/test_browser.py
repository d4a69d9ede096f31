"""The page in a browser: classes are chosen by mouse and by keyboard, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memmod.report.explanation import Explanation
from memmod.report.words import percent, points
from tests.report.browser import Opened, axe, chromium, opened
from tests.report.explanations import explanation
from tests.report.pages import HOSTILE, audit, erased, page, run, scorecard

pytestmark = pytest.mark.slow

NAMES = ("cat", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def explained(names: tuple[str, ...], **options: Any) -> Explanation:
    return msgspec.convert(explanation(list(names), **options), Explanation)


def choose(shown: Opened, c: int) -> None:
    """Click on a class."""
    shown.page.locator(".choice input").nth(c).click()


def cells(shown: Opened, label: str) -> dict[str, list[str]]:
    """The rows of the table that is called `label`."""
    rows = shown.page.locator(f'[aria-label="{label}"] tbody tr').all()
    found = [[cell.text_content() for cell in row.locator("th, td").all()] for row in rows]
    return {first: rest for first, *rest in found}


def test_a_click_shows_the_figures_of_the_files(browser, tmp_path: Path):
    names, told = NAMES, explained(NAMES)
    made = run(names, explanation=told, audits=[audit(names, 1)])
    ours, original = made.scorecard.methods[:2]
    with opened(browser, page(made), tmp_path) as shown:
        for c in (1, 0):
            choose(shown, c)
            status = f"With {names[c]} forgotten, accuracy on it is {percent(ours.acc_forget[c])}, on all others "
            assert shown.text(".status") == f"{status}{percent(ours.acc_retain[c])}."
            result = shown.text(".result")
            assert (
                f"accuracy on {names[c]} {percent(ours.acc_forget[c])} {percent(original.acc_forget[c])} before"
                in result
            )
            others = f"{percent(ours.acc_retain[c])} {percent(original.acc_retain[c])} before: "
            assert (
                f"accuracy on all others {others}{points(ours.acc_retain[c] - original.acc_retain[c])} points" in result
            )
            assert f"units closed {told.atlas.closed[c]} of {told.atlas.units}" in result
            found = cells(shown, f"Predictions on images of {names[c]}")
            for other, name in enumerate(names):
                expected = [percent(told.flows.before[c][other]), percent(told.flows.after[c][other])]
                if c == 0:
                    expected.append(percent(told.flows.retrained["0"][other]))
                assert found.get(name, [percent(0)] * len(expected)) == expected
            units = cells(shown, f"Units that {names[c]} closes")
            assert list(units.values())[0][0] == str(told.atlas.specific[c][-1].unit)
            taken = cells(shown, f"Units that the logit of {names[c]} is taken by")
            assert taken == {"blocks.0.conv1, unit 5": ["25\u00a0%"]} and "6.5 points" in shown.text(
                '[data-part="taken"]'
            )
            assert shown.text('[data-part="recount"] .body') == told.recount.classes[c].sentences[0].text
            assert shown.page.locator('[data-part="images"] .gallery figure').count() == 4
            assert shown.page.locator('[data-part="responses"] .box').count() == 2
        choose(shown, 1)
        assert "1 of 3" in shown.text(".result") and "memmod retrain runs/base --without dog" in shown.text(
            '[data-part="flow"]'
        )
        assert shown.page.url.endswith("#1=1")


def test_a_class_and_a_set_are_chosen_by_keyboard(browser, tmp_path):
    made = run(NAMES)
    with opened(browser, page(made), tmp_path) as shown:
        keyboard = shown.page.keyboard
        for _ in range(30):
            keyboard.press("Tab")
            if shown.page.evaluate("document.activeElement.type") == "radio":
                break
        keyboard.press("ArrowRight")
        keyboard.press("ArrowDown")
        assert shown.text(".status").startswith("With eel forgotten")
        keyboard.press("Tab")
        keyboard.press("Space")
        for _ in NAMES:
            keyboard.press("Shift+Tab")
        keyboard.press("Space")
        ours = made.scorecard.sets["2"][0]
        assert ours.selections[1] == [0, 2]
        assert shown.text(".status").startswith(
            f"With cat and eel forgotten, accuracy on them is {percent(ours.acc_forget[1])}"
        )


def test_sets_that_were_measured_are_offered_and_others_refused_in_words(browser, tmp_path):
    made = run(NAMES)
    with opened(browser, page(made), tmp_path) as shown:
        shown.page.click(".known summary")
        shown.page.get_by_role("button", name="cat + dog").click()
        ours = made.scorecard.sets["2"][0]
        assert percent(ours.acc_forget[0]) in shown.text(".status")
        told = made.explanation.flows.sets[0]
        found = cells(shown, "Predictions on images of dog")
        assert found["eel"] == [percent(made.explanation.flows.before[1][2]), percent(told.after["1"][2])]
        choose(shown, 4)
        text = shown.text(".result")
        assert "The set cat, dog and gnu was never measured" in text
        assert "memmod bake runs/drawn --forget 0,1,4" in text
        assert "were not recorded" in shown.text('[data-part="flow"]')
        shown.page.click(".several input")
        assert shown.text(".status").startswith("With cat forgotten")


def test_an_address_carries_a_choice(browser, tmp_path):
    with opened(browser, page(run(NAMES)), tmp_path, anchor="#1=0,2") as shown:
        assert shown.text(".status").startswith("With cat and eel forgotten")


def test_every_chart_is_drawn_and_follows_the_colours(browser, tmp_path):
    with opened(browser, page(run(NAMES)), tmp_path) as shown:
        boxes = shown.page.locator(".chart:not(details:not([open]) *)")
        assert boxes.count() >= 9 and all(box.locator("svg").count() == 1 for box in boxes.all())
        text = "getComputedStyle(document.querySelector('.chart svg text')).fill"
        light = shown.page.evaluate(text)
        shown.page.emulate_media(color_scheme="dark")
        dark = shown.page.evaluate(text)
        assert light != dark
        shown.page.emulate_media(color_scheme="dark", media="print")
        assert shown.page.evaluate(text) == light
        assert not shown.page.locator(".chooser").is_visible()
        assert len(shown.page.pdf()) > 10_000
        shown.page.emulate_media(color_scheme="light", media="screen")
        shown.page.get_by_text("The same by rank correlation").click()
        shown.page.wait_for_selector('[data-chart="rank"] svg')


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: run(NAMES, False), id="not explained"),
        pytest.param(lambda: run(NAMES, False, scorecard=None), id="not evaluated"),
        pytest.param(lambda: run(NAMES, False, scorecard=None, held_out=None, memories=(), audits=()), id="unfinished"),
        pytest.param(lambda: run(("only",)), id="one class"),
        pytest.param(lambda: run(NAMES, explanation=explained(NAMES, without_images=0)), id="a class without images"),
        pytest.param(
            lambda: run(NAMES, explanation=explained(NAMES, shape=(3, 6, 9))), id="images that are not square"
        ),
        pytest.param(
            lambda: run(NAMES, scorecard=msgspec.structs.replace(scorecard(NAMES), restandardised=None, sets={})),
            id="no BatchNorm",
        ),
        pytest.param(lambda: erased(NAMES), id="erased"),
    ],
)
def test_whatever_a_folder_lacks_the_page_opens(browser, tmp_path, made):
    with opened(browser, page(made()), tmp_path, width=390) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert len(shown.text(".status")) > 5
        if made().explanation and made().explanation.flows.before[0] is None:
            assert "There are no test images of cat" in shown.text('[data-part="flow"]')


def test_hostile_names_are_shown_as_they_are(browser, tmp_path):
    with opened(browser, page(run(HOSTILE, title=HOSTILE[2]), erased(HOSTILE)), tmp_path) as shown:
        assert [choice.text_content() for choice in shown.page.locator(".choice").all()] == list(HOSTILE)
        for choice in shown.page.locator(".choice").all():
            choice.click()
        assert HOSTILE[-1] in shown.page.locator(".status").first.text_content()
        assert shown.page.locator("b, owl").count() == 0


def test_one_of_a_thousand_classes_is_found(browser, tmp_path):
    names = tuple(f"class number {c}" for c in range(1000))
    told = explained(names, layers=2, images=0, matrices=False)
    with opened(browser, page(run(names, explanation=told)), tmp_path) as shown:
        shown.page.fill(".find", "number 77")
        visible = shown.page.locator(".choice:visible")
        assert visible.count() == 11
        visible.last.click()
        assert shown.text(".status").startswith("With class number 779 forgotten")
        assert f"units closed {told.atlas.closed[779]} of" in shown.text(".result")
        assert re.search("Too many classes to draw all pairs", shown.page.inner_text("body"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_in_the_way_of_assistive_technology(browser, tmp_path, scheme, width):
    script = axe()
    made = run(NAMES, memories=run().memories)
    with opened(browser, page(made, erased(NAMES, title="ViT")), tmp_path, width=width, scheme=scheme) as shown:
        shown.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        shown.page.wait_for_selector('[data-chart="rank"] svg')
        assert shown.violations(script) == []
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
