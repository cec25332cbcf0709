"use strict";
// Videos that play: cards, of which only those in sight are drawn, and a viewer for one video.

const playback = { players: new Set(), perSecond: 6, minScore: DATA.confusion.min_score, isRunning: false };

function animate(time) {
  for (const player of playback.players) player.tick(time);
  playback.isRunning = playback.players.size > 0;
  if (playback.isRunning) requestAnimationFrame(animate);
}

/** Ground truth and predictions of one video side by side, with a button, a slider and the number of the frame. */
class Player {
  /** width: of each canvas in pixels. */
  constructor(video, width) {
    this.video = video;
    this.width = width;
    this.marks = marked([]);
    this.place = 0;
    this.last = 0;
    this.wantsToPlay = false;
    this.isInSight = false;
    this.images = new Map();
    this.truth = make("canvas", { width: 0, height: 0 });
    this.predicted = make("canvas", { width: 0, height: 0 });
    if (video.size) for (const canvas of [this.truth, this.predicted]) canvas.style.aspectRatio = `${video.size[1]} / ${video.size[0]}`;
    this.button = make("button", { type: "button", class: "play", "aria-label": "Play", onclick: () => this.play(!this.wantsToPlay) }, "▶");
    this.slider = make("input", {
      type: "range", min: 0, max: Math.max(0, video.frames.length - 1), value: 0, "aria-label": "Frame",
      oninput: () => (this.play(false), this.seek(Number(this.slider.value))),
    });
    this.position = make("output");
    this.node = make("div", { class: "player" },
      make("figure", {}, this.truth, make("figcaption", {}, "ground truth")),
      make("figure", {}, this.predicted, make("figcaption", {}, "predictions")),
      make("div", { class: "controls" }, this.button, this.slider, this.position),
    );
    this.tell();
  }

  get canDraw() {
    return Boolean(this.video.size && this.video.frames.length);
  }

  /** Pictures and pixels are there only as long as somebody can see them. */
  setInSight(isInSight) {
    if (isInSight === this.isInSight) return;
    this.isInSight = isInSight;
    if (!isInSight) this.images.clear();
    for (const canvas of [this.truth, this.predicted]) {
      canvas.width = isInSight && this.canDraw ? this.width : 0;
      canvas.height = isInSight && this.canDraw ? Math.round((this.width * this.video.size[0]) / this.video.size[1]) : 0;
    }
    this.draw();
    this.follow();
  }

  mark(marks) {
    this.marks = marks;
    this.draw();
  }

  play(wantsToPlay) {
    this.wantsToPlay = wantsToPlay && this.video.frames.length > 1;
    this.button.textContent = this.wantsToPlay ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", this.wantsToPlay ? "Pause" : "Play");
    this.follow();
  }

  /** Take part in the playback, or leave it. */
  follow() {
    if (this.wantsToPlay && this.isInSight) playback.players.add(this);
    else playback.players.delete(this);
    if (playback.players.size && !playback.isRunning) {
      playback.isRunning = true;
      requestAnimationFrame(animate);
    }
  }

  tick(time) {
    if (time - this.last < 1000 / playback.perSecond) return;
    const next = (this.place + 1) % this.video.frames.length;
    if (this.video.images.length && !this.isReady(next)) return; // wait for the picture instead of flickering
    this.last = time;
    this.seek(next);
  }

  seek(place) {
    this.place = place;
    this.draw();
    this.tell();
  }

  tell() {
    const { frames, length } = this.video;
    this.slider.value = this.place;
    this.position.textContent = frames.length ? `${frames[this.place] + 1} / ${length}` : "–";
  }

  image(place) {
    if (!this.images.has(place)) {
      const image = new Image();
      image.addEventListener("load", () => this.place === place && this.draw());
      image.src = this.video.images[place];
      this.images.set(place, image);
    }
    return this.images.get(place);
  }

  isReady(place) {
    const image = this.image(place);
    return image.complete && image.naturalWidth > 0;
  }

  draw() {
    if (!this.isInSight || !this.canDraw) return;
    const hasImages = this.video.images.length > 0;
    if (hasImages && !this.isReady(this.place)) return;
    const image = hasImages ? this.image(this.place) : null;
    const unit = this.video.size[1] / (this.truth.clientWidth || this.width);
    const predicted = predictionShapes(this.video, this.marks, playback.minScore);
    drawFrame(this.truth, this.video, this.place, truthShapes(this.video, this.marks), image, unit);
    drawFrame(this.predicted, this.video, this.place, predicted, image, unit);
  }
}

/** What is to be said of a video beside its pictures. */
function remarks(video) {
  const notes = [];
  if (!video.drawn) notes.push("not drawn: its errors cost less than those of the others");
  else if (!video.size) notes.push("the data tell no size, and it has no mask");
  else if (video.problem) notes.push(`${video.problem}; masks on grey`);
  if (video.drawn && video.frames.length < video.length) notes.push(`${video.frames.length} of ${video.length} frames`);
  const hidden = video.predictions.filter((each) => !each.outlines.length).length;
  if (video.drawn && hidden) notes.push(`${hidden} weaker predictions not drawn`);
  return notes.join(" · ");
}

function kindChips(errors) {
  return [...count(errors, (each) => each.kind)]
    .sort((a, b) => DATA.kinds.indexOf(a[0]) - DATA.kinds.indexOf(b[0]))
    .map(([kind, times]) => make("span", { class: `chip kind-${kind}` }, `${kind} ${times}`));
}

/** A video in the gallery. */
class Card {
  constructor(video, open) {
    this.video = video;
    this.player = new Player(video, 400);
    const title = make("button", { type: "button", class: "title", title: `${video.name} (video ${video.id})`, onclick: () => open(video) }, video.name);
    this.chips = make("div", { class: "chips" });
    this.node = make("article", { class: "card", "data-video": video.id },
      make("header", {}, title, make("span", { class: "cost", title: "What its errors cost one by one, together, in AP" }, `−${number(video.cost)}`)),
      this.player.node,
      this.chips,
      make("p", { class: "remark" }, remarks(video)),
    );
    for (const canvas of [this.player.truth, this.player.predicted]) canvas.addEventListener("click", () => open(video));
  }

  /** Show what a filter has found. */
  mark(finding) {
    this.player.mark(finding);
    this.chips.replaceChildren(...kindChips(finding.errors.length ? finding.errors : this.video.errors));
  }
}

/** All cards, and which of them are shown. */
class Gallery {
  constructor(node, open) {
    this.node = node;
    this.cards = new Map([...VIDEOS.values()].map((video) => [video.id, new Card(video, open)]));
    this.shown = [];
    const byNode = new Map([...this.cards.values()].map((card) => [card.node, card]));
    const watcher = new IntersectionObserver(
      (entries) => entries.forEach((entry) => byNode.get(entry.target).player.setInSight(entry.isIntersecting)),
      { rootMargin: "120px" },
    );
    for (const card of this.cards.values()) watcher.observe(card.node);
  }

  show(filter, order) {
    const findings = [...VIDEOS.values()].map((video) => [video, found(video, filter)]).filter(([, finding]) => finding);
    findings.sort(([a], [b]) => ORDERS[order](a, b) || a.id - b.id);
    this.shown = findings.map(([video]) => video);
    for (const [video, finding] of findings) this.cards.get(video.id).mark(finding);
    this.node.replaceChildren(...this.shown.map((video) => this.cards.get(video.id).node));
  }

  playAll(isPlaying) {
    for (const card of this.cards.values()) card.player.play(isPlaying);
  }

  redraw() {
    for (const card of this.cards.values()) card.player.draw();
  }
}
