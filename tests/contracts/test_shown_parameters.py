"""What a user may set of data and callbacks is written in their yaml files, so that ``--cfg job`` shows it."""

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import composed
from omegaconf import OmegaConf

from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.signatures import from_run, resolve, signature
from scoreexp.train import PROVIDED

CHOICES = [(g, path.stem) for g in ("callbacks", "data") for path in sorted((conf_dir() / g).glob("*.yaml"))]


def nodes(config: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything of scoreexp that is built, by its place."""
    if isinstance(config, dict):
        if str(config.get("_target_")).startswith("scoreexp."):
            yield path, config
        for key, value in config.items():
            yield from nodes(value, f"{path}.{key}")


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_parameter_that_a_user_may_set_is_shown(group, name):
    config = OmegaConf.to_container(composed("train", f"{group}={name}"))
    for path, node in nodes(config[group], group):
        found = signature(resolve(node["_target_"]))
        assert set(found.parameters) - set(node) <= PROVIDED.get(path, set()) | set(from_run(found)), path
