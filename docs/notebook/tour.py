# %% [markdown]
# # A tour from a notebook
#
# Two front doors need no command line: `flexround.quantize` quantizes any network that is in
# memory, and `results` has every recorded run as a frame. `make notebook` runs this page; its
# source is `docs/notebook/tour.py`.
#
# ## A network of our own
#
# Handwritten digits of 8 x 8 pixels, and a small network with residual blocks of a class that the
# library has never seen.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

import flexround
import results

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (images.float() / 16).view(-1, 1, 8, 8)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return torch.relu(x + self.body(x))


torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), Residual(16), nn.MaxPool2d(2), Residual(16),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for _ in range(30):
    for batch in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()


def accuracy(network):
    with torch.no_grad():
        return 100 * (network.eval()(images[test]).argmax(1) == labels[test]).float().mean().item()


print(f"full precision: {accuracy(net):.1f} % of {len(test)} test images")

# %% [markdown]
# ## One call a method
#
# The calibration set is 256 of the training images, without labels. Names and defaults are those
# of the command line: `options` takes everything that `python run.py` does.

# %%
import pandas as pd

calibration = images[train[:256]]
short = {"recon.iters": 300, "recon.lr": 1e-2}
found = {
    (method, bits): flexround.quantize(
        net, calibration, method, bits, options={} if method == "rtn" else short
    )
    for method in ("rtn", "adaround", "flexround")
    for bits in (4, 3, 2)
}
rows = {key: accuracy(quantized.network) for key, quantized in found.items()}
pd.Series(rows, name="accuracy [%]").unstack()[[4, 3, 2]].round(1)

# %% [markdown]
# ## What came back
#
# A copy of the network with quantized weights, the integers of each layer, and what became of each
# unit of reconstruction.

# %%
best = found["flexround", 3]
print(best)
layer = best.layers["2.body.0"]
print(layer.codes.shape, layer.codes.dtype, "codes", layer.codes.unique().tolist())
print("scale", layer.scale.shape, "zero point", layer.zero_point.shape)
results.units(best)[["error_before", "error_after", "iterations", "cost.parameters"]].round(4)

# %% [markdown]
# ## Where FlexRound rounds otherwise
#
# How many codes each weight has moved from round-to-nearest on the same scale, against its size.
# AdaRound chooses between the two codes around a weight; FlexRound divides the weight before it
# rounds, so that a code may move by more than one (Figures 3 to 6 of the paper).

# %%
from results.plots.shift import shift

# Under the integers lies the network with BatchNorm folded, which round-to-nearest at 8 bits keeps
# to within half a step.
folded = flexround.quantize(net, calibration, "rtn", 8).network
weight = folded.get_submodule("2.body.0").weight
shift({m: (weight, found[m, 3].layers["2.body.0"]) for m in ("adaround", "flexround")})

# %% [markdown]
# ## Recorded runs
#
# `results.load()` reads the folder that `run.py` writes; here it is the file of records behind the
# README's tables. A row is a run, a column a setting, a metric or a cost.

# %%
from pathlib import Path

root = Path(flexround.__file__).parents[1]
runs = results.load(root / "results" / "readme.jsonl")
print(len(runs), "runs,", len(runs.columns), "columns")
runs[["model", "quant", "bits", "recon.iters", "value", "delta", "seconds"]].head(4).round(2)

# %% [markdown]
# What pandas leaves of the frame stands for its runs: tables and figures are those of
# `python -m results`.

# %%
board = results.leaderboard(runs)
cells = board.assign(method=board.model + " " + board.quant)
cells.pivot(index="method", columns="bits", values="mean")[[4, 3, 2]].round(2)

# %%
results.plot("bits", runs)
