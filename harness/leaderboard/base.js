// Elements, numbers, packs. Text only ever becomes a text node: nothing here parses HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const BOARDS = new Map(DATA.boards.map((board) => [board.id, board]));
const AVERAGE = "avg";
const PAGE_SIZE = 20;

/** An element. Attributes: `on` maps events to listeners, null and false are left out, true is bare. */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
function svg(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const points = (value) => (value === null || value === undefined ? "" : value.toFixed(2));
const whole = (value) => (value === null || value === undefined ? "" : (Math.round(value) || 0).toLocaleString("en"));
const percent = (part) => (part === null || part === undefined ? "" : part > 0 && part < 0.01 ? "<1" : String(Math.round(100 * part)));
const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(2);
const range = (low, high, form = points) => (low === null || low === undefined ? "" : `[${form(low)}, ${form(high)}]`);
const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const unique = (values) => [...new Set(values)];

/** "1, 2 and 3"; with semicolons where the words have commas themselves. */
function listed(words) {
  const comma = words.some((word) => word.includes(",")) ? "; " : ", ";
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(comma)}${comma === ", " ? "" : ";"} and ${words[words.length - 1]}`;
}

/** A record's start, whichever way it was written. */
function moment(started) {
  if (started === null || started === undefined) return "";
  const date = new Date(typeof started === "number" ? 1000 * started : started);
  return Number.isNaN(date.getTime()) ? String(started) : date.toISOString().slice(0, 16).replace("T", " ") + " UTC";
}

/** Colour class of a family; the marker's shape says the same to those who do not see the colour. */
const FAMILIES = ["supervised", "logit", "cross tokenizer", "dual space", "on policy"];
const familyClass = (family) => ([...FAMILIES, "reference"].includes(family) ? `f-${family.replace(" ", "-")}` : "f-other");

/** A marker of about ten units around (x, y). */
function marker(family, x, y, r = 4) {
  const shapes = {
    "supervised": () => svg("circle", { cx: x, cy: y, r }),
    "logit": () => svg("rect", { x: x - 0.88 * r, y: y - 0.88 * r, width: 1.76 * r, height: 1.76 * r }),
    "cross tokenizer": () => svg("path", { d: `M${x} ${y - 1.2 * r}L${x + 1.15 * r} ${y + 0.9 * r}H${x - 1.15 * r}Z` }),
    "dual space": () => svg("path", { d: `M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}Z` }),
    "on policy": () => svg("path", { d: `M${x} ${y + 1.2 * r}L${x + 1.15 * r} ${y - 0.9 * r}H${x - 1.15 * r}Z` }),
  };
  const shape = (shapes[family] || (() => svg("circle", { cx: x, cy: y, r, class: "hollow" })))();
  return svg("g", { class: `mark ${familyClass(family)}` }, shape);
}

const familyIcon = (family) =>
  family !== "reference" && svg("svg", { class: "icon", width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" }, marker(family, 0, 0));

/** The families of some methods with their markers. */
function familyLegend(methods) {
  const families = unique(methods.map((method) => method.family));
  return h("p", { class: "legend" }, families.map((family) => h("span", {}, familyIcon(family), family)));
}

// Packs are opened once, when somebody looks.

const opened = new Map();

/** The data of a pack. Rejects where the browser cannot unpack gzip. */
function open(name) {
  if (!opened.has(name)) opened.set(name, unpack(name));
  return opened.get(name);
}

async function unpack(name) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack gzip (those from mid 2023 on can)");
  const bytes = Uint8Array.from(atob(document.getElementById(name).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** A box that says so until `make` has its content, and why if it never will. */
function later(promise, make) {
  const box = h("div", {}, h("p", { class: "quiet" }, "Opening \u2026"));
  promise.then(
    (data) => box.replaceChildren(...[make(data)].flat(Infinity).filter(Boolean)),
    (error) => box.replaceChildren(h("p", { class: "quiet", role: "alert" }, `Cannot be shown: ${error.message}`)),
  );
  return box;
}

// Boards and methods

const methodsOf = (board) => board.methods.filter((method) => method.ranked);
const referencesOf = (board) => board.methods.filter((method) => !method.ranked);
const methodOf = (board, address) =>
  board.methods.find((method) => method.method === address) || board.apart.find((method) => method.method === address);
const suiteOf = (board, name) => (board.suites.some((suite) => suite.name === name) ? name : AVERAGE);
const suiteName = (name) => (name === AVERAGE ? "average of suites" : name);
const vocabularyWords = { same: "one vocabulary", different: "two vocabularies", unknown: "vocabularies unknown" };

/** The names of a board's methods that no other method of it has as well; else with the address. */
const labelOf = (board, address) => {
  const method = methodOf(board, address);
  return method ? method.label : address;
};

/** The difference of two methods on a suite, or null: {mean, low, high, p, apart}. */
function contrast(board, a, b, column) {
  for (const [first, second, mean, low, high, p, apart] of board.views[column].contrasts) {
    if (first === a && second === b) return { mean, low, high, p, apart };
    if (first === b && second === a) {
      return { mean: -mean, low: high === null ? null : -high, high: low === null ? null : -low, p, apart };
    }
  }
  return null;
}

/** Methods that cannot be told apart from one: those that share a group with it. */
function peers(board, address, column) {
  const groups = board.views[column].groups.filter((group) => group.includes(address));
  return unique(groups.flat()).filter((name) => name !== address);
}

/** What differs from the scale's own settings, in words. */
const budgetWords = (board) => Object.entries(board.budget).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
