"""search: recipes that a sampler of optuna's proposes, by how those before did."""

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial

from layerloom.composer import ComposeError, Family

from .recipes import shares, within
from .sweep import AT_ONCE

MISSES = 200
"""Proposals in a row that do not fit the model, after which there are none that do."""


class Search:
    """Proposes recipes of one pair, a round at a time: the same ones wherever seed, ranges and scores are the same.

    `ranges` are the values of each option of a name, in their order; those of `layers` are the tenths that each layer
    may have. NSGA-II looks for what is best by any of the `kinds` of score, the others by the first. Raises
    ComposeError where no recipe fits the model.
    """

    def __init__(
        self,
        family: Family,
        pair: str,
        ranges: Mapping[str, Sequence[str | int]],
        sampler: str,
        seed: int,
        kinds: Sequence[str],
    ) -> None:
        self._family = family
        self._pair = pair
        self._ranges = {option: within(values, family.depth) for option, values in ranges.items()}
        parameters = sum(family.depth if option == "layers" else 1 for option in ranges)
        self._size = min(AT_ONCE, 4 + int(3 * math.log(parameters)))
        self._kinds = kinds if sampler == "nsga2" else kinds[:1]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["maximize"] * len(self._kinds), sampler=sampler_of(sampler, seed, self._size)
        )
        if "layers" in ranges:
            self._study.enqueue_trial(self._own())
        self._names: dict[str, str] = {}
        """By digest: two recipes that come to the same weights are one."""
        self._round = [self._ask()]

    def propose(self, most: int) -> list[str]:
        """The canonical names of a round's recipes, `most` at most, some perhaps again.

        The first round is of one recipe, as a sampler knows of no parameters before it has seen them; the others are as
        large as a generation of CMA-ES.
        """
        self._round = self._round or [self._ask() for _ in range(min(self._size, most))]
        return [name for _, name in self._round]

    def tell(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """How each recipe of the round did, by kind; more is better."""
        for trial, name in self._round:
            self._study.tell(trial, [scores[name][kind] for kind in self._kinds])
        self._round = []

    def _ask(self) -> tuple[Trial, str]:
        for _ in range(MISSES):
            trial = self._study.ask()
            try:
                plan = self._family.plan(self._name(trial))
            except ComposeError as error:
                reason = error
                # Told as failed it would be left out of account, and proposed for ever.
                self._study.tell(trial, [-math.inf] * len(self._kinds))
                continue
            return trial, self._names.setdefault(plan.digest, plan.name)
        raise ComposeError(f"of {MISSES} recipes none fits the model: {reason}")

    def _name(self, trial: Trial) -> str:
        chosen = []
        for option, values in self._ranges.items():
            if option == "layers":
                tenths = (_one(trial, f"layer {index}", values) for index in range(self._family.depth))
                chosen.append(f"layers={''.join(map(str, tenths))}")
            elif option == "stem":
                chosen.append(f"stem={trial.suggest_categorical(option, values)}")
            else:
                chosen.append(f"{option}={_one(trial, option, values)}")
        return f"{self._pair}@{','.join(chosen)}"

    def _own(self) -> dict[str, int]:
        """The family's recipe, as near as the ranges come to it."""
        last = len(self._ranges["layers"]) - 1
        own = shares(self._family, self._pair)
        return {f"layer {index}": round(share * last) for index, share in enumerate(own)}


def sampler_of(name: str, seed: int, size: int) -> BaseSampler:
    """One of optuna's, whose generations, where it has any, are of `size`."""
    if name == "cma":
        return CmaEsSampler(seed=seed, popsize=size, warn_independent_sampling=False)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=size)
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)


def _one(trial: Trial, name: str, values: Sequence[str | int]) -> str | int:
    return values[trial.suggest_int(name, 0, len(values) - 1)]
