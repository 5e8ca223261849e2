/* Exchangeability: draws from a cup to which balls are added, and the probability of each order.

Nothing is drawn at random: the probabilities are exact. */

explorer("exchangeability", ({ red, blue, same, other, draws }) => {
  const four = d3.format(".4f");
  const ROW = 24; // of an order, in pixels
  const TOP = 112; // where the orders begin
  const letters = (order) => order.map((isRed) => (isRed ? "R" : "B")).join("");

  /* The share of its colour in the cup before each draw, and the shares of red and all after it. */
  function follow({ red, blue, same, other }, order) {
    const shares = order.map((isRed) => {
      const share = [isRed ? red : blue, red + blue];
      red += isRed ? same : other;
      blue += isRed ? other : same;
      return share;
    });
    return { shares, next: [red, red + blue] };
  }

  function compute(state) {
    const every = d3.range(2 ** draws.length).map((code) => {
      const order = draws.map((_, i) => (code >> (draws.length - 1 - i)) & 1);
      const { shares, next } = follow(state, order);
      const [top, bottom] = shares.reduce(([a, b], [c, d]) => [a * c, b * d], [1, 1]);
      return { order, code: letters(order), reds: d3.sum(order), shares, next, top, bottom, p: top / bottom };
    });
    const own = every.find(({ code }) => code === letters(state.draws));
    const alike = every.filter(({ reds }) => reds === own.reds).reverse();
    const spread = (orders) => d3.max(orders, (o) => o.p) / d3.min(orders, (o) => o.p);
    return { own, alike, exchangeable: d3.groups(every, (o) => o.reds).every(([, o]) => spread(o) < 1 + 1e-9) };
  }

  const place = d3.scalePoint(d3.range(draws.length), [0, 1]).padding(0.5);
  let held; // the place of the ball that is dragged
  const carry = (state, i, k) => state.draws.splice(k, 0, ...state.draws.splice(i, 1));

  function draw({ svg, width, state, numbers, change }) {
    place.range([0, Math.min(width, 420)]);
    const turn = (i) => change((state) => (state.draws[i] = 1 - state.draws[i]));
    const index = (ball) => svg.selectAll("g.ball").nodes().indexOf(ball);
    const ball = svg.selectAll("g.ball").data(state.draws).join((enter) => {
      const made = enter.append("g").attr("class", "ball").attr("role", "button").attr("tabindex", 0);
      made.append("circle").attr("r", 20);
      made.append("text").attr("class", "letter").attr("aria-hidden", true).attr("dy", "0.35em");
      made.append("text").attr("class", "share").attr("aria-hidden", true).attr("y", 42);
      made.on("click", (event) => turn(index(event.currentTarget)))
        .on("keydown", (event) => {
          const i = index(event.currentTarget);
          const to = i + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0);
          if (event.key === "Enter" || event.key === " ") turn(i);
          else if (to !== i && place(to) !== undefined) {
            change((state) => carry(state, i, to));
            svg.selectAll("g.ball").nodes()[to].focus();
          } else return;
          event.preventDefault();
        })
        .call(d3.drag().container(svg.node())
          .on("start", (event) => (held = index(event.sourceEvent.target.closest("g.ball"))))
          .on("drag", ({ x }) => {
            const to = d3.leastIndex(place.domain(), (i) => Math.abs(place(i) - x));
            if (to !== held) change((state) => carry(state, held, to));
            held = to;
          }));
      return made;
    });
    const share = (i) => (i ? "× " : "") + numbers.own.shares[i].join("/");
    ball.attr("transform", (_, i) => `translate(${place(i)},28)`)
      .classed("red", (isRed) => isRed)
      .attr("aria-label", (isRed, i) =>
        `${isRed ? "R" : "B"}${share(i)}: draw ${i + 1}, ${isRed ? "red" : "blue"}. ` +
        "Enter changes its colour, arrow keys trade it with its neighbour.");
    ball.select("text.letter").text((isRed) => (isRed ? "R" : "B"));
    ball.select("text.share").text((_, i) => share(i));
    explorer.one(svg, "text", "product").attr("x", 4).attr("y", TOP - 16)
      .text(`= ${numbers.own.top}/${numbers.own.bottom} = ${four(numbers.own.p)}`);

    const x = d3.scaleLinear([0, d3.max(numbers.alike, (o) => o.p)], [0, width - 180]);
    const row = svg.selectAll("g.order").data(numbers.alike).join((enter) => {
      const made = enter.append("g").attr("class", "order");
      made.append("rect").attr("class", "band").attr("height", ROW);
      made.append("text").attr("class", "code").attr("x", 4).attr("y", ROW / 2).attr("dy", "0.35em");
      made.append("rect").attr("class", "bar").attr("x", 84).attr("y", 5).attr("height", ROW - 10);
      made.append("text").attr("class", "p").attr("y", ROW / 2).attr("dy", "0.35em");
      return made;
    });
    row.attr("transform", (_, i) => `translate(0,${TOP + ROW * i})`)
      .classed("chosen", (o) => o === numbers.own)
      .on("click", (_, o) => change((state) => (state.draws = [...o.order])));
    row.select("rect.band").attr("width", width);
    row.select("text.code").text((o) => [...o.code].join(" "));
    row.select("rect.bar").attr("width", (o) => x(o.p));
    row.select("text.p").attr("x", (o) => 92 + x(o.p)).text((o) => four(o.p));
  }

  const slider = (name, label, min, max) => ({
    kind: "slider", name, label, min, max,
    get: (state) => state[name],
    set: (state, value) => (state[name] = value),
    show: (state) => state[name],
  });

  return {
    label: "Five draws from the cup, and the probability of each order of their colours",
    state: { red, blue, same, other, draws },
    controls: [
      slider("red", "Red balls at the start", 1, 5),
      slider("blue", "Blue balls at the start", 1, 5),
      slider("same", "Balls added, of the colour drawn", 0, 3),
      slider("other", "Balls added, of the other colour", 0, 3),
    ],
    legend: [["rect.bar-own", "the order above"], ["rect.bar", "other orders of as many reds"]],
    compute,
    height: TOP + 10 * ROW + 4,
    draw,
    say: ({ own, alike, exchangeable }, { red, blue }) => {
      const [low, high] = d3.extent(alike, (o) => o.p);
      return `${exchangeable ? "Exchangeable" : "Not exchangeable"}: ` +
        (high < low * (1 + 1e-9)
          ? `${alike.length === 1 ? "the one order" : `each of the ${alike.length} orders`} of ` +
            `${own.reds} red and ${draws.length - own.reds} blue has probability ${four(own.p)}. `
          : `orders of ${own.reds} red and ${draws.length - own.reds} blue have probabilities from ` +
            `${four(low)} to ${four(high)}. `) +
        `The chance of red was ${red}/${red + blue} at first; for a sixth draw it is ${own.next.join("/")}.`;
    },
    table: ({ own, alike }) => ({
      head: ["order", "shares", "probability"],
      rows: alike.map((o) => [
        o.code,
        o.shares.map((share) => share.join("/")).join(" × "),
        { value: o.p, text: four(o.p) },
      ]),
    }),
  };
});
