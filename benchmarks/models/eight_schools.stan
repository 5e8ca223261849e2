data {
  int<lower=1> J;
  vector<lower=0>[J] se;
  vector[J] y;
}
parameters {
  real mu;
  real<lower=0> tau;
  vector[J] z;
}
transformed parameters {
  vector[J] theta = mu + tau * z;
}
model {
  target += normal_lpdf(mu | 0, 20);
  target += normal_lpdf(tau | 0, 10);
  target += normal_lpdf(z | 0, 1);
  target += normal_lpdf(y | theta, se);
}
