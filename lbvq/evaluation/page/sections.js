"use strict";
// The sections of the page, and the filter that all numbers lead to.

let filter = { ...NO_FILTER };
let order = Object.keys(ORDERS)[0];
const controls = {};

const gallery = new Gallery(make("div", { id: "gallery" }), (video) => viewer.open(video));
const viewer = new Viewer(document.getElementById("viewer"), () => gallery.shown, (video) => found(video, filter) || marked([]));

/** Show the videos of a filter; everything that is not named goes. */
function showVideos(wanted) {
  filter = { ...NO_FILTER, ...wanted };
  update();
  document.getElementById("videos").scrollIntoView({ block: "start" });
}

function showGroup(name, ids) {
  showVideos({ group: { name, ids: new Set(ids) } });
}

function update() {
  gallery.show(filter, order);
  for (const [kind, button] of controls.kinds) button.setAttribute("aria-pressed", String(filter.kinds.includes(kind)));
  controls.least.checked = filter.least;
  controls.class.value = filter.class;
  controls.low.value = filter.low;
  controls.high.value = filter.high;
  controls.text.value = filter.text;
  const own = [];
  const drop = (text, values) => own.push(make("button", { type: "button", class: "chip removable", title: "Remove", onclick: () => change(values) }, `${text} ✕`));
  if (filter.group) drop(filter.group.name, { group: null });
  if (filter.cell) drop(`${filter.cell.row} → ${filter.cell.column}`, { cell: null });
  controls.chosen.replaceChildren(...own);
  controls.count.textContent = `${gallery.shown.length} of ${VIDEOS.size} videos`;
  controls.nothing.hidden = gallery.shown.length > 0;
}

function change(values) {
  filter = { ...filter, ...values };
  update();
}

function section(id, title, ...content) {
  document.getElementById(id).append(make("h2", {}, title), ...content);
}

function note(...content) {
  return make("p", { class: "note" }, ...content);
}

// ---- scores

function fillAbout() {
  const entries = Object.entries(DATA.about).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]);
  document.getElementById("about").append(...entries);
}

function fillScores() {
  const tasks = Object.entries(DATA.scores);
  const main = tasks.some(([task]) => task === "segm") ? "segm" : tasks[0][0];
  for (const [task, scores] of tasks) {
    const tiles = Object.entries(scores).map(([name, value]) => {
      const interval = task === main ? range(DATA.analysis.intervals[name]) : "";
      const ids = DATA.sets[name];
      return make("button", { type: "button", class: name === "AP" ? "tile first" : "tile", title: "Show the videos", onclick: () => (ids ? showGroup(name, ids) : showVideos({})) },
        make("span", { class: "name" }, name), make("b", {}, number(value)), make("span", { class: "interval" }, interval || "\u00a0"));
    });
    section("scores", tasks.length > 1 ? `Scores: ${task}` : "Scores", make("div", { class: "tiles" }, ...tiles));
  }
  const { HOTA, DetA, AssA, IDF1 } = DATA.analysis.tracking;
  const tracking = Object.entries({ HOTA, DetA, AssA, IDF1 }).map(([name, value]) =>
    make("button", { type: "button", class: "tile", title: "Show the videos", onclick: () => showVideos({}) }, make("span", { class: "name" }, name), make("b", {}, number(value))));
  const share = `${Math.round(100 * DATA.draws.confidence)} % of ${DATA.draws.resamples} draws of the videos`;
  section("scores", "Tracking", make("div", { class: "tiles" }, ...tracking));
  document.getElementById("scores").append(note(`All in percent. Below a score: where ${share} lie.`));
}

// ---- where AP is lost

function fillLost() {
  const base = DATA.analysis.AP;
  const oracles = Object.entries(DATA.oracles).map(([name, { title, kinds }]) => ({ name, title, kinds, AP: DATA.analysis.oracles[name] }));
  const gain = (row) => (row.AP === null ? null : row.AP - base);
  const joined = DATA.analysis.identities.joined.map((each) => each.video_id);
  const open = (row) => (row.kinds.length ? showVideos({ kinds: row.kinds }) : showGroup("identities joined anew", joined));
  const best = Math.max(...oracles.map(gain), 1e-9);
  const first = table([
    { title: "AP if …", text: true, value: (row) => row.title, cell: (row) => link(row.title, () => open(row)) },
    { title: "AP", value: (row) => row.AP, cell: (row) => link(number(row.AP), () => open(row)) },
    { title: "gain", value: gain, cell: (row) => bar(link(signed(gain(row)), () => open(row)), gain(row) / best) },
  ], oracles, { id: "oracles" });
  const kinds = Object.entries(DATA.analysis.kinds).map(([kind, row]) => ({ kind, ...row }));
  const most = Math.max(...kinds.map((row) => row.cost), 1e-9);
  const second = table([
    { title: "errors", text: true, value: (row) => row.kind, cell: (row) => make("button", { type: "button", class: `chip kind-${row.kind}`, title: "Show the videos", onclick: () => showVideos({ kinds: [row.kind] }) }, row.kind) },
    { title: `at IoU ${LEAST_IOU}`, value: (row) => row.count, cell: (row) => link(String(row.count), () => showVideos({ kinds: [row.kind], least: true })) },
    { title: "mean", help: "Mean number over the IoU thresholds", value: (row) => row.mean_count, cell: (row) => link(number(row.mean_count, 1), () => showVideos({ kinds: [row.kind] })) },
    { title: "AP if mended", value: (row) => row.cost, cell: (row) => bar(link(signed(row.cost), () => showVideos({ kinds: [row.kind] })), row.cost / most) },
  ], kinds, { id: "kinds" });
  section("lost", "Where AP is lost", make("div", { class: "columns" }, first, second),
    note("What mending all errors of one kind brings, and nothing else; costs do not add up. Every number leads to its videos."));
}

// ---- curves and groups

function fillCurves() {
  const { recalls, all, classes, iou } = DATA.curves;
  const place = make("div");
  const draw = (name) => {
    const curves = name ? classes[name] : all;
    place.replaceChildren(lineChart({ title: name ? `Precision over recall: ${name}` : "Precision over recall, mean over classes", x: recalls, series: new Map(Object.entries(curves)), xName: "recall", yName: "precision" }));
  };
  const options = Object.keys(classes).map((name) => make("option", { value: name }, name));
  const select = make("select", { id: "curve-class", onchange: () => draw(select.value) }, make("option", { value: "" }, "all classes"), ...options);
  draw("");
  const strict = lineChart({ title: "AP over the IoU that is asked for", x: iou.thresholds, series: new Map([["AP", iou.AP]]), xName: "IoU", yName: "AP (percent)", xLow: iou.thresholds[0], xHigh: Math.max(iou.thresholds.at(-1), iou.thresholds[0] + 0.01), yHigh: 100 });
  section("curves", "Curves", make("label", { class: "field" }, "Class ", select), make("div", { class: "columns" }, place, strict));
}

const GROUPS = {
  size: "Mean area in pixels", length: "Visible frames", occlusion: "Occlusion", num_objects: "Objects in the video", camera_motion: "Motion of the camera",
};

function fillGroups() {
  const tables = Object.entries(DATA.analysis.by).filter(([, rows]) => rows.length).map(([name, rows]) => {
    const open = (row) => showGroup(`${GROUPS[name] || name}: ${row.range}`, row.video_ids);
    return make("div", {}, make("h3", {}, GROUPS[name] || name), table([
      { title: "range", text: true, value: (row) => row.range, cell: (row) => link(row.range, () => open(row)) },
      { title: "tracks", value: (row) => row.tracks, cell: (row) => link(String(row.tracks), () => open(row)) },
      { title: "AP", value: (row) => row.AP, cell: (row) => bar(link(number(row.AP), () => open(row)), row.AP / 100) },
      { title: "AP50", value: (row) => row.AP50, cell: (row) => link(number(row.AP50), () => open(row)) },
    ], rows));
  });
  section("groups", "AP of groups", make("div", { class: "columns three" }, ...tables));
}

// ---- confused classes

const MAX_CLASSES = 40; // in the matrix; the list of pairs has all

function fillConfusion() {
  const { table: counts, missed, nothing, min_score: minScore, iou } = DATA.confusion;
  const rows = new Map(Object.entries(counts).map(([name, row]) => [name, new Map(Object.entries(row))]));
  const total = (name) => [...(rows.get(name)?.values() || [])].reduce((sum, each) => sum + each, 0);
  const columnTotal = (name) => [...rows.values()].reduce((sum, row) => sum + (row.get(name) || 0), 0);
  const used = [...rows.keys()].filter((name) => name !== nothing && total(name) + columnTotal(name) > 0);
  used.sort((a, b) => total(b) - total(a));
  const shown = used.slice(0, MAX_CLASSES);
  const open = (row, column) => showVideos({ cell: { row, column } });
  const cell = (row, column) => {
    const value = rows.get(row)?.get(column) || 0;
    const node = make("td", { class: row === column ? "right" : "wrong" }, value ? link(String(value), () => open(row, column), `${row} found as ${column}`) : "");
    if (value) node.style.setProperty("--share", `${Math.round(10 + 75 * (value / Math.max(1, total(row))))}%`);
    return node;
  };
  const columns = [...shown, missed];
  const head = make("tr", {}, make("th", {}, "track ↓ found as →"), ...columns.map((name) => make("th", { class: "turned" }, make("span", {}, name))));
  const body = [...shown, nothing].map((row) => make("tr", {}, make("th", { title: row }, row), ...columns.map((column) => (row === nothing && column === missed ? make("td") : cell(row, column)))));
  const pairs = [...rows].flatMap(([row, own]) => [...own].filter(([column]) => row !== column).map(([column, value]) => ({ row, column, value })));
  pairs.sort((a, b) => b.value - a.value);
  const list = table([
    { title: "track", text: true, value: (each) => each.row },
    { title: "found as", text: true, value: (each) => each.column },
    { title: "times", value: (each) => each.value, cell: (each) => link(String(each.value), () => open(each.row, each.column)) },
  ], pairs.slice(0, 200));
  section("confusion", "Confused classes",
    make("div", { class: "matrix-and-list" }, make("div", { class: "scroll tall" }, make("table", { id: "matrix" }, make("thead", {}, head), make("tbody", {}, ...body))), make("div", { class: "tall" }, list)),
    note(`Predictions with a score of at least ${minScore} choose, best first, among the tracks that they overlap by ${iou}, whatever the class.`,
      used.length > shown.length ? ` The matrix has the ${shown.length} most frequent of ${used.length} classes.` : "",
      pairs.length > 200 ? ` The list has the 200 most frequent of ${pairs.length} pairs.` : ""));
}

// ---- classes

function fillClasses() {
  const details = new Map(Object.entries(DATA.analysis.per_class));
  const rows = DATA.classes.map((row) => ({ ...row, own: details.get(row.class) || details.get(`${row.class} (${row.id})`) }));
  const open = (row) => showVideos({ class: row.class });
  const score = (name) => ({ title: name, value: (row) => row[name], cell: (row) => link(number(row[name]), () => open(row)) });
  const gains = Object.entries(DATA.oracles).filter(([, { kinds }]) => kinds.length === 1 || kinds.includes("localisation")).map(([name, { title, kinds }]) => ({
    title: `+ ${name}`, help: `Gain if ${title}`,
    value: (row) => (row.own ? row.own.oracles[name] - row.own.AP : null),
    cell: (row) => (row.own ? link(signed(row.own.oracles[name] - row.own.AP), () => showVideos({ class: row.class, kinds })) : "–"),
  }));
  const groups = DATA.classes.some((row) => row.group) ? [{ title: "group", text: true, value: (row) => row.group }] : [];
  const columns = [
    { title: "class", text: true, value: (row) => row.class, cell: (row) => link(row.class, () => open(row)) }, ...groups,
    { title: "tracks", value: (row) => row.tracks, cell: (row) => link(String(row.tracks), () => open(row)) },
    { title: "predictions", value: (row) => row.predictions, cell: (row) => link(String(row.predictions), () => open(row)) },
    { title: "AP", value: (row) => row.AP, cell: (row) => bar(link(number(row.AP), () => open(row)), row.AP / 100) },
    { title: "interval", text: true, value: (row) => row.own?.interval[0] ?? null, cell: (row) => make("span", { class: "muted" }, range(row.own?.interval)) },
    score("AP50"), score("AP75"), score("AR"), ...gains,
  ];
  section("classes", "Classes", make("div", { class: "tall" }, table(columns, rows, { id: "class-table" })));
}

// ---- videos

function fillVideos() {
  const toggle = (kind) => change({ kinds: filter.kinds.includes(kind) ? filter.kinds.filter((each) => each !== kind) : [...filter.kinds, kind] });
  controls.kinds = new Map(DATA.kinds.map((kind) => [kind, make("button", { type: "button", class: `chip kind-${kind}`, "aria-pressed": "false", onclick: () => toggle(kind) }, kind)]));
  controls.least = make("input", { type: "checkbox", id: "least", onchange: () => change({ least: controls.least.checked }) });
  const names = [...new Set(DATA.classes.map((row) => row.class))].sort();
  controls.class = make("select", { id: "class", onchange: () => change({ class: controls.class.value }) }, make("option", { value: "" }, "all classes"), ...names.map((name) => make("option", { value: name }, name)));
  const score = (key, label) => {
    const read = () => (Number.isFinite(controls[key].valueAsNumber) ? controls[key].valueAsNumber : NO_FILTER[key]);
    return (controls[key] = make("input", { type: "number", min: 0, max: 1, step: 0.05, id: key, "aria-label": label, onchange: () => change({ [key]: read() }) }));
  };
  controls.text = make("input", { type: "search", id: "text", placeholder: "name or id", oninput: () => change({ text: controls.text.value }) });
  controls.count = make("output", { id: "count" });
  controls.chosen = make("span", { class: "chips" });
  controls.nothing = note("No video fits. ", link("Show all", () => change(NO_FILTER)));
  const sort = make("select", { id: "order", onchange: () => ((order = sort.value), update()) }, ...Object.keys(ORDERS).map((name) => make("option", {}, name)));
  const faint = make("input", { type: "number", min: 0, max: 1, step: 0.05, value: playback.minScore, id: "draw-from", onchange: () => ((playback.minScore = faint.valueAsNumber || 0), gallery.redraw()) });
  const speed = make("select", { id: "speed", onchange: () => (playback.perSecond = Number(speed.value)) }, ...[2, 6, 12, 25].map((each) => make("option", { value: each, selected: each === playback.perSecond }, `${each} per second`)));
  let isPlaying = false;
  const play = make("button", { type: "button", id: "play-all", onclick: () => ((isPlaying = !isPlaying), gallery.playAll(isPlaying), (play.textContent = isPlaying ? "❚❚ Pause all" : "▶ Play all")) }, "▶ Play all");
  const field = (text, ...nodes) => make("label", { class: "field" }, text, ...nodes);
  section("videos", "Videos",
    make("div", { class: "filter" },
      make("div", { class: "line" }, controls.count, ...controls.kinds.values(), field(controls.least, ` at IoU ${LEAST_IOU}`), controls.chosen, link("clear", () => change(NO_FILTER), "Show all videos")),
      make("div", { class: "line" }, field("Class ", controls.class), make("span", { class: "field" }, "Score ", score("low", "Least score"), " to ", score("high", "Highest score")), controls.text, field("Sort by ", sort), field("Draw from score ", faint), play, speed)),
    ...videoNotes(), controls.nothing, gallery.node);
  update();
}

function videoNotes() {
  const drawn = DATA.videos.filter((video) => video.drawn);
  const pictureless = drawn.filter((video) => video.problem).length;
  const notes = [];
  if (!DATA.frames) notes.push("Nobody told where the frames are (--frames): masks are drawn on grey.");
  if (pictureless) notes.push(`The frames of ${pictureless} of ${drawn.length} videos are missing or cannot be read: their masks are drawn on grey.`);
  if (drawn.length < DATA.videos.length) notes.push(`Of ${DATA.videos.length} videos the ${drawn.length} whose errors cost most are drawn.`);
  const thinned = drawn.filter((video) => video.frames.length < video.length).length;
  if (thinned) notes.push(`Of ${thinned} videos some frames are left out, to keep this page small.`);
  const legend = "What has one colour belongs together. Dashed: an error; white: belongs to no object. The number beside a name is what its errors cost, in AP.";
  return [note([...notes, legend].join(" "))];
}

fillAbout();
fillScores();
fillLost();
fillCurves();
fillGroups();
fillConfusion();
fillClasses();
fillVideos();
