"""Draw the shaping curve for docs/rewards.md: `python -m jobs.demo.plot_shaping --reward-url URL`.

The points come from a running reward service (POST /v1/shape), so the plot shows what is served.
"""

from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import typer
from matplotlib.figure import Figure

from common.rest.reward_api import ShapeRequest, Shaping
from common.rest.reward_client import RewardClient
from common.secrets import tokens

POINTS = 201
THRESHOLD = 0.8
CURVES = ((1.0, "#1b6ca8", "-"), (3.0, "#c4572a", "--"))
"""alpha2, colour, line style."""
WIDTH_IN, HEIGHT_IN = 6.4, 4.0


def draw(scores: tuple[float, ...], shaped: dict[float, tuple[float, ...]]) -> Figure:
    """One curve per alpha2 over the scores, the identity and the threshold."""
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    axes.plot(scores, scores, color="0.6", linewidth=1, label="no shaping")
    for alpha2, colour, style in CURVES:
        label = rf"$\alpha_2={alpha2:g}$"
        axes.plot(scores, shaped[alpha2], color=colour, linestyle=style, label=label)
    axes.axvline(THRESHOLD, color="0.8", linewidth=1)
    axes.annotate(r"$\tau=0.8$", (THRESHOLD, 0.03), xytext=(4, 0), textcoords="offset points")
    axes.set(xlabel="score, for example IoU", ylabel="shaped score", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(
    reward_url: Annotated[str, typer.Option(help="A running reward service.")],
    output: Annotated[Path, typer.Option(help="SVG file to write.")] = Path(
        "docs/images/shaping-curve.svg"
    ),
) -> None:
    """Ask the service for the curves and write them as SVG, the same bytes each time."""
    scores = tuple(index / (POINTS - 1) for index in range(POINTS))
    with RewardClient(reward_url, tokens().of("score")) as reward:
        shaped = {
            alpha2: reward.shape(
                ShapeRequest(
                    rewards=scores,
                    shaping=Shaping(kind="nonlinear", threshold=THRESHOLD, alpha2=alpha2),
                )
            ).shaped
            for alpha2, _, _ in CURVES
        }
    with mpl.rc_context({"svg.hashsalt": "shaping", "svg.fonttype": "path"}):
        draw(scores, shaped).savefig(output, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    typer.run(main)
