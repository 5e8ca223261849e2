/* Shrinkage: groups with estimates y_j of standard errors se_j = sigma / sqrt(n_j), given tau.

mu has a flat prior, so that tau = 0 is complete pooling exactly, and infinite tau none. */

explorer("shrinkage", ({ groups, y, n, sigma, tau, unit, rows }) => {
  const one = d3.format(",.1f");
  const percent = (value) => `${d3.format(".0f")(100 * value)}\u00a0%`;
  const whole = d3.format("d");
  const HEIGHT = 38; // of a group, in pixels
  const SCALE = 10; // tau at the middle of its slider, whose ends are 0 and infinity

  const bounds = [-40, 60];
  const x = d3.scaleLinear(bounds, [0, 1]).clamp(true);
  const text = (value) => (value === Infinity ? "infinite" : one(value));

  function compute({ y, n, sigma, tau }) {
    const variance = n.map((count) => sigma ** 2 / count);
    const mean = (weights) => d3.sum(y, (value, j) => weights[j] * value) / d3.sum(weights);
    // Precisions of y_j around mu; their ratios tend to 1 as tau grows.
    const weights = variance.map((v) => (tau === Infinity ? 1 : 1 / (v + tau ** 2)));
    const B = variance.map((v) => v / (v + tau ** 2));
    const mu = mean(weights);
    return {
      complete: mean(variance.map((v) => 1 / v)),
      mu,
      B,
      se: variance.map(Math.sqrt),
      estimate: y.map((value, j) => B[j] * mu + (1 - B[j]) * value),
      sd: variance.map((v, j) => Math.sqrt((1 - B[j]) * v + B[j] ** 2 / d3.sum(weights))),
    };
  }

  function draw({ svg, width, state, numbers, change }) {
    x.range([28, width - 12]);
    const bottom = 22 + HEIGHT * groups.length;
    explorer.axis(svg, x, bottom, `Effect (${unit})`);
    explorer.one(svg, "line", "zero").attr("x1", x(0)).attr("x2", x(0)).attr("y1", 16).attr("y2", bottom);
    explorer.one(svg, "line", "complete")
      .attr("x1", x(numbers.complete)).attr("x2", x(numbers.complete)).attr("y1", 16).attr("y2", bottom);
    explorer.one(svg, "text", "complete-label").attr("x", x(numbers.complete)).attr("y", 12)
      .text(one(numbers.complete));

    const row = svg.selectAll("g.group").data(groups).join((enter) => {
      const made = enter.append("g").attr("class", "group");
      made.append("rect").attr("class", "band");
      for (const name of ["own", "partial", "pull"]) made.append("line").attr("class", name);
      made.append("circle").attr("class", "partial").attr("r", 5);
      made.append("circle").attr("class", "own").attr("r", 6);
      made.append("text").attr("class", "name").attr("x", 6).attr("y", HEIGHT / 2).attr("dy", "0.35em");
      made.append("circle").attr("class", "handle").attr("r", 17).call(d3.drag()
        .container(svg.node())
        .on("start drag", (event, name) => change((state) => {
          state.chosen = groups.indexOf(name);
          state.y[state.chosen] = Math.round(x.invert(event.x));
        })));
      return made;
    });
    row.attr("transform", (_, j) => `translate(0,${18 + HEIGHT * j})`)
      .classed("chosen", (_, j) => j === state.chosen);
    row.select("text.name").text((name) => name);
    row.select("rect.band").attr("width", width).attr("height", HEIGHT)
      .on("click", (_, name) => change((state) => (state.chosen = groups.indexOf(name))));

    const [above, below] = [13, 26];
    const interval = (lines, centre, sd, level) =>
      lines.attr("x1", (_, j) => x(centre[j] - 1.645 * sd[j]))
        .attr("x2", (_, j) => x(centre[j] + 1.645 * sd[j])).attr("y1", level).attr("y2", level);
    interval(row.select("line.own"), state.y, numbers.se, above);
    interval(row.select("line.partial"), numbers.estimate, numbers.sd, below);
    row.select("line.pull").attr("x1", (_, j) => x(state.y[j])).attr("y1", above)
      .attr("x2", (_, j) => x(numbers.estimate[j])).attr("y2", below);
    row.select("circle.own").attr("cx", (_, j) => x(state.y[j])).attr("cy", above);
    row.select("circle.partial").attr("cx", (_, j) => x(numbers.estimate[j])).attr("cy", below);
    row.select("circle.handle").attr("cx", (_, j) => x(state.y[j])).attr("cy", above);
  }

  return {
    label: "Estimates of each group without pooling, and partially pooled",
    state: { y, n, sigma, tau, chosen: 0 },
    controls: [
      {
        kind: "slider", name: "tau", label: "τ, sd of the effects", min: 0, max: 100,
        get: ({ tau }) => (tau === Infinity ? 100 : (100 * tau) / (SCALE + tau)),
        set: (state, p) => (state.tau = (SCALE * p) / (100 - p)),
        show: ({ tau }) => text(tau),
      },
      {
        kind: "slider", name: "sigma", label: `σ, sd of ${rows} in a group`, min: 10, max: 200,
        get: ({ sigma }) => sigma,
        set: (state, value) => (state.sigma = value),
        show: ({ sigma }) => sigma,
      },
      {
        kind: "slider", name: "n", label: ({ chosen }) => `n, number of ${rows} in ${groups[chosen]}`,
        min: 1, max: 400,
        get: ({ n, chosen }) => n[chosen],
        set: (state, value) => (state.n[state.chosen] = value),
        show: ({ n, chosen }) => n[chosen],
      },
      {
        kind: "slider", name: "y", label: ({ chosen }) => `y, estimate of ${groups[chosen]} alone`,
        min: bounds[0], max: bounds[1],
        get: ({ y, chosen }) => y[chosen],
        set: (state, value) => (state.y[state.chosen] = value),
        show: ({ y, chosen }) => whole(y[chosen]),
      },
      {
        kind: "choice", name: "group", label: "Group", options: groups,
        get: ({ chosen }) => chosen,
        set: (state, index) => (state.chosen = index),
      },
      {
        kind: "button", name: "alike", label: "Make all as large as this one",
        press: (state) => state.n.fill(state.n[state.chosen]),
      },
    ],
    legend: [
      ["line.own circle.own", "no pooling (drag)"],
      ["line.partial circle.partial", "partial pooling"],
      ["line.complete", "complete pooling"],
    ],
    compute,
    height: 22 + HEIGHT * groups.length + 46,
    draw,
    say: ({ B, estimate, mu }, { tau, chosen }) =>
      `With τ ${tau === Infinity ? "infinite" : `= ${one(tau)}`}, ${groups[chosen]} is pulled ` +
      `${percent(B[chosen])} of the way to ${one(mu)}, and estimated at ${one(estimate[chosen])}; ` +
      `the groups' pulls are ${percent(d3.min(B))} to ${percent(d3.max(B))}.`,
    table: (numbers, { y, n }) => ({
      head: ["group", "n", "se", "no pooling", "B", "partial", "sd", "complete"],
      rows: groups.map((name, j) => [
        name,
        ...[[n, String], [numbers.se, one], [y, whole], [numbers.B, percent], [numbers.estimate, one], [numbers.sd, one]]
          .map(([values, show]) => ({ value: values[j], text: show(values[j]) })),
        { value: numbers.complete, text: one(numbers.complete) },
      ]),
    }),
  };
});
