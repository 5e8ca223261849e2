"""References that share no code with the package: NumPy and SciPy alone.

Two of them: log densities written from the formulas, and posteriors by quadrature. The
quadrature serves every model that is Gaussian once its scales are known: the Gaussian part is
integrated exactly, the scales on a grid of their logarithms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import interpolate, optimize, stats

PROBABILITIES = (0.05, 0.5, 0.95)


class Posterior(NamedTuple):
    """Moments of every parameter, and quantiles of the scales.

    Attributes
    ----------
    mean, sd : dict of str to float
        Posterior mean and standard deviation of each parameter.
    quantiles : dict of str to dict of float to float
        For each scale, probability -> quantile.
    """

    mean: dict[str, float]
    sd: dict[str, float]
    quantiles: dict[str, dict[float, float]]


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


def log_density_varying_intercept(
    params: Mapping, X: np.ndarray, idx: np.ndarray, y: np.ndarray, y_mean: float, y_sd: float
) -> float:
    """Log joint density of the random-intercept model, constants included.

    Parameters
    ----------
    params : mapping
        ``alpha``, ``sigma``, ``tau`` (numbers), ``beta`` (a column of `X`), ``alpha_j`` (group).
    X, idx, y : numpy.ndarray
        Predictors ``(n, k)``, group of each row ``(n,)``, outcome ``(n,)``.
    y_mean, y_sd : float
        Centre and scale of the priors.

    Returns
    -------
    float
        Log density of parameters and outcome, over the parameters as named (no logarithms).
    """
    alpha, beta, alpha_j = params["alpha"], params["beta"], params["alpha_j"]
    sigma, tau = params["sigma"], params["tau"]
    log_density = stats.norm.logpdf(alpha, loc=y_mean, scale=2.5 * y_sd)
    log_density += stats.norm.logpdf(beta, loc=0, scale=2).sum()
    log_density += stats.expon.logpdf(sigma, scale=y_sd)
    log_density += stats.halfcauchy.logpdf(tau, scale=2)
    log_density += stats.norm.logpdf(alpha_j, loc=0, scale=tau).sum()
    for i in range(len(y)):
        mu = alpha + alpha_j[idx[i]] + sum(X[i, k] * beta[k] for k in range(len(beta)))
        log_density += stats.norm.logpdf(y[i], loc=mu, scale=sigma)
    return float(log_density)


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


def integrate_scales(
    Z: np.ndarray,
    y: np.ndarray,
    *,
    names: Sequence[str],
    prior_mean: np.ndarray,
    prior_sd: Callable,
    noise: str,
    log_priors: Mapping[str, Callable],
    ranges: Mapping[str, tuple[float, float]],
    steps: Mapping[str, float],
) -> Posterior:
    """Posterior of a model that is Gaussian given its scales, checked against a finer grid.

    Parameters
    ----------
    Z : numpy.ndarray
        Design of the Gaussian part, shape ``(n, p)``.
    y : numpy.ndarray
        Outcome, shape ``(n,)``.
    names : sequence of str
        Names of the ``p`` parameters of the Gaussian part.
    prior_mean : numpy.ndarray
        Their prior means, shape ``(p,)``.
    prior_sd : callable
        Takes a dict, scale name -> array ``(m,)``; returns prior standard deviations ``(m, p)``.
    noise : str
        The scale that is the standard deviation of the outcome.
    log_priors : mapping of str to callable
        For each scale, its log prior density (over the scale, not its logarithm). Any number
        of scales; three are affordable.
    ranges : mapping of str to (float, float)
        For each scale, the range of its logarithm. Heavy tails want wide ranges.
    steps : mapping of str to float
        For each scale, the step of the grid of its logarithm.

    Returns
    -------
    Posterior
        Means and standard deviations of the Gaussian part and the scales; quantiles of the
        scales.

    Raises
    ------
    AssertionError
        If a grid with steps 2/3 as long, over ranges a tenth wider, moves a mean or a standard
        deviation by more than 1e-6 posterior standard deviations, or a quantile by 1e-6 of
        itself.
    """
    problem = (Z, y, names, prior_mean, prior_sd, noise, log_priors)
    coarse = _integrate_on_grid(*problem, ranges, steps)
    wider = {
        name: (low - (high - low) / 20, high + (high - low) / 20)
        for name, (low, high) in ranges.items()
    }
    fine = _integrate_on_grid(*problem, wider, {name: step / 1.5 for name, step in steps.items()})
    for name, sd in fine.sd.items():
        for moment in ("mean", "sd"):
            moved = abs(getattr(coarse, moment)[name] - getattr(fine, moment)[name])
            assert moved <= 1e-6 * sd, f"{moment} of {name} moves by {moved:.2g} on a finer grid"
    for name, quantiles in fine.quantiles.items():
        for probability, quantile in quantiles.items():
            moved = abs(coarse.quantiles[name][probability] - quantile)
            assert moved <= 1e-6 * quantile, (
                f"quantile {probability} of {name} moves by {moved:.2g} on a finer grid"
            )
    return fine


def posterior_varying_intercept(
    X: np.ndarray,
    idx: np.ndarray,
    y: np.ndarray,
    y_mean: float,
    y_sd: float,
    *,
    predictor_levels: Sequence,
    group_levels: Sequence,
) -> Posterior:
    """Posterior of the random-intercept model by quadrature over log tau and log sigma.

    Parameters
    ----------
    X, idx, y, y_mean, y_sd
        As in `log_density_varying_intercept`.
    predictor_levels, group_levels : sequence
        Labels of the columns of `X` and of the groups, for the names ``beta[...]`` and
        ``alpha_j[...]``.

    Returns
    -------
    Posterior
        ``alpha``, ``beta[...]``, ``alpha_j[...]``, ``tau`` and ``sigma``.
    """
    k, groups = X.shape[1], len(group_levels)
    fixed_sd = np.r_[2.5 * y_sd, np.full(k, 2.0)]

    def prior_sd(scales):
        tau = scales["tau"]
        return np.column_stack(
            [np.broadcast_to(fixed_sd, (len(tau), 1 + k)), np.tile(tau[:, None], groups)]
        )

    return integrate_scales(
        *gaussian_part_varying_intercept(X, idx, y, groups),
        names=[
            "alpha",
            *(f"beta[{level}]" for level in predictor_levels),
            *(f"alpha_j[{level}]" for level in group_levels),
        ],
        prior_mean=np.r_[y_mean, np.zeros(k + groups)],
        prior_sd=prior_sd,
        noise="sigma",
        log_priors={
            "tau": stats.halfcauchy(scale=2).logpdf,
            "sigma": stats.expon(scale=y_sd).logpdf,
        },
        # With two groups the posterior of tau falls off as tau^-4 only, so that the integral
        # of tau^2 gains as little as 1 / tau from beyond tau.
        ranges={"tau": (-18.0, 25.0), "sigma": np.log(y_sd) + np.array([-2.0, 1.5])},
        steps={"tau": 0.15, "sigma": 0.03},
    )


def gaussian_part_varying_intercept(X, idx, y, groups):
    """Return ``Z`` and ``y`` with ``Z @ [alpha, beta, alpha_j]`` the mean of the model."""
    return np.column_stack([np.ones(len(y)), X, np.eye(groups)[idx]]), y


def _integrate_on_grid(Z, y, names, prior_mean, prior_sd, noise, log_priors, ranges, steps):
    """Integrate over one grid, a slice of equal first scale at a time."""
    scale_names = list(log_priors)
    axes = {
        name: np.linspace(low, high, 1 + int(np.ceil((high - low) / steps[name])))
        for name, (low, high) in ranges.items()
    }
    first, *others = scale_names
    rest = np.meshgrid(*(axes[name] for name in others), indexing="ij")
    rest = {name: np.exp(values.ravel()) for name, values in zip(others, rest, strict=True)}
    m = int(np.prod([len(axes[name]) for name in others]))
    log_mass = np.empty((len(axes[first]), m))
    slice_mean = np.empty((len(axes[first]), Z.shape[1]))
    slice_square = np.empty_like(slice_mean)
    for i, log_scale in enumerate(axes[first]):
        scales = {first: np.full(m, np.exp(log_scale)), **rest}
        given = condition(Z, y, prior_mean, prior_sd(scales), scales[noise])
        log_mass[i] = given.log_marginal
        for name, values in scales.items():
            log_mass[i] += log_priors[name](values) + np.log(values)  # the Jacobian of log
        weight = np.exp(log_mass[i] - log_mass[i].max())
        weight /= weight.sum()
        away = given.mean - prior_mean
        slice_mean[i] = weight @ away
        slice_square[i] = weight @ (away**2 + np.diagonal(given.covariance, axis1=1, axis2=2))
    mass = np.exp(log_mass - log_mass.max())
    mass = (mass / mass.sum()).reshape([len(axes[name]) for name in scale_names])
    of_slice = mass.reshape(len(axes[first]), -1).sum(axis=1)
    shift = of_slice @ slice_mean
    mean = dict(zip(names, (prior_mean + shift).tolist(), strict=True))
    sd = dict(zip(names, np.sqrt(of_slice @ slice_square - shift**2).tolist(), strict=True))
    quantiles = {}
    for axis, name in enumerate(scale_names):
        marginal = mass.sum(axis=tuple(a for a in range(mass.ndim) if a != axis))
        values = np.exp(axes[name])
        mean[name] = float(marginal @ values)
        sd[name] = float(np.sqrt(marginal @ (values - mean[name]) ** 2))
        quantiles[name] = _quantiles(axes[name], marginal)
    return Posterior(mean, sd, quantiles)


def _quantiles(log_scale, marginal):
    """Quantiles of a scale from its marginal masses on an even grid of its logarithm."""
    cumulative = interpolate.make_interp_spline(log_scale, marginal, k=5).antiderivative()
    total = cumulative(log_scale[-1])
    return {
        p: float(
            np.exp(
                optimize.brentq(
                    lambda x, p=p: cumulative(x) / total - p,
                    log_scale[0],
                    log_scale[-1],
                    xtol=1e-12,
                )
            )
        )
        for p in PROBABILITIES
    }
