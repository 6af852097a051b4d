"use strict";

// The table: a click on a heading sorts by it, what is unknown stays last.
const table = document.getElementById("table");
const body = table.tBodies[0];

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}

function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y)
    ? a.localeCompare(b, undefined, { numeric: true })
    : x - y;
}

function sortBy(heading) {
  const column = heading.cellIndex;
  const falls = heading.getAttribute("aria-sort") === "descending";
  const first = heading.classList.contains("n") ? "descending" : "ascending";
  const order = heading.hasAttribute("aria-sort") ? (falls ? "ascending" : "descending") : first;
  const sign = order === "ascending" ? 1 : -1;
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
  body.append(...rows.map(([, row]) => row));
}

for (const heading of table.tHead.rows[0].cells) {
  heading.firstElementChild.addEventListener("click", () => sortBy(heading));
}

// The filter: every word must be there; KEY=VALUE is an option of the run, whole.
const filter = document.getElementById("filter");

function isWanted(row, words) {
  const options = JSON.parse(row.dataset.words).map((option) => option.toLowerCase());
  const text = row.textContent.toLowerCase();
  return words.every((word) =>
    options.some((option) => option.includes("=") && option === word) ||
    (!/=./.test(word) && (text.includes(word) || options.some((option) => option.includes(word)))));
}

function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    row.hidden = !isWanted(row, words);
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent =
    words.length ? `${shown} of ${body.rows.length}` : "";
}

filter?.addEventListener("input", applyFilter);

// The plots, drawn again when the system turns from light to dark.
const drawn = document.getElementById("drawn");
const dark = matchMedia("(prefers-color-scheme: dark)");

function draw() {
  const { plots, themes } = JSON.parse(drawn.textContent);
  const config = themes[dark.matches ? "dark" : "light"];
  for (const place of document.querySelectorAll("[data-plot]")) {
    vegaEmbed(place, plots[place.dataset.plot], {
      config, actions: false, renderer: "svg",
      tooltip: { theme: dark.matches ? "dark" : "light" },
    }).catch((error) => { console.error(error); place.textContent = String(error); });
  }
}

if (drawn) {
  draw();
  dark.addEventListener("change", draw);
}
