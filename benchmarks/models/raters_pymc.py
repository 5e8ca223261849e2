"""The last rung of the raters' ladder: intercepts and slopes of raters, correlated."""

import pymc as pm


def build(X, W, idx, y, J, beta_mean, beta_sd):
    """Return the model of `y`; J is the number of raters, W what their effects multiply."""
    q = W.shape[1]
    with pm.Model() as model:
        beta = pm.Normal("beta", beta_mean, beta_sd)
        sigma = pm.HalfNormal("sigma", 10.0)
        L_Sigma, _, tau = pm.LKJCholeskyCov(
            "L_Sigma", n=q, eta=2.0, sd_dist=pm.HalfNormal.dist(10.0, shape=q)
        )
        z = pm.Normal("z_rater", 0.0, 1.0, shape=(J, q))
        b = pm.Deterministic("b_rater", z @ L_Sigma.T)
        pm.Deterministic("tau_rater", tau)
        pm.Deterministic("L_Omega_rater", L_Sigma / tau[:, None])
        pm.Normal("y", X @ beta + (W * b[idx]).sum(axis=1), sigma, observed=y)
    return model
