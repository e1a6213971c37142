"""The expressions, queries and links that the dashboard's panels are made of.

Levels are asked for over 90 s, as in ``prometheus/rules.yaml``: a process that has ended is gone from the panels then,
and not after five minutes. Rates have a step of at least a minute, so that Grafana's ``$__rate_interval`` holds four
exports of a process that exports as seldom as the SDK does by default.

A histogram may be classic series (``_bucket``, ``_sum``, ``_count``) or a native one without a suffix: exponential, or
made from classic buckets. A process that has both counts by its native one, which is the more exact.
"""

from __future__ import annotations

import json
from urllib.parse import urlencode

from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.builders.prometheus import Dataquery

POOL = "db_client_connection_pool_name"
EACH = f"job, instance, {POOL}"
CHOSEN = f'job=~"$service", instance=~"$instance", {POOL}=~"$pool"'
NAME = f"{{{{job}}}} · {{{{{POOL}}}}}"
NAME_AND_INSTANCE = f"{NAME} · {{{{instance}}}}"
RATE = "$__rate_interval"


def metric(name: str, *more: str) -> str:
    """Return the series of a metric for the chosen pools."""
    return f"{name}{{{', '.join((CHOSEN, *more))}}}"


def level(name: str, *more: str) -> str:
    """Return the last values of processes that still report."""
    return f"last_over_time({metric(name, *more)}[90s])"


def rate(name: str, *more: str, by: str = EACH) -> str:
    """By how much a total grows in a second."""
    return f"sum by ({by}) (rate({metric(name, *more)}[{RATE}]))"


def increase(name: str, *more: str, by: str = EACH) -> str:
    """By how much a total grew in five minutes; one that was not there before, from zero."""
    total = metric(name, *more)
    new = f"last_over_time({total}[5m]) unless last_over_time({total}[1h] offset 5m)"
    return f"sum by ({by}) (({new}) or increase({total}[5m]))"


def occurrences(name: str, *, by: str) -> str:
    """By how much a total of the Collector's grew in five minutes.

    Such a total has a sample only when it grows, and begins anew with its Collector or after a day.
    """
    total = metric(name)
    now = f"last_over_time({total}[5m])"
    return f"sum by ({by}) (({now} - last_over_time({total}[1d] offset 5m) >= 0) or {now})"


def joined(expression: str, label: str, first: str, second: str) -> str:
    """Give the series a label of two others, as ``first, second``; as ``first`` if the second is empty or none."""
    both = f'label_join({expression}, "{label}", ", ", "{first}", "{second}")'
    return f'label_replace({both}, "{label}", "$1", "{label}", "(.*), (?:none)?")'


def quantile(fraction: float, histogram: str, *, by: str = "", window: str = RATE) -> str:
    """Return a quantile of a histogram's records; of classic and native series, the greater one."""
    native, classic = (f"rate({metric(name)}[{window}])" for name in (histogram, f"{histogram}_bucket"))
    labels = f"{by}, le" if by else "le"
    of_native = f"histogram_quantile({fraction}, sum by ({by}) ({native}))"
    of_classic = f"histogram_quantile({fraction}, sum by ({labels}) ({classic} unless on ({EACH}) {native}))"
    return f'max by ({by}) ({of_native} or label_replace({of_classic}, "kind", "classic", "", ""))'


def buckets(histogram: str) -> str:
    """Return the rate of a histogram's records: a native histogram where there are native series, else by ``le``."""
    native, classic = (f"rate({metric(name)}[{RATE}])" for name in (histogram, f"{histogram}_bucket"))
    return f"sum({native}) or on () sum by (le) ({classic})"


def rate_of_sum(histogram: str, *, by: str = EACH) -> str:
    """By how much the sum of a histogram's records grows in a second."""
    native, classic = (f"rate({metric(name)}[{RATE}])" for name in (histogram, f"{histogram}_sum"))
    return f"sum by ({by}) (histogram_sum({native}) or {classic})"


def now(expression: str) -> Dataquery:
    """Return the highest value among the pools at this moment."""
    return query(f"topk(1, {expression})", NAME).instant()


def query(expression: str, legend: str) -> Dataquery:
    """Levels over time."""
    return Dataquery().expr(expression).legend_format(legend).range()


def slow_query(expression: str, legend: str) -> Dataquery:
    """Rates over time, which a minute is the least step of; with exemplars, where there are any."""
    return query(expression, legend).interval("1m").exemplar(exemplar=True)


def quantiles(histogram: str) -> list[Dataquery]:
    """Three lines: the usual case, the bad one and the worst one in a hundred."""
    return [slow_query(quantile(fraction, histogram), f"p{fraction * 100:.0f}") for fraction in (0.5, 0.95, 0.99)]


def search(title: str, tags: str, operation: str = "pool.checkout") -> DashboardLink:
    """Return a search in Jaeger for the spans behind a value, in its service and in the displayed time range.

    Grafana replaces the variables in braces. Its times are in milliseconds, Jaeger's in microseconds.
    """
    name, _, value = tags.partition("=")
    wanted = urlencode({"operation": operation, "tags": json.dumps({name: value}), "lookback": "custom"})
    found = "service=${__field.labels.job}&start=${__from}000&end=${__to}000"
    return DashboardLink(title).url(f"${{jaeger:raw}}/search?{wanted}&{found}").target_blank(target_blank=True)
