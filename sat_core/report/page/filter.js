// Runs by defense, epsilon, seed, and by model and dataset where there are several: in the list, its parts and the charts.
const AXES = ["defense", "epsilon", "seed", "model", "dataset"];
const chosen = {};
/** Whether a run passes the filter. */
const passes = (run) => AXES.every((axis) => !chosen[axis] || chosen[axis].has(study.runs[run][axis]));

{
  const runs = Object.values(study.runs),
    place = document.getElementById("filter"),
    said = place.querySelector("output");
  for (const axis of AXES) {
    const names = new Map(runs.map((run) => [run[axis], axis === "defense" ? run.name : run[axis]]));
    if (names.size < 2) continue;
    const boxes = [...names].map(([value, name]) =>
      element("label", {}, element("input", { type: "checkbox", name: axis, value, checked: "" }), ` ${name}`),
    );
    place
      .querySelector("form")
      .append(element("fieldset", {}, element("legend", {}, axis === "epsilon" ? "ε" : axis), ...boxes));
  }
  const apply = () => {
    for (const axis of AXES) {
      const boxes = [...place.querySelectorAll(`[name=${axis}]`)];
      chosen[axis] = boxes.length ? new Set(boxes.filter((box) => box.checked).map((box) => box.value)) : null;
    }
    for (const shown of document.querySelectorAll("[data-run]")) shown.hidden = !passes(shown.dataset.run);
    said.textContent = `${Object.keys(study.runs).filter(passes).length} of ${runs.length} runs`;
    redraw();
  };
  place.addEventListener("change", apply);
  place.querySelector("form").addEventListener("reset", () => setTimeout(apply));
  place.hidden = false;
  apply();
}
