// The part of each run, made of its data when it is opened and given up when it is closed.
const percent = (value) => (value === null ? "—" : `${value.toFixed(2)} %`);
const heading = (text) => element("h4", {}, text);
const scrolling = (label, content) =>
  element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, content);
const pre = (content) => element("pre", { tabindex: "0" }, JSON.stringify(content, null, 2));

/** An empty chart of so many pixels, which is drawn when it is seen. */
function canvas(label, make, height = 300) {
  const place = element("div", {
    class: "chart",
    role: "group",
    "aria-label": label,
    style: `min-height: ${height}px`,
  });
  if (make) chart(place, make);
  return place;
}

function saving(name, text, type) {
  const button = element("button", { type: "button" }, name);
  button.addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([text()], { type }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
  return button;
}

const csv = (columns) => {
  const names = Object.keys(columns),
    rows = columns[names[0]].map((_, i) => names.map((name) => columns[name][i] ?? ""));
  return [names, ...rows].map((row) => row.join(",")).join("\n") + "\n";
};

function training(history) {
  const shown = Object.entries(study.quantities).filter(([name]) => history[name]?.some((value) => value !== null));
  return () => {
    const layout = {
      ...panels(
        shown.map(([, [label]]) => label),
        3,
        { height: 190, x: { title: { text: "epoch" } } },
      ),
      showlegend: false,
    };
    const data = shown.map(([name, [label, scale]], i) => ({
      ...axes(i),
      name: label,
      x: history.epoch.map((n) => n + 1),
      y: history[name].map((value) => (value === null ? null : value * scale)),
      mode: "lines",
      line: { color: colour("link"), width: 1.5 },
      hovertemplate: "epoch %{x}: %{y:.4g}<extra></extra>",
    }));
    return { data, layout };
  };
}

const SHARPNESS = {
  lambda_max: ["λ max, the largest eigenvalue", "residual"],
  trace: ["trace", "trace_error"],
  relative_flatness: ["relative flatness", "relative_flatness_error"],
  loss: ["loss on the same images"],
  adversarial: ["adversarial accuracy on the same images"],
};

/** What was measured at the selected weights; the error is null where a number is exact. */
function sharpness(selected) {
  const digits = (value) => (Number.isFinite(value) ? value.toPrecision(4) : "—");
  const rows = Object.entries(SHARPNESS).filter(([key]) => key in selected);
  return tableOf(
    ["at the selected weights", "value", "error"],
    rows.map(([key, [name, error]]) => [name, digits(selected[key]), digits(selected[error])]),
  );
}

function curvature({ epochs, spectrum }) {
  return () => {
    const layout = {
      ...panels(["λ max over the epochs", "spectrum: eigenvalues and their weights"], 2, { height: 220 }),
      showlegend: false,
    };
    Object.assign(layout.xaxis, { title: { text: "epoch" } });
    Object.assign(layout.yaxis, { type: "log" });
    Object.assign(layout.xaxis2, { title: { text: "eigenvalue" } });
    Object.assign(layout.yaxis2, { type: "log" });
    const marker = { color: colour("link") };
    const over = {
      ...axes(0),
      x: epochs.map((of) => of.epoch),
      y: epochs.map((of) => of.lambda_max),
      mode: "lines+markers",
      marker,
      customdata: epochs.map((of) => 100 * of.adversarial),
      hovertemplate: "epoch %{x}: λ max %{y:.4g}, adversarial accuracy %{customdata:.1f} %<extra></extra>",
    };
    const density = {
      ...axes(1),
      x: spectrum.nodes,
      y: spectrum.weights,
      mode: "markers",
      marker: { ...marker, size: 5 },
      hovertemplate: "%{x:.4g}: %{y:.3g}<extra></extra>",
    };
    return { data: [over, density], layout };
  };
}

function example({ label, predictions, clean, perturbed, perturbation }) {
  const image = (src, alt, text) =>
    element("figure", {}, element("img", { src, alt, class: "pixels" }), element("figcaption", {}, text));
  return element(
    "div",
    { class: "example" },
    image(clean, `A clean test image of class ${label}`, `class ${label}, taken for ${predictions[0]}`),
    image(perturbed, "The same image, perturbed", `perturbed: taken for ${predictions[1]}`),
    image(perturbation, "What was added to it", "what was added: grey is none"),
  );
}

const shown = (value) => (value === undefined || value === null ? "—" : JSON.stringify(value));

function fill(place, run) {
  const of = dataOf(run),
    { clean, robust } = study.runs[run];
  const add = (...children) => place.append(...children);
  for (const note of of.notes) add(element("p", { class: "bad" }, note));
  if (clean !== null)
    add(
      element(
        "p",
        {},
        `Clean ${percent(clean)}, robust under AutoAttack ${percent(robust)}. ${study.runs[run].state}.`,
      ),
    );
  if (of.history)
    add(
      heading("Training"),
      canvas(`Training of ${run}`, training(of.history)),
      element(
        "p",
        { class: "save" },
        saving("history.csv", () => csv(of.history), "text/csv"),
      ),
    );
  if (of.examples.length) add(heading("Adversarial examples"), ...of.examples.map(example));
  if (of.verdict) {
    const { table, make } = verdictPart(of.verdict),
      { index, label } = study.images[of.verdict.images];
    const columns = () => ({ index, label, broken_by: [...of.verdict.broken].map((digit) => of.verdict.names[digit]) });
    add(
      heading("Verdict by image: which attack broke which"),
      scrolling(`Verdict by class, ${run}`, table),
      canvas(`Verdict by image, ${run}`, make),
      element(
        "p",
        { class: "save" },
        saving("autoattack.csv", () => csv(columns()), "text/csv"),
      ),
    );
  }
  if (of.curvature)
    add(
      heading("Curvature of the loss"),
      scrolling(`Curvature of ${run} at the selected weights`, sharpness(of.curvature.selected)),
      canvas(`Curvature of ${run}`, curvature(of.curvature)),
    );
  if (of.landscape) {
    const surface = canvas(`Loss landscape of ${run}`, null, 400);
    add(heading("Loss landscape"), surface);
    landscape(surface, { [run]: [run] });
  }
  add(heading("Settings"));
  if (of.settings.length)
    add(
      scrolling(
        `Settings of ${run}`,
        tableOf(
          ["differs from the study's default", "default", "this run"],
          of.settings.map(([name, usual, own]) => [name, shown(usual), shown(own)]),
        ),
      ),
    );
  else add(element("p", {}, "All are the study's default."));
  const all = Object.entries({ ...of.records, configuration: of.config }).filter(
    ([, content]) => Object.keys(content).length,
  );
  add(
    element(
      "details",
      {},
      element("summary", {}, "Everything on record: versions, checksums, all settings"),
      ...all.flatMap(([name, content]) => [element("h5", {}, name), pre(content)]),
    ),
  );
}

function empty(place) {
  for (const drawn of place.querySelectorAll(".chart")) forget(drawn);
  place.replaceChildren();
}

for (const part of document.querySelectorAll("details.run")) {
  const place = part.querySelector("div");
  part.addEventListener("toggle", () => (part.open ? fill(place, part.dataset.run) : empty(place)));
}

/** Open the part of a run and go there. */
function openRun(run) {
  const place = document.getElementById(run);
  place.parentElement.open = true;
  place.parentElement.scrollIntoView();
  place.parentElement.querySelector("summary").focus();
}
function follow() {
  const run = decodeURIComponent(location.hash.slice(1));
  if (study.runs[run]) openRun(run);
}
addEventListener("hashchange", follow);
follow();
