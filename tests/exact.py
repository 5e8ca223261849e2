"""Posteriors by quadrature, in NumPy and SciPy alone: references that share no code with NUTS.

They serve every model that is Gaussian once its scales are known: the Gaussian part is integrated
exactly, the scales on a grid of their logarithms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import interpolate, optimize, special, stats

PROBABILITIES = (0.05, 0.5, 0.95)


class Posterior(NamedTuple):
    """Moments of every parameter, and quantiles of most.

    Attributes
    ----------
    mean, sd : dict of str to float
        Posterior mean and standard deviation of each parameter.
    quantiles : dict of str to dict of float to float
        Probability -> quantile, for each scale and whatever is normal given the scales.
    """

    mean: dict[str, float]
    sd: dict[str, float]
    quantiles: dict[str, dict[float, float]]

    def table(self) -> pd.DataFrame:
        """Return a row a parameter, labelled as `arviz.summary` labels it.

        Columns ``mean``, ``sd`` and one a probability (``5%``), empty where it is not known.
        """
        quantiles = pd.DataFrame(self.quantiles).T
        quantiles.columns = [f"{100 * p:g}%" for p in quantiles.columns]
        return pd.DataFrame({"mean": self.mean, "sd": self.sd}).join(quantiles)


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
    noise: str | None,
    log_priors: Mapping[str, Callable],
    ranges: Mapping[str, tuple[float, float]],
    steps: Mapping[str, float],
    report: Callable | None = None,
) -> Posterior:
    """Posterior of a model that is Gaussian given its scales, checked against a finer grid.

    Parameters
    ----------
    Z : numpy.ndarray
        Design of the Gaussian part, shape ``(n, p)``.
    y : numpy.ndarray
        Outcome, shape ``(n,)``.
    names : sequence of str
        Names of what `report` reports.
    prior_mean : numpy.ndarray
        Prior means of the Gaussian part, shape ``(p,)``.
    prior_sd : callable
        Takes a dict, scale name -> array ``(m,)``; returns prior standard deviations ``(m, p)``.
    noise : str or None
        The scale that is the standard deviation of the outcome; None where that is 1.
    log_priors : mapping of str to callable
        For each scale, its log prior density (over the scale, not its logarithm). Any number
        of scales; three are affordable.
    ranges : mapping of str to (float, float)
        For each scale, the range of its logarithm. Heavy tails want wide ranges.
    steps : mapping of str to float
        For each scale, the step of the grid of its logarithm.
    report : callable, optional
        Takes the dict of scales and the Gaussian part's `Conditional`; returns conditional means
        and variances ``(m, q)`` of linear functions of the Gaussian part. Default: its entries.

    Returns
    -------
    Posterior
        Means, standard deviations and quantiles of what is reported and of the scales.

    Raises
    ------
    AssertionError
        As `on_two_grids`.
    """
    problem = (Z, y, names, names, prior_mean, prior_sd, noise, log_priors, report or _report_all)
    return on_two_grids(lambda *grid: _integrate_on_grid(*problem, *grid)[0], ranges, steps)


def on_two_grids(compute: Callable, ranges: Mapping, steps: Mapping) -> Posterior:
    """Compute a posterior on a grid and on a finer and wider one, and hold the two equal.

    Parameters
    ----------
    compute : callable
        Takes `ranges` and `steps`, returns a `Posterior`.
    ranges, steps : mapping
        As in `integrate_scales`.

    Returns
    -------
    Posterior
        That of the finer grid.

    Raises
    ------
    AssertionError
        If a grid with steps 2/3 as long, over ranges a tenth wider, moves a mean, a standard
        deviation or a quantile by more than 1e-6 posterior standard deviations.
    """
    coarse = compute(ranges, steps)
    wider = {
        name: (low - (high - low) / 20, high + (high - low) / 20)
        for name, (low, high) in ranges.items()
    }
    fine = compute(wider, {name: step / 1.5 for name, step in steps.items()})
    for name, sd in fine.sd.items():
        for moment in ("mean", "sd"):
            moved = abs(getattr(coarse, moment)[name] - getattr(fine, moment)[name])
            assert moved <= 1e-6 * sd, f"{moment} of {name} moves by {moved:.2g} on a finer grid"
    for name, quantiles in fine.quantiles.items():
        for probability, quantile in quantiles.items():
            moved = abs(coarse.quantiles[name][probability] - quantile)
            assert moved <= 1e-6 * fine.sd[name], (
                f"quantile {probability} of {name} moves by {moved:.2g} on a finer grid"
            )
    return fine


def posterior_two_level(
    idx: np.ndarray, y: np.ndarray, n_groups: int, sigma: float, *, group_levels: Sequence
) -> Posterior:
    """Posterior of the two-level model by quadrature over log tau.

    Parameters
    ----------
    idx, y, n_groups, sigma
        The model's arguments.
    group_levels : sequence
        Labels of the groups, for the names ``theta[...]``.

    Returns
    -------
    Posterior
        ``mu``, ``theta[...]`` and ``tau``.
    """

    def report(scales, given):
        return project(given, np.eye(1 + n_groups) + np.eye(1 + n_groups)[0] * away)

    away = np.r_[0, np.ones(n_groups)][:, None]  # theta_j = mu + its deviation
    return integrate_scales(
        *gaussian_part_groups(np.eye(n_groups)[idx], y, sigma),
        names=["mu", *(f"theta[{level}]" for level in group_levels)],
        prior_mean=np.zeros(1 + n_groups),
        prior_sd=lambda scales: _columns(10.0, *[scales["tau"]] * n_groups),
        noise=None,
        log_priors={"tau": stats.halfnorm(scale=5).logpdf},
        ranges={"tau": (-20.0, 4.0)},
        steps={"tau": 0.04},
        report=report,
    )


def posterior_eight_schools(se: np.ndarray, y: np.ndarray, *, levels: Sequence) -> Posterior:
    """Posterior of the eight schools by quadrature over log tau.

    Parameters
    ----------
    se, y : numpy.ndarray
        The model's arguments.
    levels : sequence
        Labels of the schools, for the names ``z[...]`` and ``theta[...]``.

    Returns
    -------
    Posterior
        ``mu``, ``z[...]``, ``theta[...]`` and ``tau``.
    """
    J = len(y)

    def report(scales, given):
        tau = scales["tau"][:, None, None]
        mu, deviation = np.eye(1 + J)[:1], np.eye(1 + J)[1:]
        every = np.ones((len(tau), 1, 1))
        return project(
            given, np.concatenate([every * mu, deviation / tau, every * (mu + deviation)], axis=1)
        )

    return integrate_scales(
        *gaussian_part_groups(np.eye(J), y, se),
        names=["mu", *(f"{site}[{level}]" for site in ("z", "theta") for level in levels)],
        prior_mean=np.zeros(1 + J),
        prior_sd=lambda scales: _columns(20.0, *[scales["tau"]] * J),
        noise=None,
        log_priors={"tau": stats.halfnorm(scale=10).logpdf},
        ranges={"tau": (-20.0, 4.7)},
        steps={"tau": 0.04},
        report=report,
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
) -> Posterior:
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
    Posterior
        ``alpha``, ``beta[...]``, ``alpha_j[...]``, ``tau`` and ``sigma``.
    """
    k, groups = X.shape[1], len(group_levels)
    return integrate_scales(
        *gaussian_part_rows(X, idx, y, groups),
        names=[
            "alpha",
            *(f"beta[{level}]" for level in predictor_levels),
            *(f"alpha_j[{level}]" for level in group_levels),
        ],
        prior_mean=np.r_[y_mean, np.zeros(k + groups)],
        prior_sd=lambda scales: _columns(2.5 * y_sd, *[2.0] * k, *[scales["tau"]] * groups),
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
) -> Posterior:
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
    Posterior
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
    k = X.shape[1]
    Z, y = gaussian_part_rows(X, idx, y, 2 if intercepts else 0)
    names = [
        "alpha",
        *(f"alpha_j[{level}]" for level in group_levels if intercepts),
        *(f"tau_j[{level}]" for level in group_levels),
        *(f"beta_j[{a}, {level}]" for level in group_levels for a in predictor_levels),
    ]

    def prior_sd(scales):
        groups = [scales["tau_alpha"]] * 2 if intercepts else []
        return _columns(2.5 * y_sd, *[scales["s"]] * k, *groups)

    def compute(ranges, steps):
        ratios = _axis(ranges["ratio"], steps["ratio"])

        def report(scales, given):
            s = scales["s"][:, None]
            _, share, share_2 = _shares(scales["s"], ratios)
            variance = np.diagonal(given.covariance, axis1=1, axis2=2)
            outside = np.r_[0, np.arange(1 + k, Z.shape[1])]  # alpha and alpha_j
            c, c_2 = given.mean[:, 1 : 1 + k], given.mean[:, 1 : 1 + k] ** 2
            c_2 = c_2 + variance[:, 1 : 1 + k]
            means = [given.mean[:, outside], s * share]
            variances = [variance[:, outside], s**2 * (share_2 - share**2)]
            for j in (0, 1):
                e, e_2 = share[:, [j]], share_2[:, [j]]
                means.append(e * c / s)
                variances.append(e_2 * c_2 / s**2 + 1 - e_2 - (e * c / s) ** 2)
            return np.column_stack(means), np.column_stack(variances)

        log_priors = {
            "s": lambda s: _shares(s, ratios)[0] - np.log(s),
            "sigma": stats.expon(scale=y_sd).logpdf,
        }
        if intercepts:
            log_priors["tau_alpha"] = stats.halfcauchy(scale=2).logpdf
        posterior, log_scales, marginals = _integrate_on_grid(
            *(Z, y, names, [name for name in names if name.startswith("alpha")]),
            *(np.r_[y_mean, np.zeros(Z.shape[1] - 1)], prior_sd, "sigma", log_priors, report),
            *(ranges, steps),
        )
        log_likelihood = np.log(marginals["s"]) - _shares(np.exp(log_scales["s"]), ratios)[0]
        quantiles = {name: q for name, q in posterior.quantiles.items() if name != "s"}
        for j, level in enumerate(group_levels):
            name = f"tau_j[{level}]"
            log_tau = _axis((-18.0, ranges["s"][1]), steps["s"])
            marginal = _marginal_of_tau(
                log_tau, ratios if j == 0 else -ratios, log_scales["s"], log_likelihood
            )
            # Two ways to one number: the angle given s, and s given tau_j.
            np.testing.assert_allclose(
                marginal @ np.exp(log_tau), posterior.mean[name], rtol=1e-5, err_msg=name
            )
            quantiles[name] = _quantiles(log_tau, marginal)
        mean, sd = dict(posterior.mean), dict(posterior.sd)
        del mean["s"], sd["s"]
        return Posterior(mean, sd, quantiles)

    # At s = exp(-1.5) the likelihood is smaller than at its top by more than exp(50); the
    # posterior of s falls off as s^-5 or faster, that of tau_alpha as tau_alpha^-4.
    ranges = {"s": (-1.5, 9.0), "sigma": np.log(y_sd) + np.array([-0.95, 0.35])}
    steps = {"s": 0.1, "sigma": 0.05, "ratio": 0.2}
    ranges["ratio"] = (-24.0, 24.0)
    if intercepts:
        ranges["tau_alpha"], steps["tau_alpha"] = (-6.0, 17.0), 0.25
    return on_two_grids(compute, ranges, steps)


def gaussian_part_groups(member, y, sd):
    """Return ``Z`` and ``y`` in units of `sd`, with ``Z @ [mu, deviations]`` the mean."""
    sd = np.broadcast_to(sd, y.shape)
    return np.column_stack([np.ones(len(y)), member]) / sd[:, None], y / sd


def gaussian_part_rows(X, idx, y, groups):
    """Return ``Z`` and ``y`` with ``Z @ [alpha, beta, alpha_j]`` the mean of the model."""
    member = idx[:, None] == np.arange(groups)  # no column where groups have no intercept
    return np.column_stack([np.ones(len(y)), X, member]), y


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


def project(given: Conditional, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return conditional means and variances ``(m, q)`` of ``A theta``, `A` of ``(..., q, p)``."""
    mean = np.squeeze(A @ given.mean[:, :, None], axis=2)
    return mean, np.sum((A @ given.covariance) * A, axis=2)


def _report_all(scales, given):
    return given.mean, np.diagonal(given.covariance, axis1=1, axis2=2)


def _columns(*columns):
    """Stack numbers and arrays ``(m,)`` as the columns of one array ``(m, p)``."""
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def _axis(limits, step):
    low, high = limits
    return np.linspace(low, high, 1 + int(np.ceil((high - low) / step)))


def _integrate_on_grid(
    Z, y, names, normal, prior_mean, prior_sd, noise, log_priors, report, ranges, steps
):
    """Integrate over one grid, a slice of equal first scale at a time.

    Those of `names` that are in `normal` are normal given the scales: their quantiles are known.
    Returns the posterior and, for each scale, the grid of its logarithm and the masses on it.
    """
    scale_names = list(log_priors)
    axes = {name: _axis(ranges[name], steps[name]) for name in scale_names}
    first, *others = scale_names
    rest = np.meshgrid(*(axes[name] for name in others), indexing="ij")
    rest = {name: np.exp(values.ravel()) for name, values in zip(others, rest, strict=True)}
    m = int(np.prod([len(axes[name]) for name in others]))
    log_mass = np.empty((len(axes[first]), m))
    slice_mean = np.empty((len(axes[first]), len(names)))
    slice_variance = np.empty_like(slice_mean)
    columns = [names.index(name) for name in normal]
    mixture = np.empty((2, len(columns), len(axes[first]), m))
    for i, log_scale in enumerate(axes[first]):
        scales = {first: np.full(m, np.exp(log_scale)), **rest}
        noise_sd = np.ones(m) if noise is None else scales[noise]
        given = condition(Z, y, prior_mean, prior_sd(scales), noise_sd)
        log_mass[i] = given.log_marginal
        for name, values in scales.items():
            log_mass[i] += log_priors[name](values) + np.log(values)  # the Jacobian of log
        weight = np.exp(log_mass[i] - log_mass[i].max())
        weight /= weight.sum()
        means, variances = report(scales, given)
        mixture[:, :, i] = means[:, columns].T, variances[:, columns].T
        slice_mean[i] = weight @ means
        slice_variance[i] = weight @ (variances + (means - slice_mean[i]) ** 2)
    mass = np.exp(log_mass - log_mass.max())
    mass = (mass / mass.sum()).reshape([len(axes[name]) for name in scale_names])
    of_slice = mass.reshape(len(axes[first]), -1).sum(axis=1)
    means = of_slice @ slice_mean
    sds = np.sqrt(of_slice @ (slice_variance + (slice_mean - means) ** 2))
    mean = dict(zip(names, means.tolist(), strict=True))
    sd = dict(zip(names, sds.tolist(), strict=True))
    heavy = mass.ravel() > 1e-14
    quantiles = {
        name: _quantiles_of_mixture(mass.ravel()[heavy], *moments.reshape(2, -1)[:, heavy])
        for name, moments in zip(normal, mixture.swapaxes(0, 1), strict=True)
    }
    marginals = {}
    for axis, name in enumerate(scale_names):
        marginals[name] = mass.sum(axis=tuple(a for a in range(mass.ndim) if a != axis))
        values = np.exp(axes[name])
        mean[name] = float(marginals[name] @ values)
        sd[name] = float(np.sqrt(marginals[name] @ (values - mean[name]) ** 2))
        quantiles[name] = _quantiles(axes[name], marginals[name])
    return Posterior(mean, sd, quantiles), axes, marginals


def _shares(s, ratios):
    """Log prior of ``log s`` up to a constant; prior means of ``tau_j / s`` and its square given s.

    Shapes ``(m,)``, ``(m, 2)`` and ``(m, 2)``. The volume of ``(log tau_1, log tau_2)`` is that
    of ``(log s, ratio)``.
    """
    distinct, back = np.unique(s, return_inverse=True)
    share = np.stack([1 / np.sqrt(1 + np.exp(2 * sign * ratios)) for sign in (1, -1)])
    tau = distinct[:, None, None] * share
    density = np.prod(stats.halfcauchy.pdf(tau, scale=2) * tau, axis=1)
    total = density.sum(axis=1)
    weight = density / total[:, None]
    return np.log(total)[back], (weight @ share.T)[back], (weight @ share.T**2)[back]


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


def _quantiles_of_mixture(mass, mean, variance):
    """Quantiles of a mixture of normal distributions."""
    sd = np.sqrt(variance)
    centre, spread = mass @ mean, np.sqrt(mass @ (variance + (mean - mass @ mean) ** 2))

    def quantile(p):
        return optimize.brentq(
            lambda x: mass @ special.ndtr((x - mean) / sd) / mass.sum() - p,
            centre - 20 * spread,
            centre + 20 * spread,
            xtol=1e-10 * spread,
        )

    return {p: float(quantile(p)) for p in PROBABILITIES}


def _quantiles(log_scale, marginal):
    """Quantiles of a scale from its marginal masses on an even grid of its logarithm.

    The logarithm of the density is the smoother one: it is interpolated, then integrated.
    """
    smooth = interpolate.make_interp_spline(log_scale, np.log(np.maximum(marginal, 1e-300)), k=5)
    dense = np.linspace(log_scale[0], log_scale[-1], 8 * len(log_scale))
    cumulative = interpolate.make_interp_spline(dense, np.exp(smooth(dense)), k=5).antiderivative()
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
