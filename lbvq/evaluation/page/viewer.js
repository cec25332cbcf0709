"use strict";
// One video, large, with lists of its errors, objects and predictions.

class Viewer {
  /** neighbours: function that returns the videos shown now; marksOf: what is marked in a video at first. */
  constructor(dialog, neighbours, marksOf) {
    this.dialog = dialog;
    this.neighbours = neighbours;
    this.marksOf = marksOf;
    this.player = null;
    dialog.addEventListener("close", () => this.stop());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
      if (event.target.matches("input")) return;
      if (event.key === "ArrowRight") this.go(1);
      if (event.key === "ArrowLeft") this.go(-1);
    });
  }

  stop() {
    if (!this.player) return;
    this.player.play(false);
    this.player.setInSight(false);
    this.player = null;
  }

  go(step) {
    const videos = this.neighbours();
    const place = videos.indexOf(this.video) + step;
    if (place >= 0 && place < videos.length) this.open(videos[place]);
  }

  open(video) {
    this.stop();
    this.video = video;
    this.player = new Player(video, 800);
    const step = (text, by, title) => make("button", { type: "button", title, onclick: () => this.go(by) }, text);
    this.dialog.replaceChildren(
      make("header", {},
        make("h2", {}, video.name),
        make("span", { class: "muted" }, `video ${video.id} · errors cost ${number(video.cost)} AP`),
        step("‹", -1, "Previous video"), step("›", 1, "Next video"),
        make("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => this.dialog.close() }, "✕"),
      ),
      this.player.node,
      make("p", { class: "remark" }, remarks(video)),
      make("div", { class: "lists" }, this.errors(), this.objects(), this.predictions()),
    );
    if (!this.dialog.open) this.dialog.showModal();
    this.player.mark(this.marksOf(video));
    this.player.setInSight(true);
    this.player.play(true);
  }

  list(title, rows, empty) {
    return make("section", {}, make("h3", {}, title), rows.length ? make("ul", {}, ...rows) : make("p", { class: "muted" }, empty));
  }

  row(marks, ...content) {
    return make("li", {}, make("button", { type: "button", class: "row", title: "Mark it", onclick: () => this.player.mark(marks) }, ...content));
  }

  swatch(id, dashed) {
    const node = make("i", { class: dashed ? "swatch dashed" : "swatch" });
    node.style.setProperty("--color", objectColor(this.video, id));
    return node;
  }

  errors() {
    const rows = this.video.errors.map((each) => {
      const what = each.class === null ? each.annotation_class : each.annotation_class && each.annotation_class !== each.class ? `${each.class}, is ${each.annotation_class}` : each.class;
      const facts = [each.score === null ? null : `score ${number(each.score, 2)}`, `IoU ${number(each.iou, 2)}`, `at ${each.thresholds.length} thresholds`];
      return this.row(marked([each]), make("span", { class: `chip kind-${each.kind}` }, each.kind), make("b", {}, what),
        make("span", { class: "muted" }, facts.filter(Boolean).join(" · ")), make("span", { class: "cost" }, `−${number(each.cost)}`));
    });
    return this.list(`Errors (${rows.length})`, rows, "none");
  }

  objects() {
    const rows = this.video.objects.map((each) =>
      this.row(marked([{ annotation: each.id }]), this.swatch(each.id, each.crowd), make("b", {}, each.class),
        make("span", { class: "muted" }, `annotation ${each.id}${each.crowd ? " · crowd" : ""}`)));
    return this.list(`Objects (${rows.length})`, rows, "none");
  }

  predictions() {
    const rows = this.video.predictions.map((each) =>
      this.row(marked([{ prediction: each.index }]), this.swatch(each.track, each.fate !== "found"), make("b", {}, each.class),
        make("span", { class: "muted" }, `${number(each.score, 3)} · ${each.fate}${each.track === null ? "" : ` · annotation ${each.track}`}`)));
    return this.list(`Predictions (${rows.length})`, rows, "none");
  }
}
