// Two methods side by side: the difference, wins and losses, example by example.

/** Choose two methods to compare. */
function compareForm(board, first) {
  const known = board.methods;
  if (known.length < 2) return null;
  const option = (method, selected) => h("option", { value: method.method, selected }, method.label === method.method ? method.label : `${method.label} (${method.method})`);
  const places = board.views[AVERAGE].places.map(([name]) => name);
  const a = first && known.some((method) => method.method === first) ? first : places[0] || known[0].method;
  const b = [...places, ...known.map((method) => method.method)].find((name) => name !== a);
  const left = h("select", { id: "compare-a" }, known.map((method) => option(method, method.method === a)));
  const right = h("select", { id: "compare-b" }, known.map((method) => option(method, method.method === b)));
  const go = (event) => {
    event.preventDefault();
    if (left.value !== right.value) location.hash = address({ board: board.id, method: left.value, with: right.value, suite: read().suite });
  };
  return h("form", { class: "compare", "aria-label": "Compare two methods", on: { submit: go } },
    h("h3", {}, "Compare two methods"),
    h("label", { class: "control", for: "compare-a" }, "A ", left), h("label", { class: "control", for: "compare-b" }, "B ", right),
    h("button", { type: "submit" }, "Compare"));
}

function compareView(board, state) {
  const [a, b] = [methodOf(board, state.method), methodOf(board, state.with)];
  if (!a || !b || !a.columns || !b.columns) return [back(board), h("p", {}, `${board.id} has no complete ${!a || !a.columns ? state.method : state.with} to compare.`)];
  const suite = firstSuite(board, state);
  return [
    back(board),
    h("section", { "aria-labelledby": "compare-title" },
      h("h2", { id: "compare-title", tabindex: -1 }, `${a.label} against ${b.label} on ${board.id}`),
      h("p", {}, familyIcon(a.family), "A: ", h("a", { href: address({ board: board.id, method: a.method }) }, a.label), " ", h("code", {}, a.method), " \u00b7 ",
        familyIcon(b.family), "B: ", h("a", { href: address({ board: board.id, method: b.method }) }, b.label), " ", h("code", {}, b.method), " \u00b7 ",
        h("a", { href: address({ board: board.id, method: b.method, with: a.method, suite: state.suite }) }, "swap")),
      differenceWords(board, a, b),
      winsTable(board, a, b)),
    suite ? h("section", { id: "answers" }, h("h3", {}, `Example by example on ${suite}`), later(examplesOf(board, suite), (examples) => pairItems(board, suite, examples, a, b, state))) : null,
    compareForm(board, a.method),
  ];
}

function differenceWords(board, a, b) {
  const found = contrast(board, a.method, b.method, AVERAGE);
  if (!found) return null;
  const said = `A \u2212 B is ${signed(found.mean)} ${range(found.low, found.high, signed)} points on average.`;
  if (found.low === null) return h("p", { class: "verdict" }, `${said} One training seed: no interval, and nothing can be told apart.`);
  if (found.apart === null) return h("p", { class: "verdict" }, said);
  return h("p", { class: "verdict" }, said, found.apart ? " They are told apart." : " They cannot be told apart.");
}

/** Per suite the difference, and on how many examples each is ahead. */
function winsTable(board, a, b) {
  const columns = [...(board.suites.length > 1 ? [AVERAGE] : []), ...board.suites.map((suite) => suite.name)];
  const slots = new Map(columns.map((name) => [name, ["wins", "ties", "losses", "bar"].map(() => h("span", {}))]));
  const table = scrolling(`${a.label} against ${b.label} by suite`,
    [["Suite", ""], ["A", ""], ["B", ""], ["A \u2212 B", ""], ["Told apart", "wide"], ["A wins", ""], ["Ties", "wide"], ["B wins", ""], ["", "wide"]],
    columns.map((name) => {
      const found = contrast(board, a.method, b.method, name);
      return [
        name === AVERAGE ? "average" : h("a", { href: address({ board: board.id, method: a.method, with: b.method, suite: name }), "aria-current": name === read().suite ? "true" : null }, name),
        points(a.columns[name].mean), points(b.columns[name].mean),
        found ? [h("b", {}, signed(found.mean)), " ", h("span", { class: "quiet nowrap" }, range(found.low, found.high, signed))] : "",
        !found || found.apart === null ? "" : found.apart ? "yes" : "no", ...slots.get(name),
      ];
    }), ["", "number", "number", "number score", "", "number", "number", "number", ""]);
  const suites = board.suites.map((suite) => suite.name).filter((name) => board.examples[name]);
  const note = h("p", { class: "quiet" }, `A wins an example where its mean over runs is higher. ${contrastNote(board, a, b)}`);
  Promise.all(suites.map((name) => open(board.examples[name]))).then((packs) => {
    const total = [0, 0, 0];
    packs.forEach((pack, number) => {
      const counts = outcomes(new Examples(pack, null), a, b);
      counts.forEach((value, place) => { total[place] += value; });
      fillWins(slots.get(suites[number]), counts);
    });
    if (slots.has(AVERAGE)) fillWins(slots.get(AVERAGE), total);
  }, (error) => { note.textContent = `Wins and losses cannot be counted: ${error.message}`; });
  return [table, note];
}

const contrastNote = (board, a, b) =>
  a.ranked && b.ranked ? "Intervals of A \u2212 B pool the run variance of all methods of the board; told apart at a false discovery rate of 5 % over all its pairs." : "Intervals of A \u2212 B are those of the tables.";

function fillWins(slots, counts) {
  counts.forEach((value, place) => { slots[place].textContent = whole(value); });
  slots[3].replaceChildren(winBar(counts));
}

function winBar([wins, ties, losses]) {
  const width = 120;
  const all = wins + ties + losses || 1;
  const [x1, x2] = [(width * wins) / all, (width * (wins + ties)) / all];
  return svg("svg", { width, height: 12, viewBox: `0 0 ${width} 12`, role: "img", "aria-label": `A wins ${wins}, ties ${ties}, B wins ${losses}` },
    svg("rect", { class: "win", x: 0, y: 1, width: x1, height: 10 }), svg("rect", { class: "tie", x: x1, y: 1, width: x2 - x1, height: 10 }), svg("rect", { class: "loss", x: x2, y: 1, width: width - x2, height: 10 }));
}

/** A's mean score minus B's on every item. */
function itemDifferences(examples, a, b) {
  const [left, right] = [examples.runsOf(a.method), examples.runsOf(b.method)];
  return Array.from({ length: examples.length }, (_, item) => {
    const value = examples.score(item, left) - examples.score(item, right);
    return Math.abs(value) < 1e-6 ? 0 : value;
  });
}

function outcomes(examples, a, b) {
  const values = itemDifferences(examples, a, b);
  return [values.filter((value) => value > 0).length, values.filter((value) => value === 0).length, values.filter((value) => value < 0).length];
}

function pairItems(board, suite, examples, a, b, state) {
  const values = itemDifferences(examples, a, b);
  const [left, right] = [examples.runsOf(a.method), examples.runsOf(b.method)];
  const orders = [
    ["largest difference first", (x, y) => Math.abs(values[y]) - Math.abs(values[x]) || x - y],
    ["as in the suite", (x, y) => x - y],
  ];
  const kinds = [["all", () => true], ["A wins", (item) => values[item] > 0], ["B wins", (item) => values[item] < 0], ["ties", (item) => values[item] === 0]];
  const go = (name) => location.replace(address({ board: board.id, method: a.method, with: b.method, suite: name }));
  return [
    h("figure", {}, h("figcaption", {}, "Every example's A \u2212 B, in order of size"), responsive((width) => differencesPlot(values, width))),
    itemList({
      examples, orders, kinds, first: state.example, choice: suiteChoice(board, suite, go), searched: [...left, ...right],
      numbers: (item) => signed(values[item]),
      link: (item) => address({ board: board.id, method: a.method, with: b.method, suite, example: String(item + 1) }),
      answers: (item) => answerList(board, suite, examples, item, [[`A, ${a.label}`, left], [`B, ${b.label}`, right]]),
    }),
  ];
}

/** Differences from the largest to the smallest: how much is won where, and how much lost. */
function differencesPlot(values, width) {
  const height = 160;
  const box = { left: 44, right: width - 8, top: 18, bottom: height - 38 };
  const sorted = [...values].sort((x, y) => y - x);
  const y = scaleOf([...sorted, 0], box.bottom, box.top, { ticks: 4 });
  const x = scaleOf([0, sorted.length], box.left, box.right, { margin: 0, ticks: 5 });
  const zero = y.place(0);
  const area = (some, cls) => {
    const inside = sorted.map((value, number) => [number, value]).filter(([, value]) => some(value));
    if (!inside.length) return null;
    const d = inside.map(([number, value]) => `V${y.place(value).toFixed(1)}H${x.place(number + 1).toFixed(1)}`).join("");
    return svg("path", { class: cls, d: `M${x.place(inside[0][0]).toFixed(1)} ${zero}${d}V${zero}Z` });
  };
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Differences on ${count(values.length, "example", "examples")} from ${signed(sorted[0])} to ${signed(sorted[sorted.length - 1])}` },
    axes(x, y, box, { x: "examples", y: "A \u2212 B, points" }),
    area((value) => value > 0, "win"), area((value) => value < 0, "loss"),
    svg("line", { class: "axis", x1: box.left, x2: box.right, y1: zero, y2: zero }));
}
