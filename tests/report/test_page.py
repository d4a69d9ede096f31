"""The page: self-contained, complete, escaped; it says what is missing."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from memmod.errors import RunError
from memmod.report import Report, library, write_report
from memmod.report.words import figure, percent, points, setting
from tests.report.pages import HOSTILE, Parsed, data_of, erased, page, run

ALLOWED = {"data", "#"}


def test_page_loads_nothing_from_elsewhere():
    html = page(run())
    parsed = Parsed(html)
    assert not {"link", "iframe", "object", "base", "embed", "video"} & {tag for tag, _ in parsed.tags}
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, attributes[name])
    style = re.search(r"<style>(.*?)</style>", html, re.S).group(1)
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_policy_allows_the_scripts_of_the_page_and_no_other():
    html = page(run())
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(scripts) == 2 and scripts[0] == library.bundle()
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = next(a["content"] for tag, a in Parsed(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.endswith("script-src " + " ".join(f"'sha256-{value}'" for value in hashes))


def test_ids_are_unique_and_links_lead_somewhere():
    parsed = Parsed(page(run(), erased(), run(explained=False)))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in parsed.tags if tag == "a"]
    targets += [one for _, a in parsed.tags if "aria-labelledby" in a for one in a["aria-labelledby"].split()]
    assert targets and set(targets) <= set(ids)


def test_every_accuracy_is_in_a_table():
    shown = run()
    text = Parsed(page(shown)).text
    for method in shown.scorecard.methods:
        assert method.method in text
        for value in [*method.acc_forget, *method.acc_retain, method.worst_forget, method.mean_retain]:
            assert percent(value) in text
    assert percent(shown.scorecard.sets["2"][0].worst_forget) in text
    assert percent(shown.scorecard.restandardised.worst_forget) in text


def test_page_says_what_it_does_not_do():
    assert "It suppresses; it does not erase." in Parsed(page(run())).text
    assert "It suppresses" not in Parsed(page(erased())).text


@pytest.mark.parametrize("name", HOSTILE[1:])
def test_names_are_text_wherever_they_stand(name):
    names = ("cat", name, "eel")
    html = page(run(names, title=name, folder=name, data=name), erased(names))
    parsed = Parsed(html)
    assert {tag for tag, _ in parsed.tags if tag in ("b", "owl", "bn")} == set()
    # Vega, the page's own script, and the data of two runs: no name has opened or closed one
    assert len(parsed.scripts) == 4
    data = html.split('class="data">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(data)
    assert data_of(html)[0]["names"] == list(names) and data_of(html)[0]["folder"] == name


def test_every_audit_and_the_comparison_are_shown():
    text = Parsed(page(run())).text
    assert "Of 3 figures judged by 3 retrained networks" in text and "1 not judged" in text
    assert "worse by 0.250" in text and "broken (worse by 0.250)" in text and "no <BatchNorm>" in text
    assert "memmod one round 0.000 0.000 0.950 0.100 −0.020 12 0 4096" in text
    assert "scrub, tuned: diverged at step <3>" in text


def test_settings_and_versions_are_shown():
    text = Parsed(page(run())).text
    assert "lr 0.1" in text and "skip none" in text and "preset <default>" in text
    assert "block.fc<1> gated folded with <bn>" in text and "classifier head" in text


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ({"scorecard": None}, "Not measured on test images yet. memmod evaluate runs/drawn"),
        ({"scorecard": None, "held_out": None}, "did not finish, so there are no accuracies"),
        ({"explained": False}, "has not been counted yet. memmod explain runs/drawn"),
        ({"audits": ()}, "has not been audited yet. memmod audit runs/drawn --forget CLASS"),
        ({"comparison": None}, "beside other methods yet. memmod compare runs/drawn"),
        ({"memories": ()}, "The folder holds no memories"),
        ({"folder": "my run", "audits": ()}, "memmod audit 'my run' --forget CLASS"),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_makes_it(missing, words):
    assert words in Parsed(page(run(**missing))).text
    if "folder" not in missing:
        assert words not in Parsed(page(run())).text


def test_a_folder_with_nothing_but_settings_has_a_page():
    nothing = dict.fromkeys(("scorecard", "held_out", "comparison")) | dict.fromkeys(
        ("memories", "notes", "audits"), ()
    )
    bare = run(explained=False, class_names=(), facts={}, **nothing)
    text = Parsed(page(bare)).text
    assert "did not finish" in text and "lr 0.1" in text
    assert data_of(page(bare))[0]["names"] == []


def test_an_erased_network_is_told_apart():
    html = page(erased())
    text = Parsed(html).text
    assert "from which cat was erased for good" in text and "cat (erased)" in text
    assert data_of(html)[0]["fixed"] == [0]
    assert "memmod compare" not in text


def test_an_ordinary_base_has_a_page():
    base = erased(command="train", by_class=erased().by_class, audits=())
    text = Parsed(page(base)).text
    assert "an ordinary classifier, which forgets nothing" in text and "Is it really gone?" not in text


def test_several_networks_share_a_page():
    html = page(run(title="ResNet"), run(title="ViT"))
    parsed = Parsed(html)
    assert [a["href"] for tag, a in parsed.tags if tag == "a"][1:3] == ["#run-1", "#run-2"]
    assert len(data_of(html)) == 2 and html.count(library.bundle()[:200]) == 1


def test_headings_go_down_by_one():
    for html in (page(run()), page(run(), erased())):
        levels = [int(tag[1]) for tag, _ in Parsed(html).tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_page_is_written_over_an_older_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(Report("A page", [run()]), path)
    assert path.read_text(encoding="utf-8") == page(run())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch):
    library.bundle.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(RunError, match="pip install vl-convert-python"):
        page(run())


def test_figures_as_the_page_writes_them():
    assert percent(0.9876) == "98.8\u00a0%" and percent(None) == "–"
    assert [points(v) for v in (-0.004, 0.004, -0.0001, 0.0, None)] == ["−0.4", "+0.4", "0.0", "0.0", "–"]
    assert [figure(v) for v in (0.25, -0.5, None)] == ["0.250", "−0.500", "–"]
    assert [setting(v) for v in ("a", [1, 2], [], None, True, {"b": 1})] == [
        "a",
        "1, 2",
        "none",
        "none",
        "true",
        '{"b": 1}',
    ]
