"""Double-win lottery tickets: masks, attacks, training, transfer and the verdict. See README.md."""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Experiment":  # late: it brings pandas and matplotlib
        from dwlth.experiment import Experiment

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
