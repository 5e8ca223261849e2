data {
  int<lower=1> N, K, J;
  matrix[N, K] X;
  array[N] int<lower=1, upper=J> idx;  // not used, as published
  vector[N] y;
  real y_mean;
  real<lower=0> y_sd;
}
parameters {
  real alpha;
  real<lower=0> sigma;
  vector<lower=0>[J] tau_j;
  matrix[K, J] beta_j;
}
model {
  target += normal_lpdf(alpha | y_mean, 2.5 * y_sd);
  target += exponential_lpdf(sigma | 1 / y_sd);
  target += cauchy_lpdf(tau_j | 0, 2);
  target += normal_lpdf(to_vector(beta_j) | 0, 1);
  target += normal_lpdf(y | alpha + X * (beta_j * tau_j), sigma);
}
