"""Double-win lottery tickets: masks, attacks, training, transfer and the verdict. See README.md."""

__version__ = "0.1.0"
