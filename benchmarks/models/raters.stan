data {
  int<lower=1> N, K, J, Q;
  matrix[N, K] X;
  matrix[N, Q] W;
  array[N] int<lower=1, upper=J> idx;
  vector[N] y;
  vector[K] beta_mean;
  vector<lower=0>[K] beta_sd;
}
parameters {
  vector[K] beta;
  real<lower=0> sigma;
  vector<lower=0>[Q] tau_rater;
  cholesky_factor_corr[Q] L_Omega_rater;
  matrix[J, Q] z_rater;
}
transformed parameters {
  matrix[J, Q] b_rater = z_rater * diag_pre_multiply(tau_rater, L_Omega_rater)';
}
model {
  target += normal_lpdf(beta | beta_mean, beta_sd);
  target += normal_lpdf(sigma | 0, 10);
  target += normal_lpdf(tau_rater | 0, 10);
  target += lkj_corr_cholesky_lpdf(L_Omega_rater | 2);
  target += normal_lpdf(to_vector(z_rater) | 0, 1);
  target += normal_lpdf(y | X * beta + rows_dot_product(W, b_rater[idx]), sigma);
}
