"""Restore recordings of speech by a model that was trained on pairs of their spectrograms."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from scoreexp.app.early_checks import require_input
from scoreexp.app.picture_files import output_folder, require_absent, require_none_failed, with_each
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import restorer_of, sampler_settings
from scoreexp.app.terminal import say_labelled
from scoreexp.core.construct import construct
from scoreexp.core.errors import UserError
from scoreexp.data import CompressedSTFT
from scoreexp.data.suffixes import named_after
from scoreexp.data.wav import SUFFIX, Wav, read_wav, write_wav
from scoreexp.denoisers import DenoiserBase
from scoreexp.restorers import Conditioned, Restorer, restore_speech
from scoreexp.restorers.images import Tiles
from scoreexp.runs.directory import shown
from scoreexp.runs.model import load, require_trusted
from scoreexp.system.devices import choose_device
from scoreexp.system.json_files import write_json

DONE = "_restored"
OF_IMAGES = ("task", "mask", "kernel", "sigma", "label", "white_level", "guidance", "simulate", "strip")


class RestoredWav(NamedTuple):
    """One recording's way through the command.

    Attributes:
        source: the input.
        target: the output.
        values: evaluations, seconds, and with a reference the SI-SDR of output and input in dB.
    """

    source: Path
    target: Path
    values: dict[str, float]


class _Speech(NamedTuple):
    """What is the same for all recordings of a call."""

    model: DenoiserBase
    restorer: Restorer
    spectrogram: CompressedSTFT
    rate: int
    cfg: DictConfig


def restore_wav(cfg: DictConfig) -> list[RestoredWav]:
    """Restore ``cfg.input``, a WAV file or the WAV files of a folder; one that fails ends no batch."""
    if given := [key for key in OF_IMAGES if cfg.get(key)]:
        raise UserError(
            f"input={cfg.input} is speech, whose damage its model has learnt: leave out {', '.join(given)}"
        )
    source = Path(cfg.input).expanduser()
    pairs = _input_and_output(require_input(source), cfg.output)
    for _, target in pairs:
        require_absent(target, cfg.overwrite)
    values = pairs[0][1].with_suffix(".json") if source.is_file() else pairs[0][1].parent / "restored.json"
    require_absent(values, cfg.overwrite)
    speech = _speech(cfg)
    done, failed = with_each(pairs, lambda path, target: _restore_file(speech, path, target))
    if done:
        rows: list[dict[str, Any]] = [
            {"input": str(item.source), "output": str(item.target), **item.values} for item in done
        ]
        asked = {"ckpt": cfg.ckpt, "seed": cfg.seed, "restorer": type(speech.restorer).__name__}
        write_json(values, {**asked, "recordings": rows})
        say_labelled("values", shown(values))
    require_none_failed(failed, len(pairs))
    return done


def _input_and_output(source: Path, output: str | None) -> list[tuple[Path, Path]]:
    if source.is_dir():
        folder = output_folder(source, output, DONE)
        found = sorted(path for path in source.iterdir() if path.suffix.lower() == SUFFIX)
        return [(path, folder / path.name) for path in found]
    target = named_after(source, DONE) if output is None else Path(output).expanduser()
    if target.is_dir():
        target = target / source.name
    return [(source, target)]


def _speech(cfg: DictConfig) -> _Speech:
    if cfg.ckpt is None:
        raise UserError(
            f"input={cfg.input} is speech, of which no model comes with the package: give ckpt=RUN/checkpoints/best.ckpt "
            "of a run of experiment=speech_ouve"
        )
    model = load(cfg.ckpt, weights=cfg.weights, device=str(choose_device(cfg.device)), trust=tuple(cfg.trust))
    data = model.record.get("config", {}).get("data") or {}
    if "spectrogram" not in data:
        raise UserError(
            f"{cfg.ckpt} was not trained on speech: give one of a run of data=speech, or pictures as the input"
        )
    trust = {"scoreexp.data", *cfg.trust}
    require_trusted(data["spectrogram"], "data.spectrogram", trust)
    spectrogram: CompressedSTFT = construct(data["spectrogram"], "data.spectrogram")
    restorer = restorer_of(cfg) or Conditioned(construct(sampler_settings(cfg, model.record), "sampler"))
    return _Speech(model, restorer, spectrogram, int(data["rate"]), cfg)


def _restore_file(speech: _Speech, source: Path, target: Path) -> RestoredWav:
    cfg = speech.cfg
    wav = read_wav(source, speech.rate)
    reference = _reference(cfg, source, speech.rate)
    if reference is not None and len(reference) != len(wav.samples):
        raise UserError(
            f"the reference has {len(reference)} samples, {shown(source)} {len(wav.samples)}: give one of its length"
        )
    wave = torch.from_numpy(wav.samples)
    with StepProgress(f"restoring {source.name}", part="tile") as progress:
        restored = restore_speech(
            speech.restorer,
            speech.model,
            wave,
            speech.spectrogram,
            seed=cfg.seed,
            tiles=Tiles(cfg.tile, cfg.overlap),
            callback=progress.step,
            progress=progress.part_done,
            warn=lambda text: say_labelled("note", text),
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    require_absent(target, cfg.overwrite)
    clipped = write_wav(target, Wav(restored.wave.cpu().numpy(), wav.rate, wav.is_float))
    say_labelled(
        "restored",
        f"{shown(target)} ({len(wave) / wav.rate:.1f} s of speech, {type(speech.restorer).__name__}, {restored.nfe} "
        f"evaluations, {restored.seconds:.1f} s)",
    )
    if clipped:
        say_labelled("warning", f"{clipped} of {len(wave)} samples were clipped to 16 bits: lower the input")
    values: dict[str, float] = {"nfe": restored.nfe, "seconds": restored.seconds}
    if reference is not None:
        clean = torch.from_numpy(reference)
        for name, estimate in (("si_sdr", restored.wave.cpu()), ("si_sdr_input", wave)):
            values[name] = float(scale_invariant_signal_distortion_ratio(estimate, clean))
        say_labelled("quality", f"SI-SDR {values['si_sdr']:.2f} dB, input {values['si_sdr_input']:.2f} dB")
    return RestoredWav(source, target, values)


def _reference(cfg: DictConfig, source: Path, rate: int) -> Any:
    """The clean samples to measure against, of ``cfg.reference`` or of the file of the same name there; None without."""
    if cfg.reference is None:
        return None
    path = Path(cfg.reference).expanduser()
    return read_wav(path / source.name if path.is_dir() else path, rate).samples
