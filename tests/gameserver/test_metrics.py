"""Protects the numbers others scrape: the text format, with labels that cannot break it."""

from __future__ import annotations

from gameserver.metrics import counter, counters, gauge, render


def test_text_format() -> None:
    text = render([counter("ticks_total", "Ticks.", 12), gauge("speed", "Speed.", 0.7)])
    assert text == (
        "# HELP manyworlds_ticks_total Ticks.\n# TYPE manyworlds_ticks_total counter\nmanyworlds_ticks_total 12\n"
        "# HELP manyworlds_speed Speed.\n# TYPE manyworlds_speed gauge\nmanyworlds_speed 0.7\n"
    )


def test_labels_are_escaped() -> None:
    text = render([counters("errors_total", "Errors.", "code", {'a"b\n\\': 1})])
    assert text.splitlines()[2] == 'manyworlds_errors_total{code="a\\"b\\n\\\\"} 1'
