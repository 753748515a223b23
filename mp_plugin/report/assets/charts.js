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

const SMALLEST_SHARE = 1e-6;
const MOST_FRAMED_ROWS = 60;

function baseLayout(theme, isNarrow) {
  const axis = {
    gridcolor: theme.rule,
    zeroline: false,
    linecolor: theme.rule,
    tickcolor: theme.rule,
    ticks: "outside",
    ticklen: 4,
    fixedrange: isNarrow, // on a phone a drag scrolls the page
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: theme.font, size: isNarrow ? 11 : 12.5, color: theme.muted },
    hoverlabel: { bgcolor: theme.raised, bordercolor: theme.rule, font: { color: theme.text, size: 12.5 }, align: "left" },
    margin: { l: isNarrow ? 44 : 64, r: 12, t: 34, b: 44 },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: theme.muted } },
    xaxis: { ...axis },
    yaxis: { ...axis },
    dragmode: isNarrow ? false : "zoom",
  };
}

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
  const end = points.length ? points[points.length - 1][0] : 0;
  const fits = polygon(windows, end, (low, high) => low !== null && high >= low);
  const none = polygon(windows, end, (low, high) => low !== null && high > 0 && high < low);
  const traces = [];
  const band = { type: "scatter", mode: "lines", fill: "toself", line: { width: 0 }, hoverinfo: "skip" };
  if (fits.x.length) traces.push({ ...band, ...fits, name: "Fits every layer", fillcolor: theme.band });
  if (none.x.length) traces.push({ ...band, ...none, name: "No scale fits every layer", fillcolor: theme.noband });
  if (!bounded.length && windows.length) {
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
    const next = place + 1 < windows.length ? windows[place + 1][0] : Math.max(end, first + gap);
    const [low, high] = [Math.log2(lowest), Math.log2(highest)];
    x.push(first, next, next, first, first, null);
    y.push(low, low, high, high, low, null);
  });
  return { x, y };
}

function markText(mark) {
  const origin = [mark.operator, mark.layer].filter(Boolean).map((each) => plain(shortened(each, 60)));
  const more = mark.count > 1 ? `${mark.count} incidents from step ` : "step ";
  return [`${more}${stepRange([mark.step, mark.step])}: ${mark.cause}`, ...origin, `done: ${mark.action}`].join("<br>");
}

// Layers over steps.

function cellsOf(data, measure, kind) {
  const size = data.layers.length * data.columns.length;
  return data.cells[measure].subarray(kind * size, (kind + 1) * size);
}

function heatFigure(data, theme, isNarrow, { kind, measure, layer }) {
  const layout = baseLayout(theme, isNarrow);
  stepAxis(layout, data.columns.flatMap(([first, last]) => [first, last]));
  const width = data.columns.length;
  const values = cellsOf(data, measure, kind);
  const every = data.layers.map((_, row) => row);
  const scale = heatScale(measure, theme);
  const rows = every.map((row) => Array.from(values.subarray(row * width, (row + 1) * width), scale.position));
  const height = Math.max(300, Math.min(720, 90 + 14 * data.layers.length));
  const labels = Math.floor((height - 90) / 14);
  const ticks = every.filter((row) => row % Math.ceil(every.length / labels) === 0);
  const length = isNarrow ? 14 : 26;
  const trace = {
    type: "heatmap", x: columnEdges(data.columns), y: every, z: rows,
    hovertext: every.map((row) => data.columns.map((_, column) => cellText(data, kind, row, column))), hoverinfo: "text",
    xaxis: "x", yaxis: "y", colorscale: scale.colors, zmin: scale.range[0], zmax: scale.range[1], zsmooth: false, hoverongaps: false,
    colorbar: {
      orientation: "h", thickness: 9, len: isNarrow ? 1 : 0.45, x: 0, xanchor: "left", xpad: 0, y: 1, yanchor: "bottom",
      outlinewidth: 0, tickvals: scale.ticks, ticktext: scale.labels, ticklen: 3, tickcolor: theme.rule, ticklabelposition: "outside top",
      tickfont: { color: theme.muted },
    },
  };
  const incidents = {
    type: "scatter", mode: "markers", x: data.marks.map((mark) => mark.step), y: data.marks.map(() => 0),
    text: data.marks.map(markText), hoverinfo: "text", showlegend: false, yaxis: "y2", cliponaxis: false,
    marker: { symbol: "triangle-down", size: 8, color: theme.danger },
  };
  const top = data.marks.length ? 1 - 14 / (height - 100) : 1;
  layout.yaxis2 = { domain: [top, 1], range: [-0.2, 1], visible: false, fixedrange: true };
  Object.assign(layout.yaxis, {
    domain: [0, top], range: [every.length - 0.5, -0.5],
    tickvals: ticks, ticktext: ticks.map((row) => plain(shortened(data.layers[row], length))),
    showgrid: false, tickfont: { family: theme.mono, size: isNarrow ? 9.5 : 11 }, ticks: "",
  });
  layout.xaxis.showgrid = false;
  layout.xaxis.range = [trace.x[0], trace.x[trace.x.length - 1]];
  layout.margin.l = Math.min(length, Math.max(...data.layers.map((name) => name.length))) * (isNarrow ? 6 : 6.8) + 14;
  layout.margin.t = 48;
  layout.margin.r = 20;
  layout.annotations = [{
    xref: "paper", x: 1, xanchor: "left", y: layer, yanchor: "middle", text: "\u25c0", showarrow: false,
    font: { size: 12, color: theme.text },
  }];
  // Around a thin row it would hide the row.
  const frame = {
    type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: layer - 0.5, y1: layer + 0.5,
    line: { color: theme.text, width: 1.5 },
  };
  layout.shapes = every.length <= MOST_FRAMED_ROWS ? [frame] : [];
  return { data: [trace, incidents], layout, height };
}

function columnEdges(columns) {
  const starts = columns.map(([first]) => first);
  const [last] = columns[columns.length - 1].slice(1);
  const gap = starts.length > 1 ? (last - starts[0]) / (columns.reduce((sum, [, , num]) => sum + num, 0) - 1) : 1;
  return [...starts, last + Math.max(1, gap)];
}

function cellText(data, kind, layer, column) {
  const place = layer * data.columns.length + column;
  const lines = Object.entries(MEASURES).map(
    ([measure, { title, text }]) => `${title}: <b>${text(cellsOf(data, measure, kind)[place])}</b>`,
  );
  const [first, last, samples] = data.columns[column];
  const steps = `step ${stepRange([first, last])}${samples > 1 ? `, the worst of ${samples} samples` : ""}`;
  return [`<b>${plain(shortened(data.layers[layer], 60))}</b>, ${data.dtypes[kind][layer]}`, steps, ...lines].join("<br>");
}

function heatScale(measure, theme) {
  const spread = (stops, colors) => {
    const [low, high] = [stops[0], stops[stops.length - 1]];
    return { range: [low, high], colors: stops.map((stop, place) => [(stop - low) / (high - low), colors[place]]) };
  };
  const safeFirst = theme.heat;
  if (measure === "headroom") {
    const ticks = [0, 4, 8, 12, 16, 20];
    return {
      ...spread([-1, 0, 1, 3, 6, 10, 20], [...safeFirst].reverse()), position: (bits) => bits,
      ticks, labels: ticks.map((bits) => (bits === 20 ? "20 bits" : String(bits))),
    };
  }
  if (measure === "amax") {
    const ticks = [-24, -12, 0, 12];
    return {
      ...spread([-30, -20, -10, 0, 10, 18], theme.size), position: (amax) => Math.log2(amax),
      ticks, labels: ticks.map((each) => powerOfTwo(2 ** each)),
    };
  }
  return {
    ...spread([-6, -4, -2.5, -1.3, -0.6, -0.3, 0], safeFirst),
    position: (share) => Math.log10(Math.max(share, SMALLEST_SHARE)), // NaN stays NaN: a gap
    ticks: [-6, -4, -2, -1, 0], labels: ["0", "0.01%", "1%", "10%", "100%"],
  };
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
  const points = data.drift.filter((each) => typeof each[name] === "number");
  layout.margin.t = 12;
  Object.assign(layout.yaxis, { exponentformat: "power", automargin: true, nticks: 5, rangemode: "tozero" });
  const isAllZero = points.every((each) => each[name] === 0);
  if (isAllZero) layout.yaxis.range = [0, 1];
  layout.margin.r = 20;
  return {
    data: [{
      type: "scatter", mode: "lines+markers", x: points.map((each) => each.step), y: points.map((each) => each[name]),
      text: points.map((each) => `step ${stepRange([each.step, each.step])}<br>${shown(each[name])}`), hoverinfo: "text",
      line: { color: theme.accent, width: 2 }, marker: { size: 5 },
    }],
    layout,
    height: 220,
  };
}
