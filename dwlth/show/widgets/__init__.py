"""Pickers, the explorer and the training panel: the only modules that import ipywidgets at the top.

Every control has a value from the start, so that a notebook runs headless too; callbacks may run on any thread.
"""

from dwlth.show.widgets.explore import explorer
from dwlth.show.widgets.parts import Box, choose, live
from dwlth.show.widgets.train import training_panel

__all__ = ["Box", "choose", "explorer", "live", "training_panel"]
