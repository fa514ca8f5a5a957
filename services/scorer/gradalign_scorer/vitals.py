"""What the parts of a scorer know of themselves, read when `/metrics` is asked: no request pays for it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gradalign import __version__
from gradalign_scorer.access import Access
from gradalign_scorer.context import Context

__all__ = ["exposition"]

_PROCESS = ProcessCollector(registry=None)


async def exposition(context: Context, access: Access) -> bytes:
    """The text that Prometheus scrapes.

    Args:
        context: of the scorer.
        access: of the key; runs out of its scope are left out.
    """
    reachable = await context.run_figures.look()
    alive = await context.engine.alive()
    page = CollectorRegistry()
    page.register(_Page([*_vitals(context, reachable, alive), *context.run_figures.families(access.allows_run)]))
    return generate_latest(context.metrics.registry) + generate_latest(page)


class _Page:
    """Families that are made already, as the library wants to be given them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _vitals(context: Context, reachable: bool, alive: bool) -> Iterator[Metric]:
    engine, admission, tally = context.engine, context.admission, context.store.tally
    build = GaugeMetricFamily("gradalign_build_info", "Version and device; always 1.", labels=["version", "device"])
    build.add_metric([__version__, str(engine.device)], 1)
    yield build
    for name, text, value in (
        ("store_up", "Whether the store answers.", reachable),
        ("compute_up", "Whether the compute thread answers.", alive),
        ("draining", "Whether the scorer is shutting down.", context.draining),
        ("queue_depth", "Jobs that wait for the compute thread.", engine.depth),
        ("queue_capacity", "Jobs that may wait for the compute thread.", engine.capacity),
        ("admitted_requests", "Requests whose bodies are held.", admission.requests),
        ("admitted_requests_limit", "Requests whose bodies may be held.", admission.max_requests),
        ("admitted_bytes", "Bytes of bodies held.", admission.bytes),
        ("admitted_bytes_limit", "Bytes of bodies that may be held.", admission.max_bytes),
        ("event_streams", "Pages that watch a run.", context.streams.open),
    ):
        yield GaugeMetricFamily(f"gradalign_{name}", text, float(value))
    for name, text, count in (
        ("compute_busy_seconds", "Time that the compute thread has worked.", engine.busy_seconds),
        ("store_retries", "Tries of the store that were made again.", tally.retries),
        ("store_failures", "Calls of the store that failed, retries included.", tally.failures),
    ):
        yield CounterMetricFamily(f"gradalign_{name}", text, float(count))
    yield from _PROCESS.collect()
