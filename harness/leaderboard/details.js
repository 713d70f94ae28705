// One method on one board: scores, records, commands, log, curves, every answer.

function detailsView(board, state) {
  const method = methodOf(board, state.method);
  const column = suiteOf(board, state.suite);
  if (!method) return [back(board), h("p", {}, `${board.id} has no method ${state.method}.`)];
  return [
    back(board),
    h("section", { "aria-labelledby": "method-title" },
      h("h2", { id: "method-title", tabindex: -1 }, familyIcon(method.family), `${method.label} on ${board.id}`),
      about(method),
      standing(board, method, column),
      method.columns ? suiteTable(board, method, state) : partTable(board, method)),
    compareForm(board, method.method),
    method.cells.length ? later(open(board.records), (records) => [
      recordsTable(board, method, records), commands(method, records), curvesSection(method, records), logs(method, records), raw(method, records),
    ]) : null,
    answersSection(board, method, state),
  ];
}

const back = (board) => h("p", { class: "back" }, h("a", { href: address({ board: board.id, suite: read().suite }) }, `\u2190 ${board.id}`));

/** What the method computes and by whose authority. */
function about(method) {
  const words = method.about;
  return h("p", {}, h("code", {}, method.method),
    words ? [` ${words.title}. `, h("span", { class: "quiet" }, `${words.citation}. `), h("code", {}, words.formula), words.variant ? ` Variant: ${words.variant}.` : ""] : null,
    method.ranked === false ? null : [" ", h("span", { class: "quiet" }, "All of it: "), h("code", {}, `python reproduce.py --explain ${method.method}`)]);
}

function standing(board, method, column) {
  if (method.reason) return h("p", { class: "verdict" }, `Not ranked: ${method.reason}.`);
  const place = board.views[column].places.find(([name]) => name === method.method);
  if (!place) return h("p", { class: "verdict" }, "A reference: it is not trained here and not ranked.");
  const [, rank, low, high, best] = place;
  const near = peers(board, method.method, column).map((name) => labelOf(board, name));
  if (best === null) return h("p", { class: "verdict" }, `Place ${rank} of ${methodsOf(board).length} by mean; ${board.seeds.length < 2 ? "with one training seed nothing can be told apart" : "there is nobody to compare it with"}.`);
  return h("p", { class: "verdict" }, `By ${suiteName(column)} rank ${rank} of ${methodsOf(board).length}, with 95 % between ${low} and ${high}; the best with probability ${percent(best)}\u00a0%. `,
    near.length ? `Cannot be told apart from ${listed(near)}.` : "Told apart from all others.");
}

/** All suites of one method, ours beside published; columns that would be empty are left out. */
function suiteTable(board, method, state) {
  const names = [...board.suites.map((suite) => suite.name), ...(board.suites.length > 1 ? [AVERAGE] : [])];
  const of = (name) => method.columns[name];
  const suite = (name) => board.suites.find((candidate) => candidate.name === name);
  const items = (name) => (suite(name) ? suite(name).items : board.suites.reduce((sum, one) => sum + one.items, 0));
  const whys = unique(names.map((name) => of(name).why));
  const link = (name) => h("a", { href: address({ board: board.id, method: method.method, suite: name }), "aria-current": name === state.suite ? "true" : null, title: "Show the answers" }, name);
  const columns = [
    ["Suite", "", (name) => (suite(name) ? link(name) : "average")],
    ["Metric", "wide", (name) => (suite(name) ? suite(name).metric : "")],
    ["Examples", "number wide", (name) => whole(items(name))],
    ["Score", "number score", (name) => [h("b", {}, points(of(name).mean)), " ", h("span", { class: "quiet nowrap" }, range(of(name).low, of(name).high))]],
    ...(method.ranked ? method.cells.map((cell, number) => [`Seed ${cell.seed}`, "number wide", (name) => points(of(name).runs[number])]) : []),
    ["Seed sd", "number wide", (name) => points(of(name).seed_sd)],
    ["Decoding sd", "number wide", (name) => points(of(name).decoding_sd)],
    ["Gap %", "number", (name) => of(name).gap && [whole(of(name).gap[0]), " ", h("span", { class: "quiet nowrap" }, range(of(name).gap[1], of(name).gap[2], whole))]],
    ["Published", "number", (name) => h("span", { title: of(name).source || null }, of(name).published)],
    ["Verdict", whys.length > 1 ? "words" : "wide", (name) => [of(name).verdict, whys.length > 1 ? h("span", { class: "quiet" }, `: ${of(name).why}`) : null]],
  ].filter(([head, , cell]) => !["Seed sd", "Decoding sd", "Gap %"].includes(head) || names.some((name) => cell(name)));
  const sources = unique(names.map((name) => of(name).source).filter(Boolean));
  return [
    scrolling(`Scores of ${method.label}`, columns.map(([name, classes]) => [name, classes]), names.map((name) => columns.map(([, , cell]) => cell(name))), []),
    h("p", { class: "quiet" }, whys.length === 1 ? `${of(AVERAGE).verdict}: ${whys[0]}. ` : "", sources.length ? `Published figures: ${sources.join("; ")} (? unverified, \u2020 secondary, \u2021 another protocol).` : ""),
  ];
}

/** What an incomplete method has; no average is made of it. */
function partTable(board, method) {
  if (!method.cells.length) return null;
  return scrolling(`Scores of ${method.label}, incomplete`, [["Suite", ""], ["Scores of its runs", ""]],
    board.suites.map((suite) => [suite.name, method.runs[suite.name].length ? method.runs[suite.name].map(points).join(", ") : "none"]), ["", ""]);
}

/** A plain table in a box of its own that scrolls. `heads`: [name, class]. */
function scrolling(caption, heads, rows, classes) {
  const of = (number) => `${classes[number] || ""} ${heads[number][1]}`.trim() || null;
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { class: "data" }, h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, heads.map(([name], number) => h("th", { scope: "col", class: of(number) }, name)))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, number) => h(number ? "td" : "th", { class: of(number), scope: number ? null : "row" }, cell)))))));
}

function recordsTable(board, method, records) {
  const heads = [["Seed", ""], ["Record", ""], ["Training s", ""], ["Decoding s", "wide"], ["Tokens/s", "wide"], ["Peak MB", "wide"], ["Teacher passes", "wide"], ["Commit", "wide"], ["Started", "wide"], ["Status", ""]];
  return h("section", {}, h("h3", {}, "Records"),
    scrolling(`Records of ${method.label}`, heads, method.cells.map((cell) => {
      const { record } = records[cell.id];
      const { cost = {}, provenance = {} } = record;
      return [
        String(cell.seed), h("a", { href: `${DATA.results}/records/${board.scale}/${cell.id}.json` }, h("code", {}, cell.id)),
        whole(cost.train_seconds), whole(cost.decode_seconds), whole(cost.tokens_per_second), whole(cost.peak_rss_mb), cost.teacher_passes === undefined ? "" : String(cost.teacher_passes),
        `${(provenance.commit || "unknown").slice(0, 12)}${provenance.dirty ? " (changed)" : ""}`, moment(provenance.started),
        record.status + (record.reason ? `: ${record.reason}` : ""),
      ];
    }), ["", "", "number", "number", "number", "number", "number", "", "", ""]));
}

/** The commands the records were made by. */
function commands(method, records) {
  const known = unique(method.cells.map((cell) => records[cell.id].record.provenance.command).filter(Boolean));
  return h("section", {}, h("h3", {}, known.length > 1 ? "Commands" : "Command"),
    known.length ? known.map((command) => h("div", { class: "command" }, h("pre", { tabindex: 0 }, command), copyButton(command))) : h("p", { class: "quiet" }, "The records name none."));
}

function copyButton(text) {
  const button = h("button", { type: "button", on: { click: () => {
    const done = (word) => { button.textContent = word; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    if (!navigator.clipboard) return done("Select it by hand");
    return navigator.clipboard.writeText(text).then(() => done("Copied"), () => done("Select it by hand"));
  } } }, "Copy");
  return button;
}

function curvesSection(method, records) {
  const made = ownCurves(method, records);
  return made.length ? h("section", {}, h("h3", {}, "Training curves, one line a seed"), h("div", { class: "small-figures" }, made)) : null;
}

/** What was logged: lines of the run's log where it is kept, and the loss at every logged step. */
function logs(method, records) {
  const cells = method.cells.filter((cell) => records[cell.id].curve.length || records[cell.id].log.length);
  return h("section", {}, h("h3", {}, "Log"),
    cells.length ? cells.map((cell) => {
      const { curve, log, record } = records[cell.id];
      const lines = curve.map(([step, terms]) => `step ${String(step).padStart(5)}  ${Object.entries(terms).map(([name, value]) => `${name} ${value.toFixed(4)}`).join("  ")}`);
      const { training } = record;
      const end = training ? [`${training.steps} steps, ${whole(training.tokens)} response tokens; checkpoint ${training.checkpoint}`] : [];
      return h("details", {}, h("summary", {}, `Seed ${cell.seed}, ${count(log.length + lines.length, "line", "lines")}`),
        h("pre", { tabindex: 0 }, [...log, ...lines, ...end].join("\n")));
    }) : h("p", { class: "quiet" }, "Nothing was trained, so nothing was logged."),
    cells.every((cell) => !records[cell.id].log.length) && cells.length ? h("p", { class: "quiet" }, "From the records; the run's own log (work/run.log) was not beside them.") : null);
}

/** The records themselves, without the values shown elsewhere. */
function raw(method, records) {
  return h("section", {}, h("h3", {}, "Record in full"),
    method.cells.map((cell) => {
      const box = h("details", {}, h("summary", {}, `Seed ${cell.seed}, `, h("code", {}, cell.id)));
      box.addEventListener("toggle", () => {
        if (box.open && box.children.length === 1) box.append(h("p", { class: "quiet" }, "Without curve and scores of items, which are shown apart."), h("pre", { tabindex: 0 }, JSON.stringify(records[cell.id].record, null, 1)));
      });
      return box;
    }));
}

// Answers

/** A suite's examples with one reader for all that asks of them. */
class Examples {
  constructor(pack, prompts) {
    Object.assign(this, pack);
    this.prompts = prompts;
  }

  get length() { return this.texts.length; }

  /** Positions of a method's runs. */
  runsOf(method) { return this.runs.map((run, number) => (run[0] === method ? number : -1)).filter((number) => number >= 0); }

  /** [text or null, score] of a run on an item. */
  answer(item, run) { return this.texts[item][this.given[item][run]]; }

  /** Mean score of a method on an item, over its runs. */
  score(item, runs) { return mean(runs.map((run) => this.answer(item, run)[1])); }

  name(item) { return this.ids ? this.ids[item] : `item ${item + 1}`; }

  /** What a search looks through. */
  words(item, runs) {
    const prompt = this.prompts ? this.prompts[item].flat().join("\n") : "";
    return `${this.name(item)}\n${prompt}\n${runs.map((run) => this.answer(item, run)[0] || "").join("\n")}`.toLowerCase();
  }
}

async function examplesOf(board, suite) {
  const [pack, prompts] = await Promise.all([open(board.examples[suite]), board.prompts[suite] ? open(board.prompts[suite]) : null]);
  return new Examples(pack, prompts);
}

/** A choice of suites that goes to the same view with another suite. */
function suiteChoice(board, current, go) {
  const choice = h("select", { id: "answers-suite" }, board.suites.filter((suite) => board.examples[suite.name]).map((suite) => h("option", { value: suite.name, selected: suite.name === current }, suite.name)));
  choice.addEventListener("change", () => go(choice.value));
  return h("label", { class: "control", for: "answers-suite" }, "Suite ", choice);
}

const firstSuite = (board, state) => (board.examples[state.suite] ? state.suite : board.suites.map((suite) => suite.name).find((name) => board.examples[name]));

function answersSection(board, method, state) {
  const suite = firstSuite(board, state);
  if (!suite || !method.cells.length) return null;
  const go = (name) => location.replace(address({ board: board.id, method: method.method, suite: name }));
  return h("section", { id: "answers" }, h("h3", {}, `Answers on ${suite}`),
    later(examplesOf(board, suite), (examples) => {
      const runs = examples.runsOf(method.method);
      if (!runs.length) return h("p", {}, `${method.label} has no scores on ${suite}.`);
      const mine = { score: (item) => examples.score(item, runs), spread: (item) => spread(runs.map((run) => examples.answer(item, run)[1])) };
      const orders = [
        ["as in the suite", (a, b) => a - b], ["lowest score first", (a, b) => mine.score(a) - mine.score(b) || a - b],
        ["highest score first", (a, b) => mine.score(b) - mine.score(a) || a - b], ["most unlike over runs first", (a, b) => mine.spread(b) - mine.spread(a) || a - b],
      ];
      return itemList({
        examples, orders, kinds: [], first: state.example, choice: suiteChoice(board, suite, go), searched: runs,
        numbers: (item) => points(mine.score(item)),
        link: (item) => address({ board: board.id, method: method.method, suite, example: String(item + 1) }),
        answers: (item) => answerList(board, suite, examples, item, [[method.label, runs]]),
      });
    }));
}

const spread = (values) => Math.max(...values) - Math.min(...values);

/** Examples one below the other, in pages, with order, kind and search. */
function itemList({ examples, orders, kinds, first, choice, searched, numbers, link, answers }) {
  const order = h("select", { id: "order" }, orders.map(([name], number) => h("option", { value: number }, name)));
  const kind = kinds.length ? h("select", { id: "kind" }, kinds.map(([name], number) => h("option", { value: number }, name))) : null;
  const search = h("input", { type: "search", id: "search", autocomplete: "off" });
  const list = h("div", { class: "items" });
  const said = h("p", { class: "quiet", role: "status" });
  const more = h("button", { type: "button" }, `Show ${PAGE_SIZE} more`);
  let items = [];
  const grow = () => {
    const from = list.children.length;
    list.append(...items.slice(from, from + PAGE_SIZE).map((item) => itemBox(examples, item, numbers, link, answers)));
    more.hidden = list.children.length >= items.length;
    said.textContent = `${list.children.length} of ${count(items.length, "example", "examples")}`;
  };
  const start = () => {
    const wanted = search.value.trim().toLowerCase();
    items = Array.from({ length: examples.length }, (_, item) => item)
      .filter((item) => (!kind || kinds[kind.value][1](item)) && (!wanted || examples.words(item, searched).includes(wanted)))
      .sort(orders[order.value][1]);
    list.replaceChildren();
    grow();
  };
  for (const control of [order, kind].filter(Boolean)) control.addEventListener("change", start);
  search.addEventListener("input", start);
  more.addEventListener("click", grow);
  start();
  const asked = Number(first) - 1;
  const pinned = Number.isInteger(asked) && asked >= 0 && asked < examples.length ? itemBox(examples, asked, numbers, link, answers, true) : null;
  return [
    pinned ? h("div", { class: "items pinned" }, pinned) : null,
    h("div", { class: "controls" }, choice, h("label", { class: "control", for: "order" }, "Order ", order),
      kind ? h("label", { class: "control", for: "kind" }, "Show ", kind) : null, h("label", { class: "control", for: "search" }, "Search ", search)),
    examples.prompts ? null : h("p", { class: "quiet" }, "The prompts are not in this page: see its foot."),
    examples.faults.map((fault) => h("p", { class: "quiet", role: "alert" }, fault)),
    said, list, more,
  ];
}

/** One example; what it holds is made when it is opened. */
function itemBox(examples, item, numbers, link, answers, isOpen) {
  const prompt = examples.prompts ? examples.prompts[item] : null;
  const box = h("details", { class: "item", open: isOpen },
    h("summary", {}, h("span", { class: "number" }, numbers(item)), h("span", { class: "quiet id" }, examples.name(item)), h("span", { class: "gist" }, prompt ? gist(prompt[0]) : "")));
  const build = () => {
    if (box.children.length > 1) return;
    box.append(h("div", { class: "inside" },
      prompt ? [h("h4", {}, "Prompt"), h("pre", { tabindex: 0 }, prompt[0]), h("h4", {}, prompt[1].length > 1 ? "References" : "Reference"), prompt[1].map((text) => h("pre", {}, text))] : null,
      answers(item), h("p", { class: "quiet" }, h("a", { href: link(item) }, "Link to this example"))));
  };
  if (isOpen) build();
  box.addEventListener("toggle", () => box.open && build());
  return box;
}

/** What is particular to a prompt: the instruction, without the template around it. */
function gist(prompt) {
  const found = prompt.match(/### Instruction:\s*([\s\S]*?)(?:\n\n### |$)/) || prompt.match(/(?:Question|Problem):\s*([\s\S]*?)(?:\n|$)/);
  return (found ? found[1] : prompt).replace(/\s+/g, " ").trim().slice(0, 200);
}

/** The answers of some methods to one item, a line for each distinct one with its runs. */
function answerList(board, suite, examples, item, groups) {
  return groups.map(([name, runs]) => [
    h("h4", {}, `${name}, mean ${points(examples.score(item, runs))}`),
    h("table", { class: "answers" }, h("tbody", {}, runs.map((run) => {
      const [, seed, decoding, cell] = examples.runs[run];
      const [text, score] = examples.answer(item, run);
      const source = `${DATA.results}/generations/${board.scale}/${cell}/${suite}-${decoding}.jsonl.gz`;
      return h("tr", {},
        h("th", { scope: "row" }, h("a", { class: "plain", href: source, title: `Decoding seed ${decoding}; the file with all answers` }, seed ? `seed ${seed}` : `decoding ${decoding}`)),
        h("td", { class: "number" }, points(score)),
        h("td", {}, text === null ? h("span", { class: "quiet" }, "(answer not in this page)") : text === "" ? h("span", { class: "quiet" }, "(empty)") : h("pre", {}, text)));
    }))),
  ]);
}
