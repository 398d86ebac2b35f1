"use strict";
/* The explorer of report.html: a figure of any two columns, filters, pins and the table of runs, from the page's block of JSON.

   `state` is what the reader chose, `drawn` what is on the screen. A row is an index into the columns. A point is a run, or the runs of
   a setting: its rows are `members`. The marks of a series are one path, and what lies under the pointer is looked up, so that
   thousands of runs stay quick. */
(() => {
  const state = { x: null, y: null, log: {}, by: "setting", hidden: {}, search: "", sort: "", down: false, pins: new Set() };
  const drawn = { points: [], at: -1, found: [], listed: 0 };
  const SVG = "http://www.w3.org/2000/svg", CHUNK = 100, DASHES = ["", "7 4", "2 3", "9 3 2 3"];
  let data, rows;
  // ---- elements, values, texts ----
  const $ = (id) => document.getElementById(id);
  function node(name, attributes = {}, ...children) {
    const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, it] of Object.entries(attributes)) {
      if (typeof it === "function") made.addEventListener(key, it);
      else if (it !== false && it !== null) made.setAttribute(key, it === true ? "" : it);
    }
    made.append(...children);
    return made;
  }
  const value = (name, row) => {
    const { values, levels, index } = data.columns[name];
    return (levels ? levels[index[row]] : values[row]) ?? null;
  };
  const isText = (name) => "levels" in data.columns[name];
  const label = (name) => data.columns[name].label;
  const isLog = (name) => state.log[name] ?? data.columns[name].log;
  const extent = (numbers) => numbers.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
  const counted = (amount, noun) => `${amount.toLocaleString("en-US")} ${noun}${amount === 1 ? "" : "s"}`;
  const plain = (x, digits = 4) => String(Number(x.toPrecision(digits)));
  function number(x) {
    const size = Math.abs(x);
    if (size && (size < 1e-4 || size >= 1e6)) return x.toPrecision(3);
    return x.toFixed(size < 1 ? 4 : Math.max(3 - Math.floor(Math.log10(size)), 0));
  }
  const FORMATS = {
    number,
    whole: (x) => x.toLocaleString("en-US"),
    tenths: (x) => x.toFixed(1),
    share: (x) => `${(100 * x).toFixed(1)} %`,
    "signed share": (x) => `${x < 0 ? "" : "+"}${(100 * x).toFixed(1)} %`,
    short: (x) => plain(x, 3),
  };
  function text(name, x) {
    if (x === null) return "–";
    return name === "architecture" ? data.looks[x].label : isText(name) ? x : FORMATS[data.columns[name].format](x);
  }
  function over(name, members) {
    /* Mean of a column over rows; and its interval where the report has one, or else its range over several. */
    const numbers = members.map((row) => value(name, row)).filter((x) => x !== null);
    if (!numbers.length) return { mean: null, what: "" };
    const mean = numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
    const [key, kind] = members.length > 1 ? ["setting_hash", "several"] : ["run_id", "one"];
    const [low, high, amount] = data.intervals[name]?.[value(key, members[0])] ?? [];
    if (amount === members.length) return { mean, low, high, what: `[ ] 95 % interval: ${data.covers[kind]}` };
    const [least, most] = extent(numbers), what = numbers.length > 1 ? `( ) range over ${data.repeat}s` : "";
    return { mean, low: least, high: most, what };
  }
  function cell(name, members) {
    /* A column of one run or of several, in words. */
    if (isText(name) || name in data.facets) return [...new Set(members.map((row) => text(name, value(name, row))))].join(", ");
    const { mean, low, high, what } = over(name, members);
    return text(name, mean) + (what && low < high ? ` ${what[0]}${text(name, low)}, ${text(name, high)}${what[2]}` : "");
  }
  function named(row) {
    const parts = ["architecture", "comparison", "setting"].filter((name) => value(name, row));
    return parts.map((name) => text(name, value(name, row))).join(", ");
  }
  // ---- points and fronts ----
  const visible = () => rows.filter((row) => Object.keys(data.facets).every((name) => !state.hidden[name]?.has(value(name, row))));
  const dashOf = (comparison) => DASHES[data.columns.comparison.levels.indexOf(comparison) % DASHES.length];
  function seriesOf(shown) {
    /* Points per architecture and comparison, along x, each with whether it is on the front; null where nothing says how to rank. */
    const [dx, dy] = [data.columns[state.x].better, data.columns[state.y].better];
    const known = shown.filter((row) => value(state.x, row) !== null && value(state.y, row) !== null);
    const settings = Map.groupBy(known, (row) => value(state.by === "setting" ? "setting_hash" : "run_id", row)).values();
    const all = Map.groupBy(settings, ([row]) => JSON.stringify([value("architecture", row), value("comparison", row)]));
    const series = [...all].map(([key, groups]) => {
      const [architecture, comparison] = JSON.parse(key), look = data.looks[architecture];
      const points = groups.map((members) => ({ members, series: key, x: over(state.x, members), y: over(state.y, members) }));
      points.sort((a, b) => (a.x.mean - b.x.mean) * (dx || 1) || (a.y.mean - b.y.mean) * (dy || 1));
      let best = Infinity, at = null;
      for (const point of points) {
        const y = point.y.mean * dy;
        point.front = dx && dy ? y < best || (y === best && point.x.mean === at) : null;
        if (point.front) [best, at] = [y, point.x.mean];
      }
      const title = [look.label, comparison].filter(Boolean).join(", ");
      return { architecture, comparison, title, look, points, dash: dashOf(comparison) };
    });
    return Object.keys(data.looks).flatMap((name) => series.filter((one) => one.architecture === name));
  }
  // ---- the figure ----
  function outline(points, end = "") {
    const corners = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`);
    return corners.length ? `M${corners.join("L")}${end}` : "";
  }
  const mark = (look, x, y, size = 9) => outline(look.shape.map(([a, b]) => [x + a * size, y - b * size]), "z");
  const swatch = ({ look, dash = false }, place = { "aria-hidden": true }) => node("svg:svg", { width: 24, height: 16, ...place },
    node("svg:path", { d: "M0 8H24", stroke: look.color, "stroke-width": 1.8, "stroke-dasharray": dash }),
    node("svg:path", { d: mark(look, 12, 8), fill: look.color }));
  function ticksOf(name, low, high, room) {
    const between = (list) => list.filter((x) => x >= low && x <= high);
    const powers = (base, factors) => {
      const [first, last] = [low, high].map((x) => Math.floor(Math.log(x) / Math.log(base)));
      return between(Array.from({ length: last - first + 1 }, (_, i) => factors.map((factor) => factor * base ** (first + i))).flat());
    };
    const finer = name === "l0" ? [[2, [1]], [4, [1]]] : [[10, [1, 1.5, 2, 3, 5, 7]], [10, [1, 2, 5]], [10, [1]]];
    const choices = isLog(name) && high / low > 4 ? [...finer, [1000, [1]]].map((it) => powers(...it)) : [];
    if (choices.length) return choices.find((it) => it.length <= room) ?? choices.at(-1);
    const rough = (high - low) / room, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * unit >= rough * 0.999) * unit;
    return between(Array.from({ length: room + 2 }, (_, i) => (Math.ceil(low / step) + i) * step));
  }
  function tickText(name, x) {
    if (data.columns[name].format.endsWith("share")) return `${plain(100 * x)} %`;
    if (x >= 1e15) return x.toExponential().replace("+", "");
    const [size, unit] = [[1e12, " T"], [1e9, " B"], [1e6, " M"], [1e3, " k"]].find(([least]) => x >= least && x >= 1e4) ?? [1, ""];
    return plain(x / size, 6) + unit;
  }
  function scaleOf(name, ends, from, to, apart) {
    const [f, back] = isLog(name) ? [Math.log, Math.exp] : [(x) => x, (x) => x];
    let [low, high] = ends.length ? extent(ends).map(f) : [0, 1];
    const margin = (high - low || Math.abs(high) || 1) * 0.05, room = Math.max(Math.floor(Math.abs(to - from) / apart), 2);
    [low, high] = [low - margin, high + margin];
    const at = (x) => isLog(name) && x <= 0 ? from : from + (f(x) - low) / (high - low) * (to - from);
    return { at, ticks: ticksOf(name, back(low), back(high), room) };
  }
  function chart(width, height, withLegend) {
    const series = seriesOf(visible()), has = (axis, x) => x !== null && !(isLog(state[axis]) && x <= 0);
    const all = series.flatMap((one) => one.points), placed = (p) => has("x", p.x.mean) && has("y", p.y.mean);
    for (const one of series) one.points = one.points.filter(placed);
    const points = all.filter(placed), ends = (axis) => points.flatMap((p) => [p[axis].low, p[axis].high]).filter((x) => has(axis, x));
    const wide = Math.max(...series.map(({ title }) => 56 + 7 * title.length), 1), across = Math.max(Math.floor((width - 66) / wide), 1);
    const bottom = height - 48 - (withLegend ? 20 * Math.ceil(series.length / across) + 8 : 0), [left, right, top] = [66, width - 16, 14];
    const x = scaleOf(state.x, ends("x"), left, right, 64), y = scaleOf(state.y, ends("y"), bottom, top, 42);
    const svg = node("svg:svg", { viewBox: `0 0 ${width} ${height}`, width, height, style: "font: 12px system-ui, sans-serif" });
    const put = (name, attributes, ...children) => svg.append(node(`svg:${name}`, attributes, ...children));
    const write = (it, attributes) => put("text", { fill: "var(--ink)", "text-anchor": "middle", ...attributes }, it);
    const grid = [...x.ticks.map((tick) => `M${x.at(tick)} ${top}V${bottom}`), ...y.ticks.map((tick) => `M${left} ${y.at(tick)}H${right}`)];
    put("path", { d: grid.join(""), stroke: "var(--rule)" });
    for (const tick of x.ticks) write(tickText(state.x, tick), { x: x.at(tick), y: bottom + 17 });
    for (const tick of y.ticks) write(tickText(state.y, tick), { x: left - 7, y: y.at(tick) + 4, "text-anchor": "end" });
    put("path", { d: `M${left} ${top}V${bottom}H${right}`, fill: "none", stroke: "var(--ink)" });
    write(label(state.x), { x: (left + right) / 2, y: bottom + 38 });
    write(label(state.y), { transform: `translate(14 ${(top + bottom) / 2}) rotate(-90)` });
    for (const { look, dash, points: own, architecture, comparison } of series) {
      for (const p of own) [p.px, p.py] = [x.at(p.x.mean), y.at(p.y.mean)];
      const band = state.by === "setting" && state.x === "l0" && data.bands[state.y]?.[comparison]?.[architecture];
      const edge = (name) => band.l0.map((l0, i) => [x.at(l0), Math.min(Math.max(y.at(band[name][i]), top), bottom)]);
      const whole = band?.n_runs === own.flatMap((p) => p.members).length; // or else some of its runs are filtered away
      if (whole) put("path", { d: outline([...edge("low"), ...edge("high").reverse()], "z"), fill: look.color, opacity: 0.13 });
      const front = own.filter((p) => p.front).map((p) => [p.px, p.py]);
      put("path", { d: outline(front), fill: "none", stroke: look.color, "stroke-width": 1.8, "stroke-dasharray": dash });
      for (const [group, opacity] of [[own.filter((p) => p.front === false), 0.35], [own.filter((p) => p.front !== false), 1]]) {
        const whiskers = group.filter((p) => p.x.what || p.y.what).map((p) =>
          `M${p.px} ${y.at(p.y.low)}V${y.at(p.y.high)}M${x.at(p.x.low)} ${p.py}H${x.at(p.x.high)}`).join("");
        put("path", { d: whiskers, stroke: look.color, opacity, fill: "none" });
        const marks = group.map((p) => mark(look, p.px, p.py)).join("");
        put("path", { d: marks, fill: look.color, opacity, stroke: "var(--paper)", "stroke-width": 0.7 });
      }
    }
    for (const [i, one] of withLegend ? series.entries() : []) {
      const place = { x: left + (i % across) * wide, y: bottom + 50 + 20 * Math.floor(i / across) };
      svg.append(swatch(one, place));
      write(one.title, { x: place.x + 30, y: place.y + 12, "text-anchor": "start" });
    }
    return { svg, points, lost: all.length - points.length };
  }
  function redraw() {
    const width = Math.max($("plot").clientWidth, 280), height = Math.round(Math.min(Math.max(width * 0.56, 320), 560));
    const { svg, points, lost } = chart(width, height, false);
    svg.append(node("svg:g", { id: "over" }));
    $("picture").replaceChildren(svg);
    Object.assign(drawn, { points, at: -1 });
    $("tip").hidden = true;
    $("plot").setAttribute("aria-label", `${label(state.y)} against ${label(state.x)}, ${counted(points.length, state.by)}`);
    const [whiskers, sideways] = ["y", "x"].map((axis) => [...new Set(points.map((p) => p[axis].what.slice(4)))].join(" "));
    const unplaced = lost ? `${counted(lost, state.by)} without a place on a logarithmic axis.` : "";
    $("note").textContent = (whiskers && `Whiskers: ${whiskers}${sideways && `; sideways: ${sideways}`}. `) + unplaced;
    for (const axis of ["x", "y"]) [$(axis).value, $(`log-${axis}`).checked] = [state[axis], isLog(state[axis])];
    list();
  }
  // ---- the current point, and pins ----
  function point(at, said = false) {
    /* Make a point the current one: a ring around it, what it is beside it, and in words for screen readers. */
    const current = drawn.points[at], tip = $("tip");
    if (at === drawn.at) return;
    drawn.at = at;
    tip.hidden = !current;
    rings();
    if (!current) return;
    const { members } = current, names = [...new Set([state.x, state.y, ...data.shown])];
    const runs = members.length > 1 ? counted(members.length, data.repeat) : value("run_id", members[0]);
    const about = [...new Set([runs, ...names.map((name) => over(name, members).what)])].filter(Boolean).join(" · ");
    const line = (name) => node("tr", {}, node("th", {}, data.columns[name].heading), node("td", {}, cell(name, members)));
    const lines = [...new Set([...data.told, ...names])].map(line);
    tip.replaceChildren(node("b", {}, named(members[0])), node("span", {}, about), node("table", {}, ...lines));
    const beside = (at, size, room) => `${Math.max(at + 14 + size > room ? at - 14 - size : at + 14, 0)}px`;
    tip.style.left = beside(current.px, tip.offsetWidth, $("plot").clientWidth);
    tip.style.top = beside(current.py, tip.offsetHeight, $("plot").clientHeight);
    if (said) $("said").textContent = tip.innerText;
  }
  function nearest({ clientX, clientY }) {
    const { left, top } = $("picture").getBoundingClientRect();
    const far = drawn.points.map((p) => Math.hypot(p.px + left - clientX, p.py + top - clientY)), [least] = extent(far);
    return least < 26 ? far.indexOf(least) : -1;
  }
  const letter = (i) => String.fromCharCode(65 + i);
  function pinned() {
    const rowsOf = (key) => key.split("\n").map((id) => data.columns.run_id.levels.indexOf(id)).filter((row) => row >= 0);
    return [...state.pins].map(rowsOf).filter((members) => members.length);
  }
  function pin(members) {
    const key = members.map((row) => value("run_id", row)).join("\n"), was = state.pins.delete(key);
    if (!was) state.pins.add(key);
    $("said").textContent = `${named(members[0])} ${was ? "unpinned" : "pinned"}`;
    showPins();
  }
  function rings() {
    const circle = (p, r, stroke) => node("svg:circle", { cx: p.px, cy: p.py, r, fill: "none", stroke, "stroke-width": 1.8 });
    const write = (p, it) => node("svg:text", { x: p.px + 8, y: p.py - 8, "font-weight": 700, fill: "var(--ink)" }, it);
    const marked = pinned().flatMap((members, i) => {
      const own = drawn.points.filter((p) => p.members.some((row) => members.includes(row)));
      return own.flatMap((p) => [circle(p, 9, "var(--ink)"), write(p, letter(i))]);
    });
    $("over").replaceChildren(...marked, ...drawn.points.slice(drawn.at, drawn.at + 1).map((p) => circle(p, 12, "var(--accent)")));
  }
  function showPins() {
    const pins = pinned(), cross = (members, i) => node("button", { "aria-label": `Unpin ${letter(i)}`, click: () => pin(members) }, "×");
    const heads = pins.map((members, i) => node("th", { scope: "col" }, letter(i), " ", cross(members, i)));
    const lines = Object.keys(data.columns).filter((name) => name !== "setting_hash").map((name) => {
      const cells = pins.map((members) => cell(name, members)), same = pins.length > 1 && new Set(cells).size === 1;
      const head = node("th", { scope: "row" }, label(name)), known = cells.some((it) => it && it !== "–");
      return known ? node("tr", { class: same && "quiet" }, head, ...cells.map((it) => node("td", {}, it))) : "";
    });
    $("pins").hidden = !pins.length;
    $("compare").replaceChildren(node("thead", {}, node("tr", {}, node("td"), ...heads)), node("tbody", {}, ...lines));
    for (const box of $("runs-body").querySelectorAll("input")) box.checked = state.pins.has(box.value);
    $("save-csv").textContent = `CSV of ${pins.length ? counted(pins.length, "pin") : counted(drawn.found.length, "run")}`;
    rings();
  }
  // ---- the table of runs ----
  function columns() {
    const first = ["architecture", "comparison", "setting", "seed", "lr", "status"];
    const names = new Set([...first, ...data.shown, state.x, state.y, "train_seconds", "sweep", "run_id"]);
    return [...names].filter((name) => name === "architecture" || (name in data.columns && data.columns[name].levels?.length !== 1));
  }
  function list() {
    const wanted = state.search.toLowerCase().match(/\S+/g) ?? [], texts = ["status", "sweep"].filter((name) => name in data.columns);
    const has = (it, word) => isNaN(word) || word.length > 5 ? it.includes(word) : it.split(/[\s,;=()]+/).includes(word); // 8 is not 128
    const told = (row, names) => [named(row), ...names.map((name) => value(name, row))].join(" ").toLowerCase(), sign = state.down ? -1 : 1;
    drawn.found = visible().filter((row) => wanted.every((it) => has(told(row, it.length > 5 ? [...texts, "run_id"] : texts), it)));
    const compare = (a, b) => isText(state.sort) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    const order = (a, b) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b), by = state.sort;
    if (by) drawn.found.sort((a, b) => order(value(by, a), value(by, b)));
    $("runs-head").replaceChildren(node("tr", {}, node("th", { scope: "col" }, "Pin"), ...columns().map((name) => {
      const sorted = state.sort === name && (state.down ? "descending" : "ascending");
      const click = () => { [state.sort, state.down] = [name, sorted === "ascending"]; list(); $(`by-${name}`).focus(); };
      const arrow = { ascending: " ↑", descending: " ↓" }[sorted] ?? "";
      const button = node("button", { id: `by-${name}`, title: label(name), click }, data.columns[name].heading, arrow);
      return node("th", { scope: "col", "aria-sort": sorted, class: !isText(name) && "num" }, button);
    })));
    $("runs-body").replaceChildren();
    drawn.listed = 0;
    more();
    $("found").textContent = `${counted(drawn.found.length, "run")} of ${counted(rows.length, "run")}`;
  }
  function more() {
    const next = drawn.found.slice(drawn.listed, drawn.listed + CHUNK), names = columns();
    drawn.listed += next.length;
    $("runs-body").append(...next.map((row) => {
      const id = value("run_id", row), look = data.looks[value("architecture", row)];
      const box = node("input", { type: "checkbox", value: id, "aria-label": `Pin ${id}`, change: () => pin([row]) });
      const cells = names.map((name) => node("td", { class: !isText(name) && "num" }, text(name, value(name, row))));
      if (look) cells[0].prepend(swatch({ look }));
      return node("tr", {}, node("td", {}, box), ...cells);
    }));
    $("more").hidden = drawn.listed >= drawn.found.length;
    showPins();
  }
  // ---- what the reader chooses ----
  function choices() {
    /* Lists of axes, and boxes to filter by: those of architectures and comparisons are the legend. */
    const numeric = Object.keys(data.columns).filter((name) => !isText(name));
    for (const axis of ["x", "y"]) {
      if (!numeric.includes(state[axis])) state[axis] = data[axis];
      const groups = Map.groupBy(numeric, (name) => data.columns[name].kind);
      const options = (names) => names.map((name) => node("option", { value: name }, label(name)));
      $(axis).replaceChildren(...[...groups].map(([kind, names]) => node("optgroup", { label: kind }, ...options(names))));
    }
    const facet = ([name, levels]) => {
      const hidden = (state.hidden[name] ??= new Set(data.hidden[name])), sum = node("small");
      const isLegend = ["architecture", "comparison"].includes(name);
      const count = () => { sum.textContent = `${levels.filter((it) => !hidden.has(it)).length} of ${levels.length}`; };
      const boxes = levels.map((level) => {
        const change = (event) => { hidden[event.target.checked ? "delete" : "add"](level); count(); redraw(); };
        const look = name === "architecture" ? data.looks[level] : { color: "var(--ink)", shape: [] };
        return node("label", {}, node("input", { type: "checkbox", checked: !hidden.has(level), change }),
          ...(isLegend && look ? [swatch({ look, dash: name === "comparison" && dashOf(level) })] : []), text(name, level));
      });
      count();
      const box = node("fieldset", { class: isLegend && "legend" }, node("legend", { class: "unseen" }, label(name)), ...boxes);
      return isLegend ? box : node("details", {}, node("summary", {}, `${label(name)}: `, sum), box);
    };
    $("filters").replaceChildren(...Object.entries(data.facets).map(facet));
  }
  const save = (name, content) => node("a", { href: URL.createObjectURL(content), download: `${data.name}-${name}` }).click();
  function figure() {
    /* The figure as a file: on white, with a legend, and without anything of the page. */
    const root = document.documentElement, { svg } = chart(900, 580, true), style = getComputedStyle(root);
    svg.prepend(node("svg:rect", { width: 900, height: 580, fill: "var(--paper)" }));
    root.classList.add("light");
    const color = (_, name) => style.getPropertyValue(name).trim();
    const written = new XMLSerializer().serializeToString(svg).replace(/var\((--[\w-]+)\)/g, color);
    root.classList.remove("light");
    return new Blob([written], { type: "image/svg+xml" });
  }
  function savePng() {
    const image = new Image(), canvas = node("canvas", { width: 1800, height: 1160 });
    image.onload = () => {
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(`${state.y}-${state.x}.png`, blob));
    };
    image.src = URL.createObjectURL(figure());
  }
  function csv() {
    const quoted = (it) => /[",\r\n]/.test(it) ? `"${it.replaceAll('"', '""')}"` : it, names = Object.keys(data.columns);
    const chosen = state.pins.size ? [...new Set(pinned().flat())] : drawn.found;
    const lines = chosen.map((row) => [...names.map((name) => value(name, row)), ...Object.values(data.same)]);
    const cells = [[...names, ...Object.keys(data.same)], ...lines];
    return new Blob([cells.map((line) => `${line.map((it) => quoted(String(it ?? ""))).join(",")}\n`).join("")], { type: "text/csv" });
  }
  function keyed(event) {
    const { points, at } = drawn, last = points.length - 1;
    const starts = [...points.keys()].filter((i) => points[i].series !== points[i - 1]?.series);
    const moves = {
      ArrowRight: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0), Escape: -1,
      ArrowDown: starts.find((i) => i > at) ?? last, ArrowUp: starts.findLast((i) => i < at) ?? 0,
    };
    if (event.key in moves) point(moves[event.key], true);
    else if (["Enter", " "].includes(event.key) && points[at]) pin(points[at].members);
    else return;
    event.preventDefault();
  }
  // ---- the beginning, and new records of a sweep that runs ----
  function read() {
    data = JSON.parse($("data").textContent);
    $("explorer").hidden = $("runs").hidden = !(data.x in data.columns && data.y in data.columns);
    if ($("explorer").hidden) return;
    rows = [...data.columns.run_id.index.keys()];
    choices();
    redraw();
  }
  async function follow(before) {
    const answer = await fetch("/", { headers: { "If-None-Match": before } }).catch(() => null);
    if (answer?.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-part]")) part.replaceWith(page.getElementById(part.id));
      read();
    }
    setTimeout(() => follow(answer?.headers.get("ETag") ?? before), 2000);
  }
  const on = (id, type, act) => $(id).addEventListener(type, act);
  for (const axis of ["x", "y"]) {
    on(axis, "change", (event) => { state[axis] = event.target.value; redraw(); });
    on(`log-${axis}`, "change", (event) => { state.log[state[axis]] = event.target.checked; redraw(); });
  }
  on("by", "change", (event) => { state.by = event.target.value; redraw(); });
  on("search", "input", (event) => { state.search = event.target.value; list(); });
  on("plot", "pointermove", (event) => point(nearest(event)));
  on("plot", "pointerleave", () => point(-1));
  on("plot", "click", (event) => { point(nearest(event)); if (drawn.at >= 0) pin(drawn.points[drawn.at].members); });
  on("plot", "keydown", keyed);
  on("more", "click", () => more());
  on("save-svg", "click", () => save(`${state.y}-${state.x}.svg`, figure()));
  on("save-png", "click", savePng);
  on("save-csv", "click", () => save("runs.csv", csv()));
  document.addEventListener("click", async ({ target }) => {
    const source = target.dataset?.copy && $(target.dataset.copy);
    if (!source) return;
    getSelection().selectAllChildren(source); // where the browser forbids copying, the reader's own keys do it
    target.textContent = await navigator.clipboard.writeText(source.textContent).then(() => "Copied", () => "Selected");
  });
  addEventListener("hashchange", () => {
    const id = decodeURIComponent(location.hash.slice(1)), row = data.columns.run_id.levels.indexOf(id);
    if (row >= 0 && !state.pins.has(id)) pin([row]);
  });
  addEventListener("beforeprint", () => {
    for (const it of document.querySelectorAll("details")) it.open = true;
    while (drawn.listed < Math.min(drawn.found.length, 10 * CHUNK)) more();
  });
  new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && more()).observe($("more"));
  addEventListener("resize", () => rows && redraw());
  read();
  if (document.documentElement.dataset.follow) follow(document.documentElement.dataset.follow);
})();
