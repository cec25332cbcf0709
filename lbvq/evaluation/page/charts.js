"use strict";
// Line charts as SVG. The legend stands beside the plot, and tells the values under the pointer.

const LINE_COLORS = ["#2563eb", "#ea580c", "#16a34a", "#9333ea", "#db2777", "#0891b2", "#854d0e", "#475569"];
const PLOT = { width: 460, height: 300, left: 44, right: 12, top: 12, bottom: 40 };

/**
 * series: Map of name -> values in [0, high], one for each x; null leaves a gap.
 * x: ascending positions; low and high of the axes; names of the axes.
 */
function lineChart({ title, x, series, xName, yName, xLow = 0, xHigh = 1, yHigh = 1, digits = 3 }) {
  const { width, height, left, right, top, bottom } = PLOT;
  const across = (value) => left + ((value - xLow) / (xHigh - xLow)) * (width - left - right);
  const down = (value) => height - bottom - (value / yHigh) * (height - top - bottom);
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of [0, 0.2, 0.4, 0.6, 0.8, 1].map((share) => share * yHigh)) {
    svg.append(
      makeSvg("line", { x1: left, x2: width - right, y1: down(value), y2: down(value), class: "grid" }),
      makeSvg("text", { x: left - 6, y: down(value) + 4, class: "tick end" }, String(+value.toFixed(2))),
    );
  }
  for (const place of x.filter((_, index) => index % Math.ceil(x.length / 11) === 0)) {
    svg.append(
      makeSvg("line", { x1: across(place), x2: across(place), y1: top, y2: height - bottom, class: "grid" }),
      makeSvg("text", { x: across(place), y: height - bottom + 16, class: "tick middle" }, String(+place.toFixed(2))),
    );
  }
  svg.append(
    makeSvg("text", { x: (left + width - right) / 2, y: height - 6, class: "axis middle" }, xName),
    makeSvg("text", { x: 12, y: (top + height - bottom) / 2, class: "axis middle", transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, yName),
  );
  const legend = make("ul", { class: "legend" });
  const values = [];
  [...series].forEach(([name, line], place) => {
    const color = LINE_COLORS[place % LINE_COLORS.length];
    const dash = place < LINE_COLORS.length ? "none" : "6 4";
    svg.append(makeSvg("path", { d: linePath(x, line, across, down), stroke: color, "stroke-dasharray": dash, class: "line" }));
    const value = make("b");
    const swatch = make("i");
    swatch.style.background = color;
    legend.append(make("li", {}, swatch, make("span", {}, name), value));
    values.push([line, value]);
  });
  const marker = makeSvg("line", { y1: top, y2: height - bottom, x1: -9, x2: -9, class: "marker" });
  const at = make("li", { class: "at" }, "\u00a0");
  legend.append(at);
  svg.append(marker);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const wanted = xLow + (((event.clientX - box.left) / box.width) * width - left) / (width - left - right) * (xHigh - xLow);
    const nearest = x.reduce((best, each, index) => (Math.abs(each - wanted) < Math.abs(x[best] - wanted) ? index : best), 0);
    marker.setAttribute("x1", across(x[nearest]));
    marker.setAttribute("x2", across(x[nearest]));
    at.textContent = `at ${xName} ${number(x[nearest], 2)}`;
    for (const [line, node] of values) node.textContent = number(line[nearest], digits);
  });
  svg.addEventListener("pointerleave", () => {
    marker.setAttribute("x1", -9);
    marker.setAttribute("x2", -9);
    at.textContent = "\u00a0";
    for (const [, node] of values) node.textContent = "";
  });
  return make("figure", { class: "chart" }, make("figcaption", {}, title), make("div", { class: "plot" }, svg, legend));
}

function linePath(x, line, across, down) {
  let path = "";
  let isDrawing = false;
  line.forEach((value, index) => {
    if (value !== null) path += `${isDrawing ? "L" : "M"}${across(x[index]).toFixed(1)} ${down(value).toFixed(1)}`;
    isDrawing = value !== null;
  });
  return path;
}
