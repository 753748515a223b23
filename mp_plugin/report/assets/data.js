// What the page carries along, unpacked. Both parts are gzip in base64; see embed.py.
"use strict";

async function unpack(id) {
  const text = document.getElementById(id).textContent.trim();
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpackData(id) {
  const bytes = await unpack(id);
  const decoder = new TextDecoder();
  let offset = 8 + Number(decoder.decode(bytes.subarray(0, 8)));
  const data = JSON.parse(decoder.decode(bytes.subarray(8, offset)));
  data.cells = {};
  for (const { name, length } of data.arrays) {
    const bits = new Uint32Array(length);
    for (let byte = 3; byte >= 0; byte--, offset += length) {
      for (let place = 0; place < length; place++) bits[place] |= bytes[offset + place] << (8 * byte);
    }
    data.cells[name] = new Float32Array(bits.buffer);
  }
  return data;
}

async function loadPlotly(id) {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpack(id));
  document.head.append(script);
}

// Numbers in words.

const MINUS = "\u2212";

function shown(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "none";
  if (!Number.isFinite(value)) return value > 0 ? "beyond 3.4e38" : `beyond ${MINUS}3.4e38`;
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(digits - 1) : tidy(value, digits);
  return text.replace(/-/g, MINUS);
}

function tidy(value, digits) {
  return String(Number(value.toPrecision(digits)));
}

function percent(share) {
  if (Number.isNaN(share)) return "none";
  return share === 0 ? "0%" : `${shown(100 * share, 3)}%`;
}

function stepRange([first, last]) {
  const thousands = (step) => step.toLocaleString("en-US");
  return first === last ? thousands(first) : `${thousands(first)}\u2013${thousands(last)}`;
}

function powerOfTwo(value) {
  const exponent = Math.log2(value);
  return Number.isInteger(exponent) ? `2<sup>${exponent}</sup>`.replace("-", MINUS) : shown(value);
}

// Plotly reads a little HTML in texts, and names are not to be trusted.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function shortened(text, length) {
  if (text.length <= length) return text;
  // The tail tells neighbours apart, the head says where they are: where there is room for both.
  const tail = length < 20 ? length - 1 : Math.ceil((length - 1) * 0.6);
  return `${text.slice(0, length - 1 - tail)}\u2026${text.slice(-tail)}`;
}
