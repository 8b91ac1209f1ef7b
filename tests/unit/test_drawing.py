"""Drawings: every DAG can be drawn, and no id breaks out of its label."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from handoff_actors.graph import DAG, Collocated, Function
from handoff_actors.graph.drawing import MOST_DRAWN, to_dot, to_html, to_mermaid

ODD = ['"', "]", "[", "\\", "\n", "</svg><script>alert(1)</script>", "&amp;", "#34;", "`", "é漢",
       "\x00", "\ud800", "a;b", "-->", "|", "{", "end", "1. x", "%%", "\\n", 'x" ]; drop',
       ("t", '"'), "<b>", "'", ""]  # fmt: skip


def many(*values):
    return values


def f(id_, *args, **fields):
    return Function(id_, args, many, **fields)


def make(*functions):
    dag = DAG("test")
    for function in functions:
        dag.add_function(function)
    return dag


def small():
    return make(
        Function("x", type="input"),
        f("a", "x", cost={"cpu": 1, "memory": 0.5}),
        f("i", "a", type="inline"),
        f("b", "i", "a", node="n1"),
        f("c", "b", node=Collocated("a")),
    )


def svg_of(dag):
    text = to_html(dag)
    ET.fromstring(text)  # well formed, or this raises
    return text


def test_mermaid():
    text = to_mermaid(small())
    lines = text.splitlines()
    assert lines[0] == "flowchart TD"
    assert '    n0[/"x<br/>input"/]' in lines
    assert '    n1["a<br/>cpu#61;1#44; memory#61;0#46;5"]' in lines
    assert '    n3["b<br/>on n1"]' in lines
    assert '    n4["c<br/>with a"]' in lines
    assert "    n2 --> n3" in lines
    assert "    class n2 inline" in lines
    assert "stroke-dasharray" in text
    assert text.count("-->") == 5


def test_dot():
    text = to_dot(small())
    assert text.startswith("digraph {")
    assert text.rstrip().endswith("}")
    assert 'n0 [label="x\\ninput", style="", shape=parallelogram];' in text
    assert 'n1 [label="a\\ncpu=1, memory=0.5"' in text
    assert 'n2 [label="i\\ninline", style="rounded,dashed"' in text
    assert text.count("->") == 5


def test_states_are_told_and_color():
    states = {"a": "done", "b": "failed", "c": "something else"}
    text = to_mermaid(small(), states)
    assert "a<br/>cpu#61;1#44; memory#61;0#46;5<br/>done" in text
    assert "    class n1 state_done" in text
    assert "    class n3 state_failed" in text
    assert "something else" in text
    assert "fillcolor" in to_dot(small(), states)
    assert small().to_mermaid(states) == text
    assert "fillcolor" not in small().to_dot()


@pytest.mark.parametrize("id_", ODD, ids=ascii)
def test_no_id_breaks_out(id_):
    dag = make(f(id_, node='n"\n]'), f("after", id_))
    mermaid = to_mermaid(dag)
    lines = mermaid.splitlines()
    assert len(lines) == 4
    for line in lines[1:3]:
        assert re.fullmatch(r' {4}n\d\["[\w #;]*(<br/>[\w #;]*)?"\]', line)
    for line in to_dot(dag).splitlines()[3:-2]:
        assert re.fullmatch(r'  n\d \[label="([^"\\\n]|\\["\\n])*", style="rounded"\];', line)
    svg = svg_of(dag)
    assert "<script" not in svg
    for text in (mermaid, to_dot(dag), svg):
        text.encode()


def test_dot_escapes_what_it_must():
    assert '[label="a\\\\b\\"c d"' in to_dot(make(f('a\\b"c\nd')))


def test_what_cannot_run_can_be_drawn():
    dag = make(f("a", "b"), f("b", "a"), f("c", "nothing", "c"))
    assert "nothing<br/>missing" in to_mermaid(dag)
    assert "    class n3 missing" in to_mermaid(dag)
    assert "nothing\\nmissing" in to_dot(dag)
    assert "nothing" in svg_of(dag)
    assert to_mermaid(DAG()) == "flowchart TD\n"
    svg_of(DAG())


def test_a_notebook_shows_it_without_a_network():
    shown = small()._repr_mimebundle_(include=None, exclude=None)
    assert set(shown) == {"text/plain", "text/markdown", "text/html"}
    assert shown["text/plain"] == repr(small())
    assert shown["text/markdown"].startswith("```mermaid\nflowchart TD\n")
    assert shown["text/markdown"].endswith("```\n")
    root = ET.fromstring(shown["text/html"])
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{space}rect")) == 5
    assert len(root.findall(f".//{space}path")) == 5
    assert not re.search(r"(src|href)=|@import|url\(", shown["text/html"])


def test_boxes_do_not_overlap():
    dag = make(*[f(i) for i in range(40)], f("end", *range(40)))
    root = ET.fromstring(to_html(dag))
    rects = root.findall(".//{http://www.w3.org/2000/svg}rect")
    places = {(float(r.get("x")), float(r.get("y"))) for r in rects}
    assert len(places) == 41
    assert min(x for x, _ in places) >= 0


@pytest.mark.parametrize("shape", ["wide", "deep", "cyclic"])
def test_a_large_dag_is_shown_by_level(shape):
    n = 20_000
    if shape == "wide":
        dag = make(*[f(i) for i in range(n)], f("end", *range(n)))
    elif shape == "deep":
        dag = make(f(0), *[f(i, i - 1) for i in range(1, n)])
    else:
        dag = make(*[f(i, (i + 1) % n) for i in range(n)])
    shown = dag._repr_mimebundle_()
    boxes = shown["text/markdown"].count('["')
    assert 1 <= boxes <= MOST_DRAWN
    assert "functions" in shown["text/markdown"]
    if shape == "wide":
        assert boxes == 2
        assert f"{n} functions" in shown["text/markdown"]
    assert to_mermaid(dag).count('["') == len(dag)


def test_the_limit_itself_is_drawn_whole():
    dag = make(*[f(i) for i in range(MOST_DRAWN)])
    assert dag._repr_mimebundle_()["text/markdown"].count('["') == MOST_DRAWN
