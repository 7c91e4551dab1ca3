"""All findings about one model: what can be said with the data at hand, and what cannot."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, Points, kind_of
from scoreexp.core.types import AtLeastTwo, FinitePositiveFloat, NonNegativeInt, PositiveInt
from scoreexp.denoisers.denoiser import Denoiser, DenoiserBase, OracleDenoiser
from scoreexp.diagnostics.agreement import split_half_disagreement, training_over_held_out
from scoreexp.diagnostics.calibration import calibration
from scoreexp.diagnostics.certified import certified_radius
from scoreexp.diagnostics.diti import DiTi, diti_relative_loss, fit_diti
from scoreexp.diagnostics.estimates import RELATIVE, ByLevel, Estimate, mean_of, usable_levels
from scoreexp.diagnostics.features import probe_by_level
from scoreexp.diagnostics.fields import noisy
from scoreexp.diagnostics.fokker_planck import MARGIN, fokker_planck_residual
from scoreexp.diagnostics.jacobian import jacobian_asymmetry, jacobian_spectrum
from scoreexp.diagnostics.likelihood_levels import likelihood_by_level
from scoreexp.diagnostics.linear_classifier import LinearClassifier, fit_linear_classifier
from scoreexp.diagnostics.score_errors import score_error_by_level
from scoreexp.diagnostics.stopping import compare_stopping
from scoreexp.diagnostics.task_metric import task_gain
from scoreexp.metrics.distribution import memorisation
from scoreexp.metrics.score_error import LEVELS
from scoreexp.numerics.oracles import EmpiricalImages, Oracle
from scoreexp.samplers.labels import knows_null_label

POPULATION = ("val/score_error", "val/population_bits")  # logged errors on the population
ENOUGH = 0.01  # a standard error that is small whatever the value is
_SPECTRUM_LEVELS = 3
_SPECTRUM_POINTS = 4
_CLASSIFIED = 4000  # training samples that the linear classifier is fitted to
_BANDS = 3  # of noise levels, in DiTi's representation
_PROBED = 512  # and the probes of features
_CERTIFIED = 16  # samples, at two levels
_CERTIFIED_DRAWS = 100
_CERTIFIED_CONFIDENCE = 0.99
_SHOWN = 8  # images, with the nearest training image of each


class Finding(NamedTuple):
    """One property of a model.

    Attributes:
        name: of the finding, in files.
        title: a headline.
        meaning: what the values mean, and which an exact model has.
        axis: what the values are given by; empty where there is one of each, at 0.
        series: values by their name and place on the axis.
        remarks: on the values: samples that are too few, and how many are needed.
        pictures: images ``[B, C, H, W]`` in the range of the model, or None.
        caption: of the pictures.
        units: what the values are in, by the name of their series, such as ``accuracy`` and ``dB``; never on one axis.
        pairs: points of the plane ``[N, 2, 2]`` and what belongs to each, or None.
    """

    name: str
    title: str
    meaning: str
    axis: str
    series: dict[str, ByLevel]
    remarks: list[str]
    pictures: Tensor | None = None
    caption: str = ""
    units: Mapping[str, str] = MappingProxyType({})
    pairs: Tensor | None = None


class Diagnosis(NamedTuple):
    """Findings, and the reasons of those that are missing.

    Attributes:
        findings: in the order in which they are reported.
        unsaid: why a finding is missing, by its title.
        settings: what the findings were computed with.
    """

    findings: list[Finding]
    unsaid: dict[str, str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON.

        >>> Diagnosis([], {"score error": "no data"}, {"n": 4}).to_dict()
        {'settings': {'n': 4}, 'findings': {}, 'unsaid': {'score error': 'no data'}}
        """
        return {
            "settings": self.settings,
            "findings": {
                finding.name: {
                    "title": finding.title,
                    "meaning": finding.meaning,
                    "by": finding.axis,
                    "values": {
                        name: [{"at": at, **estimate._asdict()} for at, estimate in series.items()]
                        for name, series in finding.series.items()
                    },
                    "remarks": finding.remarks,
                }
                for finding in self.findings
            },
            "unsaid": self.unsaid,
        }

    def text(self) -> str:
        """The findings as plain text, with the standard error beside each value."""
        lines = []
        for finding in self.findings:
            lines += [finding.title, f"  {finding.meaning}"]
            for name, series in finding.series.items():
                if finding.axis:
                    lines.append(f"  {name} by {finding.axis}")
                    lines += [f"    {at:<8g} {_with_error(e)}" for at, e in series.items()]
                else:
                    lines += [f"  {name}: {_with_error(e)}" for e in series.values()]
            lines += [f"  note: {remark}" for remark in finding.remarks] + [""]
        lines += [f"not said: {title}: {reason}" for title, reason in self.unsaid.items()]
        return "\n".join(lines).rstrip() + "\n"


@checked
def diagnosis(
    model: DenoiserBase,
    *,
    samples: Tensor,
    train: Tensor | None = None,
    held_out: Tensor | None = None,
    oracle: Oracle | None = None,
    other: DenoiserBase | None = None,
    labels: Tensor | None = None,
    held_out_labels: Tensor | None = None,
    history: Sequence[Mapping[str, float]] = (),
    diti_steps: NonNegativeInt = 0,
    levels: Sequence[FinitePositiveFloat] = LEVELS,
    n: AtLeastTwo = 256,
    seed: int = 0,
    batch_size: PositiveInt = 32,
    progress: Callable[[int, int, str], None] | None = None,
) -> Diagnosis:
    """All findings about a model that what is given allows.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> found = diagnosis(model, samples=torch.randn(8, 2), levels=[0.5], n=8)
    >>> [finding.name for finding in found.findings]
    ['jacobian_spectrum', 'jacobian_asymmetry', 'fokker_planck_residual']

    Args:
        model: the denoiser, in evaluation mode.
        samples: drawn from it, ``[N, *]``.
        train: the samples that it was trained on.
        held_out: samples of the same data that it was not trained on.
        oracle: the exact distribution of the data, where it is known.
        other: a model of another, disjoint half of the data.
        labels: classes of ``train`` ``[N]`` (long), for what a classifier makes of the denoised.
        held_out_labels: those of ``held_out``.
        history: rows of the run's table, with ``step``, ``val/ssim`` and an error on the population.
        diti_steps: of training DiTi's encoder (``diagnostics.diti``) on the frozen model; 0 leaves it out.
        levels: noise levels ``r = sigma / alpha``, in the units of the data.
        n: samples for each value; fewer where there are not as many.
        seed: names all that is drawn.
        batch_size: samples at once.
        progress: told before each finding how many are done, how many there are, and its title.

    Raises:
        ValueError: the shapes of what is given differ, or an argument is outside its range.
        UserError: the model needs a class label, or there is no level.
    """
    if not levels:
        raise UserError("levels=[] has no noise level: give one at least, such as levels=[0.1,1]")
    if model.record.get("num_classes") is not None and not knows_null_label(model.record):
        raise UserError(
            "this model needs a class and was trained without label dropout, and the diagnosis asks it without one: "
            "train with model.label_dropout=0.1"
        )
    for name, given in (("samples", samples), ("train", train), ("held_out", held_out)):
        if given is not None and model.event_shape not in (None, tuple(given.shape[1:])):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}: the model takes samples of {model.event_shape}"
            )
    for name, given, of in (("labels", labels, train), ("held_out_labels", held_out_labels, held_out)):
        if given is not None and (of is None or len(given) != len(of)):
            raise ValueError(
                f"{len(given)} {name} for {0 if of is None else len(of)} samples: give one label for each sample"
            )
    diagnoser = _Diagnoser(model, samples, train, held_out, oracle, other, list(levels), n, seed, batch_size)
    diagnoser.labels, diagnoser.held_out_labels = labels, held_out_labels
    diagnoser.history, diagnoser.diti_steps = history, diti_steps
    return diagnoser.run(progress)


class _Diagnoser:
    """The findings, one method each."""

    def __init__(
        self,
        model: DenoiserBase,
        samples: Tensor,
        train: Tensor | None,
        held_out: Tensor | None,
        oracle: Oracle | None,
        other: DenoiserBase | None,
        levels: list[float],
        n: int,
        seed: int,
        batch: int,
    ) -> None:
        self.model, self.other, self.oracle = model, other, oracle
        self.samples, self.train, self.held_out = samples, train, held_out
        self.n, self.seed, self.batch = n, seed, batch
        self.labels: Tensor | None = None
        self.held_out_labels: Tensor | None = None
        self.history: Sequence[Mapping[str, float]] = ()
        self.diti_steps = 0
        self.asked = levels
        self.levels = usable_levels(levels, *model.schedule.sigma_range)
        # where the model is asked: real data where there are some, else what it draws itself
        unseen = held_out if held_out is not None else train
        if unseen is None and oracle is not None:
            unseen = oracle.sample(n, torch.Generator().manual_seed(seed)).float()
        self.data = None if unseen is None else unseen[:n].to(model.device)
        self.seen = held_out is None and train is not None and oracle is None
        self.points = (samples[:n] if self.data is None else self.data).to(model.device)
        self.whose = "samples of its own" if self.data is None else "data"

    def run(self, progress: Callable[[int, int, str], None] | None) -> Diagnosis:
        findings: list[Finding] = []
        unsaid: dict[str, str] = {}
        parts: tuple[tuple[str, Callable[[str], Finding | str]], ...] = (
            ("error of the score", self.score_error),
            ("training error over held-out error", self.generalisation),
            ("nearest training samples", self.nearest),
            ("calibration of the posterior mean", self.calibration),
            ("what the denoiser keeps", self.spectrum),
            ("asymmetry of the Jacobian", self.asymmetry),
            ("Fokker-Planck residual", self.residual),
            ("likelihood by noise level", self.likelihood),
            ("what denoising is worth to a classifier", self.task),
            ("certified radius as a purifier", self.certificate),
            ("classes in the hidden features", self.features),
            ("what each band of noise takes away", self.diti),
            ("agreement with the other model", self.agreement),
            ("stopping by SSIM", self.stopping),
        )
        for i, (title, find) in enumerate(parts):
            if progress is not None:
                progress(i, len(parts), title)
            found = find(title)
            if isinstance(found, Finding):
                findings.append(found)
            else:
                unsaid[title] = found
        if outside := [f"{level:g}" for level in self.asked if level not in self.levels]:
            low, high = self.model.schedule.sigma_range
            unsaid[f"anything at noise level {', '.join(outside)}"] = (
                f"the schedule has {low:.3g} to {high:.3g}, and the levels here are "
                f"{', '.join(f'{level:g}' for level in self.levels)}"
            )
        settings = {
            "schedule": type(self.model.schedule).__name__,
            "levels": self.levels,
            "n": self.n,
            "seed": self.seed,
            "samples": len(self.samples),
            "training samples": None if self.train is None else len(self.train),
            "held-out samples": None if self.held_out is None else len(self.held_out),
        }
        return Diagnosis(findings, unsaid, settings)

    def score_error(self, title: str) -> Finding | str:
        if self.oracle is not None:
            oracle, against = self.oracle, "the exact density of the data"
            meaning = "0 is exact, 1 no better than predicting 0."
        elif self.train is not None:
            oracle, against = (
                EmpiricalImages(self.train.float()),
                f"the empirical optimum of {len(self.train)} training sample{'' if len(self.train) == 1 else 's'}",
            )
            meaning = "0 is the model that has memorised its training set: a model that generalises has a large error here."
        else:
            return "needs data: give data=NAME"
        found = score_error_by_level(
            self.model, oracle, self.levels, n=self.n, seed=self.seed, batch=self.batch
        )
        meaning = f"E |s - s*|^2 / E |s*|^2 against {against}. {meaning}"
        return _finding(
            "score_error", title, meaning, {"relative squared error": found}, unit="relative squared error"
        )

    def generalisation(self, title: str) -> Finding | str:
        if self.train is None or self.held_out is None:
            return "needs training samples and held-out ones: give data=NAME"
        if min(len(self.train), len(self.held_out)) < 2:
            return "needs at least 2 samples of each"
        device = self.model.device
        seen = self.train[_spread(len(self.train), self.n)].to(device)
        unseen = self.held_out[: self.n].to(device)
        found = {
            level: training_over_held_out(self.model, seen, unseen, level, seed=self.seed, batch=self.batch)
            for level in self.levels
        }
        meaning = (
            "Squared error of the denoiser on training samples over that on held-out ones: 1 for a model that generalises, "
            "0 for one that has memorised its training set; between them it is on the way."
        )
        return _finding("training_over_held_out", title, meaning, {"ratio": found}, unit="ratio", exact=1.0)

    def nearest(self, title: str) -> Finding | str:
        if self.train is None:
            return "needs the training samples: give data=NAME"
        if len(self.train) < 2:
            return f"needs at least 2 training samples, there is {len(self.train)}"
        drawn, train = self.samples.flatten(1).cpu().float(), self.train.flatten(1).cpu().float()
        held = None if self.held_out is None else self.held_out.flatten(1).cpu().float()
        found = memorisation(drawn, train, held)
        copies = mean_of((found.ratio < 1 / 3).double())
        series = {
            "share of copies": {0.0: copies},
            "distance ratio, nearest to second nearest": {0.0: mean_of(found.ratio)},
        }
        if found.relative is not None:
            series["distance relative to that of held-out samples"] = {0.0: mean_of(found.relative)}
        meaning = (
            "A drawn sample is a copy if its nearest training sample is three times nearer than the second. Relative to "
            "held-out samples 1 is as far as unseen data are, 0 a copy."
        )
        remarks = []
        if copies.value == 0:
            remarks.append(
                f"no copy among {len(drawn)}: the share is below {3 / len(drawn):.2g} with 95 % confidence"
            )
        made = _finding("nearest_neighbours", title, meaning, series, axis="", exact=None)
        made = made._replace(remarks=made.remarks + remarks)
        originals = self.train[found.position].cpu()
        match kind_of(self.samples.shape[1:]):
            case Images():
                pictures = torch.cat([self.samples.cpu(), originals], dim=2)[:_SHOWN]
                caption = "drawn samples, and below each the nearest training sample"
                return made._replace(pictures=pictures, caption=caption)
            case Points(dimensions=2):
                caption = "drawn samples, and the nearest training sample of each"
                return made._replace(pairs=torch.stack([self.samples.cpu(), originals], 1), caption=caption)
        return made

    def calibration(self, title: str) -> Finding | str:
        if self.data is None:
            return "needs data: give data=NAME"
        if len(self.data) < 2:
            return f"needs at least 2 samples, there is {len(self.data)}"
        found = {
            level: calibration(self.model, self.data, level, seed=self.seed, batch=self.batch)
            for level in self.levels
        }
        series = {
            "squared error over the variance that Tweedie's formula states": {
                r: c.error for r, c in found.items()
            },
            "variance of the denoised over that which it leaves": {r: c.spread for r, c in found.items()},
            "variance of the denoised over that of the data": {r: c.dispersion for r, c in found.items()},
        }
        meaning = (
            "The first two are 1 for the exact posterior mean. An error above 1: the model is surer than it is right. A "
            "spread below 1: what it returns varies less than the data allow. The third is below 1 for the exact one too: "
            "statistics of denoised data are too narrow by that factor."
        )
        made = _finding("calibration", title, meaning, series, unit="ratio", exact=1.0)
        if self.seen:
            made.remarks.append(
                "measured on training samples: a model that memorised them looks calibrated here"
            )
        return made

    def spectrum(self, title: str) -> Finding | str:
        step = max(1, math.ceil(len(self.levels) / _SPECTRUM_LEVELS))
        series, pictures = {}, None
        for level in self.levels[::step]:
            u = noisy(self.points[:_SPECTRUM_POINTS], level, self.seed)
            found = jacobian_spectrum(self.model, u, level, seed=self.seed)
            values = found.eigenvalues
            series[f"noise level {level:g}"] = {float(i): mean_of(v) for i, v in enumerate(values.T, 1)}
            if isinstance(kind_of(u.shape[1:]), Images):
                basis = found.eigenvectors[0, :8]
                scale = basis.flatten(1).abs().amax(1).clamp_min(1e-12)
                pictures = (basis / scale.reshape(-1, 1, 1, 1)).cpu()
        meaning = (
            "Eigenvalues of the denoiser's Jacobian, largest first: 1 keeps a direction, 0 removes it, above 1 the "
            "posterior is wider than the noise, as between modes; none is below 0 for an exact model, and "
            f"Gaussian data have Wiener's c / (c + r^2). Mean over {len(u)} noisy {self.whose}."
        )
        made = _finding(
            "jacobian_spectrum",
            title,
            meaning,
            series,
            unit="eigenvalue",
            axis="eigenvalue number",
            exact=None,
        )
        return made._replace(
            remarks=[], pictures=pictures, caption=f"leading directions at one sample, noise level {level:g}"
        )

    def asymmetry(self, title: str) -> Finding | str:
        found = {
            level: jacobian_asymmetry(
                self.model,
                noisy(self.points, level, self.seed),
                level,
                draws=1,
                seed=self.seed,
                batch=self.batch,
            )
            for level in self.levels
        }
        meaning = (
            "E |J - J^T|^2 / (4 E |J|^2): 0 for every exact score, which is a gradient; 1 for a pure rotation. "
            f"At noisy {self.whose}."
        )
        return _finding("jacobian_asymmetry", title, meaning, {"asymmetry": found}, unit="asymmetry")

    def residual(self, title: str) -> Finding | str:
        levels = usable_levels(self.levels, *self.model.schedule.sigma_range, margin=MARGIN)
        if not levels:
            low, high = self.model.schedule.sigma_range
            return f"needs a model of several noise levels, this one has {low:.3g} to {high:.3g}"
        model, points = self.model, self.points
        if isinstance(model, nn.Module) and points.device.type != "mps":
            model, points = deepcopy(model).double(), points.double()
        elif isinstance(model, OracleDenoiser):
            points = points.double()
        found = {
            level: fokker_planck_residual(
                model, noisy(points, level, self.seed), level, seed=self.seed, batch=self.batch
            )
            for level in levels
        }
        meaning = (
            "E |ds/dtau - grad(div s + |s|^2) / 2|^2 / E |ds/dtau|^2, tau = r^2: 0 where the scores of neighbouring levels "
            f"belong to one diffusing density, 1 for a residual as large as the change itself. At noisy {self.whose}."
        )
        name = "relative squared residual"
        made = _finding("fokker_planck_residual", title, meaning, {name: found}, unit=name)
        if points.dtype != torch.float64:
            made.remarks.append("computed in float32, whose rounding is most of it at small levels")
        return made

    def likelihood(self, title: str) -> Finding | str:
        if self.data is None or len(self.data) < 2:
            return "needs at least 2 samples of data: give data=NAME"
        try:
            found = likelihood_by_level(self.model, self.data, self.levels, seed=self.seed, batch=self.batch)
        except ValueError as error:
            return str(error)
        meaning = (
            "Bits per dimension that each band of noise levels costs, by its lower end; the last ends at "
            f"{found.edges[-1]:.4g}. With {found.prior.value:.3g} for what the prior does not know and {found.constant:.4g} "
            f"for the noise of the smallest level they add up to {_with_error(found.total)}, a bound on the negative "
            f"log-likelihood of data with noise of {found.edges[0]:.3g}. Lower is better; the excess over the exact model "
            "is the error of its score."
        )
        name = "bits per dimension"
        made = _finding("likelihood_by_level", title, meaning, {name: found.bands}, unit=name, exact=None)
        if self.seen:
            made.remarks.append(
                "measured on training samples: a model that memorised them is too likely here"
            )
        return made

    @cached_property
    def classifier(self) -> LinearClassifier | str:
        """Of clean data, or why there is none."""
        if self.train is None or self.labels is None:
            return "needs training samples with classes: give data=NAME of a data set that has them"
        if self.held_out is None or self.held_out_labels is None:
            return "needs samples with classes that were held out: give data.validate_on=val"
        if len(self.labels.unique()) < 2:
            return "needs samples of at least 2 classes"
        rows = _spread(len(self.train), _CLASSIFIED)
        return fit_linear_classifier(self.train[rows], self.labels[rows])

    def judged(self, most: int) -> tuple[Tensor, Tensor]:
        """Held-out samples and their classes."""
        assert self.held_out is not None
        assert self.held_out_labels is not None
        rows = _spread(len(self.held_out), min(most, self.n))
        return self.held_out[rows].to(self.model.device), self.held_out_labels[rows]

    def task(self, title: str) -> Finding | str:
        classify = self.classifier
        if isinstance(classify, str):
            return classify
        x, labels = self.judged(self.n)
        found = {
            level: task_gain(
                self.model, lambda v: classify(v.cpu()), x, labels, level, seed=self.seed, batch=self.batch
            )
            for level in self.levels
        }
        clean = mean_of(classify.accuracy(x.cpu(), labels))
        series = {
            "accuracy on noisy data": {r: g.noisy for r, g in found.items()},
            "accuracy on denoised data": {r: g.denoised for r, g in found.items()},
            "gain in accuracy": {r: g.gain for r, g in found.items()},
            "gain in PSNR": {r: g.psnr_gain for r, g in found.items()},
        }
        meaning = (
            "A linear classifier of clean data on noisy and on denoised held-out samples. A gain in decibels with a loss of "
            f"accuracy removes what a class is told by. Clean data: {_with_error(clean)}."
        )
        made = _finding(
            "task_metric", title, meaning, series, unit="accuracy", units={"gain in PSNR": "dB"}, exact=None
        )
        return made._replace(remarks=[])

    def certificate(self, title: str) -> Finding | str:
        classify = self.classifier
        if isinstance(classify, str):
            return classify
        x, labels = self.judged(_CERTIFIED)
        levels = [r for r in self.levels if r >= 0.1] or self.levels[-1:]
        series: dict[str, ByLevel] = {}
        for level in dict.fromkeys((levels[0], levels[len(levels) // 2])):
            for name, model in (("denoised", self.model), ("noisy", None)):
                found = certified_radius(
                    lambda v: classify(v.cpu()), x, level, model=model, n=_CERTIFIED_DRAWS,
                    confidence=_CERTIFIED_CONFIDENCE, seed=self.seed, batch=self.batch,
                )  # fmt: skip
                right = torch.where(found.label == labels, found.radius, torch.zeros_like(found.radius))
                series.setdefault(f"mean radius, classifier of {name} data", {})[level] = mean_of(right)
                series.setdefault(f"certified accuracy, classifier of {name} data", {})[level] = mean_of(
                    (right > 0).double()
                )
        largest = float(
            torch.special.ndtri(torch.tensor((1 - _CERTIFIED_CONFIDENCE) ** (1 / _CERTIFIED_DRAWS)))
        )
        meaning = (
            "Euclidean norm, in the units of the data, below which no perturbation changes what a linear classifier says of "
            "most noisy samples, with the model before it and without; 0 where it is wrong or abstains. Each holds with "
            f"{_CERTIFIED_CONFIDENCE:.0%} confidence; {_CERTIFIED_DRAWS} draws certify at most {largest:.3g} noise levels."
        )
        units = {name: "radius" if "radius" in name else "accuracy" for name in series}
        made = _finding("certified_radius", title, meaning, series, units=units, exact=None)
        return made._replace(
            remarks=[
                f"{len(x)} samples; scoreexp.diagnostics.certified.certified_radius takes more of them and of draws"
            ]
        )

    def features(self, title: str) -> Finding | str:
        classify = self.classifier
        if isinstance(classify, str):
            return classify
        if not isinstance(self.model, Denoiser):
            return "needs a model with a network"
        assert self.train is not None
        assert self.labels is not None
        rows = _spread(len(self.train), _PROBED)
        train = self.train[rows].to(self.model.device), self.labels[rows].to(self.model.device)
        x, labels = self.judged(self.n)
        try:
            found = probe_by_level(
                self.model, train, (x, labels.to(x.device)), self.levels, seed=self.seed, batch=self.batch
            )
        except ValueError as error:
            return str(error)
        pixels = fit_linear_classifier(train[0].cpu(), train[1].cpu())
        plain = mean_of(pixels.accuracy(x.cpu(), labels))
        meaning = (
            "Accuracy of a linear probe of the narrowest hidden layer on noisy data: where it is highest the network knows "
            f"most of the classes. A probe of {len(rows)} clean samples themselves: {_with_error(plain)}."
        )
        return _finding("feature_probes", title, meaning, {"accuracy": found}, unit="accuracy", exact=None)

    def diti(self, title: str) -> Finding | str:
        if not self.diti_steps:
            return "needs a training of its own: give diti_steps=1000"
        classify = self.classifier
        if isinstance(classify, str):
            return classify
        edges = [self.levels[i] for i in _spread(len(self.levels), _BANDS + 1).unique().tolist()]
        if len(edges) < 2 or edges != sorted(set(edges)):
            return "needs at least 2 ascending noise levels: give levels=[0.1,1]"
        assert self.train is not None
        assert self.labels is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = DiTi(event_shape=tuple(self.train.shape[1:]), edges=tuple(edges))
        device = self.model.device
        train = self.train.to(device)
        fit_diti(network.to(device), self.model, train, steps=self.diti_steps, seed=self.seed)
        rows = _spread(len(train), _CLASSIFIED)
        x, labels = self.judged(self.n)
        with torch.no_grad():
            seen, unseen = (network.encode(part).cpu() for part in (train[rows], x))
        found, left = {}, {}
        for k, (lower, upper) in enumerate(pairwise(edges)):
            probe = fit_linear_classifier(seen[:, k], self.labels[rows])
            found[lower] = mean_of(probe.accuracy(unseen[:, k], labels))
            left[lower] = diti_relative_loss(network, self.model, x, math.sqrt(lower * upper), seed=self.seed)
        whole = mean_of(fit_linear_classifier(seen, self.labels[rows]).accuracy(unseen, labels))
        meaning = (
            "Accuracy of a linear probe of each block of DiTi's representation, by the lower end of its band of noise "
            f"levels: where it is high, that band takes the classes away. All blocks: {_with_error(whole)}; the last band "
            f"ends at {edges[-1]:g}. The loss is that of held-out samples in the middle of each band after "
            f"{self.diti_steps} steps, over that of a decoder that returns 0: near 1 nothing was learnt there."
        )
        return _finding(
            "diti_blocks",
            title,
            meaning,
            {"accuracy": found, "loss": left},
            units={"accuracy": "accuracy", "loss": "relative loss"},
            exact=None,
        )

    def stopping(self, title: str) -> Finding | str:
        error = next((name for name in POPULATION if any(name in row for row in self.history)), None)
        rows = [row for row in self.history if error in row and "val/ssim" in row]
        if error is None or not rows:
            return f"needs val/ssim and {' or '.join(POPULATION)} in the table of the run: train with callbacks=population"
        found = compare_stopping(
            [int(row["step"]) for row in rows],
            [row["val/ssim"] for row in rows],
            [row[error] for row in rows],
        )
        meaning = (
            f"The best SSIM is at step {found.stopped}, the least {error} at step {found.least}: stopping by SSIM has "
            f"{found.error_at_stop:.4g} instead of {found.least_error:.4g}. One run, {len(rows)} evaluations."
        )
        series = {
            error: {float(row["step"]): Estimate(row[error], 0.0, 1) for row in rows},
            "val/ssim": {float(row["step"]): Estimate(row["val/ssim"], 0.0, 1) for row in rows},
        }
        return _finding(
            "ssim_stopping",
            title,
            meaning,
            series,
            units={name: name for name in series},
            axis="step",
            exact=None,
        )

    def agreement(self, title: str) -> Finding | str:
        if self.other is None:
            return "needs a model of the other half of the data: give other=FILE"
        if self.data is None or len(self.data) < 2:
            return "needs at least 2 samples of data: give data=NAME"
        levels = usable_levels(self.levels, *self.other.schedule.sigma_range)
        found = {
            level: split_half_disagreement(self.model, self.other, self.data, level, seed=self.seed)
            for level in levels
        }
        meaning = (
            "E |D_1 - D_2|^2 over their mean squared error: 0 where both learnt the same distribution, of the order of 1 "
            "where each memorised its own samples."
        )
        return _finding(
            "split_half_disagreement", title, meaning, {"disagreement": found}, unit="disagreement"
        )


def _spread(size: int, most: int) -> Tensor:
    """At most so many positions, evenly over all."""
    return torch.linspace(0, size - 1, min(size, most)).round().long()


def _finding(
    name: str,
    title: str,
    meaning: str,
    series: dict[str, ByLevel],
    *,
    unit: str = "",
    units: Mapping[str, str] = MappingProxyType({}),
    axis: str = "noise level",
    exact: float | None = 0.0,
) -> Finding:
    """A finding with remarks on what its samples are too few for."""
    remarks = []
    for what, values in series.items():
        short = {
            at: need for at, estimate in values.items() if (need := _needed(estimate, exact)) is not None
        }
        if short:
            key = "n" if axis else "samples"
            where = "" if not axis else f" at {axis} {', '.join(f'{at:g}' for at in short)}"
            remarks.append(
                f"too few samples for {what}{where}: its standard error is above a tenth; {max(short.values())} would "
                f"bring it there ({key}={max(short.values())}, of data that have as many)"
            )
        if undefined := [f"{at:g}" for at, estimate in values.items() if math.isnan(estimate.value)]:
            remarks.append(
                f"no value for {what} at {axis} {', '.join(undefined)}: what it is divided by is not above 0 there"
            )
    in_units = {what: units.get(what, unit) for what in series}
    return Finding(name, title, meaning, axis, series, remarks, units=in_units)


def _with_error(estimate: Estimate) -> str:
    error = (
        f" +- {estimate.error:.2g}" if math.isfinite(estimate.error) else " (error unknown)"
    )  # of a single sample
    return f"{estimate.value:.4g}{error}"


def _needed(estimate: Estimate, exact: float | None) -> int | None:
    scale = exact if exact else abs(estimate.value)
    return estimate.needed(max(RELATIVE * scale, ENOUGH))
