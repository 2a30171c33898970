"use strict";
(() => {
  const root = document.documentElement;
  const MOST_ROWS = 4;
  const MOVES = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [-10, 0], PageDown: [10, 0],
    ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity],
  };
  const DASHES = ["none", "7 3", "2 3", "9 3 2 3"];
  const data = JSON.parse(document.getElementById("data").textContent);
  const panel = document.getElementById("curves");
  const whole = (value) => Math.round(value).toLocaleString("en-US");
  const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
  const several = data.runs.length > 1;
  const chosen = { id: null, rows: [] };

  try {
    start();
    root.dataset.ready = "yes";
  } catch (error) {
    root.classList.remove("js"); // what was written without a script is complete
    root.dataset.error = String(error);
    throw error;
  }

  function start() {
    for (const chart of document.querySelectorAll(".chart")) enhanceChart(chart, data.series[chart.dataset.series] || []);
    const pick = document.getElementById("pick");
    if (!pick) return;
    for (const map of document.querySelectorAll(".map")) enhanceMap(map);
    pick.addEventListener("change", () => show(pick.value));
    for (const radio of document.querySelectorAll(".switch input")) radio.addEventListener("change", drawCurves);
    show(pick.value);
  }

  // Numbers

  function number(value, digits = 3) {
    if (value === undefined) return "not measured";
    if (value === null) return "not finite";
    const [sign, size] = [value < 0 ? "\u2212" : "", Math.abs(value)];
    if (size === 0 || Number.isNaN(size)) return String(size);
    if (size === Infinity) return sign + "\u221e";
    if (size >= 999.5 && size < 99999.5) return sign + Math.round(size).toLocaleString("en-US");
    if (size >= 0.00095 && size < 1000) return sign + Number(size.toPrecision(digits));
    const [mantissa, exponent] = size.toExponential(2).split("e");
    return `${sign}${Number(mantissa)}e${Number(exponent)}`;
  }

  function decode(entry) {
    if (entry.at) return entry;
    const bytes = atob(entry.codes);
    const [width, depth, half] = [entry.first.length, entry.last ? 2 : 1, entry.sizes < 32768];
    entry.last = entry.last || entry.first;
    entry.isWhole = depth === 1;
    entry.at = (row, column, part) => {
      const place = 2 * ((row * width + column) * depth + (depth === 2 ? part : 0));
      const code = bytes.charCodeAt(place) | (bytes.charCodeAt(place + 1) << 8);
      if (code >= 65532) return [undefined, -Infinity, Infinity, NaN][code - 65532];
      if (code === 0) return 0;
      const isNegative = half && code >= 32768;
      const along = ((isNegative ? code - 32768 : code) - 1) / (entry.sizes - 1);
      const size = Math.exp(entry.low + along * (entry.high - entry.low));
      return isNegative ? -size : size;
    };
    return entry;
  }

  function read(entry, row, column) {
    const [low, high] = [0, 1].map((part) => number(entry.at(row, column, part)));
    const [first, last] = [whole(entry.first[column]), whole(entry.last[column])];
    return `${first === last ? `step ${first}` : `steps ${first} to ${last}`}: ${low === high ? high : `${low} to ${high}`}`;
  }

  // Axes

  function makeAxis(low, high, kind) {
    const shift = kind === "steps" ? 1 : 0;
    const scale = (value) => (kind === "linear" ? value : Math.log(value + shift));
    const [begin, span] = [scale(low), scale(high) - scale(low) || 1];
    const invert = (at) => (kind === "linear" ? begin + at * span : Math.exp(begin + at * span) - shift);
    return { low, high, kind, place: (value) => (scale(value) - begin) / span, invert };
  }

  function ticks(axis, most) {
    let values = [];
    if (axis.kind !== "linear") {
      const [first, last] = [Math.ceil(Math.log10(axis.low || 5) - 1e-9), Math.floor(Math.log10(axis.high) + 1e-9)];
      const stride = Math.max(1, Math.ceil((last - first + 1) / most));
      const factors = last - first < 2 && axis.low ? [1, 2, 5] : [1];
      for (let power = first - stride; power <= last; power += stride) values.push(...factors.map((factor) => factor * 10 ** power));
      values = values.filter((value) => value >= (axis.low || 5) && value <= axis.high);
      if (!axis.low) values.unshift(0);
      if (values.length > 1) return values;
    }
    const raw = (axis.high - axis.low) / most;
    if (!(raw > 0)) return [axis.low];
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
    const first = Math.ceil(axis.low / step - 1e-9) + 0;
    return Array.from({ length: Math.floor(axis.high / step + 1e-9) - first + 1 }, (_, place) => (first + place) * step);
  }

  // Charts

  function enhanceChart(chart, series) {
    const plot = chart.querySelector(".plot");
    const readout = chart.querySelector(".readout");
    const axis = makeAxis(Number(chart.dataset.low), Number(chart.dataset.high), chart.dataset.kind);
    const extra = chart.dataset.series === "loss" ? data.series.lr || [] : [];
    if (!series.length) return;
    const line = make("i", "at");
    line.hidden = true;
    plot.append(line);
    let at = 0;
    const showAt = (step) => {
      line.hidden = false;
      line.style.left = `${100 * axis.place(step)}%`;
      const say = (one) => `${several || series.length > 1 ? `${one.name} ` : ""}${number(valueAt(one, step), 4)}`;
      const parts = [...series.map(say), ...extra.map((one) => `lr ${say(one)}`)];
      readout.textContent = `Step ${whole(step)}: ${parts.join(", ")}`;
    };
    const steps = [...new Set(series.flatMap((one) => one.steps))].sort((a, b) => a - b);
    plot.tabIndex = 0;
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      at = nearest(steps, axis.invert((event.clientX - box.left) / box.width));
      showAt(steps[at]);
    });
    plot.addEventListener("pointerleave", () => { line.hidden = true; readout.textContent = ""; });
    plot.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
      if (!move) return;
      event.preventDefault();
      at = clamp(at + move, steps.length);
      showAt(steps[at]);
    });
  }

  function nearest(steps, step) {
    let [low, high] = [0, steps.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  }

  function valueAt({ steps, values }, step) {
    return steps.length && step <= steps[steps.length - 1] ? values[nearest(steps, step)] : undefined;
  }

  // Heat maps

  function enhanceMap(map) {
    const cells = map.querySelector(".cells");
    const id = map.closest(".quantity").id;
    const readout = map.closest(".maps").querySelector(".readout");
    const raw = data.maps[id].runs[map.dataset.run];
    const [rows, columns] = [raw.rows.length, raw.first.length];
    const [rowAt, columnAt] = [make("i", "row-at"), make("i", "column-at")];
    rowAt.hidden = columnAt.hidden = true;
    cells.append(rowAt, columnAt);
    cells.tabIndex = 0;
    cells.setAttribute("role", "group");
    const keys = "Arrow keys move over the cells, Enter draws a row's curve, Shift and Enter adds it.";
    cells.setAttribute("aria-label", `${cells.querySelector("img").alt} ${keys}`);
    let [row, column] = [0, 0];
    const point = () => {
      rowAt.hidden = columnAt.hidden = false;
      Object.assign(rowAt.style, { top: `${(100 * row) / rows}%`, height: `${100 / rows}%` });
      Object.assign(columnAt.style, { left: `${(100 * column) / columns}%`, width: `${100 / columns}%` });
      const run = several ? `${data.runs[map.dataset.run]}, ` : "";
      readout.textContent = `${run}${data.names[raw.rows[row]]}, ${read(decode(raw), row, column)}`;
    };
    const choose = (adds) => {
      const name = raw.rows[row];
      if (!adds) chosen.rows = [name];
      else if (chosen.rows.includes(name)) chosen.rows = chosen.rows.filter((other) => other !== name);
      else chosen.rows = [...chosen.rows, name].slice(-MOST_ROWS);
      drawCurves();
    };
    const follow = (event) => {
      const box = cells.getBoundingClientRect();
      row = clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), rows);
      column = clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), columns);
      point();
    };
    cells.addEventListener("pointermove", follow);
    cells.addEventListener("pointerleave", () => { rowAt.hidden = columnAt.hidden = true; });
    cells.addEventListener("click", (event) => { follow(event); choose(event.shiftKey); });
    cells.addEventListener("focus", () => { if (cells.matches(":focus-visible")) point(); });
    cells.addEventListener("keydown", (event) => {
      const [down, right] = MOVES[event.key] || [0, 0];
      if (event.key === "Enter" || event.key === " ") choose(event.shiftKey);
      else if (!down && !right) return;
      [row, column] = [clamp(row + down, rows), clamp(column + right, columns)];
      event.preventDefault();
      point();
    });
  }

  function show(id) {
    for (const details of document.querySelectorAll(".quantity")) {
      const isPicked = details.id === id;
      details.classList.toggle("picked", isPicked);
      details.open = isPicked;
    }
    chosen.id = id;
    const map = data.maps[id];
    if (!map) return;
    const pair = document.querySelector(`#${id} .pair`);
    if (panel.parentElement !== pair) pair.append(panel);
    const known = new Set(Object.values(map.runs).flatMap((entry) => entry.rows));
    chosen.rows = chosen.rows.filter((row) => known.has(row));
    if (!chosen.rows.length) chosen.rows = [map.start];
    drawCurves();
  }

  // Curves of chosen rows

  function drawCurves() {
    const map = data.maps[chosen.id];
    if (!map) return;
    const curves = [];
    for (const [run, raw] of Object.entries(map.runs)) {
      const entry = decode(raw);
      chosen.rows.forEach((name, slot) => {
        const row = entry.rows.indexOf(name);
        if (row >= 0) curves.push(readCurve(entry, row, Number(run), slot));
      });
    }
    panel.replaceChildren(make("h3", "", map.unit ? `${map.title}, ${map.unit}` : map.title), drawChart(map, curves), drawTable(curves));
    markChosen();
  }

  function readCurve(entry, row, run, slot) {
    const points = entry.first
      .map((step, column) => ({ step, low: entry.at(row, column, 0), high: entry.at(row, column, 1) }))
      .filter((point) => point.high !== undefined);
    const name = data.names[entry.rows[row]];
    const looks = several ? { look: run, dashes: slot } : { look: slot, dashes: 0 };
    return { name: several ? `${name} (${data.runs[run]})` : name, ...looks, points, isWhole: entry.isWhole };
  }

  function drawChart(map, curves) {
    const thresholds = map.thresholds.filter(([row]) => chosen.rows.includes(row)).map(([, value]) => value);
    const values = curves.flatMap((curve) => curve.points.flatMap((point) => [point.low, point.high])).filter(Number.isFinite);
    const isLog = map.log && values.some((value) => value > 0);
    const shown = [...values, ...thresholds].filter((value) => !isLog || value > 0);
    let [low, high] = shown.length ? [Math.min, Math.max].map((pick) => shown.reduce((a, b) => pick(a, b))) : [0, 1];
    const margin = isLog ? Math.max((high / low) ** 0.05, 1.1) : 0.05 * (high - low) || 0.05 * Math.abs(high) || 0.5;
    [low, high] = isLog ? [low / margin, high * margin] : [low - margin, high + margin];
    const y = makeAxis(low, high, isLog ? "log" : "linear");
    const x = makeAxis(0, Math.max(data.last, 1), document.getElementById("x-log")?.checked ? "steps" : "linear");
    const [chart, plot, scale, steps] = ["chart", "plot", "values", "steps"].map((name) => make("div", name));
    Object.assign(chart.dataset, { low: x.low, high: x.high, kind: x.kind });
    const names = curves.map((curve) => curve.name).join(", ");
    const svg = element("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", role: "img", "aria-label": `Curves of ${names}` });
    for (const tick of ticks(y, 6)) {
      svg.append(element("path", { class: "grid", d: `M0 ${1000 * (1 - y.place(tick))}H1000` }));
      scale.append(placed(number(tick), "bottom", y.place(tick)));
    }
    for (const tick of ticks(x, 4).filter(Number.isInteger)) steps.append(placed(whole(tick), "left", x.place(tick)));
    for (const value of new Set(thresholds)) svg.append(element("path", { class: "level", d: `M0 ${1000 * (1 - y.place(value))}H1000` }));
    for (const curve of curves) svg.append(...drawCurve(curve, x, y));
    plot.append(svg);
    chart.append(scale, plot, steps, make("p", "readout"));
    enhanceChart(chart, curves.map(({ name, points }) => (
      { name, steps: points.map((point) => point.step), values: points.map((point) => point.high) }
    )));
    return chart;
  }

  function drawCurve(curve, x, y) {
    const stretches = [[]];
    for (const point of curve.points) {
      if (Number.isFinite(y.place(point.low)) && Number.isFinite(y.place(point.high))) stretches[stretches.length - 1].push(point);
      else stretches.push([]);
    }
    const at = (step, value) => `${(1000 * x.place(step)).toFixed(1)} ${(1000 * (1 - y.place(value))).toFixed(1)}`;
    const d = stretches.filter((stretch) => stretch.length).map((stretch) => {
      const upper = stretch.map((point) => at(point.step, point.high));
      if (curve.isWhole) return `M${upper[0]}h0L${upper.join(" ")}`;
      const lower = stretch.map((point) => at(point.step, point.low)).reverse();
      return `M${[...upper, ...lower].join("L")}Z`;
    }).join("");
    const line = element("path", { class: `${curve.isWhole ? "line" : "extent"} run-${curve.look}`, style: `stroke-dasharray:${DASHES[curve.dashes]}`, d });
    if (!curve.isWhole || curve.points.length > 40) return [line];
    const dots = stretches.flat().map((point) => `M${at(point.step, point.high)}h0`).join("");
    return [line, element("path", { class: `dots run-${curve.look}`, d: dots })];
  }

  function drawTable(curves) {
    const box = make("div", "scroll");
    const [table, head, body, heads] = ["table", "thead", "tbody", "tr"].map((name) => make(name));
    heads.append(...["Row", "First", "Last", "Smallest", "Largest"].map((name) => make("th", "", name)));
    head.append(heads);
    for (const curve of curves) {
      const extreme = (key, sign) => curve.points.filter((point) => Number.isFinite(point[key]))
        .reduce((best, point) => (best && sign * best[key] >= sign * point[key] ? best : point), null);
      const where = (key, point) => (point ? `${number(point[key])} at ${whole(point.step)}` : "\u2013");
      const ends = [curve.points[0], curve.points[curve.points.length - 1]].map((point) => number(point && point.high));
      const texts = [...ends, where("low", extreme("low", -1)), where("high", extreme("high", 1))];
      const [line, name] = [make("tr"), make("th")];
      const swatch = element("svg", { class: "swatch", viewBox: "0 0 36 14", "aria-hidden": "true" });
      swatch.append(element("path", { class: `line run-${curve.look}`, d: "M2 7H34", style: `stroke-dasharray:${DASHES[curve.dashes]}` }));
      name.append(swatch, curve.name);
      line.append(name, ...texts.map((value) => make("td", "", value)));
      body.append(line);
    }
    table.append(head, body);
    box.append(table);
    return box;
  }

  function markChosen() {
    for (const mark of document.querySelectorAll(".chosen")) mark.remove();
    for (const map of document.querySelectorAll(`#${chosen.id} .map`)) {
      const rows = data.maps[chosen.id].runs[map.dataset.run].rows;
      chosen.rows.forEach((name, slot) => {
        const row = rows.indexOf(name);
        if (row < 0) return;
        const mark = make("i", `chosen run-${several ? map.dataset.run : slot}`);
        Object.assign(mark.style, { top: `${(100 * row) / rows.length}%`, height: `${100 / rows.length}%` });
        map.querySelector(".cells").append(mark);
      });
    }
  }

  function make(name, className = "", content = "") {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (content) made.textContent = content;
    return made;
  }

  function element(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function placed(content, side, at) {
    const made = make("span", "", content);
    made.style[side] = `${100 * at}%`;
    return made;
  }
})();
