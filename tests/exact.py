"""Posteriors by quadrature, in NumPy and SciPy alone: references that share no code with NUTS.

They serve every model, since each is Gaussian once its scales and correlations are known: the
Gaussian part is integrated exactly, the rest on a grid. A posterior is a table, a row a
parameter, labelled as `arviz.summary` labels it, with the columns `FIGURES`.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import interpolate, optimize, special, stats

PROBABILITIES = (0.05, 0.5, 0.95)
FIGURES = ("mean", "sd", *(f"{100 * p:g}%" for p in PROBABILITIES))

# Model -> prior of its scales but sigma.
PRIORS_OF_TAU = {
    "two_level": stats.halfnorm(scale=5),
    "eight_schools": stats.halfnorm(scale=10),
    "varying_intercept": stats.halfcauchy(scale=2),
    "varying_slope_published": stats.halfcauchy(scale=2),
    "varying_intercept_slope_published": stats.halfcauchy(scale=2),
    "varying_slope": stats.halfnorm(scale=5),
    "varying_intercept_slope": stats.halfnorm(scale=5),
    "correlated_effects_published": stats.halfcauchy(scale=2),
    "correlated_effects": stats.halfcauchy(scale=2),
}


# Model with slopes of groups -> what of it is normal given its scales.
NORMAL_SITES = {
    "varying_slope": ("alpha", "beta", "beta_j"),
    "varying_intercept_slope": ("alpha", "beta", "beta_j", "alpha_j"),
    "correlated_effects_published": ("gamma_j", "coefficient_j"),
    "correlated_effects": ("alpha", "beta", "z", "coefficient_j"),
}

# The same -> range of its taus, steps of them and of its correlation, all on their coordinates,
# and tolerance. Three or four scales are not affordable to more than a thousandth of a posterior
# standard deviation, while the error of a thousand draws is 0.03 of one.
GRIDS = {
    "varying_slope": ((-2.5, 3.0), [0.15], 1e-5),
    "varying_intercept_slope": ((-2.5, 3.0), [0.15, 0.15], 1e-4),
    "correlated_effects_published": ((-1.1, 1.5), [0.075, 0.1, 0.28], 5e-3),
    "correlated_effects": ((-2.0, 4.0), [0.3, 0.3, 0.45], 1e-3),
}


class Coordinate(NamedTuple):
    """The line on which the grid of a scale is even.

    Attributes
    ----------
    value : callable
        Takes places on the line, returns the scale there.
    log_slope : callable
        Takes places on the line, returns the logarithm of the derivative of `value`.
    """

    value: Callable
    log_slope: Callable


LOG = Coordinate(np.exp, lambda t: t)
# Above 1 nearly the logarithm; below, 0 is but a few steps away.
LOG_LOG = Coordinate(
    lambda t: np.exp(t - np.exp(-t)), lambda t: t - np.exp(-t) + np.log1p(np.exp(-t))
)
ATANH = Coordinate(np.tanh, lambda t: -2 * np.log(np.cosh(t)))  # of a correlation


class Conditional(NamedTuple):
    """The Gaussian part given the scales, for ``m`` settings of the scales at once.

    Attributes
    ----------
    mean : numpy.ndarray
        Posterior means, shape ``(m, p)``.
    covariance : numpy.ndarray
        Posterior covariances, shape ``(m, p, p)``.
    log_marginal : numpy.ndarray
        Log density of ``y`` with the Gaussian part integrated out, shape ``(m,)``.
    """

    mean: np.ndarray
    covariance: np.ndarray
    log_marginal: np.ndarray


class Groups(NamedTuple):
    """Groups of two coefficients given the scales, for ``m`` settings of the scales at once.

    Attributes
    ----------
    log_marginal : numpy.ndarray
        As in `Conditional`.
    population, standard, own, coefficients : numpy.ndarray
        Posterior means and, in a second layer, variances: of the population's coefficients
        ``(2, 1, 2, m)``, and for each group of u, root @ u and population + root @ u, all of
        ``(2, groups, 2, m)``.
    """

    log_marginal: np.ndarray
    population: np.ndarray
    standard: np.ndarray
    own: np.ndarray
    coefficients: np.ndarray


class Integral(NamedTuple):
    """What a grid gives.

    Attributes
    ----------
    posterior : pandas.DataFrame
        The table of the module's docstring.
    axes, marginals : dict of str to numpy.ndarray
        For each scale, the places of the grid on its coordinate, and the masses there.
    places : tuple of numpy.ndarray
        For each scale, where on its axis the settings lie, but those of no weight.
    mass, mean, variance : numpy.ndarray
        Masses of these settings ``(m,)``, and conditional means and variances ``(m, q)``.
    """

    posterior: pd.DataFrame
    axes: dict[str, np.ndarray]
    marginals: dict[str, np.ndarray]
    places: tuple[np.ndarray, ...]
    mass: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def condition(
    Z: np.ndarray,
    y: np.ndarray,
    prior_mean: np.ndarray,
    prior_sd: np.ndarray,
    noise_sd: np.ndarray,
) -> Conditional:
    """Solve ``y ~ Normal(Z theta, noise_sd)`` with ``theta ~ Normal(prior_mean, prior_sd)``.

    Parameters
    ----------
    Z : numpy.ndarray
        Design of the Gaussian part, shape ``(n, p)``.
    y : numpy.ndarray
        Outcome, shape ``(n,)``.
    prior_mean : numpy.ndarray
        Shape ``(p,)``.
    prior_sd : numpy.ndarray
        Independent prior standard deviations, one row a setting, shape ``(m, p)``.
    noise_sd : numpy.ndarray
        Standard deviation of the outcome, one a setting, shape ``(m,)``.

    Returns
    -------
    Conditional
        Means, covariances and log marginal densities of the ``m`` settings.

    Notes
    -----
    With ``theta = prior_mean + prior_sd * u`` the unknown ``u`` is standard normal. Its
    posterior precision is inverted as a correlation matrix, which stays well conditioned while
    a prior standard deviation goes to 0 or to infinity.
    """
    residual = y - Z @ prior_mean
    scaled = prior_sd / noise_sd[:, None]
    precision = np.eye(Z.shape[1]) + scaled[:, :, None] * (Z.T @ Z) * scaled[:, None, :]
    size = np.sqrt(np.diagonal(precision, axis1=1, axis2=2))
    sizes = size[:, :, None] * size[:, None, :]
    correlation = precision / sizes
    covariance_u = np.linalg.inv(correlation) / sizes
    pull = scaled * (Z.T @ residual) / noise_sd[:, None]
    mean_u = np.einsum("mpq,mq->mp", covariance_u, pull)
    log_det = np.linalg.slogdet(correlation).logabsdet + 2 * np.log(size).sum(axis=1)
    misfit = residual @ residual / noise_sd**2 - np.einsum("mp,mp->m", pull, mean_u)
    return Conditional(
        mean=prior_mean + prior_sd * mean_u,
        covariance=prior_sd[:, :, None] * covariance_u * prior_sd[:, None, :],
        log_marginal=-0.5 * (len(y) * np.log(2 * np.pi * noise_sd**2) + log_det + misfit),
    )


def condition_groups(
    x: np.ndarray,
    idx: np.ndarray,
    y: np.ndarray,
    n_groups: int,
    *,
    prior_mean: np.ndarray,
    prior_sd: np.ndarray,
    root: np.ndarray,
    noise_sd: np.ndarray,
) -> Groups:
    """Solve ``y_i ~ Normal(a_j[i] + b_j[i] x_i, noise_sd)``, group by group.

    The coefficients of a group are ``(a_j, b_j) = population + root @ u_j`` with u_j standard
    normal, those of the population ``Normal(prior_mean, prior_sd)``. What `condition` does for
    any design, this does some ten times as fast for this one.

    Parameters
    ----------
    x, idx, y : numpy.ndarray
        Predictor, group and outcome of each row, shape ``(n,)``.
    n_groups : int
        Number of groups.
    prior_mean, prior_sd : numpy.ndarray
        Of the population's two coefficients, shape ``(2,)``.
    root : numpy.ndarray
        A root of the covariance of a group's coefficients, shape ``(2, 2, m)``.
    noise_sd : numpy.ndarray
        Standard deviation of the outcome, shape ``(m,)``.

    Returns
    -------
    Groups
        Log marginal densities, means and variances of the ``m`` settings.

    Notes
    -----
    Matrices lie in the first two axes, groups in the third and settings in the last. S and r are
    the precision and the pull of a group's own rows, G is the covariance of its coefficients
    given those of the population, M the covariance of the latter.
    """

    def dot(*matrices):
        return functools.reduce(lambda A, B: np.einsum("ab...,bc...->ac...", A, B), matrices)

    def transposed(A):
        return np.swapaxes(A, 0, 1)

    def invert(A):
        determinant = A[0, 0] * A[1, 1] - A[0, 1] * A[1, 0]
        adjugate = np.array([[A[1, 1], -A[0, 1]], [-A[1, 0], A[0, 0]]])
        return adjugate / determinant, np.log(determinant).sum(axis=0)

    def figures(mean, covariance):
        variance = np.einsum("aa...->a...", covariance)
        return np.stack(np.broadcast_arrays(mean[:, 0], variance)).swapaxes(1, 2)

    W, member = np.stack([np.ones(len(y)), x]), np.eye(n_groups)[idx]
    residual = y - prior_mean @ W
    S = np.einsum("an,bn,nj->abj", W, W, member)[..., None] / noise_sd**2
    r = np.einsum("an,n,nj->aj", W, residual, member)[:, None, :, None] / noise_sd**2
    eye, D = (A[:, :, None, None] for A in (np.eye(2), np.diag(prior_sd)))
    L = root[:, :, None]
    C, log_det = invert(eye + dot(transposed(L), S, L))
    G = dot(L, C, transposed(L))
    H, h = (np.sum(A - dot(S, G, A), axis=2, keepdims=True) for A in (S, r))
    P, log_det_of_population = invert(eye + dot(D, H, D))
    M = dot(D, P, D)
    moved = dot(M, h)
    population = prior_mean[:, None, None, None] + moved
    u = dot(C, transposed(L), r - dot(S, moved))
    B, T = dot(C, transposed(L), S), eye - dot(G, S)
    covariance_of_u = C + dot(B, M, transposed(B))
    misfit = residual @ residual / noise_sd**2
    misfit -= np.sum(r * dot(G, r), axis=(0, 1, 2)) + np.sum(h * moved, axis=(0, 1, 2))
    log_det += log_det_of_population + len(y) * np.log(2 * np.pi * noise_sd**2)
    return Groups(
        -0.5 * (log_det + misfit),
        figures(population, M),
        figures(u, covariance_of_u),
        figures(dot(L, u), dot(L, covariance_of_u, transposed(L))),
        figures(population + dot(L, u), G + dot(T, M, transposed(T))),
    )


def integrate_scales(
    solve: Callable,
    names: Sequence[str],
    *,
    log_priors: Mapping[str, Callable],
    ranges: Mapping[str, tuple[float, float]],
    steps: Mapping[str, float],
    coordinates: Mapping[str, Coordinate] = MappingProxyType({}),
    tolerance: float = 1e-5,
) -> pd.DataFrame:
    """Posterior of a model that is Gaussian given its scales, checked against a finer grid.

    Parameters
    ----------
    solve : callable
        Takes a dict, scale name -> array ``(m,)``; returns the log density of the outcome with
        the Gaussian part integrated out ``(m,)``, and the conditional means and variances
        ``(m, q)`` of `names`.
    names : sequence of str
        Names of what is normal given the scales.
    log_priors : mapping of str to callable
        For each scale or correlation, its log prior density (over the scale, not its
        coordinate). Any number; four are affordable.
    ranges : mapping of str to (float, float)
        For each scale, the range of its coordinate. Heavy tails want wide ranges.
    steps : mapping of str to float
        For each scale, the step of the grid of its coordinate.
    coordinates : mapping of str to Coordinate
        The coordinate of a scale. Default: its logarithm.
    tolerance : float
        As in `on_two_grids`.

    Returns
    -------
    pandas.DataFrame
        The figures of `names` and of the scales.

    Raises
    ------
    AssertionError
        As `on_two_grids`.
    """
    problem = (solve, names, log_priors, coordinates)
    return on_two_grids(
        lambda *grid: _integrate_on_grid(*problem, *grid).posterior, ranges, steps, tolerance
    )


def on_two_grids(
    compute: Callable, ranges: Mapping, steps: Mapping, tolerance: float = 1e-5
) -> pd.DataFrame:
    """Compute a posterior on a grid and on a finer and wider one, and hold the two equal.

    Parameters
    ----------
    compute : callable
        Takes `ranges` and `steps`, returns a table.
    ranges, steps : mapping
        As in `integrate_scales`.
    tolerance : float
        How far a figure may move, in posterior standard deviations.

    Returns
    -------
    pandas.DataFrame
        That of the finer grid.

    Raises
    ------
    AssertionError
        If a grid with steps 4/5 as long, over ranges a tenth wider, moves a figure by more.
    """
    coarse = compute(ranges, steps)
    wider = {
        name: (low - (high - low) / 20, high + (high - low) / 20)
        for name, (low, high) in ranges.items()
    }
    fine = compute(wider, {name: 0.8 * step for name, step in steps.items()})
    for name, moved in (coarse - fine).abs().div(fine["sd"], axis=0).iterrows():
        for figure in FIGURES:
            assert moved[figure] <= tolerance, (
                f"{figure} of {name} moves by {moved[figure]:.2g} sd on a finer grid"
            )
    return fine


def posterior_two_level(
    idx: np.ndarray, y: np.ndarray, n_groups: int, sigma: float, *, group_levels: Sequence
) -> pd.DataFrame:
    """Posterior of the two-level model by quadrature over log tau.

    Parameters
    ----------
    idx, y, n_groups, sigma
        The model's arguments.
    group_levels : sequence
        Labels of the groups, for the names ``theta[...]``.

    Returns
    -------
    pandas.DataFrame
        ``mu``, ``theta[...]`` and ``tau``.
    """
    Z, scaled = gaussian_part_groups(np.eye(n_groups)[idx], y, sigma)
    away = np.r_[0, np.ones(n_groups)][:, None]  # theta_j = mu + its deviation
    A = np.eye(1 + n_groups) + np.eye(1 + n_groups)[0] * away

    def solve(scales):
        prior_sd = _columns(10.0, *[scales["tau"]] * n_groups)
        given = condition(Z, scaled, np.zeros(1 + n_groups), prior_sd, np.ones(len(prior_sd)))
        return given.log_marginal, *project(given, A)

    return integrate_scales(
        solve,
        ["mu", *entries("theta", group_levels)],
        log_priors={"tau": PRIORS_OF_TAU["two_level"].logpdf},
        ranges={"tau": (-20.0, 4.0)},
        steps={"tau": 0.04},
    )


def posterior_eight_schools(se: np.ndarray, y: np.ndarray, *, levels: Sequence) -> pd.DataFrame:
    """Posterior of the eight schools by quadrature over log tau.

    Parameters
    ----------
    se, y : numpy.ndarray
        The model's arguments.
    levels : sequence
        Labels of the schools, for the names ``z[...]`` and ``theta[...]``.

    Returns
    -------
    pandas.DataFrame
        ``mu``, ``z[...]``, ``theta[...]`` and ``tau``.
    """
    J = len(y)
    Z, scaled = gaussian_part_groups(np.eye(J), y, se)
    mu, deviation = np.eye(1 + J)[:1], np.eye(1 + J)[1:]

    def solve(scales):
        tau = scales["tau"][:, None, None]
        prior_sd = _columns(20.0, *[scales["tau"]] * J)
        given = condition(Z, scaled, np.zeros(1 + J), prior_sd, np.ones(len(prior_sd)))
        every = np.ones(tau.shape)
        A = np.concatenate([every * mu, deviation / tau, every * (mu + deviation)], axis=1)
        return given.log_marginal, *project(given, A)

    return integrate_scales(
        solve,
        ["mu", *entries("z", levels), *entries("theta", levels)],
        log_priors={"tau": PRIORS_OF_TAU["eight_schools"].logpdf},
        ranges={"tau": (-20.0, 4.7)},
        steps={"tau": 0.04},
    )


def posterior_varying_intercept(
    X: np.ndarray,
    idx: np.ndarray,
    y: np.ndarray,
    y_mean: float,
    y_sd: float,
    *,
    predictor_levels: Sequence,
    group_levels: Sequence,
) -> pd.DataFrame:
    """Posterior of the random-intercept model by quadrature over log tau and log sigma.

    Parameters
    ----------
    X, idx, y, y_mean, y_sd
        The model's arguments.
    predictor_levels, group_levels : sequence
        Labels of the columns of `X` and of the groups, for the names ``beta[...]`` and
        ``alpha_j[...]``.

    Returns
    -------
    pandas.DataFrame
        ``alpha``, ``beta[...]``, ``alpha_j[...]``, ``tau`` and ``sigma``.
    """
    k, groups = X.shape[1], len(group_levels)
    Z, prior_mean = gaussian_part_rows(X, idx, groups), np.r_[y_mean, np.zeros(k + groups)]

    def solve(scales):
        prior_sd = _columns(2.5 * y_sd, *[2.0] * k, *[scales["tau"]] * groups)
        return _entries_of(condition(Z, y, prior_mean, prior_sd, scales["sigma"]))

    return integrate_scales(
        solve,
        ["alpha", *entries("beta", predictor_levels), *entries("alpha_j", group_levels)],
        log_priors={
            "tau": PRIORS_OF_TAU["varying_intercept"].logpdf,
            "sigma": prior_of_sigma(y_sd).logpdf,
        },
        # With two groups the posterior of tau falls off as tau^-4 only, so that the integral
        # of tau^2 gains as little as 1 / tau from beyond tau.
        ranges={"tau": (-18.0, 25.0), "sigma": np.log(y_sd) + np.array([-2.0, 1.5])},
        steps={"tau": 0.15, "sigma": 0.03},
    )


def posterior_published_slopes(
    X: np.ndarray,
    idx: np.ndarray,
    y: np.ndarray,
    y_mean: float,
    y_sd: float,
    *,
    intercepts: bool,
    predictor_levels: Sequence,
    group_levels: Sequence,
) -> pd.DataFrame:
    """Posterior of the two published slope models, for two groups.

    Parameters
    ----------
    X, idx, y, y_mean, y_sd
        The models' arguments.
    intercepts : bool
        Whether groups have intercepts: `varying_intercept_slope_published`, else
        `varying_slope_published`.
    predictor_levels, group_levels : sequence
        Labels of the columns of `X` and of the two groups.

    Returns
    -------
    pandas.DataFrame
        ``alpha``, ``sigma``, ``tau_j[...]``, ``beta_j[..., ...]`` and, with intercepts,
        ``alpha_j[...]`` and ``tau_alpha``.

    Notes
    -----
    The likelihood knows the slopes through ``c_k = tau_1 beta_k1 + tau_2 beta_k2`` alone, and
    the prior makes c_k Normal(0, s) with ``s^2 = tau_1^2 + tau_2^2``. So the posterior is that
    of a model with one scale s, and of the angle between tau_1 and tau_2 the data know nothing
    beyond s. Given both scales and c, ``beta_kj = e_j c_k / s + sqrt(1 - e_j^2) v_kj`` with
    ``e_j = tau_j / s`` and v_kj standard normal. The grid of the angle is one of
    ``log(tau_2 / tau_1)``, named ``ratio``.
    """
    if len(group_levels) != 2:
        raise ValueError(f"an angle is drawn by two groups, not {len(group_levels)}")
    k, model = X.shape[1], f"varying_{'intercept_' * intercepts}slope_published"
    Z = gaussian_part_rows(X, idx, 2 * intercepts)
    prior_mean = np.r_[y_mean, np.zeros(Z.shape[1] - 1)]
    slopes = entries("c", predictor_levels)
    names = ["alpha", *slopes, *(entries("alpha_j", group_levels) if intercepts else [])]

    def solve(scales):
        groups = [scales["tau_alpha"]] * 2 if intercepts else []
        prior_sd = _columns(2.5 * y_sd, *[scales["s"]] * k, *groups)
        return _entries_of(condition(Z, y, prior_mean, prior_sd, scales["sigma"]))

    def compute(ranges, steps):
        ratios = _axis(ranges["ratio"], steps["ratio"])
        log_priors = {
            "s": lambda s: _angles(s, ratios)[0] - np.log(s),
            "sigma": prior_of_sigma(y_sd).logpdf,
        }
        log_priors |= {"tau_alpha": PRIORS_OF_TAU[model].logpdf} if intercepts else {}
        given = _integrate_on_grid(solve, names, log_priors, {}, ranges, steps)
        log_s, mass_of_s, place = given.axes["s"], given.marginals["s"], given.places[0]
        s = np.exp(log_s)
        log_prior, weight = _angles(s, ratios)
        kept = np.flatnonzero(given.mass > 1e-10)
        joint = given.mass[kept, None] * weight[place[kept]]
        at, angle = np.nonzero(joint > 1e-10)
        joint, at = joint[at, angle], kept[at]
        posterior = given.posterior.drop(["s", *slopes])
        for level, sign in zip(group_levels, (1, -1), strict=True):
            e = 1 / np.sqrt(1 + np.exp(2 * sign * ratios))
            e_1, e_2 = weight @ e, weight @ e**2
            mean, square = mass_of_s @ (s * e_1), mass_of_s @ (s**2 * e_2)
            log_tau = _axis((-18.0, ranges["s"][1]), steps["s"])
            marginal = _marginal_of_tau(
                log_tau, sign * ratios, log_s, np.log(mass_of_s) - log_prior
            )
            # Two ways to one number: the angle given s, and s given tau_j.
            np.testing.assert_allclose(marginal @ np.exp(log_tau), mean, rtol=1e-5)
            quantiles = _quantiles(log_tau, marginal, LOG)
            posterior.loc[f"tau_j[{level}]"] = (mean, np.sqrt(square - mean**2), *quantiles)
            e_1, e_2, e = e_1[place], e_2[place], e[angle]
            for q, name in enumerate(entries("beta_j", predictor_levels, [level]), 1):
                c, variance = given.mean[:, q] / s[place], given.variance[:, q] / s[place] ** 2
                mean, square = given.mass @ _columns(e_1 * c, e_2 * (c**2 + variance - 1) + 1)
                quantiles = _quantiles_of_mixture(joint, e * c[at], 1 + e**2 * (variance[at] - 1))
                posterior.loc[name] = (mean, np.sqrt(square - mean**2), *quantiles)
        return posterior

    # At s = exp(-1.5) the likelihood is smaller than at its top by more than exp(50); the
    # posterior of s falls off as s^-5 or faster, that of tau_alpha as tau_alpha^-4.
    ranges = {"s": (-1.5, 9.0), "sigma": np.log(y_sd) + np.array([-0.95, 0.35])}
    steps = {"s": 0.15, "sigma": 0.06, "ratio": 0.4}
    ranges["ratio"] = (-20.0, 20.0)
    if intercepts:
        ranges["tau_alpha"], steps["tau_alpha"] = (-6.0, 17.0), 0.3
    return on_two_grids(compute, ranges, steps)


def posterior_own_slopes(
    model: str,
    X: np.ndarray,
    idx: np.ndarray,
    y: np.ndarray,
    n_groups: int,
    y_mean: float,
    y_sd: float,
    *,
    predictor: str,
    group_levels: Sequence,
) -> pd.DataFrame:
    """Posterior of a model whose groups have slopes of their own, for one predictor.

    Parameters
    ----------
    model : str
        Name of the model.
    X, idx, y, n_groups, y_mean, y_sd
        The model's arguments; `X` has one column.
    predictor : str
        Label of that column.
    group_levels : sequence
        Labels of the groups.

    Returns
    -------
    pandas.DataFrame
        All parameters but those entries of ``L_Omega`` that its one correlation fixes.
    """
    if X.shape[1] != 1:
        raise ValueError(f"with {X.shape[1]} predictors there are too many scales: take one")
    correlated = model.startswith("correlated")
    slopes, coefficients = [predictor], ["intercept", predictor]
    taus = entries("tau", coefficients) if correlated else entries("tau_beta", slopes)
    taus = ["tau_alpha", *taus] if model == "varying_intercept_slope" else taus
    (rho,) = entries("L_Omega", slopes, ["intercept"])
    levels = {"alpha": [], "beta": [slopes], "alpha_j": [group_levels]}
    levels["beta_j"] = [group_levels, slopes]
    log_priors = {"sigma": prior_of_sigma(y_sd).logpdf}
    log_priors |= dict.fromkeys(taus, PRIORS_OF_TAU[model].logpdf)
    log_priors |= {rho: log_prior_of_rho} if correlated else {}

    def solve(scales):
        return solve_own_slopes(
            *(model, scales["sigma"], [scales[tau] for tau in taus], scales.get(rho)),
            *(X, idx, y, n_groups, y_mean, y_sd),
        )

    of_taus, steps, tolerance = GRIDS[model]
    steps = dict(zip([*taus, rho], steps, strict=False))
    return integrate_scales(
        solve,
        [
            name
            for site in NORMAL_SITES[model]
            for name in entries(site, *levels.get(site, [group_levels, coefficients]))
        ],
        log_priors=log_priors,
        ranges={"sigma": np.log(y_sd) + np.array([-1.3, 0.8]), rho: (-3.0, 3.0)}
        | dict.fromkeys(taus, of_taus),
        steps={"sigma": 0.18 if correlated else 0.1} | steps,
        coordinates=dict.fromkeys(taus, LOG_LOG) | {rho: ATANH},
        tolerance=tolerance,
    )


def solve_own_slopes(
    model: str,
    sigma: np.ndarray,
    taus: Sequence[np.ndarray],
    rho: np.ndarray | None,
    X: np.ndarray,
    idx: np.ndarray,
    y: np.ndarray,
    n_groups: int,
    y_mean: float,
    y_sd: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve a model of `posterior_own_slopes` for its Gaussian part, its scales given.

    Parameters
    ----------
    model : str
        Name of the model.
    sigma, taus, rho
        Its sd of the rows, its one or two sds of groups and, where it has one, its correlation;
        each of shape ``(m,)``.
    X, idx, y, n_groups, y_mean, y_sd
        The model's arguments; `X` has one column.

    Returns
    -------
    log_marginal, mean, variance : numpy.ndarray
        As a solver returns them; the names are the entries of `NORMAL_SITES`.
    """
    prior_mean, prior_sd = np.array([y_mean, 0.0]), np.array([2.5 * y_sd, 2.0])
    zero = np.zeros(sigma.shape)
    if rho is None:
        first, last = [zero, *taus][-2:]
        root = np.array([[first, zero], [zero, last]])
    else:
        root = np.array([[taus[0], zero], [taus[1] * rho, taus[1] * np.sqrt(1 - rho**2)]])
    if model == "correlated_effects_published":
        prior_mean, prior_sd = np.zeros(2), np.zeros(2)
        Sigma = np.einsum("ab...,cb...->ac...", root, root) + 1e-6 * np.eye(2)[:, :, None]
        root = 5 * Sigma
    given = condition_groups(
        *(X[:, 0], idx, y, n_groups),
        **{"prior_mean": prior_mean, "prior_sd": prior_sd, "root": root, "noise_sd": sigma},
    )
    figures = {
        "alpha": given.population[:, :, 0],
        "beta": given.population[:, :, 1],
        "alpha_j": given.own[:, :, 0],
        "beta_j": given.own[:, :, 1],
        "gamma_j": np.array([5, 25])[:, None, None, None] * given.standard,
        "z": given.standard,
        "coefficient_j": given.coefficients,
    }
    mean, variance = np.concatenate(
        [figures[site].reshape(2, -1, sigma.size) for site in NORMAL_SITES[model]], axis=1
    )
    return given.log_marginal, mean.T, variance.T


def prior_of_sigma(y_sd):
    """Return the prior of sigma."""
    return stats.expon(scale=y_sd)


def log_prior_of_rho(rho):
    """Return the log density of the correlation of a 2 x 2 matrix that is LKJ(2)."""
    return np.log(0.75 * (1 - rho**2))


def gaussian_part_groups(member, y, sd):
    """Return ``Z`` and ``y`` in units of `sd`, with ``Z @ [mu, deviations]`` the mean."""
    sd = np.broadcast_to(sd, y.shape)
    return np.column_stack([np.ones(len(y)), member]) / sd[:, None], y / sd


def gaussian_part_rows(X, idx, groups):
    """Return ``Z`` with ``Z @ [alpha, beta, alpha_j]`` the mean of the model."""
    member = idx[:, None] == np.arange(groups)  # no column where groups have no intercept
    return np.column_stack([np.ones(len(X)), X, member])


def gaussian_sites(
    model: str,
    scales: Mapping,
    *,
    X: np.ndarray,
    idx: np.ndarray,
    y: np.ndarray,
    n_groups: int,
    y_mean: float,
    y_sd: float,
) -> tuple[dict[str, tuple], np.ndarray, np.ndarray, np.ndarray]:
    """Write a model with its scales fixed as ``y ~ Normal(Z theta, sigma)``.

    Parameters
    ----------
    model : str
        Name of a model with predictors.
    scales : mapping
        Values of all sites outside the Gaussian part.
    X, idx, y, n_groups, y_mean, y_sd
        The model's arguments.

    Returns
    -------
    sites : dict of str to tuple
        Site -> shape; theta strings their entries together in this order, last axis fastest.
    Z, prior_mean, prior_sd : numpy.ndarray
        Design ``(n, p)``; prior means and standard deviations ``(p,)``.
    """
    n, k = X.shape
    member = np.eye(n_groups)[idx]
    W = np.column_stack([np.ones(n), X])
    population = [("alpha", (), W[:, 0], y_mean, 2.5 * y_sd), ("beta", (k,), X, 0, 2)]
    own_level = ("alpha_j", (n_groups,), member, 0, scales.get("tau_alpha"))
    own_slopes = ("beta_j", (n_groups, k), np.einsum("nj,nk->njk", member, X), 0)
    match model:
        case "varying_slope_published" | "varying_intercept_slope_published":
            columns = np.einsum("nk,j->nkj", X, scales["tau_j"])
            sites = [population[0], ("beta_j", (k, n_groups), columns, 0, 1)]
            sites += [own_level] if "intercept" in model else []
        case "varying_slope" | "varying_intercept_slope":
            sites = [*population, (*own_slopes, np.tile(scales["tau_beta"], n_groups))]
            sites += [own_level] if "intercept" in model else []
        case "correlated_effects_published":
            L = np.diag(scales["tau"]) @ scales["L_Omega"]
            columns = np.einsum("nj,np->njp", member, W) @ (L @ L.T + 1e-6 * np.eye(1 + k))
            sites = [("gamma_j", (n_groups, 1 + k), columns, 0, 5)]
        case "correlated_effects":
            L = np.diag(scales["tau"]) @ scales["L_Omega"]
            columns = np.einsum("nj,np->njp", member, W) @ L
            sites = [*population, ("z", (n_groups, 1 + k), columns, 0, 1)]
    widths = [int(np.prod(shape)) for _, shape, *_ in sites]
    return (
        {name: shape for name, shape, *_ in sites},
        np.column_stack([columns.reshape(n, -1) for _, _, columns, _, _ in sites]),
        np.concatenate([np.full(p, mean) for p, (*_, mean, _) in zip(widths, sites, strict=True)]),
        np.concatenate([np.ones(p) * sd for p, (*_, sd) in zip(widths, sites, strict=True)]),
    )


def entries(site: str, *levels: Sequence) -> list[str]:
    """Return the names of the entries of an array, as `arviz.summary` has them."""
    return [
        f"{site}[{', '.join(labels)}]" if labels else site for labels in itertools.product(*levels)
    ]


def project(given: Conditional, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return conditional means and variances ``(m, q)`` of ``A theta``, `A` of ``(..., q, p)``."""
    mean = np.squeeze(A @ given.mean[:, :, None], axis=2)
    return mean, np.sum((A @ given.covariance) * A, axis=2)


def _entries_of(given):
    """Return what a solver returns, of a Gaussian part whose entries are the names."""
    variance = np.diagonal(given.covariance, axis1=1, axis2=2)
    return given.log_marginal, given.mean, variance


def _columns(*columns):
    """Stack numbers and arrays ``(m,)`` as the columns of one array ``(m, p)``."""
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def _axis(limits, step):
    low, high = limits
    return np.linspace(low, high, 1 + int(np.ceil((high - low) / step)))


def _integrate_on_grid(solve, names, log_priors, coordinates, ranges, steps):
    """Integrate over one grid."""
    lines = {name: coordinates.get(name, LOG) for name in log_priors}
    axes = {name: _axis(ranges[name], steps[name]) for name in log_priors}
    values = {name: lines[name].value(axis) for name, axis in axes.items()}
    log_mass = functools.reduce(
        np.add.outer,
        [log_priors[name](values[name]) + lines[name].log_slope(axes[name]) for name in axes],
    )
    shape, log_mass = log_mass.shape, log_mass.ravel()
    chunks, top, parts = 1 + log_mass.size // 4096, -np.inf, []
    for chunk in range(chunks):  # each from all over the grid, so that the top is soon known
        settings = np.arange(chunk, log_mass.size, chunks)
        places = np.unravel_index(settings, shape)
        scales = {name: values[name][at] for name, at in zip(axes, places, strict=True)}
        log_marginal, mean, variance = solve(scales)
        log_mass[settings] += log_marginal
        top = max(top, log_mass[settings].max())
        kept = log_mass[settings] > top - 70  # the others count for nothing
        parts.append((settings[kept], mean[kept], variance[kept]))
    settings, mean, variance = (np.concatenate(part) for part in zip(*parts, strict=True))
    total = np.exp(log_mass - top)
    total /= total.sum()
    mass = total[settings]
    posterior = pd.DataFrame(index=[*names, *axes], columns=FIGURES, dtype=float)
    for q, name in enumerate(names):
        posterior.loc[name] = figures_of_mixture(mass, mean[:, q], variance[:, q])
    marginals, total = {}, total.reshape(shape)
    for i, (name, axis) in enumerate(axes.items()):
        marginals[name] = total.sum(axis=tuple(other for other in range(len(shape)) if other != i))
        centre = marginals[name] @ values[name]
        spread = np.sqrt(marginals[name] @ (values[name] - centre) ** 2)
        posterior.loc[name] = (centre, spread, *_quantiles(axis, marginals[name], lines[name]))
    return Integral(
        posterior, axes, marginals, np.unravel_index(settings, shape), mass, mean, variance
    )


def _angles(s, ratios):
    """Log prior of ``log s`` up to a constant ``(m,)``; weights of the ratios given s ``(m, r)``.

    The volume of ``(log tau_1, log tau_2)`` is that of ``(log s, ratio)``.
    """
    share = np.stack([1 / np.sqrt(1 + np.exp(2 * sign * ratios)) for sign in (1, -1)])
    tau = s[:, None, None] * share
    density = np.prod(stats.halfcauchy.pdf(tau, scale=2) * tau, axis=1)
    total = density.sum(axis=1)
    return np.log(total), density / total[:, None]


def _marginal_of_tau(log_tau, ratios, log_s, log_likelihood):
    """Masses of one log tau_j on an even grid, from the log likelihood of s on another.

    `ratios` are the logarithms of the other tau over this one.
    """
    tau = np.exp(log_tau)[:, None]
    other = tau * np.exp(ratios)
    at = np.log(np.hypot(tau, other))
    inside = (log_s[0] <= at) & (at <= log_s[-1])
    smooth = interpolate.make_interp_spline(log_s, log_likelihood, k=5)
    log_mass = np.where(inside, smooth(at), -np.inf) + np.log(tau) + np.log(other)
    log_mass += stats.halfcauchy.logpdf(tau, scale=2) + stats.halfcauchy.logpdf(other, scale=2)
    mass = np.exp(log_mass - log_mass.max()).sum(axis=1)
    return mass / mass.sum()


def figures_of_mixture(mass, mean, variance):
    """Figures of a mixture of normal distributions."""
    centre = mass @ mean
    spread = np.sqrt(mass @ (variance + (mean - centre) ** 2))
    return centre, spread, *_quantiles_of_mixture(mass, mean, variance)


def _quantiles_of_mixture(mass, mean, variance):
    heavy = mass > 1e-10
    mass, mean, sd = mass[heavy] / mass[heavy].sum(), mean[heavy], np.sqrt(variance[heavy])
    centre = mass @ mean
    spread = np.sqrt(mass @ (sd**2 + (mean - centre) ** 2))

    def quantile(p):
        return optimize.brentq(
            lambda x: mass @ special.ndtr((x - mean) / sd) - p,
            centre - 5 * spread,
            centre + 5 * spread,
            xtol=1e-7 * spread,
        )

    return [quantile(p) for p in PROBABILITIES]


def _quantiles(axis, marginal, coordinate):
    """Quantiles of a scale from its marginal masses on an even grid of its coordinate.

    The logarithm of the density is the smoother one: it is interpolated, then integrated.
    """
    smooth = interpolate.make_interp_spline(axis, np.log(np.maximum(marginal, 1e-300)), k=5)
    dense = np.linspace(axis[0], axis[-1], 8 * len(axis))
    cumulative = interpolate.make_interp_spline(dense, np.exp(smooth(dense)), k=5).antiderivative()
    total = cumulative(axis[-1])
    places = [
        optimize.brentq(lambda x, p=p: cumulative(x) / total - p, axis[0], axis[-1], xtol=1e-12)
        for p in PROBABILITIES
    ]
    return coordinate.value(np.array(places))
