// Everything shown is in the address after the #: filters, board, suite, method, second method, example.

const KEYS = ["scale", "vocabulary", "pair", "suite", "board", "method", "with", "example"];
const FILTERS = ["scale", "vocabulary", "pair", "suite"];

/** The address as plain values; what is not known is left out. */
function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const state = {};
  for (const key of KEYS) if (given.get(key)) state[key] = given.get(key);
  return state;
}

/** An address that keeps the filters and sets the rest; null takes a key out. */
function address(changes) {
  const old = read();
  const next = {};
  for (const key of FILTERS) if (old[key]) next[key] = old[key];
  Object.assign(next, changes);
  const parts = KEYS.filter((key) => next[key]).map(
    (key) => `${key}=${encodeURIComponent(next[key]).replace(/%2F/g, "/").replace(/%3A/g, ":").replace(/%40/g, "@")}`,
  );
  return `#${parts.join("&")}`;
}

/** Go to an address without leaving a step in the history, as filters do. */
function replaceBy(changes) {
  const { board, method, with: other } = read();
  location.replace(address({ board, method, with: other, ...changes }));
}

/** The boards that pass the filters. */
function filtered(state) {
  return DATA.boards.filter(
    (board) =>
      (!state.scale || board.scale === state.scale) &&
      (!state.vocabulary || board.vocabulary === state.vocabulary) &&
      (!state.pair || board.pair === state.pair) &&
      (!state.suite || board.suites.some((suite) => suite.name === state.suite)),
  );
}

/** The board shown: the one asked for if it passes the filters, else the first that does. */
function chosen(state, boards) {
  return boards.find((board) => board.id === state.board) || boards[0] || null;
}
