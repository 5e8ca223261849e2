/* What all explorers share: a figure of the page becomes one that answers to its controls.

A classic script, since modules do not load from a page opened from disk. An explorer calls

  explorer(name, (data) => ({ label, state, controls, legend, compute, height, draw, say, table }))

and the figure of class `explorer-NAME` is replaced by

  controls  sliders, choices and buttons, which read and write `state`
  legend    [["line.own circle.own", text], ...]: marks by tag and class, and what they mean
  compute   state -> the numbers shown
  height    of the drawing in pixels; its width is the page's
  draw      ({ svg, width, state, numbers, change }) draws them; change(edit) edits the state
  say       (numbers, state) -> one or two sentences, read aloud as they change
  table     (numbers, state) -> { head, rows } of all numbers; a cell is text, or { text, value }

`data` is what the page's Python wrote into `<script data-explorer="NAME">`. */

window.explorer = function (name, build) {
  const figure = d3.select(`figure.explorer-${name}`);
  const data = d3.select(`script[data-explorer="${name}"]`).text();
  const own = build(JSON.parse(data));
  const start = structuredClone(own.state);
  const state = own.state;

  const body = d3.create("div").attr("class", "explorer-body");
  const panel = body.append("div").attr("class", "explorer-controls");
  const refreshers = own.controls.map((control) =>
    explorer[control.kind](panel, control, change, `${name}-${control.name}`),
  );
  const reset = { name: "reset", label: "Start again", press: () => Object.assign(state, structuredClone(start)) };
  explorer.button(panel, reset, change);

  const legend = body.append("ul").attr("class", "explorer-legend");
  for (const [kind, text] of own.legend) {
    const item = legend.append("li");
    const mark = item.append("svg").attr("viewBox", "0 0 24 12").attr("aria-hidden", true);
    for (const shape of kind.split(" ")) {
      const [tag, name] = shape.split(".");
      mark.append(tag).attr("class", name).attr("x2", 24).attr("y1", 6).attr("y2", 6)
        .attr("cx", 12).attr("cy", 6).attr("r", 4.5).attr("width", 24).attr("height", 12);
    }
    item.append("span").text(text);
  }

  const svg = body.append("svg").attr("class", "explorer-drawing")
    .attr("role", "group").attr("aria-label", own.label);
  const sentence = body.append("p").attr("class", "explorer-says").attr("role", "status");
  const details = body.append("details");
  details.append("summary").text("The numbers as a table");
  const table = details.append("div").attr("class", "explorer-scroll").append("table");

  function change(edit) {
    edit?.(state);
    const numbers = own.compute(state);
    refreshers.forEach((refresh) => refresh(state));
    const width = body.node().clientWidth;
    svg.attr("viewBox", `0 0 ${width} ${own.height}`);
    own.draw({ svg, width, state, numbers, change });
    sentence.text(own.say(numbers, state));
    fill(table, own.table(numbers, state));
  }

  figure.node().insertBefore(body.node(), figure.select("figcaption").node());
  figure.classed("explorer-live", true);
  let width = 0;
  new ResizeObserver(() => {
    if (width !== (width = body.node().clientWidth)) change();
  }).observe(body.node());
  change();

  function fill(table, { head, rows }) {
    table.selectAll("thead").data([head]).join("thead")
      .selectAll("tr").data([head]).join("tr")
      .selectAll("th").data(head).join("th").attr("scope", "col").text((text) => text);
    table.selectAll("tbody").data([rows]).join("tbody")
      .selectAll("tr").data(rows).join("tr")
      .selectAll("th, td").data((row) => row)
      .join((enter) => enter.append((_, i) => document.createElement(i ? "td" : "th")))
      .attr("scope", (_, i) => (i ? null : "row"))
      .attr("data-value", (cell) => cell.value ?? null)
      .text((cell) => cell.text ?? cell);
  }
};

/* The controls. Each is appended to the panel, and returns how it is brought up to date. */

/* { label, min, max, step, get: state -> position, set: (state, position), show: state -> text } */
explorer.slider = function (panel, { label, min, max, step = 1, get, set, show }, change, id) {
  const row = panel.append("div").attr("class", "explorer-slider");
  const name = row.append("label").attr("for", id);
  const shown = row.append("output").attr("for", id);
  const input = row.append("input").attr("type", "range").attr("id", id)
    .attr("min", min).attr("max", max).attr("step", step);
  input.on("input", () => change((state) => set(state, +input.property("value"))));
  return (state) => {
    name.text(typeof label === "function" ? label(state) : label);
    shown.text(show(state));
    input.property("value", get(state)).attr("aria-valuetext", show(state));
  };
};

/* { label, options: [text, ...], get: state -> index, set: (state, index) } */
explorer.choice = function (panel, { label, options, get, set }, change, id) {
  const row = panel.append("div").attr("class", "explorer-choice");
  row.append("label").attr("for", id).text(label);
  const select = row.append("select").attr("id", id);
  select.selectAll("option").data(options).join("option").text((text) => text);
  select.on("change", () => change((state) => set(state, select.property("selectedIndex"))));
  return (state) => select.property("selectedIndex", get(state));
};

/* { name, label, press: (state) } */
explorer.button = function (panel, { name, label, press }, change) {
  panel.append("button").attr("type", "button").attr("data-press", name).text(label)
    .on("click", () => change(press));
  return () => {};
};

/* What drawings share. */

/* One mark of a kind, made when first asked for. */
explorer.one = (parent, kind, name) =>
  parent.selectAll(`${kind}.${name}`).data([0]).join(kind).attr("class", name);

/* A horizontal axis with its name, `y` pixels below the top of the drawing. */
explorer.axis = function (svg, scale, y, label) {
  const ticks = (scale.range()[1] - scale.range()[0]) / 60;
  explorer.one(svg, "g", "axis").attr("transform", `translate(0,${y})`)
    .call(d3.axisBottom(scale).ticks(ticks).tickSizeOuter(0));
  explorer.one(svg, "text", "axis-label").attr("x", d3.mean(scale.range())).attr("y", y + 38)
    .text(label);
};
