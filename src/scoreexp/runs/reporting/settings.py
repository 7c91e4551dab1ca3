"""The settings of runs: which make up a method, which must agree for results to be comparable, which differ."""

from collections.abc import Mapping
from typing import Any

# Settings of the data that say how a method trains or where files lie, not what is measured.
_NOT_MEASURED = {
    "batch_size", "num_workers", "augment", "rotation", "seed", "root", "cache", "download", "on_bad_image",
}  # fmt: skip
_ONLY_SHOWN = {"monitor.pictures", "monitor.intermediate", "monitor.shown_levels"}
_OF_THE_METHOD = "monitor.restorer."  # operator and noise are conditions, what undoes them is not
_NOT_SETTINGS = {"run_dir", "resume", "dry_run", "seed", "data.seed"} | {
    "callbacks.stop.mode", "callbacks.checkpoints.mode",  # follow from the metrics that are monitored
    "callbacks.distribution.folder",  # below run_dir
}  # fmt: skip
_ABSENT = "–"


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values.

    >>> flattened({"seed": 7, "data": {"size": 32}})
    {'seed': 7, 'data.size': 32}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def method_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes up a method: everything but seed and folders, flat.

    >>> method_settings({"seed": 7, "run_dir": "outputs", "network": {"width": 64}})
    {'network.width': 64}
    """
    return {key: value for key, value in flattened(config).items() if key not in _NOT_SETTINGS}


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Settings in which the configurations differ: key to value by label; "–" where one has no such key.

    What only one side has as a whole, such as an embedding, is one row: the class that it is built by.

    >>> small, large = {"network": {"width": 64, "blocks": 3}}, {"network": {"width": 128, "blocks": 3}}
    >>> differences({"small": small, "large": large})
    {'network.width': {'small': '64', 'large': '128'}}
    """
    flat = {label: method_settings(config) for label, config in configs.items()}
    rows: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        values = {label: shown_value(key, settings.get(key, _ABSENT)) for label, settings in flat.items()}
        if key != "name" and len(set(values.values())) > 1:
            rows[key] = values
    for key in [key for key in rows if any(other.startswith(f"{key}.") for other in rows)]:
        target = rows.get(f"{key}._target_", {})
        rows[key] = {
            label: value if value != _ABSENT else target.get(label, _ABSENT)
            for label, value in rows[key].items()
        }
        having = [label for label, value in rows[key].items() if value != "null"]
        for other in [other for other in rows if other.startswith(f"{key}.")]:
            if (
                len({rows[other][label] for label in having}) <= 1
            ):  # else it differs between those that have it
                del rows[other]
    return {key.removesuffix("._target_"): values for key, values in rows.items()}


def shown_value(key: str, value: Any) -> str:
    """The value of a setting as text: of ``_target_`` the class.

    >>> shown_value("data._target_", "scoreexp.data.MNIST")
    'MNIST'
    """
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def conditions(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for two results to be comparable: the data and the way they are measured, flat.

    >>> conditions({"data": {"size": 32, "batch_size": 16}, "callbacks": {"monitor": {"sigma": 0.1}}})
    {'data.size': 32, 'monitor.sigma': 0.1}
    """
    data = flattened(config.get("data") or {}, "data.")
    measured = {key: value for key, value in data.items() if key.split(".")[1] not in _NOT_MEASURED}
    monitor = flattened((config.get("callbacks") or {}).get("monitor") or {}, "monitor.")
    return measured | {
        key: value
        for key, value in monitor.items()
        if key not in _ONLY_SHOWN and not key.startswith(_OF_THE_METHOD)
    }
