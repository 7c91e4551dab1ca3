"""The choice of a solver for ``solver="auto"``."""

from scoreexp.numerics.fokker_planck.factorised import Factorised
from scoreexp.numerics.fokker_planck.krylov import BiCGSTAB
from scoreexp.numerics.fokker_planck.problem import Boundary, Drift, Solver
from scoreexp.numerics.fokker_planck.spectral import Spectral


def fastest(boundary: Boundary, drift: Drift | None) -> Solver:
    """The fastest valid solver, as measured by ``benchmarks/krylov.py``.

    Without flux through the border ``spectral``, or ``factorised`` when there is a drift; else ``bicgstab``.

    >>> fastest("neumann", drift=None).name, fastest("zero", drift=None).name
    ('spectral', 'bicgstab')
    """
    if boundary == "neumann":
        return Spectral() if drift is None else Factorised()
    return BiCGSTAB()
