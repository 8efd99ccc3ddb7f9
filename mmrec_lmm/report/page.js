"use strict";
// The script of the leaderboard page: it draws the table, the plot and the tickets from the JSON in the page, and keeps
// the current view in the address. It makes no network request.

const board = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const CHUNK = 100;  // rows to draw at once; the others follow later, to keep the page responsive
const ANY = "*", OWN = "own";  // values of a filter: all rows; only rows with their own features, no control runs

// Only these functions make elements. Children are nodes or text, never markup.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value != null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child != null && child !== false));
  return node;
}
const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const span = (kind, ...children) => make("span", {class: kind}, ...children);
const soft = text => make("p", {class: "soft"}, text);

// Formats of numbers
const NONE = "–";
const fixed = (value, digits = 4) => value == null ? NONE : value.toFixed(digits);
const signed = value => value == null ? NONE : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4);
const count = value => value == null ? NONE : value.toLocaleString("en");
const ends = (interval, format = fixed) =>  // a single seed has no interval
  interval?.low == null || interval.high == null ? "" : `${format(interval.low)} – ${format(interval.high)}`;
function short(value, units) {  // 93 with {h: 3600, min: 60, s: 1} is "1.6 min"
  if (value == null) return NONE;
  const [unit, size] = Object.entries(units).find(([, size]) => value >= size) ?? Object.entries(units).at(-1);
  const scaled = value / size;
  return `${Number(scaled.toFixed(scaled < 10 ? 1 : 0))} ${unit}`;
}
const duration = seconds => short(seconds, {d: 86400, h: 3600, min: 60, s: 1});
const bytes = value => short(value, {GiB: 2 ** 30, MiB: 2 ** 20, KiB: 2 ** 10});
const probability = p => p == null ? NONE : p < 0.0001 ? "< 0.0001" : p.toFixed(4);

// Rows, their names and their ranks
const distinct = values => [...new Set(values)];
const joined = (values, separator) => values.filter(Boolean).join(separator);
const keyOf = ({model, dataset, encoder, paradigm, modalities, control, split, submission}) =>
  joined([model, dataset, encoder || "-", paradigm, modalities.join("+") || "-", control, split, submission], "/");
const testedOn = ({dataset, split}) => joined([dataset, split], "/");  // only rows that agree on it can be compared
const nameOf = row => joined([row.model, row.encoder, row.paradigm, row.control], " · ");
const rows = board.rows.map((row, order) =>
  ({...row, order, key: keyOf(row), dataset: testedOn(row), scored: Object.keys(row.scores).length > 0}));
const byKey = new Map(rows.map(row => [row.key, row]));
const datasets = distinct(rows.map(row => row.dataset));
const paradigms = distinct(rows.filter(row => row.scored).map(row => row.paradigm));
const controls = distinct(rows.map(row => row.control).filter(Boolean));
const TIERS = ["reported", "recomputed", "replayed", "fresh"];  // of a board's submissions, from least to most
const tiers = TIERS.filter(tier => rows.some(row => row.tier === tier));
const tried = ({attempts}) => attempts && attempts.runs + attempts.earlier;
const gains = distinct(rows.flatMap(row => Object.keys(row.content_gain)));
const main = board.ranked_by || board.metrics[0];  // the metric that selected the runs; earlier files lack it
const sign = metric => (board.smaller ?? []).includes(metric) ? -1 : 1;  // 1: larger values are better
for (const dataset of datasets) {
  rows.filter(row => row.dataset === dataset && row.scores[main] && !row.control)
    .sort((a, b) => sign(main) * (b.scores[main].mean - a.scores[main].mean))
    .forEach((row, index) => { row.rank = index + 1; });
}

// The view: what is shown, in which order. The address keeps what differs from the default, for sharing.
const DEFAULT = {
  dataset: datasets[0] ?? ANY, model: ANY, encoder: ANY, paradigm: ANY, control: OWN, tier: ANY, failed: "",
  sort: "rank", order: "ascending", metric: main, on: "", row: "",
  columns: board.metrics.filter((metric, place) => place < 4 || metric === main).join(" "),
};
let view = {...DEFAULT};
const FILTERS = {
  dataset: {label: "Data set", all: "all data sets", of: row => row.dataset},
  model: {label: "Model", all: "all models", of: row => row.model},
  encoder: {label: "Encoder", all: "all encoders", of: row => row.encoder ?? "", names: {"": "none: files or ids"}},
  paradigm: {label: "Paradigm", all: "all paradigms", of: row => row.paradigm},
  control: {label: "Control", all: "with their twins", of: row => row.control ?? OWN, names: {[OWN]: "own features"}},
  tier: {
    label: "Tier", all: "all tiers", of: row => row.tier,
    names: Object.fromEntries(TIERS.map(tier => [tier, tier === TIERS.at(-1) ? tier : `${tier} or more`])),
    passes: (row, least) => TIERS.indexOf(row.tier) >= TIERS.indexOf(least),
  },
};
for (const filter of Object.values(FILTERS)) filter.options = distinct([ANY, ...rows.map(filter.of)]);
FILTERS.control.options = distinct([ANY, OWN, ...controls]);
FILTERS.tier.options = [ANY, ...tiers];
const leaves = (name, row) => view[name] === ANY
  || (FILTERS[name].passes?.(row, view[name]) ?? FILTERS[name].of(row) === view[name]);
const passes = (row, except) => Object.keys(FILTERS).every(name => name === except || leaves(name, row));
const shownMetrics = () => view.columns.split(" ").filter(Boolean);

function readAddress() {
  view = {...DEFAULT};
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (name in DEFAULT && (FILTERS[name]?.options.includes(value) ?? true)) view[name] = value;
  }
  if (!board.metrics.includes(view.metric)) view.metric = main;
  if (!datasets.includes(view.on)) view.on = "";
  view.columns = board.metrics.filter(metric => shownMetrics().includes(metric)).join(" ");
}
function change(part) {
  Object.assign(view, part);
  const differences = Object.entries(view).filter(([name, value]) => value !== DEFAULT[name]);
  const address = new URLSearchParams(differences).toString();
  history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
}

// Bars: one scale for each data set and metric, over the rows that pass the filter of controls
const scales = new Map();
function widen(id, interval) {
  const [low, high] = scales.get(id) ?? [Infinity, -Infinity];
  scales.set(id, [Math.min(low, interval.low ?? low), Math.max(high, interval.high ?? high)]);
}
function measure() {
  scales.clear();
  for (const row of rows.filter(row => leaves("control", row))) {
    for (const [metric, score] of Object.entries(row.scores)) widen(`${row.dataset} ${metric}`, score.interval);
    for (const gain of Object.values(row.content_gain).map(found => found[main]).filter(Boolean)) {
      widen(`${row.dataset} gain`, {low: gain.low ?? gain.mean, high: gain.high ?? gain.mean});
      widen(`${row.dataset} gain`, {low: 0, high: 0});
    }
  }
}
function bar({mean, low, high}, scale, base) {
  if (mean == null || !scale) return null;
  const [from, to] = scale;
  const share = value => Math.max(0, Math.min(1, to > from ? (value - from) / (to - from) : 0.5));
  const place = value => `${(4 + 92 * share(value)).toFixed(2)}%`;
  return make("span", {
    class: "range", "aria-hidden": "true", "--mean": place(mean), "--low": place(low ?? mean),
    "--high": place(high ?? mean), "--base": base == null ? "-9px" : place(base),
  });
}

// The table's columns: sort value, content, and width as [minimum in rem, share of the remaining space]
const text = value => value ? breakable(String(value)) : span("soft", NONE);
const breakable = value => make("span", null,  // names break after a sign, and within a word only where none fits
  value.split(/(?<=[:_/+-])/).flatMap((part, place) => place ? [make("wbr"), part] : [part]));
const unseen = text => span("unseen", text);
const star = () => span("star", make("span", {"aria-hidden": "true"}, "★"), unseen(" better than the baseline"));
// Marks: the result may reflect the training budget more than the model, or is compared with one that may
const marksOf = row => row?.marks ?? [];  // earlier files have none
const doubts = (row, key) => [
  ...marksOf(row),
  ...marksOf(byKey.get(key)).map(reason => `compared with ${key}, whose ${reason}`),
];
const mark = reasons => reasons.length > 0
  && make("span", {class: "doubt", title: reasons.join("\n")},
    make("span", {"aria-hidden": "true"}, "†"), unseen(` marked: ${reasons.join("; ")}`));
const estimate = (value, interval, format) =>
  make("div", {class: "score"}, value, span("ends", ends(interval, format)));
function scoreCell(row, metric) {
  const score = row.scores[metric];
  if (!score) return [text()];
  const best = score.best && unseen(" best");
  const base = byKey.get(score.against)?.scores[metric]?.mean;
  return [
    estimate(span("value", make(best ? "b" : "span", null, fixed(score.mean), best, score.star && star()),
      mark(doubts(row, score.against))), score.interval, fixed),
    bar({...score.interval, mean: score.mean}, scales.get(`${row.dataset} ${metric}`), base),
  ];
}
function gainCell(row, control) {
  const gain = row.content_gain[control]?.[main];
  if (!gain) return [text()];
  const value = span("value", signed(gain.mean), mark(doubts(row, row.twins?.[control])));
  return [estimate(value, gain, signed), bar(gain, scales.get(`${row.dataset} gain`), 0)];
}
function modelCell(row) {
  const open = make("button", {class: "open", type: "button", "aria-haspopup": "dialog"}, row.model);
  const twin = row.control && [" ", span("tag", row.control)];
  const partial = row.state === "partial" && [" ", span("tag bad", row.state)];
  const marked = marksOf(row).length > 0
    && [" ", make("span", {class: "tag bad", title: marksOf(row).join("\n")}, "† marked")];
  return [open, ...(twin || []), ...(partial || []), ...(marked || [])];
}
const IDENTITY = [
  {
    id: "rank", label: "Rank", width: [2.6, 0], number: true,
    value: row => row.rank, cell: row => [span("rank", row.rank ?? "")],
  },
  {id: "model", label: "Model", width: [5, 1.2], value: row => row.model, cell: modelCell},
  {id: "encoder", label: "Encoder", width: [4.6, 1.2], value: row => row.encoder},
  {id: "paradigm", label: "Paradigm", width: [3.9, 0.3], value: row => row.paradigm},
  {id: "modalities", label: "Modalities", width: [5.3, 0.6], value: row => row.modalities.join(" + ")},
  {id: "dataset", label: "Data set", width: [3.4, 0.5], value: row => row.dataset},
];
const metricColumn = metric => ({
  id: metric, label: metric, width: [6.3, 2], falling: true,
  value: row => row.scores[metric]?.mean, cell: row => scoreCell(row, metric),
});
const gainColumn = control => ({
  id: `gain ${control}`, label: `Gain over ${control}`, width: [7.1, 2], falling: true,
  value: row => row.content_gain[control]?.[main]?.mean, cell: row => gainCell(row, control),
});
const costColumn = (id, label, format) => ({
  id, label, width: [4, 0.2], number: true, value: row => row[id], cell: row => [format(row[id])],
});
const OF_BOARD = tiers.length ? [
  {id: "tier", label: "Tier", width: [5.6, 0.2], value: row => TIERS.indexOf(row.tier), cell: row => [text(row.tier)],
    falling: true},
  {id: "attempts", label: "Attempts", width: [4.2, 0.1], number: true, value: tried,
    cell: row => [span("value", count(tried(row)))]},
] : [];
let columns = [], lines = new Map();
function line(row) {  // the row's <tr>, made once
  if (lines.has(row)) return lines.get(row);
  const cell = column => make("td", {
    role: "cell", "data-label": column.label, class: column.number ? "number" : null,
  }, column.cell?.(row) ?? text(column.value(row)));
  const reason = () => make("td", {role: "cell", class: "reason"}, span("tag bad", row.state), " ", row.reason);
  const rest = row.scored ? columns.slice(IDENTITY.length).map(cell) : reason();
  const made = make("tr", {role: "row"}, IDENTITY.map(cell), rest);
  made.row = row;
  lines.set(row, made);
  return made;
}
const collator = new Intl.Collator("en", {numeric: true});
function compare(a, b) {  // rows without a value come last in both orders; equal ones keep the study's order
  const {value} = columns.find(column => column.id === view.sort) ?? columns[0];
  const [x, y] = [value(a) ?? null, value(b) ?? null];
  if (x === null || y === null || x === y) return (x === null) - (y === null) || a.order - b.order;
  const rising = typeof x === "string" ? collator.compare(x, y) : x - y;
  return (view.order === "ascending" ? rising : -rising) || a.order - b.order;
}

// Drawing the table
function renderHead() {
  measure();
  lines = new Map();
  columns = [
    ...IDENTITY, ...shownMetrics().map(metricColumn), ...gains.map(gainColumn),
    ...OF_BOARD, costColumn("seconds", "Training", duration), costColumn("memory", "Memory", bytes),
  ];
  const tracks = columns.map(({width: [least, share]}) => `minmax(${least}rem, ${share}fr)`).join(" ");
  const least = columns.reduce((sum, {width}) => sum + width[0] + 0.85, 0);
  fill(byId("table"), {"--tracks": tracks, "--least": `${least}rem`}, []);
  byId("head").replaceChildren(...columns.map(({id, label, number}) => make(
    "th", {role: "columnheader", scope: "col", class: number ? "number" : null, "data-id": id},
    make("button", {type: "button", click: () => sortBy(id)}, label))));
  byId("sort").replaceChildren(...columns.flatMap(({id, label}) => [
    make("option", {value: `ascending ${id}`}, `${label} ↑`),
    make("option", {value: `descending ${id}`}, `${label} ↓`),
  ]));
}
function sortBy(id) {
  const falling = view.sort === id ? view.order === "ascending" : columns.find(column => column.id === id).falling;
  change({sort: id, order: falling ? "descending" : "ascending"});
  renderRows();
}
function renderRows() {
  const chosen = rows.filter(row => passes(row) && (row.scored || view.failed)).sort(compare);
  byId("body").replaceChildren();
  drawOn(chosen);
  byId("rows-title").textContent = `${count(chosen.length)} of ${count(rows.length)} rows`;
  for (const head of byId("head").children) {
    if (head.dataset.id === view.sort) head.setAttribute("aria-sort", view.order);
    else head.removeAttribute("aria-sort");
  }
  byId("sort").value = `${view.order} ${view.sort}`;
}
let waiting = 0, undrawn = [];
function drawOn(chosen, size = CHUNK) {
  clearTimeout(waiting);
  byId("body").append(...chosen.slice(0, size).map(line));
  undrawn = chosen.slice(size);
  if (undrawn.length) waiting = setTimeout(() => drawOn(undrawn), 0);
}
function fit() {  // a table that is too wide scrolls in its box, also by keyboard
  const wide = byId("table").firstElementChild.scrollWidth > byId("table").clientWidth;
  byId("table").classList.toggle("scrolls", wide);
  byId("table").tabIndex = wide ? 0 : -1;
}
function render() {
  for (const name of Object.keys(FILTERS)) byId(`filter-${name}`).value = view[name];
  for (const box of document.querySelectorAll(".columns input")) box.checked = shownMetrics().includes(box.value);
  byId("failed").checked = Boolean(view.failed);
  byId("metric").value = view.metric;
  renderRows();
  renderPlot();
}

// The plot: the rows of a data set that pass the filters, and their Pareto front
const SHAPES = [  // one for each paradigm, drawn around 0, 0
  () => draw("circle", {class: "mark", r: 4.5}),
  () => draw("path", {class: "mark", d: "M0-5.5 5.2 4H-5.2Z"}),
  () => draw("rect", {class: "mark", x: -4.2, y: -4.2, width: 8.4, height: 8.4}),
  () => draw("path", {class: "mark", d: "M0-6 6 0 0 6-6 0Z"}),
];
const TIMES = [  // possible ticks of the time axis, in seconds
  0.001, 0.01, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 86400, 259200, 864000,
];
const BETWEEN = [  // for axes that are shorter
  ...[0.001, 0.01, 0.1, 1, 10].flatMap(power => [1, 1.5, 2, 3, 4, 5, 6, 8].map(digit => digit * power)),
  ...[60, 3600].flatMap(unit => [1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50].map(digit => digit * unit)),
  ...[1, 1.5, 2, 3, 4, 5, 7, 10].map(days => days * 86400),
].filter((time, place, all) => all.indexOf(time) === place).sort((a, b) => a - b);
const APART = 46;  // pixels between the ticks of the time axis, for their labels
const LETTER = 6.3;  // average width of a label's letters, in pixels
const shape = paradigm => SHAPES[paradigms.indexOf(paradigm) % SHAPES.length]();
let points = [];
function renderPlot() {
  const dataset = view.dataset !== ANY ? view.dataset : view.on || datasets[0], metric = view.metric;
  const quality = row => row.scores[metric]?.mean, better = row => sign(metric) * quality(row);
  const shown = rows
    .filter(row => row.dataset === dataset && passes(row, "dataset") && quality(row) != null && row.seconds > 0)
    .sort((a, b) => a.seconds - b.seconds || better(b) - better(a));
  byId("on").value = dataset;
  byId("plot").replaceChildren();
  points = [];
  if (!shown.length) {
    byId("plot").append(soft("No finished row of this choice has a training time."));
    return;
  }
  const width = byId("plot").clientWidth, height = Math.max(260, Math.min(360, width * 0.42));
  const [left, right, top, bottom] = [52, width - 14, 16, height - 40];
  const axis = (values, from, to, margin, least) => {  // maps values to pixels, with a margin at both ends
    const [low, high] = [Math.min(...values), Math.max(...values)], pad = (high - low) * margin || least;
    const place = value => from + (value - low + pad) / (high - low + 2 * pad) * (to - from);
    return {place, low: low - pad, high: high + pad};
  };
  const across = axis(shown.map(row => Math.log10(row.seconds)), left, right, 0.04, 0.3);
  const up = axis(shown.map(quality), bottom, top, 0.12, quality(shown[0]) * 0.05 || 0.01);
  const x = seconds => across.place(Math.log10(seconds)), y = up.place;
  const svg = draw("svg", {
    viewBox: `0 0 ${width} ${height}`, height, role: "group",
    "aria-label": `${metric} on ${dataset} against training time: ${shown.length} points. `
      + "Arrow keys move between them, Enter opens one.",
  });

  const extent = up.high - up.low, power = 10 ** Math.floor(Math.log10(extent / 5));
  const step = power * [1, 2, 5, 10].find(digit => extent / (power * digit) <= 6);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  for (let tick = Math.ceil(up.low / step) * step; tick <= up.high; tick += step) {
    svg.append(draw("line", {class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick)}),
      draw("text", {x: left - 8, y: y(tick) + 4, "text-anchor": "end"}, tick.toFixed(digits)));
  }
  const within = time => Math.log10(time) >= across.low && Math.log10(time) <= across.high;
  const [coarse, fine] = [TIMES.filter(within), BETWEEN.filter(within)];
  const times = coarse.length > 2 ? coarse : fine.length > 1 ? fine : distinct([shown[0].seconds, shown.at(-1).seconds]);
  const apart = times.reduce((kept, time) => kept.length && x(time) - x(kept.at(-1)) < APART ? kept : [...kept, time], []);
  for (const time of apart) {
    svg.append(draw("line", {class: "grid", x1: x(time), x2: x(time), y1: bottom, y2: bottom + 5}),
      draw("text", {x: x(time), y: bottom + 19, "text-anchor": "middle"}, duration(time)));
  }
  svg.append(draw("text", {x: 0, y: 4}, metric),
    draw("text", {x: right, y: height - 4, "text-anchor": "end"}, "training time, log scale"));

  const front = [];
  for (const row of shown) if (!front.length || better(row) > better(front.at(-1))) front.push(row);
  const stairs = front.map(row => `H${x(row.seconds)}V${y(quality(row))}`).join("");
  svg.append(draw("path", {class: "front", d: `M${x(front[0].seconds)} ${y(quality(front[0]))}${stairs}H${right}`}));

  points = shown.map(row => {
    const {mean, interval: {low, high}} = row.scores[metric], leads = front.includes(row);
    const whisker = leads && low != null && high != null
      && draw("line", {  // clipped to the plot
        class: "whisker", y1: Math.min(bottom, y(low)) - y(mean), y2: Math.max(top, y(high)) - y(mean),
      });
    const said = `${nameOf(row)}: ${metric} ${fixed(mean)}, ${duration(row.seconds)}`
      + (marksOf(row).length ? `, marked: ${marksOf(row).join("; ")}` : "");
    const node = draw("g", {
      class: leads ? "point on-front" : "point", transform: `translate(${x(row.seconds)} ${y(mean)})`, tabindex: -1,
      role: "button", "aria-haspopup": "dialog", "aria-label": leads ? `${said}, on the front` : said,
    });
    const reach = draw("circle", {r: 12, fill: "transparent"}), halo = draw("circle", {class: "halo", r: 9});
    fill(node, null, [whisker, reach, shape(row.paradigm), halo]);
    node.row = row;
    return node;
  });
  points[0].setAttribute("tabindex", 0);
  const leading = new Set(front);
  svg.append(...points.filter(({row}) => !leading.has(row)), ...points.filter(({row}) => leading.has(row)));

  const taken = shown.map(row => [x(row.seconds) - 5, y(quality(row)) - 5, 10, 10]);  // boxes: x, y, width, height
  const covers = ([a, b, c, d], [e, f, g, h]) => a < e + g && e < a + c && b < f + h && f < b + d;
  for (const row of front.toReversed()) {  // label it if there is room, left or right, in full or by the model
    const [px, py] = [x(row.seconds), y(quality(row))];
    const dagger = marksOf(row).length ? "†" : "";
    const places = [nameOf(row) + dagger, row.model + dagger].flatMap(label => {
      const long = label.length * LETTER;
      return [{label, at: px - 8, side: "end", box: [px - 8 - long, py - 21, long, 14]},
        {label, at: px + 8, side: "start", box: [px + 8, py - 21, long, 14]}];
    });
    const place = places.find(({box}) =>
      box[0] > left && box[0] + box[2] < width && !taken.some(other => covers(box, other)));
    if (!place) continue;
    taken.push(place.box);
    svg.append(draw("text", {class: "name", "aria-hidden": "true", x: place.at, y: py - 9, "text-anchor": place.side},
      place.label));
  }
  byId("plot").append(svg);
}
function point(row) {  // highlight one row in the plot and the table; null: none
  for (const node of document.querySelectorAll(".linked")) node.classList.remove("linked");
  const score = row?.scores[view.metric];
  byId("pointed").textContent = score && row.seconds
    ? `${nameOf(row)}: ${view.metric} ${fixed(score.mean)} (${ends(score.interval)}), ${duration(row.seconds)}` : "";
  if (!row) return;
  points.find(node => node.row === row)?.classList.add("linked");
  lines.get(row)?.classList.add("linked");
}
function walk(event) {  // keys move between points, as the Tab key stops at the plot only once
  const at = points.indexOf(event.target.closest(".point"));
  if (at < 0) return;
  const moves = {
    ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: points.length - 1,
    Enter: at, " ": at,
  };
  const to = points[moves[event.key]];
  if (!to) return;
  event.preventDefault();
  points[at].setAttribute("tabindex", -1);
  to.setAttribute("tabindex", 0);
  to.focus();
  if (to === points[at] && ["Enter", " "].includes(event.key)) openTicket(to.row);
}

// The ticket: all details of one row, in the dialog; its reproducibility record is the key `ticket` of the JSON
const isMapping = value => value !== null && typeof value === "object" && !Array.isArray(value);
const part = (title, ...content) => content.some(Boolean) && [make("h3", null, title), ...content.flat()];
const twoLines = (interval, format) =>
  interval ? [make("div", null, format(interval.mean)), make("small", null, ends(interval, format))] : NONE;
function plainTable(label, head, body) {
  if (!body.length) return null;
  const line = ([name, ...cells]) =>
    make("tr", null, make("th", {scope: "row"}, name), cells.map(cell => make("td", null, cell)));
  return make("div", {class: "wide", tabindex: 0, role: "region", "aria-label": label}, make("table", {class: "plain"},
    make("thead", null, make("tr", null, head.map(name => name ? make("th", {scope: "col"}, name) : make("td")))),
    make("tbody", null, body.map(line))));
}
function said(value) {
  if (Array.isArray(value)) return value.map(said).join(", ");
  return isMapping(value) ? JSON.stringify(value) : String(value ?? NONE);
}
function pairs(mapping) {  // nested mappings become nested lists
  const entries = Object.entries(mapping);
  return entries.length > 0 && make("dl", null, entries.flatMap(([name, value]) => [
    make("dt", null, name), make("dd", null, isMapping(value) ? pairs(value) : said(value)),
  ]));
}
const prefixed = (prefix, mapping) =>
  Object.fromEntries(Object.entries(mapping ?? {}).map(([name, value]) => [prefix + name, value]));
const freshOf = ({fresh}) => Object.fromEntries(
  Object.entries(fresh ?? {}).map(([name, value]) => [`fresh world: ${name.replace("_", " ")}`, fixed(value)]));
function command(line) {
  const code = make("code", null, line);
  const copy = async ({target}) => {
    let done = "Copied";
    try {
      await navigator.clipboard.writeText(line);
    } catch {  // pages over plain HTTP have no clipboard
      getSelection().selectAllChildren(code);
      done = "Selected";
    }
    target.textContent = done;
    setTimeout(() => { target.textContent = "Copy"; }, 1500);
  };
  const button = make("button", {class: "button", type: "button", "aria-live": "polite", click: copy}, "Copy");
  return make("div", {class: "command"}, code, button);
}
function testTable(row, metrics, against) {
  const head = ["", "mean, 95 % interval", "seeds"];
  if (against.length) head.push("difference", "effect", "p, corrected");
  return plainTable("Scores on test", head, metrics.map(metric => {
    const {mean, interval, seeds, difference, effect, p, star} = row.scores[metric];
    const tested = [twoLines(difference, signed), fixed(effect, 3), probability(p) + (star ? " ★" : "")];
    return [metric, twoLines({...interval, mean}, fixed), seeds.map(value => fixed(value)).join(" · "),
      ...(against.length ? tested : [])];
  }));
}
function named(key) {  // with its marks
  const reasons = marksOf(byKey.get(key));
  return reasons.length ? `${key} (marked †: ${reasons.join("; ")})` : key;
}
function ticketOf(row) {
  const metrics = board.metrics.filter(metric => row.scores[metric]);
  const against = distinct(metrics.map(metric => row.scores[metric].against).filter(Boolean));
  const byMetric = (title, first, found, format) => part(title, plainTable(title, [first, ...metrics],
    Object.entries(found).map(([name, values]) => [name, ...metrics.map(metric => twoLines(values[metric], format))])));
  const {replay, ...ticket} = row.ticket;
  const entries = Object.entries(ticket);
  const folded = entries.filter(([, value]) => isMapping(value))
    .map(([name, value]) => make("details", null, make("summary", null, name), pairs(value)));
  const state = row.state !== "finished" && row.state;
  const where = joined([row.dataset, row.modalities.join(" + "), row.rank && `rank ${row.rank}`, state], " · ");
  const cost = {
    "training, per seed": duration(row.seconds), "encoding and tuning": duration(row.encoder_seconds),
    "peak memory": bytes(row.memory), "parameters trained": count(row.parameters_trained),
  };
  return [
    make("div", {class: "ticket-head"},
      make("div", null, make("h2", {id: "ticket-title"}, nameOf(row)), make("div", {class: "soft"}, where)),
      make("button", {class: "button", type: "button", click: () => byId("ticket").close()}, "Close")),
    row.reason && make("p", null, row.reason),
    marksOf(row).length > 0 && make("p", {class: "marks"}, `† Marked: ${marksOf(row).join("; ")}.`),
    part("On test", testTable(row, metrics, against),
      against.length && soft(`Compared with ${against.map(named).join(", ")}.`)),
    part("Run it again", replay && [replay].flat().map(command)),
    byMetric("Slices", "", row.slices, fixed),
    byMetric("Content gain", "over features that are", row.content_gain, signed),
    ...Object.entries(row.twins ?? {}).filter(([, twin]) => marksOf(byKey.get(twin)).length > 0)
      .map(([control, twin]) => soft(`The twin ${control} is ${named(twin)}.`)),
    part("Cost", row.scored && pairs(cost)),
    part("Submission", row.submission
      && pairs({id: row.submission, tier: row.tier, ...prefixed("attempts: ", row.attempts), ...freshOf(row)})),
    part("Chosen on validation", pairs(row.parameters)),
    part("Runs", pairs(Object.fromEntries(row.runs.map((run, index) => [`seed ${row.seeds[index] ?? "?"}`, run])))),
    part("Reproducibility record", pairs(Object.fromEntries(entries.filter(([, value]) => !isMapping(value)))), folded),
  ].flat().filter(Boolean);
}
function openTicket(row) {
  byId("ticket-content").replaceChildren(...ticketOf(row));
  if (!byId("ticket").open) byId("ticket").showModal();
  byId("ticket").scrollTop = 0;
  change({row: row.key});
}

// The parts drawn once: the heading, the legends, the controls
const TESTS = {
  "t-test": "a paired t-test over users and seeds", "t-test-users": "a paired t-test over users",
  wilcoxon: "Wilcoxon's signed-rank test", permutation: "a paired permutation test",
};
function headOf() {  // what the rows have in common, and the day of the last run
  const tickets = rows.filter(row => row.scored).map(row => row.ticket ?? {});
  const list = values => {
    const found = distinct(values.filter(Boolean));
    return found.slice(0, 2).join("; ") + (found.length > 2 ? "; and others" : "");
  };
  const seeds = rows.filter(row => row.scored).map(row => row.seeds.join(", "));
  const versions = tickets.map(({versions}) => Object.entries(versions ?? {}).map(pair => pair.join(" ")).join(", "));
  const protocols = tickets.map(({config}) => config?.settings).filter(Boolean).map(settings =>
    `${settings.valid_metric} on validation selects, patience ${settings.stopping_step}, `
    + `at most ${count(settings.epochs)} epochs`);
  const last = tickets.map(({finished}) => finished ?? "").sort().at(-1)?.slice(0, 10);
  return Object.fromEntries(Object.entries({
    "last run": last, seeds: list(seeds), protocol: list(protocols), versions: list(versions),
  }).filter(([, value]) => value));
}
function explain() {
  const starred = rows.flatMap(row => Object.values(row.scores)).filter(score => score.star);
  const enough = starred.every(score => score.seeds.length > 2) ? ", with three seeds or more on both sides" : "";
  const tested = `Each row is tested against ${board.baseline || "its baseline"}, user by user, with `
    + `${TESTS[board.test] ?? board.test}, corrected over ${count(board.comparisons)} comparisons by `
    + `Holm–Bonferroni. A star marks a row that is better at p < ${board.alpha}${enough}.`;
  const detectable = (dataset, metric) => board.detectable[dataset]?.[metric];
  const known = shownMetrics().filter(metric => datasets.some(dataset => detectable(dataset, metric) != null));
  const sizes = plainTable("Data sets", ["", ...datasets], [
    ["users on test", ...datasets.map(dataset => count(board.users[dataset]))],
    ...known.map(metric => [`detectable ${metric}`, ...datasets.map(dataset => fixed(detectable(dataset, metric)))]),
  ]);
  if (known.length) sizes.append(soft("Detectable: the smallest difference that the data set can show."));
  const how = make("div", null,
    board.untested && make("p", {class: "untested"}, board.untested),
    make("p", null, `${board.head ? "Board" : "Study"} ${board.study}. `, board.comparisons ? tested : "No row is tested against another."),
    soft("Scores are means over users on test, each user averaged over the seeds, with 95 % intervals; "
      + "epoch and grid point are chosen on validation. All results are conditional on one split of the data."),
    !board.head && make("div", {class: "head"}, pairs(headOf())),
    rows.some(row => marksOf(row).length > 0) && soft("†: the figure may say more about the training budget or "
      + "the data than about the model, or is compared with one that may; point at it, or open the row, for the reason."),
    board.head && make("div", {class: "head"}, pairs(board.head)),
    board.notes.length > 0 && make("ul", {class: "notes"}, board.notes.map(note => make("li", null, note))));
  byId("how").append(how, sizes);
  byId("legend").append(
    ...paradigms.map(paradigm => make("span", null,
      draw("svg", {viewBox: "-7 -7 14 14", "aria-hidden": "true"}, shape(paradigm)), paradigm)),
    "Filled, on the line: no row is both better and cheaper.");
  byId("reading").textContent = `Rank is by ${main} within a data set, twins left out. Bold: best of its data set. `
    + `Bar: 95 % interval, with a dot at the mean and a tick at the baseline`
    + `${gains.length ? " (of a gain: at zero)" : ""}; a data set's rows share one scale per metric. `
    + "Training time is per seed, without the encoder's.";
}
function claimLine({better, than, encoder, cells, won, lost, testable, marked, ...claim}) {
  const doubt = () => mark(marked ? [`${marked} of ${cells} cells have a marked row`] : []);
  const counted = number => span("value", `${number} (${Math.round(100 * number / cells)} %)`, doubt());
  const starred = number => testable ? span("value", String(number), doubt()) : text();
  const name = encoder ? make("span", {class: "within"}, `with ${encoder}`) : `${better} over ${than}`;
  return [name, count(cells), counted(won), starred(claim.won_starred), counted(lost), starred(claim.lost_starred)];
}
function countClaims() {  // earlier files have no claims
  const claims = board.claims ?? [];
  byId("claims").hidden = !claims.length;
  if (!claims.length) return;
  const untested = claims.some(claim => claim.testable < claim.cells);
  const stars = `A star (★) is p < ${board.alpha} by ${TESTS[board.test] ?? board.test}, corrected over the `
    + `${count(board.claim_comparisons)} comparisons of all claims, with three seeds or more on both sides.`;
  fill(byId("claims"), null, [
    plainTable("Claims", ["", "cells", "better", "★", "worse", "★"], claims.map(claimLine)),
    soft("A cell is a pair of finished rows that differ in this alone, on one metric. It is better if its mean on test "
      + "is, by however little: where nothing differs, half of the cells are. "
      + (board.claim_comparisons ? stars : "Nothing was tested, as no pair has two seeds on both sides.")
      + " A count is no test: cells share users, rows and data sets."),
    untested && soft("Cells with fewer than three seeds on a side can have no star: with one seed some star would be "
      + "false in 15 to 30 % of the studies in which nothing differs."),
  ]);
}
const option = (value, label = value) => make("option", {value}, label);
function filterControl([name, {label, all, names, options}]) {
  const choose = ({target}) => {
    change({[name]: target.value});
    if (name === "control") renderHead();  // the scales of the bars depend on it
    render();
  };
  const idle = (name === "control" && !controls.length) || (name === "tier" && !tiers.length);
  return make("label", {hidden: idle}, label, make("select",
    {id: `filter-${name}`, change: choose},
    options.map(value => option(value, value === ANY ? all : names?.[value] ?? value))));
}
function sortControl() {  // for phones, which show no column heads
  const choose = ({target}) => {
    const [order, ...id] = target.value.split(" ");
    change({sort: id.join(" "), order});
    renderRows();
  };
  return make("label", {class: "phone"}, "Sort by", make("select", {id: "sort", change: choose}));
}
function metricsControl() {
  const choose = () => {
    const boxes = [...document.querySelectorAll(".columns input:checked")];
    change({columns: boxes.map(box => box.value).join(" ")});
    renderHead();
    renderRows();
    fit();
  };
  const box = metric => make("label", {class: "switch"},
    make("input", {type: "checkbox", value: metric, change: choose}), metric);
  const close = event => {
    if (event.key !== "Escape") return;
    event.currentTarget.open = false;
    event.currentTarget.firstChild.focus();
  };
  return make("details", {class: "columns", keydown: close}, make("summary", {class: "button"}, "Metrics"),
    make("fieldset", null, make("legend", {class: "unseen"}, "Metrics shown"), board.metrics.map(box)));
}
function failedControl() {
  const states = Object.groupBy(rows.filter(row => !row.scored), row => row.state);
  const counts = Object.entries(states).map(([state, found]) => `${count(found.length)} ${state}`).join(", ");
  const choose = ({target}) => {
    change({failed: target.checked ? "1" : ""});
    renderRows();
  };
  return make("label", {class: "switch", hidden: !counts},
    make("input", {type: "checkbox", role: "switch", id: "failed", change: choose}), `Show ${counts}`);
}
function remembered(theme) {  // stores `theme`, if given, and returns the stored one; storage may be blocked
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return theme;
  }
}
function applyTheme(chosen) {
  const theme = remembered(chosen);
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (theme) document.documentElement.dataset.theme = theme;
  byId("theme").textContent = dark ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", dark ? "Light theme" : "Dark theme");
}

function listen() {
  const on = (id, kind, act) => byId(id).addEventListener(kind, act);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  on("theme", "click", ({target}) => applyTheme(target.textContent.toLowerCase()));
  dark.addEventListener("change", () => applyTheme());
  on("skip", "click", event => {
    event.preventDefault();  // the address belongs to the view
    byId("table").focus();
  });
  on("metric", "change", ({target}) => {
    change({metric: target.value});
    renderPlot();
  });
  on("on", "change", ({target}) => {
    change(view.dataset === ANY ? {on: target.value} : {dataset: target.value});
    render();
  });
  on("body", "click", ({target}) => {
    const line = target.closest("tr");
    if (!line || String(getSelection())) return;  // selecting text opens nothing
    line.querySelector(".open").focus();
    openTicket(line.row);
  });
  on("plot", "click", ({target}) => {
    const node = target.closest(".point");
    if (!node) return;
    node.focus();
    openTicket(node.row);
  });
  on("plot", "keydown", walk);
  for (const kind of ["mouseover", "focusin"]) {
    on("body", kind, ({target}) => point(target.closest("tr")?.row ?? null));
    on("plot", kind, ({target}) => point(target.closest(".point")?.row ?? null));
  }
  on("body", "mouseleave", () => point(null));
  on("ticket", "click", ({target}) => { if (target === byId("ticket")) byId("ticket").close(); });  // a click outside
  on("ticket", "close", () => change({row: ""}));
  let width = byId("plot").clientWidth;
  new ResizeObserver(() => {
    fit();
    if (byId("plot").clientWidth === width) return;
    width = byId("plot").clientWidth;
    renderPlot();
  }).observe(byId("table"));
  addEventListener("beforeprint", () => drawOn(undrawn, Infinity));
  addEventListener("hashchange", restore);
}
function restore() {
  readAddress();
  renderHead();
  render();
  if (byKey.has(view.row)) openTicket(byKey.get(view.row));
}
applyTheme();
explain();
countClaims();
byId("filters").append(...Object.entries(FILTERS).map(filterControl), sortControl(), metricsControl(), failedControl());
byId("metric").append(...board.metrics.map(metric => option(metric)));
byId("on").append(...datasets.map(dataset => option(dataset)));
listen();
restore();
