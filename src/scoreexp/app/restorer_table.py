"""``python -m scoreexp.compare restorers=[...] tasks=[...]``: the configuration of that form of the command."""

from scoreexp.app.launch import run_app

SCHEMA = {
    **dict.fromkeys(("restorers", "tasks", "trust"), "list[str]"),
    **dict.fromkeys(("input", "device", "run_dir"), "str"),
    "ckpt": "str | list[str] | None",
    "weights": "Literal['averaged', 'raw']",
    **dict.fromkeys(("count", "nfe"), "PositiveInt | None"),
    "seconds": "PositiveFloat | None",
    "guidance": "Node | None",
}


def main() -> int:
    """The exit code."""
    return run_app(
        "compare_restorers",
        "scoreexp.app.commands.restore_comparison:compare",
        schema=SCHEMA,
        provided={"guidance": {"model"}},
        module="scoreexp.compare",
    )
