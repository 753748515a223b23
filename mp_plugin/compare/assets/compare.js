// The page of a comparison: there is nothing to pick, so that it is only drawn.
"use strict";

function setUpControls() {
  for (const node of document.querySelectorAll("[data-cost]")) {
    node.hidden = !data.bars.some(({ name }) => name === node.dataset.cost);
  }
}

function drawAll() {
  draw("#values-chart", (...look) => valuesFigure(data, ...look));
  draw("#differences-chart", (...look) => differencesFigure(data, ...look));
  for (const node of document.querySelectorAll("[data-cost]:not([hidden])")) {
    const bars = data.bars.find(({ name }) => name === node.dataset.cost);
    draw(`#${node.querySelector(".chart").id}`, (...look) => costFigure(data, ...look, bars));
  }
}

start();
