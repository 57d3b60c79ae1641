"use strict";
// The viewer of scored solutions: filters and sorts all items, and makes elements for one page of them only.
// Texts are inserted as text, never as HTML. The address holds the state of the view, so that a link reproduces it.

const PAGE = 10, LONG_TEXT = 600, MANY_STEPS = 40, MANY_VALUES = 200;

const ORDERS = {
  wrong: ["most wrong first", (a, b) => (b.wrong ?? -1) - (a.wrong ?? -1)],
  right: ["least wrong first", (a, b) => (a.wrong ?? 2) - (b.wrong ?? 2)],
  low: ["lowest Q first", (a, b) => a.lowest - b.lowest],
  file: ["as in the files", (a, b) => a.number - b.number],
};
const OUTCOMES = { correct: "correct solutions", wrong: "wrong solutions", unknown: "outcome not known" };
const VERDICTS = { missed: "on the wrong side of 0.5", fine: "on the right side of 0.5" };
const FIRST_ERRORS = { found: "first error found", missed: "first error missed", early: "false alarm", alone: "no error, none called" };

function outcome(item) {
  if (item.correct !== undefined) return item.correct >= 0.5 ? "correct" : "wrong";
  if (!item.labels || item.labels.every((label) => label === null)) return "unknown";
  return item.labels.some((label) => label !== null && label < 0.5) ? "wrong" : "correct";
}

function byPosition(a, b) { // "1", "2", "3–4", ..., and last "none"
  return (Number.parseInt(a) || Infinity) - (Number.parseInt(b) || Infinity) || 0;
}

function positionName(bin) {
  return bin === "none" ? "no wrong step" : `first error at step ${bin}`;
}

// A value of a field as a text that can be seen.
function visible(value) {
  return value.trim() ? value : JSON.stringify(value);
}

function startViewer(data) {
  const root = document.getElementById("viewer");
  const { items, prompts, by } = data.solutions;
  items.forEach((item, number) => {
    item.number = number;
    item.outcome = outcome(item);
    item.verdict = item.wrong === null ? undefined : item.wrong > 0.5 ? "missed" : "fine";
    item.lowest = Math.min(Infinity, ...item.q[item.run].filter((q) => q !== null));
    for (const [run, [found]] of Object.entries(item.first || {})) item[`first${run}`] = found;
  });
  const defaults = { sort: "wrong", search: "", page: 1 }; // and null of each filter: any value, and none

  function choice(name, label, all, options) {
    const select = element("select", { name, "aria-label": label });
    select.onchange = () => change({ [name]: all && select.selectedIndex === 0 ? null : select.value });
    if (all) select.append(element("option", { value: "" }, all));
    for (const [value, text] of options) select.append(element("option", { value }, text));
    return select;
  }

  const filters = {};
  // `texts`: {value: text} in order; otherwise the values themselves, in the order of `compare`
  function filter(name, label, all, { texts, compare, write = visible } = {}) {
    defaults[name] = null;
    const counts = new Map();
    for (const item of items) if (item[name] !== undefined) counts.set(String(item[name]), (counts.get(String(item[name])) ?? 0) + 1);
    const most = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, MANY_VALUES);
    const values = texts ? Object.keys(texts).filter((value) => counts.has(value)) : most.sort(compare);
    const select = choice(name, label, all, values.map((value) => [value, texts ? texts[value] : write(value)]));
    const rest = counts.size - values.length;
    if (rest) select.append(element("option", { disabled: "" }, `${rest.toLocaleString("en")} rarer ones: use the search`));
    const divides = values.length > 1 || items.some((item) => item[name] === undefined && values.length);
    filters[name] = { select, values, divides };
  }
  const order = choice("sort", "order", "", Object.entries(ORDERS).map(([value, [text]]) => [value, text]));
  filter("run", "run", "all runs", { texts: { ...data.runs } });
  filter("policy", "policy", "all policies");
  filter("outcome", "outcome", "any outcome", { texts: OUTCOMES });
  filter("verdict", "model right or wrong", "model right or wrong", { texts: VERDICTS });
  filter("type", by, `any ${by}`);
  filter("position", "place of the first error", "first error anywhere", { compare: byPosition, write: positionName });
  data.runs.forEach((name, run) => {
    const named = data.runs.length > 1 ? `${name}: ` : "";
    const texts = Object.fromEntries(Object.entries(FIRST_ERRORS).map(([value, text]) => [value, named + text]));
    filter(`first${run}`, `${named}first error`, `${named}first error found or not`, { texts });
  });
  const state = { ...defaults };
  let waiting, unknown = []; // what the address asks for and no solution has
  const search = element("input", { type: "search", name: "search", placeholder: `search question, steps, id, ${by}`, "aria-label": "search" });
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => change({ search: search.value }), 150);
  });
  const count = element("span", { class: "count", role: "status" });
  const list = element("div", { class: "solutions" });
  const pager = element("div", { class: "pager" });
  const shown = Object.values(filters).filter(({ divides }) => divides).map(({ select }) => select);
  root.replaceChildren(element("div", { class: "controls" }, order, ...shown, search, count), list, pager);

  function change(values) {
    Object.assign(state, { page: 1 }, values);
    unknown = [];
    const changed = Object.entries(state).filter(([name, value]) => value !== defaults[name]);
    history.replaceState(null, "", "#" + new URLSearchParams([["viewer", ""], ...changed]));
    show();
  }

  function reset() {
    search.value = "";
    change({ ...defaults, sort: state.sort });
    search.focus(); // the button is gone
  }

  function readAddress() {
    const stored = new URLSearchParams(location.hash.slice(1));
    if (!stored.has("viewer")) return;
    for (const name in state) state[name] = stored.get(name) ?? defaults[name];
    if (!(state.sort in ORDERS)) state.sort = defaults.sort;
    unknown = [];
    for (const [name, { select, values }] of Object.entries(filters)) {
      if (state[name] === null || values.includes(state[name])) continue;
      unknown.push(`${select.ariaLabel} ${visible(state[name])}`);
      state[name] = null;
    }
    state.page = Math.max(1, Math.trunc(Number(state.page)) || 1);
    search.value = state.search;
  }

  function show() {
    order.value = state.sort;
    // the first option, of any value, also has the value "" if a text is empty
    for (const [name, { select, values }] of Object.entries(filters)) select.selectedIndex = values.indexOf(state[name]) + 1;
    const wanted = state.search.toLowerCase(), chosenBy = Object.keys(filters).filter((name) => state[name] !== null);
    const chosen = items.filter(
      (item) =>
        chosenBy.every((name) => item[name] !== undefined && String(item[name]) === state[name]) &&
        (!wanted || [item.id, prompts[item.prompt], item.type ?? "", ...item.steps].some((text) => text.toLowerCase().includes(wanted))),
    );
    chosen.sort(ORDERS[state.sort][1]);
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE));
    const page = Math.min(state.page, pages);
    const ignored = unknown.length ? `; not found here, so not asked for: ${unknown.join(", ")}` : "";
    count.textContent = `${chosen.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} solutions${ignored}`;
    list.replaceChildren(...chosen.slice((page - 1) * PAGE, page * PAGE).map((item) => solution(item, data)));
    if (!chosen.length) list.append(element("p", {}, "No solution matches. ", element("button", { type: "button", class: "reset", onclick: reset }, "show all")));
    const turn = (text, to, possible) => {
      const button = element("button", { type: "button", onclick: () => { change({ page: to }); root.scrollIntoView(); } }, text);
      button.disabled = !possible;
      return button;
    };
    pager.replaceChildren(
      turn("first", 1, page > 1), turn("previous", page - 1, page > 1), `page ${page} of ${pages}`,
      turn("next", page + 1, page < pages), turn("last", pages, page < pages),
    );
  }

  window.addEventListener("hashchange", () => { readAddress(); show(); });
  readAddress();
  show();
}

function solution(item, data) {
  const facts = [element("code", {}, item.id)];
  if (data.runs.length > 1) facts.push(element("span", {}, data.runs[item.run]));
  if (item.copies > 1) facts.push(element("span", { title: "the same solution several times" }, `× ${item.copies}`));
  if (item.policy !== undefined) facts.push(element("span", {}, `policy ${visible(String(item.policy))}`));
  if (item.answer !== undefined) facts.push(element("span", {}, "right answer ", collapsed(String(item.answer))));
  if (item.type !== undefined) facts.push(element("span", {}, `${data.solutions.by} ${visible(item.type)}`));
  if (item.outcome !== "unknown") facts.push(element("span", { class: `outcome ${item.outcome}` }, item.outcome === "correct" ? "✓ correct" : "✗ wrong"));
  if (item.first && item.first[item.run]) {
    const [found, called] = item.first[item.run];
    facts.push(element("span", {}, FIRST_ERRORS[found] + (called === null ? "" : `, first called wrong: step ${called + 1}`)));
  }
  const off = item.wrong === null ? "not known" : `${item.wrong.toFixed(3)} at step ${item.at + 1}`;
  facts.push(element("span", { class: "off" }, "off by ", element("b", {}, off)));
  const body = element("ol", { class: "steps" });
  const others = Object.keys(item.q).map(Number).filter((run) => run !== item.run); // the other models that scored it
  if (others.length) {
    body.style.setProperty("--others", `repeat(${others.length}, ${others.length > 4 ? 4.6 : 6.5}em)`);
    const names = others.map((run) => element("span", { class: "q", title: data.runs[run] }, data.runs[run]));
    body.append(element("li", { class: "step names" }, element("span"), element("span"), element("span", { class: "own" }, data.runs[item.run]), ...names));
  }
  const append = (from, to) => body.append(...item.steps.slice(from, to).map((_, k) => step(item, from + k, others)));
  const shown = Math.max(MANY_STEPS, (item.at ?? 0) + 3);
  append(0, shown);
  const rest = item.steps.length - shown;
  const made = element("article", {}, element("header", {}, ...facts), element("p", { class: "question" }, collapsed(data.solutions.prompts[item.prompt])), body);
  if (rest > 0)
    made.append(element("button", { type: "button", onclick: (event) => { append(shown); event.target.remove(); } }, `${rest.toLocaleString("en")} more steps`));
  return made;
}

function step(item, t, others) {
  const q = item.q[item.run][t], label = item.labels ? item.labels[t] : null;
  const row = element("li", { class: t === item.at ? "step worst" : "step" });
  tint(row, q);
  const mark = label === null ? "·" : label === 1 ? "✓" : label === 0 ? "✗" : String(label);
  const name = label === null ? "no label" : label === 1 ? "labelled correct" : label === 0 ? "labelled wrong" : `label ${label}`;
  row.append(
    element("span", { class: "number" }, String(t + 1)),
    element("span", { class: "text" }, collapsed(item.steps[t])),
    qValue(item, item.run, t),
    element("span", { class: "p", title: "sigmoid(q)" }, q === null ? "–" : sigmoid(q).toFixed(3)),
    ...others.map((run) => tint(qValue(item, run, t), item.q[run][t])),
    element("span", { class: `label l${label === null ? "" : label >= 0.5 ? 1 : 0}`, title: name, ...spoken(name) }, mark),
  );
  return row;
}

function qValue(item, run, t) {
  const q = item.q[run][t], called = item.first && item.first[run] && item.first[run][1] === t;
  const title = called ? "Q-value of the first step that the model calls wrong" : "Q-value", text = q === null ? "–" : q.toFixed(2);
  return element("span", { class: called ? "q called" : "q", title, ...(called ? spoken(`${text}, first step called wrong`) : {}) }, text);
}

// What a screen reader says in place of a mark.
const spoken = (text) => ({ role: "img", "aria-label": text });

const sigmoid = (q) => 1 / (1 + Math.exp(-q));

function tint(made, q) {
  const p = q === null ? 0.5 : sigmoid(q);
  made.style.setProperty("--hue", p < 0.5 ? "var(--low)" : "var(--high)");
  made.style.setProperty("--share", `${Math.round(Math.abs(p - 0.5) * 2 * 55)}%`);
  return made;
}

// The beginning of a long text; a click shows the rest.
function collapsed(text) {
  if (text.length <= LONG_TEXT * 1.2) return element("span", {}, text);
  let cut = LONG_TEXT;
  if (/[\ud800-\udbff]/.test(text[cut - 1])) cut--; // do not cut a surrogate pair in two
  const rest = text.length - cut;
  const shown = element("span", {}, text.slice(0, cut));
  const more = () => { shown.textContent = text; };
  shown.append("… ", element("button", { type: "button", class: "more", onclick: more }, `${rest.toLocaleString("en")} more characters`));
  return shown;
}
