"""``python -m scoreexp.compare restorers=[...]``: the configurations of its two forms, on tasks and under noises."""

from collections.abc import Sequence

from scoreexp.app.launch import run_app

SHARED = {
    **dict.fromkeys(("restorers", "trust"), "list[str]"),
    **dict.fromkeys(("input", "device", "run_dir"), "str"),
    "ckpt": "str | list[str] | None",
    "weights": "Literal['averaged', 'raw']",
    "count": "PositiveInt | None",
}
OF_TASKS = {
    **SHARED,
    "tasks": "list[str]",
    "nfe": "PositiveInt | None",
    "seconds": "PositiveFloat | None",
    "guidance": "Node | None",
}
OF_NOISES = {
    **SHARED,
    "noises": "list[str]",
    "reference": "str | None",
    "white_level": "PositiveInt | None",
    "seed": "int",
}


def is_asked_for(argv: Sequence[str]) -> bool:
    """Whether a command line is of one of these forms.

    >>> is_asked_for(["noises=[estimated]", "input=a.png"]), is_asked_for(["sweep=compare_quick"])
    (True, False)
    """
    return any(word.startswith(("restorers=", "noises=")) for word in argv)


def main(argv: Sequence[str]) -> int:
    """The exit code of a command line: of noises where it has ``noises=``, else of tasks."""
    if any(word.startswith("noises=") for word in argv):
        task = "scoreexp.app.commands.denoise_comparison:compare"
        return run_app("compare_denoising", task, schema=OF_NOISES, argv=argv, module="scoreexp.compare")
    return run_app(
        "compare_restorers",
        "scoreexp.app.commands.restore_comparison:compare",
        schema=OF_TASKS,
        provided={"guidance": {"model"}},
        argv=argv,
        module="scoreexp.compare",
    )
