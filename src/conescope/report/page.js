// A chart is drawn when it comes near the window, the others one by one while nothing else is done,
// and all of them before the page is printed. A finger on a chart scrolls the page.
const touch = window.matchMedia("(pointer: coarse)").matches;
const undrawn = new Set(document.querySelectorAll(".plotly-graph-div"));
const startPlotly = () => {
  const code = document.createElement("script");
  code.textContent = document.getElementById("plotly").textContent;
  document.head.append(code);
};
const draw = (chart) => {
  if (!undrawn.delete(chart)) return;
  if (!window.Plotly) startPlotly();
  const { data, layout } = JSON.parse(document.querySelector(`script[data-chart="${chart.id}"]`).textContent);
  if (touch && chart.id !== "embedding-3d") layout.dragmode = false;
  if (isNight) recolour({ data, layout }, NIGHT);
  Plotly.newPlot(chart, data, layout, {
    displaylogo: false, responsive: true, plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d"], toImageButtonOptions: { filename: chart.id },
  });
  nameLegend(chart);
  chart.on("plotly_afterplot", () => nameLegend(chart));
};
// Charts have the colours of the day, or those of the night in their place; paper is always light.
const NIGHT = new Map(Object.entries(JSON.parse(document.getElementById("night").textContent)));
const DAY = new Map(Array.from(NIGHT, ([day, night]) => [night, day]));
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paper = window.matchMedia("print");
let isNight = dark.matches && !paper.matches;
const recolour = (part, colours, isColour = false) => {
  for (const [key, value] of Object.entries(part)) {
    const inside = Array.isArray(part) ? isColour : /color(scale)?$/.test(key);
    if (typeof value === "string") part[key] = inside ? colours.get(value) ?? value : value;
    else if (value && typeof value === "object" && !ArrayBuffer.isView(value)) recolour(value, colours, inside);
  }
};
const followScheme = (isPrinting) => {
  if (isNight === (dark.matches && !isPrinting)) return;
  isNight = !isNight;
  for (const chart of document.querySelectorAll(".js-plotly-plot")) {
    recolour({ data: chart.data, layout: chart.layout }, isNight ? NIGHT : DAY);
    Plotly.redraw(chart);
  }
};
for (const query of [dark, paper]) query.addEventListener("change", () => followScheme(paper.matches));
// The entries of a legend, which show and hide a line, are buttons for keyboards and screen readers.
const nameLegend = (chart) => {
  for (const entry of chart.querySelectorAll(".legend .traces")) {
    const toggle = entry.querySelector(".legendtoggle");
    if (!toggle) continue;
    const names = { tabindex: "0", role: "button", "aria-label": entry.textContent, "aria-pressed": entry.style.opacity !== "0.5" };
    for (const [name, value] of Object.entries(names)) toggle.setAttribute(name, value);
  }
};
document.addEventListener("keydown", (event) => {
  if (!event.target.matches(".legendtoggle") || ![" ", "Enter"].includes(event.key)) return;
  event.preventDefault();
  for (const kind of ["mousedown", "mouseup"]) event.target.dispatchEvent(new MouseEvent(kind, { bubbles: true }));
});
// Each chart has a task of its own, after the page has been shown, so that each is seen once it is drawn.
const waiting = [];
const drawWaiting = () => {
  const chart = waiting.shift();
  if (!chart) return;
  setTimeout(drawWaiting); // first, so that a chart that cannot be drawn does not hold up the others
  draw(chart);
};
const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    if (waiting.push(target) === 1) requestAnimationFrame(() => setTimeout(drawWaiting));
  }
}, { rootMargin: "300px" });
for (const chart of undrawn) near.observe(chart);
const later = window.requestIdleCallback ?? ((call) => setTimeout(call, 50));
const drawRest = () => {
  const [next] = undrawn;
  if (!next) return;
  later(drawRest);
  draw(next);
};
window.addEventListener("load", () => setTimeout(drawRest, 500));
window.addEventListener("beforeprint", () => {
  followScheme(true);
  undrawn.forEach(draw);
});
window.addEventListener("afterprint", () => followScheme(paper.matches));

// The slider's data are read when it is first moved.
let iterations;
const readIterations = () => {
  const data = JSON.parse(document.getElementById("iteration-data").textContent);
  const levels = Uint8Array.from(atob(data.levels), (letter) => letter.charCodeAt(0));
  const unit = (data.high - data.low) / 255;
  data.image = (place) => Array.from({ length: data.cells }, (_, row) => {
    const begin = (place * data.cells + row) * data.cells;
    return Float32Array.from(levels.subarray(begin, begin + data.cells), (level) => data.low + unit * level);
  });
  data.items = new Map(Array.from(document.querySelectorAll("#slider-samples li"),
    (item) => [Number(item.dataset.sample), item]));
  return data;
};
const slider = document.getElementById("iteration");
slider?.addEventListener("input", () => {
  const data = (iterations ??= readIterations());
  const place = Number(slider.value);
  const step = data.steps[place].toLocaleString("en");
  document.getElementById("iteration-shown").textContent = step;
  slider.setAttribute("aria-valuetext", "iteration " + step);
  const [x, y] = data.points[place];
  const ring = document.getElementById("slider-place");
  for (const name of ["slider-kernel", "slider-place", "slider-spectrum"]) draw(document.getElementById(name));
  Plotly.restyle("slider-kernel", { z: [data.image(place)] });
  Plotly.restyle(ring, { x: [[x]], y: [[y]] }, [ring.data.length - 1]);
  Plotly.restyle("slider-spectrum", { y: [data.eigenvalues[place]] }, [0]);
  for (const item of data.items.values()) item.hidden = true;
  for (const [sample, share] of data.samples[place]) {
    const item = data.items.get(sample);
    item.hidden = false;
    item.querySelector("b").textContent = (100 * share).toFixed(1) + "%";
    item.parentElement.append(item);
  }
});
