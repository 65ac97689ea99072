"""Counters in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

PREFIX = "manyworlds_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: a single value, or a value for each value of one label."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: float | None = None
    label: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


def counter(name: str, help: str, value: float) -> Metric:
    return Metric(name, "counter", help, value)


def gauge(name: str, help: str, value: float) -> Metric:
    return Metric(name, "gauge", help, value)


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    return Metric(name, "counter", help, label=label, values=dict(values))


def render(metrics: Iterable[Metric]) -> str:
    lines: list[str] = []
    for metric in metrics:
        name = PREFIX + metric.name
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        if metric.value is not None:
            lines.append(f"{name} {metric.value:.10g}")
        lines += [f'{name}{{{metric.label}="{_escape(key)}"}} {value:.10g}' for key, value in metric.values.items()]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
