"""Handwritten digits, for a CPU and minutes; see docs/digits.md."""

from dataclasses import replace

from dwlth.attacks import Attack
from dwlth.presets.preset import Preset, training_attacks
from dwlth.recipe import Recipe


def digits() -> Preset:
    eps, step = 0.2, 0.05  # a quarter of eps, as the paper's 2/255 of 8/255
    pgd20, attacks = Attack(eps, step, 20), training_attacks(eps, step)
    base = Recipe(epochs=8, batch_size=32, lr=0.1, schedule="cosine", validation=pgd20, validate_every=4)
    trained = {source: replace(base, attack=attack) for source, attack in attacks.items()}
    trained["standard"] = replace(base, validation=Attack())  # SA alone, as in the reference code
    rewound = replace(base, epochs=3, validate_every=3, lr=0.02, schedule="constant", validation=Attack())
    return Preset(
        name="digits",
        network="small_resnet",
        upstream="digits0-4",
        pretrain=trained,
        imp={source: replace(rewound, attack=attack) for source, attack in attacks.items()},
        transfer={regime: trained[regime] for regime in ("standard", "adversarial")},
        evaluation=pgd20,
        splits="by seed",
        downstream=("digits5-9",),
        rounds=(0, 1, 2, 4, 7, 11),  # close where the verdict's sequence begins
        fractions=(1.0, 0.1),  # 1 % would be five images
        seeds=6,
        keep_networks=True,
        together=10,
    )
