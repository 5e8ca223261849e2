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
        both = jnp.column_stack([columns, residual])
        both = jnp.concatenate([both, jnp.zeros((1, both.shape[1]))])[self.block_rows]
        shared, own, r = both[..., :n_border], both[..., n_border:-1], both[..., -1:]
        turned = own.swapaxes(1, 2)
        root = jnp.linalg.cholesky(jnp.eye(width) + turned @ own)
        right = jnp.concatenate([turned @ shared, turned @ r], axis=2)
        solved = jax.scipy.linalg.solve_triangular(root, right, lower=True)
        coupling, half = solved[..., :n_border], solved[..., -1]
        rest = jnp.eye(n_border) + jnp.einsum("bhi,bhj->ij", shared, shared)
        rest -= jnp.einsum("bwi,bwj->ij", coupling, coupling)
        border_root = jnp.linalg.cholesky(rest)
        border_right = jnp.einsum("bhi,bhj->i", shared, r) - jnp.einsum("bwi,bw->i", coupling, half)
        border_half = jax.scipy.linalg.solve_triangular(border_root, border_right, lower=True)
        return Factored(self, root, coupling, border_root, half, border_half)

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
    """An arrow matrix ``P`` as the product of ``root`` and its transpose, and ``root^-1 A' r``."""

    arrow: Arrow
    root: jax.Array
    coupling: jax.Array
    border_root: jax.Array
    half: jax.Array
    border_half: jax.Array

    @property
    def log_root(self) -> jax.Array:
        """The log determinant of the root."""
        diagonals = jnp.diagonal(self.root, axis1=1, axis2=2), jnp.diagonal(self.border_root)
        return sum(jnp.log(diagonal).sum() for diagonal in diagonals)

    @property
    def half_square(self) -> jax.Array:
        """Half of ``r' A P^-1 A' r``."""
        return 0.5 * ((self.half**2).sum() + (self.border_half**2).sum())

    def draw(self, z) -> jax.Array:
        """Return ``P^-1 A' r + root^-T z``: a draw of Normal(P^-1 A' r, P^-1), its mean at z = 0.

        Parameters
        ----------
        z : array
            Standard normal numbers, shape ``(size,)``.

        Returns
        -------
        jax.Array
            Shape ``(size,)``.
        """
        arrow = self.arrow
        border = jax.scipy.linalg.solve_triangular(
            self.border_root.T, self.border_half + z[arrow.border], lower=False
        )
        own = self.half + jnp.append(z, 0.0)[arrow.blocks]
        own -= self.coupling @ border
        own = jax.scipy.linalg.solve_triangular(
            self.root.swapaxes(1, 2), own[..., None], lower=False
        )[..., 0]
        u = jnp.zeros(arrow.size + 1).at[arrow.blocks].set(own)[:-1]
        return u.at[arrow.border].set(border)


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
