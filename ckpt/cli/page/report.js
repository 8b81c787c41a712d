"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const STATES = [
  ["absent", "not there"], ["zero", "zero"], ["file", "from the file"], ["shared", "shared memory"],
  ["stored", "stored"], ["unchanged", "unchanged since the checkpoint before"], ["changed", "changed since then"],
];
const PAGE = 4096;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return unit ? `${count.toFixed(1)} ${units[unit]}` : `${count} B`;
}

const milliseconds = (value) => (value >= 1000 ? `${(value / 1000).toFixed(2)} s` : `${value.toFixed(1)} ms`);
const plain = (value) => String(value);
const colour = (state) => `var(--page-${STATES[state][0]})`;

/* A table whose columns sort by a click; a column is {title, key, show, long}. Numbers sort as numbers. */
function table(name, columns, rows) {
  if (!rows.length) return make("p", { class: "quiet" }, "none");
  const body = make("tbody");
  const heads = columns.map((column) => {
    const isNumber = typeof rows[0][column.key] === "number";
    column.class = isNumber ? "number" : column.long ? "long" : "";
    const button = make("button", { type: "button" }, column.title);
    const head = make("th", { class: column.class, scope: "col", "aria-sort": "none" }, button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => (isNumber ? a[column.key] - b[column.key] : String(a[column.key]).localeCompare(String(b[column.key])));
      fill([...rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
    });
    return head;
  });
  function fill(sorted) {
    body.replaceChildren(...sorted.map((row) => make("tr", {}, ...columns.map((column) =>
      make("td", { class: column.class, "data-key": column.key, "data-value": row[column.key] }, (column.show || plain)(row[column.key]))))));
  }
  fill(rows);
  return make("div", { class: "scroll" }, make("table", { id: `table-${name}` }, make("thead", {}, make("tr", {}, ...heads)), body));
}

function put(id, ...children) {
  document.getElementById(id).append(...children);
}

/* One bar a checkpoint; the heights are shares of the highest. */
function chart(title, key, show) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const rows = data.checkpoints;
  const most = Math.max(1e-9, ...rows.map((row) => row[key]));
  svg.setAttribute("viewBox", "0 0 300 90");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: ${rows.map((row) => show(row[key])).join(", ")}`);
  const width = 300 / rows.length;
  rows.forEach((row, place) => {
    const bar = document.createElementNS(ns, "rect");
    const height = Math.max(1, (86 * row[key]) / most);
    for (const [name, value] of Object.entries({ x: place * width + width * 0.1, y: 90 - height, width: Math.min(40, width * 0.8), height })) bar.setAttribute(name, value);
    bar.setAttribute("data-value", row[key]);
    const tip = document.createElementNS(ns, "title");
    tip.textContent = `${row.id.slice(0, 12)} ${row.created}: ${show(row[key])}`;
    bar.append(tip);
    svg.append(bar);
  });
  return make("figure", { "data-chart": key }, svg, make("figcaption", {}, `${title}, at most ${show(most < 1e-6 ? 0 : most)}`));
}

function timeline() {
  put("timeline", make("div", { class: "charts" }, chart("Frozen", "frozen_ms", milliseconds), chart("Changed memory", "changed_bytes", bytes), chart("Stored", "stored_bytes", bytes)));
  put("checkpoints", table("checkpoints", [
    { title: "Checkpoint", key: "id", show: (id) => id.slice(0, 12) }, { title: "Created", key: "created" },
    { title: "Frozen", key: "frozen_ms", show: milliseconds }, { title: "Size", key: "image_bytes", show: bytes },
    { title: "Changed", key: "changed_bytes", show: bytes }, { title: "Stored", key: "stored_bytes", show: bytes },
    { title: "Tags", key: "tags" }, { title: "Message", key: "message", long: true },
  ], data.checkpoints.map((row) => ({ ...row, tags: row.tags.join(", ") }))));
}

function tree() {
  const known = new Set(data.processes.map((process) => process.pid));
  const children = (parent) => data.processes.filter((process) => (parent === null ? !known.has(process.parent) : process.parent === parent));
  const shown = new Set();
  const branch = (parent) => {
    // A checkpoint that lies may make a process its own ancestor.
    const found = children(parent).filter((process) => !shown.has(process));
    found.forEach((process) => shown.add(process));
    return found.length ? [make("ul", parent === null ? { class: "tree" } : {}, ...found.map((process) =>
      make("li", { "data-pid": process.pid },
        make("code", {}, `${process.pid} ${process.name}`), ` ${process.state}, uid ${process.uid}, ${process.threads} thread(s), ${bytes(process.stored_bytes)} stored `,
        make("span", { class: "quiet mono" }, process.command), ...branch(process.pid))))] : [];
  };
  put("tree", ...branch(null));
}

function legend(counts) {
  return make("div", { class: "legend" }, ...STATES.map(([name, title], state) =>
    counts[state] ? make("span", { style: `--colour: ${colour(state)}`, "data-state": name, "data-pages": counts[state] }, `${title}: ${bytes(counts[state] * PAGE)}`) : "").filter(Boolean));
}

function share(counts) {
  const all = counts.reduce((sum, count) => sum + count, 0) || 1;
  return make("div", { class: "share", role: "img", "aria-label": "shares of the states" }, ...counts.map((count, state) =>
    count ? make("i", { style: `--colour: ${colour(state)}; width: ${(100 * count) / all}%`, title: `${STATES[state][1]}: ${bytes(count * PAGE)}` }) : "").filter(Boolean));
}

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  return STATES.map(([name]) => {
    const text = style.getPropertyValue(`--page-${name}`).trim();
    return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  });
}

/* Every page is a cell, in the order of the addresses, line by line. */
function draw(canvas, states, colours) {
  if (!states.length) return;
  const cell = states.length > 65536 ? 1 : states.length > 4096 ? 3 : 6;
  const room = Math.max(60, canvas.parentElement.clientWidth);
  const columns = Math.min(states.length, Math.floor(room / cell));
  const lines = Math.ceil(states.length / columns);
  canvas.width = columns * cell;
  canvas.height = lines * cell;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  const gap = cell > 2 ? 1 : 0;
  for (let page = 0; page < states.length; page += 1) {
    const [red, green, blue] = colours[states[page]];
    const left = (page % columns) * cell, top = Math.floor(page / columns) * cell;
    for (let y = top; y < top + cell - gap; y += 1)
      for (let x = left; x < left + cell - gap; x += 1) {
        const at = 4 * (y * canvas.width + x);
        picture.data[at] = red; picture.data[at + 1] = green; picture.data[at + 2] = blue; picture.data[at + 3] = 255;
      }
  }
  context.putImageData(picture, 0, 0);
  canvas.dataset.columns = columns;
  canvas.dataset.cell = cell;
}

const maps = [];

function areaRow(area, where) {
  const canvas = make("canvas", { role: "img", "aria-label": `${area.pages} pages of ${area.kind} at ${area.start}` });
  const row = make("div", { class: "area", "data-start": area.start, "data-pages": area.pages, "data-stored": area.stored_pages },
    make("div", {}, make("p", { class: "mono" }, `${area.start}–${area.end} ${area.permissions}`),
      make("p", { class: "quiet" }, `${area.kind}, ${bytes(area.pages * PAGE)}, ${bytes(area.stored_pages * PAGE)} stored`),
      ...(area.path ? [make("p", { class: "quiet mono" }, area.path)] : []),
      ...(area.whole ? [] : [make("p", { class: "quiet" }, "only what is stored is drawn")])),
    make("div", {}, canvas));
  const map = { canvas, area, row, states: null };
  maps.push(map);
  canvas.addEventListener("mousemove", (event) => {
    if (!map.states) return;
    const scale = canvas.width / canvas.clientWidth, cell = Number(canvas.dataset.cell);
    const page = Math.floor((event.offsetY * scale) / cell) * Number(canvas.dataset.columns) + Math.floor((event.offsetX * scale) / cell);
    if (page < map.states.length) {
      const address = area.whole ? `0x${(BigInt(area.start) + BigInt(page) * BigInt(PAGE)).toString(16)}  ` : "";
      where.textContent = address + STATES[map.states[page]][1];
    }
  });
  return row;
}

function memory() {
  const sums = STATES.map((_, state) => data.spaces.reduce((sum, space) => sum + space.counts[state], 0));
  put("legend", legend(sums));
  const all = make("input", { type: "checkbox", id: "all-areas" });
  const where = make("p", { class: "where mono quiet", "aria-live": "polite" });
  put("memory", make("label", {}, all, " also areas of which nothing is stored"));
  for (const space of data.spaces) {
    put("memory", make("h3", {}, space.title), share(space.counts),
      make("div", { "data-space": space.name }, ...space.areas.map((area) => areaRow(area, where))));
  }
  put("memory", where);
  const show = () => {
    maps.forEach((map) => { map.row.hidden = !all.checked && !map.area.stored_pages; map.row.style.display = map.row.hidden ? "none" : ""; });
    paint();
  };
  all.addEventListener("change", show);
  show();
}

/* What is not on the screen yet is drawn when it comes there. */
let colours = palette();
const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (entry.isIntersecting) paintOne(maps.find((map) => map.canvas === entry.target));
}), { rootMargin: "400px" });

async function paintOne(map) {
  if (!map.states) map.states = await unpack(map.area.states);
  draw(map.canvas, map.states, colours);
}

function paint() {
  maps.forEach((map) => { watcher.unobserve(map.canvas); if (!map.row.hidden) watcher.observe(map.canvas); });
}

function sums() {
  const last = data.checkpoints[data.checkpoints.length - 1];
  const rows = [["Checkpoint", last.id.slice(0, 12)], ["Created", last.created.slice(0, 19).replace("T", " ")], ["Frozen", milliseconds(last.frozen_ms)], ["Images", bytes(last.image_bytes)],
    ["Stored", bytes(last.stored_bytes)], ["Processes", data.processes.length], ["Host", data.host]];
  put("sums", ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

document.getElementById("title").textContent = data.title;
document.getElementById("subtitle").textContent = data.subtitle;
sums();
timeline();
tree();
memory();
put("descriptors", table("descriptors", [{ title: "PID", key: "pid" }, { title: "fd", key: "fd" }, { title: "Kind", key: "kind" }, { title: "What", key: "subject", long: true }, { title: "Flags", key: "flags" }], data.descriptors));
put("sockets", table("sockets", [{ title: "Family", key: "family" }, { title: "Kind", key: "kind" }, { title: "State", key: "state" }, { title: "Local", key: "local", long: true }, { title: "Remote", key: "remote", long: true }], data.sockets));
put("files", table("files", [{ title: "Path", key: "path", long: true }, { title: "Kind", key: "kind" }, { title: "Size", key: "size_bytes", show: bytes }, { title: "Inode", key: "inode" }, { title: "Held by", key: "holders" }], data.files));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours = palette(); maps.forEach((map) => map.states && draw(map.canvas, map.states, colours)); });
let resized;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => maps.forEach((map) => map.states && !map.row.hidden && draw(map.canvas, map.states, colours)), 100); });
