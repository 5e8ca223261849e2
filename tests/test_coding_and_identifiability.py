"""What the chapter on coding claims holds: of its own functions, and beside independent ones.

The functions of the chapter's cells are run apart from the page, as they are and with bugs in them.
"""

import ast
import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jupytext
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer.util import log_density
from scipy import stats

from mlm_utils.data import load_cheese
from mlm_utils.design import check_arrays
from mlm_utils.models import group_effects, multilevel, scale_distribution, varying_intercept
from mlm_utils.multilevel_design import Group, Predictor, multilevel_design
from mlm_utils.terms import ScalePrior

CHAPTER = Path(__file__).parents[1] / "chapters" / "coding_and_identifiability.md"
FUNCTIONS = {
    "mean_squares",
    "coding_matrix",
    "posterior_of_means",
    "independent",
    "move_prior",
    "with_prior",
    "prior_sds",
    "sweep",
    "without_ridges",
    "levels_of_effects",
    "levels_of_raters",
}
CONSTANTS = {"V", "averages", "differences", "departures", "contrast_weights"}
CONSTANTS |= {"PAIRS", "FOUR", "is_urban", "squares", "by_cell", "cells"}
CODINGS = [("dummy", k) for k in "ABCD"] + [("sum", k) for k in "ABCD"] + [("all levels", "A")]


@functools.cache
def shown_cells():
    """Return the code that a reader sees, a cell each."""
    cells = jupytext.read(CHAPTER, fmt="md:myst").cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    return [cell.source for cell in code if "remove-cell" not in cell.metadata.get("tags", [])]


@functools.cache
def read_chapter(bug=None):
    """Return functions and constants of the chapter's cells, run apart, with a bug if wanted."""
    cheese = load_cheese()
    names = {"np": np, "jnp": jnp, "numpyro": numpyro, "dist": dist, "cheese": cheese}
    names |= {"check_arrays": check_arrays, "group_effects": group_effects}
    names |= {"scale_distribution": scale_distribution}
    raters = cheese.drop_duplicates("rater").set_index("rater")["background"].sort_index()
    names |= {"kind": raters.astype(str).to_numpy()}
    found, planted = set(), bug is None
    for source in shown_cells():
        for node in ast.parse(source).body:
            given = {n.id for t in getattr(node, "targets", []) for n in ast.walk(t)
                     if isinstance(n, ast.Name)}  # fmt: skip
            given |= {node.name} if isinstance(node, ast.FunctionDef) else set()
            if not given & (FUNCTIONS | CONSTANTS | {"sigma", "tau"}) or given & found:
                continue
            source = ast.unparse(node)
            if bug is not None and bug[0] in source:
                source, planted = source.replace(*bug), True
            exec(source, names)
            found |= given
    assert found >= FUNCTIONS | CONSTANTS, FUNCTIONS | CONSTANTS - found
    assert planted, f"{bug} is nowhere in the chapter"
    return SimpleNamespace(**names)


# The codings


def check_codings(chapter):
    cheese = chapter.cheese
    for coding, special in CODINGS:
        order = [k for k in "ABCD" if k != special]
        order = [special, *order] if coding == "dummy" else [*order, special]
        order = list("ABCD") if coding == "all levels" else order
        table = cheese.assign(cheese=cheese["cheese"].cat.reorder_categories(order))
        rows = multilevel_design(table, outcome="y", population=[Predictor("cheese", coding)])
        M = rows.X[[int(np.argmax(table["cheese"] == k)) for k in "ABCD"]]
        np.testing.assert_array_equal(chapter.coding_matrix(coding, special), M)
        meaning = np.linalg.inv(M)  # what the coefficients are, said in words by the labels
        for weights, label in zip(meaning, rows.labels["coefficient"][1], strict=True):
            assert_weights_are(weights, label, special if coding == "dummy" else None)
    assert np.linalg.matrix_rank(chapter.coding_matrix("four dummies")) == 4


def assert_weights_are(weights, label, reference):
    said = dict.fromkeys("ABCD", 0.0)
    if label == "intercept":
        said = dict.fromkeys("ABCD", 0.25) if reference is None else said | {reference: 1.0}
    else:
        first, _, second = label.removeprefix("cheese ").partition(" - ")
        said[first] += 1
        if second == "mean":
            said = {k: w - 0.25 for k, w in said.items()}
        elif second:
            said[second] -= 1
    np.testing.assert_allclose(weights, list(said.values()), atol=1e-12)


def check_contrasts(chapter):
    named = dict(zip(chapter.PAIRS, chapter.differences, strict=True))
    for name, weights in named.items():
        first, second = name.split(" \N{MINUS SIGN} ")
        expected = np.array([(k == first) - (k == second) for k in "ABCD"], dtype=float)
        np.testing.assert_array_equal(weights, expected)
    np.testing.assert_allclose(chapter.departures.sum(axis=1), 0, atol=1e-15)


def check_mean_squares(chapter):
    """The table of 80 means and the pairs, by hand."""
    cheese = chapter.cheese
    y = cheese["y"].to_numpy()
    X = np.column_stack(
        [np.eye(20)[cheese["rater"].cat.codes], np.eye(4)[cheese["cheese"].cat.codes]]
    )
    residual = y - X @ np.linalg.lstsq(X, y)[0]
    sigma2 = residual @ residual / (160 - 23)
    between = 8 * cheese.groupby("rater", observed=True)["y"].mean().var()
    expected = np.sqrt([sigma2, (between - sigma2) / 8])
    np.testing.assert_allclose(chapter.mean_squares(cheese), expected)


# Moving a prior


def random_prior(size, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(0, 8, (size, size))
    return rng.normal(0, 20, size), root @ root.T + np.eye(size)


def posterior_from_rows(chapter, M, mean, covariance):
    """Posterior of the means from all 160 rows: condition the joint normal, inverting no prior."""
    cheese, (sigma, tau) = chapter.cheese, chapter.mean_squares(chapter.cheese)
    X = M[cheese["cheese"].cat.codes]
    Z = np.eye(20)[cheese["rater"].cat.codes]
    of_rows = X @ covariance @ X.T + tau**2 * Z @ Z.T + sigma**2 * np.eye(160)
    gain = np.linalg.solve(of_rows, X @ covariance @ M.T).T
    return M @ mean + gain @ (
        cheese["y"] - X @ mean
    ), M @ covariance @ M.T - gain @ X @ covariance @ M.T


def check_closed_form(chapter):
    for coding, special in [*CODINGS, ("four dummies", "A")]:
        M = chapter.coding_matrix(coding, special)
        prior = random_prior(M.shape[1], seed=3)
        for ours, theirs in zip(
            chapter.posterior_of_means(M, *prior),
            posterior_from_rows(chapter, M, *prior),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def check_moved_prior_changes_nothing(chapter):
    for seed, old in enumerate(CODINGS):
        M = chapter.coding_matrix(*old)
        prior = random_prior(4, seed)
        before = chapter.posterior_of_means(M, *prior)
        for new in CODINGS:
            M_new = chapter.coding_matrix(*new)
            moved = chapter.move_prior(M, M_new, *prior)
            np.testing.assert_allclose(M_new @ moved[0], M @ prior[0], atol=1e-9)
            np.testing.assert_allclose(
                M_new @ moved[1] @ M_new.T, M @ prior[1] @ M.T, rtol=1e-8, atol=1e-7
            )
            after = chapter.posterior_of_means(M_new, *moved)
            for one, other in zip(before, after, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def rater_design(coding):
    return multilevel_design(
        load_cheese(),
        outcome="y",
        population=[Predictor("cheese", coding)],
        groups=[Group("rater", centred=True)],
    )


def density(model, arguments, point):
    point = {name: jnp.asarray(value) for name, value in point.items()}
    return float(log_density(model, (), arguments, point)[0])


@pytest.mark.parametrize(("coding", "special"), [("dummy", "A"), ("sum", "D")])
def test_programs_with_a_moved_prior_have_one_density_up_to_a_constant(coding, special):
    chapter = read_chapter()
    half_normal = ScalePrior("half-normal", 10.0)
    by_level, by_other = rater_design("all levels"), rater_design(coding)
    prior = by_level.prior(beta={"cheese": (70, 20)}, sigma=half_normal, tau=half_normal)
    levels, M = chapter.coding_matrix("all levels"), chapter.coding_matrix(coding, special)
    mean, covariance = chapter.move_prior(levels, M, np.full(4, 70.0), 400 * np.eye(4))
    other = by_other.arguments | {"prior": prior, "mean": mean, "covariance": covariance}
    rng, apart = np.random.default_rng(5), []
    for _ in range(10):
        point = {
            "beta": rng.normal(70, 15, 4),
            "sigma": np.exp(rng.normal(1.5, 0.5)),
            "tau_rater": np.exp(rng.normal(1.5, 0.5, 1)),
            "b_rater": rng.normal(0, 6, (20, 1)),
        }
        moved = point | {"beta": np.linalg.solve(M, point["beta"])}
        here = density(multilevel, by_level.arguments | {"prior": prior}, point)
        apart.append(here - density(chapter.with_prior, other, moved))
    np.testing.assert_allclose(apart, -np.log(abs(np.linalg.det(M))), atol=1e-6)


# What priors say


def check_prior_sds(chapter):
    """Simulate: draw coefficients, compute means, look at the differences and departures."""
    rng, s, draws = np.random.default_rng(11), 3.0, 100_000
    root = np.sqrt
    claims = {  # of pairs with the special cheese and without, of its departure and the others'
        ("dummy", "A"): (1, root(2), root(3) / 4, root(11) / 4),
        ("dummy", "D"): (1, root(2), root(3) / 4, root(11) / 4),
        ("sum", "D"): (root(6), root(2), root(3), 1),
        ("sum", "B"): (root(6), root(2), root(3), 1),
        ("four dummies", "A"): (root(2), root(2), root(0.75), root(0.75)),
        ("ZeroSumNormal", "A"): (root(2), root(2), root(0.75), root(0.75)),
    }
    for (coding, special), (pair, other_pair, own, other) in claims.items():
        if coding == "ZeroSumNormal":
            of_means = s**2 * (np.eye(4) - 0.25)
            key = jax.random.key(12)
            m = np.asarray(dist.ZeroSumNormal(s, (4,)).sample(key, (draws,)))
        else:
            M = chapter.coding_matrix(coding, special)
            _, covariance = chapter.independent(M, s)
            of_means = M @ covariance @ M.T
            beta = rng.normal(0, s, (draws, M.shape[1]))
            beta[:, 0] = rng.normal(0, 30, draws)
            m = beta @ M.T
        stated = chapter.prior_sds(of_means)
        expected = [pair if special in name else other_pair for name in chapter.PAIRS]
        expected += [own if special == k else other for k in "ABCD"]
        np.testing.assert_allclose(stated, s * np.array(expected))
        level = dict(zip("ABCD", m.T, strict=True))
        drawn = [level[name[0]] - level[name[-1]] for name in chapter.PAIRS]
        drawn += list((m - m.mean(axis=1, keepdims=True)).T)
        np.testing.assert_allclose(np.std(drawn, axis=1), stated, rtol=0.012)


def check_without_ridges(chapter):
    """Integrate the published model over its two unidentified means: the other one is left."""
    cheese = chapter.cheese
    rng, K, J = np.random.default_rng(13), 4, 2
    arguments = {
        "X": np.eye(4)[cheese["cheese"].cat.codes],
        "idx": cheese["background"].cat.codes.to_numpy(np.int32),
        "n_groups": 2,
        "y_mean": float(cheese["y"].mean()),
        "y_sd": float(cheese["y"].std()),
    }
    arguments |= {"y": cheese["y"].to_numpy(dtype=float)}
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    published = jax.jit(
        jax.vmap(lambda point: log_density(varying_intercept, (), arguments, point)[0])
    )
    apart = []
    for tau in (0.3, 2.0, 6.0, 15.0):
        effects, beta = rng.normal(0, tau, J), rng.normal(0, 4, K)
        effects, beta = effects - effects.mean(), beta - beta.mean()
        point = {"alpha": rng.normal(71, 8), "sigma": np.exp(rng.normal(2, 0.3)), "tau": tau}
        # Draw both means from their priors, and average the density given them.
        of_group, of_beta = np.meshgrid(nodes * tau / np.sqrt(J), nodes * 2 / np.sqrt(K))
        of_group, of_beta = of_group.ravel(), of_beta.ravel()
        at = {
            "alpha": point["alpha"] - of_group - of_beta,
            "alpha_j": effects + of_group[:, None],
            "beta": beta + of_beta[:, None],
            "sigma": np.full(of_beta.size, point["sigma"]),
            "tau": np.full(of_beta.size, tau),
        }
        values = np.array(published({name: jnp.asarray(v) for name, v in at.items()}))
        values -= stats.norm(0, tau / np.sqrt(J)).logpdf(of_group)
        values -= stats.norm(0, 2 / np.sqrt(K)).logpdf(of_beta)
        mass = np.outer(weights, weights).ravel()
        integrated = values.max() + np.log(mass @ np.exp(values - values.max()))
        swept = point | {"alpha_j": effects, "beta": beta}
        apart.append(integrated - density(chapter.without_ridges, arguments, swept))
    np.testing.assert_allclose(apart, apart[0], atol=1e-6)


# Sweeping


def check_sweep(chapter):
    rng = np.random.default_rng(17)
    intercept = xr.DataArray(rng.normal(70, 5, (2, 50)), dims=("chain", "draw"))
    effects = xr.DataArray(rng.normal(3, 4, (2, 50, 7)), dims=("chain", "draw", "group"))
    idx = rng.integers(0, 7, 30)
    swept, left = chapter.sweep(intercept, effects, "group")
    before, after = (
        (a + b).transpose("chain", "draw", "group")[..., idx]
        for a, b in ((intercept, effects), (swept, left))
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12)  # in every draw
    np.testing.assert_allclose(left.sum("group"), 0, atol=1e-12)  # in every draw
    np.testing.assert_allclose(swept, (intercept + effects).mean("group"))
    again = chapter.sweep(swept, left, "group")
    np.testing.assert_allclose(again[0], swept)


# Correlations


def check_levels_of_effects(chapter):
    """Draw effects and look at the levels they make."""
    rng = np.random.default_rng(19)
    for coding, special in chapter.FOUR.values():
        M = chapter.coding_matrix(coding, special)
        factor = np.tril(rng.normal(size=(3, 4, 4)))
        factor /= np.linalg.norm(factor, axis=2, keepdims=True)
        tau = np.exp(rng.normal(1, 0.7, (3, 4)))
        sds, correlations = chapter.levels_of_effects(M, tau, factor)
        for one in range(3):
            z = rng.normal(size=(100_000, 4))
            effects = np.stack([tau[one, k] * z @ factor[one, k] for k in range(4)], axis=1)
            levels = effects @ M.T
            np.testing.assert_allclose(levels.std(axis=0), sds[one], rtol=0.012)
            np.testing.assert_allclose(np.corrcoef(levels.T), correlations[one], atol=0.015)


def test_lkj_in_one_coding_is_not_lkj_in_another():
    chapter, draws = read_chapter(), 10_000
    key_tau, key_L = jax.random.split(jax.random.key(23))
    tau = dist.HalfNormal(10.0).sample(key_tau, (2, draws, 4))
    L = dist.LKJCholesky(4, 2.0).sample(key_L, (2, draws))

    def implied(coding, special, half):
        M = chapter.coding_matrix(coding, special)
        sds, correlations = chapter.levels_of_effects(M, tau[half], L[half])
        pairs = {a + b: correlations[:, "ABCD".index(a), "ABCD".index(b)] for a, b in ("AB", "CD")}
        return dict(zip("ABCD", sds.T, strict=True)), pairs

    def agree(one, other):
        return stats.ks_2samp(one, other).pvalue > 0.001

    sds_A, pairs_A = implied("dummy", "A", 0)
    sds_D, pairs_D = implied("dummy", "D", 1)
    sds_level, pairs_level = implied("all levels", "A", 0)
    sds_sum, pairs_sum = implied("sum", "D", 0)
    exact = stats.beta(3, 3, loc=-1, scale=2)  # of one correlation of four, LKJ(2)
    assert all(stats.kstest(values, exact.cdf).pvalue > 0.001 for values in pairs_level.values())
    assert agree(pairs_A["AB"], pairs_D["CD"])  # renamed, the two are one prior
    assert agree(pairs_A["CD"], pairs_D["AB"])
    assert agree(pairs_D["AB"], pairs_sum["AB"])  # intercept plus an effect each
    assert not agree(pairs_A["AB"], pairs_D["AB"])  # the reference matters
    assert not agree(pairs_A["AB"], pairs_level["AB"])
    assert not agree(pairs_sum["AB"], pairs_sum["CD"])
    assert np.median(pairs_A["AB"]) > 0.65 > 0.6 > np.median(pairs_D["AB"]) > 0.45
    assert abs(np.median(pairs_sum["CD"])) < 0.03
    assert agree(sds_A["A"], sds_D["D"])
    assert agree(sds_A["B"], sds_D["A"])
    assert agree(sds_level["A"], sds_D["D"])
    assert np.median(sds_A["B"]) > 1.5 * np.median(sds_A["A"])
    assert np.median(sds_sum["D"]) > 1.4 * np.median(sds_sum["A"])


def check_levels_of_raters(chapter):
    """The raters' effects integrated out: the normal density of all 160 scores, written out."""
    cheese = chapter.cheese
    ways = [*chapter.FOUR.values()]
    M = np.array([chapter.coding_matrix(*way) for way in ways])
    arguments = {
        "M": M,
        "is_urban": chapter.is_urban,
        "squares": np.full(4, chapter.squares),
        "y": np.tile(chapter.cells.to_numpy(), (4, 1, 1)),
    }
    tastes = np.eye(4)[cheese["cheese"].cat.codes]
    rater = cheese["rater"].cat.codes.to_numpy()
    same = rater[:, None] == rater
    urban = (cheese["background"] == "urban").to_numpy(dtype=float)
    rng, apart = np.random.default_rng(29), []
    for _ in range(3):
        factor = np.tril(rng.normal(size=(4, 4, 4)))
        diagonal = np.abs(np.einsum("nii->ni", factor)) + 0.1
        np.einsum("nii->ni", factor)[...] = diagonal
        factor /= np.linalg.norm(factor, axis=2, keepdims=True)
        point = {
            "m": rng.normal(70, 8, (4, 4)),
            "gap": rng.normal(5, 5, 4),
            "sigma": np.exp(rng.normal(1.2, 0.4, 4)),
            "tau": np.exp(rng.normal(1.5, 0.6, (4, 4))),
            "L_Omega": factor,
        }
        written = 0.0
        for c in range(4):
            root = M[c] @ np.diag(point["tau"][c]) @ factor[c]
            covariance = tastes @ root @ root.T @ tastes.T * same
            covariance += point["sigma"][c] ** 2 * np.eye(160)
            mu = tastes @ point["m"][c] + point["gap"][c] * urban
            written += stats.multivariate_normal(mu, covariance).logpdf(cheese["y"])
            written += stats.norm(70, 20).logpdf(point["m"][c]).sum()
            written += stats.norm(0, 10).logpdf(point["gap"][c])
            written += stats.halfnorm(scale=10).logpdf(point["sigma"][c])
            written += stats.halfnorm(scale=10).logpdf(point["tau"][c]).sum()
            written += float(dist.LKJCholesky(4, 2.0).log_prob(factor[c]))
        apart.append(density(chapter.levels_of_raters, arguments, point) - written)
    np.testing.assert_allclose(apart, apart[0], atol=1e-6)


# The checks, and bugs that they notice

CHECKS = {
    "codings": check_codings,
    "contrasts": check_contrasts,
    "mean squares": check_mean_squares,
    "closed form": check_closed_form,
    "moved prior": check_moved_prior_changes_nothing,
    "prior sds": check_prior_sds,
    "without ridges": check_without_ridges,
    "sweep": check_sweep,
    "levels of effects": check_levels_of_effects,
    "levels of raters": check_levels_of_raters,
}
BUGS = [  # the check that must notice, the text of the chapter, its replacement
    ("codings", "others - every[:, [k]]", "others + every[:, [k]]"),
    ("codings", "'ABCD'.index(special)", "3"),
    ("contrasts", "[0, -1, 0, 1]", "[0, -1, 1, 0]"),
    ("mean squares", "160 - 20 - 3", "160 - 20"),
    ("closed form", "tau ** 2 / 20", "tau ** 2 / 40"),
    ("closed form", "sigma ** 2 / 40", "sigma ** 2 / 20"),
    ("closed form", "prior_precision @ mean + data", "prior_precision @ (0 * mean) + data"),
    ("moved prior", "T @ covariance @ T.T", "T.T @ covariance @ T"),
    ("moved prior", "T @ covariance @ T.T", "covariance"),
    ("moved prior", "(T @ mean, ", "(mean, "),
    ("moved prior", "solve(M_new, M)", "solve(M, M_new)"),
    ("prior sds", "others - every[:, [k]]", "others"),
    ("prior sds", "np.diag(sd ** 2)", "np.diag(sd)"),
    ("without ridges", "tau ** 2 / n_groups", "tau ** 2"),
    ("without ridges", "2.0 ** 2 / K", "2.0 / K"),
    ("without ridges", "ZeroSumNormal(tau,", "ZeroSumNormal(tau / 2,"),
    ("sweep", "effects.mean(dim)", "effects.mean()"),  # the mean of means
    ("sweep", "effects.mean(dim)", "effects.mean(('chain', 'draw'))"),
    ("sweep", "effects - mean", "effects"),
    ("levels of effects", "[..., None] * np.asarray(L", "[..., None, :] * np.asarray(L"),
    ("levels of effects", "factor @ np.swapaxes(factor, -1, -2)", "factor"),
    ("levels of raters", "sigma ** 2 / 2", "sigma ** 2"),
    ("levels of raters", "Gamma(80 / 2,", "Gamma(160 / 2,"),
    ("levels of raters", "tau[:, :, None]", "tau[:, None, :]"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_chapter(name):
    CHECKS[name](read_chapter())


@pytest.mark.parametrize(("name", "right", "wrong"), BUGS)
def test_planted_bug_is_noticed(name, right, wrong):
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        CHECKS[name](read_chapter((right, wrong)))
