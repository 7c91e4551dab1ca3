"""What `construct` says of what it cannot make."""

import pytest

from scoreexp.core.construct import construct
from scoreexp.restorers import Restorer


class Unfinished(Restorer):
    """Forgets ``restore``."""


@pytest.mark.parametrize(
    ("target", "given", "error", "said"),
    [
        (f"{__name__}.Unfinished", {}, ValueError, "restorer: Unfinished does not define restore: write it"),
        (
            "scoreexp.schedules.VP",
            {"beta_min": -1},
            ValueError,
            "restorer: VP: beta_min=-1 must be a number > 0",
        ),
        (
            "scoreexp.schedules.VP",
            {"beta_min": "a"},
            TypeError,
            "restorer: VP: beta_min='a' must be a number > 0",
        ),
    ],
)
def test_the_key_stands_before_what_is_wrong(target, given, error, said):
    with pytest.raises(error) as caught:
        construct({"_target_": target, **given}, "restorer")
    assert str(caught.value) == said
