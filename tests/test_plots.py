"""Figures : style, nombres à la française, planches."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from minidalle import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.25, "0,25"),
        (12, "12"),
        (12_000, "12\u202f000"),
        (1024, "1024"),
        (33.456, "33,5"),
        ("27.70", "27,70"),
        ("−1.5", "−1,5"),
        (0.000123456, "0,000123"),
    ],
)
def test_numbers_are_written_in_french(number, expected):
    assert plots.french(number) == expected


def test_axes_use_a_decimal_comma():
    figure, ax = plots.axes()
    ax.plot([0, 1], [0, 0.5])
    figure.canvas.draw()
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert any("," in label for label in labels) and not any("." in label for label in labels)


@pytest.mark.parametrize(("n", "columns", "shape"), [(5, 3, (2, 3)), (2, 8, (1, 2)), (8, 8, (1, 8))])
def test_every_image_is_on_the_board_with_its_title(n, columns, shape):
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(n)]
    figure = plots.show_images(images, [f"titre {i}" for i in range(n)], columns=columns)
    shown = [ax for ax in figure.axes if ax.images]
    assert [int(ax.images[0].get_array()[0, 0, 0]) for ax in shown] == list(range(n))
    assert [ax.texts[0].get_text().replace("\n", " ") for ax in shown] == [f"titre {i}" for i in range(n)]
    assert len(figure.axes) == shape[0] * shape[1]
    assert not any(ax.axison for ax in figure.axes[n:])


def test_tokens_are_written_on_their_cell():
    _, ax = plots.axes()
    plots.show_tokens(ax, np.zeros((8, 12, 3), np.uint8), np.arange(6).reshape(2, 3))
    places = {t.get_text(): t.get_position() for t in ax.texts}
    assert places["0"] == (1.5, 1.5) and places["2"] == (9.5, 1.5) and places["3"] == (1.5, 5.5)


def test_same_figure_same_bytes_and_transparent():
    def svg():
        figure, ax = plots.axes()
        ax.plot([0, 1], [0, 1])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()

    assert svg() == svg()
    assert plt.rcParams["figure.facecolor"] == plt.rcParams["axes.facecolor"] == "none"


def test_chain_names_each_box_and_what_leaves_it():
    figure = plots.chain([("un", "a", plots.TEXT), ("deux", "b", plots.CODE)])
    assert [t.get_text() for t in figure.axes[0].texts] == ["un", "a", "deux", "b"]
