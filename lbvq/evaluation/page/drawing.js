"use strict";
// Frames with outlines on a canvas. What has one colour belongs together; a dashed outline is an error.

const OBJECT_COLORS = [
  "#22c55e", "#3b82f6", "#f97316", "#e879f9", "#facc15", "#06b6d4", "#ef4444", "#a3e635", "#8b5cf6", "#f9a8d4", "#14b8a6", "#fb923c",
];
const NO_OBJECT = "#f8fafc";
const GREY = "#8b929c";
const DIGITS = new Map([..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"].map((each, value) => [each, value]));

function objectColor(video, id) {
  const place = video.objects.findIndex((each) => each.id === id);
  return place < 0 ? NO_OBJECT : OBJECT_COLORS[place % OBJECT_COLORS.length];
}

/** Outlines as a path, with the place of its highest corner. */
function readOutlines(text) {
  const path = new Path2D();
  const top = { x: 0, y: Infinity };
  for (const loop of text.split(".")) {
    for (let place = 0; place < loop.length; place += 4) {
      const x = 64 * DIGITS.get(loop[place]) + DIGITS.get(loop[place + 1]);
      const y = 64 * DIGITS.get(loop[place + 2]) + DIGITS.get(loop[place + 3]);
      if (place) path.lineTo(x, y);
      else path.moveTo(x, y);
      if (y < top.y) Object.assign(top, { x, y });
    }
    path.closePath();
  }
  return { path, top };
}

/** What is drawn of the ground truth: {outlines, color, dashed, label, isMarked}. */
function truthShapes(video, marks) {
  return video.objects.map((each) => ({
    outlines: each.outlines,
    color: objectColor(video, each.id),
    dashed: each.crowd,
    label: each.class + (each.crowd ? " (crowd)" : ""),
    isMarked: marks.annotations.has(each.id),
  }));
}

/** The same of predictions with at least some score, and of marked ones; the best lies on top. */
function predictionShapes(video, marks, minScore) {
  const shown = video.predictions.filter((each) => each.score >= minScore || marks.predictions.has(each.index));
  return shown.reverse().map((each) => ({
    outlines: each.outlines,
    color: objectColor(video, each.track),
    dashed: each.fate !== "found",
    label: `${each.class} ${each.score.toFixed(2)}`,
    isMarked: marks.predictions.has(each.index),
  }));
}

/**
 * Draw the frame shown at `place`; without an image on grey. Marked shapes stand out, the others step back.
 * unit: cells of the grid in one pixel of the screen, so that lines and labels have the same size everywhere.
 */
function drawFrame(canvas, video, place, shapes, image, unit) {
  const context = canvas.getContext("2d");
  const scale = canvas.width / video.size[1];
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = GREY;
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.lineJoin = "round";
  const anyMarked = shapes.some((each) => each.isMarked);
  const labels = [];
  for (const shape of [...shapes].sort((a, b) => a.isMarked - b.isMarked)) {
    const text = shape.outlines[place];
    if (!text) continue;
    const { path, top } = readOutlines(text);
    const isFaint = anyMarked && !shape.isMarked;
    context.globalAlpha = isFaint ? 0.12 : shape.dashed ? 0.3 : 0.45;
    context.fillStyle = shape.color;
    context.fill(path, "evenodd");
    context.globalAlpha = isFaint ? 0.5 : 1;
    context.setLineDash([]);
    if (shape.isMarked) stroke(context, path, "#0f172a", 4.5 * unit);
    context.setLineDash(shape.dashed ? [5 * unit, 4 * unit] : []);
    stroke(context, path, shape.color, (shape.isMarked ? 2.5 : 1.5) * unit);
    if (!isFaint) labels.push([shape, top]);
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
  const taken = [];
  for (const [shape, top] of labels.reverse()) drawLabel(context, video, shape, top, unit, taken);
}

function stroke(context, path, color, width) {
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke(path);
}

/** Write a label above a shape, or below the labels that are there already. */
function drawLabel(context, video, shape, top, unit, taken) {
  const [height, width] = video.size;
  context.font = `600 ${11 * unit}px system-ui, sans-serif`;
  const text = shape.label.length > 26 ? `${shape.label.slice(0, 25)}…` : shape.label;
  const long = context.measureText(text).width + 6 * unit;
  const high = 14 * unit;
  const x = Math.max(0, Math.min(width - long, top.x - long / 2));
  let y = Math.max(0, Math.min(height - high, top.y - high - 2 * unit));
  while (taken.some((each) => x < each.x + each.long && each.x < x + long && Math.abs(y - each.y) < high)) y += high;
  taken.push({ x, y, long });
  context.globalAlpha = 0.85;
  context.fillStyle = "#0f172a";
  context.fillRect(x, y, long, high);
  context.globalAlpha = 1;
  context.fillStyle = shape.color;
  context.fillText(text, x + 3 * unit, y + 11 * unit);
}
