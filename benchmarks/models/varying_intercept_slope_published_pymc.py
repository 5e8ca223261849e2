"""The published "random-intercept-slope" program, in which a group has an intercept alone."""

import pymc as pm


def build(X, idx, y, J, y_mean, y_sd):
    """Return the model of `y`; J is the number of groups."""
    with pm.Model() as model:
        alpha = pm.Normal("alpha", y_mean, 2.5 * y_sd)
        sigma = pm.Exponential("sigma", scale=y_sd)
        tau_alpha = pm.HalfCauchy("tau_alpha", 2.0)
        tau_j = pm.HalfCauchy("tau_j", 2.0, shape=J)
        alpha_j = pm.Normal("alpha_j", 0.0, tau_alpha, shape=J)
        beta_j = pm.Normal("beta_j", 0.0, 1.0, shape=(X.shape[1], J))
        mu = alpha + alpha_j[idx] + X @ (beta_j @ tau_j)
        pm.Normal("y", mu, sigma, observed=y)
    return model
