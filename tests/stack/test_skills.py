"""docs/skills, playbooks that Jaeger's MCP server hands out: their form is Jaeger's, their names are telemetry's."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, set_span_in_context

from otel_pgpool.environment import ENVIRONMENT
from otel_pgpool.telemetry import names
from tests.support.documents import TELEMETRY, table, text_of
from tests.support.jaeger import BINARY, Jaeger
from tests.support.otlp_sender import trace_id
from tests.support.stack_files import ROOT, compose

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.trace import Span

SKILLS = ROOT / "docs/skills"
INDEX = SKILLS / "SKILL.md"
WAIT = SKILLS / "why-did-this-checkout-wait.md"
PLAYBOOKS = sorted(path for path in SKILLS.rglob("*.md") if path != INDEX)
PAGE = str(WAIT.relative_to(ROOT))

TOOLS = {
    "get_services",
    "get_span_names",
    "search_traces",
    "get_span_details",
    "get_trace_errors",
    "get_trace_topology",
    "get_critical_path",
    "get_service_dependencies",
    "read_skill",
}
"""Those of Jaeger's MCP server, 2.20 and later."""
FIELDS = {"service_name", "span_name", "attributes", "duration_min", "start_time_min", "search_depth"}
FIELDS |= {"trace_id", "span_id", "duration_us"}
"""What these tools take and return, as far as the playbooks name it."""
LIMIT = 512 * 1024  # bytes of a file that read_skill returns
NAMES = {value for name, value in vars(names).items() if name.startswith(("SPAN_", "EVENT_", "ATTR_"))}
PAIR = re.compile(r"`([\w.]+)` = `([\w ]+)`")
"""An attribute and a value."""

every_file = pytest.mark.parametrize("file", [INDEX, *PLAYBOOKS], ids=lambda file: file.name)


def span_id(span: Span) -> str:
    return f"{span.get_span_context().span_id:016x}"


def front_matter(file: Path) -> dict[str, str]:
    opened, block, _text = file.read_text(encoding="utf-8").split("---\n", 2)
    assert opened == ""
    loaded: dict[str, str] = yaml.safe_load(block)
    return loaded


def paragraphs(document: str) -> list[str]:
    """Return paragraphs and rows of tables, each in one line."""
    text = text_of(document)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return rows + [" ".join(block.split()) for block in re.split(r"\n\n|\n- ", text)]


@every_file
def test_it_begins_with_what_assistants_read_of_a_skill(file: Path) -> None:
    """The front matter of the agent skills specification: a name as the file's, and when to use it."""
    matter = front_matter(file)
    assert set(matter) <= {"name", "description", "license", "allowed-tools"}
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", matter["name"])
    assert len(matter["name"]) <= 64
    assert matter["name"] == ("otel-pgpool-skills" if file == INDEX else file.stem)
    assert 0 < len(matter["description"]) <= 1024
    assert file.stat().st_size < LIMIT


def test_the_index_names_each_playbook_as_jaeger_serves_it() -> None:
    """Below custom/, with a line that says when to read it; Jaeger does not start without the index."""
    listed = re.findall(r"^- `custom/([\w/.-]+)`: .{40}", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    assert [SKILLS / path for path in listed] == PLAYBOOKS
    assert WAIT in PLAYBOOKS


def test_jaeger_is_given_the_folder() -> None:
    """By the setting that its own documents name, read-only."""
    jaeger = compose()["jaeger"]
    assert jaeger["command"] == ["--set=extensions.jaeger_query.ai.mcp.skills_dir=/etc/jaeger/skills"]
    assert "./docs/skills:/etc/jaeger/skills:ro" in jaeger["volumes"]


@every_file
def test_it_names_tools_that_there_are(file: Path) -> None:
    """Those of a playbook are declared, and no others."""
    text = file.read_text(encoding="utf-8").split("---\n", 2)[2]
    named = set(re.findall(r"`((?:get|search|read)_[a-z_]+)`", text)) - FIELDS
    assert named <= TOOLS
    if file != INDEX:
        assert set(front_matter(file)["allowed-tools"].split()) == named


def test_every_name_in_it_is_one_of_telemetry() -> None:
    """Spans, events, attributes; all else in backticks is a value, a field of the tools, a variable or a statement."""
    quoted = re.findall(r"`([^`]+)`", WAIT.read_text(encoding="utf-8"))
    dotted = {each for each in quoted if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", each)}
    assert dotted
    assert dotted <= NAMES, dotted - NAMES
    assert [each for each in dotted if f"`{each}`" not in text_of(TELEMETRY)] == []
    others = {each for each in quoted if re.fullmatch(r"[a-z]+(_[a-z]+)+", each)}
    values = {value for _name, value in PAIR.findall(WAIT.read_text(encoding="utf-8"))}
    assert others - TOOLS - FIELDS - values == {"in_transaction"}
    variables = {each.partition("=")[0] for each in quoted if each.startswith("OTEL_PGPOOL_")}
    assert variables <= {each.name for each in ENVIRONMENT}


@pytest.mark.parametrize(("name", "value"), sorted(set(PAIR.findall(WAIT.read_text(encoding="utf-8")))))
def test_every_value_in_it_is_one_that_the_attribute_has(name: str, value: str) -> None:
    """As the page of telemetry has it, in the same row or paragraph; a search asks for a boolean by its word."""
    if name in FIELDS:
        return
    told = [each for each in paragraphs(TELEMETRY) if f"`{name}`" in each]
    boolean = value == "true" and any(re.search(rf"^\| `{re.escape(name)}` \| bool \|", each) for each in told)
    assert boolean or any(f"`{value}`" in each for each in told)


@pytest.mark.parametrize("needed", [names.EVENT_LONG_HOLD, names.EVENT_DATABASE_STATE, names.SPAN_WAIT, "blocked_by"])
def test_it_follows_what_the_pool_records(needed: str) -> None:
    assert f"`{needed}`" in text_of(PAGE)


def test_the_states_are_those_of_the_runbook() -> None:
    """In the same order, so that neither page has one that the other lacks."""
    assert [row[:2] for row in table(PAGE, "states")] == [row[:2] for row in table("docs/operations.md", "states")]


needs_jaeger = pytest.mark.skipif(not BINARY, reason="JAEGER names no Jaeger to run")


@needs_jaeger
def test_jaeger_hands_it_out(tmp_path: Path) -> None:
    """Through its MCP server, under the path that the index names, with the tools that it needs beside it."""
    with Jaeger(tmp_path, skills=SKILLS) as jaeger, jaeger.assistant() as assistant:
        assert set(front_matter(WAIT)["allowed-tools"].split()) <= assistant.tools() <= TOOLS
        for file in (INDEX, WAIT):
            assert assistant.call("read_skill", path=f"custom/{file.name}") == file.read_text(encoding="utf-8")


def record(jaeger: Jaeger) -> tuple[Span, Span, Span]:
    """Send a checkout that held while its session waited for a lock, one that timed out behind it, and its wait."""
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=jaeger.otlp, insecure=True)))
    tracer = provider.get_tracer(names.SCOPE)
    held = {names.ATTR_PATH: "new", names.ATTR_OUTCOME: "committed", names.ATTR_LONG_HOLD: True}
    holder = tracer.start_span(names.SPAN_CHECKOUT, attributes=held)
    holder.add_event(names.EVENT_DATABASE_STATE, {names.ATTR_STATE: "active", names.ATTR_WAIT_EVENT_TYPE: "Lock"})
    holder.end()
    refused = {names.ATTR_PATH: "queued", names.ATTR_OUTCOME: "timeout"}
    waiter = tracer.start_span(names.SPAN_CHECKOUT, attributes=refused)
    link = Link(holder.get_span_context(), {names.ATTR_HELD: 2.5, names.ATTR_CONNECTION_ID: 1})
    began = time.time_ns()
    wait = tracer.start_span(names.SPAN_WAIT, set_span_in_context(waiter), links=[link], start_time=began)
    wait.end(began + 1_500_000_000)
    waiter.end()
    provider.shutdown()
    return holder, waiter, wait


@needs_jaeger
def test_its_steps_lead_from_the_waiter_to_the_holder(tmp_path: Path) -> None:
    """Each search of the first table finds what it is for; the link of the wait has what the holder is found by."""
    searches = re.findall(r"^\| [^|]+ \| `([\w.]+)` = `(\w+)` \|$", text_of(PAGE).partition("## Read")[0], re.MULTILINE)
    with Jaeger(tmp_path) as jaeger, jaeger.assistant() as assistant:
        holder, waiter, wait = record(jaeger)
        wanted = {"service_name": "shop", "span_name": names.SPAN_CHECKOUT}

        def found(**more: object) -> list[str]:
            answer = json.loads(assistant.call("search_traces", **{**wanted, **more}))
            return [trace["trace_id"] for trace in answer.get("traces", ())]

        assert len(searches) == 5
        for name, value in searches:
            expected = waiter if value in {"timeout", "queued"} else holder
            assert found(attributes={name: value}) == [trace_id(expected)], name
        assert found(span_name=names.SPAN_WAIT, duration_min="1s") == [trace_id(waiter)]
        assert found(span_name=names.SPAN_WAIT, duration_min="2s") == []
        asked = {"trace_id": trace_id(wait), "span_ids": [span_id(wait)]}
        (told,) = json.loads(assistant.call("get_span_details", **asked))["spans"]
        (link,) = told["links"]
        assert link["attributes"] == {names.ATTR_HELD: 2.5, names.ATTR_CONNECTION_ID: 1}
        asked = {"trace_id": link["trace_id"], "span_ids": [link["span_id"]]}
        (told,) = json.loads(assistant.call("get_span_details", **asked))["spans"]
        assert told["span_id"] == span_id(holder)
        assert [event["name"] for event in told["events"]] == [names.EVENT_DATABASE_STATE]
