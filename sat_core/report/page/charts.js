// Charts of a table: the clean/robust plane, and the training of all of its runs.
const RED = "#C00000"; // of trivial runs, as in the figures
const describe = (run) => {
  const { clean, robust, state } = study.runs[run];
  return `${run}<br>${clean === null ? "not judged" : `clean ${clean} %, robust ${robust} %`}<br>${state}`;
};

/** Runs of a table that pass the filter and of which there is `what`: [number of the panel, defense, runs]. */
function* groups(table, what) {
  for (const [i, [model, epsilon]] of table.blocks.entries()) {
    for (const defense of Object.keys(table.looks)) {
      const of = (run) => run.model === model && run.epsilon === epsilon && run.defense === defense;
      const runs = table.runs.filter((run) => of(study.runs[run]) && what(study.runs[run]) && passes(run));
      if (runs.length) yield [i, defense, runs];
    }
  }
}

/** What traces of one defense share: a place in the legend, once. */
function looks(table, defense, runs, listed) {
  const first = !listed.has(defense);
  listed.add(defense);
  return {
    name: study.runs[runs[0]].name,
    legendgroup: defense,
    showlegend: first,
    hovertemplate: "%{customdata}<extra></extra>",
  };
}

function plane(table) {
  const range = [-3, 103],
    listed = new Set();
  const layout = panels(
    table.blocks.map((block) => block[2]),
    3,
    { x: { title: { text: "clean accuracy (%)" }, range }, y: { title: { text: "AutoAttack accuracy (%)" }, range } },
  );
  const data = [...groups(table, (run) => run.clean !== null)].map(([i, defense, runs]) => {
    const [shade, symbol] = table.looks[defense];
    const mark = ({ stale, external }) => (stale ? "‡" : "") + (external ? "ext." : "");
    return {
      ...looks(table, defense, runs, listed),
      ...axes(i),
      mode: "markers+text",
      customdata: runs.map(describe),
      runs,
      x: runs.map((run) => study.runs[run].clean),
      y: runs.map((run) => study.runs[run].robust),
      text: runs.map((run) => mark(study.runs[run])),
      textposition: "top right",
      marker: {
        color: ink(shade),
        size: 9,
        line: { color: runs.map((run) => (study.runs[run].trivial ? RED : ink(shade))), width: 2 },
        symbol,
      },
    };
  });
  return { data: [...data, ...published(table)], layout };
}

/** Hollow, what others have published of a table's cells; one place in the legend for all. */
function published(table) {
  return table.published.map(([defense, i, clean, robust, by], n) => ({
    ...axes(i),
    name: "published",
    legendgroup: "published",
    showlegend: n === 0,
    mode: "markers",
    x: [clean],
    y: [robust],
    hovertemplate: `${defense}, ${by}<br>clean ${clean} %, robust ${robust} %<extra></extra>`,
    marker: { color: ink(table.looks[defense][0]), size: 12, symbol: `${table.looks[defense][1]}-open` },
  }));
}

const histories = {};
const historyOf = (run) => (histories[run] ??= dataOf(run).history);

function curves(table, quantity) {
  const [label, scale] = study.quantities[quantity],
    listed = new Set();
  const layout = panels(
    table.blocks.map((block) => block[2]),
    3,
    { x: { title: { text: "epoch" } }, y: { title: { text: label } } },
  );
  layout.uirevision = quantity;
  const data = [...groups(table, (run) => run.begun)].map(([i, defense, runs]) => {
    const trace = {
      ...looks(table, defense, runs, listed),
      ...axes(i),
      mode: "lines",
      x: [],
      y: [],
      customdata: [],
      line: { color: ink(table.looks[defense][0]), width: 1.5 },
    };
    for (const run of runs) {
      const { epoch, [quantity]: values = [] } = historyOf(run);
      trace.x.push(...epoch.map((n) => n + 1), null);
      trace.y.push(...values.map((value) => (value === null ? null : value * scale)), null);
      trace.customdata.push(
        ...values.map((value, n) =>
          value === null ? "" : `${run}<br>epoch ${epoch[n] + 1}: ${+(value * scale).toPrecision(4)}`,
        ),
        "",
      );
    }
    return trace;
  });
  return { data, layout };
}

/** With the arrow keys from point to point, each told; Enter opens the run. */
function walkable(place) {
  const said = element("p", { class: "note", "aria-live": "polite" });
  place.after(said);
  let at = -1;
  place.addEventListener("keydown", (event) => {
    const points = (place.data ?? []).flatMap((trace, curveNumber) =>
      (trace.runs ?? []).map((run, pointNumber) => ({ run, curveNumber, pointNumber, trace })),
    );
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.target !== place || !points.length) return;
    if (step) {
      at = (at + step + points.length) % points.length;
      const { run, curveNumber, pointNumber, trace } = points[at];
      Plotly.Fx.hover(place, [{ curveNumber, pointNumber }], `${trace.xaxis}${trace.yaxis}`);
      said.textContent = describe(run).replaceAll("<br>", ": ");
      event.preventDefault();
    } else if (event.key === "Enter" && at >= 0) {
      event.preventDefault(); // or the key would go on to close what it has opened
      openRun(points[at % points.length].run);
    }
  });
}

for (const place of document.querySelectorAll("[data-chart=plane]")) {
  chart(place, () => plane(study.tables[place.dataset.table]));
  walkable(place);
  place.addEventListener(
    "drawn",
    () => place.on("plotly_click", ({ points: [point] }) => point.data.runs && openRun(point.data.runs[point.pointNumber])),
    { once: true },
  );
}
for (const place of document.querySelectorAll("[data-chart=curves]")) {
  let quantity = "validation_robust";
  const options = Object.entries(study.quantities).map(([name, [label]]) => [name, label]);
  const select = choice("Over the epochs:", options, (value) => {
    quantity = value;
    draw(place);
  });
  select.querySelector("select").value = quantity;
  place.before(element("p", { class: "controls" }, select));
  chart(place, () => curves(study.tables[place.dataset.table], quantity));
}
