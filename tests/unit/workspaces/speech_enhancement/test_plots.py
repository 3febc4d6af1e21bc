import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

from workspaces.speech_enhancement.plots import (
    group_rounds,
    plot_clips_per_client,
    plot_si_sdri,
    plot_spectrograms,
    plot_supervised_share,
)


def test_rounds_are_taken_in_tens_and_those_without_a_validation_left_out():
    curve = pd.Series([1.0, np.nan, 3.0, 8.0, -2.0], index=[0, 1, 9, 20, 25])
    points = group_rounds(curve, 10)
    assert points.index.tolist() == [1, 21]
    assert points["mean"].tolist() == [2, 3]
    assert points["min"].tolist() == [1, -2]
    assert points["max"].tolist() == [3, 8]


def test_curves_have_a_band_and_the_centralized_bound_is_dashed(tmp_path):
    rounds = np.arange(100)
    curves = {"16 clients": pd.Series(rounds / 10, index=rounds), "64 clients": pd.Series(rounds / 20, index=rounds)}
    axes = plot_si_sdri(curves, tmp_path / "si_sdri.png", bound=11.8).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_xdata().tolist() == list(range(1, 101, 10))
    assert axes.lines[0].get_ydata().tolist() == pytest.approx(np.arange(10) + 0.45)
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(99 / 20)
    assert (axes.lines[2].get_linestyle(), axes.lines[2].get_ydata()[0]) == ("--", 11.8)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["16 clients", "64 clients", "centralized: 11.8 dB"]
    assert (tmp_path / "si_sdri.png").stat().st_size > 1000


@pytest.mark.parametrize("number", [1, 2, 11, 49])
def test_a_short_run_shows_every_round_as_a_point(tmp_path, number):
    curve = pd.Series(np.arange(number) / 10, index=np.arange(number))
    figure = plot_si_sdri({"1 noise": curve}, tmp_path / "si_sdri.png")
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == list(range(1, number + 1))
    assert line.get_ydata().tolist() == curve.tolist()
    assert line.get_marker() == "."  # a line of one point is blank without
    assert_integer_ticks(figure, "x")


def test_clients_and_clips_are_whole_numbers(tmp_path):
    figure = plot_clips_per_client(np.array([1]), [True], tmp_path / "clips.png")
    assert_integer_ticks(figure, "x", "y")


def assert_integer_ticks(figure, *names):
    for axis in (getattr(figure.axes[0], f"{name}axis") for name in names):
        ticks = axis.get_majorticklocs()
        assert len(ticks)
        assert all(tick == round(tick) for tick in ticks), ticks


def test_bars_stand_by_share_and_column(tmp_path):
    scores = pd.DataFrame({"validation, 1 noise": [9.1, 11.5], "test, 1 noise": [8.0, 9.3]}, index=[0.0, 1.0])
    axes = plot_supervised_share(scores, tmp_path / "bars.png").axes[0]
    assert [bar.get_height() for bar in axes.patches] == [9.1, 11.5, 8.0, 9.3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0%", "100%"]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    assert centres == pytest.approx([-0.2, 0.8, 0.2, 1.2])


def test_spectrograms_share_a_scale_and_show_where_the_tone_is(tmp_path):
    time = np.arange(16_000) / 16_000
    signals = {"mixture": np.sin(2 * np.pi * 2_000 * time), "estimate": 0.01 * np.sin(2 * np.pi * 2_000 * time)}
    figure = plot_spectrograms(signals, 16_000, tmp_path / "spectrograms.png")
    loud, quiet = (axes.images[0] for axes in figure.axes[:2])
    assert loud.get_clim() == quiet.get_clim()
    assert loud.get_clim()[1] - quiet.get_array().max() == pytest.approx(40, abs=0.1)
    levels = loud.get_array()[:, 10]
    assert np.argmax(levels[::-1]) * 8_000 / 256 == pytest.approx(2_000, abs=32)


def test_supervised_clients_have_a_colour_of_their_own(tmp_path):
    figure = plot_clips_per_client(np.array([3, 1, 2]), [True, False, False], tmp_path / "clips.png")
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [3, 1, 2]
    assert bars[0].get_facecolor() != bars[1].get_facecolor() == bars[2].get_facecolor()
    assert "1 of them supervised" in figure.axes[0].get_title()
