"""Greffon de pytest : nbval compare aussi les figures ; les avertissements, que le livre tait, sont ignorés."""

import hashlib
import re

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

IGNORED = ("application/pdf", "stderr")  # le PDF est la même figure, et il est daté
DATE = re.compile(r"<dc:date>.*?</dc:date>")


def fingerprint(svg: str) -> str:
    """De quoi comparer deux dessins sans en afficher un million de signes : leur longueur et une empreinte."""
    undated = DATE.sub("", svg)
    return f"figure de {len(undated)} signes, {hashlib.sha256(undated.encode()).hexdigest()[:12]}"


def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, IPyNbFile):
        collector.skip_compare = (*collector.skip_compare, *IGNORED)


sanitize = IPyNbCell.sanitize


def sanitize_figure(cell: IPyNbCell, text: str) -> str:
    is_figure = isinstance(text, str) and text.startswith("<?xml") and "<svg" in text
    return fingerprint(text) if is_figure else sanitize(cell, text)


IPyNbCell.sanitize = sanitize_figure  # nbval n'a pas d'autre prise sur ce qu'il compare
