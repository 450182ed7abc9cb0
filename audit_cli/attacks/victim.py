"""From an attack's name to a victim, and how well it took: the steps that every poisoning run shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from audit_cli.attacks import ATTACKS, Attack, ControlsTraining, Poisoned
from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError
from audit_cli.metrics import asr, cda, predict, wilson
from audit_cli.report.sanitise import clean
from audit_cli.resume import Resume
from audit_cli.training import Fit, Loss, cross_entropy
from audit_cli.types import Context, TrustedData

PARSERS: Mapping[str, Callable[[str], object]] = {  # type of a field -> how its text is read
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}
GIVEN = ("target", "count", "classes", "surrogate")  # fields that `construct` fills; the others are settings


def settings_of(name: str) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of attack `name` that can be set by text."""
    fields = dataclasses.fields(cast(Any, ATTACKS[name]))
    return tuple(field for field in fields if field.name not in GIVEN)


def construct(
    name: str,
    *,
    count: int,
    classes: int,
    target: int | None = None,
    surrogate: Classifier | None = None,
    settings: Mapping[str, str] | None = None,
) -> Attack:
    """Attack `name` for data of `classes` classes; `settings` are its other fields as text.

    target: None is class 0, or nothing where the attack has no single target. Raises UsageError, naming the remedy, for
    an unknown name or setting, a value of the wrong kind or out of range, or a surrogate that is missing or not used.
    """
    if name not in ATTACKS:
        raise UsageError(f"attack {clean(name, 60)}: unknown; expected one of {', '.join(ATTACKS)}")
    fields = {field.name for field in dataclasses.fields(cast(Any, ATTACKS[name]))}
    if target is not None and "target" not in fields:
        raise UsageError(f"{name}: has no single target class; leave --target out")
    if (surrogate is None) == ("surrogate" in fields):
        raise UsageError(f"{name}: {'needs' if surrogate is None else 'does not use'} a surrogate (--surrogate)")
    if not 0 <= (target or 0) < classes:
        raise UsageError(f"{name}: target {target} is not among the {classes} classes 0..{classes - 1}")
    given = {"target": target or 0, "count": count, "classes": classes, "surrogate": surrogate}
    values = {key: value for key, value in given.items() if key in fields} | _parsed(name, settings or {})
    try:
        return cast(Callable[..., Attack], ATTACKS[name])(**values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {clean(str(error), 300)}") from error


def _parsed(name: str, settings: Mapping[str, str]) -> dict[str, object]:
    kinds = {field.name: str(field.type) for field in settings_of(name)}
    required = [field.name for field in settings_of(name) if field.default is dataclasses.MISSING]
    if missing := [key for key in required if key not in settings]:
        raise UsageError(f"{name}: needs a value for `{missing[0]}` (--set {missing[0]}=…)")
    values: dict[str, object] = {}
    for key, text in settings.items():
        if key not in kinds:
            raise UsageError(f"{name}: no setting `{clean(key, 40)}`; expected one of {', '.join(kinds) or 'none'}")
        try:
            values[key] = PARSERS[kinds[key]](text)
        except (ValueError, KeyError) as error:
            raise UsageError(f"{name}: {key}={clean(text, 40)}: expected {kinds[key]}") from error
    return values


def plant(
    attack: Attack,
    fit: Fit,
    classifier: Classifier,
    poisoned: Poisoned,
    images: Tensor,
    labels: Tensor,
    context: Context,
    loss: Loss = cross_entropy,
    resume: Resume | None = None,
) -> Classifier:
    """Trains `classifier` in place into the victim: on `poisoned` (what `attack.poison` made of images and labels), or,
    where the attack controls training, on the clean images and labels under its hands.
    """
    if not isinstance(attack, ControlsTraining):
        return fit.run(classifier, poisoned.images, poisoned.labels, context, loss, resume=resume)
    generator = context.generator(stream=3)
    if resume is not None:
        resume = dataclasses.replace(resume, generators=(*resume.generators, generator))
    return fit.run(classifier, images, labels, context, loss, tamper=attack.tamper(poisoned, generator), resume=resume)


@dataclass(frozen=True)
class Rate:
    """A share of n images, with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, value: float, n: int) -> Rate:
        return cls(value, *wilson(value * n, n), n)


def accuracy(classifier: Classifier, data: TrustedData, context: Context) -> Rate:
    """`metrics.cda` on the images of `data`."""
    return Rate.of(cda(predict(classifier, data.images, context), data.labels), len(data))


def success(
    attack: Attack, classifier: Classifier, data: TrustedData, context: Context, *, triggered: bool = True
) -> Rate:
    """`metrics.asr` of the attack on clean `data`, out of the images on which its trigger makes a claim.

    triggered: False leaves the trigger off, for the share that goes to the attack's goal anyway. The classifier is
    expected on the context's device. Raises DataError when the trigger makes no claim on any image.
    """
    goals = attack.goals(data.labels)
    concerned = goals != data.labels
    images, labels = data.images[concerned], data.labels[concerned]
    shown = attack.trigger(images) if triggered and len(images) else images
    return Rate.of(asr(predict(classifier, shown, context), labels, goals[concerned]), len(labels))
