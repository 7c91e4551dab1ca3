"""Krylov methods on callables, for batches of linear systems A_b x_b = b_b that share nothing but their shape.

Every vector is an array [B, ...] whose first axis numbers the systems; ``matvec`` and ``precondition`` map such an array
to one of the same shape, system by system. One call advances all systems, and systems that have met their tolerance stay
where they are. Preconditioning is from the right, so that residuals are those of the system as given.

References: Saad, "Iterative Methods for Sparse Linear Systems", 2003,
https://www-users.cse.umn.edu/~saad/IterMethBook_2ndEd.pdf (Arnoldi, GMRES); van der Vorst, "Bi-CGSTAB: A Fast and
Smoothly Converging Variant of Bi-CG", 1992, https://doi.org/10.1137/0913035.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Operator = Callable[[Array], Array]


class KrylovResult(NamedTuple):
    """Solutions with their diagnostics per system; an iteration is one product with A for GMRES, two for BiCGSTAB."""

    x: Array  # [B, ...]
    iterations: NDArray[np.intp]  # [B]
    residuals: Array  # [B] |b - A x| / |b|
    converged: NDArray[np.bool_]  # [B]


def inner(x: Array, y: Array) -> Array:
    """Inner products per system, [B].

    >>> import numpy as np
    >>> inner(np.ones((2, 3)), np.arange(6.0).reshape(2, 3))
    array([ 3., 12.])
    """
    return np.einsum("bi,bi->b", x.reshape(len(x), -1), y.reshape(len(y), -1))


def bicgstab(
    matvec: Operator,
    b: Array,
    x0: Array | None = None,
    *,
    tol: float = 1e-8,
    max_iter: int = 1000,
    precondition: Operator | None = None,
) -> KrylovResult:
    """BiCGSTAB for general A.

    A system whose recurrence breaks down, or whose recursive residual has drifted from the true one, starts afresh from
    its current solution.

    >>> import numpy as np
    >>> diagonal = np.array([1.0, 2.0, 4.0])
    >>> bicgstab(lambda x: diagonal * x, np.ones((1, 3))).x.round(6)
    array([[1.  , 0.5 , 0.25]])

    Args:
        matvec: A.
        b: right-hand sides [B, ...].
        x0: starting vectors; None is zero.
        tol: stop at |b - A x| <= tol |b|; 0 < tol < 1.
        max_iter: most iterations per system.
        precondition: approximation of A^-1; None is the identity.

    Raises ValueError for bad shapes or parameters; a system that does not converge is reported, not raised.
    """
    precondition = precondition or _identity
    x, r, target = _start(matvec, b, x0, tol, max_iter)
    iterations = np.zeros(len(b), dtype=np.intp)
    used = 0
    while used < max_iter and (_norm(r) > target).any():
        shadow, p, rho = r, r, inner(r, r)
        while used < max_iter:
            active = _norm(r) > target
            if not active.any():
                break
            p_hat = precondition(p)
            v = matvec(p_hat)
            alpha = _expand(_ratio(rho, inner(shadow, v), active), b)
            s = r - alpha * v
            s_hat = precondition(s)
            t = matvec(s_hat)
            omega = _ratio(inner(t, s), inner(t, t), active)
            x += alpha * p_hat + _expand(omega, b) * s_hat
            r = s - _expand(omega, b) * t
            iterations += active
            used += 1
            rho_next = inner(shadow, r)
            stuck = active & (abs(rho_next) <= _EPS * _norm(shadow) * _norm(r))
            if stuck.any():
                break
            beta = _ratio(rho_next * alpha.reshape(-1), rho * omega, active)
            p = r + _expand(beta, b) * (p - _expand(omega, b) * v)
            rho = rho_next
        r = b - matvec(x)
    return _result(b, x, r, iterations, target)


def gmres(
    matvec: Operator,
    b: Array,
    x0: Array | None = None,
    *,
    tol: float = 1e-8,
    max_iter: int = 1000,
    restart: int = 20,
    precondition: Operator | None = None,
) -> KrylovResult:
    """Restarted GMRES for general A, |b - A x| minimised over each Krylov space of dimension ``restart``.

    Arguments as for ``bicgstab``; ``restart`` >= 1 basis vectors are held.

    >>> import numpy as np
    >>> diagonal = np.array([1.0, 2.0, 4.0])
    >>> result = gmres(lambda x: diagonal * x, np.ones((1, 3)))
    >>> result.x.round(6), result.iterations
    (array([[1.  , 0.5 , 0.25]]), array([3]))
    """
    if restart < 1:
        raise ValueError(f"restart={restart} must be at least 1")
    precondition = precondition or _identity
    x, r, target = _start(matvec, b, x0, tol, max_iter)
    iterations = np.zeros(len(b), dtype=np.intp)
    used = 0
    while used < max_iter and (_norm(r) > target).any():
        size = min(restart, max_iter - used)
        beta = _norm(r)
        basis = [r / _expand(np.where(beta > 0, beta, 1.0), b)]
        hessenberg = np.zeros((len(b), size + 1, size))
        rotations = np.zeros((len(b), size, 2))
        projected = np.zeros((len(b), size + 1))
        projected[:, 0] = beta
        length = np.zeros(len(b), dtype=np.intp)
        for k in range(size):
            active = abs(projected[:, k]) > target
            if not active.any():
                break
            column, direction = _orthogonalise(matvec(precondition(basis[k])), basis)
            basis.append(direction)
            hessenberg[:, : k + 2, k] = column
            _rotate(hessenberg, rotations, projected, k)
            length += active
            iterations += active
            used += 1
        x += precondition(_combine(basis, _back_substitute(hessenberg, projected, length)))
        r = b - matvec(x)
    return _result(b, x, r, iterations, target)


def arnoldi(matvec: Operator, r: Array, size: int) -> tuple[Array, Array]:
    """Orthonormal Krylov basis of one system: A V_k = V_(k+1) H.

    >>> import numpy as np
    >>> diagonal = np.array([1.0, 2.0, 4.0])
    >>> basis, hessenberg = arnoldi(lambda x: diagonal * x, np.ones(3), size=2)
    >>> np.allclose(basis[:2] * diagonal, hessenberg.T @ basis)
    True

    Args:
        matvec: A for one vector (any shape).
        r: starting vector, not zero.
        size: dimension of the Krylov space; the basis is shorter where the space is exhausted.

    Returns:
        V [k + 1, ...] with k <= size (k vectors alone when the space is exhausted) and H [len(V), k].
    """
    norm = float(np.linalg.norm(r))
    if not norm > 0 or not np.isfinite(norm):
        raise ValueError(f"starting vector has norm {norm}: it must be positive and finite")
    if size < 1:
        raise ValueError(f"size={size} must be at least 1")
    basis = np.empty((size + 1, *r.shape))
    hessenberg = np.zeros((size + 1, size))
    basis[0] = r / norm
    for k in range(size):
        w = matvec(basis[k])
        scale = np.linalg.norm(w)
        known = basis[: k + 1].reshape(k + 1, -1)
        for _ in range(2):  # the second pass restores orthogonality lost to cancellation in the first
            overlap = known @ w.reshape(-1)
            hessenberg[: k + 1, k] += overlap
            w = w - (overlap @ known).reshape(w.shape)
        rest = np.linalg.norm(w)
        if rest <= 100 * _EPS * scale:
            return basis[: k + 1], hessenberg[: k + 1, : k + 1]
        hessenberg[k + 1, k] = rest
        basis[k + 1] = w / rest
    return basis, hessenberg


_EPS = float(np.finfo(np.float64).eps)


def _identity(x: Array) -> Array:
    return x


def _norm(x: Array) -> Array:
    return np.sqrt(inner(x, x))


def _expand(c: Array, like: Array) -> Array:
    return c.reshape(-1, *(1,) * (like.ndim - 1))


def _ratio(numerator: Array, denominator: Array, active: NDArray[np.bool_]) -> Array:
    """Numerator / denominator where active and defined, else 0, which leaves a system where it is."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=active & (denominator != 0))


def _start(
    matvec: Operator, b: Array, x0: Array | None, tol: float, max_iter: int
) -> tuple[Array, Array, Array]:
    if b.ndim < 2:
        raise ValueError(f"b has shape {b.shape}: the first axis numbers the systems, use b[None] for one")
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(f"x0 has shape {x0.shape}: it must have that of b, {b.shape}")
    if not 0 < tol < 1 or max_iter < 1:
        raise ValueError(f"tol={tol} must lie in (0, 1) and max_iter={max_iter} be at least 1")
    x = np.zeros_like(b) if x0 is None else x0.copy()
    return x, b - matvec(x) if x0 is not None else b.copy(), tol * _norm(b)


def _result(b: Array, x: Array, r: Array, iterations: NDArray[np.intp], target: Array) -> KrylovResult:
    residual = _norm(r)
    size = _norm(b)
    relative = np.divide(residual, size, out=residual.copy(), where=size > 0)
    return KrylovResult(x, iterations, relative, residual <= target)


def _orthogonalise(w: Array, basis: list[Array]) -> tuple[Array, Array]:
    """Gram-Schmidt coefficients [B, k + 2] (the norm of the rest last) and the next basis vectors."""
    column = np.empty((len(w), len(basis) + 1))
    for k, v in enumerate(basis):
        column[:, k] = inner(v, w)
        w = w - _expand(column[:, k], w) * v
    norm = column[:, -1] = _norm(w)
    return column, w / _expand(np.where(norm > 0, norm, 1.0), w)


def _rotate(hessenberg: Array, rotations: Array, projected: Array, k: int) -> None:
    """Givens rotations that bring column k of the Hessenberg matrices to triangular form."""
    for j in range(k):
        c, s = rotations[:, j, 0], rotations[:, j, 1]
        upper, lower = hessenberg[:, j, k].copy(), hessenberg[:, j + 1, k].copy()
        hessenberg[:, j, k] = c * upper + s * lower
        hessenberg[:, j + 1, k] = c * lower - s * upper
    upper, lower = hessenberg[:, k, k], hessenberg[:, k + 1, k]
    length = np.hypot(upper, lower)
    safe = np.where(length > 0, length, 1.0)
    rotations[:, k, 0], rotations[:, k, 1] = np.where(length > 0, upper / safe, 1.0), lower / safe
    hessenberg[:, k, k], hessenberg[:, k + 1, k] = length, 0.0
    projected[:, k + 1] = -rotations[:, k, 1] * projected[:, k]
    projected[:, k] *= rotations[:, k, 0]


def _back_substitute(hessenberg: Array, projected: Array, length: NDArray[np.intp]) -> Array:
    """Coefficients y [B, k] of the least-squares solutions, each over the system's own number of columns."""
    y = np.zeros((len(hessenberg), int(length.max())))
    for k in reversed(range(y.shape[1])):
        rest = projected[:, k] - np.einsum("bj,bj->b", hessenberg[:, k, k + 1 : y.shape[1]], y[:, k + 1 :])
        y[:, k] = _ratio(rest, hessenberg[:, k, k], k < length)
    return y


def _combine(basis: list[Array], y: Array) -> Array:
    out = _expand(y[:, 0], basis[0]) * basis[0]
    for k in range(1, y.shape[1]):
        out += _expand(y[:, k], basis[0]) * basis[k]
    return out
