"""Eight schools, in non-centred form."""

import pymc as pm


def build(se, y, J):
    """Return the model of `y`; J is the number of schools."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 20.0)
        tau = pm.HalfNormal("tau", 10.0)
        z = pm.Normal("z", 0.0, 1.0, shape=J)
        theta = pm.Deterministic("theta", mu + tau * z)
        pm.Normal("y", theta, se, observed=y)
    return model
