"""The house style of the figures, and drawings that more than one chapter uses."""

import arviz as az
import matplotlib as mpl
import matplotlib_inline.backend_inline
import seaborn as sns

# Seaborn's colour-blind-safe palette. A background has the same colour in every figure.
BACKGROUND_COLOURS = {"rural": "#0173b2", "urban": "#de8f05"}


def use_house_style() -> None:
    """Set the look of every figure and table.

    Seaborn's ticks style with colour-blind-safe colours, vector output, and 90 % equal-tailed
    intervals in ArviZ's tables and plots.
    """
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.figsize": (7.0, 4.0),
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.wspace": 0.06,  # labels of neighbours do not touch
            "axes.spines.right": False,
            "axes.spines.top": False,
            "legend.frameon": False,
            "svg.fonttype": "path",
            "svg.hashsalt": "mlm-utils",
        },
    )
    mpl.rcParams["figure.dpi"] = 200  # of what is rasterised inside a vector figure
    az.rcParams["stats.ci_kind"] = "eti"
    az.rcParams["stats.ci_prob"] = 0.9
    az.rcParams["stats.round_to"] = (
        "3g"  # with two an interval of 69.9 to 70.3 would be one of 70 to 70
    )
    matplotlib_inline.backend_inline.set_matplotlib_formats("svg", metadata={"Date": None})
