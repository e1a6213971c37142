"""How the dashboard's panels look."""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING, TypeVar

from grafana_foundation_sdk.builders.common import GraphThresholdsStyleConfig as ThresholdsStyle
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import DashboardLink, FieldColor, ThresholdsConfig
from grafana_foundation_sdk.builders.heatmap import CellValues, HeatmapColorOptions, HeatmapTooltip, YAxisConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    DataSourceRef,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import FieldColorModeId, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.queries import buckets, now, slow_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grafana_foundation_sdk.builders.prometheus import Dataquery

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")

Steps = tuple[float, float]
"""From where on a value is orange, and from where on red."""

P = TypeVar("P", Stat, Timeseries, Heatmap)


def described(panel: P, title: str, description: str, unit: str, queries: Sequence[Dataquery]) -> P:
    """Set the properties that every panel has."""
    for letter, each in zip(ascii_uppercase, queries, strict=False):
        panel.with_target(each.ref_id(letter).datasource(PROMETHEUS))
    return panel.title(title).description(description).unit(unit).datasource(PROMETHEUS)


def thresholds(orange: float, red: float) -> ThresholdsConfig:
    """Green below the first step."""
    steps = [Threshold(None, "green"), Threshold(orange, "orange"), Threshold(red, "red")]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def verdict(
    title: str,
    description: str,
    unit: str,
    expression: str,
    *links: DashboardLink,
    steps: Steps,
    none: str = "none",
    width: int = 5,
) -> Stat:
    """One figure with a colour, that of the pool which is worst off, and its name."""
    return (
        described(Stat(), title, description, unit, [now(expression)])
        .height(5)
        .span(width)
        .thresholds(thresholds(*steps))
        .data_links(list(links))
        .no_value(none)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
    )


def graph(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Dataquery],
    *links: DashboardLink,
    width: int = 8,
    steps: Steps | None = None,
) -> Timeseries:
    """Lines over time, with the steps of colour as dashes."""
    lines = described(Timeseries(), title, description, unit, queries).height(8).span(width).min(0)
    if steps is not None:
        style = ThresholdsStyle().mode(GraphThresholdsStyleMode.DASHED)
        lines.thresholds(thresholds(*steps)).thresholds_style(style)
    return (
        lines.data_links(list(links))
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .fill_opacity(8)
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
            .calcs([])
        )
    )


def heat_map(title: str, description: str, histogram: str) -> Heatmap:
    """Seconds over time; each diamond is an exemplar, which leads to its trace."""
    records = slow_query(buckets(histogram), "{{le}}").format(PromQueryFormat.HEATMAP)
    return (
        described(Heatmap(), title, description, "s", [records])
        .height(8)
        .span(8)
        .calculate(calculate=False)
        .color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .cell_values(CellValues().unit("reqps"))
        .y_axis(YAxisConfig().unit("s"))
        .tooltip(HeatmapTooltip().mode(TooltipDisplayMode.SINGLE).y_histogram(y_histogram=True))
        .exemplars_color("rgba(31, 120, 193, 0.9)")
        .show_legend()
    )
