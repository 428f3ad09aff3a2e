"""What runs cost, without a clock: the shares of a progress bar."""

from dataclasses import replace

from dwlth import presets
from dwlth.results import Folder
from dwlth.running import grid
from dwlth.running.cost import passes
from dwlth.runs import Run

SMALL = Folder(presets.get("cifar-small"))
DENSE = Run("transfer", "adversarial", 0, downstream="cifar10", regime="adversarial", fraction=1.0)


def test_passes_count_training_validation_and_test():
    recipe = SMALL.preset.recipe(DENSE)
    assert (recipe.epochs, recipe.attack.steps, recipe.validation.steps) == (12, 10, 20)
    training, validations, test = 12 * 45_000 * 11, 2 * 5_000 * 21, 10_000 * 21
    assert passes(SMALL, DENSE) == training + validations + test
    tenth = passes(SMALL, replace(DENSE, fraction=0.1))
    assert tenth == training // 10 + validations + test


def test_the_first_round_of_imp_trains_nothing():
    assert passes(SMALL, Run("imp", "adversarial", 0, 0)) == 10_000 * 21
    assert passes(SMALL, Run("imp", "adversarial", 0, 1)) > 2 * 45_000 * 4


def test_the_bar_of_a_grid_goes_by_weight(capsys):
    cheap, dear = Run("pretrain", "standard", 0), Run("pretrain", "adversarial", 0)
    weight = {cheap: 1, dear: 3}.get
    shares = []

    def work(unit):
        shares.append(capsys.readouterr().err.split("%|")[-2].split()[-1])
        return ["ok"]

    grid.run_grid([(cheap,), (dear,)], work, weight=weight)
    last = capsys.readouterr().err
    assert shares[1] == "25" and "100%" in last and "2 of 2 runs" in last
