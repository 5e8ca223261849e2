"""Random intercept, as published, from a formula.

The other four problems are out of Bambi's reach: the published programs with slopes multiply
coefficients by scales of groups that a row does not belong to, Bambi's effects of a group are not
correlated, and it has no outcome of known standard error.
"""

import bambi as bmb
import pandas as pd


def build(X, idx, y, J, y_mean, y_sd):
    """Return Bambi's model of `y`; J, the number of groups, is counted in `idx`."""
    table = pd.DataFrame(X, columns=list("ABCD")).assign(y=y, background=idx)
    priors = {
        "Intercept": bmb.Prior("Normal", mu=y_mean, sigma=2.5 * y_sd),
        **{cheese: bmb.Prior("Normal", mu=0.0, sigma=2.0) for cheese in "ABCD"},
        "sigma": bmb.Prior("Exponential", lam=1 / y_sd),
        "1|background": bmb.Prior("Normal", mu=0.0, sigma=bmb.Prior("HalfCauchy", beta=2.0)),
    }
    model = bmb.Model(
        "y ~ A + B + C + D + (1 | background)",
        table.astype({"background": "category"}),
        priors=priors,
        noncentered=False,
        center_predictors=False,
    )
    model.build()
    return model
