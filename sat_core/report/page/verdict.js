// AutoAttack's verdict image by image: how many each attack broke, class by class, and every image.
const WORDS = { clean: "wrong when clean", "": "robust" };
const SHADES = ["#D55E00", "#E69F00", "#F0E442", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#999999"];

function verdictPart({ names, broken, wrong, images }) {
  const { index, label } = study.images[images],
    words = names.map((name) => WORDS[name] ?? name);
  const errors = [...label.keys()].filter((place) => names[broken[place]] === "clean");
  const mistaken = new Map(errors.map((place, i) => [place, wrong[i]]));
  const classes = [...new Set(label)].sort((a, b) => a - b),
    places = new Map(classes.map((one) => [one, []]));
  label.forEach((one, place) => places.get(one).push(place));
  const counts = (of) => names.map((_, i) => of.filter((place) => +broken[place] === i).length);
  const rows = [["all", counts([...label.keys()])], ...classes.map((one) => [String(one), counts(places.get(one))])];
  const table = tableOf(
    ["class", "images", ...words],
    rows.map(([name, found]) => [name, ...[found.reduce((a, b) => a + b), ...found].map(String)]),
  );
  const most = Math.max(...[...places.values()].map((of) => of.length)),
    filled = (value) =>
      classes.map((one) =>
        Array.from({ length: most }, (_, i) => (i < places.get(one).length ? value(places.get(one)[i]) : null)),
      );
  const tell = (place) =>
    `image ${index[place]}, of class ${label[place]}<br>${words[+broken[place]]}${mistaken.has(place) ? ` (taken for ${mistaken.get(place)})` : ""}`;
  const trace = {
    type: "heatmap",
    z: filled((place) => +broken[place]),
    y: classes.map(String),
    customdata: filled(tell),
    hovertemplate: "%{customdata}<extra></extra>",
    xgap: most < 100 ? 1 : 0,
    ygap: 1,
    zmin: -0.5,
    zmax: names.length - 0.5,
    colorscale: words.flatMap((_, i) => [
      [i / names.length, SHADES[i]],
      [(i + 1) / names.length, SHADES[i]],
    ]),
    colorbar: { tickvals: words.map((_, i) => i), ticktext: words, thickness: 14 },
  };
  const layout = {
    height: Math.max(240, 90 + 18 * classes.length),
    margin: { l: 50, r: 10, t: 40, b: 45 },
    xaxis: { title: { text: "images of the class" }, showgrid: false },
    yaxis: { title: { text: "class" }, type: "category", autorange: "reversed", showgrid: false },
  };
  return { table, make: () => ({ data: [trace], layout }) };
}
