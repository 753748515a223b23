// What every page does: unpack, draw, and draw again in other light or width. A page defines setUpControls and drawAll.
"use strict";

const find = (selector) => document.querySelector(selector);
let data;

async function start() {
  if (typeof DecompressionStream === "undefined") {
    find("#no-charts").hidden = false;
    return;
  }
  try {
    [data] = await Promise.all([unpackData("data"), loadPlotly("plotly")]);
  } catch (error) {
    find("#no-charts").hidden = false;
    find("#no-charts").append(` (${error})`);
    return;
  }
  document.documentElement.classList.add("has-charts");
  find("#theme").addEventListener("click", switchTheme);
  setUpControls();
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  matchMedia("(max-width: 640px)").addEventListener("change", drawAll);
  for (const [event, isPrinted] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      document.documentElement.classList.toggle("is-printed", isPrinted);
      drawAll();
    });
  }
}

function switchTheme() {
  const isDark = theme().isDark;
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  drawAll();
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["page", "raised", "text", "muted", "rule", "accent", "warm", "good", "danger", "band", "noband", "range", "subrange"];
  return {
    ...Object.fromEntries(names.map((name) => [name, value(name)])),
    font: value("sans"), mono: value("mono"), isDark: value("is-dark") === "1",
    heat: value("heat").split(" "), size: value("size").split(" "),
  };
}

function draw(selector, figure) {
  const node = find(selector);
  if (!node) return;
  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  const [colors, isNarrow] = [theme(), matchMedia("(max-width: 640px)").matches];
  const { data: traces, layout, height } = figure(colors, isNarrow);
  // Of the node and not of the layout: Plotly forgets the latter when the window is resized.
  node.style.height = `${height}px`;
  Plotly.react(node, traces, layout, config);
}

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
