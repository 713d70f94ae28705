// Theme, and what to show for an address.

const THEMES = ["auto", "light", "dark"];

function themed() {
  const button = document.getElementById("theme");
  let theme = "auto";
  try { theme = localStorage.getItem("dskd-theme") || "auto"; } catch { /* pages from files may have no storage */ }
  const show = () => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", theme);
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("dskd-theme", theme); } catch { /* then it lasts as long as the page */ }
    show();
  });
  if (!THEMES.includes(theme)) theme = "auto";
  show();
}

const form = filters();
const content = h("div", { id: "content" });
const left = new Map(); // how far down the reader was, by address
let shown = null;

function render() {
  if (shown !== null) left.set(shown, scrollY);
  const state = read();
  const boards = filtered(state);
  const board = chosen(state, boards) || null;
  const one = BOARDS.get(state.board);
  form.show(state);
  form.form.hidden = Boolean(state.method);
  if (state.method && one) content.replaceChildren(...flat(state.with ? compareView(one, state) : detailsView(one, state)));
  else content.replaceChildren(...flat([overview(boards, board, state), board ? boardView(board, state) : null]));
  title(state, one);
  const before = shown;
  shown = location.hash;
  if (before !== null) arrive(state, before);
}

const flat = (children) => children.flat(Infinity).filter(Boolean);

function title(state, board) {
  const parts = board && state.method ? [labelOf(board, state.method), state.with && `against ${labelOf(board, state.with)}`, board.id] : [board && board.id];
  document.title = [...parts.filter(Boolean), "dskd-bench leaderboard"].join(" \u00b7 ");
}

/** Where reader and keyboard are after a step: at the heading of what is new, or where they were before. */
function arrive(state, before) {
  const old = new URLSearchParams(before.slice(1));
  const same = (key) => (old.get(key) || "") === (state[key] || "");
  if (same("board") && same("method") && same("with")) {
    if (!same("example") && state.example) content.querySelector("#answers")?.scrollIntoView();
    else if (!same("suite") && state.method) later_(() => content.querySelector("#answers")?.scrollIntoView());
    else scrollTo(0, left.get(location.hash) ?? scrollY);
    return;
  }
  const heading = content.querySelector(state.method ? "h2" : "#board-title");
  if (!state.method && left.has(location.hash)) scrollTo(0, left.get(location.hash));
  else if (state.method) scrollTo(0, 0);
  else heading?.scrollIntoView({ block: "nearest" });
  heading?.focus({ preventScroll: true });
}

const later_ = (act) => requestAnimationFrame(() => requestAnimationFrame(act));

function start() {
  themed();
  document.getElementById("about").textContent = `${count(DATA.records, "record", "records")}${DATA.external ? ` and ${count(DATA.external, "external one", "external ones")}` : ""} on ${count(DATA.boards.length, "board", "boards")}. Scores are points from 0 to 100; every number leads to the records it is made of.`;
  document.getElementById("main").replaceChildren(form.form, content);
  document.getElementById("footer").append(
    h("p", { class: "quiet" }, DATA.leftOut.length ? `Not in this page: ${DATA.leftOut.join("; ")}.` : "This page holds every score and every answer of these records."),
    h("p", { class: "quiet" }, "Made by python reproduce.py --leaderboard from records alone. Ranks: examples are resampled, runs drawn from Student\u2019s t with the run variance pooled over the methods of a board; boards are never averaged with one another."));
  addEventListener("hashchange", render);
  render();
}

start();
