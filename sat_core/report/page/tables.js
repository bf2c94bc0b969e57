// Headings become buttons: numbers sort from high to low first, a third click restores the order of the study.
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows],
    heads = [...table.tHead.rows].at(-1).cells;
  for (const head of heads) {
    const text = head.textContent.trim(),
      column = head.cellIndex,
      button = document.createElement("button");
    if (!text) continue;
    const word = (row) => row.cells[column].textContent.trim(),
      number = (row) => parseFloat(word(row).replace("−", "-"));
    const numeric = rows.some((row) => !isNaN(number(row)));
    const cycle = numeric ? ["none", "descending", "ascending"] : ["none", "ascending", "descending"];
    head.ariaSort = "none";
    button.type = "button";
    button.textContent = text;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const order = cycle[(cycle.indexOf(head.ariaSort) + 1) % 3],
        sign = order === "ascending" ? 1 : -1;
      for (const other of heads) if (other.ariaSort) other.ariaSort = "none";
      head.ariaSort = order;
      const compare = (a, b) =>
        numeric
          ? isNaN(number(a)) - isNaN(number(b)) || sign * (number(a) - number(b)) || 0
          : sign * word(a).localeCompare(word(b));
      table.tBodies[0].append(...(order === "none" ? rows : [...rows].sort(compare)));
    });
  }
}
