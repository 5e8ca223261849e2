"""The NumPyro models of the book: one function a model, its formula in the docstring.

Every model takes its arrays first and the outcome ``y`` last. With ``y`` given it is the
posterior's model; with ``y=None`` the same function draws the outcome, for prior and
posterior predictions. The chapter that introduces a model writes it out in full, and a test
holds the two equal.

Plates are named for what repeats: ``predictor`` (columns of ``X``), ``group``, ``row``.
"""

import numpyro
import numpyro.distributions as dist

from mlm_utils.design import check_arrays, check_errors, check_groups, check_number


def two_level(idx, y=None, *, n_groups, sigma):
    r"""Draw groups from a population and rows from groups: the smallest multilevel model.

    .. math::

        \mu &\sim \text{Normal}(0, 10) \\
        \tau &\sim \text{half-Normal}(5) \\
        \theta_j &\sim \text{Normal}(\mu, \tau) \\
        y_i &\sim \text{Normal}(\theta_{j[i]}, \sigma)

    Parameters
    ----------
    idx : array
        Group of each row, integers ``0 .. n_groups - 1``, shape ``(n,)``.
    y : array, optional
        Outcome, shape ``(n,)``; None to draw it.
    n_groups : int
        Number of groups, at least 2.
    sigma : float
        The known sd of a row around its group, positive.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range.

    Notes
    -----
    Sample sites: ``mu``, ``tau`` (scalars), ``theta`` (group), ``y`` (row).
    """
    check_groups(idx, y, n_groups=n_groups)
    check_number("sigma", sigma, positive=True)
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("group", n_groups):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("row", idx.shape[0]):
        numpyro.sample("y", dist.Normal(theta[idx], sigma), obs=y)


def eight_schools(se, y=None):
    r"""Partial pooling of estimates with known standard errors, in non-centred form.

    .. math::

        \mu &\sim \text{Normal}(0, 20) \\
        \tau &\sim \text{half-Normal}(10) \\
        z_j &\sim \text{Normal}(0, 1), \quad \theta_j = \mu + \tau z_j \\
        y_j &\sim \text{Normal}(\theta_j, \text{se}_j)

    Parameters
    ----------
    se : array
        Known standard error of each group's estimate, positive, shape ``(n_groups,)``.
    y : array, optional
        Estimates, shape ``(n_groups,)``; None to draw them.

    Raises
    ------
    TypeError, ValueError
        If an array has the wrong shape, type or range.

    Notes
    -----
    Sample sites: ``mu``, ``tau`` (scalars), ``z`` and ``y`` (group); ``theta`` (group) is
    computed. All but ``z`` are in the units of `y`. Source: Rubin (1981), with weakly
    informative priors in place of flat ones.
    """
    check_errors(se, y)
    mu = numpyro.sample("mu", dist.Normal(0.0, 20.0))
    tau = numpyro.sample("tau", dist.HalfNormal(10.0))
    with numpyro.plate("group", se.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, se), obs=y)


def varying_intercept(X, idx, y=None, *, n_groups, y_mean, y_sd):
    r"""Random intercept: each group shifts the mean by an amount of its own.

    .. math::

        \alpha &\sim \text{Normal}(\bar y, 2.5 s_y) \\
        \beta_k &\sim \text{Normal}(0, 2) \\
        \sigma &\sim \text{Exponential}(\text{mean } s_y) \\
        \tau &\sim \text{half-Cauchy}(\text{scale } 2) \\
        \alpha_j &\sim \text{Normal}(0, \tau) \\
        y_i &\sim \text{Normal}(\alpha + \alpha_{j[i]} + x_i^\top \beta, \sigma)

    Parameters
    ----------
    X : array
        Predictors, shape ``(n, k)``.
    idx : array
        Group of each row, integers ``0 .. n_groups - 1``, shape ``(n,)``.
    y : array, optional
        Outcome, shape ``(n,)``; None to draw it.
    n_groups : int
        Number of groups, at least 2.
    y_mean, y_sd : float
        Mean and standard deviation of the outcome, in its units; they scale the priors.

    Raises
    ------
    TypeError, ValueError
        If an array has the wrong shape, type or range (see `check_arrays`).

    Notes
    -----
    Sample sites: ``alpha``, ``sigma``, ``tau`` (scalars), ``beta`` (predictor), ``alpha_j``
    (group), ``y`` (row). All are in the units of the outcome. Source: the published Turing
    tutorial on multilevel models (Storopoli 2021), whose ``Exponential`` takes the mean;
    NumPyro's takes the rate, hence ``1 / y_sd``.
    """
    check_arrays(X, idx, y, n_groups=n_groups, y_mean=y_mean, y_sd=y_sd)
    alpha = numpyro.sample("alpha", dist.Normal(y_mean, 2.5 * y_sd))
    sigma = numpyro.sample("sigma", dist.Exponential(1 / y_sd))
    tau = numpyro.sample("tau", dist.HalfCauchy(2.0))
    with numpyro.plate("predictor", X.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    with numpyro.plate("group", n_groups):
        alpha_j = numpyro.sample("alpha_j", dist.Normal(0.0, tau))
    mu = alpha + alpha_j[idx] + X @ beta
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)
