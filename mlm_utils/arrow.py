"""Least squares in blocks and a border: the shape that groups give to a multilevel model.

A row of a multilevel model involves what all rows share (the population) and the effects of its own
groups, but none of another group. With the shared numbers last, ``I + A' A`` has blocks along its
diagonal and a border: an arrow. Its Cholesky factor costs a little for each block, where one of a
full matrix grows with the cube of all effects together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

CANDIDATES = 32  # borders that are tried
UNROLLED = 16  # rows at most of a root that is written out: far faster than a call of LAPACK
FEW = 25  # entries at most of a matrix product that is written out


class Arrow:
    """Where the entries of a matrix with many zeros stand: its blocks and its border.

    Parameters
    ----------
    rows, columns : array of int
        The entries of the matrix that are not zero, shape ``(n_entries,)`` each.
    shape : tuple of int
        Rows and columns of the matrix, ``(n, size)``.

    Attributes
    ----------
    border : array of int
        Columns that rows of several blocks share, shape ``(n_border,)``.
    blocks : array of int
        Columns of each block, shape ``(n_blocks, width)``; `size` where a block has fewer.
    block_rows : array of int
        Rows of each block, shape ``(n_blocks, height)``; `n` where a block has fewer.
    """

    def __init__(self, rows, columns, shape):
        self.n, self.size = shape
        rows, columns = np.asarray(rows), np.asarray(columns)
        counts = np.bincount(columns, minlength=self.size)
        order = np.argsort(-counts, kind="stable")
        # A border takes the columns with most rows, and all that have equally many.
        steps = np.flatnonzero(np.diff(counts[order])) + 1
        if len(steps) > CANDIDATES:
            steps = steps[np.linspace(0, len(steps) - 1, CANDIDATES).astype(int)]
        found = [self._divide(rows, columns, order[:step]) for step in (0, *steps, self.size)]
        self.border, self.blocks, self.block_rows = min(found, key=self._cost)

    @property
    def directions(self) -> jax.Array:
        """Sums of columns that no row has two of, shape ``(n_border + width, size)``.

        A matrix times these holds all its entries.
        """
        n_border, width = len(self.border), self.blocks.shape[1]
        directions = np.zeros((n_border + width, self.size + 1))
        directions[np.arange(n_border), self.border] = 1.0
        for k in range(width):
            directions[n_border + k, self.blocks[:, k]] = 1.0
        return jnp.asarray(directions[:, :-1])

    def factor(self, columns, residual) -> "Factored":
        """Factor ``I + A' A`` and solve for ``A' r``.

        Parameters
        ----------
        columns : array
            ``A`` times `directions`, shape ``(n, n_border + width)``.
        residual : array
            ``r``, shape ``(n,)``.

        Returns
        -------
        Factored
        """
        n_border, width = len(self.border), self.blocks.shape[1]
        shared = jnp.column_stack([columns[:, :n_border], residual])
        both = self._lay_out(jnp.column_stack([columns[:, n_border:], shared]))
        own = _rows_of_root(jnp.eye(width, both.shape[2]) + _products(both[..., :width], both))
        coupling = own[..., width:].reshape(-1, n_border + 1)
        rest = jnp.diag(jnp.append(jnp.ones(n_border), 0.0)) + _products(shared, shared)
        rest -= _products(coupling, coupling)
        border = _rows_of_root(rest[:n_border])
        quadratic = rest[-1, -1] - border[:, -1] @ border[:, -1]
        return Factored(self, own, border, quadratic)

    def _lay_out(self, rows):
        """Lay rows out by block, zeros where a block has fewer: (n, k) to (n_blocks, height, k)."""
        where = np.zeros(self.n + 1, int)
        where[self.block_rows] = np.arange(self.block_rows.size).reshape(self.block_rows.shape)

        def gather(rows):
            return jnp.pad(rows, [(0, 1), (0, 0)])[self.block_rows]

        def back(_, found):  # a row has one place: its gradient is read there, not added up
            return (found.reshape(-1, found.shape[-1])[where[:-1]],)

        quick = jax.custom_vjp(gather)
        quick.defvjp(lambda rows: (gather(rows), None), back)
        return quick(rows)

    def _divide(self, rows, columns, border):
        """Return border, blocks and rows of the blocks, where these columns are the border."""
        inner = ~np.isin(columns, border)
        rows, columns = rows[inner], columns[inner]
        shape = (self.n + self.size,) * 2
        links = coo_array((np.ones(len(rows)), (rows, self.n + columns)), shape)
        label = connected_components(links, directed=False)[1]
        used = np.setdiff1d(np.arange(self.size), border)
        names, block = np.unique(label[self.n + used], return_inverse=True)
        if not len(names):  # no block: one of no columns, with all rows
            return np.sort(border), np.zeros((1, 0), int), np.arange(self.n)[None]
        place = np.searchsorted(names, label[: self.n])
        row_block = np.where(names[np.minimum(place, len(names) - 1)] == label[: self.n], place, -1)
        alone = np.flatnonzero(row_block < 0)  # rows of border columns alone may go anywhere
        row_block[alone] = np.arange(len(alone)) % len(names)
        blocks = table_of_groups(used, block, len(names), self.size)
        return (
            np.sort(border),
            blocks,
            table_of_groups(np.arange(self.n), row_block, len(names), self.n),
        )

    def _cost(self, division):
        """Return about how many multiplications a division costs."""
        border, blocks, block_rows = division
        (n_blocks, width), total = blocks.shape, len(border) + blocks.shape[1]
        return block_rows.size * total**2 + n_blocks * width * total**2 + len(border) ** 3


class Factored(NamedTuple):
    """An arrow matrix ``P = I + A' A`` as ``R' R``: rows of ``R`` and, beside, ``R'^-1 A' r``.

    Attributes
    ----------
    arrow : Arrow
        Where the entries stand.
    own : jax.Array
        Rows of the blocks, shape ``(n_blocks, width, width + n_border + 1)``.
    border : jax.Array
        Rows of the border, shape ``(n_border, n_border + 1)``.
    quadratic : jax.Array
        ``r' (I + A A')^-1 r``.
    """

    arrow: Arrow
    own: jax.Array
    border: jax.Array
    quadratic: jax.Array

    @property
    def log_root(self) -> jax.Array:
        """The log determinant of ``R``."""
        diagonals = jnp.diagonal(self.own, axis1=1, axis2=2), jnp.diagonal(self.border)
        return sum(jnp.log(diagonal).sum() for diagonal in diagonals)

    def draw(self, z) -> jax.Array:
        """Return ``P^-1 A' r + R^-1 z``: a draw of Normal(P^-1 A' r, P^-1), its mean at z = 0.

        Parameters
        ----------
        z : array
            Standard normal numbers, shape ``(size,)``.

        Returns
        -------
        jax.Array
            Shape ``(size,)``.
        """
        arrow, width = self.arrow, self.own.shape[1]
        n_border = len(self.border)
        border = jax.scipy.linalg.solve_triangular(
            self.border[:, :n_border], self.border[:, n_border] + z[arrow.border]
        )
        own = self.own[..., -1] + jnp.append(z, 0.0)[arrow.blocks]
        own -= self.own[..., width:-1] @ border
        own = jax.scipy.linalg.solve_triangular(self.own[..., :width], own[..., None])[..., 0]
        u = jnp.zeros(arrow.size + 1).at[arrow.blocks].set(own)[:-1]
        return u.at[arrow.border].set(border)


def _products(a, b):
    """Return ``a' b``; that of a few columns is no matter for a call of a matrix product."""
    if a.shape[-1] * b.shape[-1] <= FEW:
        return (a[..., :, None] * b[..., None, :]).sum(axis=-3)
    return a.swapaxes(-1, -2) @ b


def _rows_of_root(rows):
    """Return the first rows of ``R`` with ``R' R = M``, from those of ``M``: ``(..., k, m)``."""
    k = rows.shape[-2]
    if k > UNROLLED:
        root = jnp.linalg.cholesky(rows[..., :k])
        right = jax.scipy.linalg.solve_triangular(root, rows[..., k:], lower=True)
        return jnp.concatenate([root.swapaxes(-1, -2), right], axis=-1)
    found = [jnp.zeros((*rows.shape[:-2], 0, rows.shape[-1]))]
    for j in range(k):
        row = rows[..., :1, :] / jnp.sqrt(rows[..., :1, :1])
        found.append(jnp.concatenate([jnp.zeros((*row.shape[:-1], j)), row], axis=-1))
        rows = rows[..., 1:, 1:] - row[..., 1 : k - j].swapaxes(-1, -2) * row[..., 1:]
    return jnp.concatenate(found, axis=-2)


def table_of_groups(items, group, n_groups, filler):
    """Lay items out by group, lines filled to one length.

    Parameters
    ----------
    items : array
        Numbers, shape ``(n,)``.
    group : array of int
        Group of each, shape ``(n,)``.
    n_groups : int
        Number of groups, empty ones included.
    filler : int
        What stands where a group has fewer items than the largest.

    Returns
    -------
    numpy.ndarray
        A line a group, shape ``(n_groups, largest)``, items in their order.
    """
    order = np.argsort(group, kind="stable")
    size = np.bincount(group, minlength=n_groups)
    position = np.arange(len(items)) - np.repeat(np.cumsum(size) - size, size)
    table = np.full((n_groups, size.max(initial=0)), filler)
    table[group[order], position] = items[order]
    return table
