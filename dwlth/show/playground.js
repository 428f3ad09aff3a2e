// Draw a digit, break it, prune it: the digits network, its gradient and PGD in plain JavaScript, and the page around
// them. The static page and the notebook's widget run this same file; dwlth/show/playground.py supplies the weights.

// ---- the network: ResNets of one block a stage (dwlth/models.py), batch norm folded; float64 throughout

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** A sparse affine map: row r of the output is bias[r] plus the sum of its weights times the inputs they look at. */
class Affine {
  constructor(inputs, rows) {
    // rows: [bias, [input, weight, input, weight, ...]]
    this.inputs = inputs;
    this.bias = Float64Array.from(rows, ([bias]) => bias);
    this.start = new Int32Array(rows.length + 1);
    rows.forEach(([, pairs], r) => (this.start[r + 1] = this.start[r] + pairs.length / 2));
    this.column = new Int32Array(this.start[rows.length]);
    this.weight = new Float64Array(this.start[rows.length]);
    let at = 0;
    for (const [, pairs] of rows)
      for (let j = 0; j < pairs.length; j += 2) [this.column[at], this.weight[at++]] = [pairs[j], pairs[j + 1]];
  }

  forward(x) {
    const { start, column, weight } = this;
    const y = Float64Array.from(this.bias);
    for (let r = 0; r < y.length; r++) {
      let sum = y[r];
      for (let j = start[r], end = start[r + 1]; j < end; j++) sum += weight[j] * x[column[j]];
      y[r] = sum;
    }
    return y;
  }

  /** The gradient of the input, from that of the output. */
  backward(g) {
    const { start, column, weight } = this;
    const out = new Float64Array(this.inputs);
    for (let r = 0; r < g.length; r++) {
      const each = g[r];
      if (each === 0) continue;
      for (let j = start[r], end = start[r + 1]; j < end; j++) out[column[j]] += weight[j] * each;
    }
    return out;
  }
}

/** A convolution with padding that keeps the size (before its stride), and the scale and shift of its batch norm. */
function convolution([outputs, inputs, size], stride, side, weights, scale, shift) {
  const out = Math.ceil(side / stride);
  const rows = [];
  for (let o = 0; o < outputs; o++)
    for (let top = 0; top < out; top++)
      for (let left = 0; left < out; left++) {
        const pairs = [];
        for (let i = 0; i < inputs; i++)
          for (let k = 0; k < size * size; k++) {
            const weight = weights[(o * inputs + i) * size * size + k];
            const y = top * stride + Math.floor(k / size) - (size >> 1);
            const x = left * stride + (k % size) - (size >> 1);
            if (weight !== 0 && y >= 0 && x >= 0 && y < side && x < side)
              pairs.push((i * side + y) * side + x, weight * scale[o]);
          }
        rows.push([shift[o], pairs]);
      }
  return new Affine(inputs * side * side, rows);
}

function relu(x) {
  for (let i = 0; i < x.length; i++) if (!(x[i] > 0)) x[i] = 0;
  return x;
}

function gate(g, activation) {
  for (let i = 0; i < g.length; i++) if (!(activation[i] > 0)) g[i] = 0;
  return g;
}

export class Network {
  /** about: side, mean, std, classes and the convolutions (name, shape, stride), as `playground.payload` writes them;
   * packed: mask (bits of all convolutions) and values (float32: the surviving weights, scale and shift of each
   * convolution, then the head), both in base64. */
  constructor(about, packed) {
    Object.assign(this, { mean: about.mean, std: about.std, kernels: {}, maps: {} });
    const bits = bytes(packed.mask);
    const values = new Float32Array(bytes(packed.values).buffer);
    let bit = 0;
    let at = 0;
    let side = about.side;
    let before = side;
    for (const { name, shape, stride } of about.convolutions) {
      const weights = new Float32Array(shape.reduce((a, b) => a * b));
      for (let i = 0; i < weights.length; i++, bit++)
        if (bits[bit >> 3] & (128 >> (bit & 7))) weights[i] = values[at++];
      const scale = values.subarray(at, (at += shape[0]));
      const shift = values.subarray(at, (at += shape[0]));
      if (name.endsWith(".conv1")) before = side;
      const from = name.includes("downsample") ? before : side; // it stands beside the two before it
      this.kernels[name] = { shape, weights };
      this.maps[name] = convolution(shape, stride, from, weights, scale, shift);
      side = Math.ceil(from / stride);
    }
    this.stages = Object.keys(this.maps).filter((name) => name.endsWith(".conv1")).map((name) => name.slice(0, -6));
    const width = Object.values(this.kernels).at(-1).shape[0];
    const area = side * side;
    const rows = [];
    for (let c = 0; c < about.classes.length; c++) {
      const pairs = []; // the mean over the pixels, and the head
      for (let i = 0; i < width * area; i++) pairs.push(i, values[at + c * width + Math.floor(i / area)] / area);
      rows.push([values[at + about.classes.length * width + c], pairs]);
    }
    this.head = new Affine(width * area, rows);
  }

  run(x) {
    const { maps, mean, std } = this;
    const stem = relu(maps["conv1"].forward(x.map((value) => (value - mean) / std)));
    const blocks = [];
    let h = stem;
    for (const stage of this.stages) {
      const inner = relu(maps[`${stage}.conv1`].forward(h));
      const out = maps[`${stage}.conv2`].forward(inner);
      const short = maps[`${stage}.downsample.0`]?.forward(h) ?? h;
      for (let i = 0; i < out.length; i++) out[i] += short[i];
      h = relu(out);
      blocks.push({ stage, inner, out });
    }
    return { stem, blocks, logits: this.head.forward(h) };
  }

  /** x: pixels in [0, 1], row by row. */
  logits(x) {
    return this.run(x).logits;
  }

  /** The gradient of the cross-entropy with a label, for the pixels. */
  gradient(x, label) {
    const { maps, std } = this;
    const { stem, blocks, logits } = this.run(x);
    const g = softmax(logits);
    g[label] -= 1;
    let h = this.head.backward(g);
    for (const { stage, inner, out } of blocks.reverse()) {
      h = gate(h, out);
      const short = maps[`${stage}.downsample.0`]?.backward(h) ?? h;
      h = maps[`${stage}.conv1`].backward(gate(maps[`${stage}.conv2`].backward(h), inner));
      for (let i = 0; i < h.length; i++) h[i] += short[i];
    }
    return maps["conv1"].backward(gate(h, stem)).map((value) => value / std);
  }
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
}

export const argmax = (values) => values.indexOf(Math.max(...values));

/** So many uniform numbers in [-1, 1), always the same for one seed (mulberry32). */
export function draws(count, seed) {
  return Float64Array.from({ length: count }, () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
}

/** PGD in L-inf, as dwlth/attacks.py: from x + start (start in the ball), `steps` steps of `step` along the sign of the
 * gradient, each projected to the ball of eps around x and to [0, 1]. */
export function pgd(network, x, label, { eps, step, steps }, start) {
  const low = x.map((value) => Math.max(0, value - eps));
  const high = x.map((value) => Math.min(1, value + eps));
  const project = (value, i) => Math.min(high[i], Math.max(low[i], value));
  let adv = x.map((value, i) => project(value + start[i], i));
  for (let k = 0; k < steps; k++) {
    const g = network.gradient(adv, label);
    adv = adv.map((value, i) => project(value + step * Math.sign(g[i]), i));
  }
  return adv;
}

// ---- the page

const GRID = 40; // strengths of the attack: 0.01, 0.02, ... 0.40
const START = 20; // the seed of the random start
const strength = (index) => (index / 100).toFixed(2);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** An element with attributes, listeners (on...) and children; SVG where the tag says so. */
function make(tag, attributes = {}, ...children) {
  const svg = tag.startsWith("svg:");
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const MARKERS = { o: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0", s: "M-.9-.9H.9V.9H-.9Z", D: "M0-1.2L1.2 0L0 1.2L-1.2 0Z" };
const marker = (source, size, x = 0, y = 0) =>
  make("svg:path", {
    d: MARKERS[source.marker] ?? MARKERS.o,
    transform: `translate(${x} ${y}) scale(${size})`,
    fill: source.colour,
  });

const badge = (source) => make("svg:svg", { viewBox: "-1.4 -1.4 2.8 2.8", "aria-hidden": "true" }, marker(source, 1));

/** Grey pixels on a canvas of one pixel each: the paper shines through. */
function paint(canvas, pixels) {
  const side = Math.sqrt(pixels.length);
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(canvas).color;
  pixels.forEach((value, i) => {
    context.globalAlpha = value;
    context.fillRect(i % side, Math.floor(i / side), 1, 1);
  });
}

const ADDED = [213, 94, 0]; // vermilion and sky blue of the same palette as the sources' colours
const TAKEN = [86, 180, 233];

/** What the attack changed: ink added in vermilion, ink taken in blue, full at `reach`. */
function paintChange(canvas, change, reach) {
  const side = Math.sqrt(change.length);
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  change.forEach((value, i) => {
    context.globalAlpha = Math.min(1, Math.abs(value) / (reach || 1));
    context.fillStyle = `rgb(${value > 0 ? ADDED : TAKEN})`;
    context.fillRect(i % side, Math.floor(i / side), 1, 1);
  });
}

/** All kernels of a layer, a row per input and a column per output channel. A pruned weight is black; a surviving one is
 * coloured by its sign, and nearly white where it is near 0. */
function paintKernels(canvas, { shape, weights }) {
  const [outputs, inputs, size] = shape;
  const cell = size + (size > 1 ? 1 : 0.34);
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
  const most = Math.min(width / (outputs * cell), height / (inputs * cell));
  const scale = most > 2 ? Math.floor(most) : most;
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = "#3d424d"; // between the kernels
  context.fillRect(0, 0, Math.ceil(outputs * cell * scale), Math.ceil(inputs * cell * scale));
  const reach = weights.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  weights.forEach((value, at) => {
    const k = at % (size * size);
    const kernel = (at - k) / (size * size);
    const x = Math.floor(kernel / inputs) * cell + (k % size);
    const y = (kernel % inputs) * cell + Math.floor(k / size);
    const share = Math.min(1, 0.2 + (1.6 * Math.abs(value)) / reach);
    const colour = (value > 0 ? ADDED : TAKEN).map((part) => 255 + (part - 255) * share);
    context.fillStyle = value === 0 ? "#000" : `rgb(${colour})`;
    const [left, top] = [Math.round(x * scale), Math.round(y * scale)];
    context.fillRect(left, top, Math.round((x + 1) * scale) - left, Math.round((y + 1) * scale) - top);
  });
}

/** Builds the page in `root` for `data` (of `playground.payload`); returns a function that ends it. */
export function mount(root, data) {
  const { side, classes, sources, rounds } = data;
  const size = side * side;
  const images = bytes(data.images);
  const tests = data.labels.map((label, i) => ({
    label,
    pixels: Float64Array.from(images.subarray(i * size, (i + 1) * size), (value) => value / 255),
  }));
  const unit = draws(size, START);
  const home = Math.round(100 * data.eps);
  const state = { x: new Float64Array(size), label: null, test: null, eps: home };
  state.round = Math.max(0, rounds.findLastIndex((_, r) => sources[0].networks[r].sparsity < 0.95));
  const layers = data.convolutions.map(({ name }) => name);
  state.layer = data.convolutions.reduce((a, b) => (b.shape[2] > 1 && b.shape[1] * 2 === b.shape[0] ? b : a)).name;
  const ending = new AbortController();
  const { signal } = ending;

  const built = new Map();
  const network = (s, r) => {
    const packed = sources[s].networks[r];
    if (!built.has(packed)) built.set(packed, new Network(data, packed));
    return built.get(packed);
  };
  const attackAt = (index) => {
    const eps = index / 100;
    return { eps, step: (eps * data.step) / data.eps, steps: data.steps };
  };
  const attacked = (net, x, label, index) =>
    index === 0 ? x : pgd(net, x, label, attackAt(index), unit.map((value) => (value * index) / 100));

  // -- the controls and the drawing

  const board = make("canvas", {
    class: "pg-board",
    tabindex: 0,
    role: "application",
    "aria-label": `Drawing of ${side} by ${side} pixels. Arrow keys move, space adds ink, backspace takes it away.`,
  });
  const spoken = make("span", { class: "pg-hidden", "aria-live": "polite" });
  const headline = make("div", { class: "pg-headline", "aria-live": "polite" });
  const button = (text, onclick, more = {}) => make("button", { type: "button", onclick, ...more }, text);
  const erase = button("Rubber", () => press(erase, erase.getAttribute("aria-pressed") !== "true"), {
    "aria-pressed": "false",
  });
  const press = (node, on) => node.setAttribute("aria-pressed", String(on));
  const chips = [null, ...classes.keys()].map((label) =>
    button(label === null ? "?" : classes[label], () => set({ label }), {
      "aria-label": label === null ? "Not said: each network's own answer counts" : `This is a ${classes[label]}`,
    }),
  );
  const thumbs = tests.map(({ pixels, label }, i) => {
    const canvas = make("canvas", {});
    const node = button(canvas, () => pick(i), {
      class: "pg-thumb",
      "aria-label": `Test image ${i + 1}, a ${classes[label]}`,
      tabindex: i ? -1 : 0,
      onkeydown: (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.columns, ArrowDown: data.columns }[event.key];
        if (!step || !tests[i + step]) return;
        event.preventDefault();
        pick(i + step);
        thumbs[i + step].focus();
      },
    });
    node.draw = () => paint(canvas, pixels);
    return node;
  });
  const slider = (name, label, max, value, oninput) =>
    make("input", { type: "range", min: 0, max, step: 1, value, class: `pg-${name}`, "aria-label": label, oninput });
  const eps = slider("eps", "Attack strength", GRID, state.eps, () => set({ eps: +eps.value }));
  const round = slider("round", "Sparsity", rounds.length - 1, state.round, () => set({ round: +round.value }));
  const epsText = make("output", {});
  const roundText = make("output", {});
  const prune = button("▶ Prune", () => play(), { class: "pg-prune", title: "Prune step by step, and watch" });
  const layer = make(
    "select",
    { class: "pg-layer", onchange: () => set({ layer: layer.value }) },
    ...layers.map((name) => make("option", { value: name, selected: name === state.layer }, name)),
  );

  // -- a card for each network

  const cards = sources.map((source) => {
    const parts = {
      pill: make("span", { class: "pg-pill" }),
      change: make("canvas", { class: "pg-picture", role: "img" }),
      result: make("canvas", { class: "pg-picture", role: "img" }),
      bars: make("div", { class: "pg-bars", role: "img" }),
      limits: make("p", { class: "pg-limits" }),
      kernels: make("canvas", { class: "pg-kernels", role: "img" }),
      kept: make("p", { class: "pg-small pg-kept" }),
      tested: make("p", { class: "pg-small" }),
    };
    parts.rows = classes.map((name) => {
      const [before, after, share] = [make("i"), make("b"), make("span")];
      parts.bars.append(make("div", { class: "pg-bar" }, make("span", {}, name), make("div", {}, before, after), share));
      return { before, after, share };
    });
    parts.drawing = make("canvas", { class: "pg-picture", role: "img", "aria-label": "the drawing" });
    const figure = (canvas, text) => make("figure", {}, canvas, make("figcaption", {}, text));
    parts.node = make(
      "section",
      { class: `pg-card pg-${source.name}`, style: `--pg-own: ${source.colour}` },
      make(
        "h3",
        {},
        badge(source),
        make("span", {}, source.label),
        parts.pill,
      ),
      make(
        "div",
        { class: "pg-sum" },
        figure(parts.drawing, "drawing"),
        "+",
        figure(parts.change, "attack"),
        "=",
        figure(parts.result, "what it sees"),
      ),
      parts.bars,
      parts.limits,
      parts.kernels,
      parts.kept,
      parts.tested,
    );
    return parts;
  });

  // -- how strong an attack each ticket takes: a line for each source

  const frame = { left: 38, right: 10, top: 8, bottom: 34, width: 320, height: 170 };
  const inner = [frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom];
  const atRound = (r) => frame.left + (inner[0] * (r + 0.5)) / rounds.length;
  const atEps = (index) => frame.top + inner[1] * (1 - index / (GRID + 2));
  const chart = make("svg:svg", {
    class: "pg-chart",
    viewBox: `0 0 ${frame.width} ${frame.height}`,
    role: "img",
    onclick: (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * frame.width;
      const y = ((event.clientY - box.top) / box.height) * frame.height;
      const within = (value, most) => Math.max(0, Math.min(most, Math.round(value)));
      const chosen = within(((x - frame.left) / inner[0]) * rounds.length - 0.5, rounds.length - 1);
      set({ round: chosen, eps: within((1 - (y - frame.top) / inner[1]) * (GRID + 2), GRID) });
    },
  });

  function drawChart() {
    const line = (x1, y1, x2, y2, name) => make("svg:line", { x1, y1, x2, y2, class: name });
    const text = (x, y, words, anchor = "middle") => make("svg:text", { x, y, "text-anchor": anchor }, words);
    const [right, bottom] = [frame.width - frame.right, frame.height - frame.bottom];
    const parts = [];
    for (let index = 0; index <= GRID; index += 10) {
      parts.push(line(frame.left, atEps(index), right, atEps(index), "pg-rule"));
      parts.push(text(frame.left - 5, atEps(index) + 3.5, (index / 100).toFixed(1), "end"));
    }
    rounds.forEach((_, r) => {
      parts.push(text(atRound(r), bottom + 13, (100 * sources[0].networks[r].sparsity).toFixed(0)));
    });
    parts.push(text(frame.left + inner[0] / 2, frame.height - 5, "sparsity of the ticket (%)"));
    parts.push(make("svg:text", { transform: `translate(10 ${bottom - 8}) rotate(-90)` }, "gives in at eps"));
    parts.push(line(atRound(state.round), frame.top, atRound(state.round), bottom, "pg-here"));
    parts.push(line(frame.left, atEps(state.eps), right, atEps(state.eps), "pg-here"));
    sources.forEach((source, s) => {
      const shift = 3 * (s - (sources.length - 1) / 2); // equal values stay in sight
      const points = rounds.map((_, r) => [atRound(r) + shift, limits[s][r]]).filter(([, index]) => index != null);
      parts.push(
        make("svg:polyline", {
          points: points.map(([x, index]) => `${x},${atEps(index)}`).join(" "),
          stroke: source.colour,
          "stroke-dasharray": source.dashes.map((length) => 2.5 * length).join(" "),
          class: "pg-line",
        }),
        ...points.map(([x, index]) => marker(source, 3.6, x, atEps(index))),
      );
    });
    chart.replaceChildren(...parts);
    const told = sources.map(({ label }, s) => `${label}: ${rounds.map((_, r) => tell(limits[s][r])).join(", ")}`);
    chart.setAttribute("aria-label", `The eps at which each ticket gives in, from dense to sparse. ${told.join(". ")}`);
  }

  // -- answers, at once; and then where each ticket gives in, a little at a time

  let limits; // by source and round: on the grid, 0 for wrong without an attack, GRID + 1 for never; null: not known yet
  let timer = 0;
  const blank = () => state.x.every((value) => value === 0);
  const tell = (index) => (index == null ? "..." : index > GRID ? "above 0.40" : strength(index));
  const asked = (net, x, label) => label ?? argmax(net.logits(x));

  function forget() {
    limits = sources.map(() => rounds.map(() => null));
    clearTimeout(timer);
    timer = setTimeout(search, 60, search.state = null);
  }

  /** Goes up the grid for one ticket after the other, the shown ones first; gives way to the page every few ms. */
  function search() {
    if (blank()) return;
    const until = performance.now() + 12;
    while (performance.now() < until) {
      if (!search.state) {
        const near = (r) => Math.abs(r - state.round);
        const left = sources.flatMap((_, s) => rounds.map((_, r) => [s, r])).filter(([s, r]) => limits[s][r] == null);
        if (left.length === 0) return;
        const [s, r] = left.reduce((a, b) => (near(b[1]) < near(a[1]) ? b : a));
        search.state = { s, r, index: 0, label: asked(network(s, r), state.x, state.label) };
      }
      const { s, r, index, label } = search.state;
      const net = network(s, r);
      if (argmax(net.logits(attacked(net, state.x, label, index))) !== label) limits[s][r] = index;
      else if (index === GRID) limits[s][r] = GRID + 1;
      else search.state.index++;
      if (limits[s][r] != null) {
        search.state = null;
        drawChart();
        if (r === state.round || limits[s].every((each) => each != null)) showLimits(s);
        if (r === state.round) {
          const tag = answer(s); // of the card, and of the headline, which has a tag for each source or none
          headline.children[s + 1]?.replaceWith(tag);
        }
      }
    }
    timer = setTimeout(search, 0);
  }

  function showLimits(s) {
    if (blank()) return cards[s].limits.replaceChildren("\u00a0");
    const [own, all] = [limits[s][state.round], limits[s]];
    const first = all.findIndex((index) => index != null && index <= state.eps);
    const known = all.slice(0, first < 0 ? rounds.length : first).every((index) => index != null);
    let words = own == null ? "Looking where it gives in ..." : `Gives in at eps = ${strength(own)}.`;
    if (own === 0) words = "Wrong without any attack.";
    if (own > GRID) words = `Does not give in up to eps = ${strength(GRID)}.`;
    let tickets = "";
    if (known && first === 0) tickets = `At eps = ${strength(state.eps)} the dense network falls already.`;
    else if (known && first > 0)
      tickets = `At eps = ${strength(state.eps)} the first ticket to fall is that of ${percent(sources[s].networks[first].sparsity)}.`;
    else if (known) tickets = `At eps = ${strength(state.eps)} no ticket falls.`;
    cards[s].limits.replaceChildren(make("strong", {}, words), " ", tickets || "\u00a0");
  }

  function answer(s) {
    const [card, net] = [cards[s], network(s, state.round)];
    const clean = net.logits(state.x);
    const label = state.label ?? argmax(clean);
    let [index, adv] = [state.eps, attacked(net, state.x, label, state.eps)];
    if (argmax(net.logits(adv)) === label && (limits[s][state.round] ?? GRID) < index) {
      index = limits[s][state.round]; // a weaker attack did it, and its image lies within this ball too
      adv = attacked(net, state.x, label, index);
    }
    const [before, after] = [softmax(clean), softmax(net.logits(adv))];
    const said = argmax(after);
    const holds = said === label;
    card.node.classList.toggle("pg-fallen", !holds && !blank());
    card.pill.textContent = blank() ? "…" : `${holds ? "✓ still" : "✗ now"} ${classes[said]}`;
    card.rows.forEach((row, c) => {
      row.before.style.width = `${100 * before[c]}%`;
      row.after.style.width = `${100 * after[c]}%`;
      row.share.textContent = `${Math.round(100 * after[c])} %`;
      row.share.parentNode.classList.toggle("pg-right", c === state.label);
    });
    const words = classes.map((name, c) => `${name}: ${Math.round(100 * before[c])} % before, ${Math.round(100 * after[c])} %`);
    card.bars.setAttribute("aria-label", `Probabilities after the attack. ${words.join("; ")}`);
    card.change.setAttribute("aria-label", `the perturbation, at most ${strength(index)} a pixel`);
    card.result.setAttribute("aria-label", `the attacked image, read as ${classes[said]}`);
    paint(card.drawing, state.x);
    paintChange(card.change, adv.map((value, i) => value - state.x[i]), index / 100);
    paint(card.result, adv);
    const verb = `${sources[s].label} ${holds ? "holds" : "falls"}`;
    return make("span", { class: holds ? "pg-tag" : "pg-tag pg-down" }, badge(sources[s]), verb);
  }

  function showNetwork(s) {
    const [card, net, packed] = [cards[s], network(s, state.round), sources[s].networks[state.round]];
    const kernels = net.kernels[state.layer];
    paintKernels(card.kernels, kernels);
    const area = kernels.shape[2] ** 2;
    const count = kernels.weights.length / area;
    let [kept, alive] = [0, 0];
    for (let k = 0; k < count; k++) {
      const own = kernels.weights.subarray(k * area, (k + 1) * area).filter((value) => value !== 0).length;
      kept += own;
      alive += own > 0;
    }
    const number = (value) => value.toLocaleString("en");
    card.kept.textContent = `${number(kept)} of ${number(count * area)} weights, ${number(alive)} of ${number(count)} kernels`;
    card.kernels.setAttribute("aria-label", `Kernels of ${state.layer}: ${card.kept.textContent} survive`);
    card.tested.textContent = `All test images: SA ${percent(packed.sa)}, RA ${percent(packed.ra)}`;
  }

  // -- drawing it all, and changes

  function show(changed) {
    const before = performance.now();
    if (changed.x || "label" in changed) forget();
    const told = sources.map((_, s) => answer(s));
    if (changed.all || "round" in changed || "layer" in changed) sources.forEach((_, s) => showNetwork(s));
    drawBoard();
    drawChart();
    sources.forEach((_, s) => showLimits(s));
    chips.forEach((chip, i) => press(chip, state.label === (i ? i - 1 : null)));
    thumbs.forEach((thumb, i) => {
      thumb.classList.toggle("pg-picked", i === state.test);
      if (changed.all) thumb.draw();
    });
    const sparsity = percent(sources[0].networks[state.round].sparsity);
    [eps.value, round.value] = [state.eps, state.round];
    [epsText.value, roundText.value] = [strength(state.eps), `${sparsity} (round ${rounds[state.round]})`];
    eps.setAttribute("aria-valuetext", epsText.value);
    round.setAttribute("aria-valuetext", roundText.value);
    const words = blank()
      ? `Draw a ${classes.slice(0, -1).join(", ")} or ${classes.at(-1)}.`
      : `At sparsity ${sparsity} and eps ${strength(state.eps)}:`;
    headline.replaceChildren(make("span", {}, words), ...(blank() ? [] : told));
    root.dataset.milliseconds = (performance.now() - before).toFixed(1);
  }

  let [frameAsked, waiting] = [0, {}];
  function set(changes) {
    Object.assign(state, changes);
    Object.assign(waiting, changes);
    frameAsked ||= requestAnimationFrame(() => {
      const changed = waiting;
      [frameAsked, waiting] = [0, {}];
      show(changed);
    });
  }

  const pick = (i) => {
    thumbs.forEach((thumb, k) => (thumb.tabIndex = k === i ? 0 : -1));
    set({ x: tests[i].pixels, label: tests[i].label, test: i });
  };

  /** The next test image on which the first network falls and the last one holds, here and now. */
  function telling(from) {
    const [weak, strong] = [network(0, state.round), network(sources.length - 1, state.round)];
    const right = (net, { pixels, label }) => argmax(net.logits(attacked(net, pixels, label, state.eps))) === label;
    const order = tests.map((_, k) => (from + k) % tests.length);
    const found = order.find((i) => right(strong, tests[i]) && argmax(weak.logits(tests[i].pixels)) === tests[i].label && !right(weak, tests[i]));
    if (found !== undefined) pick(found);
    else headline.replaceChildren("There is no such image here: move a slider.");
  }

  let playing = 0;
  function play(on = !playing) {
    clearInterval(playing);
    playing = 0;
    prune.textContent = on ? "■ Stop" : "▶ Prune";
    if (!on) return;
    set({ round: 0 });
    playing = setInterval(() => (state.round < rounds.length - 1 ? set({ round: state.round + 1 }) : play(false)), 900);
  }

  // -- the board: pointer and keys

  const cursor = { x: side >> 1, y: side >> 1 };
  function drawBoard() {
    const scale = Math.round((board.clientWidth || 256) * (window.devicePixelRatio || 1)) / side;
    board.width = board.height = Math.round(scale * side);
    const context = board.getContext("2d");
    context.fillStyle = context.strokeStyle = getComputedStyle(board).color;
    state.x.forEach((value, i) => {
      const [x, y] = [i % side, Math.floor(i / side)];
      context.globalAlpha = value;
      context.fillRect(Math.round(x * scale), Math.round(y * scale), Math.ceil(scale), Math.ceil(scale));
    });
    context.globalAlpha = 0.14;
    context.beginPath();
    for (let k = 1; k < side; k++) {
      const at = Math.round(k * scale) + 0.5;
      context.moveTo(at, 0);
      context.lineTo(at, board.height);
      context.moveTo(0, at);
      context.lineTo(board.width, at);
    }
    context.stroke();
    if (document.activeElement === board && board.matches(":focus-visible")) {
      context.globalAlpha = 1;
      context.strokeStyle = "#de8f05";
      context.lineWidth = Math.max(2, scale / 9);
      context.strokeRect(cursor.x * scale + 2, cursor.y * scale + 2, scale - 4, scale - 4);
    }
  }

  /** A stroke of soft ink between two points, in pixels of the image. */
  function stroke(from, to, taking) {
    const x = Float64Array.from(state.x);
    const steps = Math.max(1, Math.ceil(4 * Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let k = 1; k <= steps; k++) {
      const at = [0, 1].map((axis) => from[axis] + ((to[axis] - from[axis]) * k) / steps);
      for (let i = 0; i < size; i++) {
        const distance = Math.hypot((i % side) + 0.5 - at[0], Math.floor(i / side) + 0.5 - at[1]);
        const ink = Math.max(0, Math.min(1, 1.25 - distance));
        x[i] = taking ? Math.min(x[i], 1 - ink) : Math.max(x[i], ink);
      }
    }
    set({ x, label: state.test === null ? state.label : null, test: null });
  }

  let last = null;
  const place = (event) => {
    const box = board.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
  };
  const taking = (event) => (event.buttons & 2) > 0 || erase.getAttribute("aria-pressed") === "true";
  board.addEventListener("contextmenu", (event) => event.preventDefault());
  board.addEventListener("pointerdown", (event) => {
    board.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last, taking(event));
  });
  board.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event);
    stroke(last, next, taking(event));
    last = next;
  });
  for (const name of ["pointerup", "pointercancel"]) board.addEventListener(name, () => (last = null));
  board.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const ink = { " ": 0.5, Enter: 0.5, Backspace: -1, Delete: -1 }[event.key];
    if (!step && !ink) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has keys of its own
    const at = () => cursor.y * side + cursor.x;
    if (step) {
      cursor.x = Math.max(0, Math.min(side - 1, cursor.x + step[0]));
      cursor.y = Math.max(0, Math.min(side - 1, cursor.y + step[1]));
      drawBoard();
    } else {
      const x = Float64Array.from(state.x);
      x[at()] = Math.max(0, Math.min(1, x[at()] + ink));
      set({ x, label: state.test === null ? state.label : null, test: null });
    }
    const shown = ink ? Math.max(0, Math.min(1, state.x[at()])) : state.x[at()];
    spoken.textContent = `Row ${cursor.y + 1}, column ${cursor.x + 1}: ink ${Math.round(100 * shown)} %`;
  });
  for (const name of ["focus", "blur"]) board.addEventListener(name, () => drawBoard());

  // -- everything in its place

  const share = (home / GRID) * 100;
  const field = (label, output, control, ...more) =>
    make("label", { class: "pg-field" }, make("span", {}, label, " ", output), control, ...more);
  root.classList.add("dwlth-playground");
  root.replaceChildren(
    make(
      "div",
      { class: "pg-all" },
      make(
        "div",
        { class: "pg-left" },
        board,
        make(
          "div",
          { class: "pg-row" },
          button("Clear", () => set({ x: new Float64Array(size), label: null, test: null }), { class: "pg-clear" }),
          erase,
          button("Find a disagreement", () => telling((state.test ?? -1) + 1), {
            class: "pg-telling",
            title: `The next test image on which ${sources[0].label} falls and ${sources.at(-1).label} holds`,
          }),
          make("span", { class: "pg-chips", role: "group", "aria-label": "Which digit is it?" }, "It is a ", ...chips),
        ),
        make(
          "div",
          { class: "pg-thumbs", role: "group", "aria-label": "Test images", style: `--pg-columns: ${data.columns}` },
          ...thumbs,
        ),
        make("div", { class: "pg-takes" }, make("h4", {}, "How much each ticket takes"), chart),
        spoken,
      ),
      make(
        "div",
        { class: "pg-right-side" },
        make(
          "div",
          { class: "pg-controls" },
          field(
            "Attack strength: eps =",
            epsText,
            eps,
            make("span", { class: "pg-mark", style: `--pg-at: ${share}%` }, `▴ ${data.regime === "adversarial" ? "training and tests" : "tests"}: ${strength(home)}`),
          ),
          make("div", { class: "pg-pruning" }, field("Sparsity:", roundText, round), prune),
          make("label", { class: "pg-field pg-layers" }, make("span", {}, "Kernels of"), layer),
        ),
        headline,
        make("div", { class: "pg-cards" }, ...cards.map(({ node }) => node)),
        make(
          "p",
          { class: "pg-small pg-legend" },
          make("i", { class: "pg-key pg-thin" }),
          "thin bar: the drawing. ",
          make("i", { class: "pg-key pg-thick" }),
          "thick bar: the attacked image. ",
          make("i", { class: "pg-key pg-added" }),
          "ink added, positive weight; ",
          make("i", { class: "pg-key pg-taken" }),
          "ink taken, negative weight; ",
          make("i", { class: "pg-key pg-gone" }),
          `pruned weight. The attack is PGD with ${data.steps} steps from one random start, the same each time.`,
        ),
      ),
    ),
  );
  const again = () => show({ all: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again, { signal });
  const theme = new MutationObserver(again);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (root.clientWidth !== width && root.clientWidth > 0) {
      width = root.clientWidth;
      again();
    }
  });
  forget();
  pick(data.first);
  resized.observe(root);
  return () => {
    ending.abort();
    theme.disconnect();
    resized.disconnect();
    play(false);
    clearTimeout(timer);
    cancelAnimationFrame(frameAsked);
  };
}

// ---- the notebook's widget (anywidget): the kernel is asked for networks, and for nothing else

function render({ model, el }) {
  const top = make("div", { class: "dwlth-playground pg-top" });
  const body = make("div", {});
  const status = make("p", { class: "pg-status", role: "status" });
  const makes = make("button", { type: "button", class: "pg-make" }, "Make them");
  const menus = {};
  let end = () => {};
  const choose = (changes) => {
    model.set("choice", { ...model.get("choice"), make: false, ...changes });
    model.save_changes();
  };
  function shown() {
    end();
    const data = model.get("data");
    end = data.rounds ? mount(body, data) : (body.replaceChildren(), () => {});
  }
  for (const [name, values] of Object.entries(model.get("options"))) {
    const onchange = () => choose({ [name]: values[menus[name].selectedIndex] });
    menus[name] = make("select", { class: `pg-choose-${name}`, onchange }, ...values.map((value) => make("option", {}, value)));
    top.append(make("label", {}, `${name[0].toUpperCase()}${name.slice(1)} `, menus[name]));
  }
  makes.addEventListener("click", () => choose({ make: Date.now() })); // once more is another message
  top.append(status, makes);
  function told() {
    for (const [name, values] of Object.entries(model.get("options")))
      menus[name].selectedIndex = values.indexOf(model.get("choice")[name]);
    status.textContent = model.get("status");
    makes.hidden = !model.get("missing");
  }
  model.on("change:data", shown);
  model.on("change:status change:missing change:choice", told);
  told();
  shown();
  // JupyterLab has commands on keys alone, such as x, which cuts the cell
  el.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.altKey || event.stopPropagation());
  el.replaceChildren(top, body);
  return () => end();
}

export default { render };
