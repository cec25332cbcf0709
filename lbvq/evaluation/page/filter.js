"use strict";
// Which videos the gallery shows, and what is marked in them.

const LEAST_IOU = DATA.curves.iou.thresholds[0];
const NO_FILTER = { kinds: [], least: false, class: "", cell: null, group: null, low: 0, high: 1, text: "" };
const VIDEOS = new Map(DATA.videos.map((video) => [video.id, { ...video, errors: [], cases: [], cost: 0 }]));

for (const error of DATA.analysis.errors) VIDEOS.get(error.video_id).errors.push(error);
for (const each of DATA.confusion.cases) VIDEOS.get(each.video_id).cases.push(each);
for (const row of DATA.analysis.per_video) VIDEOS.get(row.video_id).cost = row.cost;

/**
 * What a filter finds in a video: {errors, predictions, annotations}, the last two as sets of what is to be marked;
 * null if the video is not shown.
 */
function found(video, filter) {
  if (filter.group && !filter.group.ids.has(video.id)) return null;
  const wanted = filter.text.trim().toLowerCase();
  if (wanted && !`${video.id} ${video.name}`.toLowerCase().includes(wanted)) return null;
  const inRange = (score) => score === null || (filter.low <= score && score <= filter.high);
  const isWanted = (name) => !filter.class || name === filter.class;
  let errors = [];
  const marks = [];
  if (filter.kinds.length) {
    errors = video.errors.filter(
      (each) =>
        filter.kinds.includes(each.kind) &&
        (!filter.least || each.thresholds.includes(LEAST_IOU)) &&
        (isWanted(each.class) || isWanted(each.annotation_class)) &&
        inRange(each.score),
    );
    if (!errors.length) return null;
    marks.push(...errors);
  }
  if (filter.cell) {
    const scores = new Map(video.predictions.map((each) => [each.index, each.score]));
    const cases = video.cases.filter(
      (each) =>
        each.track_class === filter.cell.row &&
        each.found_class === filter.cell.column &&
        inRange(scores.get(each.prediction) ?? null),
    );
    if (!cases.length) return null;
    marks.push(...cases);
  }
  if (!filter.kinds.length && !filter.cell) {
    const predictions = video.predictions.filter((each) => isWanted(each.class) && inRange(each.score));
    const objects = filter.class ? video.objects.filter((each) => isWanted(each.class)) : [];
    const asksForScores = filter.low > 0 || filter.high < 1;
    if (asksForScores && !predictions.length) return null;
    if (filter.class && !predictions.length && !objects.length) return null;
    if (filter.class) marks.push(...objects.map((each) => ({ annotation: each.id })));
    if (filter.class || asksForScores) marks.push(...predictions.map((each) => ({ prediction: each.index })));
  }
  return { errors, ...marked(marks) };
}

/** Sets of the predictions and annotations that errors or confused cases are about. */
function marked(items) {
  const pick = (key) => new Set(items.map((each) => each[key] ?? null).filter((each) => each !== null));
  return { predictions: pick("prediction"), annotations: pick("annotation") };
}

const ORDERS = {
  "cost of errors": (a, b) => b.cost - a.cost,
  "number of errors": (a, b) => b.errors.length - a.errors.length,
  "number of objects": (a, b) => b.objects.length - a.objects.length,
  name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
};
