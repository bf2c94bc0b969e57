// What the scripts share: the study's data, elements, the colours of the page, and charts that wait until they are seen.
"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const dataOf = (run) => JSON.parse(document.getElementById(`data:${run}`).textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A table with headings; cells are text, or elements. The first cell of a row names it. */
function tableOf(headings, rows) {
  const row = (cells) =>
    element("tr", {}, ...cells.map((cell, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, cell)));
  const head = element("tr", {}, ...headings.map((text) => element("th", { scope: "col" }, text)));
  return element(
    "table",
    {},
    element("thead", {}, head),
    element("tbody", {}, ...rows.map(row)),
  );
}

/** A choice among [value, label] pairs; `changed` is called with the value. */
function choice(label, options, changed) {
  const select = element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
  select.addEventListener("change", () => changed(select.value));
  return element("label", {}, `${label} `, select);
}

let library;
/** Plotly, unpacked the first time it is asked for. */
const plotting = () =>
  (library ??= (async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) =>
      letter.charCodeAt(0),
    );
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(element("script", {}, await new Response(unpacked).text()));
    return Plotly;
  })());

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
/** Black is the ink of the page, dark or light. */
const ink = (text) => (text === "#000000" ? colour("ink") : text);

// Nothing of a study leaves the page: plotly's button that uploads a chart is off.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  displayModeBar: true,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d"],
};
const makers = new Map();
const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) (seen.unobserve(target), draw(target));
  },
  { rootMargin: "300px" },
);

/** Let `make`, which returns {data, layout}, draw into `place` once that is seen, and again whenever it would differ. */
function chart(place, make) {
  makers.set(place, make);
  seen.observe(place);
}

async function draw(place) {
  const plotly = await plotting(),
    make = makers.get(place);
  if (!make) return;
  const { data, layout } = make();
  await plotly.react(place, data, { ...themed(layout), uirevision: layout.uirevision ?? "kept" }, CONFIG);
  if ("drawn" in place.dataset) return;
  place.dataset.drawn = "";
  place.dispatchEvent(new Event("drawn"));
}

function redraw() {
  for (const place of makers.keys()) if ("drawn" in place.dataset) draw(place);
}

function forget(place) {
  makers.delete(place);
  if ("drawn" in place.dataset) Plotly.purge(place);
}

function themed(layout) {
  const axis = {
    gridcolor: colour("line"),
    zerolinecolor: colour("line"),
    linecolor: colour("soft"),
    automargin: true,
    exponentformat: "power",
  };
  const themed = {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    dragmode: layout.dragmode ?? "zoom",
  };
  for (const key of Object.keys(layout)) if (/^[xy]axis\d*$/.test(key)) themed[key] = { ...axis, ...layout[key] };
  themed.font = { color: colour("ink"), family: "system-ui, sans-serif", size: 13 };
  themed.hoverlabel = {
    bgcolor: colour("box"),
    bordercolor: colour("line"),
    font: { color: colour("ink") },
    align: "left",
  };
  themed.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("link") };
  return themed;
}

const narrow = matchMedia("(max-width: 700px)");
for (const change of [narrow, matchMedia("(prefers-color-scheme: dark)")]) change.addEventListener("change", redraw);

/** The layout of panels side by side, or below each other where the page is narrow, each under its title. */
function panels(titles, most, { x = {}, y = {}, height = 330 } = {}) {
  const columns = Math.min(titles.length, narrow.matches ? 1 : most),
    rows = Math.ceil(titles.length / columns);
  const layout = { height: 90 + rows * height, margin: { l: 55, r: 15, t: 60, b: 50 }, annotations: [] };
  layout.legend = { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" };
  layout.grid = { rows, columns, pattern: "independent", xgap: 0.16, ygap: 0.3 };
  titles.forEach((text, i) => {
    const n = i ? i + 1 : "";
    layout[`xaxis${n}`] = i + columns < titles.length ? { ...x, title: {} } : { ...x };
    layout[`yaxis${n}`] = { ...y };
    layout.annotations.push({
      text,
      x: 0.5,
      y: 1,
      xref: `x${n} domain`,
      yref: `y${n} domain`,
      yanchor: "bottom",
      showarrow: false,
    });
  });
  return layout;
}
const axes = (i) => ({ xaxis: `x${i ? i + 1 : ""}`, yaxis: `y${i ? i + 1 : ""}` });
