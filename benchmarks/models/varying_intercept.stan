data {
  int<lower=1> N, K, J;
  matrix[N, K] X;
  array[N] int<lower=1, upper=J> idx;
  vector[N] y;
  real y_mean;
  real<lower=0> y_sd;
}
parameters {
  real alpha;
  vector[K] beta;
  real<lower=0> sigma, tau;
  vector[J] alpha_j;
}
model {
  target += normal_lpdf(alpha | y_mean, 2.5 * y_sd);
  target += normal_lpdf(beta | 0, 2);
  target += exponential_lpdf(sigma | 1 / y_sd);
  target += cauchy_lpdf(tau | 0, 2);
  target += normal_lpdf(alpha_j | 0, tau);
  target += normal_lpdf(y | alpha + alpha_j[idx] + X * beta, sigma);
}
