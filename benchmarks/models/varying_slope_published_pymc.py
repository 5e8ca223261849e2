"""The published "random-slope" program, in which no group has a slope."""

import pymc as pm


def build(X, idx, y, J, y_mean, y_sd):
    """Return the model of `y`; J is the number of groups, and `idx` is not used, as published."""
    with pm.Model() as model:
        alpha = pm.Normal("alpha", y_mean, 2.5 * y_sd)
        sigma = pm.Exponential("sigma", scale=y_sd)
        tau_j = pm.HalfCauchy("tau_j", 2.0, shape=J)
        beta_j = pm.Normal("beta_j", 0.0, 1.0, shape=(X.shape[1], J))
        pm.Normal("y", alpha + X @ (beta_j @ tau_j), sigma, observed=y)
    return model
