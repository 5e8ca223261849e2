"""The analysis of the cheese ratings is right: draws, grid, mean squares and REML say one thing.

The functions of the chapter's own cells are run beside references that share no code with them:
the normal density of all 160 scores, statsmodels, and the quadrature of `exact`.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import arviz as az
import jax
import jupytext
import numpy as np
import pandas as pd
import pytest
from exact import condition, integrate_scales, project
from scipy import interpolate, optimize, stats
from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams

from mlm_utils.models import multilevel, scale_distribution
from mlm_utils.multilevel_design import Group, MultilevelDesign, Predictor, multilevel_design
from mlm_utils.sampling import fit
from mlm_utils.terms import Prior, ScalePrior

CHAPTER = Path(__file__).parents[1] / "chapters" / "who_is_the_group.md"
SCALES = ("rater", "taste", "noise")
FIGURES = {"mean": "mean", "sd": "sd", "5 %": "5%", "50 %": "50%", "95 %": "95%"}
POPULATION = ["background", Predictor("cheese", "sum"), Predictor(("background", "cheese"), "sum")]
# Name of the bug -> (text of the chapter's function, its replacement).
BUGS = {
    "the 8 dropped": ("8 * rater**2", "rater**2"),
    "4 in place of 8": ("8 * rater**2", "4 * rater**2"),
    "the 2 dropped": ('"rater": noise**2 + 2 * taste**2', '"rater": noise**2 + taste**2'),
    "the 2 of tastes dropped": ('"taste": noise**2 + 2 * taste**2', '"taste": noise**2 + taste**2'),
    "no taste": ('"taste": noise**2 + 2 * taste**2', '"taste": noise**2'),
    "no taste among raters": ('"rater": noise**2 + 2 * taste**2', '"rater": noise**2'),
}


class Analysis(NamedTuple):
    """The design of rung 3, its prior, and the contrasts of the eight cell means."""

    rows: MultilevelDesign
    prior: Prior
    cells: np.ndarray
    means: np.ndarray
    contrasts: Mapping[str, np.ndarray]


def read_chapter(bug=None):
    """Return functions and constants of the chapter's cells, run apart, with a bug if wanted."""
    constants = {"SDS", "GRID", "PROBABILITIES"}
    names = {"np": np, "pd": pd, "stats": stats, "az": az, "optimize": optimize}
    names |= {"interpolate": interpolate, "scale_distribution": scale_distribution}
    functions = {"strata", "expected_squares", "solve_for_sds", "log_restricted", "cells_given"}
    functions |= {"exact_posterior", "describe", "in_mcse", "two_samples"}
    for cell in jupytext.read(CHAPTER, fmt="md:myst").cells:
        for node in ast.parse(cell.source).body if cell.cell_type == "code" else []:
            source = ast.get_source_segment(cell.source, node)
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                if bug and node.name == "expected_squares":
                    assert source.count(BUGS[bug][0]) == 1, source
                    source = source.replace(*BUGS[bug])
                exec(source, names)
            elif isinstance(node, ast.Assign) and source.split(" = ")[0] in constants:
                exec(source, names)
    assert functions | constants <= set(names)
    return names


@pytest.fixture(scope="module")
def page():
    return read_chapter()


@pytest.fixture(scope="module")
def box(cheese):
    """The scores: background, rater, cheese, sample."""
    return cheese["y"].to_numpy(float).reshape(2, 10, 4, 2)


@pytest.fixture(scope="module")
def analysis(cheese, box):
    rows = multilevel_design(
        cheese,
        outcome="y",
        population=POPULATION,
        groups=[Group("rater", nested_in="background"), Group(("rater", "cheese"))],
    )
    beta = {"intercept": (70, 20), "background": (0, 15), "cheese": (0, 15)}
    ten = ScalePrior("half-normal", 10.0)
    prior = rows.prior(beta=beta | {"background:cheese": (0, 5)}, sigma=ten, tau=ten)
    cells = rows.X.reshape(2, 10, 4, 2, 8)[:, 0, :, 0].reshape(8, 8)
    contrasts = {"average": np.repeat([-0.25, 0.25], 4)}
    contrasts |= {c: np.r_[-np.eye(4)[k], np.eye(4)[k]] for k, c in enumerate("ABCD")}
    return Analysis(rows, prior, cells, box.mean(axis=(1, 3)).ravel(), contrasts)


@pytest.fixture(scope="module")
def settings():
    """Twenty settings of the three sds."""
    rng = np.random.default_rng(3)
    return {name: rng.uniform(0.5, 9.0, 20) for name in SCALES}


# --- Likelihoods


def densities_of_all_scores(analysis, settings, prior, rater=None):
    """Log density of the 160 scores, coefficients integrated out, up to a constant.

    Without a prior, the coefficients are flat. The covariance is a matrix of 160 x 160.
    """
    rows = analysis.rows
    member = [np.eye(term.n_groups)[term.idx] for term in rows.terms]
    if rater is not None:
        member[0] = np.eye(rater.max() + 1)[rater]
    contrasts, found = np.linalg.svd(rows.X)[0][:, 8:], []
    for one in zip(*settings.values(), strict=True):
        sd = dict(zip(settings, one, strict=True))
        covariance = sd["noise"] ** 2 * np.eye(160)
        for name, Z in zip(("rater", "taste"), member, strict=True):
            covariance += sd[name] ** 2 * Z @ Z.T
        if prior is None:  # the density of the residuals that know nothing of the coefficients
            covariance, y = contrasts.T @ covariance @ contrasts, contrasts.T @ rows.y
        else:
            covariance += (rows.X * prior.beta_sd**2) @ rows.X.T
            y = rows.y - rows.X @ prior.beta_mean
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), y)
        found.append(-(np.linalg.slogdet(covariance)[1] + whitened @ whitened) / 2)
    return np.array(found)


def densities_of_the_page(page, analysis, box, settings, prior):
    anova = page["strata"](box)
    seen = analysis.means, analysis.cells, prior
    return page["log_restricted"](settings, anova) + page["cells_given"](settings, *seen)[2]


@pytest.mark.parametrize("flat", [True, False])
def test_three_mean_squares_and_eight_means_are_all_that_the_scores_say(
    flat, page, analysis, box, settings
):
    prior = None if flat else analysis.prior
    of_all = densities_of_all_scores(analysis, settings, prior)
    of_page = densities_of_the_page(page, analysis, box, settings, prior)
    np.testing.assert_allclose(np.ptp(of_page - of_all), 0, atol=1e-8)


@pytest.fixture(scope="module")
def of_all_scores(analysis, settings):
    return densities_of_all_scores(analysis, settings, None)


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_expected_mean_square_is_no_density_of_the_scores(
    bug, analysis, box, settings, of_all_scores
):
    wrong = densities_of_the_page(read_chapter(bug), analysis, box, settings, None)
    assert np.ptp(wrong - of_all_scores) > 1


def test_merged_raters_have_another_density(page, analysis, box, settings):
    ids = analysis.rows.terms[0].idx % 10
    of_all = densities_of_all_scores(analysis, settings, None, rater=ids)
    of_page = densities_of_the_page(page, analysis, box, settings, None)
    assert np.ptp(of_page - of_all) > 1


@pytest.fixture(scope="module")
def mixed(cheese):
    """The model of rung 3 in statsmodels, which knows nothing of balance."""
    return MixedLM.from_formula(
        "y ~ background * C(cheese, Sum)",
        cheese,
        groups="rater",
        re_formula="1",
        vc_formula={"taste": "0 + C(cheese)"},
    )


def test_reml_of_statsmodels_is_the_analysis_of_variance(page, mixed, box):
    anova = page["strata"](box)
    by_anova = page["solve_for_sds"](anova)
    found = mixed.fit(reml=True, method="lbfgs")
    by_reml = np.sqrt([found.cov_re.iloc[0, 0], found.vcomp[0], found.scale])
    np.testing.assert_allclose(by_anova[list(SCALES)], by_reml, rtol=1e-5)
    difference, error = (
        values["background[T.urban]"] for values in (found.fe_params, found.bse_fe)
    )
    assert difference == pytest.approx(box[1].mean() - box[0].mean(), rel=1e-10)
    assert error == pytest.approx(np.sqrt(2 * anova.loc["rater", "squares"] / 18 / 80), rel=1e-5)
    low, middle, high = page["two_samples"](box.mean(axis=(2, 3)))
    classical = stats.ttest_ind(*box.mean(axis=(2, 3))[::-1]).confidence_interval(0.9)
    np.testing.assert_allclose([low, middle, high], [classical.low, difference, classical.high])


def test_the_restricted_likelihood_of_statsmodels_is_that_of_the_mean_squares(
    page, mixed, box, settings
):
    mixed.reml = True
    of_statsmodels, anova = [], page["strata"](box)
    for rater, taste, noise in zip(*settings.values(), strict=True):
        ratios = {"cov_re": np.array([[rater**2]]) / noise**2, "vcomp": [taste**2 / noise**2]}
        coefficients, _ = mixed.get_fe_params(ratios["cov_re"], np.array(ratios["vcomp"]))
        packed = MixedLMParams.from_components(coefficients, **ratios)
        profiled = mixed.loglike(packed, profile_fe=False)
        # its noise is profiled out: put this one in its place
        cells = noise**2 + 2 * taste**2
        expected = {"rater": cells + 8 * rater**2, "taste": cells, "noise": noise**2}
        total = sum(anova.loc[name, "squares"] / expected[name] for name in SCALES)
        own = -152 / 2 * np.log(noise**2) - total / 2
        best = -152 / 2 * np.log(noise**2 * total / 152) - 152 / 2
        of_statsmodels.append(profiled + own - best)
    of_page = page["log_restricted"](settings, anova)
    np.testing.assert_allclose(np.ptp(of_page - np.array(of_statsmodels)), 0, atol=1e-7)


# --- Posteriors


@pytest.fixture(scope="module")
def reference(analysis, box):
    """The posterior by the quadrature of `exact`, the mean squares by SciPy's chi-squared."""
    prior = analysis.prior
    cell, person = box.mean(axis=3), box.mean(axis=(2, 3))
    additive = person[:, :, None] + (cell.mean(axis=1) - person.mean(axis=1)[:, None])[:, None]
    squares = (
        (8 * np.sum((person - person.mean(axis=1, keepdims=True)) ** 2), 18),
        (2 * np.sum((cell - additive) ** 2), 54),
        (np.sum((box - cell[..., None]) ** 2), 80),
    )
    Z = np.hstack([analysis.cells, np.kron(np.eye(2), np.ones((4, 1)))])
    A = np.array([weights @ Z[:, :8] @ np.eye(8, 10) for weights in analysis.contrasts.values()])

    def solve(scales):
        rater, taste, noise = (scales[name] for name in SCALES)
        expected = noise**2 + 2 * taste**2 + 8 * rater**2, noise**2 + 2 * taste**2, noise**2
        prior_sd = np.stack(
            np.broadcast_arrays(*prior.beta_sd, rater / 10**0.5, rater / 10**0.5), axis=-1
        )
        sd = np.sqrt((taste**2 + noise**2 / 2) / 10)
        given = condition(Z, analysis.means, np.r_[prior.beta_mean, 0, 0], prior_sd, sd)
        strata = sum(
            stats.chi2(df).logpdf(square / lam) - np.log(lam)
            for (square, df), lam in zip(squares, expected, strict=True)
        )
        return given.log_marginal + strata, *project(given, A)

    return integrate_scales(
        solve,
        list(analysis.contrasts),
        log_priors=dict.fromkeys(SCALES, stats.halfnorm(scale=10).logpdf),
        ranges={"rater": (0.7, 3.2), "taste": (0.4, 2.1), "noise": (0.75, 1.6)},
        steps={"rater": 0.09, "taste": 0.065, "noise": 0.035},
        tolerance=1e-3,
    )


@pytest.fixture(scope="module")
def draws(analysis):
    rows = analysis.rows
    posterior = fit(
        multilevel,
        rows.arguments | {"prior": analysis.prior},
        key=jax.random.key(3),
        labels=rows.labels,
        warmup=700,
        target_accept=0.9,
    )["posterior"].dataset
    cells = np.einsum("cdk,mk->cdm", posterior["beta"].to_numpy(), analysis.cells)
    return {
        "rater": posterior["tau_rater"][..., 0],
        "taste": posterior["tau_rater_cheese"][..., 0],
        "noise": posterior["sigma"],
    } | {
        name: posterior["sigma"].copy(data=cells @ weights)
        for name, weights in analysis.contrasts.items()
    }


def on_the_page(page, analysis, box):
    """What the chapter's own grid gives."""
    seen = analysis.means, analysis.cells, analysis.prior, analysis.contrasts
    return page["exact_posterior"](page["strata"](box), *seen)[0]


def in_mcse(page, draws, figures):
    """The largest difference of draws from exact figures, by name, in Monte Carlo errors."""
    return {
        name: max(map(abs, page["in_mcse"](values, figures.loc[name]).values()))
        for name, values in draws.items()
    }


def test_the_grid_of_the_page_is_fine_enough(page, analysis, box, reference):
    figures = on_the_page(page, analysis, box).rename(columns=FIGURES)
    moved = (figures - reference.loc[figures.index]).div(reference["sd"], axis=0)
    assert set(figures.index) == set(reference.index)
    assert moved.abs().max().max() < 3e-3, moved


def test_draws_agree_with_the_exact_posterior(page, draws, reference):
    exactly = reference.rename(columns={theirs: ours for ours, theirs in FIGURES.items()})
    far = in_mcse(page, draws, exactly)
    assert set(far) == set(reference.index)
    assert max(far.values()) <= 4, far


@pytest.mark.parametrize("bug", BUGS)
def test_draws_disagree_with_a_wrong_expected_mean_square(bug, draws, analysis, box):
    page = read_chapter(bug)
    figures = on_the_page(page, analysis, box)
    assert max(in_mcse(page, draws, figures).values()) > 5


@pytest.mark.parametrize("merged", [False, True])
def test_merged_raters_cancel_in_the_difference(merged, page, analysis, box):
    """The variance of the difference by generalised least squares on all 160 scores."""
    anova = page["strata"](box)
    sd = page["solve_for_sds"](anova)
    rater, cell = (term.idx for term in analysis.rows.terms)
    if merged:
        rater, cell = rater % 10, 4 * (rater % 10) + cell % 4
    covariance = sd["noise"] ** 2 * np.eye(160)
    for name, idx in (("rater", rater), ("taste", cell)):
        covariance += sd[name] ** 2 * (idx[:, None] == idx)
    X = analysis.rows.X
    variance = np.linalg.inv(X.T @ np.linalg.solve(covariance, X))[1, 1]
    expected = page["expected_squares"](**sd)["noise" if merged else "rater"]
    assert variance == pytest.approx(2 * expected / 80, rel=1e-10)
