"""Is the robustness of a network real? Checks that a weak attack or masked gradients would fail: after Carlini et al.,
2019, "On evaluating adversarial robustness", and for the active test Zimmermann et al., 2022."""

import io
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import ExitStack
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from tqdm.auto import tqdm

from dwlth.attacks import Attack, batch_norm
from dwlth.data import Augment, Split
from dwlth.errors import DwlthError, NotYet
from dwlth.evaluation import evaluate
from dwlth.files import read_json, write_json
from dwlth.models import Classifier
from dwlth.outside.autoattack import autoattack
from dwlth.results import Folder, provenance
from dwlth.results.records import write_table
from dwlth.running.machine import processes, threads, torch_threads
from dwlth.runs import Run, plain, stream
from dwlth.training import STOP, OutOfTime
from dwlth.transfer import load

POINTS = 1.0
"""Points that a weaker attack may seem stronger by, for chance (our choice)."""
CONVERGED = 3.0
"""Points of RA that five times the steps, or five restarts, may cost (our choice; five restarts cost an adversarially
trained network of `digits` 2.2)."""
BEYOND_PGD = 8.0
"""Points of RA that AutoAttack may cost beyond PGD (our choice: for RobustBench's honest networks it is 2 to 5)."""
FOUND = 0.95
"""Share of planted weaknesses that the attack must find (Zimmermann et al., 2022)."""


def _jpeg(images: Tensor, quality: float) -> Tensor:
    """By Pillow: torchvision's own is deprecated since 0.29."""
    found = []
    for image in (255 * images).round().byte().cpu():
        file = io.BytesIO()
        TF.to_pil_image(image).save(file, "JPEG", quality=int(quality))
        found.append(TF.pil_to_tensor(Image.open(file)))
    return torch.stack(found).to(images.device) / 255


SEVERITIES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "Gaussian noise": (lambda x, s: v2.GaussianNoise(sigma=s)(x), (0.04, 0.06, 0.08, 0.09, 0.1)),
    "Gaussian blur": (lambda x, s: TF.gaussian_blur(x, [5, 5], [s, s]), (0.4, 0.6, 0.7, 0.8, 1.0)),
    "less contrast": (TF.adjust_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brighter": (lambda x, s: (x + s).clamp(0, 1), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "JPEG": (_jpeg, (80, 65, 58, 50, 40)),
}
"""Corruptions by torchvision, at five severities; the numbers are like those of CIFAR-10-C where it has the like."""


def audit(
    model: Classifier,
    split: Split,
    attack: Attack,
    *,
    seed: int = 0,
    others: Mapping[str, Classifier] | None = None,
    augment: Augment | None = None,
    precision: str = "float32",
    exact: bool = False,
    tell: Callable[[str], object] = lambda check: None,
) -> pd.DataFrame:
    """One row for each check of `model` on the images of `split`: its name, what was found, what an honest network
    shows, and the verdict: `passes`, `fails`, or empty for what is only measured.

    Args:
        attack: the one that RA is measured with.
        others: networks by name, whose adversarial images are tried on this one.
        augment, precision, exact: see `dwlth.evaluation.evaluate`.
        tell: hears of each check that is done.

    Raises:
        DwlthError: for an attack of no steps or another norm than linf; see also `dwlth.outside.autoattack.autoattack`.
    """
    if attack.norm != "linf":
        raise DwlthError(f"audit: the attack's norm is {attack.norm!r}: the checks here are those of linf")
    if not attack.steps or not attack.eps:
        raise DwlthError(f"audit: the attack has {attack.steps} steps and eps {attack.eps:g}: there is no RA to check")
    rows: list[dict[str, Any]] = []
    measuring = {"augment": augment, "precision": precision, "exact": exact}

    def add(check: str, found: str, honest: str = "", fine: bool | None = None) -> None:
        rows.append({"check": check, "found": found, "honest": honest})
        rows[-1]["verdict"] = "" if fine is None else "passes" if fine else "fails"
        tell(check)

    def ra(other: Attack) -> float:
        return 100 * evaluate(model, split, other, seed, **measuring)[1]

    def accuracy(images: Callable[[Tensor, Tensor], Tensor]) -> float:
        right = 0
        for x, y in split.batches(250, augment=augment):
            x = images(x, y)
            with torch.no_grad():
                right += int((model(x).argmax(1) == y).sum())
        return 100 * right / len(split)

    model.eval()
    sa, own = (100 * value for value in evaluate(model, split, attack, seed, **measuring))
    add("SA and RA", f"{sa:.1f} and {own:.1f} %")
    none = ra(replace(attack, eps=0.0))
    add("RA at eps 0", f"{none:.1f} %", "the SA", abs(none - sa) < 1e-3)
    scale = (0.25, 0.5, 1.0, 2.0, 4.0)
    falling = [ra(replace(attack, eps=k * attack.eps, step_size=k * attack.step_size)) for k in scale]
    fine = all(later <= earlier + POINTS for earlier, later in zip([sa, *falling], falling))
    add(f"RA at {', '.join(f'{k:g}' for k in scale)} eps", ", ".join(f"{r:.1f}" for r in falling) + " %", "falls", fine)
    gone = ra(replace(attack, eps=0.5, step_size=0.05, steps=max(100, attack.steps)))
    add("RA at eps 0.5, where any image can turn grey", f"{gone:.1f} %", f"0 to {POINTS:g} %", gone <= POINTS)
    for name, change in {"5 times the steps": {"steps": 5 * attack.steps}, "5 restarts": {"restarts": 5}}.items():
        if change.get("restarts", 1) > 1 and not attack.random_start:
            continue
        stronger = ra(replace(attack, **change))
        add(f"RA under {name}", f"{stronger:.1f} %", f"at most {CONVERGED:g} points less", own - stronger <= CONVERGED)
    numbers = {"eps": attack.eps, "norm": attack.norm, "seed": seed % 2**31}
    square = accuracy(lambda x, y: autoattack(model, x, y, **numbers, attacks=["square"]))
    add(
        "RA under Square, a black-box attack",
        f"{square:.1f} %",
        f"at most {POINTS:g} point less",
        square >= own - POINTS,
    )
    generator = torch.Generator(split.labels.device).manual_seed(seed % 2**31)
    for name, other in (others or {}).items():
        moved = accuracy(lambda x, y, other=other: attack(other, x, y, generator))
        add(
            f"RA under images made for {name}",
            f"{moved:.1f} %",
            f"at most {POINTS:g} point less",
            moved >= own - POINTS,
        )
    auto = accuracy(lambda x, y: autoattack(model, x, y, **numbers))
    add("RA under AutoAttack", f"{auto:.1f} %", f"at most {BEYOND_PGD:g} points less", own - auto <= BEYOND_PGD)
    x, y = next(iter(split.batches(min(128, len(split)), augment=augment)))
    found, planted = active_test(model, x, attack, seed)
    fine = found >= FOUND * planted if planted else None
    add("planted weaknesses that the attack finds", f"{found} of {planted}", f"at least {FOUND:.0%}", fine)
    for name, (corrupt, severities) in SEVERITIES.items():
        with torch.random.fork_rng([]):
            torch.manual_seed(seed % 2**31)
            found = [accuracy(lambda x, y, s=s, corrupt=corrupt: corrupt(x, s)) for s in severities]
        add(f"SA under {name}, five severities", ", ".join(f"{r:.1f}" for r in found) + " %")
    add("calibration error (ECE, 15 bins)", f"{100 * calibration_error(model, split, augment):.1f} points")
    return pd.DataFrame(rows)


def audit_transfers(
    folder: Folder,
    runs: Sequence[Run],
    sources: Collection[str] = (),
    workers: int = 1,
    deadline: float = math.inf,
) -> pd.DataFrame:
    """`audit` of the networks that transfers ended with, on the first `preset.autoattack_images` test images, each with
    the dense network of another source as the one whose images are tried. Writes `audit.csv`, and `claims.json` with
    what RobustBench asks of an entry, into the results' folder, after each network. One that is in both is not audited
    again; so an audit that was stopped goes on.

    Args:
        runs: transfers under adversarial training, whose networks are on disk.
        sources: audit only the networks of these; by default of all.
        workers: processes, with a network at a time each.
        deadline: no further network is begun after it (seconds, as of `time.time`), or after a signal.

    Returns:
        `audit.csv`: the rows of `audit` for each network, with its run's `id`, `source`, `sparsity` and `seed`.

    Raises:
        OutOfTime: if one is left because of that; those that are audited are written.
        NotYet: if there is none to audit.
        DwlthError: for a network that was not kept, or a damaged `audit.csv` or `claims.json`.
    """
    audited, todo = _audited(folder), {}
    for run in runs:
        evaluation = f"AutoAttack (standard), the first {len(_images(folder, run))} test images"
        _, claim = audited.get(folder.preset.run_id(run), (None, {}))
        if (not sources or run.source in sources) and claim.get("evaluation") != evaluation:
            todo[run] = evaluation, [other for other in runs if other.source != run.source and not other.round][:1]
    if not todo and not audited:
        raise NotYet(f"no network to audit: the table has no transfer that is asked for; {folder.table}")
    ended = lambda: STOP.is_set() or time.time() > deadline
    done = 0
    with tqdm(total=len(todo), desc="audit") as bar, ExitStack() as stack:
        if (workers := min(workers, len(todo))) > 1:
            pool = stack.enter_context(processes(workers, threads(folder.preset.network, workers)))
            jobs = {pool.submit(_entry, folder, run, *of): run for run, of in todo.items()}
            entries = _finished(jobs, ended)
        else:
            stack.enter_context(torch_threads(threads(folder.preset.network)))
            begun = takewhile(lambda _: not ended(), todo.items())
            entries = ((run, _entry(folder, run, *of, bar.set_postfix_str)) for run, of in begun)
        for run, entry in entries:
            audited = _audited(folder)  # once more: another process may have added to it
            audited[folder.preset.run_id(run)] = entry
            table = pd.concat([rows for rows, _ in audited.values()], ignore_index=True)
            write_table(folder.path / "audit.csv", table)
            write_json(folder.path / "claims.json", {"claims": [claim for _, claim in audited.values()]})
            bar.update()
            done += 1
    if done < len(todo):
        raise OutOfTime
    return pd.concat([rows for rows, _ in _audited(folder).values()], ignore_index=True)


def _finished(jobs: Mapping[Future, Run], ended: Callable[[], bool]) -> Iterator[tuple[Run, tuple]]:
    """The runs of jobs that are done, and what they gave; once it is time, those that wait are not begun."""
    for job in as_completed(jobs):
        if ended():
            for other in jobs:
                other.cancel()
        if not job.cancelled():
            yield jobs[job], job.result()


def _images(folder: Folder, run: Run) -> Split:
    test = folder.dataset(run.downstream, run.seed).test
    return test.take(list(range(min(folder.preset.autoattack_images, len(test)))))


def _entry(
    folder: Folder,
    run: Run,
    evaluation: str,
    others: Sequence[Run],
    tell: Callable[[str], object] = lambda check: None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows and the claim of one network."""
    preset, recipe, attack = folder.preset, folder.preset.recipe(run), folder.preset.evaluation
    measuring = recipe.measuring | {"seed": stream(run.seed, "audit"), "tell": tell}
    measuring |= {"others": {str(other.source): load(folder, other) for other in others}}
    found = audit(load(folder, run), _images(folder, run), attack, **measuring)
    sparsity = round(1 - (1 - preset.prune_rate) ** run.round, 4)
    measured = found.set_index("check")["found"]
    clean, _, pgd = measured["SA and RA"].removesuffix(" %").partition(" and ")
    claim = {
        "architecture": preset.network,
        "dataset": run.downstream,
        "threat_model": attack.norm,
        "eps": attack.eps,
        "clean_acc": float(clean),
        "autoattack_acc": float(measured["RA under AutoAttack"].removesuffix(" %")),
        "pgd_acc": float(pgd),
        "evaluation": evaluation,
        "sparsity": sparsity,
        "run": plain(run),
        "checks": len(found),
        "pretraining": run.source,
        "failed_checks": found["check"][found["verdict"] == "fails"].tolist(),
        "file": folder.network(run).relative_to(folder.path).as_posix(),
        "commit": provenance(folder.device, recipe.precision, 1, 0.0, "")["commit"],
    }
    return found.assign(id=preset.run_id(run), source=run.source, sparsity=sparsity, seed=run.seed), claim


def _audited(folder: Folder) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """The rows and the claim of each network that an earlier audit ended with, by its run's id; those of other settings
    than the preset's now are left out."""
    table, claims = folder.path / "audit.csv", folder.path / "claims.json"
    if not (table.exists() and claims.exists()):
        return {}
    rows = folder.audit()
    of = {Path(claim["file"]).stem: claim for claim in read_json(claims, "claims of an audit")["claims"]}
    own = [id_ for id_ in rows["id"].unique() if id_ in of and folder.owns(of[id_]["run"], id_)]
    return {id_: (rows[rows["id"] == id_], of[id_]) for id_ in own}


def active_test(model: nn.Module, x: Tensor, attack: Attack, seed: int = 0, inner: int = 200) -> tuple[int, int]:
    """Zimmermann et al., 2022: give the network a new last layer, for each image, that has a known weakness within
    `eps`, and see whether the attack finds one. An attack that does not is too weak to say that there is none.

    Of an image, `inner` points lie at most half of eps away in each pixel, half of them in corners of that smaller
    ball, and one lies in a corner of the whole ball. The layer tells the one from the others. A weakness that as many
    random corners as the attack has steps show too is easy, and is not counted.

    Args:
        x: images, float [N, C, H, W] in [0, 1].

    Returns:
        How many weaknesses were found, and how many were planted.
    """
    from sklearn.linear_model import LogisticRegression

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    kept: list[Tensor] = []
    generator = torch.Generator(x.device).manual_seed(seed % 2**31)
    noise = lambda n, width: (2 * torch.rand(n, *x.shape[1:], generator=generator, device=x.device) - 1) * width

    def features(images: Tensor) -> Tensor:
        kept.clear()
        model(images)
        return kept[0].flatten(1)

    found = planted = 0
    handle = last.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    try:
        with batch_norm(model, "eval"):
            for image in x.split(1):
                corner, random = ((image + attack.eps * noise(n, 1.0).sign()).clamp(0, 1) for n in (1, attack.steps))
                half = attack.eps / 2
                near = torch.cat([noise(inner // 2, half), half * noise(inner - inner // 2, 1.0).sign()])
                near = (image + near).clamp(0, 1)
                with torch.no_grad():
                    points = features(torch.cat([image, near, corner, random])).double()
                scale = points[: inner + 2].std(0).clamp_min(1e-9)
                known = ((points / scale).cpu().numpy()[: inner + 2], [0] * (inner + 1) + [1])
                fit = LogisticRegression(C=1e4, class_weight="balanced", max_iter=1000).fit(*known)
                weight = torch.tensor(fit.coef_[0]).to(points) / scale
                bias = float(fit.intercept_[0])
                side = points @ weight + bias
                if (side[: inner + 1] >= 0).any() or side[inner + 1] <= 0 or (side[inner + 2 :] > 0).any():
                    continue  # not to be told apart, or too easy
                planted += 1
                weak = _Readout(features, weight.to(x.dtype), bias)
                label = torch.zeros(1, dtype=torch.long, device=x.device)
                adversarial = attack(weak, image, label, generator)
                with torch.no_grad():
                    found += int(weak(adversarial).argmax(1).item() == 1)
    finally:
        handle.remove()
    return found, planted


class _Readout(nn.Module):
    """Two classes, by which side of a plane an image's features lie."""

    def __init__(self, features: Callable[[Tensor], Tensor], weight: Tensor, bias: float):
        super().__init__()
        self.features, self.weight, self.bias = features, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        side = self.features(x) @ self.weight + self.bias
        return torch.stack([-side, side], 1)


@torch.no_grad()
def calibration_error(model: nn.Module, split: Split, augment: Augment | None = None, bins: int = 15) -> float:
    """The expected calibration error (Guo et al., 2017), in [0, 1]: how far confidence and accuracy are apart, as a
    mean over bins of equal width of the confidence, weighted by their images."""
    pairs = [(model(x).softmax(1).max(1), y) for x, y in split.batches(512, augment=augment)]
    confidence = torch.cat([best.values for best, _ in pairs]).double()
    right = torch.cat([best.indices == y for best, y in pairs]).double()
    which = (confidence * bins).long().clamp_max(bins - 1)
    apart = torch.zeros(bins, dtype=torch.double, device=which.device).index_add_(0, which, confidence - right)
    return float(apart.abs().sum() / len(split))
