"""The report, its conclusion, and what servers may start."""

import json
import re
from xml.etree import ElementTree

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_qualification import (
    qualification_conclusion,
    qualification_report,
    qualified_changes,
    qualified_instances,
)

NASTY = """<script>alert("1")</script>'&"""


def text_of(host_record, records, host="k80-1"):
    trace = "\n".join(json.dumps(record) for record in records)
    return qualification_report(host_record, trace, host, f"{host_record['time']} {host_record['trace']}")


def page_of(text):
    """The page as a tree, which only a well-formed one has; HTML's own rules for it are looked at as well."""
    head, _, body = text.partition("\n")
    assert head == "<!DOCTYPE html>"
    # In HTML only some elements may be empty without an end tag.
    closed = set(re.findall(r"<(\w+)[^<>]*/>", body))
    assert closed <= {"meta", "rect", "line"}
    return ElementTree.fromstring(body)


def words(element):
    return " ".join(" ".join(element.itertext()).split())


def test_a_good_run(box):
    box.behave({"load": [["sleep", 0.2]]})
    page = page_of(text_of(*box.qualify()))
    said = words(page.find("body"))
    assert "Passed Servers may use GPUs 0, 1, 3, 4." in said
    assert "error" not in said
    svgs = [svg for svg in page.iter("svg") if svg.find("title") is not None]
    assert [svg.find("title").text.split()[0] for svg in svgs] == ["Temperature", "Power", "SM"]
    for svg in svgs:
        lines = list(svg.iter("polyline"))
        assert len(lines) == 4
        assert [line.find("title").text.split(":")[0] for line in lines] == ["GPU 0", "GPU 1", "GPU 3", "GPU 4"]
        assert len({line.get("class") for line in lines}) == 4
        bands = [text.text for text in svg.iter("text") if text.text.startswith("GPU")]
        assert bands == ["GPU 0", "GPUs 0, 1", "GPUs 0, 1, 3, 4"]
        for line in lines:
            for point in line.get("points").split():
                x, y = (float(number) for number in point.split(","))
                assert 0 <= x <= 960
                assert 0 <= y <= 240
    assert "pair 3-4" in said
    assert "2000 to 2000 GFLOPS a GPU" in said
    assert "direct access" in said
    assert "120.5" in said


def test_findings_stand_on_top(box):
    box.behave({"load 0,1": [box.becomes(1, temperature=93, corrected=1), ["sleep", 20]]})
    host_record, records = box.qualify()
    page = page_of(text_of(host_record, records))
    blocks = [element for element in page.iter("div") if element.get("class", "").startswith("finding")]
    assert [block.get("class") for block in blocks] == ["finding error", "finding warning"]
    assert "Found: 93 degrees" in words(blocks[0])
    body = list(page.find("body"))
    assert body.index(blocks[1]) < min(place for place, element in enumerate(body) if element.tag == "figure")
    said = words(page)
    assert "Stopped at a bad sign" in said
    assert "Servers get GPU 0 alone, of 4 that were to pass." in said
    assert "not ended" in said


def test_page_loads_nothing_and_serves_both_color_schemes(box):
    text = text_of(*box.qualify())
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link", text)
    assert "prefers-color-scheme: dark" in text
    assert "color-scheme: light dark" in text


def test_nothing_is_unescaped(box):
    box.behave({"load 0,1": [["say", {"event": "wrong", "what": NASTY}], ["sleep", 20]]})
    host_record, records = box.qualify()
    for die in host_record["boards"]:
        die.update(name=NASTY, serial=NASTY)
    host_record.update(kernel=NASTY, driver=NASTY, generation=NASTY)
    host_record["findings"][0].update(variable=NASTY, expected=NASTY, next_step=NASTY)
    for record in records:
        if record["event"] in ("step", "step end"):
            record["step"] = NASTY
    text = text_of(host_record, records, host=NASTY)
    assert "<script" not in text
    page = page_of(text)
    assert words(page).count(NASTY) >= 14
    assert not list(page.iter("script"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_a_trace_that_a_halt_has_cut(box, share):
    host_record, records = box.qualify()
    text = "\n".join(json.dumps(record) for record in records)
    host_record.update(result="halted", size=0, dies=[])
    page = page_of(qualification_report(host_record, text[:int(len(text) * share)], "k80-1", "mark"))
    assert "The machine stopped Not even one GPU passed: no server may start." in words(page)


def test_a_host_that_was_skipped(box):
    host_record, _ = box.qualify()
    host_record.update(result="skipped", trace=None)
    page = page_of(qualification_report(host_record, "", "k80-1", "mark"))
    assert "Nobody qualified this host" in words(page)
    assert not list(page.iter("svg"))


def test_the_verdict_has_all_that_an_operator_needs(box):
    box.behave({"load 0,1": [box.becomes(1, temperature=93, corrected=1), ["sleep", 20]]})
    host_record, _ = box.qualify()
    first, error, warning, last = qualification_conclusion(host_record, "reports/k80-1.html")
    assert first == "qualification: stopped at a bad sign. Servers get GPU 0 alone, of 4 that were to pass."
    assert error.startswith("error: GPU 1: found 93 degrees")
    assert warning.startswith("warning: GPU 1: found 1 ECC errors corrected")
    assert last.endswith("reports/k80-1.html")


def instance(name, gpus):
    return {"name": name, "gpus": gpus, "tensor_parallel_size": len(gpus), "port": 8000}


STARTS = {
    "all passed": ([[0, 1, 2, 3]], [0, 1, 2, 3], [[0, 1, 2, 3]]),
    "two passed": ([[0, 1, 2, 3]], [0, 1], [[0, 1]]),
    "one passed": ([[0, 1, 2, 3]], [0], [[0]]),
    "none passed": ([[0, 1, 2, 3]], [], []),
    "the other board passed": ([[0, 1]], [2, 3], [[2, 3]]),
    "two servers, room for both": ([[0, 1], [2, 3]], [0, 1, 2, 3], [[0, 1], [2, 3]]),
    "two servers, room for one": ([[0, 1], [2, 3]], [0, 1], [[0, 1]]),
    "the second asks for what passed": ([[2, 3], [0, 1]], [0, 1], [[0, 1]]),
    "a small one beside a large one": ([[0], [1, 2, 3]], [0, 1], [[0], [1]]),
}


@pytest.mark.parametrize("what", STARTS)
def test_servers_start_as_far_as_the_host_has_passed(what):
    asked, dies, started = STARTS[what]
    instances = [instance(f"s{number}", wanted) for number, wanted in enumerate(asked)]
    before = json.dumps(instances)
    found = qualified_instances(instances, dies)
    assert [server["gpus"] for server in found] == started
    assert [server["tensor_parallel_size"] for server in found] == [len(wanted) for wanted in started]
    assert all(server["port"] == 8000 for server in found)
    assert json.dumps(instances) == before
    assert (qualified_changes(instances, found) == []) == (asked == started)


def test_the_changes_are_named():
    instances = [instance("main", [0, 1, 2, 3]), instance("more", [4])]
    assert qualified_changes(instances, qualified_instances(instances, [0, 1])) == [
        "main: on GPUs 0, 1 instead of GPUs 0, 1, 2, 3", "more: not started; it asks for GPU 4",
    ]
