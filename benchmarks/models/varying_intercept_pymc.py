"""Random intercept, as published."""

import pymc as pm


def build(X, idx, y, J, y_mean, y_sd):
    """Return the model of `y`; J is the number of groups."""
    with pm.Model() as model:
        alpha = pm.Normal("alpha", y_mean, 2.5 * y_sd)
        beta = pm.Normal("beta", 0.0, 2.0, shape=X.shape[1])
        sigma = pm.Exponential("sigma", scale=y_sd)
        tau = pm.HalfCauchy("tau", 2.0)
        alpha_j = pm.Normal("alpha_j", 0.0, tau, shape=J)
        pm.Normal("y", alpha + alpha_j[idx] + X @ beta, sigma, observed=y)
    return model
