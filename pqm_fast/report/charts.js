"use strict";
// Draws the line charts that charts.py returns: {title, x, y, series: [{run, label, points, band, notes, ...}]}.

const WIDTH = 400, HEIGHT = 250, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 34;
const hiddenRuns = new Set();

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "g"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(3).replace(/\.?0+$/, "") + "M";
  if (size >= 1e4) return (value / 1e3).toPrecision(3).replace(/\.?0+$/, "") + "k";
  if (size < 1e-3) return value.toExponential(1).replace(/\.0e/, "e");
  return String(+value.toPrecision(3));
}

function niceTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((k) => k * power >= raw * 0.999) * power;
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(+(k * step).toPrecision(12));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  const factors = high / low > 1e3 ? [1] : high / low > 10 ? [1, 3] : [1, 2, 3, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of factors) ticks.push(factor * 10 ** power);
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

// {ticks: [[value, text]], at(value) -> pixel} of an axis from `start` to `end` pixels
function scale(values, options, start, end, count) {
  let [low, high] = options.range || [Math.min(...values), Math.max(...values)];
  if (options.zero) low = Math.min(low, 0);
  const log = (options.log || options.log2) && low > 0;
  const change = log ? Math.log : (value) => value;
  let ticks = options.ticks;
  if (!ticks && low === high) ticks = [[low, short(low)]];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  else if (!options.range) {
    const margin = (change(high) - change(low)) * (options.margin ?? 0.05);
    if (log) [low, high] = [low * Math.exp(-margin), high * Math.exp(margin)];
    else [low, high] = [options.zero && low === 0 ? 0 : low - margin, high + margin];
  }
  const at = (value) => start + ((change(value) - change(low)) / (change(high) - change(low))) * (end - start);
  if (!ticks && options.log2) ticks = [...new Set(values)].sort((a, b) => a - b).map((value) => [value, short(value)]);
  if (!ticks) ticks = (log ? logTicks(low, high) : niceTicks(low, high, count)).map((value) => [value, short(value)]);
  return { at, ticks };
}

function colour(series) {
  if (series.colour !== undefined) return `var(--run-${series.colour % 8})`;
  return series.run === null ? "var(--muted)" : `var(--run-${series.run % 8})`;
}

function shownSeries(chart, choice) {
  return chart.series.filter(
    (curve) => !hiddenRuns.has(curve.run) && (!curve.choice || curve.choice === choice || (choice === "all" && !curve.detail)),
  );
}

function heights(series) {
  return series.flatMap((curve) => [...curve.points.map((point) => point[1]), ...(curve.band || []).flatMap((b) => [b[1], b[2]])]);
}

function drawChart(holder, chart, series, yOptions, runNames) {
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title });
  const tip = element("div", { class: "tip", hidden: "" });
  holder.replaceChildren(element("h4", {}, chart.title), svg, legend(series), tip);
  if (!series.length) return;
  const xs = series.flatMap((curve) => curve.points.map((point) => point[0]));
  const x = scale(xs, { margin: 0.02, ...chart.x }, LEFT, WIDTH - RIGHT, 5), y = scale(heights(series), yOptions, HEIGHT - BOTTOM, TOP, 5);
  for (const [value, text] of y.ticks) {
    svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y.at(value), y2: y.at(value) }));
    svg.append(element("text", { x: LEFT - 6, y: y.at(value) + 4, "text-anchor": "end" }, text));
  }
  for (const [value, text] of x.ticks) {
    svg.append(element("line", { class: "grid", x1: x.at(value), x2: x.at(value), y1: TOP, y2: HEIGHT - BOTTOM }));
    svg.append(element("text", { x: x.at(value), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, text));
  }
  svg.append(element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, chart.x.label || ""));
  const path = (points) => "M" + points.map((point) => `${x.at(point[0]).toFixed(1)} ${y.at(point[1]).toFixed(1)}`).join("L");
  const bands = series.filter((curve) => curve.band);
  for (const curve of bands.length <= 2 ? bands : []) { // more of them would hide the curves; the values are in the tooltip
    const edge = [...curve.band.map((b) => [b[0], b[2]]), ...curve.band.map((b) => [b[0], b[1]]).reverse()];
    svg.append(element("path", { d: path(edge) + "Z", fill: colour(curve), class: "band" }));
  }
  for (const curve of series) {
    const style = { d: path(curve.points), stroke: colour(curve), class: curve.raw ? "curve raw" : curve.faint ? "curve faint" : "curve" };
    if (curve.dash) style["stroke-dasharray"] = curve.dash;
    svg.append(element("path", style));
    if (curve.dots || curve.points.length === 1)
      for (const point of curve.points)
        svg.append(element("circle", { cx: x.at(point[0]), cy: y.at(point[1]), r: 2.5, fill: colour(curve) }));
  }
  hover(svg, tip, series.filter((curve) => !curve.raw), x, chart, runNames);
}

function legend(series) {
  const shown = new Map();
  for (const curve of series.filter((curve) => !curve.raw)) {
    const key = `${curve.label} ${curve.colour ?? (curve.run === null)}`;
    if (!shown.has(key)) shown.set(key, curve);
  }
  const runs = new Set(series.map((curve) => curve.run).filter((run) => run !== null));
  if (shown.size < 2) return "";
  const entries = [...shown.values()].map((curve) => {
    const stroke = runs.size > 1 && curve.colour === undefined && curve.run !== null ? "var(--text)" : colour(curve);
    const line = { d: "M0 5H24", stroke, class: curve.faint ? "curve faint" : "curve" };
    if (curve.dash) line["stroke-dasharray"] = curve.dash;
    const sample = element("svg", { viewBox: "0 0 24 10", class: "sample" }, element("path", line));
    if (curve.dots) sample.append(element("circle", { cx: 12, cy: 5, r: 2.5, fill: stroke }));
    return element("span", {}, sample, curve.label);
  });
  return element("div", { class: "legend" }, ...entries);
}

// A line at the nearest x, and the value of every curve that has a point there.
function hover(svg, tip, series, x, chart, runNames) {
  const xValues = [...new Set(series.flatMap((curve) => curve.points.map((point) => point[0])))].sort((a, b) => a - b);
  const cursor = element("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * WIDTH;
    const near = (a, b) => Math.abs(x.at(a) - pixel) - Math.abs(x.at(b) - pixel);
    const xValue = xValues.reduce((best, other) => (near(other, best) < 0 ? other : best));
    cursor.setAttribute("x1", x.at(xValue));
    cursor.setAttribute("x2", x.at(xValue));
    cursor.setAttribute("visibility", "visible");
    const rows = series.flatMap((curve) => {
      const k = curve.points.findIndex((point) => point[0] === xValue);
      if (k < 0) return [];
      const band = curve.band && curve.band.find((b) => b[0] === xValue);
      const name = [curve.run === null || runNames.length < 2 ? "" : runNames[curve.run], curve.label].filter(Boolean).join(" · ");
      const extra = [band && `${short(band[1])} to ${short(band[2])}`, curve.notes && curve.notes[k]].filter(Boolean);
      const value = short(curve.points[k][1]) + (extra.length ? ` (${extra.join(", ")})` : "");
      const dot = element("i", {});
      dot.style.background = colour(curve);
      return [element("div", {}, dot, `${name}: `, element("b", {}, value))];
    });
    const label = (chart.x.ticks || []).find((tick) => tick[0] === xValue);
    tip.replaceChildren(element("div", {}, `${chart.x.label} ${label ? label[1] : short(xValue)}`), ...rows);
    tip.hidden = false;
    const left = event.clientX - box.left;
    tip.style.left = left > box.width / 2 ? "" : `${left + 16}px`;
    tip.style.right = left > box.width / 2 ? `${box.width - left + 16}px` : "";
  });
}

function drawCharts(data) {
  for (const section of document.querySelectorAll("[data-charts]")) {
    const charts = data.charts[section.dataset.charts];
    const select = section.querySelector("select");
    const grid = section.querySelector(".charts");
    const draw = () => {
      const series = charts.map((chart) => shownSeries(chart, select && select.value));
      const lowest = Math.min(1, ...heights(series.flat()));
      charts.forEach((chart, k) => {
        const holder = grid.children[k] || grid.appendChild(element("figure"));
        const y = chart.y.shared ? { range: [Math.floor(lowest * 10) / 10, 1] } : chart.y; // the same axis, because the charts are compared
        drawChart(holder, chart, series[k], y, data.runs);
      });
    };
    if (select) select.addEventListener("change", draw);
    document.addEventListener("runs", draw);
    draw();
  }
  for (const button of document.querySelectorAll("[data-run]"))
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      if (!hiddenRuns.delete(run)) hiddenRuns.add(run);
      button.setAttribute("aria-pressed", String(!hiddenRuns.has(run)));
      document.dispatchEvent(new Event("runs"));
    });
}

// A click on a heading sorts the table by that column: best first, then the other way round.
function sortableTables() {
  for (const table of document.querySelectorAll("table.sortable"))
    table.querySelectorAll("th[data-column]").forEach((head) => {
      head.tabIndex = 0;
      const sort = () => {
        const column = Number(head.dataset.column);
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.value;
        const rows = [...body.rows].sort((a, b) => {
          const [u, v] = [key(a), key(b)];
          if (u === undefined || v === undefined) return (u === undefined) - (v === undefined); // empty cells come last
          const order = Number.isNaN(Number(u)) || Number.isNaN(Number(v)) ? v.localeCompare(u) : v - u;
          return down ? order : -order;
        });
        body.append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
}
