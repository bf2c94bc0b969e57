// Planes through the loss, as surfaces to turn or as contours, side by side in one scale.
const PLANES = {
  random: "random directions",
  hessian: "directions of most curvature",
  input: "around the images",
  reattacked: "random directions, attacked anew",
};
const canTurn = Boolean(document.createElement("canvas").getContext("webgl"));
const transposed = (rows) => rows[0].map((_, j) => rows.map((row) => row[j]));

/** The highest loss that is shown: twice the 95 % quantile, as corners may be thousands of times higher. */
function highest(losses) {
  const sorted = losses
    .flat(2)
    .filter((loss) => loss !== null)
    .sort((a, b) => a - b);
  return Math.min(sorted.at(-1), 2 * sorted[Math.floor(0.95 * (sorted.length - 1))]);
}

function worth({ clean, adversarial, loss, lambda_max, trivial }) {
  const percent = (share) => (100 * share).toFixed(1);
  return `clean ${percent(clean)} %, adversarial ${percent(adversarial)} %<br>loss ${loss.toPrecision(3)}, λ max ${lambda_max.toPrecision(3)}${trivial ? "<br><b>trivial classifier</b>" : ""}`;
}

function surfaces(runs, planeName, view) {
  const found = runs.map((run) => [run, dataOf(run).landscape]).filter(([, of]) => of?.planes[planeName]);
  if (!found.length)
    return { data: [], layout: { height: 200, annotations: [{ text: "no run passes the filter", showarrow: false }] } };
  const [first, second] = study.planes[planeName],
    high = highest(found.map(([, of]) => of.planes[planeName].loss));
  const low = Math.min(...found.flatMap(([, of]) => of.planes[planeName].loss.flat().filter((loss) => loss !== null)));
  const layout = panels(
    found.map(([run, of]) => `<b>${study.runs[run].name}</b><br>${worth(of.worth)}`),
    3,
    { x: { title: { text: first } }, y: { title: { text: second } }, height: 380 },
  );
  Object.assign(layout, {
    coloraxis: { colorscale: "Viridis", cmin: low, cmax: high, colorbar: { title: { text: "loss" }, thickness: 12 } },
    uirevision: `${planeName}${view}`,
  });
  layout.margin.t = 90;
  const data = found.map(([, of], i) => {
    const { axis, loss } = of.planes[planeName],
      cut = loss.map((row) => row.map((value) => (value === null ? null : Math.min(value, high))));
    const trace = {
      x: axis,
      y: axis,
      z: transposed(cut),
      customdata: transposed(loss),
      coloraxis: "coloraxis",
      hovertemplate: "(%{x:.2f}, %{y:.2f}): loss %{customdata:.4g}<extra></extra>",
    };
    return view === "contours"
      ? { ...trace, type: "contour", ...axes(i) }
      : { ...trace, type: "surface", scene: `scene${i ? i + 1 : ""}` };
  });
  return { data, layout: view === "contours" ? layout : turned(layout, found.length, [low, high]) };
}

/** The same panels as scenes in space. */
function turned(layout, count, range) {
  const title = (text) => ({ title: { text }, color: colour("ink"), gridcolor: colour("line"), showbackground: false });
  const columns = layout.grid.columns,
    rows = layout.grid.rows;
  for (let i = 0; i < count; i++) {
    const n = i ? i + 1 : "",
      column = i % columns,
      row = Math.floor(i / columns);
    const domain = {
      x: [column / columns, (column + 1) / columns],
      y: [1 - (row + 1) / rows, 1 - row / rows - 0.06 / rows],
    };
    layout[`scene${n}`] = {
      domain,
      xaxis: title("1"),
      yaxis: title("2"),
      zaxis: { ...title("loss"), range },
      aspectmode: "cube",
      dragmode: "turntable",
      camera: { eye: { x: 1.35, y: 1.35, z: 0.8 }, center: { x: 0, y: 0, z: -0.12 } },
    };
    layout.annotations[i] = {
      ...layout.annotations[i],
      xref: "paper",
      yref: "paper",
      xanchor: "center",
      x: (column + 0.5) / columns,
      y: domain.y[1],
    };
    delete layout[`xaxis${n}`];
    delete layout[`yaxis${n}`];
  }
  delete layout.grid;
  return layout;
}

/** A chart of planes in `place`, with choices above it. `blocks`: title -> runs that are drawn side by side. */
function landscape(place, blocks) {
  const titles = Object.keys(blocks),
    there = Object.values(blocks)
      .flat()
      .flatMap((run) => Object.keys(dataOf(run).landscape?.planes ?? {}));
  const planes = Object.entries(PLANES).filter(([name]) => there.includes(name));
  const state = { block: titles[0], plane: planes[0][0], view: canTurn ? "surface" : "contours" };
  const controls = element("p", { class: "controls" });
  const add = (key, label, options) =>
    options.length > 1 &&
    controls.append(
      choice(label, options, (value) => {
        state[key] = value;
        draw(place);
      }),
    );
  add(
    "block",
    "Of:",
    titles.map((title) => [title, title]),
  );
  add("plane", "Plane:", planes);
  add(
    "view",
    "As:",
    canTurn
      ? [
          ["surface", "surface"],
          ["contours", "contours"],
        ]
      : [],
  );
  place.before(controls);
  chart(place, () => surfaces(blocks[state.block].filter(passes), state.plane, state.view));
  place.addEventListener("drawn", () => place.on("plotly_relayout", (change) => turnAll(place, change)), {
    once: true,
  });
}

/** One camera for all surfaces of a chart. */
function turnAll(place, change) {
  const moved = Object.keys(change).find((key) => /^scene\d*\.camera$/.test(key));
  if (!moved || place.dataset.turning) return;
  const others = Object.keys(place.layout).filter((key) => /^scene\d*$/.test(key) && `${key}.camera` !== moved);
  place.dataset.turning = "";
  Plotly.relayout(place, Object.fromEntries(others.map((key) => [`${key}.camera`, change[moved]]))).then(
    () => delete place.dataset.turning,
  );
}

for (const place of document.querySelectorAll("[data-chart=landscape]")) {
  const table = study.tables[place.dataset.table],
    blocks = {};
  for (const [model, epsilon, title] of table.blocks) {
    const runs = table.landscapes.filter(
      (run) => study.runs[run].model === model && study.runs[run].epsilon === epsilon && study.runs[run].planes,
    );
    if (runs.length) blocks[title] = runs;
  }
  if (Object.keys(blocks).length) landscape(place, blocks);
  else place.closest("figure").classList.remove("live");
}
