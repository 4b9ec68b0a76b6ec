"use strict";
const data = JSON.parse(document.getElementById("hwnas-data").textContent);
const figures = document.getElementById("hwnas-figures").textContent;
const root = document.documentElement;
// plotly.js would offer to upload the data to its maker's server: a report stays where it is
const options = {
  responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d"],
};
const element = (name, text, parent) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};

// Colours come from the page's style, so that plots follow the light or dark theme.
function paint() {
  const style = getComputedStyle(root);
  const colour = (name) => style.getPropertyValue(name).trim();
  const themed = figures.replace(/"@(fg|muted|grid|bg|card|accent)"/g, (_, name) => `"${colour("--" + name)}"`);
  for (const [id, figure] of Object.entries(JSON.parse(themed))) {
    const place = document.getElementById(id);
    Plotly.react(place, figure.data, figure.layout, options);
    if (place.dataset.wired) continue;
    place.dataset.wired = "yes";
    if (!place.on) continue;
    const pick = (event, hold) => {
      const index = event.points[0].customdata;
      if (Number.isInteger(index)) show(index, hold);
    };
    place.on("plotly_hover", (event) => pick(event, false));
    place.on("plotly_click", (event) => pick(event, true));
    place.on("plotly_unhover", () => show(held, true));
  }
}

function fact(list, name, text) {
  const line = element("div", undefined, list);
  element("dt", name, line);
  element("dd", text, line);
}

let held = data.start;
function show(index, hold) {
  const panel = document.getElementById("panel");
  if (index === null || !panel) return;
  if (hold) held = index;
  const point = data.points[index];
  panel.replaceChildren();
  element("h3", `${point.marks ? point.marks + " " : ""}query ${index + 1}: ${point.group}`, panel);
  const drawing = element("div", undefined, panel);
  drawing.className = "drawing";
  if (point.svg !== null) drawing.innerHTML = data.svgs[point.svg]; // drawn by hwnas, texts escaped there
  else drawing.textContent = "drawn for the front and the first architectures only";
  const list = element("dl", undefined, panel);
  data.columns.forEach((column, j) => {
    const value = point.values[j];
    if (value === null) return;
    fact(list, column.title, value.text);
    element("small", `${value.source}; ${value.sure}`, list);
  });
  if (point.violation) fact(list, "over budget", `${(100 * point.violation).toFixed(1)} %`);
  const where = element("p", undefined, panel);
  element("code", point.text, where);
  const command = element("pre", `hwnas export ${data.run} --arch ${point.key} --out models`, panel);
  command.title = "writes this network as a checked ONNX model";
  document.querySelectorAll("tr[data-index]").forEach((row) =>
    row.classList.toggle("chosen", Number(row.dataset.index) === index));
}

document.querySelectorAll("tr[data-index]").forEach((row) =>
  row.addEventListener("click", () => show(Number(row.dataset.index), true)));
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  const head = button.closest("th");
  const body = head.closest("table").tBodies[0];
  const place = [...head.parentNode.children].indexOf(head);
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const value = (row) => row.children[place].dataset.value ?? row.children[place].textContent;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // missing numbers stay below
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return falling ? -order : order;
  };
  body.append(...[...body.rows].sort(compare));
}));
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  paint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
paint();
show(data.start, true);
