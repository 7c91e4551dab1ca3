#!/usr/bin/env bash
# torch 2.13.0 on a CPU: torch.randn of the same seed gives the first image of a batch other noise in its last pixels than the same image alone:
# a draw of 16 numbers or more whose count is no multiple of 16 draws its last 16 again. Of 10 x 10 pixels 84 agree and 16 do not, whether
# in float32 or float64; 28 x 28, a multiple of 16, agrees wholly, and torch.rand always does. Below 16 numbers another
# algorithm is taken: of seven points of a plane (14 numbers) and eight (16) not a single number agrees.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$tmp/venv/bin/python" - <<'P'
import torch


def same(draw, one, more, dtype=torch.float32):
    """How many numbers of a draw of shape `one` begin a draw of shape `more` from the same seed."""
    first, second = (draw(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).flatten() for shape in (one, more))
    return [int(place) for place in (first == second[: len(first)]).nonzero()]


for dtype in (torch.float32, torch.float64):
    for edge in (10, 28, 50):
        agree = same(torch.randn, (1, 1, edge, edge), (3, 1, edge, edge), dtype)
        print(f"randn, {dtype}, {edge} x {edge} pixels, alone and first of three: {len(agree)} of {edge**2} numbers agree")
        assert agree == list(range(edge**2 - (16 if edge**2 % 16 else 0))), "this has changed"
agree = same(torch.rand, (1, 1, 10, 10), (3, 1, 10, 10))
print(f"rand, 10 x 10 pixels: {len(agree)} of 100 agree")
assert len(agree) == 100, "this has changed"
agree = same(torch.randn, (7, 2), (8, 2))
print(f"randn, seven points and eight: {len(agree)} of 14 numbers agree")
assert not agree, "this has changed"
P
