"""Charts: each compiles, shows the figures that it was given, and has words for who does not see it."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
import vl_convert

from memmod.errors import RunError
from memmod.report import Run, write_figures
from memmod.report.explanation import Explanation
from memmod.report.figures import charts_of
from memmod.report.figures.atlas import layer_choice
from memmod.report.figures.flows import flow_choice
from memmod.report.palette import COLOURS, on_paper, variable
from tests.report.explanations import explanation
from tests.report.pages import HOSTILE, audit, erased, run

EVERY = {
    "accuracies",
    "flows-before",
    "flows-after",
    "atlas",
    "closed-by",
    "tree",
    "jaccard",
    "rank",
    "faithfulness",
    "audit-1",
}


NAMES = ("cat", "dog", "eel", "fox", "gnu")


def charts(shown: Run) -> dict:
    return {chart.name: chart for chart in charts_of(shown)}


def compiled(spec: dict) -> str:
    return vl_convert.vegalite_to_svg(json.loads(on_paper(json.dumps(spec))))


@pytest.mark.parametrize("names", [("cat", "dog", "eel"), ("only",), HOSTILE, tuple(f"class {c}" for c in range(60))])
def test_every_chart_compiles_at_any_number_of_classes(names):
    shown = charts(run(names))
    for chart in shown.values():
        svg = compiled(chart.at(500))
        assert svg.startswith("<svg") and "NaN" not in svg and "undefined" not in svg, chart.name
        assert chart.title and len(chart.description) > 20
    assert set(shown) <= EVERY and {"accuracies", "atlas", "closed-by", "faithfulness", "audit-1"} <= set(shown)


def test_all_are_drawn_of_a_few_classes_and_no_matrix_of_many():
    assert set(charts(run())) == EVERY
    many = charts(run(tuple(map(str, range(60)))))
    assert EVERY - set(many) == {"flows-before", "flows-after", "tree", "jaccard", "rank"}


def test_parts_that_are_absent_have_no_chart():
    assert set(charts(run(explained=False, audits=(), scorecard=None))) == set()
    assert set(charts(erased(audits=()))) == {"accuracies"}


def test_accuracies_stand_beside_those_of_the_original():
    shown = run()
    values = charts(shown)["accuracies"].spec["data"]["values"]
    ours, original = shown.scorecard.methods[:2]
    for c, name in enumerate(shown.class_names):
        forget, retain = [value for value in values if value["class"] == name]
        assert (forget["share"], forget["before"]) == (ours.acc_forget[c], original.acc_forget[c])
        assert (retain["share"], retain["before"]) == (ours.acc_retain[c], original.acc_retain[c])


def test_matrices_hold_every_figure_in_their_place():
    shown = run()
    found, names = charts(shown), shown.class_names
    atlas, flows = shown.explanation.atlas, shown.explanation.flows
    cells = {(v["row"], v["column"]): v["value"] for v in found["flows-after"].spec["data"]["values"]}
    assert cells == {(a, b): flows.after[i][j] for i, a in enumerate(names) for j, b in enumerate(names)}
    cells = {(v["row"], v["column"]): v["value"] for v in found["atlas"].spec["data"]["values"]}
    for layer in atlas.layers:
        assert [cells[layer.name.removesuffix(".memory"), name] for name in names] == [
            closed / layer.units for closed in layer.closed
        ]
    cells = {(v["row"], v["column"]): v["value"] for v in found["jaccard"].spec["data"]["values"]}
    assert cells["cat", "cat"] is None and cells["cat", "eel"] == atlas.jaccard[0][2]
    bars = found["closed-by"].spec["data"]["values"]
    assert [bar["units"] for bar in bars] == atlas.closed_by


def test_rows_and_columns_of_a_matrix_have_one_order():
    chart = charts(run(NAMES))["jaccard"]
    svg = compiled(chart.at(500))
    labels = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg) if text in NAMES]
    order = [NAMES[c] for c in run(NAMES).explanation.atlas.order]
    assert labels == [*order, *order]


def test_the_tree_joins_what_the_linkage_joins():
    tree = {"linkage": [[0, 2, 0.2, 2], [1, 3, 0.6, 3]], "order": [1, 0, 2]}
    value = explanation(["cat", "dog", "eel"])
    value["atlas"] |= tree
    chart = charts(run(explanation=msgspec.convert(value, Explanation)))["tree"]
    lines = [tuple(line[key] for key in ("x", "x2", "y", "y2")) for line in chart.spec["data"]["values"]]
    # cat and eel are the second and third leaf; dog, the first, joins halfway between them
    assert lines == [
        (0, 0.2, 1.5, 1.5),
        (0, 0.2, 2.5, 2.5),
        (0.2, 0.2, 1.5, 2.5),
        (0, 0.6, 0.5, 0.5),
        (0.2, 0.6, 2.0, 2.0),
        (0.6, 0.6, 0.5, 2.0),
    ]
    assert "cat and eel join" in chart.description


def test_the_audit_shows_what_is_worse_and_not_broken():
    values = charts(run())["audit-1"].spec["data"]["values"]
    assert [value["figure"] for value in values] == ["probes: recall"]
    assert "audit-1" not in charts(run(audits=[msgspec.structs.replace(audit(("cat",)), rows=[])]))


@pytest.mark.parametrize("chart", [flow_choice(), layer_choice()])
def test_charts_of_a_choice_compile_with_the_rows_that_the_page_gives(chart):
    rows = [
        {"class": "a</b>", "network": "before", "share": 0.5},
        {"layer": "stem", "share": 0.5, "mean": 0.2, "shown": "1 of 2"},
    ]
    svg = compiled(chart.at(400) | {"datasets": {"rows": rows}})
    assert "stem" in svg or "a&lt;/b&gt;" in svg


def test_figures_are_written_for_a_paper(tmp_path):
    shown = run(explained=False)
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        paths = write_figures(shown, tmp_path, kind)
        assert [path.name for path in paths] == [f"accuracies.{kind}", f"audit-1.{kind}"]
        assert all(path.read_bytes().startswith(magic) for path in paths)
    with pytest.raises(RunError, match="already there: .*accuracies.png"):
        write_figures(shown, tmp_path, "png")
    write_figures(shown, tmp_path, "png", overwrite=True)


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(RunError, match="runs/drawn has nothing to draw yet"):
        write_figures(run(explained=False, audits=(), scorecard=None), tmp_path, "png")


def _luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_keep_their_contrast(mode):
    colours = {name: pair[mode] for name, pair in COLOURS.items()}
    text = [
        ("text", "paper"),
        ("text", "card"),
        ("soft", "paper"),
        ("soft", "card"),
        ("text", "mark"),
        ("text", "heat"),
    ]
    text += [("text", "cool"), ("forget", "card"), ("retain", "card"), ("retain", "paper"), ("forget", "paper")]
    text += [("paper", "forget"), ("paper", "soft"), ("paper", "retain"), ("paper", "retrained")]
    marks = [("before", "paper"), ("before", "card"), ("retrained", "paper")]
    assert {
        pair: _contrast(*(colours[n] for n in pair)) for pair in text if _contrast(*(colours[n] for n in pair)) < 4.5
    } == {}
    assert all(_contrast(*(colours[n] for n in pair)) >= 3 for pair in marks)


def test_a_colour_that_is_not_in_the_table_is_refused():
    assert on_paper(variable("text")) == COLOURS["text"][0]
    with pytest.raises(KeyError):
        variable("pink")
