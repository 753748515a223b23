// The page of a run: draw, and draw again when the reader picks something else.
"use strict";

const state = { kind: 0, measure: "headroom", layer: 0, samples: "all" };

function setUpControls() {
  for (const name of ["kind", "measure", "samples"]) {
    for (const input of document.querySelectorAll(`input[name=${name}]`)) {
      input.addEventListener("change", () => {
        state[name] = name === "kind" ? Number(input.value) : input.value;
        drawLayers();
      });
    }
  }
  const select = find("#layer");
  if (!select) return;
  data.layers.forEach((name, place) => select.add(new Option(shortened(name, 80), place)));
  state.layer = data.firstLayer;
  state.kind = data.firstKind;
  state.measure = data.firstMeasure;
  for (const name of ["kind", "measure"]) find(`input[name=${name}][value="${state[name]}"]`).checked = true;
  select.addEventListener("change", () => pick(Number(select.value)));
}

function drawAll() {
  draw("#scale-chart", (...look) => scaleFigure(data, ...look));
  drawLayers();
  for (const node of document.querySelectorAll("[data-drift]")) {
    draw(`#${node.id}`, (...look) => driftFigure(data, ...look, node.dataset.drift));
  }
}

function drawLayers() {
  if (!find("#heat-chart")) return;
  draw("#heat-chart", (...look) => heatFigure(data, ...look, state));
  const node = find("#heat-chart");
  node.removeAllListeners("plotly_click");
  node.on("plotly_click", ({ points: [point] }) => {
    if (point.data.type === "heatmap") pick(sampledLayers(data, state.kind)[point.y]);
  });
  find("#measure-title").textContent = MEASURES[state.measure].title;
  drawLayer();
}

function pick(layer) {
  state.layer = layer;
  drawLayers();
}

function drawLayer() {
  find("#layer").value = state.layer;
  find("#layer-name").textContent = data.layers[state.layer];
  const kind = data.kinds[state.kind];
  find("#layer-kind").textContent = `${KINDS[kind]}, ${data.dtypes[state.kind][state.layer] || "not sampled"}`;
  const found = data.histograms.find((each) => each.kind === state.kind && each.layer === state.layer);
  const histogram = found && { scale: found.newest.scale, ...found[state.samples] };
  const hasValues = Boolean(histogram && histogram.counts.length);
  find("#exponent-chart").hidden = !hasValues;
  find("#no-exponents").hidden = hasValues;
  if (hasValues) {
    draw("#exponent-chart", (...look) => exponentFigure(data, ...look, histogram, kind !== "activation"));
    find("#exponent-note").textContent = exponentNote(found);
  } else {
    find("#exponent-note").textContent = "";
    find("#no-exponents").textContent = whyNoExponents(Boolean(found));
  }
  fillTable();
}

function exponentNote(found) {
  const { samples } = state;
  if (samples === "all") return found.samples > 1 ? `${found.samples.toLocaleString("en-US")} samples together.` : "One sample.";
  return `Step ${stepRange([found[samples].step, found[samples].step])}.`;
}

function whyNoExponents(isCounted) {
  if (!data.dtypes[state.kind][state.layer]) return `This layer has no samples of ${KINDS[data.kinds[state.kind]].toLowerCase()}.`;
  const width = data.columns.length;
  const largest = cellsOf(data, "amax", state.kind).subarray(state.layer * width, (state.layer + 1) * width);
  const isAny = largest.some((each) => !Number.isNaN(each));
  if (!isAny) return "Every sampled value is zero, NaN or Inf: there are no exponents to show.";
  if (isCounted) return "Every value of this sample is zero, NaN or Inf: there are no exponents to show.";
  return "No exponents were counted here: Telemetry(histograms=True) counts them.";
}

function fillTable() {
  const width = data.columns.length;
  const rows = data.columns.map((column, place) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = stepRange(column);
    row.append(head);
    for (const [measure, { text }] of Object.entries(MEASURES)) {
      const value = cellsOf(data, measure, state.kind)[state.layer * width + place];
      const cell = document.createElement("td");
      cell.textContent = text(value);
      cell.dataset.value = value;
      row.append(cell);
    }
    return row;
  });
  find("#layer-table tbody").replaceChildren(...rows);
}

start();
