"""Spans from the request down to the modify call, for a program that has set an SDK up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client


def test_a_share_is_one_trace_down_to_the_document_that_was_sent(daemon: Running, client: Client) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    daemon.add_vm()
    exporter.clear()
    share = daemon.add_share(daemon.home.directory("project"), owner="job")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert _parents(spans, "modify") == ["Manager.add", "add share"]
    attributes = spans["modify"].attributes
    assert attributes is not None
    assert (attributes["uvmshare.request"], attributes["uvmshare.share"]) == ("Add", share.name)
    exporter.clear()
    client.shares.release("vm", share.name, owner="job")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert _parents(spans, "modify") == ["Manager.remove", "release share"]


def _parents(spans: dict[str, ReadableSpan], name: str) -> list[str]:
    by_id = {span.context.span_id: span for span in spans.values() if span.context is not None}
    found = []
    parent = spans[name].parent
    while parent is not None:
        span = by_id[parent.span_id]
        found.append(span.name)
        parent = span.parent
    return found
