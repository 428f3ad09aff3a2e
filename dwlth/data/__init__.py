"""Datasets: by name, in splits, and what the network sees of their images."""

from dwlth.data.augment import Augment
from dwlth.data.datasets import DATASETS, MEAN_STD, Entry, blank, check_name, fetch, load
from dwlth.data.splits import Dataset, Split, Streamed, balanced_subset, subset

__all__ = [
    "DATASETS",
    "MEAN_STD",
    "Augment",
    "Dataset",
    "Entry",
    "Split",
    "Streamed",
    "balanced_subset",
    "blank",
    "check_name",
    "fetch",
    "load",
    "subset",
]
