"""Double-win lottery tickets, reproduced.

The modules at the top of this folder are the method. Read them in this order; the first seven are the paper:

    masks       which weights survive, and how a round of pruning chooses them
    attacks     FGSM and PGD, for training and for evaluation
    training    the one training loop
    evaluation  standard accuracy (SA) and robust accuracy (RA)
    tickets     iterative magnitude pruning with rewinding
    transfer    a ticket, alone, on a downstream task
    verdict     which tickets are double-win

    recipe      how one network is trained, or where a trained one comes from
    runs        a run: what it is, and its id
    models      the networks, with the normalisation in front
    sources     the pre-trained networks that tickets are cut from
    errors      what went wrong, and what would be right

The folders have one duty each:

    presets/   every number of an experiment; a preset gives the list of its runs
    controls/  beyond the paper: other ways to a ticket, and the way between two trainings from one start
    results/   where each file lies, the record of a run, the table
    files/     reading and writing: whole, flushed to the disk, sealed with a checksum
    data/      datasets by name, augmentation, image files
    fast/      small networks side by side, batch norm folded away, dead channels removed, a batch shared by processes
    outside/   what others made: checkpoints, downloads, AutoAttack, tickets of the paper's public code
    running/   many runs: which are left, what they cost, on which processes; torchrun; `--set`
    show/      figures, the scoreboard of claims, analysis, reports, inspection, widgets
    interface/ the ways in: all of it in one object, for notebooks, and the command line

`python -m dwlth --help` lists the commands. README.md has the rest.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Experiment":  # late: it brings pandas and matplotlib
        from dwlth.interface.experiment import Experiment

        return Experiment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
