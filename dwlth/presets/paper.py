"""The paper's own: ImageNet to CIFAR-10, CIFAR-100 and SVHN."""

from dataclasses import replace
from functools import partial

from dwlth.attacks import Attack
from dwlth.data import Augment
from dwlth.presets.preset import Preset
from dwlth.recipe import Given, Recipe


def paper() -> Preset:
    eps, step = 8 / 255, 2 / 255  # paper
    pgd20 = Attack(eps, step, 20)  # paper
    pgd3 = Attack(eps, 16 / (3 * 255), 3, bn="train")  # reference code, for IMP
    view = Augment("resized", flip=True)  # reference code
    # as in the reference code: float32, and RA over all images; --set transfer.precision=bfloat16 is faster
    as_theirs = partial(Recipe, augment=view, precision="float32", exact_ra=True)
    # reference code, but parts: it trains with 2,048 images over several GPUs; that they are 8, each with 256 and batch
    # norm of its own, is our inference
    imp = as_theirs(30, 2048, 5e-4, weight_decay=1e-4, validate_every=30, parts=8)
    standard = as_theirs(150, 64, 1e-3, "step", (50, 100))  # reference code; it validates SA alone
    adversarial = as_theirs(  # reference code
        100, 128, 0.1, "step", (50, 75), attack=Attack(eps, step, 10, bn="train"), validation=pgd20
    )
    return Preset(
        name="paper",
        network="resnet50",
        upstream="imagenet",
        pretrain={  # the paper names its three kinds of pre-training; these files are our choice of each
            "standard": Given("torchvision:ResNet50_Weights.IMAGENET1K_V1"),
            "fast_adversarial": Given("data/imagenet_model_weights_4px.pth.tar"),  # Wong et al.; by hand, from Drive
            "adversarial": Given("hf:madrylab/robust-imagenet-models/resnet50_linf_eps4.0.ckpt"),  # Salman et al.
        },
        # the reference code has one adversarial script for IMP; that both robust sources used it is our inference
        imp={"standard": imp, **{s: replace(imp, attack=pgd3) for s in ("fast_adversarial", "adversarial")}},
        transfer={
            "standard": standard,
            "adversarial": adversarial,
            "adversarial@svhn": replace(adversarial, epochs=80, lr=0.01, schedule="cosine", milestones=()),
        },
        evaluation=pgd20,
        subset="first",  # reference code
        allow_empty_classes=True,
        downstream=("cifar10", "cifar100", "svhn"),
        rounds=tuple(range(20)),
        seeds=1,
    )
