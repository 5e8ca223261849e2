"""The general Gaussian multilevel model: any number of grouping factors, nested or crossed.

One function fits every design that :mod:`mlm_utils.terms` can make. It is the models of
:mod:`mlm_utils.models` with the priors taken out of the code and the one grouping factor turned
into a loop over terms.
"""

import re

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from mlm_utils.design import _check_array, _is_known, check_groups, check_number
from mlm_utils.terms import Prior, ScalePrior, Term

FAMILIES = ("half-normal", "half-t", "half-cauchy", "exponential")


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
        If an argument has the wrong shape, type or range (see `check_arguments`).

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
    check_arguments(X, terms, y, prior=prior)
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
    L_Omega = jnp.eye(q)
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
        return numpyro.deterministic(f"b_{name}", z @ L_Sigma.T)


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


def check_arguments(X, terms, y=None, *, prior) -> None:
    """Refuse arguments of :func:`multilevel` that JAX would clamp, broadcast or cast in silence.

    Parameters
    ----------
    X : array
        Population design, numbers, shape ``(n, K)``, finite.
    terms : tuple of Term
        Grouping factors of the same rows, each with a name of its own.
    y : array, optional
        Outcome, numbers, shape ``(n,)``, finite.
    prior : Prior
        A prior for each column of `X` and each term, scales positive.

    Raises
    ------
    TypeError, ValueError
        If a shape, type or number is out of bounds.
    """
    _check_array("X", X, ndim=2)
    if y is not None:
        _check_array("y", y, ndim=1, n=X.shape[0])
    if not isinstance(terms, tuple) or not all(isinstance(term, Term) for term in terms):
        raise TypeError(f"terms must be a tuple of Term, got {terms!r}: write (term,) for one")
    used = ["coefficient", "row", "beta", "sigma", "y"]
    for term in terms:
        if not isinstance(term.name, str) or not re.fullmatch(r"[A-Za-z]\w*", term.name):
            raise ValueError(
                f"a term is named {term.name!r}: use name= with letters, digits and underscores"
            )
        used += [term.name, f"{term.name}_effect", f"{term.name}_effect_2"]
        used += [f"{kind}_{term.name}" for kind in ("tau", "L_Omega", "z", "b")]
        try:
            _check_term(term, X.shape[0])
        except (TypeError, ValueError) as error:
            raise type(error)(f"term {term.name!r}: {error}") from None
    if twice := [name for name in used if used.count(name) > 1]:
        raise ValueError(
            f"two things would be called {twice[0]!r} in the posterior: give a term another name="
        )
    _check_prior(X, terms, prior)


def _check_term(term, n):
    check_groups(term.idx, n_groups=term.n_groups, n=n)
    _check_array("W", term.W, ndim=2)
    if term.W.shape[0] != n:
        raise ValueError(f"W has {term.W.shape[0]} rows and X has {n}: make them the same rows")
    for name in ("correlated", "centred"):
        if not isinstance(getattr(term, name), bool):
            raise TypeError(f"{name} must be True or False, got {getattr(term, name)!r}")
    if term.correlated and term.W.shape[1] < 2:
        raise ValueError("correlated is True, but W has one column: set it to False")


def _check_prior(X, terms, prior):
    if not isinstance(prior, Prior):
        raise TypeError(f"prior must be a Prior, got {prior!r}: a design makes one (.prior)")
    for name, values in (("beta_mean", prior.beta_mean), ("beta_sd", prior.beta_sd)):
        _check_array(name, values, ndim=1, n=X.shape[1])
    _check_positive("beta_sd", prior.beta_sd)
    check_number("eta", prior.eta, positive=True)
    names = {term.name: term.W.shape[1] for term in terms}
    if not isinstance(prior.tau, dict) or set(prior.tau) != set(names):
        raise ValueError(
            f"tau must map each term of {list(names)}, and nothing else, to a ScalePrior, got "
            f"{prior.tau!r}"
        )
    for name, scale, size in (
        ("sigma", prior.sigma, None),
        *((f"tau[{name!r}]", prior.tau[name], q) for name, q in names.items()),
    ):
        _check_scale_prior(name, scale, size)


def _check_scale_prior(name, prior, size):
    if not isinstance(prior, ScalePrior) or prior.family not in FAMILIES:
        raise ValueError(
            f"the prior of {name} must be a ScalePrior of a family in {FAMILIES}, got {prior!r}: "
            "try ScalePrior('half-normal', 10.0)"
        )
    if size is not None and np.ndim(prior.scale):
        _check_array(f"the scale of {name}", prior.scale, ndim=1, n=size)
        _check_positive(f"the scale of {name}", prior.scale)
    else:
        check_number(f"the scale of {name}", prior.scale, positive=True)
    if (prior.family == "half-t") != (prior.df is not None):
        raise ValueError(
            f"the prior of {name} is {prior.family} with df={prior.df}: half-t takes df, for "
            "example 3, and no other family does"
        )
    if prior.df is not None:
        check_number(f"the df of {name}", prior.df, positive=True)


def _check_positive(name, values):
    if _is_known(values) and np.min(values) <= 0:
        k = int(np.argmin(values))
        raise ValueError(f"{name}[{k}] is {values[k]}: it must be positive, in units of y")
