// From data to Plotly's figures; nothing here touches the page.
"use strict";

const KINDS = {
  activation: "Activations",
  activation_gradient: "Activation gradients",
  parameter_gradient: "Parameter gradients",
};

const MEASURES = {
  headroom: { title: "least headroom", text: (x) => (Number.isNaN(x) ? "none" : `${shown(x, 4)} bits`) },
  underflow: { title: "largest share that underflows", text: percent },
  flushed: { title: "largest share flushed to zero", text: percent },
  saturation: { title: "largest share that saturates", text: percent },
  non_finite: { title: "largest share of NaN and Inf", text: percent },
  amax: { title: "largest magnitude", text: (x) => shown(x, 4) },
};

function stepAxis(layout, steps) {
  const span = Math.max(...steps) - Math.min(...steps);
  Object.assign(layout.xaxis, { title: { text: "Optimizer step" }, tickformat: ",d", dtick: span < 8 ? 1 : undefined });
}

// The loss scale, on an axis of its logarithm to base two.

function scaleFigure(data, theme, isNarrow) {
  const layout = baseLayout(theme, isNarrow);
  const { points, window: windows } = data.scale;
  stepAxis(layout, [...points, ...windows].map(([step]) => step));
  const bounded = windows.filter(([, lowest, highest]) => lowest !== null && highest > 0);
  const end = data.end;
  const fits = polygon(windows, end, (low, high) => low !== null && high >= low);
  const none = polygon(windows, end, (low, high) => low !== null && high > 0 && high < low);
  const traces = [];
  const band = { type: "scatter", mode: "lines", fill: "toself", line: { width: 0 }, hoverinfo: "skip" };
  if (fits.x.length) traces.push({ ...band, ...fits, name: "Nothing overflows, little is flushed", fillcolor: theme.band });
  if (none.x.length) traces.push({ ...band, ...none, name: "No such scale", fillcolor: theme.noband });
  if (!bounded.length && windows.some(([, , highest]) => highest > 0)) {
    const x = windows.map(([step]) => step);
    const y = windows.map(([, , highest]) => (highest > 0 ? Math.log2(highest) : null));
    traces.push({
      x, y, type: "scatter", mode: "lines", name: "Overflows above", line: { color: theme.muted, width: 1, dash: "dot" },
    });
  }
  traces.push({
    x: points.map(([step]) => step),
    y: points.map(([, scale]) => Math.log2(scale)),
    text: points.map(([step, scale]) => `step ${stepRange([step, step])}<br>loss scale ${powerOfTwo(scale)}`),
    type: "scatter", mode: "lines", name: "Loss scale", line: { shape: "hv", color: theme.accent, width: 2.25 },
    hoverinfo: "text",
  });
  for (const [cause, symbol] of Object.entries(data.symbols)) {
    const marks = data.marks.filter((mark) => mark.cause === cause);
    if (!marks.length) continue;
    traces.push({
      x: marks.map((mark) => mark.step),
      y: marks.map((mark) => (mark.scale > 0 ? Math.log2(mark.scale) : null)),
      text: marks.map(markText),
      type: "scatter", mode: "markers", name: `Incident: ${cause}`, hoverinfo: "text",
      marker: { symbol, size: 10, color: theme.danger, line: { color: theme.page, width: 1.5 } },
    });
  }
  const exponents = traces.flatMap((trace) => trace.y).filter(Number.isFinite);
  const [low, high] = [Math.floor(Math.min(...exponents)), Math.ceil(Math.max(...exponents))];
  const every = Math.max(1, Math.ceil((high - low) / 8));
  const ticks = Array.from({ length: Math.floor((high - low) / every) + 1 }, (_, place) => low + place * every);
  Object.assign(layout.yaxis, {
    tickvals: ticks, ticktext: ticks.map((each) => powerOfTwo(2 ** each)), range: [low - 0.6, high + 0.6],
  });
  layout.margin.l = 48;
  return { data: traces, layout, height: 340 };
}

function polygon(windows, end, isWanted) {
  const [x, y] = [[], []];
  windows.forEach(([first, lowest, highest], place) => {
    if (!isWanted(lowest, highest)) return;
    const gap = place ? first - windows[place - 1][0] : 1;
    const next = place + 1 < windows.length ? windows[place + 1][0] : endOfLast(windows[0][0], first, gap, end);
    const [low, high] = [Math.log2(lowest), Math.log2(highest)];
    x.push(first, next, next, first, first, null);
    y.push(low, low, high, high, low, null);
  });
  return { x, y };
}

function markText(mark) {
  const origin = [mark.operator, mark.layer].filter(Boolean).map((each) => plain(shortened(each, 60)));
  const more = mark.count > 1 ? `${mark.count} incidents from step ` : "step ";
  return [`${more}${stepRange([mark.step, mark.step])}: ${mark.cause}`, ...origin, plain(mark.done)].join("<br>");
}

// The exponents of one layer, above what the formats hold.

function exponentFigure(data, theme, isNarrow, histogram, isGradient) {
  const layout = baseLayout(theme, isNarrow);
  const { lowest, counts, scale } = histogram;
  const total = counts.reduce((sum, count) => sum + count, 0);
  const exponents = counts.map((_, place) => lowest + place);
  const shares = counts.map((count) => (100 * count) / total);
  const shift = isGradient && scale > 0 ? Math.log2(scale) : 0;
  const traces = [{
    type: "bar", x: exponents.map((each) => each - 0.5), y: shares, width: 0.9, marker: { color: theme.accent },
    text: exponents.map((each, place) => barText(each, counts[place], total)), hoverinfo: "text", textposition: "none",
    name: isGradient ? "True values" : "Values", xaxis: "x", yaxis: "y",
  }];
  if (shift) {
    const at = (place) => exponents[0] + place + shift;
    traces.push({
      type: "scatter", mode: "lines", line: { shape: "hv", color: theme.warm, width: 2 }, hoverinfo: "skip",
      x: [at(-1), ...exponents.map((_, place) => at(place - 1)), at(exponents.length - 1), at(exponents.length - 1)],
      y: [0, ...shares, shares[shares.length - 1], 0], name: `Times the loss scale, ${powerOfTwo(scale)}`,
    });
  }
  const names = Object.keys(data.formats).reverse();
  for (const isNormal of [true, false]) {
    const bounds = names.map((name) => {
      const { max, smallest_normal: normal, smallest_subnormal: subnormal } = data.formats[name];
      return (isNormal ? [normal, max] : [subnormal, normal]).map(Math.log2);
    });
    traces.push({
      type: "bar", orientation: "h", xaxis: "x", yaxis: "y2", y: names, width: 0.52,
      base: bounds.map(([low]) => low), x: bounds.map(([low, high]) => high - low),
      marker: { color: isNormal ? theme.range : theme.subrange }, name: isNormal ? "Full precision" : "Subnormal: fewer digits",
      text: names.map((name) => `${name}: ${isNormal ? "full precision from" : "subnormal from"} ${rangeText(data.formats[name], isNormal)}`),
      hoverinfo: "text", textposition: "none",
    });
  }
  const ends = [exponents[0] - 1, exponents[exponents.length - 1]];
  const reach = [Math.min(-26, ends[0], ends[0] + shift) - 2, Math.max(18, ends[1], ends[1] + shift) + 2];
  const every = reach[1] - reach[0] > 70 || isNarrow ? 16 : 8;
  const ticks = Array.from({ length: 40 }, (_, place) => (place - 20) * every).filter((x) => x > reach[0] && x < reach[1]);
  Object.assign(layout.xaxis, {
    range: reach, tickvals: ticks, ticktext: ticks.map((each) => powerOfTwo(2 ** each)), anchor: "y2",
    title: { text: "Magnitude" },
  });
  Object.assign(layout.yaxis, { domain: [0.42, 1], ticksuffix: "%", rangemode: "tozero", nticks: 5 });
  layout.yaxis2 = { ...layout.yaxis, domain: [0, 0.36], ticksuffix: "", showgrid: false, ticks: "", fixedrange: true };
  layout.barmode = "overlay";
  return { data: traces, layout, height: 430 };
}

function barText(exponent, count, total) {
  const bounds = `${powerOfTwo(2 ** (exponent - 1))} to ${powerOfTwo(2 ** exponent)}`;
  return `${bounds}<br>${count.toLocaleString("en-US")} values, ${percent(count / total)}`;
}

function rangeText(format, isNormal) {
  const [low, high] = isNormal
    ? [format.smallest_normal, format.max]
    : [format.smallest_subnormal, format.smallest_normal];
  return `${shown(low)} to ${shown(high)}`;
}

// What low precision costs, measured against FP32.

function driftFigure(data, theme, isNarrow, name) {
  const layout = baseLayout(theme, isNarrow);
  stepAxis(layout, data.drift.map((each) => each.step));
  const isLost = (each) => each.lost.includes(name);
  // What is not finite has no place on the line, and interrupts it.
  const points = data.drift.filter((each) => name in each.values || isLost(each));
  const at = (each) => `step ${stepRange([each.step, each.step])}<br>`;
  const traces = [{
    type: "scatter", mode: "lines+markers", x: points.map((each) => each.step),
    y: points.map((each) => each.values[name] ?? null), connectgaps: false,
    text: points.map((each) => `${at(each)}${shown(each.values[name])}`), hoverinfo: "text", showlegend: false,
    line: { color: theme.accent, width: 2 }, marker: { size: 5 },
  }];
  const lost = points.filter(isLost);
  if (lost.length) {
    traces.push({
      type: "scatter", mode: "markers", x: lost.map((each) => each.step), y: lost.map(() => 1), yaxis: "y2",
      text: lost.map((each) => `${at(each)}not finite in this precision, finite in FP32`), hoverinfo: "text", showlegend: false,
      cliponaxis: false, marker: { symbol: "x", size: 9, color: theme.danger },
    });
    layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
  }
  layout.margin.t = 12;
  Object.assign(layout.yaxis, { exponentformat: "power", automargin: true, nticks: 5, rangemode: "tozero" });
  if (points.every((each) => !each.values[name])) layout.yaxis.range = [0, 1];
  layout.margin.r = 20;
  return { data: traces, layout, height: 220 };
}
