"""The NumPyro models of the book: one function a model, its formula in the docstring.

Every model takes its arrays first and the outcome ``y`` last. With ``y`` given it is the
posterior's model; with ``y=None`` the same function draws the outcome, for prior and
posterior predictions. The chapter that introduces a model writes it out in full, and a test
holds the two equal.

Plates are named for what repeats: ``predictor`` (columns of ``X``), ``coefficient`` (the
intercept and the predictors), ``group``, ``row``. The last model, :func:`multilevel`, takes any
number of grouping factors, and its plates are named after them.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from mlm_utils.design import check_arrays, check_errors, check_groups, check_number
from mlm_utils.terms import check_multilevel


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


def varying_slope_published(X, idx, y=None, *, n_groups, y_mean, y_sd):
    r"""Compute what the published "random-slope" program computes: no group has a slope.

    .. math::

        \alpha &\sim \text{Normal}(\bar y, 2.5 s_y), \quad
        \sigma \sim \text{Exponential}(\text{mean } s_y) \\
        \tau_j &\sim \text{half-Cauchy}(\text{scale } 2) \\
        \beta_{kj} &\sim \text{Normal}(0, 1) \\
        y_i &\sim \text{Normal}(\alpha + \textstyle\sum_j \tau_j\, x_i^\top \beta_{\cdot j}, \sigma)

    Parameters
    ----------
    X, idx, y, n_groups, y_mean, y_sd
        As in :func:`varying_intercept`. `idx` is checked and, as published, not used.

    Raises
    ------
    TypeError, ValueError
        As in :func:`varying_intercept`.

    Notes
    -----
    Sample sites: ``alpha``, ``sigma`` (scalars), ``tau_j`` (group), ``beta_j`` (predictor,
    group), ``y`` (row). The sum runs over all groups for every row, so the two "groups" are
    interchangeable names. Source: the published Turing tutorial (Storopoli 2021). The model its
    text describes is :func:`varying_slope`.
    """
    check_arrays(X, idx, y, n_groups=n_groups, y_mean=y_mean, y_sd=y_sd)
    alpha = numpyro.sample("alpha", dist.Normal(y_mean, 2.5 * y_sd))
    sigma = numpyro.sample("sigma", dist.Exponential(1 / y_sd))
    with numpyro.plate("group", n_groups):
        tau_j = numpyro.sample("tau_j", dist.HalfCauchy(2.0))
        with numpyro.plate("predictor", X.shape[1]):
            beta_j = numpyro.sample("beta_j", dist.Normal(0.0, 1.0))
    mu = alpha + X @ beta_j @ tau_j
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def varying_intercept_slope_published(X, idx, y=None, *, n_groups, y_mean, y_sd):
    r"""Compute what the published "random-intercept-slope" program computes.

    .. math::

        \alpha &\sim \text{Normal}(\bar y, 2.5 s_y), \quad
        \sigma \sim \text{Exponential}(\text{mean } s_y) \\
        \tau_\alpha &\sim \text{half-Cauchy}(\text{scale } 2), \quad
        \tau_j \sim \text{half-Cauchy}(\text{scale } 2) \\
        \alpha_j &\sim \text{Normal}(0, \tau_\alpha), \quad
        \beta_{kj} \sim \text{Normal}(0, 1) \\
        y_i &\sim \text{Normal}(\alpha + \alpha_{j[i]}
            + \textstyle\sum_j \tau_j\, x_i^\top \beta_{\cdot j}, \sigma)

    Parameters
    ----------
    X, idx, y, n_groups, y_mean, y_sd
        As in :func:`varying_intercept`. `idx` chooses the intercept only, as published.

    Raises
    ------
    TypeError, ValueError
        As in :func:`varying_intercept`.

    Notes
    -----
    Sample sites: ``alpha``, ``sigma``, ``tau_alpha`` (scalars), ``tau_j``, ``alpha_j`` (group),
    ``beta_j`` (predictor, group), ``y`` (row). Source: the published Turing tutorial (Storopoli
    2021). The model its text describes is :func:`varying_intercept_slope`.
    """
    check_arrays(X, idx, y, n_groups=n_groups, y_mean=y_mean, y_sd=y_sd)
    alpha = numpyro.sample("alpha", dist.Normal(y_mean, 2.5 * y_sd))
    sigma = numpyro.sample("sigma", dist.Exponential(1 / y_sd))
    tau_alpha = numpyro.sample("tau_alpha", dist.HalfCauchy(2.0))
    with numpyro.plate("group", n_groups):
        tau_j = numpyro.sample("tau_j", dist.HalfCauchy(2.0))
        alpha_j = numpyro.sample("alpha_j", dist.Normal(0.0, tau_alpha))
        with numpyro.plate("predictor", X.shape[1]):
            beta_j = numpyro.sample("beta_j", dist.Normal(0.0, 1.0))
    mu = alpha + alpha_j[idx] + X @ beta_j @ tau_j
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def varying_slope(X, idx, y=None, *, n_groups, y_mean, y_sd):
    r"""Random slope: each group has coefficients of its own around the population's.

    .. math::

        \alpha &\sim \text{Normal}(\bar y, 2.5 s_y), \quad
        \sigma \sim \text{Exponential}(\text{mean } s_y) \\
        \beta_k &\sim \text{Normal}(0, 2), \quad
        \tau_{\beta k} \sim \text{half-Normal}(5) \\
        \beta_{kj} &\sim \text{Normal}(0, \tau_{\beta k}) \\
        y_i &\sim \text{Normal}(\alpha + \textstyle\sum_k x_{ik} (\beta_k + \beta_{k j[i]}), \sigma)

    Parameters
    ----------
    X, idx, y, n_groups, y_mean, y_sd
        As in :func:`varying_intercept`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`varying_intercept`.

    Notes
    -----
    Sample sites: ``alpha``, ``sigma`` (scalars), ``beta``, ``tau_beta`` (predictor), ``beta_j``
    (group, predictor), ``y`` (row). All are in the units of the outcome for 0/1 predictors.
    """
    check_arrays(X, idx, y, n_groups=n_groups, y_mean=y_mean, y_sd=y_sd)
    alpha = numpyro.sample("alpha", dist.Normal(y_mean, 2.5 * y_sd))
    sigma = numpyro.sample("sigma", dist.Exponential(1 / y_sd))
    with numpyro.plate("predictor", X.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
        tau_beta = numpyro.sample("tau_beta", dist.HalfNormal(5.0))
        with numpyro.plate("group", n_groups):
            beta_j = numpyro.sample("beta_j", dist.Normal(0.0, tau_beta))
    mu = alpha + jnp.sum(X * (beta + beta_j[idx]), axis=1)
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def varying_intercept_slope(X, idx, y=None, *, n_groups, y_mean, y_sd):
    r"""Random intercept and slope: each group has a level and coefficients of its own.

    .. math::

        \alpha &\sim \text{Normal}(\bar y, 2.5 s_y), \quad
        \sigma \sim \text{Exponential}(\text{mean } s_y) \\
        \tau_\alpha &\sim \text{half-Normal}(5), \quad
        \alpha_j \sim \text{Normal}(0, \tau_\alpha) \\
        \beta_k &\sim \text{Normal}(0, 2), \quad
        \tau_{\beta k} \sim \text{half-Normal}(5) \\
        \beta_{kj} &\sim \text{Normal}(0, \tau_{\beta k}) \\
        y_i &\sim \text{Normal}(\alpha + \alpha_{j[i]}
            + \textstyle\sum_k x_{ik} (\beta_k + \beta_{k j[i]}), \sigma)

    Parameters
    ----------
    X, idx, y, n_groups, y_mean, y_sd
        As in :func:`varying_intercept`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`varying_intercept`.

    Notes
    -----
    Sample sites: ``alpha``, ``sigma``, ``tau_alpha`` (scalars), ``alpha_j`` (group), ``beta``,
    ``tau_beta`` (predictor), ``beta_j`` (group, predictor), ``y`` (row).
    """
    check_arrays(X, idx, y, n_groups=n_groups, y_mean=y_mean, y_sd=y_sd)
    alpha = numpyro.sample("alpha", dist.Normal(y_mean, 2.5 * y_sd))
    sigma = numpyro.sample("sigma", dist.Exponential(1 / y_sd))
    tau_alpha = numpyro.sample("tau_alpha", dist.HalfNormal(5.0))
    with numpyro.plate("group", n_groups):
        alpha_j = numpyro.sample("alpha_j", dist.Normal(0.0, tau_alpha))
    with numpyro.plate("predictor", X.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
        tau_beta = numpyro.sample("tau_beta", dist.HalfNormal(5.0))
        with numpyro.plate("group", n_groups):
            beta_j = numpyro.sample("beta_j", dist.Normal(0.0, tau_beta))
    mu = alpha + alpha_j[idx] + jnp.sum(X * (beta + beta_j[idx]), axis=1)
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def correlated_effects_published(X, idx, y=None, *, n_groups, y_mean, y_sd):
    r"""Compute what the public head's "correlated" program computes: Sigma times gamma.

    .. math::

        w_i &= (1, x_i), \quad
        \sigma \sim \text{Exponential}(\text{mean } s_y), \quad
        \Omega \sim \text{LKJ}(2) \\
        \tau_k &\sim \text{half-Cauchy}(\text{scale } 2), \quad
        \gamma_{kj} \sim \text{Normal}(0, 5) \\
        \Sigma &= \text{diag}(\tau)\, \Omega\, \text{diag}(\tau) + 10^{-6} I, \quad
        b_j = \Sigma \gamma_j \\
        y_i &\sim \text{Normal}(w_i^\top b_{j[i]}, \sigma)

    Parameters
    ----------
    X, idx, y, n_groups, y_mean, y_sd
        As in :func:`varying_intercept`. `y_mean` is checked and, as published, not used: every
        coefficient, the intercept included, has prior mean 0.

    Raises
    ------
    TypeError, ValueError
        As in :func:`varying_intercept`.

    Notes
    -----
    Sample sites: ``sigma`` (scalar), ``L_Omega`` (coefficient, coefficient_2), ``tau``
    (coefficient), ``gamma_j`` (group, coefficient), ``y`` (row); ``coefficient_j`` (group,
    coefficient) is computed. Given Sigma, the covariance of a group's coefficients is 25
    Sigma^2, not Sigma. Source: the public head of the Turing tutorial (Storopoli 2021). Repaired
    in :func:`correlated_effects`.
    """
    check_arrays(X, idx, y, n_groups=n_groups, y_mean=y_mean, y_sd=y_sd)
    W = jnp.column_stack([jnp.ones(X.shape[0]), X])
    sigma = numpyro.sample("sigma", dist.Exponential(1 / y_sd))
    L_Omega = numpyro.sample(
        "L_Omega",
        dist.LKJCholesky(W.shape[1], 2.0),
        infer={"event_dims": ["coefficient", "coefficient_2"]},
    )
    with numpyro.plate("coefficient", W.shape[1]):
        tau = numpyro.sample("tau", dist.HalfCauchy(2.0))
        with numpyro.plate("group", n_groups):
            gamma_j = numpyro.sample("gamma_j", dist.Normal(0.0, 5.0))
            L_Sigma = tau[:, None] * L_Omega
            Sigma = L_Sigma @ L_Sigma.T + 1e-6 * jnp.eye(W.shape[1])
            coefficient_j = numpyro.deterministic("coefficient_j", gamma_j @ Sigma)
    mu = jnp.sum(W * coefficient_j[idx], axis=1)
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def correlated_effects(X, idx, y=None, *, n_groups, y_mean, y_sd):
    r"""Correlated effects: a group's intercept and slopes are drawn together, non-centred.

    .. math::

        w_i &= (1, x_i), \quad
        \alpha \sim \text{Normal}(\bar y, 2.5 s_y), \quad
        \beta_k \sim \text{Normal}(0, 2) \\
        \sigma &\sim \text{Exponential}(\text{mean } s_y), \quad
        \tau_k \sim \text{half-Cauchy}(\text{scale } 2), \quad
        \Omega = L_\Omega L_\Omega^\top \sim \text{LKJ}(2) \\
        z_{kj} &\sim \text{Normal}(0, 1), \quad
        b_j = (\alpha, \beta) + \text{diag}(\tau)\, L_\Omega z_j \\
        y_i &\sim \text{Normal}(w_i^\top b_{j[i]}, \sigma)

    Parameters
    ----------
    X, idx, y, n_groups, y_mean, y_sd
        As in :func:`varying_intercept`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`varying_intercept`.

    Notes
    -----
    Sample sites: ``alpha``, ``sigma`` (scalars), ``beta`` (predictor), ``L_Omega``
    (coefficient, coefficient_2), ``tau`` (coefficient), ``z`` (group, coefficient), ``y``
    (row); ``coefficient_j`` (group, coefficient) is computed: a group's own intercept and
    slopes, the population's included. Source: Lewandowski, Kurowicka and Joe (2009) for the
    prior of Omega.
    """
    check_arrays(X, idx, y, n_groups=n_groups, y_mean=y_mean, y_sd=y_sd)
    W = jnp.column_stack([jnp.ones(X.shape[0]), X])
    alpha = numpyro.sample("alpha", dist.Normal(y_mean, 2.5 * y_sd))
    sigma = numpyro.sample("sigma", dist.Exponential(1 / y_sd))
    with numpyro.plate("predictor", X.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    L_Omega = numpyro.sample(
        "L_Omega",
        dist.LKJCholesky(W.shape[1], 2.0),
        infer={"event_dims": ["coefficient", "coefficient_2"]},
    )
    with numpyro.plate("coefficient", W.shape[1]):
        tau = numpyro.sample("tau", dist.HalfCauchy(2.0))
        with numpyro.plate("group", n_groups):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            population = jnp.concatenate([alpha[None], beta])
            L_Sigma = tau[:, None] * L_Omega
            coefficient_j = numpyro.deterministic("coefficient_j", population + z @ L_Sigma.T)
    mu = jnp.sum(W * coefficient_j[idx], axis=1)
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def multilevel(X, terms, y=None, *, prior):
    r"""General multilevel model: a population, and terms whose effects vary over groups.

    .. math::

        \beta_k &\sim \text{Normal}(m_k, s_k), \quad
        \sigma \sim \text{its prior} \\
        \tau_{tk} &\sim \text{the prior of term } t, \quad
        \Omega_t = L_t L_t^\top \sim \text{LKJ}(\eta)
            \text{ where correlated, else } I \\
        z_{tj} &\sim \text{Normal}(0, I), \quad
        b_{tj} = \text{diag}(\tau_t)\, L_t z_{tj} \\
        y_i &\sim \text{Normal}(x_i^\top \beta
            + \textstyle\sum_t w_{ti}^\top b_{t j_t[i]}, \sigma)

    Parameters
    ----------
    X : array
        Population design, shape ``(n, K)``; its first column may be the constant.
    terms : tuple of Term
        Grouping factors; with none this is a regression.
    y : array, optional
        Outcome, shape ``(n,)``; None to draw it.
    prior : Prior
        All priors, in units of the outcome.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong shape, type or range (see `check_multilevel`).

    Notes
    -----
    Sample sites: ``beta`` (coefficient), ``sigma`` (scalar), ``y`` (row); of a term ``rater``:
    ``tau_rater`` (rater_effect), ``L_Omega_rater`` (rater_effect, rater_effect_2) where
    correlated, and ``z_rater`` (rater, rater_effect), from which ``b_rater`` (rater,
    rater_effect) is computed: how far a group lies from the population. A centred term has no
    ``z_rater`` and draws ``b_rater`` itself.

    A new group is drawn as the old ones were, from the population: for each posterior draw a
    standard normal ``z`` and ``b = tau * (L_Omega @ z)``. A group without rows in `idx` is a new
    group, and its ``b_rater`` are such draws.
    """
    check_multilevel(X, terms, y, prior=prior)
    with numpyro.plate("coefficient", X.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(prior.beta_mean, prior.beta_sd))
    sigma = numpyro.sample("sigma", scale_distribution(prior.sigma))
    mu = X @ beta
    for term in terms:
        b = group_effects(term, prior.tau[term.name], prior.eta)
        mu = mu + jnp.sum(term.W * b[term.idx], axis=1)
    with numpyro.plate("row", X.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def group_effects(term, tau_prior, eta):
    """Draw the effects of a term, inside a model: scales, correlation, effects.

    Parameters
    ----------
    term : Term
        The grouping factor, with `q` effects.
    tau_prior : ScalePrior
        Prior of the sds of the effects.
    eta : float
        Concentration of the LKJ prior.

    Returns
    -------
    jax.Array
        The effects of each group, shape ``(n_groups, q)``.
    """
    name, q = term.name, term.W.shape[1]
    effects = numpyro.plate(f"{name}_effect", q, dim=-1)
    with effects:
        tau = numpyro.sample(f"tau_{name}", scale_distribution(tau_prior))
    if term.correlated:
        L_Omega = numpyro.sample(
            f"L_Omega_{name}",
            dist.LKJCholesky(q, eta),
            infer={"event_dims": [f"{name}_effect", f"{name}_effect_2"]},
        )
        L_Sigma = tau[:, None] * L_Omega
    if term.centred and term.correlated:
        with numpyro.plate(name, term.n_groups):
            return numpyro.sample(
                f"b_{name}",
                dist.MultivariateNormal(jnp.zeros(q), scale_tril=L_Sigma),
                infer={"event_dims": [f"{name}_effect"]},
            )
    with numpyro.plate(name, term.n_groups, dim=-2), effects:
        if term.centred:
            return numpyro.sample(f"b_{name}", dist.Normal(0.0, tau))
        z = numpyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))
        b = z @ L_Sigma.T if term.correlated else tau * z
        return numpyro.deterministic(f"b_{name}", b)


def scale_distribution(prior):
    """Return the distribution that a :class:`ScalePrior` names.

    Parameters
    ----------
    prior : ScalePrior
        Family and scale.

    Returns
    -------
    numpyro.distributions.Distribution
        On the positive numbers.
    """
    return {
        "half-normal": lambda: dist.HalfNormal(prior.scale),
        "half-t": lambda: dist.FoldedDistribution(dist.StudentT(prior.df, 0.0, prior.scale)),
        "half-cauchy": lambda: dist.HalfCauchy(prior.scale),
        "exponential": lambda: dist.Exponential(1 / prior.scale),
    }[prior.family]()
