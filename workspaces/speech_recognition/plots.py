"""Pictures of a run."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from openfl_audio.training.plots import count_by_ones, plot_training, save_figure


def plot_error_rates(history: pd.DataFrame, path: Path) -> Figure:
    """Draw word and character error rates of the validation, and the training loss or epsilon, by round."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    validated = history.dropna(subset=["wer"])
    for number, (name, label) in enumerate((("wer", "word error rate"), ("cer", "character error rate"))):
        axes.plot(validated["round"], validated[name], color=f"C{number}", marker=".", label=label)
    axes.set(xlabel="round", ylabel="error rate", ylim=(0, None))
    count_by_ones(axes.xaxis)
    axes.grid(alpha=0.3)
    plot_training(axes, history, "CTC loss (nats a letter)", "C7")
    figure.legend(loc="outside upper center", ncols=3)
    return save_figure(figure, path)
