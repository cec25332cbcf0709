"use strict";
// Everything that users or models name is put into the page as text, never as markup.

const POLL_MS = 600;
const SEEN = "lbvq-jobs";  // ids of this tab's jobs, so that a reload shows them again
const STAGES = {
  check: "checking the video", model: "loading the model (when it is first used it is downloaded)",
  segment: "finding objects", refine: "refining masks", draw: "drawing", write: "writing files",
};
const DOWNLOADS = {
  "video.mp4": ["Video (mp4)", "segmented.mp4"],
  "results.json": ["Results (JSON)", "results.json"],
  "cvat.xml": ["Labels for CVAT (XML)", "cvat.xml"],
};
const token = document.querySelector("meta[name=token]").content;
const at = (id) => document.getElementById(id);
let offers = null;
let video = null;  // a File
let stream = null;  // of the camera

function element(tag, text = "", properties = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  return Object.assign(made, properties);
}

function say(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { "X-Lbvq-Token": token } });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

// -- what can be chosen

async function showOffers() {
  offers = await ask("offers");
  const groups = new Map();
  for (const model of offers.models) {
    if (!groups.has(model.group)) {
      const group = element("optgroup", "", { label: model.group });
      groups.set(model.group, group);
      at("model").append(group);
    }
    groups.get(model.group).append(element("option", model.title, { value: model.key }));
  }
  at("model").selectedIndex = 0;
  for (const [key, title] of Object.entries(offers.refinements)) {
    at("refine").append(element("option", title, { value: key }));
  }
  const { num_bytes: bytes, seconds, frames } = offers.limits;
  at("limits").textContent = `up to ${megabytes(bytes)}, ${Number(seconds.toFixed(2))} s, ${frames} frames`;
  showModel();
}

function chosenModel() {
  return offers.models.find((model) => model.key === at("model").value);
}

function showModel() {
  const model = chosenModel();
  at("model-about").textContent = model.about;
  at("classes-field").hidden = !model.open_vocabulary;
}

function megabytes(bytes) {
  return bytes < 2 ** 19 ? `${Math.ceil(bytes / 1024)} kB` : `${Number((bytes / 2 ** 20).toFixed(1))} MB`;
}

// -- a video from a file or the camera

function choose(file) {
  if (!file || !offers) return;
  say("");
  if (file.size > offers.limits.num_bytes) {
    say(`The file is too large: ${megabytes(file.size)}, at most ${megabytes(offers.limits.num_bytes)} are taken.`);
    return;
  }
  closeCamera();
  video = file;
  const preview = at("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.controls = true;
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; };  // this browser does not play it; the server may read it
  at("chosen").textContent = `${file.name}, ${megabytes(file.size)}`;
  at("chosen").hidden = false;
  at("start").disabled = false;
}

async function openCamera() {
  say("");
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    say("This browser gives the camera only to pages of this computer (http://127.0.0.1) or with encryption.");
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`);
    return;
  }
  const preview = at("preview");
  preview.removeAttribute("src");
  preview.srcObject = stream;
  preview.controls = false;
  preview.hidden = false;
  preview.play();
  at("camera").hidden = true;
  at("recorder").hidden = false;
}

function closeCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  const preview = at("preview");
  if (preview.srcObject) {
    preview.srcObject = null;
    preview.hidden = true;
  }
  at("camera").hidden = false;
  at("recorder").hidden = true;
}

function record() {
  const parts = [];
  const recorder = new MediaRecorder(stream);
  const seconds = Number(at("record-seconds").value);
  const button = at("record");
  let left = seconds;
  button.disabled = true;
  button.textContent = `Recording, ${left} s left`;
  const clock = setInterval(() => { left -= 1; button.textContent = `Recording, ${left} s left`; }, 1000);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    clearInterval(clock);
    button.disabled = false;
    button.textContent = "Record";
    if (stream) choose(new File(parts, "camera.webm", { type: recorder.mimeType }));
  };
  recorder.start();
  setTimeout(() => { if (recorder.state !== "inactive") recorder.stop(); }, seconds * 1000);
}

// -- jobs

function start(event) {
  event.preventDefault();
  if (!video) return;
  say("");
  const settings = {
    name: video.name, model: at("model").value, refine: at("refine").value, threshold: at("threshold").value,
  };
  if (chosenModel().open_vocabulary) settings.classes = at("classes").value;
  const request = new XMLHttpRequest();  // fetch does not tell how much is sent
  const button = at("start");
  const finish = (problem) => {
    button.disabled = false;
    button.textContent = "Find objects";
    if (problem) say(problem);
  };
  request.open("POST", `jobs?${new URLSearchParams(settings)}`);
  request.setRequestHeader("X-Lbvq-Token", token);
  request.responseType = "json";
  request.upload.onprogress = ({ loaded, total }) => {
    button.textContent = `Sending, ${Math.round(100 * loaded / total)} %`;
  };
  request.onload = () => {
    const job = request.response;
    if (request.status !== 201) return finish(job ? job.error : "The server did not understand the upload.");
    remember(job.id);
    watch(job.id);
    finish("");
  };
  request.onerror = () => finish("The upload was cut. Is the server still running?");
  button.disabled = true;
  button.textContent = "Sending";
  request.send(video);
}

function remembered() {
  return JSON.parse(sessionStorage.getItem(SEEN) || "[]");
}

function remember(id) {
  sessionStorage.setItem(SEEN, JSON.stringify([...remembered(), id].slice(-20)));
}

function forget(id) {
  sessionStorage.setItem(SEEN, JSON.stringify(remembered().filter((each) => each !== id)));
}

async function watch(id) {
  const card = at("job-template").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(`.${name}`);
  part("cancel").onclick = () => {
    part("cancel").disabled = true;
    ask(`jobs/${id}/cancel`, { method: "POST" }).catch((error) => say(error.message));
  };
  for (;;) {
    let job = null;
    try {
      job = await ask(`jobs/${id}`);
    } catch (error) {
      if (!(error instanceof TypeError)) {  // the server knows nothing of it any longer
        forget(id);
        part("text").textContent = error.message;
        part("bar").hidden = part("cancel").hidden = true;
        return;
      }
      part("text").textContent = "The server does not answer. Is it still running?";
    }
    if (job) {
      if (!card.isConnected) at("jobs").prepend(card);
      at("empty").hidden = true;
      showState(job, card, part);
      if (job.result) showResult(job, part);
      if (!["waiting", "running"].includes(job.state)) return;
    }
    await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
  }
}

function showState(job, card, part) {
  const isOpen = ["waiting", "running"].includes(job.state);
  card.className = `job ${job.state}`;
  part("name").textContent = job.name;
  part("state").textContent = job.is_cancelled && isOpen ? "stopping" : job.state;
  part("cancel").hidden = !isOpen;
  part("bar").hidden = !isOpen;
  if (job.state === "running" && job.total) part("bar").value = job.done / job.total;
  else part("bar").removeAttribute("value");
  part("text").textContent = {
    waiting: job.ahead ? `${job.ahead} before it in the queue` : "next in the queue",
    running: `${STAGES[job.stage] || ""}${job.total ? `, ${job.done} of ${job.total} frames` : ""}`,
    failed: job.message,
  }[job.state] || "";
}

function showResult(job, part) {
  const { result } = job;
  const count = result.tracks.length;
  const best = count || !result.num_found ? "" : `; the best score is ${result.best.toFixed(2)}`;
  part("text").textContent = `${count} of ${result.num_found} objects reach the least score${best}.`
    + ` ${result.frames} frames of ${result.width} x ${result.height},`
    + ` ${result.seconds.toFixed(2)} s.`;
  part("notes").replaceChildren(...result.notes.map((note) => element("li", note)));
  part("notes").hidden = !result.notes.length;
  const base = job.name.replace(/\.[^.]*$/, "") || "video";
  part("downloads").replaceChildren(...result.files.map((file) => {
    const [title, ending] = DOWNLOADS[file];
    return element("a", title, { href: `jobs/${job.id}/${file}`, download: `${base}_${ending}` });
  }));
  const player = part("video");
  player.src = `jobs/${job.id}/video.mp4`;
  part("tracks").querySelector("tbody").replaceChildren(
    ...result.tracks.map((track) => trackRow(track, result.seconds, player)),
  );
  part("tracks").hidden = !count;
  part("result").hidden = false;
}

function trackRow(track, seconds, player) {
  const row = element("tr");
  const number = element("td");
  const swatch = element("span", "", { className: "swatch" });
  swatch.style.background = track.color;
  number.append(swatch, String(track.id));
  const go = (time) => {
    const cell = element("td");
    const button = element("button", `${time.toFixed(2)} s`, { type: "button", title: "show this moment" });
    button.onclick = () => { player.pause(); player.currentTime = time + 0.001; };
    cell.append(button);
    return cell;
  };
  const [first, last] = track.spans.length
    ? [go(track.spans[0][0]), go(track.spans.at(-1)[1])] : [element("td", "never"), element("td")];
  const line = element("div", "", { className: "line" });
  for (const [begin, end] of track.spans) {
    const bar = element("i");
    const share = (time) => 100 * (seconds ? time / seconds : 0);
    bar.style.left = `${share(begin)}%`;
    bar.style.width = `${seconds ? share(end - begin) : 100}%`;
    bar.style.background = track.color;
    line.append(bar);
  }
  const when = element("td");
  when.append(line);
  row.append(number, element("td", track.name), element("td", track.score.toFixed(2)), first, last,
    element("td", `${track.frames} frames`), when);
  return row;
}

// -- start

at("form").onsubmit = start;
at("model").onchange = showModel;
at("threshold").oninput = () => { at("threshold-shown").textContent = Number(at("threshold").value).toFixed(2); };
at("file").onchange = () => choose(at("file").files[0]);
at("camera").onclick = openCamera;
at("camera-off").onclick = closeCamera;
at("record").onclick = record;
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();  // a file dropped beside the field would replace the page
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}
showOffers().then(() => remembered().forEach(watch)).catch((error) => say(error.message));
