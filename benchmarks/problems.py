"""The five problems that every engine is given: data, fixed points, settings.

At its top this imports neither JAX nor PyMC, so that no engine pays for another's start.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
MODELS = HERE / "models"


class Problem(NamedTuple):
    """What a model's engines have in common.

    Attributes
    ----------
    sites : dict of str to (str, tuple)
        Parameter -> kind (``"level"``, ``"real"``, ``"positive"``, ``"cholesky"``) and shape.
    compared : tuple of str
        What all engines return under one name; their effective sample sizes are compared.
    target_accept : float
        For every engine, as the chapter that fits the model sets it.
    half : int
        Number of scales whose prior is half a symmetric density. Stan's program, which does not
        double it, lies ``half * log(2)`` below the others.
    exact : bool
        Whether `mlm_utils.quadrature.exact` answers it: at most three scales, and y normal.
    """

    sites: dict
    compared: tuple
    target_accept: float
    half: int
    exact: bool


J, K, RATERS, SCHOOLS = 2, 4, 20, 8  # J backgrounds, K cheeses
ONE = ("positive", ())
PROBLEMS = {
    "varying_intercept": Problem(
        {
            "alpha": ("level", ()),
            "sigma": ONE,
            "tau": ONE,
            "beta": ("real", (K,)),
            "alpha_j": ("real", (J,)),
        },
        ("alpha", "sigma", "tau", "beta", "alpha_j"),
        0.95,
        half=1,
        exact=True,
    ),
    "varying_slope_published": Problem(
        {
            "alpha": ("level", ()),
            "sigma": ONE,
            "tau_j": ("positive", (J,)),
            "beta_j": ("real", (K, J)),
        },
        ("alpha", "sigma", "tau_j", "beta_j"),
        0.998,
        half=J,
        exact=True,
    ),
    "varying_intercept_slope_published": Problem(
        {
            "alpha": ("level", ()),
            "sigma": ONE,
            "tau_alpha": ONE,
            "tau_j": ("positive", (J,)),
            "alpha_j": ("real", (J,)),
            "beta_j": ("real", (K, J)),
        },
        ("alpha", "sigma", "tau_alpha", "tau_j", "alpha_j", "beta_j"),
        0.998,
        half=1 + J,
        exact=False,
    ),
    "raters": Problem(
        {
            "beta": ("real", (2 * K,)),
            "sigma": ONE,
            "tau_rater": ("positive", (K,)),
            "L_Omega_rater": ("cholesky", (K, K)),
            "z_rater": ("real", (RATERS, K)),
        },
        ("beta", "sigma", "tau_rater", "L_Omega_rater", "b_rater"),
        0.9,
        half=1 + K,
        exact=False,
    ),
    "eight_schools": Problem(
        {"mu": ("real", ()), "tau": ONE, "z": ("real", (SCHOOLS,))},
        ("mu", "tau", "theta"),
        0.95,
        half=1,
        exact=True,
    ),
}


def points(name: str) -> list[dict]:
    """Return three fixed points of a problem: parameter -> value."""
    return [
        {site: _value(rng, *spec) for site, spec in PROBLEMS[name].sites.items()}
        for rng in map(np.random.default_rng, (1, 2, 3))
    ]


def _value(rng, kind, shape):
    value = rng.normal(size=shape)
    if kind == "level":
        return 70 + value
    if kind == "positive":
        return 5 * np.exp(value / 2)
    if kind == "cholesky":  # unit rows, zeros above a positive diagonal
        value = np.tril(value, -1) + np.diag(np.exp(np.diag(value) / 2))
        return value / np.linalg.norm(value, axis=1, keepdims=True)
    return value


def offset(engine: str, name: str, point: dict) -> float:
    """Return what an engine's log density lacks to the book's at a point, by formula.

    Stan's programs leave half-distributions undoubled. PyMC draws the Cholesky factor of a
    covariance, ``L_Sigma[i, j] = tau[i] * L_Omega[i, j]``, in place of its sds and correlations:
    row ``i`` (from 0) changes variables at the rate ``tau[i]**i / L_Omega[i, i]``.
    """
    if engine == "stan":
        return PROBLEMS[name].half * float(np.log(2))
    if engine == "pymc" and name == "raters":
        tau, diagonal = point["tau_rater"], np.diag(point["L_Omega_rater"])
        return float(np.sum(np.arange(len(tau)) * np.log(tau) - np.log(diagonal)))
    return 0.0


def book(name: str) -> tuple:
    """Return the book's model, its arguments and its labels, as the chapters make them."""
    from mlm_utils import models
    from mlm_utils.data import load_cheese, load_eight_schools
    from mlm_utils.design import design
    from mlm_utils.multilevel_design import Group, Predictor, multilevel_design
    from mlm_utils.terms import ScalePrior

    if name == "eight_schools":
        schools = load_eight_schools()
        arguments = {"se": schools["se"].to_numpy(), "y": schools["effect"].to_numpy()}
        return models.eight_schools, arguments, {"group": ("school", tuple(schools["school"]))}
    if name == "raters":
        cheese = Predictor("cheese", "sum")
        rows = multilevel_design(
            load_cheese(),
            outcome="y",
            population=["background", cheese, Predictor(("background", "cheese"), "sum")],
            groups=[Group("rater", slopes=[cheese], correlated=True)],
        )
        ten = ScalePrior("half-normal", 10.0)
        beliefs = {
            "intercept": (70, 20),
            "background": (0, 15),
            "cheese": (0, 15),
            "background:cheese": (0, 5),
        }
        prior = rows.prior(beta=beliefs, sigma=ten, tau=ten)
        return models.multilevel, rows.arguments | {"prior": prior}, rows.labels
    rows = design(load_cheese(), outcome="y", predictor="cheese", group="background")
    return getattr(models, name), rows.arguments, rows.labels


def plain_data(name: str) -> dict:
    """Return what PyMC's and Stan's programs take: lists and numbers, groups counted from 0."""
    data = dict(book(name)[1])
    if name == "eight_schools":
        data["J"] = len(data["y"])
    elif name == "raters":
        (term,), prior = data.pop("terms"), data.pop("prior")
        data |= {"W": term.W, "idx": term.idx, "J": term.n_groups}
        data |= {"beta_mean": prior.beta_mean, "beta_sd": prior.beta_sd}
    else:
        data["J"] = data.pop("n_groups")
    return {key: np.asarray(value).tolist() for key, value in data.items()}


def stan_data(data: dict) -> dict:
    """Return plain data as Stan declares it: groups counted from 1, every size said."""
    data = {key: np.asarray(value).tolist() for key, value in data.items()}
    if "idx" in data:
        data["idx"] = [group + 1 for group in data["idx"]]
        data |= {"N": len(data["y"]), "K": len(data["X"][0])}
    if "W" in data:
        data["Q"] = len(data["W"][0])
    return data


def read_data(path) -> dict:
    """Read plain data from JSON, lists as arrays."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    return {
        key: np.array(value) if isinstance(value, list) else value for key, value in data.items()
    }


def digests() -> dict[str, str]:
    """Return the sha256 of each program in `models`; the book's own are held to by densities."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted([*MODELS.glob("*.stan"), *MODELS.glob("*.py")])
    }
