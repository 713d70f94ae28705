// Plots in SVG, drawn for the width they have, with axes that are named.

/** About `wanted` round numbers within [low, high]. */
function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9) + 0; k * step <= high + 1e-9 * step; k += 1) found.push(k * step + 0);
  return { values: found, places: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/** Powers of ten, and 2 and 5 times them where there are few. */
function logTicks(low, high) {
  const found = [];
  const decades = Math.log10(high / low);
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of decades > 3 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found;
}

/** A scale from data to pixels; over more than a factor of thirty by logarithm. */
function scaleOf(values, start, end, options = {}) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  const log = options.log && low > 0 && high / low > 30;
  if (log) {
    const place = (value) => start + ((Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low) || 1)) * (end - start);
    return { place, ticks: logTicks(low, high), text: (value) => String(+value.toPrecision(2)), log };
  }
  const margin = (high - low || Math.abs(high) || 1) * (options.margin ?? 0.05);
  low = options.zero && low - margin < 0 && low >= 0 ? 0 : low - margin;
  high += margin;
  const { values: marks, places } = ticks(low, high, options.ticks || 5);
  const place = (value) => start + ((value - low) / (high - low)) * (end - start);
  return { place, ticks: marks, text: (value) => value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places }), low, high };
}

/** A box that draws itself again whenever its width changes. */
function responsive(draw) {
  const box = h("div", { class: "plot" });
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (width > 0 && width !== last) {
      last = width;
      box.replaceChildren(draw(width));
    }
  }).observe(box);
  return box;
}

/** Frame, grid, tick labels and axis names. */
function axes(x, y, box, names) {
  const { left, right, top, bottom } = box;
  return svg("g", { class: "axes", "aria-hidden": "true" },
    y.ticks.map((value) => [
      svg("line", { class: "grid", x1: left, x2: right, y1: y.place(value), y2: y.place(value) }),
      svg("text", { x: left - 6, y: y.place(value) + 4, "text-anchor": "end" }, y.text(value)),
    ]),
    x.ticks.map((value) => [
      svg("line", { class: "tick", x1: x.place(value), x2: x.place(value), y1: bottom, y2: bottom + 4 }),
      svg("text", { x: x.place(value), y: bottom + 17, "text-anchor": "middle" }, x.text(value)),
    ]),
    svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    svg("text", { class: "name", x: right, y: bottom + 33, "text-anchor": "end" }, names.x),
    svg("text", { class: "name", x: 0, y: 10 }, names.y));
}

// Score against cost

const COSTS = {
  train_seconds: { name: "training time, seconds a run", less: true },
  decode_seconds: { name: "decoding time, seconds a run", less: true },
  peak_rss_mb: { name: "peak memory, MB", less: true },
  tokens_per_second: { name: "training speed, tokens a second", less: false },
};

/** Where each method stands between what it costs and what it scores. */
function costFigure(board, column) {
  const known = Object.keys(COSTS).filter((key) => methodsOf(board).some((method) => method.cost[key] !== null));
  const choice = h("select", { id: "cost" }, known.map((key) => h("option", { value: key }, COSTS[key].name)));
  const place = h("div", {});
  const draw = () => place.replaceChildren(responsive((width) => costPlot(board, column, choice.value, width)), costCaption(board, column, choice.value));
  choice.addEventListener("change", draw);
  if (!known.length) return null;
  draw();
  return h("section", { class: "figure" },
    h("h3", {}, "Score against cost"),
    h("label", { class: "control", for: "cost" }, "Cost ", choice),
    place);
}

function costPlot(board, column, key, width) {
  const height = Math.round(Math.min(380, Math.max(260, 0.62 * width)));
  const box = { left: 40, right: width - 12, top: 20, bottom: height - 38 };
  const shown = methodsOf(board).filter((method) => method.cost[key] !== null).map((method) => ({ method, cost: method.cost[key], ...method.columns[column] }));
  const x = scaleOf(shown.map((point) => point.cost), box.left + 10, box.right - 10, { log: true, margin: 0.06, ticks: width < 420 ? 4 : 7 });
  const y = scaleOf(shown.flatMap((point) => [point.low, point.high]), box.bottom, box.top, { ticks: 6 });
  const placed = shown.map((point) => ({ ...point, x: x.place(point.cost), y: y.place(point.mean) }));
  const names = { x: COSTS[key].name, y: `score, ${suiteName(column)}, points` };
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Score against ${COSTS[key].name}; ${count(shown.length, "method", "methods")}` },
    axes(x, y, box, names),
    referenceLines(board, column, y, box),
    frontier(placed, COSTS[key].less, box),
    placed.map((point) => costPoint(board, column, point, y, key)),
    labels(placed, box));
}

/** Teacher and student as lines, where they lie within the plot. */
function referenceLines(board, column, y, box) {
  return referencesOf(board).filter((method) => inside(y, method.columns[column].mean)).map((method) => {
    const at = y.place(method.columns[column].mean);
    return svg("g", { class: "reference" },
      svg("line", { x1: box.left, x2: box.right, y1: at, y2: at }),
      svg("text", { x: box.right, y: at - 4, "text-anchor": "end" }, method.label));
  });
}

const inside = (scale, value) => value >= scale.low && value <= scale.high;

/** The best score to be had for each cost, as steps. */
function frontier(placed, less, box) {
  const sorted = [...placed].sort((a, b) => (less ? a.x - b.x : b.x - a.x) || a.y - b.y);
  const best = sorted.filter((point, number) => sorted.slice(0, number).every((other) => point.y < other.y));
  if (best.length === 0) return null;
  const end = less ? box.right : box.left;
  const path = best.map((point, number) => (number ? `H${point.x}V${point.y}` : `M${point.x} ${point.y}`)).join("");
  return svg("path", { class: "frontier", d: `${path}H${end}` });
}

function costPoint(board, column, point, y, key) {
  const { method } = point;
  const words = `${method.label}: ${points(point.mean)} ${range(point.low, point.high)}, ${whole(point.cost)} ${key === "peak_rss_mb" ? "MB" : key === "tokens_per_second" ? "tokens/s" : "s"}`;
  return svg("a", { href: address({ board: board.id, method: method.method, suite: read().suite }), "data-method": method.method, class: `point ${familyClass(method.family)}`, "aria-label": words, on: lighting(method.method) },
    svg("title", {}, words),
    svg("line", { class: "whisker", x1: point.x, x2: point.x, y1: y.place(point.low), y2: y.place(point.high) }),
    svg("circle", { class: "hit", cx: point.x, cy: point.y, r: 10 }),
    marker(method.family, point.x, point.y, 4.5));
}

/** Names beside points, left out where they would lie on something. */
function labels(placed, box) {
  const taken = placed.map((point) => ({ left: point.x - 6, right: point.x + 6, top: point.y - 6, bottom: point.y + 6 }));
  const group = svg("g", { class: "labels", "aria-hidden": "true" });
  for (const point of [...placed].sort((a, b) => a.y - b.y)) {
    const wide = 6.1 * point.method.label.length;
    const spots = [[8, 4], [-8 - wide, 4], [-wide / 2, -9], [-wide / 2, 17]];
    for (const [dx, dy] of spots) {
      const spot = { left: point.x + dx, right: point.x + dx + wide, top: point.y + dy - 10, bottom: point.y + dy + 3 };
      const free = spot.left >= box.left && spot.right <= box.right + 8 && spot.top >= 12 && spot.bottom <= box.bottom;
      if (free && taken.every((other) => spot.left > other.right || spot.right < other.left || spot.top > other.bottom || spot.bottom < other.top)) {
        taken.push(spot);
        group.append(svg("text", { x: spot.left, y: point.y + dy, "data-method": point.method.method }, point.method.label));
        break;
      }
    }
  }
  return group;
}

function costCaption(board, column, key) {
  const y = scaleOf(methodsOf(board).flatMap((method) => [method.columns[column].low, method.columns[column].high]), 1, 0);
  const outside = referencesOf(board).filter((method) => !inside(y, method.columns[column].mean));
  const words = outside.map((method) => `${method.label} ${points(method.columns[column].mean)}`);
  const unit = key === "tokens_per_second" ? "speed" : "cost";
  return h("p", { class: "quiet" },
    `Whiskers: 95 % interval. Line: the best score at each ${unit}. `,
    words.length ? `Outside the plot: ${words.join(", ")}. ` : "",
    key === "peak_rss_mb" && methodsOf(board).some((method) => method.cost.peak_is_bound) ? "Peaks are upper bounds: the processes ran other cells before. " : "",
    "Names that would overlap are left out; point at a mark or a row.");
}

/** Pointing at a method anywhere lights it up everywhere. */
function lighting(method) {
  return {
    mouseenter: () => light(method), mouseleave: () => light(null),
    focusin: () => light(method), focusout: () => light(null),
  };
}

function light(method) {
  document.body.classList.toggle("lighting", method !== null);
  for (const element of document.querySelectorAll("[data-method]")) {
    element.classList.toggle("lit", element.dataset.method === method);
  }
}

// Training curves

/** Mean over a method's seeds of one term of the loss: [[step, value], ...]. */
function meanCurve(records, method, term) {
  const curves = method.cells.map((cell) => records[cell.id].curve).filter((curve) => curve.length);
  if (!curves.length) return [];
  const by = new Map();
  for (const curve of curves) {
    for (const [step, terms] of curve) if (term in terms) by.set(step, [...(by.get(step) || []), terms[term]]);
  }
  return [...by].filter(([, values]) => values.length === curves.length).map(([step, values]) => [step, mean(values)]).sort((a, b) => a[0] - b[0]);
}

const termsOf = (records, methods) =>
  unique(methods.flatMap((method) => method.cells.flatMap((cell) => records[cell.id].curve.flatMap(([, terms]) => Object.keys(terms))))).sort();

/** One term of the loss, all methods. */
function curvesFigure(board) {
  return h("section", { class: "figure" },
    h("h3", {}, "Training curves"),
    later(open(board.records), (records) => {
      const methods = methodsOf(board).filter((method) => method.cells.some((cell) => records[cell.id].curve.length));
      const terms = termsOf(records, methods);
      if (!terms.length) return h("p", { class: "quiet" }, "The records hold none.");
      const choice = h("select", { id: "term" }, terms.map((term) => h("option", { value: term, selected: term === "ce" }, term)));
      const place = h("div", {});
      const draw = () => {
        const lines = methods.map((method) => ({ method, curve: meanCurve(records, method, choice.value) })).filter((line) => line.curve.length);
        const words = `${count(lines.length, "method", "methods")} with this term, mean over ${count(board.seeds.length, "training seed", "training seeds")}. Terms are as they enter the loss, and methods weigh them differently: compare shapes, not heights.`;
        place.replaceChildren(responsive((width) => curvesPlot(board, lines, choice.value, width)), h("p", { class: "quiet" }, words));
      };
      choice.addEventListener("change", draw);
      draw();
      return [h("label", { class: "control", for: "term" }, "Term of the loss ", choice), place];
    }));
}

function curvesPlot(board, lines, term, width) {
  const height = Math.round(Math.min(380, Math.max(260, 0.62 * width)));
  const box = { left: 44, right: width - 12, top: 20, bottom: height - 38 };
  const x = scaleOf(lines.flatMap(({ curve }) => curve.map(([step]) => step)), box.left, box.right, { margin: 0, ticks: width < 420 ? 4 : 7 });
  const y = scaleOf(lines.flatMap(({ curve }) => curve.map(([, value]) => value)), box.bottom, box.top, { log: true, zero: true, ticks: 5 });
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${term} by training step for ${count(lines.length, "method", "methods")}` },
    axes(x, y, box, { x: "training step", y: `${term}, as weighted in the loss${y.log ? " (logarithmic)" : ""}` }),
    lines.map(({ method, curve }) => svg("g", { class: `curve ${familyClass(method.family)}`, "data-method": method.method, on: lighting(method.method) },
      svg("title", {}, method.label),
      svg("polyline", { class: "hit", points: path(curve, x, y) }),
      svg("polyline", { points: path(curve, x, y) }))));
}

const path = (curve, x, y) => curve.map(([step, value]) => `${x.place(step).toFixed(1)},${y.place(value).toFixed(1)}`).join(" ");

/** Every term of one method, a line for each seed. */
function ownCurves(method, records) {
  const cells = method.cells.filter((cell) => records[cell.id].curve.length);
  const terms = termsOf(records, [method]);
  return terms.map((term) => h("figure", {},
    h("figcaption", {}, term),
    responsive((width) => {
      const lines = cells.map((cell) => ({ cell, curve: records[cell.id].curve.filter(([, values]) => term in values).map(([step, values]) => [step, values[term]]) }));
      const height = 190;
      const box = { left: 44, right: width - 8, top: 18, bottom: height - 38 };
      const x = scaleOf(lines.flatMap(({ curve }) => curve.map(([step]) => step)), box.left, box.right, { margin: 0, ticks: 4 });
      const y = scaleOf(lines.flatMap(({ curve }) => curve.map(([, value]) => value)), box.bottom, box.top, { log: true, zero: true, ticks: 4 });
      return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${term} by training step, ${count(cells.length, "seed", "seeds")}` },
        axes(x, y, box, { x: "training step", y: `as weighted in the loss${y.log ? " (logarithmic)" : ""}` }),
        lines.map(({ cell, curve }) => svg("g", { class: `curve ${familyClass(method.family)}` },
          svg("title", {}, `seed ${cell.seed}`), svg("polyline", { points: path(curve, x, y) }))));
    })));
}

// Intervals in a table

/** The scale that all intervals of a table share. */
const intervalScale = (rows, width) => scaleOf(rows.flatMap((row) => [row.low, row.high]), 4, width - 4, { margin: 0.02, ticks: 3 });

function intervalAxis(scale, width) {
  return svg("svg", { class: "intervals", width, height: 14, viewBox: `0 0 ${width} 14`, "aria-hidden": "true" },
    scale.ticks.map((value) => svg("text", { x: Math.min(width - 8, Math.max(8, scale.place(value))), y: 11, "text-anchor": "middle" }, scale.text(value))));
}

function interval(scale, column, family, width) {
  const within = inside(scale, column.mean); // teacher and student often are not
  const [low, high] = [column.low, column.high].map((value) => Math.min(width, Math.max(0, scale.place(value))));
  return svg("svg", { class: `intervals ${familyClass(family)}`, width, height: 20, viewBox: `0 0 ${width} 20`, "aria-hidden": "true" },
    scale.ticks.map((value) => svg("line", { class: "grid", x1: scale.place(value), x2: scale.place(value), y1: 0, y2: 20 })),
    within ? [svg("line", { class: "whisker", x1: low, x2: high, y1: 10, y2: 10 }), marker(family, scale.place(column.mean), 10, 4)] : null);
}
