"""Pictures of a run."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from openfl_audio.training.plots import count_by_ones, save_figure


def plot_error_rates(history: pd.DataFrame, path: Path) -> Figure:
    """Draw word and character error rates of the validation, and the training loss, by round."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    validated = history.dropna(subset=["wer"])
    for number, (name, label) in enumerate((("wer", "word error rate"), ("cer", "character error rate"))):
        axes.plot(validated["round"], validated[name], color=f"C{number}", marker=".", label=label)
    axes.set(xlabel="round", ylabel="error rate", ylim=(0, None))
    count_by_ones(axes.xaxis)
    axes.grid(alpha=0.3)
    loss = axes.twinx()
    loss.plot(history["round"], history["train loss"], color="C7", marker=".", linestyle=":", label="training loss")
    loss.set(ylabel="CTC loss (nats a letter)", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3)
    return save_figure(figure, path)
