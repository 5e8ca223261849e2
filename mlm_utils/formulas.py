"""The log joint densities of the models, written from their formulas in NumPy and SciPy alone.

One function a model, under the model's name: it takes a point (site name -> value) and the
model's own keyword arguments, and returns the log density of point and outcome, constants
included, over the parameters as named (no logarithms, no transforms). Loops run over groups and
rows as the formulas do.
"""

import numpy as np
from scipy import special, stats


def two_level(point, *, idx, y, n_groups, sigma) -> float:
    """Two-level model: ``theta_j ~ Normal(mu, tau)``, ``y_i ~ Normal(theta_j[i], sigma)``."""
    mu, tau, theta = point["mu"], point["tau"], point["theta"]
    log_density = _normal(mu, 0, 10) + stats.halfnorm.logpdf(tau, scale=5)
    for j in range(n_groups):
        log_density += _normal(theta[j], mu, tau)
    return log_density + _normal(y, [theta[j] for j in idx], sigma)


def eight_schools(point, *, se, y) -> float:
    """Eight schools: ``z_j ~ Normal(0, 1)``, ``y_j ~ Normal(mu + tau z_j, se_j)``."""
    mu, tau, z = point["mu"], point["tau"], point["z"]
    log_density = _normal(mu, 0, 20) + stats.halfnorm.logpdf(tau, scale=10) + _normal(z, 0, 1)
    for j in range(len(y)):
        log_density += _normal(y[j], mu + tau * z[j], se[j])
    return log_density


def varying_intercept(point, *, X, idx, y, n_groups, y_mean, y_sd) -> float:
    """Random intercept: mean ``alpha + alpha_j[i] + x_i' beta``."""
    beta, tau, alpha_j = point["beta"], point["tau"], point["alpha_j"]
    log_density = _level(point, y_mean, y_sd) + _noise(point, y_sd)
    log_density += _normal(beta, 0, 2) + stats.halfcauchy.logpdf(tau, scale=2)
    for j in range(n_groups):
        log_density += _normal(alpha_j[j], 0, tau)
    mean = [point["alpha"] + alpha_j[idx[i]] + _dot(X[i], beta) for i in range(len(y))]
    return log_density + _normal(y, mean, point["sigma"])


def varying_slope_published(point, *, X, idx, y, n_groups, y_mean, y_sd) -> float:
    """Sum slopes as published: mean ``alpha + sum_j tau_j x_i' beta_.j``, for every group."""
    tau_j, beta_j = point["tau_j"], point["beta_j"]
    log_density = _level(point, y_mean, y_sd) + _noise(point, y_sd) + _normal(beta_j, 0, 1)
    for j in range(n_groups):
        log_density += stats.halfcauchy.logpdf(tau_j[j], scale=2)
    mean = [
        point["alpha"] + sum(tau_j[j] * _dot(X[i], beta_j[:, j]) for j in range(n_groups))
        for i in range(len(y))
    ]
    return log_density + _normal(y, mean, point["sigma"])


def varying_intercept_slope_published(point, *, X, idx, y, n_groups, y_mean, y_sd) -> float:
    """Sum slopes as published, with intercepts ``alpha_j ~ Normal(0, tau_alpha)`` of each group."""
    tau_j, beta_j, tau_alpha = point["tau_j"], point["beta_j"], point["tau_alpha"]
    log_density = _level(point, y_mean, y_sd) + _noise(point, y_sd) + _normal(beta_j, 0, 1)
    log_density += stats.halfcauchy.logpdf(tau_alpha, scale=2)
    for j in range(n_groups):
        log_density += stats.halfcauchy.logpdf(tau_j[j], scale=2)
        log_density += _normal(point["alpha_j"][j], 0, tau_alpha)
    mean = [
        point["alpha"]
        + point["alpha_j"][idx[i]]
        + sum(tau_j[j] * _dot(X[i], beta_j[:, j]) for j in range(n_groups))
        for i in range(len(y))
    ]
    return log_density + _normal(y, mean, point["sigma"])


def varying_slope(point, *, X, idx, y, n_groups, y_mean, y_sd) -> float:
    """Random slope: mean ``alpha + sum_k x_ik (beta_k + beta_kj[i])``."""
    log_density, slope = _slopes(point, n_groups)
    log_density += _level(point, y_mean, y_sd) + _noise(point, y_sd)
    mean = [point["alpha"] + _dot(X[i], slope[idx[i]]) for i in range(len(y))]
    return log_density + _normal(y, mean, point["sigma"])


def varying_intercept_slope(point, *, X, idx, y, n_groups, y_mean, y_sd) -> float:
    """Random both: mean ``alpha + alpha_j[i] + sum_k x_ik (beta_k + beta_kj[i])``."""
    log_density, slope = _slopes(point, n_groups)
    log_density += _level(point, y_mean, y_sd) + _noise(point, y_sd)
    log_density += stats.halfnorm.logpdf(point["tau_alpha"], scale=5)
    for j in range(n_groups):
        log_density += _normal(point["alpha_j"][j], 0, point["tau_alpha"])
    mean = [
        point["alpha"] + point["alpha_j"][idx[i]] + _dot(X[i], slope[idx[i]]) for i in range(len(y))
    ]
    return log_density + _normal(y, mean, point["sigma"])


def correlated_effects_published(point, *, X, idx, y, n_groups, y_mean, y_sd) -> float:
    """Multiply effects by Sigma, as published: ``b_j = Sigma gamma_j``."""
    tau, gamma_j = point["tau"], point["gamma_j"]
    covariance = np.diag(tau) @ point["L_Omega"] @ point["L_Omega"].T @ np.diag(tau)
    covariance += 1e-6 * np.eye(len(tau))
    log_density = _noise(point, y_sd) + lkj_cholesky(point["L_Omega"], 2)
    log_density += stats.halfcauchy.logpdf(tau, scale=2).sum()
    b = []
    for j in range(n_groups):
        log_density += _normal(gamma_j[j], 0, 5)
        b.append(covariance @ gamma_j[j])
    mean = [_dot([1, *X[i]], b[idx[i]]) for i in range(len(y))]
    return log_density + _normal(y, mean, point["sigma"])


def correlated_effects(point, *, X, idx, y, n_groups, y_mean, y_sd) -> float:
    """Correlated effects: ``b_j = (alpha, beta) + diag(tau) L_Omega z_j``."""
    alpha, beta, tau, z = (point[site] for site in ("alpha", "beta", "tau", "z"))
    log_density = _level(point, y_mean, y_sd) + _noise(point, y_sd) + _normal(beta, 0, 2)
    log_density += lkj_cholesky(point["L_Omega"], 2)
    log_density += stats.halfcauchy.logpdf(tau, scale=2).sum()
    b = []
    for j in range(n_groups):
        log_density += _normal(z[j], 0, 1)
        b.append(np.array([alpha, *beta]) + np.diag(tau) @ point["L_Omega"] @ z[j])
    mean = [_dot([1, *X[i]], b[idx[i]]) for i in range(len(y))]
    return log_density + _normal(y, mean, point["sigma"])


def lkj_cholesky(L, eta) -> float:
    """Log density of the Cholesky factor `L` of a correlation matrix that is LKJ(`eta`).

    The density of the matrix is ``det(Omega)^(eta - 1) / c`` with c from equation (16) of
    Lewandowski, Kurowicka and Joe (2009), a product of beta functions. Between the free entries
    of `L` and of the matrix lies the Jacobian ``prod_i L_ii^(d - i)``.
    """
    d, diagonal = len(L), np.diag(L)
    log_c = 0.0
    for k in range(1, d):
        a = eta + (d - k - 1) / 2
        log_c += (d - k) * ((2 * eta - 2 + d - k) * np.log(2) + special.betaln(a, a))
    log_jacobian = sum((d - i) * np.log(diagonal[i - 1]) for i in range(1, d + 1))
    return float(2 * (eta - 1) * np.log(diagonal).sum() + log_jacobian - log_c)


def _level(point, y_mean, y_sd):
    return _normal(point["alpha"], y_mean, 2.5 * y_sd)


def _noise(point, y_sd):
    return float(stats.expon.logpdf(point["sigma"], scale=y_sd))


def _slopes(point, n_groups):
    """Return the log prior of population and group slopes, and each group's own slopes."""
    beta, tau_beta, beta_j = point["beta"], point["tau_beta"], point["beta_j"]
    log_prior = _normal(beta, 0, 2) + stats.halfnorm.logpdf(tau_beta, scale=5).sum()
    for j in range(n_groups):
        for k in range(len(beta)):
            log_prior += _normal(beta_j[j, k], 0, tau_beta[k])
    return log_prior, [beta + beta_j[j] for j in range(n_groups)]


def _normal(value, loc, scale):
    return float(np.sum(stats.norm.logpdf(value, loc=loc, scale=scale)))


def _dot(x, coefficients):
    return sum(x[k] * coefficients[k] for k in range(len(x)))


def multilevel(point, *, X, terms, y, prior) -> float:
    """General model: mean ``x_i' beta + sum_t w_ti' b_tj[i]``, ``b_tj = diag(tau_t) L_t z_tj``."""
    log_density = _scale(point["sigma"], prior.sigma, prior.sigma.scale)
    for k in range(len(point["beta"])):
        log_density += _normal(point["beta"][k], prior.beta_mean[k], prior.beta_sd[k])
    mean = [_dot(X[i], point["beta"]) for i in range(len(y))]
    for term in terms:
        q = len(term.W[0])
        tau, tau_prior = point[f"tau_{term.name}"], prior.tau[term.name]
        for k in range(q):
            log_density += _scale(tau[k], tau_prior, np.broadcast_to(tau_prior.scale, q)[k])
        L_Omega = np.eye(q)
        if term.correlated:
            L_Omega = point[f"L_Omega_{term.name}"]
            log_density += lkj_cholesky(L_Omega, prior.eta)
        factor = np.diag(tau) @ L_Omega
        b = []
        for j in range(term.n_groups):
            if term.centred:
                b.append(point[f"b_{term.name}"][j])
                log_density += stats.multivariate_normal.logpdf(b[j], cov=factor @ factor.T)
            else:
                z = point[f"z_{term.name}"][j]
                log_density += _normal(z, 0, 1)
                b.append(factor @ z)
        for i in range(len(y)):
            mean[i] += _dot(term.W[i], b[term.idx[i]])
    return log_density + _normal(y, mean, point["sigma"])


def _scale(value, prior, scale):
    """Return the log density of a standard deviation under a family and scale."""
    if prior.family == "half-t":
        return np.log(2) + stats.t.logpdf(value, prior.df, scale=scale)
    families = {"half-normal": stats.halfnorm, "half-cauchy": stats.halfcauchy}
    families["exponential"] = stats.expon
    return families[prior.family].logpdf(value, scale=scale)
