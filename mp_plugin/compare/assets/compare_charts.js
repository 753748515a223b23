// From the numbers of a comparison to Plotly's figures; nothing here touches the page.
"use strict";

const unit = (data) => (data.metric.isShare ? { factor: 100, name: " points" } : { factor: 1, name: "" });

function groupColors(data, theme) {
  const palette = [theme.muted, theme.accent, theme.warm, theme.good, theme.range];
  return data.groups.map((_, place) => palette[place % palette.length]);
}

// Runs one by one. Lines join the runs of one seed, which is what the paired test looks at.

function valuesFigure(data, theme, isNarrow) {
  const layout = baseLayout(theme, isNarrow);
  const colors = groupColors(data, theme);
  const traces = [];
  for (const seed of sharedSeeds(data)) {
    const points = data.groups.flatMap(({ points }, place) => {
      const found = points.filter((each) => each.seed === seed);
      return found.length === 1 ? [[place, found[0].value]] : [];
    });
    traces.push({
      type: "scatter", mode: "lines", x: points.map(([place]) => place), y: points.map(([, value]) => value),
      line: { color: theme.rule, width: 1.25 }, hoverinfo: "skip",
    });
  }
  data.groups.forEach(({ label, points, mean }, place) => {
    if (mean === null) return;
    traces.push({
      type: "scatter", mode: "lines", x: [place - 0.22, place + 0.22], y: [mean, mean], hoverinfo: "text",
      text: Array(2).fill(`${plain(label)}: mean ${shown(mean, 5)}`), line: { color: colors[place], width: 3 },
    });
    traces.push({
      type: "scatter", mode: "markers", x: points.map(() => place), y: points.map(({ value }) => value), hoverinfo: "text",
      text: points.map(({ seed, value, run }) => `${plain(label)}, seed ${seed ?? "unknown"}: ${shown(value, 5)}<br>${plain(run)}`),
      marker: { color: colors[place], size: 8, opacity: 0.75, line: { color: theme.page, width: 1 } },
    });
  });
  categories(layout.xaxis, data.groups.map(({ label }) => label));
  Object.assign(layout.yaxis, { automargin: true, nticks: 6 });
  const values = data.groups.flatMap(({ points }) => points.map(({ value }) => value));
  if (values.length && Math.min(...values) === Math.max(...values)) {
    layout.yaxis.range = [values[0] - 2 * data.margin, values[0] + 2 * data.margin]; // Plotly would begin at zero
  }
  if (data.metric.isShare) layout.yaxis.tickformat = ".1%";
  Object.assign(layout, { showlegend: false });
  layout.margin.t = 16;
  return { data: traces, layout, height: 320 };
}

// What follows the name of a precision goes below it.
function broken(label) {
  return label.split(" ").map((part) => plain(shortened(part, 18))).join("<br>");
}

function sharedSeeds(data) {
  const [first, ...others] = data.groups;
  const has = ({ points }, seed) => points.filter((each) => each.seed === seed).length === 1;
  const seeds = first.points.map(({ seed }) => seed).filter((seed) => seed !== null);
  return seeds.filter((seed) => has(first, seed) && others.some((group) => has(group, seed)));
}

function categories(axis, labels) {
  Object.assign(axis, {
    tickvals: labels.map((_, place) => place), ticktext: labels.map(broken),
    range: [-0.6, labels.length - 0.4], showgrid: false, ticks: "", fixedrange: true,
  });
}

// Differences with their intervals, and the margin as a band.

function differencesFigure(data, theme, isNarrow) {
  const layout = baseLayout(theme, isNarrow);
  const { factor, name } = unit(data);
  const groups = data.groups.slice(1).filter(({ difference }) => difference);
  const colors = { equivalent: theme.good, same: theme.good, better: theme.good, worse: theme.danger };
  const told = (value) => `${value > 0 ? "+" : ""}${shown(factor * value, 3)}`;
  const traces = groups.map(({ label, kind, difference }, place) => {
    const { mean, low, high } = difference;
    const interval = low === null ? "no test" : `${told(low)} to ${told(high)}${name}`;
    return {
      type: "scatter", mode: "markers", x: [factor * mean], y: [place], hoverinfo: "text",
      text: [`${plain(label)}: ${told(mean)}${name}<br>${interval}`],
      marker: { size: 11, color: colors[kind] || theme.muted, symbol: low === null ? "circle-open" : "circle" },
      error_x: low === null ? undefined : {
        type: "data", symmetric: false, array: [factor * (high - mean)], arrayminus: [factor * (mean - low)],
        color: colors[kind] || theme.muted, thickness: 2.25, width: 7,
      },
    };
  });
  groups.forEach(({ kind, difference: { tested } }, place) => {
    if (!tested) return;
    traces.push({
      type: "scatter", mode: "lines", x: tested.map((end) => factor * end), y: [place, place], hoverinfo: "skip",
      line: { color: colors[kind] || theme.muted, width: 6 },
    });
  });
  const margin = factor * data.margin;
  const band = { type: "rect", xref: "x", yref: "paper", x0: -margin, x1: margin, y0: 0, y1: 1, fillcolor: theme.band, line: { width: 0 }, layer: "below" };
  const zero = { type: "line", xref: "x", yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1, line: { color: theme.muted, width: 1 }, layer: "below" };
  layout.shapes = [band, zero];
  if (data.line !== null) {
    const at = (data.metric.higherIsBetter ? -1 : 1) * factor * data.line;
    layout.shapes.push({ ...zero, x0: at, x1: at, line: { color: theme.danger, width: 1.5, dash: "dot" } });
    layout.annotations = [{ x: at, y: 1, xref: "x", yref: "paper", yanchor: "bottom", showarrow: false, text: "line", font: { color: theme.danger } }];
  }
  const better = data.metric.higherIsBetter ? "better \u2192" : "\u2190 better";
  Object.assign(layout.xaxis, { title: { text: `Difference${name ? ` in${name}` : ""}, ${better}` }, nticks: 8, range: reach(traces, margin, layout) });
  Object.assign(layout.yaxis, {
    tickvals: groups.map((_, place) => place), ticktext: groups.map(({ label }) => broken(label)),
    range: [groups.length - 0.4, -0.6], showgrid: false, ticks: "", automargin: true, fixedrange: true,
  });
  layout.showlegend = false;
  layout.margin.t = data.line === null ? 10 : 26;
  return { data: traces, layout, height: 100 + 54 * groups.length };
}

function reach(traces, margin, layout) {
  const ends = traces.flatMap(({ x, error_x: error }) => (error ? [x[0] - error.arrayminus[0], x[0] + error.array[0]] : x));
  const all = [...ends, -margin, margin, ...layout.shapes.map(({ x0 }) => x0)];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  return [low - 0.08 * (high - low), high + 0.08 * (high - low)];
}

// Multiples of the reference.

function costFigure(data, theme, isNarrow, { bars }) {
  const layout = baseLayout(theme, isNarrow);
  const colors = groupColors(data, theme);
  const known = data.groups.map(({ label }, place) => ({ label, place, bar: bars[place] })).filter(({ bar }) => bar);
  const times = (ratio) => `${shown(ratio, ratio < 1 ? 2 : 3)}\u00d7`;
  const traces = [{
    type: "bar", orientation: "h", x: known.map(({ bar }) => bar.ratio), y: known.map((_, place) => place), width: 0.62,
    marker: { color: known.map(({ place }) => colors[place]) }, hoverinfo: "text", textposition: "none",
    text: known.map(({ label, bar }) => `${plain(label)}: ${times(bar.ratio)}<br>${times(bar.low)} to ${times(bar.high)} over seeds`),
    error_x: {
      type: "data", symmetric: false, color: theme.text, thickness: 1.25, width: 4,
      array: known.map(({ bar }) => bar.high - bar.ratio), arrayminus: known.map(({ bar }) => bar.ratio - bar.low),
    },
  }];
  const top = Math.max(...known.map(({ bar }) => bar.high));
  layout.annotations = known.map(({ bar }, place) => ({
    x: bar.high, y: place, xanchor: "left", xshift: 6, showarrow: false, text: times(bar.ratio), font: { color: theme.text },
  }));
  Object.assign(layout.xaxis, { range: [0, 1.2 * top], showgrid: false, nticks: 5, ticksuffix: "\u00d7", fixedrange: true });
  Object.assign(layout.yaxis, {
    tickvals: known.map((_, place) => place), ticktext: known.map(({ label }) => broken(label)),
    range: [known.length - 0.4, -0.6], showgrid: false, ticks: "", automargin: true, fixedrange: true,
  });
  layout.shapes = [{ type: "line", xref: "x", yref: "paper", x0: 1, x1: 1, y0: 0, y1: 1, line: { color: theme.muted, width: 1, dash: "dot" } }];
  layout.showlegend = false;
  layout.margin.t = 6;
  layout.margin.b = 32;
  return { data: traces, layout, height: 50 + 38 * known.length };
}
