"""What the general multilevel model takes beside its population design: terms and priors.

A :class:`Term` is one grouping factor and what varies over its groups; a :class:`Prior` holds the
priors as numbers. :func:`check_multilevel` is the model's door. From a table,
:func:`mlm_utils.multilevel_design.multilevel_design` makes both.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from mlm_utils.design import _check_array, _is_known, check_groups, check_number

FAMILIES = ("half-normal", "half-t", "half-cauchy", "exponential")


class ScalePrior(NamedTuple):
    """The prior of a standard deviation: a family on the positive numbers and its scale.

    Attributes
    ----------
    family : str
        ``"half-normal"``, ``"half-t"``, ``"half-cauchy"`` or ``"exponential"``.
    scale : float or array
        The scale (of an exponential: the mean), in units of the outcome for each unit of the
        column; for a term, one number for all effects or one an effect, shape ``(q,)``.
    df : float, optional
        Degrees of freedom, for ``"half-t"`` alone.
    """

    family: str
    scale: Any
    df: float | None = None


class Prior(NamedTuple):
    """All priors of the general multilevel model, as numbers.

    Attributes
    ----------
    beta_mean, beta_sd : array
        Mean and sd of the normal prior of each population coefficient, shape ``(K,)``.
    sigma : ScalePrior
        Prior of the residual sd.
    tau : dict of str to ScalePrior
        Term -> prior of the sds of its effects.
    eta : float
        Concentration of the LKJ priors of correlation matrices; 1 is uniform.
    """

    beta_mean: Any
    beta_sd: Any
    sigma: ScalePrior
    tau: dict[str, ScalePrior]
    eta: float = 2.0


class Term(NamedTuple):
    """A grouping factor and what varies over its groups.

    Attributes
    ----------
    name : str
        Its sites and dimensions are named after it.
    idx : array
        Group of each row, integers ``0 .. n_groups - 1``, shape ``(n,)``.
    n_groups : int
        Number of groups, at least 2, empty ones included.
    W : array
        What each effect multiplies, shape ``(n, q)``: ones for an intercept, a predictor for a
        slope.
    correlated : bool
        Whether the effects of a group are correlated.
    centred : bool
        Whether effects are drawn as such, or as standard normals that are then scaled.
    """

    name: str
    idx: Any
    n_groups: int
    W: Any
    correlated: bool = False
    centred: bool = False


def check_multilevel(X, terms, y=None, *, prior) -> None:
    """Refuse what JAX would clamp, broadcast or cast in silence in the general multilevel model.

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
