// Layers over steps, as a heat map.
"use strict";

const SMALLEST_SHARE = 1e-6;
const MOST_FRAMED_ROWS = 60;

// Of a scale of colours: less would make much of noise.
const MIN_BITS = 4;

// Bits from which on one is as good as another; see page_data.py.
const MUCH_HEADROOM = 20;

function cellsOf(data, measure, kind) {
  const size = data.layers.length * data.columns.length;
  return data.cells[measure].subarray(kind * size, (kind + 1) * size);
}

function heatFigure(data, theme, isNarrow, { kind, measure, layer }) {
  const layout = baseLayout(theme, isNarrow);
  stepAxis(layout, data.columns.flatMap(([first, last]) => [first, last]));
  const width = data.columns.length;
  const values = cellsOf(data, measure, kind);
  const layers = sampledLayers(data, kind);
  const names = layers.map((place) => data.layers[place]);
  const every = layers.map((_, row) => row);
  const scale = heatScale(measure, theme, values);
  const rows = layers.map((place) => Array.from(values.subarray(place * width, (place + 1) * width), scale.position));
  const height = Math.max(300, Math.min(720, 110 + 15 * layers.length));
  const labels = Math.floor((height - 110) / 14);
  const ticks = every.filter((row) => row % Math.ceil(every.length / labels) === 0);
  const length = isNarrow ? 14 : 26;
  const trace = {
    type: "heatmap", x: columnEdges(data), y: every, z: rows,
    hovertext: layers.map((place) => data.columns.map((_, column) => cellText(data, kind, place, column))), hoverinfo: "text",
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
  // Without height Plotly would lay it over the cells, which no click reaches then.
  if (data.marks.length) layout.yaxis2 = { domain: [top, 1], range: [-0.2, 1], visible: false, fixedrange: true };
  Object.assign(layout.yaxis, {
    domain: [0, top], range: [every.length - 0.5, -0.5],
    tickvals: ticks, ticktext: ticks.map((row) => plain(shortened(names[row], length))),
    showgrid: false, tickfont: { family: theme.mono, size: isNarrow ? 9.5 : 11 }, ticks: "",
  });
  layout.xaxis.showgrid = false;
  const steps = [...trace.x, ...data.marks.map((mark) => mark.step)];
  layout.xaxis.range = [Math.min(...steps), Math.max(...steps)];
  layout.margin.l = Math.min(length, Math.max(...names.map((name) => name.length))) * (isNarrow ? 6 : 6.8) + 14;
  layout.margin.t = 48;
  layout.margin.r = 20;
  const row = layers.indexOf(layer);
  layout.annotations = row < 0 ? [] : [{
    xref: "paper", x: 1, xanchor: "left", y: row, yanchor: "middle", text: "\u25c0", showarrow: false,
    font: { size: 12, color: theme.text },
  }];
  // Around a thin row it would hide the row.
  const frame = {
    type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: row - 0.5, y1: row + 0.5,
    line: { color: theme.text, width: 1.5 },
  };
  layout.shapes = row >= 0 && every.length <= MOST_FRAMED_ROWS ? [frame] : [];
  return { data: data.marks.length ? [trace, incidents] : [trace], layout, height };
}

// By their place in the data: of some layers there are no samples of some kind, as a ReLU has no parameters.
function sampledLayers(data, kind) {
  return data.layers.map((_, place) => place).filter((place) => data.dtypes[kind][place]);
}

function columnEdges({ columns, marks, end }) {
  const starts = columns.map(([first]) => first);
  const [last] = columns[columns.length - 1].slice(1);
  // A single sample stands for the whole run.
  if (starts.length === 1) return [...starts, Math.max(end, last + 1, ...marks.map(({ step }) => step))];
  const gap = (last - starts[0]) / (columns.reduce((sum, [, , num]) => sum + num, 0) - 1);
  return [...starts, endOfLast(starts[0], last, gap, end)];
}

// Each sample holds until the next, the last one to the end of the run, if it is known: wide enough to be seen, where
// the run ended with it.
function endOfLast(first, last, gap, end) {
  return end > last ? Math.max(end, last + Math.max(1, (last - first) / 100)) : last + Math.max(1, gap);
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

function heatScale(measure, theme, values) {
  const spread = (stops, colors) => {
    const [low, high] = [stops[0], stops[stops.length - 1]];
    return { range: [low, high], colors: stops.map((stop, place) => [(stop - low) / (high - low), colors[place]]) };
  };
  const safeFirst = theme.heat;
  if (measure === "headroom") {
    if (leastOf(values) > MUCH_HEADROOM) {
      // Nothing to be warned of.
      return { ...fromLeastToMost(values, [...theme.size].reverse(), (bits) => `${bits} bits`), position: (bits) => bits };
    }
    const ticks = [0, 4, 8, 12, 16, 20];
    return {
      ...spread([-1, 0, 1, 3, 6, 10, 20], [...safeFirst].reverse()), position: (bits) => bits,
      ticks, labels: ticks.map((bits) => (bits === 20 ? "20 bits" : String(bits))),
    };
  }
  if (measure === "amax") {
    return {
      ...fromLeastToMost(values.map((amax) => Math.log2(amax)), theme.size, (exponent) => powerOfTwo(2 ** exponent)),
      position: (amax) => Math.log2(amax),
    };
  }
  return {
    ...spread([-6, -4, -2.5, -1.3, -0.6, -0.3, 0], safeFirst),
    position: (share) => Math.log10(Math.max(share, SMALLEST_SHARE)), // NaN stays NaN: a gap
    ticks: [-6, -4, -2, -1, 0], labels: ["0", "0.01%", "1%", "10%", "100%"],
  };
}

// Colours and ticks of a scale that reaches as far as the values do.
function fromLeastToMost(values, colors, label) {
  const low = Math.floor(leastOf(values));
  const high = Math.max(low + MIN_BITS, Math.ceil(-leastOf(values.map((each) => -each))));
  if (!Number.isFinite(low)) return { range: [0, 1], colors: [[0, colors[0]], [1, colors[0]]], ticks: [], labels: [] };
  const every = Math.ceil((high - low) / 5);
  const ticks = Array.from({ length: Math.floor((high - low) / every) + 1 }, (_, place) => low + place * every);
  return {
    range: [low, high], colors: colors.map((color, place) => [place / (colors.length - 1), color]),
    ticks, labels: ticks.map(label),
  };
}

function leastOf(values) {
  return values.reduce((least, each) => (Number.isFinite(each) && each < least ? each : least), Infinity);
}
