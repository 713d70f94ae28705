// The list of boards with their leaders, and one board in full.

// Tables that sort

/** What a table is sorted by is kept while the page is open: table name -> {key, descending}. */
const sorting = new Map();

/** A table with a button in the head of every column that sorts.
 *  `columns`: {key, name, title, cell(row), value(row) for sorting, up: best is low, class, head}. `fixed`: rows that stay below.
 */
function sortable({ name, caption, columns, rows, fixed = [], classes = "" }) {
  const order = () => sorting.get(name) || sorting.set(name, { key: columns.find((column) => column.start).key, descending: !columns.find((column) => column.start).up }).get(name);
  const made = rows.map((row) => ({ row, tr: rowOf(columns, row) }));
  const body = h("tbody", {});
  const heads = columns.map((column) => headOf(column, () => {
    const old = order();
    sorting.set(name, { key: column.key, descending: old.key === column.key ? !old.descending : !column.up });
    arrange();
  }));
  const arrange = () => {
    const column = columns.find(({ key }) => key === order().key) || columns.find(({ start }) => start);
    const sign = order().descending ? -1 : 1;
    made.sort((a, b) => compareValues(column.value(a.row), column.value(b.row), sign));
    body.replaceChildren(...made.map(({ tr }) => tr));
    columns.forEach((other, number) => {
      if (other.value) heads[number].setAttribute("aria-sort", other === column ? (sign < 0 ? "descending" : "ascending") : "none");
    });
  };
  arrange();
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { class: `data ${classes}` }, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, heads)), body,
      fixed.map(({ title, rows: below }) => h("tbody", { class: "below" },
        h("tr", { class: "title" }, h("th", { colspan: columns.length, scope: "rowgroup" }, title)),
        below.map((row) => rowOf(columns, row))))));
}

/** Numbers before texts, nothing last whichever way it goes. */
function compareValues(a, b, sign) {
  const missing = (value) => value === null || value === undefined || value === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return sign * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
}

function headOf(column, sort) {
  const inner = column.value ? h("button", { type: "button", title: column.title, on: { click: sort } }, column.name, h("span", { class: "arrow", "aria-hidden": "true" })) : column.name;
  return h("th", { scope: "col", class: column.class, title: column.value ? null : column.title }, inner, column.under ? column.under() : null);
}

function rowOf(columns, row) {
  return h("tr", { class: row.current ? "current" : null, "data-method": row.highlight, on: row.highlight ? lighting(row.highlight) : {} },
    columns.map((column) => h(column.head ? "th" : "td", { class: column.class, scope: column.head ? "row" : null }, column.cell(row))));
}

// Filters

/** The four filters; the form stays, so that a keyboard keeps its place. */
function filters() {
  const form = h("form", { class: "filters", "aria-label": "Filters", on: { submit: (event) => event.preventDefault() } });
  const boxes = {};
  const add = (key, label, options) => {
    boxes[key] = h("select", { id: `filter-${key}`, on: { change: () => replaceBy({ [key]: boxes[key].value || null, method: null, with: null }) } },
      options.map(([value, words]) => h("option", { value }, words)));
    form.append(h("label", { for: `filter-${key}` }, label, boxes[key]));
  };
  const suites = unique(DATA.boards.flatMap((board) => board.suites.map((suite) => suite.name)));
  add("scale", "Scale", [["", "all"], ...unique(DATA.boards.map((board) => board.scale)).map((scale) => [scale, scale])]);
  add("vocabulary", "Vocabulary", [["", "all"], ...unique(DATA.boards.map((board) => board.vocabulary)).map((word) => [word, word])]);
  add("pair", "Pair", [["", "all"], ...unique(DATA.boards.map((board) => board.pair)).map((pair) => [pair, pair])]);
  add("suite", "Suite", [["", "average of all"], ...suites.map((suite) => [suite, suite])]);
  const reset = h("button", { type: "button", on: { click: () => location.replace("#") } }, "Clear filters");
  form.append(reset);
  const show = (state) => {
    for (const key of FILTERS) boxes[key].value = state[key] || "";
    reset.hidden = !FILTERS.some((key) => state[key]);
  };
  return { form, show };
}

// All boards

/** Who leads where: a row for each board. */
function overview(boards, current, state) {
  const column = (board) => suiteOf(board, state.suite);
  const rows = boards.map((board) => {
    const view = board.views[column(board)];
    const place = view.places[0];
    const leader = place && methodOf(board, place[0]);
    return { board, view, place, leader, score: leader && leader.columns[column(board)], current: board === current };
  });
  const columns = [
    { key: "pair", name: "Pair", head: true, up: true, start: true, value: ({ board }) => DATA.boards.indexOf(board),
      cell: ({ board, current: here }) => h("a", { href: address({ board: board.id }), "aria-current": here ? "true" : null }, board.id) },
    { key: "vocabulary", name: "Vocabulary", class: "wide", up: true, value: ({ board }) => board.vocabulary, cell: ({ board }) => board.vocabulary },
    { key: "task", name: "Task", class: "wide", up: true, value: ({ board }) => board.group, cell: ({ board }) => [board.group, budgetWords(board).length && !board.tables.length ? h("span", { class: "quiet", title: budgetWords(board).join(", ") }, ", own budget") : null] },
    { key: "leader", name: "Leader", class: "leader", up: true, value: ({ leader }) => leader && leader.label,
      cell: ({ board, leader }) => (leader ? h("a", { href: address({ board: board.id, method: leader.method }) }, familyIcon(leader.family), leader.label) : "nobody yet") },
    { key: "score", name: "Score", class: "number score", title: "Mean with its 95 % interval, points", value: ({ score }) => score && score.mean,
      cell: ({ score }) => score && [h("b", {}, points(score.mean)), " ", h("span", { class: "quiet nowrap" }, range(score.low, score.high))] },
    { key: "best", name: "P(best)", class: "number", title: "Probability that it has the highest score, %", value: ({ place }) => place && place[4],
      cell: ({ place, board }) => place && (place[4] !== null ? `${percent(place[4])}\u00a0%` : h("span", { class: "quiet" }, board.seeds.length < 2 ? "1 seed" : "alone")) },
    { key: "peers", name: "Not told apart", class: "number wide", title: "How many other methods cannot be told apart from the leader", up: true,
      value: ({ board, leader }) => leader && peers(board, leader.method, column(board)).length,
      cell: ({ board, leader }) => leader && `${peers(board, leader.method, column(board)).length} of ${methodsOf(board).length - 1}` },
    { key: "gap", name: "Gap %", class: "number wide", title: "Share of the gap from the untrained student to the teacher that the leader closes", value: ({ score }) => score && score.gap && score.gap[0],
      cell: ({ score }) => score && score.gap && `${whole(score.gap[0])}` },
    { key: "time", name: "Train s", class: "number", title: "Seconds of training a run", up: true, value: ({ leader }) => leader && leader.cost.train_seconds,
      cell: ({ leader }) => leader && whole(leader.cost.train_seconds) },
  ];
  return h("section", { class: "overview" },
    h("h2", {}, "Who leads"),
    rows.length ? sortable({ name: "overview", caption: `Leaders of ${count(rows.length, "board", "boards")} by ${suiteName(state.suite || AVERAGE)}`, columns, rows }) : h("p", {}, "No board passes the filters."));
}

// One board

function boardView(board, state) {
  const column = suiteOf(board, state.suite);
  return [
    h("section", { class: "board", "aria-labelledby": "board-title" },
      h("h2", { id: "board-title", tabindex: -1 }, board.id),
      h("p", { class: "quiet" }, boardWords(board)),
      verdictWords(board, column),
      board.methods.length ? rankingTable(board, column) : null,
      h("p", { class: "quiet" }, legendWords(board, column)),
      notRun(board),
      familyLegend(methodsOf(board)),
      externalTable(board)),
    methodsOf(board).length ? h("div", { class: "figures" }, costFigure(board, column), curvesFigure(board)) : null,
    compareForm(board),
    claimsList(board),
    protocol(board),
  ];
}

function boardWords(board) {
  const items = board.suites.reduce((sum, suite) => sum + suite.items, 0);
  const parts = [
    vocabularyWords[board.vocabulary], `${board.teacher} \u2192 ${board.student}`,
    `${count(methodsOf(board).length, "method", "methods")}, ${count(board.seeds.length, "training seed", "training seeds")}, ${count(items, "example", "examples")} of ${listed(board.suites.map((suite) => suite.name))}`,
    ...budgetWords(board),
  ];
  return parts.join(" \u00b7 ");
}

/** The board in a few sentences: who, how surely, at what cost. */
function verdictWords(board, column) {
  const [place] = board.views[column].places;
  if (!place) return h("p", { class: "verdict" }, "No method has all suites and seeds of this board, so none is ranked.");
  const [name, , low, high, best] = place;
  const leader = methodOf(board, name);
  const score = leader.columns[column];
  const near = peers(board, name, column).map((other) => methodOf(board, other));
  const others = methodsOf(board).length - 1;
  const lead = [h("b", {}, leader.label), ` has the highest score, ${points(score.mean)} ${range(score.low, score.high)}`];
  const seconds = leader.cost.train_seconds === null ? "" : ` It trains in ${whole(leader.cost.train_seconds)} s a run.`;
  if (best === null) {
    const why = board.seeds.length < 2 ? "one training seed shows nothing of how runs vary" : "there is nobody to compare it with";
    return h("p", { class: "verdict" }, lead, `. No ranks are given: ${why}.`, seconds);
  }
  const sure = ` It is the best with probability ${percent(best)}\u00a0%; its rank is ${low === high ? low : `${low} to ${high}`} of ${others + 1}.`;
  const apart = near.length ? ` ${count(near.length, "other", "others")} of ${others} cannot be told apart from it: ${listed(near.map((method) => method.label))}.` : " All others are told apart from it.";
  const cheaper = near.filter((method) => method.cost.train_seconds !== null && method.cost.train_seconds < 0.95 * leader.cost.train_seconds).sort((a, b) => a.cost.train_seconds - b.cost.train_seconds)[0];
  const cost = cheaper ? ` Of these, ${cheaper.label} trains fastest, in ${whole(cheaper.cost.train_seconds)} s.` : "";
  return h("p", { class: "verdict" }, lead, ".", sure, apart, seconds, cost);
}

/** Width of the drawn intervals, pixels. */
const WIDTH = 130;

function rankingTable(board, column) {
  const view = board.views[column];
  const rows = view.places.map(([name, rank, low, high, best]) => ({ method: methodOf(board, name), rank, low, high, best, highlight: name }));
  const references = referencesOf(board).map((method) => ({ method }));
  const scale = intervalScale((rows.length ? rows : references).map(({ method }) => method.columns[column]), WIDTH);
  const fixed = [];
  if (references.length) fixed.push({ title: "References, not ranked", rows: references });
  const partial = board.apart.filter((method) => method.cells.length);
  if (partial.length) fixed.push({ title: "Incomplete, not ranked", rows: partial.map((method) => ({ method, apart: true })) });
  return sortable({
    name: "ranking", caption: `Ranking on ${board.id} by ${suiteName(column)}`, classes: "ranking", rows, fixed,
    columns: [...rankColumns(board, column), ...scoreColumns(board, column, scale), ...suiteColumns(board, column), ...otherColumns(column)],
  });
}

function rankColumns(board, column) {
  const groups = board.views[column].groups;
  return [
    { key: "rank", name: "Rank", class: "number rank", up: true, start: true, title: "By mean score; behind it the interval that holds the true rank with 95 %",
      value: ({ rank, method }) => (rank === undefined ? null : rank + 1e-6 * methodsOf(board).indexOf(method)),
      cell: ({ rank, low, high }) => rank && [h("span", { class: "place" }, String(rank)), h("span", { class: "quiet span" }, low ? (low === high ? String(low) : `${low}\u2013${high}`) : "")] },
    { key: "method", name: "Method", head: true, class: "method", up: true, value: ({ method }) => method.label, cell: ({ method, apart }) => methodCell(board, method, apart) },
    { key: "groups", name: "Groups", class: "groups wide", title: "Methods that share a bar cannot be told apart", cell: ({ method, apart }) => (apart || !method.ranked ? null : groupBars(groups, method.method)) },
  ];
}

function methodCell(board, method, apart) {
  return [
    h("span", { class: "called" },
      h("a", { href: address({ board: board.id, method: method.method }) }, familyIcon(method.family), method.label),
      method.label === method.method || method.family === "reference" ? null : h("code", { class: "quiet", title: method.method }, method.method.split(/(?<=[/:=])/).map((part) => [part, h("wbr")]))),
    apart ? h("span", { class: "reason" }, method.reason) : null,
  ];
}

/** One slot for each group; bars of neighbouring rows join into one. */
function groupBars(groups, name) {
  const mine = groups.map((group, number) => (group.includes(name) ? number + 1 : 0)).filter(Boolean);
  return [
    h("span", { class: "hidden" }, `group ${listed(mine.map(String))}`),
    h("span", { class: "bars", "aria-hidden": "true" }, groups.map((group) => h("i", { class: group.includes(name) ? (group.length > 1 ? "bar" : "bar lone") : null }))),
  ];
}

function scoreColumns(board, column, scale) {
  const scored = ({ method, apart }) => (apart ? null : method.columns[column]);
  const link = (method, words) => h("a", { class: "plain", href: address({ board: board.id, method: method.method, suite: read().suite }) }, words);
  return [
    { key: "interval", name: "", class: "wide", title: "Mean and 95 % interval, points", under: () => intervalAxis(scale, WIDTH),
      cell: (row) => scored(row) && interval(scale, scored(row), row.method.family, WIDTH) },
    { key: "score", name: column === AVERAGE ? "Average" : column, class: "number score", title: "Mean with its 95 % interval over examples and training seeds, points",
      value: (row) => scored(row) && scored(row).mean,
      cell: (row) => scored(row) && [link(row.method, h("b", {}, points(scored(row).mean))), " ", h("span", { class: "quiet nowrap" }, range(scored(row).low, scored(row).high))] },
    { key: "best", name: "P(best)", class: "number", title: "Probability of having the highest score, %", value: ({ best }) => best,
      cell: ({ best }) => best !== undefined && best !== null && h("span", { class: best < 0.005 ? "quiet" : null }, `${percent(best)}\u00a0%`) },
  ];
}

/** A column for each suite but the one ranked by, and then for the average; none where there is one suite. */
function suiteColumns(board, column) {
  if (board.suites.length < 2) return [];
  const value = ({ method, apart }, name) => {
    if (!apart) return method.columns[name].mean;
    const runs = (method.runs[name] || []).filter((score) => score !== null); // never an average over suites
    return runs.length ? mean(runs) : null;
  };
  const titles = new Map(board.suites.map((suite) => [suite.name, `${suite.title}, ${suite.metric}, ${count(suite.items, "example", "examples")}`]));
  return [AVERAGE, ...titles.keys()].filter((name) => name !== column).map((name) => ({
    key: `suite-${name}`, name: name === AVERAGE ? "Average" : name, class: "number wide", title: titles.get(name) || "Mean over the suites, points",
    value: (row) => value(row, name),
    cell: (row) => value(row, name) !== null && h("a", { class: "plain", href: address({ board: board.id, method: row.method.method, suite: titles.has(name) ? name : null }) }, points(value(row, name))),
  }));
}

function otherColumns(column) {
  const of = (row) => (row.apart ? {} : row.method.columns[column]);
  const cost = (row, key) => (row.apart ? null : row.method.cost[key]);
  return [
    { key: "gap", name: "Gap %", class: "number wide", title: "(method \u2212 student before training) / (teacher \u2212 student), %", value: (row) => of(row).gap && of(row).gap[0], cell: (row) => of(row).gap && whole(of(row).gap[0]) },
    { key: "published", name: "Published", class: "number wide", title: "The paper's figure and the verdict on ours. ? unverified, \u2020 secondary, \u2021 another protocol", value: (row) => parseFloat(of(row).published) || null,
      cell: (row) => of(row).published && h("span", { class: of(row).source ? null : "quiet", title: `${of(row).source ? `${of(row).source}. ` : ""}${of(row).verdict}: ${of(row).why}` }, of(row).published) },
    { key: "sd", name: "Seed sd", class: "number wide", title: "Standard deviation over training seeds, points", up: true, value: (row) => of(row).seed_sd, cell: (row) => points(of(row).seed_sd) },
    { key: "train", name: "Train s", class: "number", title: "Seconds of training a run", up: true, value: (row) => cost(row, "train_seconds"), cell: (row) => (row.method.ranked ? whole(cost(row, "train_seconds")) : "") },
    { key: "speed", name: "Tok/s", class: "number wide extra", title: "Training tokens a second", value: (row) => cost(row, "tokens_per_second"), cell: (row) => (row.method.ranked ? whole(cost(row, "tokens_per_second")) : "") },
    { key: "memory", name: "Peak MB", class: "number wide extra", title: "Peak memory, MB; \u2264: of a process that ran other cells before", up: true, value: (row) => cost(row, "peak_rss_mb"), cell: (row) => cost(row, "peak_rss_mb") && `${cost(row, "peak_is_bound") ? "\u2264\u202f" : ""}${whole(cost(row, "peak_rss_mb"))}` },
  ];
}

/** Records from elsewhere: in no rank, mean, test or claim of the board. */
function externalTable(board) {
  if (!board.external.length) return null;
  const names = [...(board.suites.length > 1 ? [AVERAGE] : []), ...board.suites.map((suite) => suite.name)];
  const score = (row, name) => {
    const of = row.columns[name];
    return of ? [points(of.mean), " ", h("span", { class: "nowrap" }, range(of.low, of.high))] : "";
  };
  const heads = [["Method", ""], ["From", ""], ["Seeds", ""], ...names.map((name) => [name === AVERAGE ? "Average" : name, "number"]), ["Note", ""]];
  return h("section", { class: "external" }, h("h3", {}, "External"),
    h("p", { class: "quiet" }, "Numbers that others sent. They were not measured here and are counted nowhere: in no rank, difference, plot or claim."),
    scrolling(`External numbers for ${board.id}`, heads, board.external.map((row) => [
      row.label, row.source, row.seeds.join(", "), ...names.map((name) => score(row, name)), row.note]), []));
}

/** Rows of the board's tables without any record, by reason. */
function notRun(board) {
  const missing = board.apart.filter((method) => !method.cells.length);
  return unique(missing.map((method) => method.reason)).map((reason) =>
    h("p", { class: "quiet not-run" }, `${reason[0].toUpperCase()}${reason.slice(1)}: ${listed(missing.filter((method) => method.reason === reason).map((method) => method.label))}.`));
}

function legendWords(board, column) {
  const view = board.views[column];
  const pooled = view.run_sd === null ? "" : ` Runs vary by ${points(view.run_sd)} points (standard deviation, pooled over methods, ${view.freedom} degrees of freedom).`;
  return `Brackets: 95 % interval over examples and training seeds. Groups: methods that share a bar cannot be told apart (false discovery rate 5 % over all pairs).${pooled}`;
}

function claimsList(board) {
  if (!board.claims.length) return null;
  return h("section", { class: "claims" }, h("h3", {}, "Claims judged on this board"),
    h("ul", {}, board.claims.map((claim) => h("li", {},
      h("b", { class: `verdict-${claim.verdict.split(":")[0].replace(/ /g, "-")}` }, claim.mark, " ", claim.verdict), ` ${claim.text}. `,
      h("span", { class: "quiet" }, `Table ${claim.table}; ${claim.source}. ${claim.size ? `Size: ${claim.size.join(", ")}. ` : ""}`),
      h("details", {}, h("summary", {}, `${claim.why.split(";")[0]}`),
        h("ul", {}, claim.pairs.map(([a, b, verdict, why, sign]) => h("li", {},
          h("a", { href: address({ board: board.id, method: a, with: b }) }, `${labelOf(board, a)} ${sign === "-" ? "\u2212" : sign} ${labelOf(board, b)}`), ` ${why} `, h("span", { class: "quiet" }, verdict)))))))));
}

/** What all records of the board share, and what was passed over. */
function protocol(board) {
  return h("details", { class: "protocol" }, h("summary", {}, "Protocol, data and machine"),
    later(open(board.records), (records) => {
      const first = board.methods.concat(board.apart).flatMap((method) => method.cells.map((cell) => records[cell.id].record));
      if (!first.length) return h("p", { class: "quiet" }, "There is no record of our own on this board.");
      const trained = first.find((record) => record.spec.training) || first[0];
      const machines = unique(first.map((record) => machineWords(record)));
      return [
        board.tables.length ? h("p", {}, "Tables: ", board.tables.map((table) => `${table.id}, ${table.title}${table.paper ? ` (${table.paper})` : ""}`).join("; "), ".") : null,
        board.notes.length ? h("ul", {}, board.notes.map((note) => h("li", {}, note))) : null,
        pairs([
          ["training", settings(trained.spec.training)], ["decoding", settings(trained.spec.decoding)],
          ...trained.data.map((data) => [`data: ${data.name}`, `${data.state}, ${data.licence}`]),
          ["machines", machines.join("; ")],
          ["commits", unique(first.map((record) => (record.provenance.commit || "unknown").slice(0, 12) + (record.provenance.dirty ? " (changed)" : ""))).join(", ")],
        ]),
      ];
    }));
}

const machineWords = ({ provenance: { hardware } }) => (hardware ? `${hardware.cpu}, ${hardware.cores} cores, ${hardware.memory_gib} GiB${hardware.gpus && hardware.gpus.length ? `, ${hardware.gpus.join(", ")}` : ""}` : "unknown");
const settings = (given) => (given ? Object.entries(given).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ") : "none");
const pairs = (rows) => h("dl", {}, rows.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
