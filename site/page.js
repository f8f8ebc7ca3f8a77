"use strict";
// Brings drawing, networks and pictures together.

const NETWORKS = loadNetworks(DATA);
const byId = (id) => document.getElementById(id);
const percent = (value, digits = 1) => `${value.toFixed(digits)} %`;
const number = (value) => value.toLocaleString("en");
const whole = (value) => percent(value, value < 10 ? 1 : 0);

let state = { picture: null, readings: [], chosen: null, inside: 0, from: "drawing" };
let due = false;

function make(tag, parent, text = "", properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = text;
  parent.append(element);
  return element;
}

/** Grey levels (0 to 255) on a canvas of as many pixels: white on black. */
function paint(canvas, levels, color = (v) => [v, v, v, 255]) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  levels.forEach((level, i) => image.data.set(color(level), 4 * i));
  context.putImageData(image, 0, 0);
}

/** Purple for, orange against; strength in [-1, 1]. */
function voteColor(strength) {
  const [r, g, b] = strength > 0 ? [84, 39, 136] : [179, 88, 6];
  const s = Math.min(1, Math.abs(strength));
  const ground = 244;
  return `rgb(${[r, g, b].map((v) => Math.round(ground + (v - ground) * s)).join(" ")})`;
}

// --- What is shown -------------------------------------------------------------------------------

function showVerdict() {
  const { readings, picture } = state;
  const verdict = byId("verdict");
  let [text, note] = ["Draw a digit in the square.", ""];
  verdict.className = "";
  if (picture) {
    const { logits } = readings[0];
    const best = largest(logits);
    const doubt = logits[best] < DATA.doubt.threshold;
    text = doubt ? "This does not look like a digit." : `It reads a ${best}.`;
    verdict.className = doubt ? "doubt" : "";
    const other = largest(readings[1].logits);
    if (doubt) note = `If it is one: a ${best}. `;
    else if (other !== best) note = `The smaller network reads a ${other}. `;
    note += state.note || "";
    if (state.from === "gallery") note += "The test digit itself; draw over it to try again.";
  } else if (state.note) {
    note = state.note;
  }
  verdict.textContent = text;
  byId("note").textContent = note;
}

function showChances() {
  state.bars.forEach((row, digit) => {
    row.forEach(({ bar, label }, k) => {
      const chance = state.picture ? 100 * state.readings[k].chances[digit] : 0;
      bar.style.setProperty("--share", `${chance}%`);
      label.textContent = state.picture ? chance.toFixed(1) : "";
    });
  });
}

function showEvidence() {
  const shown = state.picture ? state.chosen ?? largest(state.readings[0].logits) : null;
  byId("class").textContent = shown ?? "digit";
  state.digits.forEach((button, digit) => button.setAttribute("aria-pressed", digit === shown));
  state.votes.forEach(({ title, cells }, k) => {
    const votes = shown === null ? null : state.readings[k].evidence[shown].data;
    const strongest = votes ? Math.max(...votes.map(Math.abs)) : 1;
    const logit = votes ? `: ${state.readings[k].logits[shown].toFixed(1)}` : "";
    title.textContent = `${number(NETWORKS[k].parameters)}${logit}`;
    cells.forEach((cell, i) => {
      const strength = votes ? votes[i] / strongest : 0;
      cell.textContent = votes ? Math.round(votes[i]) || 0 : "";
      cell.style.background = votes ? voteColor(strength) : "";
      cell.style.color = votes ? (Math.abs(strength) > 0.6 ? "#fff" : "#111") : "";
    });
  });
}

function showSeen() {
  const seen = byId("seen");
  paint(seen, state.picture || new Uint8Array(784));
  if (state.picture) {
    const context = seen.getContext("2d");
    context.fillStyle = "rgba(230, 110, 0, 0.55)";
    context.fillRect(13, 14, 3, 1);
    context.fillRect(14, 13, 1, 3);
  }
}

/** Every channel of a layer in a row or two, each scaled by the layer's largest value. */
function showLayers() {
  const layers = state.picture ? state.readings[state.inside].layers : null;
  state.canvases[state.inside].forEach(({ canvas, columns, side }, k) => {
    const gap = 1;
    const width = canvas.width;
    const levels = new Float32Array(width * canvas.height).fill(-1);
    if (layers) {
      const { data, channels } = layers[k];
      const top = data.reduce((a, b) => Math.max(a, b), 1e-9);
      for (let c = 0; c < channels; c++) {
        const left = (c % columns) * (side + gap);
        const first = Math.floor(c / columns) * (side + gap);
        for (let i = 0; i < side * side; i++) {
          const at = (first + Math.floor(i / side)) * width + left + (i % side);
          levels[at] = (255 * data[c * side * side + i]) / top;
        }
      }
    }
    paint(canvas, levels, (v) => (v < 0 ? [0, 0, 0, 0] : [v, v, v, 255]));
  });
}

function showAll() {
  showVerdict();
  showChances();
  showEvidence();
  showSeen();
  showLayers();
  byId("undo").disabled = !pad.canUndo;
  byId("clear").disabled = !pad.strokes.length && state.from !== "gallery";
}

// --- From the drawing to the readings ------------------------------------------------------------

/** Both networks' readings of a picture (784 grey levels). */
function read(picture) {
  return NETWORKS.map((network) => {
    const reading = readDigit(network, picture);
    return { ...reading, chances: softmax(reading.logits) };
  });
}

/** The drawing as the networks see it; what is too small to be one is told. */
function look() {
  const { width, height } = pad.canvas;
  const ink = pad.ink();
  const box = inkBox(ink, width, height);
  if (!box) return [null, ""];
  const [left, top, right, bottom] = box;
  if (Math.max(right - left, bottom - top) < 1.5 * PEN) return [null, "A dot so far: go on."];
  const cut = left === 0 || top === 0 || right === width || bottom === height;
  return [toMnist(ink, width, height), cut ? "It touches the edge of the paper. " : ""];
}

function update() {
  due = false;
  if (state.from === "drawing") {
    [state.picture, state.note] = look();
    state.readings = state.picture ? read(state.picture) : [];
  }
  showAll();
}

/** At most one update a frame, however many points arrive. */
function changed(finished) {
  if (pad.strokes.length || state.from === "drawing") state.from = "drawing";
  if (!due) requestAnimationFrame(update);
  due = true;
  if (finished) setTimeout(() => (byId("live").textContent = byId("verdict").textContent), 100);
}

// --- The page ------------------------------------------------------------------------------------

function buildTable() {
  const head = document.querySelector("thead tr");
  for (const [k, network] of NETWORKS.entries()) {
    const cell = make("th", head, `${number(network.parameters)} parameters`, { scope: "col" });
    cell.className = `of-${k}`;
  }
  [state.bars, state.digits] = [[], []];
  for (let digit = 0; digit < 10; digit++) {
    const row = make("tr", byId("chances"));
    const button = make("button", make("th", row, "", { scope: "row" }), String(digit));
    button.type = "button";
    button.title = `Evidence for ${digit}`;
    button.addEventListener("click", () => {
      state.chosen = state.chosen === digit ? null : digit;
      showEvidence();
    });
    state.digits.push(button);
    state.bars.push(NETWORKS.map((_, k) => {
      const cell = make("div", make("td", row), "", { className: `bar of-${k}` });
      return { bar: make("i", cell), label: make("span", cell) };
    }));
  }
}

function buildEvidence() {
  state.votes = NETWORKS.map(() => {
    const map = make("div", byId("evidence"), "", { className: "votes" });
    const title = make("b", map);
    return { title, cells: Array.from({ length: 25 }, () => make("span", map)) };
  });
}

function buildLayers() {
  const blank = new Uint8Array(784);
  state.canvases = NETWORKS.map((network, k) => {
    const group = make("div", byId("layers"));
    const button = make("button", byId("which"), `${number(network.parameters)} parameters`);
    button.type = "button";
    button.addEventListener("click", () => choose(k));
    const canvases = readDigit(network, blank).layers.map(({ channels, side }, i) => {
      const columns = channels > 16 ? Math.ceil(channels / 2) : channels;
      const figure = make("figure", group, "", { className: "layer" });
      const canvas = make("canvas", figure);
      canvas.width = columns * (side + 1) - 1;
      canvas.height = Math.ceil(channels / columns) * (side + 1) - 1;
      const text = `Block ${i + 1}: ${channels} maps of ${side} × ${side}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", text);
      make("figcaption", figure, text);
      return { canvas, columns, side };
    });
    return { canvases, group, button };
  });
  const views = state.canvases;
  state.canvases = views.map((view) => view.canvases);
  function choose(k) {
    state.inside = k;
    views.forEach(({ group, button }, i) => {
      group.hidden = i !== k;
      button.setAttribute("aria-pressed", i === k);
    });
    if (state.bars) showLayers();
  }
  choose(0);
}

function buildGallery() {
  const { digits, runs } = DATA.gallery;
  const pixels = decodeBytes(DATA.gallery.pixels);
  byId("gallery-about").textContent =
    `All ${digits.length} of the 10,000 test digits that this run of the larger network misreads; below each, how ` +
    `many of ${runs} other runs misread it as well. * marks labels that people doubt. Press one to ` +
    "see what the networks see, and draw over it: which stroke would have helped?";
  digits.forEach((digit, i) => {
    const picture = pixels.slice(784 * i, 784 * (i + 1));
    const button = make("button", byId("misread"));
    button.type = "button";
    const canvas = make("canvas", button, "", { width: 28, height: 28 });
    canvas.setAttribute("aria-hidden", "true");
    paint(canvas, picture);
    make("span", button, `${digit.label}${digit.doubtful ? "*" : ""}, read ${digit.read}`);
    make("small", button, `${digit.runs} of ${runs}`);
    button.addEventListener("click", () => {
      clear();
      pad.undone = [];
      paint(byId("template"), picture, (v) => [0, 80, 160, v]);
      Object.assign(state, { picture, readings: read(picture), note: "", from: "gallery" });
      showAll();
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      byId("pad").scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
    });
  });
}

function buildTexts() {
  const [large, small] = NETWORKS;
  const doubt = DATA.doubt;
  const says = (n) => `${number(n.parameters)} parameters, ${n.average.toFixed(2)} % of MNIST's test digits on average`;
  byId("about").textContent =
    `Two small networks read it while you draw: ${says(large)} (n = ${large.runs} runs), and ` +
    `${number(small.parameters)}, ${small.average.toFixed(2)} % (n = ${small.runs}).`;
  byId("doubt-about").textContent =
    "“This does not look like a digit” is said when no digit has evidence above " +
    `${doubt.threshold}: the largest logit of the network with ${number(large.parameters)} parameters. ` +
    "The threshold was chosen on validation images against printed letters and scribbles. It errs: " +
    `${whole(doubt.doubted.test)} of the ${number(doubt.counts.digits)} test digits are doubted, and of what is no ` +
    `digit it believes ${whole(doubt.believed.letters)} of ${doubt.counts.letters} letters ` +
    `(in other fonts) and ${whole(doubt.believed.scribbles)} of ${doubt.counts.scribbles} other scribbles.`;
}

function clear() {
  state.from = "drawing";
  byId("template").getContext("2d").clearRect(0, 0, 28, 28);
  pad.clear();
}

const EXAMPLE = [
  [[270, 95], [230, 96], [190, 98], [160, 102], [152, 150], [146, 190]],
  [[146, 190], [175, 172], [210, 168], [245, 182], [264, 212], [266, 250], [246, 288], [208, 306], [168, 304], [132, 284]],
];

const pad = new Pad(byId("pad"), byId("pen"), changed);
buildTable();
buildEvidence();
buildLayers();
buildGallery();
buildTexts();
byId("undo").addEventListener("click", () => pad.undo());
byId("clear").addEventListener("click", clear);
pad.show(EXAMPLE, true);
