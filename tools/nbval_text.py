"""Greffon de pytest : nbval compare le texte des sorties, pas les figures ni les avertissements, que le livre tait."""

import pytest
from nbval.plugin import IPyNbFile


def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, IPyNbFile):
        shown = ("image/svg+xml", "application/pdf", "text/html", "stderr")
        collector.skip_compare = (*collector.skip_compare, *shown)
