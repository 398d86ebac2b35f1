"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const tokens = data.tokens;
let current = null;

// Elements. Text is set as text, never as HTML: it comes from datasets.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const number = (value) => (value === null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)));
const percent = (value, digits = 3) => (value === null ? "–" : `${+(100 * value).toPrecision(digits)} %`);
const controls = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, (one) => `\\x${one.charCodeAt(0).toString(16).padStart(2, "0")}`);
const visible = (text) => controls(text).replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
const textOf = (token) => tokens[token] ?? `#${token}`;
const token = (id) => el("span", { class: "token", title: JSON.stringify(textOf(id)) }, visible(textOf(id)));

// Text with the activations of a latent.
function piece(id, attributes) {
  const text = textOf(id);
  const span = el("span", attributes);
  if (/^<.*>$/.test(text) && text.length > 3) span.classList.add("special");
  for (const part of text.split(/(\n|\t|\r)/)) {
    if (part === "\n") span.append(el("span", { class: "ws nl" }, "↵"));
    else if (part === "\t" || part === "\r") span.append(el("span", { class: "ws" }, visible(part)));
    else if (part) span.append(controls(part));
  }
  return span;
}
function stretch(example, largest) {
  const values = new Map(example.active);
  const spans = example.tokens.map((id, index) => {
    const value = values.get(index) ?? 0;
    const heat = value > 0 ? Math.round(12 + 76 * Math.min(1, value / largest)) : 0;
    const kinds = [value > 0 ? "mark" : "", index === example.at ? "here" : ""].join(" ").trim();
    return piece(id, { class: kinds || null, style: heat ? `--heat:${heat}%` : null, "data-tip": `${JSON.stringify(textOf(id))}\nactivation ${number(value)}` });
  });
  return el("div", { class: "text" }, ...spans);
}
function examples(list, largest) {
  return list.map((one) =>
    el("div", { class: "example" },
      el("div", { class: "at", title: `held-out window ${one.window}, position ${one.position}` }, number(one.value)),
      one.tokens.length ? stretch(one, largest) : el("div", { class: "faint" }, `held-out token ${one.window}`)));
}

// Histograms: every bar says its counts.
function bars({ counts, low, high }, label, format = number, ticks = [low, ...(low < 0 && high > 0 ? [0] : []), high]) {
  const width = 320, height = 74, most = Math.max(...counts, 1), step = width / counts.length;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height + 14}`, role: "img", "aria-label": `${label}, from ${format(low)} to ${format(high)}` });
  counts.forEach((count, index) => {
    if (!count) return;
    const tall = Math.max(1, (height * count) / most);
    const from = low + ((high - low) * index) / counts.length, to = low + ((high - low) * (index + 1)) / counts.length;
    const bar = svg("rect", { class: "bar", x: index * step + 0.4, y: height - tall, width: step - 0.8, height: tall });
    bar.dataset.tip = `${count.toLocaleString("en")} from ${format(from)} to ${format(to)}`;
    chart.append(bar);
  });
  chart.append(svg("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }));
  for (const tick of ticks) {
    const x = ((tick - low) / (high - low)) * width, anchor = tick === low ? "start" : tick === high ? "end" : "middle";
    if (anchor === "middle") chart.append(svg("line", { class: "axis", x1: x, x2: x, y1: 0, y2: height + 3 }));
    chart.append(svg("text", { x, y: height + 12, "text-anchor": anchor }, format(tick)));
  }
  return chart;
}

// Panels of one latent.
const heading = (text, small = "") => el("h3", {}, `${text} `, small && el("small", {}, small));
function rows(caption, pairs) {
  const body = pairs.map(([id, ...values]) => el("tr", {}, el("td", {}, token(id)), el("td", {}, values.join(" "))));
  return el("table", {}, el("caption", {}, caption), ...(body.length ? body : [el("tr", {}, el("td", { class: "faint" }, "none"))]));
}
function logits(one) {
  if (!one.logits) return data.no_logits ? [heading("Direct logit effects"), el("p", { class: "note" }, data.no_logits)] : [];
  const signed = (pairs) => pairs.map(([id, value]) => [id, `${value > 0 ? "+" : ""}${number(value)}`]);
  return [heading("Direct logit effects", "per unit of activation"),
    el("div", { class: "pair" }, rows("raised most", signed(one.logits.raised)), rows("lowered most", signed(one.logits.lowered))),
    el("p", { class: "faint" }, "On all tokens of the vocabulary:"), bars(one.logits.histogram, "Effects on all tokens")];
}
function ablation(one) {
  const lost = one.ablation;
  if (!lost) return [];
  const likely = (value) => (value < 0.0001 ? "<0.01 %" : percent(value, 2));
  const change = (pairs) => pairs.filter(([, before, after]) => Math.max(before, after) > 0.0005).map(([id, before, after]) => [id, `${likely(before)} → ${likely(after)}`]);
  const worse = lost.delta_ce === null ? "" : ` The true next token costs ${lost.delta_ce >= 0 ? "+" : ""}${number(lost.delta_ce)} nats.`;
  return [heading("Without it", `mean over its ${lost.n_places} strongest places`),
    el("p", {}, `KL from the model as it is: ${number(lost.kl)} nats.${worse}`),
    el("div", { class: "pair" }, rows("next token, less likely", change(lost.lowered)), rows("more likely", change(lost.raised)))];
}
function steering(one) {
  if (!one.steering.length) return [];
  const line = (label, ids) => el("div", { class: "example" }, el("div", { class: "at" }, label),
    el("div", { class: "text" }, ...data.prompt.map((id) => piece(id, { class: "given" })), ...ids.map((id) => piece(id, {}))));
  return [heading("Steering", "what the model writes with it turned up at every token"), line("as it is", data.unchanged),
    ...one.steering.map((text) => line(`+${number(text.strength)}`, text.tokens))];
}
function link(latent, cosine) {
  const text = `${latent} (${number(cosine)})`;
  if (!byNumber.has(latent)) return el("span", {}, text);
  const button = el("button", { class: "link", type: "button" }, text);
  button.onclick = () => show(latent);
  return button;
}
function neighbors(one) {
  const shown = one.neighbors.flatMap(([latent, cosine]) => [link(latent, cosine), " "]);
  return [heading("Most similar decoder rows", "latent (cosine)"), el("p", {}, ...shown)];
}
function match(one) {
  if (!data.other) return [];
  const other = one.match, title = heading(`In ${data.other.run_id}`);
  if (!other) return [title, el("p", { class: "note" }, "It has no counterpart there.")];
  const nearest = other.one_to_one && other.nearest !== other.latent ? ` The nearest is ${other.nearest} (cosine ${number(other.nearest_cosine)}).` : "";
  const overlap = other.overlap === null ? "" : `, both active on ${percent(other.overlap)} of the tokens that either is`;
  return [title, el("p", {}, el("b", {}, `Latent ${other.latent}`), `: cosine ${number(other.cosine)}${other.one_to_one ? " in the best one-to-one assignment" : ", the nearest"}, ` +
    `active on ${percent(other.density)} of tokens${overlap}.${nearest}`), ...examples(other.examples, other.largest)];
}
function strongest(one) {
  const few = 8, more = one.examples.slice(few);
  const parts = [heading("Strongest", `of ${one.count.toLocaleString("en")} tokens`), ...examples(one.examples.slice(0, few), one.largest)];
  if (more.length) parts.push(el("details", {}, el("summary", {}, `${more.length} more`), ...examples(more, one.largest)));
  return parts;
}
function detail(one) {
  const stat = (value, label) => el("div", {}, el("b", {}, value), el("span", {}, label));
  const quantiles = one.quantiles.flatMap((part) => [
    heading(`${number(part.low)} to ${number(part.high)}`, `${percent(part.share)} of the tokens it is active on, some at random`), ...examples(part.examples, one.largest)]);
  if (!one.count) return [el("h2", {}, `Latent ${one.latent}`), el("p", { class: "note" }, `Never active on the ${data.n_tokens.toLocaleString("en")} held-out tokens.`), ...logits(one), ...neighbors(one)];
  return [el("h2", {}, `Latent ${one.latent}`),
    el("div", { class: "stats" }, stat(percent(one.density), `of tokens (${one.count.toLocaleString("en")})`), stat(number(one.largest), "largest activation"),
      stat(percent(one.share), "of what all latents write"), stat(number(one.norm), "norm of its decoder row")),
    el("div", { class: "panels" },
      el("section", { "aria-label": "What it does" }, ...logits(one), heading("Activations", "where it is active"), bars(one.histogram, "Activations"),
        ...ablation(one), ...steering(one), ...neighbors(one)),
      el("section", { "aria-label": "Where it is active" }, ...strongest(one), ...match(one), ...quantiles))];
}

// The list.
const byNumber = new Map(data.latents.map((one) => [one.latent, one]));
const orders = [["share of what is written", (one) => one.share, (value) => percent(value)], ["density", (one) => one.density, (value) => percent(value)],
  ["density, rarest first", (one) => -one.density, (value) => percent(-value)], ["largest activation", (one) => one.largest, number], ["number", (one) => -one.latent, () => ""]];
if (data.latents.some((one) => one.ablation)) orders.unshift(["effect of ablation", (one) => one.ablation?.kl ?? -1, (value) => (value < 0 ? "–" : `${number(value)} nats`)]);
if (data.other) orders.push(["cosine with the other SAE", (one) => one.match?.cosine ?? -2, (value) => (value < -1 ? "–" : number(value))]);
const peaks = (one) => [...new Set(one.examples.map((example) => example.tokens[example.at]).filter((id) => id !== undefined))];
for (const one of data.latents) {
  const raised = one.logits ? one.logits.raised.map(([id]) => id) : [];
  one.peaks = peaks(one);
  one.words = [...one.peaks, ...raised].map(textOf).concat(one.examples.map((example) => example.tokens.map(textOf).join(""))).join("\n").toLowerCase();
}
function found() {
  const query = $("search").value.toLowerCase(), [, key] = orders[$("sort").value];
  const exact = query.trim();
  const matching = data.latents.filter((one) => !exact || String(one.latent) === exact || one.words.includes(query) || String(one.latent).startsWith(exact));
  const asked = (one) => String(one.latent) === exact;
  return matching.sort((a, b) => asked(b) - asked(a) || key(b) - key(a));
}
function list() {
  const [label, key, format] = orders[$("sort").value], some = found();
  $("list").replaceChildren(...some.map((one) => {
    const where = one.peaks.slice(0, 5).flatMap((id) => [token(id), " "]);
    const value = format(key(one));
    const button = el("button", { type: "button", "aria-current": String(one.latent === current) }, el("span", { class: "number" }, String(one.latent)),
      el("span", { class: "where" }, ...where), el("span", { class: "value" }, value ? `${label.split(",")[0]} ${value}` : ""));
    button.onclick = () => show(one.latent);
    return el("li", {}, button);
  }));
  $("count").textContent = some.length === data.latents.length ? `${some.length} latents` : `${some.length} of ${data.latents.length} latents`;
}
function show(latent, first = false) {
  current = latent;
  $("latent").replaceChildren(...detail(byNumber.get(latent)));
  list();
  history.replaceState(null, "", `#latent-${latent}`);
  if (first) return;
  const button = document.querySelector("#list [aria-current=true]"), box = $("list");
  if (button) box.scrollTop = Math.min(Math.max(box.scrollTop, button.offsetTop - box.offsetTop + button.offsetHeight - box.clientHeight), button.offsetTop - box.offsetTop);
  if (innerWidth < 768) $("latent").scrollIntoView();
  else if ($("latent").getBoundingClientRect().top < 0) $("latent").scrollIntoView();
}

// Overview.
function overview() {
  const run = data.run, chip = (name, value) => value !== undefined && value !== null && el("span", {}, `${name}${value}`);
  $("chips").append(...[chip("", run.architecture), chip("model ", run.model), chip("", run.hook_out ? `${run.hook_point} to ${run.hook_out}` : run.hook_point), chip("text ", run.dataset), chip("", `${data.d_sae.toLocaleString("en")} latents`),
    run.l0 !== undefined && chip("L0 ", number(run.l0)), run.fvu !== undefined && chip("FVU ", number(run.fvu)),
    run.delta_ce !== undefined && chip("CE loss added ", `${number(run.delta_ce)} nats`), chip("seed ", run.seed),
    data.other && chip("compared with ", data.other.run_id)].filter(Boolean));
  const { edges, counts } = data.densities, power = (value) => percent(10 ** value, 2);
  const first = Math.max(0, counts.findIndex((count) => count)), shown = { counts: counts.slice(first), low: edges[first], high: edges.at(-1) };
  const decades = edges.filter((edge) => edge >= shown.low && Number.isInteger(edge) && (shown.low > -5 || edge % 2 === 0));
  $("all").append(el("p", {}, `${data.n_dead.toLocaleString("en")} of ${data.d_sae.toLocaleString("en")} latents are never active on the ` +
    `${data.n_tokens.toLocaleString("en")} held-out tokens. How many of the others are active on which fraction of the tokens:`), bars(shown, "Densities of the latents", power, decades));
  if (data.other && data.other.mean_cosine !== null) $("all").append(el("p", {}, `Mean cosine with the counterparts in ${data.other.run_id}: ` +
    `${number(data.other.mean_cosine)} (best one-to-one assignment of the latents that are active).`));
  if (data.latents.length < data.d_sae) $("all").append(el("p", { class: "faint" }, `This page has ${data.latents.length} of them.`));
}

// What a pointer, or a finger, is on.
function tip(event) {
  const on = event.target.closest?.("[data-tip]");
  $("tip").hidden = !on;
  if (!on) return;
  const box = on.getBoundingClientRect();
  $("tip").textContent = on.dataset.tip;
  $("tip").style.left = `${Math.max(4, Math.min(box.left, innerWidth - 220)) + scrollX}px`;
  $("tip").style.top = `${box.bottom + 4 + scrollY}px`;
}
document.addEventListener("pointerover", tip);
document.addEventListener("click", tip);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== $("search")) {
    event.preventDefault();
    $("search").focus();
  }
  if (!["ArrowDown", "ArrowUp"].includes(event.key) || document.activeElement === $("sort") || event.altKey || event.ctrlKey || event.metaKey) return;
  const some = found().map((one) => one.latent), next = some.indexOf(current) + (event.key === "ArrowDown" ? 1 : -1);
  if (next < 0 || next >= some.length) return;
  event.preventDefault();
  show(some[next]);
});
$("sort").append(...orders.map(([label], index) => el("option", { value: index }, label)));
$("sort").onchange = list;
$("search").oninput = () => {
  list();
  const some = found();
  if (some.length && (String(some[0].latent) === $("search").value.trim() || !some.some((one) => one.latent === current))) show(some[0].latent);
};
$("lines").onchange = () => document.body.classList.toggle("lines", $("lines").checked);
overview();
const asked = Number(location.hash.replace("#latent-", ""));
if (data.latents.length) show(location.hash && byNumber.has(asked) ? asked : found()[0].latent, true);
