"""An arrow matrix is factored as a dense one is, whatever groups its rows involve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_utils.arrow import Arrow

RNG = np.random.default_rng(1)
SCHOOL = np.repeat(np.arange(4), [5, 7, 3, 9])
CLASS = np.repeat(np.arange(8), 3)
ITEM = np.tile(np.arange(6), 4)


def effects(idx, q=1, n_groups=None):
    """Return a matrix with `q` columns a group, filled where a row is of the group."""
    n_groups = idx.max() + 1 if n_groups is None else n_groups
    return np.concatenate([np.eye(n_groups)[idx] * RNG.normal(size=(24, 1)) for _ in range(q)], 1)


def population(k):
    return RNG.normal(size=(24, k))


# Name -> (matrix, columns of the border, columns of a block).
MATRICES = {
    "one factor": (np.hstack([population(3), effects(SCHOOL, 2)]), 3, 2),
    "groups first": (np.hstack([effects(SCHOOL, 2), population(1)]), 1, 2),
    "no population": (effects(CLASS), 0, 1),
    "nested": (np.hstack([population(2), effects(SCHOOL), effects(np.arange(24) // 2)]), None, 1),
    "crossed": (np.hstack([population(1), effects(ITEM), effects(CLASS)]), 7, 1),
    "a group without rows": (np.hstack([population(1), effects(SCHOOL, n_groups=9)]), 1, 1),
    "rows of no group": (np.hstack([population(1), effects(SCHOOL) * (SCHOOL > 0)[:, None]]), 1, 1),
    "no group": (population(4), 0, 4),
    "one column": (np.ones((24, 1)), None, None),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_factor_is_that_of_the_dense_matrix(name):
    A, n_border, width = MATRICES[name]
    size = A.shape[1]
    arrow = Arrow(*np.nonzero(A), A.shape)
    if n_border is not None:
        assert (len(arrow.border), arrow.blocks.shape[1]) == (n_border, width)
    residual = RNG.normal(size=24)
    factored = arrow.factor(A @ arrow.directions.T, residual)

    P = np.eye(size) + A.T @ A
    mean = np.linalg.solve(P, A.T @ residual)
    np.testing.assert_allclose(2 * factored.log_root, np.linalg.slogdet(P)[1], rtol=1e-11)
    quadratic = residual @ np.linalg.solve(np.eye(24) + A @ A.T, residual)
    np.testing.assert_allclose(factored.quadratic, quadratic, rtol=1e-10)
    none = jnp.zeros(size)
    np.testing.assert_allclose(factored.draw(none), mean, rtol=1e-10, atol=1e-12)
    root = jax.jacfwd(factored.draw)(none)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(P), rtol=1e-9, atol=1e-12)


def test_every_row_and_column_has_one_place():
    for A, _, _ in MATRICES.values():
        arrow = Arrow(*np.nonzero(A), A.shape)
        columns = np.concatenate([arrow.border, arrow.blocks.ravel()])
        rows = arrow.block_rows.ravel()
        assert sorted(columns[columns < A.shape[1]]) == list(range(A.shape[1]))
        assert sorted(rows[rows < 24]) == list(range(24))


def test_cost_grows_with_the_groups_and_not_with_their_cube():
    def flops(n_groups):
        idx = np.repeat(np.arange(n_groups), 5)
        A = np.hstack([np.ones((len(idx), 1)), np.eye(n_groups)[idx]])
        arrow = Arrow(*np.nonzero(A), A.shape)
        shapes = [jax.ShapeDtypeStruct((len(idx), *rest), float) for rest in ((2,), ())]

        def log_root(columns, residual):
            factored = arrow.factor(columns, residual)
            return factored.log_root + factored.quadratic

        return jax.jit(log_root).lower(*shapes).compile().cost_analysis()["flops"]

    assert flops(400) < 5 * flops(100)
